"""An ID Quantique ID900 (ID1000) Time Controller: SCPI texts as ZeroMQ messages, errors in place of the answer.

Four inputs and a start input see steady pulses; their timestamps leave by the DataLinkTarget service of
`idq_data_link`, on further ports at the distance that the real ones have.

Source:
    IDQ Time Controller Series User Manual, chapter 9 (SCPI commands) and 8.2; IDQ's example scripts; observed on
    hardware by the Measurement Standards Laboratory of New Zealand: step of the threshold, texts of `:STATe?`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from qkdhw.quantities import PS_PER_S
from qkdhw_emulators.faults import Fault, FaultSwitches, spoil_reply
from qkdhw_emulators.line import EmulatedUnit
from qkdhw_emulators.optics.bench_clicks import BenchInputs
from qkdhw_emulators.units.idq_data_link import (
    CHANNELS,
    DetectorPulses,
    EmulatedDataLink,
    EmulatedRawStream,
    Pulses,
    Recorder,
)
from qkdhw_emulators.units.scpi_unit import pattern_of
from qkdhw_emulators.world import World, serial_number

THRESHOLD_STEP_V = 0.001952
SCPI_PORT, DATA_LINK_PORT, STREAM_PORT = 5555, 6060, 4241
PHASE_PS = 1009
START_RATE = "rate_start_hz"
PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:E[+-]?[0-9]+)?"
INVALID, TYPE, COUNT = "SCPI_ERR_INVALID_CMD", "SCPI_ERR_PARAM_TYPE", "SCPI_ERR_PARAM_COUNT"
SOURCES = ("NONE", "STAR", *(f"INPU{c}" for c in CHANNELS))
EVENTS = ("NONE", "STAR", *(f"TSCO{n}" for n in range(1, 13)))


class RefusedError(Exception):
    """A command is answered by this text."""


@dataclass(frozen=True)
class Value:
    """One value that can be set and asked for.

    Attributes:
        header: Its header, with # for the number of the block.
        blocks: How many blocks there are; 0: it has no number.
        default: At power-up, as it is answered.
        parse: From a parameter, in capitals, to the answer's text.
    """

    header: str
    blocks: int
    default: str
    parse: Callable[[str], str]


def word(*choices: str) -> Callable[[str], str]:
    """One of these words, whole or by its capitals."""

    def parse(text: str) -> str:
        for choice in choices:
            if pattern_of(choice).fullmatch(text):
                return choice.upper()
        raise RefusedError(TYPE)

    return parse


def volts(text: str) -> str:
    """A threshold, taken in steps of 1.952 mV."""
    match = re.fullmatch(rf"({NUMBER})\s*(M?V)?", text)
    if match is None or abs(volt := float(match[1]) * (1e-3 if match[2] == "MV" else 1.0)) > 2.0:
        raise RefusedError(TYPE)
    steps = min(max(round(volt / THRESHOLD_STEP_V), -1024), 1024)
    return f"{steps * THRESHOLD_STEP_V:.6f}".rstrip("0").rstrip(".") + "V"


def ticks(low: int, high: int) -> Callable[[str], str]:
    """A time in TB, which is 1 ps."""

    def parse(text: str) -> str:
        match = re.fullmatch(rf"({NUMBER})\s*(?:([KMGT]?)TB)?", text)
        if match is None or not low <= (value := round(min(float(match[1]) * PREFIXES[match[2] or ""], 1e19))) <= high:
            raise RefusedError(TYPE)
        return f"{value}TB"

    return parse


def whole(low: int, high: int, *names: str) -> Callable[[str], str]:
    """A whole number, or one of these names."""

    def parse(text: str) -> str:
        if text not in names and not (text.isdecimal() and len(text) <= 9 and low <= int(text) <= high):
            raise RefusedError(TYPE)
        return text

    return parse


def address(*choices: str) -> Callable[[str], str]:
    """The block that something is linked to."""

    def parse(text: str) -> str:
        if text not in choices:
            raise RefusedError(f"No connection to {text}")
        return text

    return parse


def _block_of(digits: str) -> int:
    """The number of a block, 1 if it is left out; nine digits are enough to see that there is no such block."""
    return int(digits[:9] or 1)


def _input_values(block: str, blocks: int) -> tuple[Value, ...]:
    return (
        Value(f"{block}:ENABle", blocks, "ON", word("ON", "OFF")),
        Value(f"{block}:COUPling", blocks, "DC", word("DC", "AC")),
        Value(f"{block}:EDGE", blocks, "RISING", word("RISIng", "FALLing")),
        Value(f"{block}:THREshold", blocks, "0.499712V", volts),
        Value(f"{block}:SELEct", blocks, "UNSHAPED", word("UNSHaped", "SHAPed", "LOOP", "OUTPut")),
        Value(f"{block}:COUNter:INTEgrationtime", blocks, "1000", whole(1, 65535)),
        Value(f"{block}:COUNter:MODE", blocks, "CYCLE", word("CYCLe", "ACCUm")),
    )


VALUES = (
    *_input_values("INPUt#", 4), *_input_values("STARt", 0),
    Value("INPUt#:RESYncpolicy", 4, "AUTO", word("AUTO", "MANUal")),
    Value("STARt:DELAy", 0, "0TB", ticks(0, PS_PER_S)),
    Value("DELAy#:VALUe", 8, "0TB", ticks(0, PS_PER_S)),
    Value("DELAy#[:INPOrt]:LINK", 8, "NONE", address(*SOURCES)),
    Value("DEVIce:SYNC", 0, "INTERNAL", word("INTernal", "EXTernal")),
    Value("DEVIce:RESolution", 0, "LOWRES", word("LOWRES", "HIRES")),
    Value("TSGE#:ENABle", 8, "OFF", word("ON", "OFF")),
    Value("HISTogram#[:INPOrt]:REF:LINK", 4, "STAR", address(*EVENTS)),
    Value("HISTogram#[:INPOrt]:STOP:LINK", 4, "NONE", address(*EVENTS)),
    Value("HISTogram#[:INPOrt]:ENABle:LINK", 4, "TSGE8", address("NONE", *(f"TSGE{n}" for n in range(1, 9)))),
    Value("HISTogram#:MINimum", 4, "0TB", ticks(0, PS_PER_S)),
    Value("HISTogram#:BWIDth", 4, "100TB", ticks(1, 10**9)),
    Value("HISTogram#:BCOUnt", 4, "16384", whole(1, 16384)),
    Value("RECord:TRIGger:ARM:MODE", 0, "MANUAL", word("MANUal", "AUTO")),
    Value("RECord:ENABle", 0, "OFF", word("ON", "OFF")),
    Value("RECord:NUMber", 0, "1", whole(1, 10**9 - 1, "INF")),
    Value("RECord:DURation", 0, f"{PS_PER_S}TB", ticks(1, 10**18)),
    Value("RECord:PWIDth", 0, f"{PS_PER_S}TB", ticks(1, 10**18)),
    Value("RECord:PPERiod", 0, f"{PS_PER_S + 400_000}TB", ticks(1, 10**18)),
    Value("RAW#[:INPOrt]:STOP:LINK", 4, "TSCO{4}", address(*EVENTS)),
    Value("RAW#[:INPOrt]:REF:LINK", 4, "NONE", address(*EVENTS)),
    Value("RAW#:SEND", 4, "OFF", word("ON", "OFF")),
)  # fmt: skip
"""A default "TSCO{4}" is TSCO and the block's number plus 4: combiners 5 to 8 hand on inputs 1 to 4."""


class EmulatedIdqId900:
    """Answers ID900 commands message by message; no I/O, no clock of its own.

    Args:
        world: Surroundings; the conditions are the pulse rates at its inputs.
        inputs: What inputs 1 to 4 are connected to, in place of steady pulses.
        faults: Faults that are on.

    Attributes:
        faults: Faults that are on; may be changed while the unit runs.
        further_ports: The DataLinkTarget service and its streams.
        raw_errors: Error counters of the four timestamp channels.
        recorder: The record generator.
    """

    keeps_messages: ClassVar[bool] = True
    conditions: ClassVar[dict[str, float]] = {
        "rate_start_hz": 1e6, "rate_1_hz": 5e4, "rate_2_hz": 5e4, "rate_3_hz": 5e4, "rate_4_hz": 5e4,
    }  # fmt: skip
    unit_faults: ClassVar[frozenset[Fault]] = frozenset(
        {
            Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE, Fault.STUCK_VALUE,
            Fault.OVERFLOW, Fault.NON_MONOTONE, Fault.FULL_BUFFER, Fault.STOP_UNANSWERED,
        }
    )  # fmt: skip

    def __init__(
        self, world: World | None = None, *, inputs: BenchInputs | None = None, faults: Iterable[Fault | str] = ()
    ) -> None:
        self.world = world or World()
        self._inputs = inputs
        self.world.declare(self.conditions if inputs is None else {START_RATE: self.conditions[START_RATE]})
        self.faults = FaultSwitches(faults, rng=self.world.rng("faults"))
        self._rng = self.world.rng("unit")
        self.recorder = Recorder(self.world)
        self._streams = {channel: EmulatedRawStream(channel, self) for channel in CHANNELS}
        data_link = EmulatedDataLink(self._streams, self.faults)
        self.further_ports: dict[str, tuple[EmulatedUnit, int]] = {
            "data-link": (data_link, DATA_LINK_PORT - SCPI_PORT),
            **{f"stream-{c}": (stream, STREAM_PORT + c - SCPI_PORT) for c, stream in self._streams.items()},
        }
        self._values = [(pattern_of(value.header), value) for value in VALUES]
        self._queries = [(pattern_of(header), handler) for header, handler in self._query_table().items()]
        self._actions = [(pattern_of(header), handler) for header, handler in self._action_table().items()]
        self.power_cycle()

    def power_cycle(self) -> None:
        """Go back to the state of power-up; the DataLinkTarget service, on the host, goes on."""
        self._now: dict[tuple[str, int], str] = {}
        for value in VALUES:
            for block in range(1, value.blocks + 1) if value.blocks else (0,):
                self._now[value.header, block] = value.default.replace("{4}", str(block + 4))
        self.raw_errors = dict.fromkeys(CHANNELS, 0)
        self.hires_errors = dict.fromkeys((0, *CHANNELS), 0)
        self.recorder = Recorder(self.world)
        self._reset_s = dict.fromkeys((0, *CHANNELS), self.world.now_s())
        self._histogram: dict[int, float] = dict.fromkeys(CHANNELS, 0.0)

    def receive(self, data: bytes) -> bytes:
        """Take one message, which may chain commands by semicolons, and return its answer."""
        replies: list[str] = []
        path = ""
        for command in (part.strip() for part in data.decode("latin-1").strip().split(";")):
            if not command:
                continue
            header, _, rest = command.partition(" ")
            header = header.upper()
            full = header.lstrip(":") if header.startswith((":", "*")) or not path else f"{path}:{header}"
            path = full.rpartition(":")[0]
            try:
                replies.append(self._execute(full, rest.strip().upper()))
            except RefusedError as refused:
                replies.append(str(refused))
                break
        return spoil_reply((";".join(replies) or INVALID).encode("ascii"), self.faults, self._rng)

    def nak(self) -> bytes:
        """Return the answer that says that a command is not known."""
        return INVALID.encode()

    def sends(self, channel: int) -> bool:
        """Whether a channel hands its timestamps to the service."""
        return self._now["RAW#:SEND", channel] == "ON"

    def pulses(self, channel: int) -> Pulses | DetectorPulses:
        """Return what happens at the input that a timestamp channel listens to, its delay included."""
        source = self._now["RAW#[:INPOrt]:STOP:LINK", channel]
        number = int(source[4:]) - 4 if source.startswith("TSCO") else 0
        if number not in CHANNELS or not self._is_on(number):
            return Pulses(0, 0)
        linked = self._now["DELAy#[:INPOrt]:LINK", number] == f"INPU{number}"
        delay_ps = int(self._now["DELAy#:VALUe", number][:-2]) if linked else 0
        if self._inputs is not None:
            self.world.come_to_now()
            return DetectorPulses(self._inputs, number, (self.recorder.begun_ps or 0) - delay_ps)
        return Pulses(self._period_ps(number), PHASE_PS * number + delay_ps)

    def reference(self, channel: int) -> int | None:
        """Return the period of the pulses that a timestamp channel counts from, or None."""
        linked = self._now["RAW#[:INPOrt]:REF:LINK", channel] == "STAR" and self._is_on(0)
        return (self._period_ps(0) or None) if linked else None

    def _execute(self, header: str, parameter: str) -> str:
        for pattern, handler in self._queries if header.endswith("?") else self._actions:
            if match := pattern.fullmatch(header):
                return handler(*map(_block_of, match.groups()), *([parameter] if parameter else []))
        asked = header.removesuffix("?")
        for pattern, value in self._values:
            match = pattern.fullmatch(asked)
            if match is None:
                continue
            block = _block_of(match[1]) if value.blocks else 0
            if block > value.blocks or (value.blocks and block < 1):
                break
            if not header.endswith("?"):
                self._set(value, block, parameter)
            return self._now[value.header, block]
        raise RefusedError(INVALID)

    def _set(self, value: Value, block: int, parameter: str) -> None:
        if not parameter and value.parse is not volts and not value.header.endswith(":ENABle"):
            raise RefusedError(COUNT)
        parsed = value.parse(parameter or "ON")
        if Fault.STUCK_VALUE not in self.faults:
            self._now[value.header, block] = parsed

    def _query_table(self) -> dict[str, Callable[..., str]]:
        return {
            "*IDN?": self._identify,
            "INPUt#:COUNter?": self._count, "STARt:COUNter?": lambda: self._count(0),
            "INPUt#:HIRES:ERROR?": lambda n: str(self._of(self.hires_errors, n)),
            "STARt:HIRES:ERROR?": lambda: str(self.hires_errors[0]),
            "INPUt#:STATe?": self._input_state, "STARt:STATe?": lambda: self._state("STAR", "STARt", 0),
            "DELAy#:STATe?": lambda n: ";".join((
                f":DELA{n}:VALU {self._of(self._now, ('DELAy#:VALUe', n))}",
                f"INPO:LINK {self._now['DELAy#[:INPOrt]:LINK', n]}")) + ";",
            "DEVIce:STATe?": lambda: (
                f":DEVI:SYNC  {self._now['DEVIce:SYNC', 0]};RES {self._now['DEVIce:RESolution', 0]}"),
            "DEVIce:RESolution:BWIDth?": lambda: "100TB" if self._now["DEVIce:RESolution", 0] == "LOWRES" else "13TB",
            "RECord:STAGe?": lambda: "PLAYing" if self.recorder.playing else "IDLE",
            "RAW#:ERRORS?": lambda n: str(self._of(self.raw_errors, n)),
            "HISTogram#:DATA?": self._histogram_data,
        }  # fmt: skip

    def _action_table(self) -> dict[str, Callable[..., str]]:
        return {
            "INPUt#:COUNter:RESEt": self._reset_count, "STARt:COUNter:RESEt": lambda: self._reset_count(0),
            "INPUt#:HIRES:ERROR:CLEAR": self._clear_hires, "STARt:HIRES:ERROR:CLEAR": lambda: self._clear_hires(0),
            "RAW#:ERRORS:CLEAR": self._clear_raw, "HISTogram#:FLUSh": self._flush,
            "RECord:PLAY": self._play, "RECord:STOP": self._stop,
            "DEVIce:SAMPling:RECAlibrate": self._recalibrate,
            "DEVIce:CONFiguration:LOAD": self._load,
        }  # fmt: skip

    def _identify(self) -> str:
        if Fault.WRONG_IDENTITY in self.faults:
            return "ACME,TOASTER,1,1.0"
        firmware = "99.99" if Fault.WRONG_FIRMWARE in self.faults else "2.10.0"
        return f"ID Quantique,ID900,{serial_number(self.world.seed)},{firmware}"

    def _of(self, table: Any, key: Any) -> Any:
        """Return what a block has; the command is not known if there is no such block."""
        if key not in table or key == 0:
            raise RefusedError(INVALID)
        return table[key]

    def _is_on(self, number: int) -> bool:
        return self._now[("INPUt#:ENABle", number) if number else ("STARt:ENABle", 0)] == "ON"

    def _pulse_rate_hz(self, number: int) -> float:
        """Return the rate of pulses at an input, 0 for the start input."""
        if number and self._inputs is not None:
            return self._inputs.rate_hz(number)
        return self.world.conditions[f"rate_{number}_hz" if number else START_RATE]

    def _period_ps(self, number: int) -> int:
        rate_hz = self._pulse_rate_hz(number)
        return round(PS_PER_S / rate_hz) if rate_hz > 0 else 0

    def _count(self, number: int) -> str:
        """Count the pulses of the last whole gate, or those since the reset."""
        block, index = ("INPUt#", number) if number else ("STARt", 0)
        if number:
            self._of(self.raw_errors, number)
        gate_s = int(self._now[f"{block}:COUNter:INTEgrationtime", index]) / 1000
        since_s = self.world.now_s() - self._reset_s[number]
        rate_hz = self._pulse_rate_hz(number) if self._is_on(number) else 0.0
        if self._now[f"{block}:COUNter:MODE", index] == "ACCUM":
            return str(int(rate_hz * since_s))
        gate = int(self.world.now_s() // gate_s)
        mean = rate_hz * gate_s
        if number and self._is_on(number) and self._inputs is not None:
            mean = self._inputs.mean_counts((gate - 1) * gate_s, gate * gate_s)[number - 1]
        return str(int(self.world.rng(f"count {number} {gate}").poisson(mean)))

    def _reset_count(self, number: int) -> str:
        self._reset_s[number] = self.world.now_s()
        return "Counter value set to 0 "

    def _clear_hires(self, number: int) -> str:
        self.hires_errors[number] = 0
        return "Cleared Highres errors"

    def _clear_raw(self, channel: int) -> str:
        self._of(self.raw_errors, channel)
        self.raw_errors[channel] = 0
        return "Errors cleared"

    def _play(self) -> str:
        if self._now["RECord:ENABle", 0] == "OFF":
            raise RefusedError("Record generator is disabled")
        number = self._now["RECord:NUMber", 0]
        width, period = (int(self._now[header, 0][:-2]) for header in ("RECord:PWIDth", "RECord:PPERiod"))
        self.recorder = Recorder(self.world, width, max(width, period), None if number == "INF" else int(number))
        self.recorder.play()
        for stream in self._streams.values():
            stream.restart()
        return "Playing"

    def _stop(self) -> str:
        self.recorder.stop(max((stream.index for stream in self._streams.values()), default=0))
        return "Stopped"

    def _recalibrate(self) -> str:
        self.hires_errors = dict.fromkeys(self.hires_errors, 0)
        return "Recalibration done"

    def _load(self, name: str = "") -> str:
        if name not in {"INIT", "HISTO", "COUNT", "BLANK"}:
            raise RefusedError(TYPE)
        self.power_cycle()
        return name

    def _flush(self, number: int) -> str:
        self._of(self._histogram, number)
        self._histogram[number] = self.world.now_s()
        return "Flushed Histogram!"

    def _histogram_data(self, number: int) -> str:
        """Return a flat histogram: pulses of two sources that know nothing of each other."""
        since_s = self.world.now_s() - self._of(self._histogram, number)
        bins = int(self._now["HISTogram#:BCOUnt", number])
        width_s = int(self._now["HISTogram#:BWIDth", number][:-2]) / PS_PER_S
        stops_hz, starts_hz = (
            self._rate_hz(self._now[f"HISTogram#[:INPOrt]:{which}:LINK", number]) for which in ("STOP", "REF")
        )
        counts = self._rng.poisson(stops_hz * starts_hz * since_s * width_s, bins)
        return "[" + ",".join(map(str, counts)) + "]"

    def _rate_hz(self, source: str) -> float:
        """Return the rate of pulses that come from a block."""
        number = int(source[4:]) - 4 if source.startswith("TSCO") else 0
        known = source == "STAR" or number in CHANNELS
        return self._pulse_rate_hz(number) if known and self._is_on(number) else 0.0

    def _input_state(self, number: int) -> str:
        self._of(self.raw_errors, number)
        return self._state(f"INPU{number}", "INPUt#", number)

    def _state(self, name: str, block: str, index: int) -> str:
        """Return the values of an input in the order and form that the unit gives them."""
        now = self._now
        delay = f"DELA {now['STARt:DELAy', 0]}" if not index else f"RESY {now['INPUt#:RESYncpolicy', index]}"
        return ";".join((
            f":{name}:ENAB {now[f'{block}:ENABle', index]}", f"COUP {now[f'{block}:COUPling', index]}",
            f"EDGE {now[f'{block}:EDGE', index]}", f"THRE {now[f'{block}:THREshold', index]}",
            f"SELE {now[f'{block}:SELEct', index]}", delay,
            f":{name}:COUNter:INTEgrationtime {now[f'{block}:COUNter:INTEgrationtime', index]}",
            f"MODE {now[f'{block}:COUNter:MODE', index]}",
        ))  # fmt: skip

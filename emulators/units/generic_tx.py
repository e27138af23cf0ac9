"""A transmitter unit that speaks GTX/1 (docs/reference/generic-transmitter-protocol.md)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import StrEnum, unique

import numpy as np

from qkdhw_emulators.faults import Fault, FaultSwitches, spoil_reply
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import (
    PROBABILITY_STEPS,
    LinkParameters,
    nearest_pulse_rate_hz,
    probability_weights,
    valid_intensity_probability,
    valid_mean_photon_number,
)
from qkdhw_emulators.world import World

MAX_LINE_BYTES = 256
MAX_RECORDS = 4_194_304
MAX_PULSE_INDEX = 1 << 62
ALARM_OVERRUN = 0x01
ALARM_LASER_TEMPERATURE = 0x04
_INTEGER = re.compile(r"[0-9]{1,19}")
_DECIMAL = re.compile(r"[0-9]{1,19}(\.[0-9]{1,40})?")


@unique
class State(StrEnum):
    """States of the unit."""

    IDLE = "idle"
    ARMED = "armed"
    RUNNING = "running"
    FAULT = "fault"


class _RefusedError(Exception):
    """A command is answered with ERR; the arguments are code and text."""


class EmulatedGenericTx:
    """Answers GTX/1 commands byte for byte; no I/O, no clock of its own.

    Args:
        world: Surroundings; their seed is that of its own light source.
        light: Light source; without one the unit has its own, which runs without a receiver.
        faults: Faults that are on.

    Attributes:
        faults: Faults that are on; may be changed while the unit runs.
    """

    def __init__(
        self, world: World | None = None, *, light: LinkRun | None = None, faults: Iterable[Fault | str] = ()
    ) -> None:
        world = world or World()
        self.faults = FaultSwitches(faults)
        self._link = light or LinkRun(LinkParameters(), seed=world.seed, receiver=False)
        self._settings = _as_quantised(self._link.parameters)
        self._serial_number = f"EMU{self._link.seed % 10**6:06d}"
        self._rng = np.random.default_rng([self._link.seed, 0x475458])
        self._line = bytearray()
        self._too_long = False
        self._state = State.IDLE
        self._alarms = 0
        self._commands: dict[str, Callable[[list[str]], bytes]] = {
            "IDN?": self._identify,
            "CONF": self._configure,
            "CONF?": self._read_setting,
            "ARM": self._arm,
            "START": self._start,
            "STOP": self._stop,
            "STAT?": self._read_status,
            "MON?": self._read_monitors,
            "CLR": self._clear_alarms,
            "REC?": self._read_records,
        }

    def reset_input(self) -> None:
        """Forget a half-received command: its client has gone."""
        self._line.clear()
        self._too_long = False

    def receive(self, data: bytes) -> bytes:
        """Take bytes of commands in any split and return the answers to those that are complete."""
        replies = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._take(piece, limit=MAX_LINE_BYTES - 1)
            replies.append(spoil_reply(self._answer(), self.faults, self._rng))
            self.reset_input()
        self._take(rest, limit=MAX_LINE_BYTES - 1)
        return b"".join(replies)

    def _take(self, piece: bytes, *, limit: int) -> None:
        if self._too_long or len(self._line) + len(piece) > limit:
            self._too_long = True
            self._line.clear()
        else:
            self._line += piece

    def _answer(self) -> bytes:
        if self._too_long:
            return b"ERR 4 line longer than 256 bytes\n"
        name, *arguments = self._line.removesuffix(b"\r").decode("latin-1").split(" ")
        command = self._commands.get(name)
        if command is None:
            return b"ERR 1 unknown command\n"
        self._link.hold_for_transmitter = Fault.RECORD_OVERRUN not in self.faults
        try:
            return command(arguments)
        except _RefusedError as refused:
            code, text = refused.args
            return f"ERR {code} {text}\n".encode("ascii")

    def _identify(self, arguments: list[str]) -> bytes:
        _expect(arguments, 0)
        return _ok(f"qkdhw,GTX-EMU,{self._serial_number},1.0,GTX/1")

    def _configure(self, arguments: list[str]) -> bytes:
        self._expect_state(State.IDLE)
        _expect(arguments, 2)
        name, text = arguments
        if name not in _PARSERS:
            raise _RefusedError(2, "no such setting")
        self._settings = _PARSERS[name](self._settings, text)
        return self._read_setting([name])

    def _read_setting(self, arguments: list[str]) -> bytes:
        _expect(arguments, 1)
        if arguments[0] not in _PARSERS:
            raise _RefusedError(2, "no such setting")
        value = getattr(self._settings, arguments[0])
        values = value if isinstance(value, tuple) else (value,)
        return _ok(",".join(_decimal(v) for v in values))

    def _arm(self, arguments: list[str]) -> bytes:
        self._expect_state(State.IDLE)
        _expect(arguments, 0)
        self._state = State.ARMED
        return _ok()

    def _start(self, arguments: list[str]) -> bytes:
        self._expect_state(State.ARMED)
        _expect(arguments, 0)
        if Fault.LASER_TEMPERATURE in self.faults:
            self._state = State.FAULT
            self._alarms |= ALARM_LASER_TEMPERATURE
            raise _RefusedError(6, "laser temperature out of range")
        self._state = State.RUNNING
        self._link.start_transmitter(self._settings)
        return _ok()

    def _stop(self, arguments: list[str]) -> bytes:
        self._expect_state(State.ARMED, State.RUNNING)
        _expect(arguments, 0)
        self._state = State.IDLE
        self._link.stop_transmitter()
        return _ok()

    def _read_status(self, arguments: list[str]) -> bytes:
        _expect(arguments, 0)
        records = self._link.records
        self._latch_alarms()
        return _ok(
            f"state={self._state} pulses={records.end} buffered={records.buffered} lost={records.lost} "
            f"clock=locked alarms={self._alarms:02x}"
        )

    def _read_monitors(self, arguments: list[str]) -> bytes:
        _expect(arguments, 0)
        mu = self._settings.mean_photon_number
        hot = Fault.LASER_TEMPERATURE in self.faults
        means = " ".join(f"mean_photon_number_{k}={_decimal(v)}" for k, v in enumerate(mu))
        return _ok(
            f"laser_bias_ma=42.1 laser_temperature_c={41.7 if hot else 25.0} attenuator_db=38.6 "
            f"{means} back_reflection_nw=0.3"
        )

    def _clear_alarms(self, arguments: list[str]) -> bytes:
        _expect(arguments, 0)
        self._latch_alarms()
        hot = Fault.LASER_TEMPERATURE in self.faults
        self._alarms &= ALARM_LASER_TEMPERATURE if hot else 0
        if self._state is State.FAULT and not self._alarms:
            self._state = State.IDLE
        return _ok()

    def _read_records(self, arguments: list[str]) -> bytes:
        _expect(arguments, 2)
        first, limit = (_integer(a) for a in arguments)
        if first % 2 or first > MAX_PULSE_INDEX or not 1 <= limit <= MAX_RECORDS:
            raise _RefusedError(2, "first pulse is even, at most 4194304 records")
        records = self._link.records
        if first < records.first:
            raise _RefusedError(5, "records are gone")
        records.forget(first)
        self._link.fill_records(first + limit)
        self._latch_alarms()
        if first < records.first:
            raise _RefusedError(5, "records are gone")
        n = max(0, min(limit, records.end - first)) & ~1  # pulses come in whole chunks, so the last is odd
        body = records.read(first, n) if n else b""
        return _ok(f"{first} {n}") + body + zlib.crc32(body).to_bytes(4, "little")

    def _latch_alarms(self) -> None:
        if self._link.records.overrun:
            self._alarms |= ALARM_OVERRUN
            self._link.records.overrun = False

    def _expect_state(self, *states: State) -> None:
        if self._state not in states:
            raise _RefusedError(3, f"not possible while {self._state}")


def _ok(payload: str = "") -> bytes:
    return f"OK {payload}\n".encode("ascii") if payload else b"OK\n"


def _expect(arguments: list[str], n: int) -> None:
    if len(arguments) != n:
        raise _RefusedError(2, f"takes {n} parameters")


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise _RefusedError(2, "not an integer")
    return int(text)


def _decimals(text: str, n: int) -> tuple[float, ...]:
    parts = text.split(",")
    if len(parts) != n or not all(_DECIMAL.fullmatch(part) for part in parts):
        raise _RefusedError(2, f"takes {n} decimals")
    return tuple(float(part) for part in parts)


def _decimal(value: float) -> str:
    """Write a number without an exponent; exact for 65536ths."""
    return str(value) if isinstance(value, int) else (f"{value:.16f}".rstrip("0").rstrip("."))


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def _with_pulse_rate(settings: LinkParameters, text: str) -> LinkParameters:
    rate_hz = _integer(text)
    if not 1_000_000 <= rate_hz <= 5_000_000_000:
        raise _RefusedError(2, "pulse_rate_hz is 1000000 to 5000000000")
    return replace(settings, pulse_rate_hz=nearest_pulse_rate_hz(rate_hz))


def _with_mean_photon_number(settings: LinkParameters, text: str) -> LinkParameters:
    values = _three(round(v, 6) for v in _decimals(text, 3))
    if not valid_mean_photon_number(values):
        raise _RefusedError(2, "mean_photon_number is 0 to 2, strictly falling")
    return replace(settings, mean_photon_number=values)


def _with_intensity_probability(settings: LinkParameters, text: str) -> LinkParameters:
    values = _three(_decimals(text, 3))
    if not valid_intensity_probability(values):
        raise _RefusedError(2, "intensity_probability is above 0 with sum 1")
    return _as_quantised(replace(settings, intensity_probability=values))


def _with_key_basis_probability(settings: LinkParameters, text: str) -> LinkParameters:
    (value,) = _decimals(text, 1)
    if not 0.05 <= value <= 0.95:
        raise _RefusedError(2, "key_basis_probability is 0.05 to 0.95")
    return _as_quantised(replace(settings, key_basis_probability=value))


def _as_quantised(settings: LinkParameters) -> LinkParameters:
    """Round both probabilities to 65536ths, the key basis inside its range."""
    p = _three(w / PROBABILITY_STEPS for w in probability_weights(settings.intensity_probability))
    key = min(max(round(settings.key_basis_probability * PROBABILITY_STEPS), 3277), 62259)
    return replace(settings, intensity_probability=p, key_basis_probability=key / PROBABILITY_STEPS)


_PARSERS: dict[str, Callable[[LinkParameters, str], LinkParameters]] = {
    "pulse_rate_hz": _with_pulse_rate,
    "mean_photon_number": _with_mean_photon_number,
    "intensity_probability": _with_intensity_probability,
    "key_basis_probability": _with_key_basis_probability,
}

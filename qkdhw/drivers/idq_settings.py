"""How an ID900 is spoken to, and all that can be set on it or read from it, but for timestamps.

Commands are SCPI texts, each one ZeroMQ message, each answered by one message: what was asked for, or what a value now
is, or an error in its place.

Source:
    IDQ Time Controller Series User Manual, chapter 9 (SCPI commands) and 8.2 (blocks); IDQ's example scripts; step of
    the threshold as observed on hardware by the Measurement Standards Laboratory of New Zealand.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qkdhw.drivers.instrument import ErrorStyle
from qkdhw.drivers.setting import ChannelSetting, Reply, Setting
from qkdhw.drivers.text_instrument import TextInstrument, shown, text_of
from qkdhw.errors import CommandRefusedError, ConfigurationError, UnitError, UnitStateError, WireFormatError
from qkdhw.model import UnitInfo

INPUTS = (1, 2, 3, 4)
ANSWER_LIMIT_BYTES = 1 << 20
MOST_BINS = 16384
LONGEST_PS = 10**18
_SWITCH = ("ON", "OFF")
_EVENTS = ("NONE", "STAR", *(f"TSCO{n}" for n in range(1, 13)))
_QUANTITY = re.compile(r"([+-]?(?:[0-9]{1,24}\.?[0-9]{0,12}|\.[0-9]{1,12})(?:[eE][+-]?[0-9]{1,2})?)\s*([A-Za-z]*)")
_VOLTS = {"": Decimal(1), "V": Decimal(1), "MV": Decimal("0.001")}
_PICOSECONDS = {prefix + "TB": Decimal(10) ** (3 * n) for n, prefix in enumerate(("", "K", "M", "G", "T"))}
_HISTOGRAM = re.compile(r"\[\s*(?:[0-9]{1,18}(?:\s*,\s*[0-9]{1,18})*)?\s*\]")
_MODEL = re.compile(r"\bID ?(900|1000)\b", re.IGNORECASE)


def volts_of(text: str) -> float:
    """Return a voltage such as "0.499712V" or "500 mV"; ValueError for anything else."""
    return float(_quantity_of(text, _VOLTS))


def picoseconds_of(text: str) -> int:
    """Return a time such as "1000TB" (1 TB is 1 ps) or "3000 GTB"; ValueError for anything but whole picoseconds."""
    value = _quantity_of(text, _PICOSECONDS | {"": Decimal(1)})
    if value != int(value):
        raise ValueError("not whole picoseconds")
    return int(value)


def _quantity_of(text: str, units: dict[str, Decimal]) -> Decimal:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2].upper() not in units:
        raise ValueError("not a number with this unit")
    return Decimal(match[1]) * units[match[2].upper()]


def word_of(*choices: str) -> Callable[[str], str]:
    """Return a decoder of words that the unit may write in a short form of two letters or more."""

    def decode(text: str) -> str:
        word = text.upper()
        found = [word] if word in choices else [c for c in choices if len(word) > 1 and c.startswith(word)]
        if len(found) != 1:
            raise ValueError("no such word")
        return found[0]

    return decode


def _switched(on: bool) -> str:
    return "ON" if on else "OFF"


def _is_on(text: str) -> bool:
    return word_of(*_SWITCH)(text) == "ON"


def _times(header: str) -> dict[str, Any]:
    return {
        "unit": "ps", "query": f"{header}?", "command": f"{header} {{value}}", "decode": picoseconds_of,
        "reply": Reply.LINE,
    }  # fmt: skip


def _words(header: str, *choices: str) -> dict[str, Any]:
    return {
        "choices": choices, "query": f"{header}?", "command": f"{header} {{value}}", "decode": word_of(*choices),
        "reply": Reply.LINE,
    }  # fmt: skip


def _switches(header: str) -> dict[str, Any]:
    return {
        "query": f"{header}?", "command": f"{header} {{value}}", "decode": _is_on, "encode": _switched,
        "reply": Reply.LINE,
    }  # fmt: skip


def _volts(header: str) -> dict[str, Any]:
    return {
        "unit": "V", "minimum": -2.0, "maximum": 2.0, "step": 0.001952, "query": f"{header}?",
        "command": f"{header} {{value:.6f}}V", "decode": volts_of, "reply": Reply.LINE,
    }  # fmt: skip


def _whole(header: str, low: int, high: int) -> dict[str, Any]:
    return {
        "minimum": low, "maximum": high, "query": f"{header}?", "command": f"{header} {{value}}", "reply": Reply.LINE,
    }  # fmt: skip


class IdqTimeController(TextInstrument):
    """A Time Controller without its timestamps: language, settings, counters, histograms."""

    vendor: ClassVar[str] = "ID Quantique"
    model: ClassVar[str] = "ID900"
    error_style: ClassVar[ErrorStyle] = ErrorStyle.IN_BAND
    schemes: ClassVar[tuple[str, ...]] = ("zmq",)
    command_end: ClassVar[bytes] = b""

    clock_source = Setting(
        str, **_words("DEVI:SYNC", "INTERNAL", "EXTERNAL"),
        doc="Clock: its own, or 10 MHz from outside; whether that is locked, no published command tells.",
    )  # fmt: skip
    resolution = Setting(
        str, **_words("DEVI:RES", "LOWRES", "HIRES"), doc="LOWRES takes high rates, HIRES has short ticks."
    )
    bin_width_ps = Setting(int, access="r", **_times("DEVI:RES:BWID"), doc="Tick of this resolution.")

    input_enabled = ChannelSetting(bool, channels=INPUTS, **_switches("INPU{channel}:ENAB"), doc="Whether it is used.")
    threshold_v = ChannelSetting(float, channels=INPUTS, **_volts("INPU{channel}:THRE"), doc="Discriminator level.")
    edge = ChannelSetting(str, channels=INPUTS, **_words("INPU{channel}:EDGE", "RISING", "FALLING"), doc="Edge taken.")
    coupling = ChannelSetting(str, channels=INPUTS, **_words("INPU{channel}:COUP", "DC", "AC"), doc="Coupling.")
    selection = ChannelSetting(
        str, channels=INPUTS, **_words("INPU{channel}:SELE", "UNSHAPED", "SHAPED", "LOOP", "OUTPUT"),
        doc="What feeds the input.",
    )  # fmt: skip
    resync_policy = ChannelSetting(
        str, channels=INPUTS, **_words("INPU{channel}:RESY", "AUTO", "MANUAL"), doc="When it is synchronised again."
    )
    delay_ps = ChannelSetting(
        int, channels=INPUTS, minimum=0, maximum=10**12,
        **(_times("DELA{channel}:VALU") | {"command": "DELA{channel}:LINK INPU{channel};:DELA{channel}:VALU {value}"}),
        doc="Added to its times; above 4 us events may be lost.",
    )  # fmt: skip
    counter_gate_ms = ChannelSetting(
        int, unit="ms", channels=INPUTS, **_whole("INPU{channel}:COUN:INTE", 1, 65535), doc="Gate of its counter."
    )
    counter_mode = ChannelSetting(
        str, channels=INPUTS, **_words("INPU{channel}:COUN:MODE", "CYCLE", "ACCUM"),
        doc="CYCLE: events of the last whole gate; ACCUM: all since the counter was reset.",
    )  # fmt: skip
    count = ChannelSetting(int, access="r", channels=INPUTS, query="INPU{channel}:COUN?", doc="Its counter.")
    hires_error = ChannelSetting(
        int, access="r", channels=INPUTS, query="INPU{channel}:HIRES:ERROR?",
        doc="0 fine, 1 recalibrate, 2 above 25 MHz, 3 and 4 events too close, 5 off, 1001 to 1003 rate or threshold.",
    )  # fmt: skip

    start_enabled = Setting(bool, **_switches("STAR:ENAB"), doc="Whether the start input is used.")
    start_threshold_v = Setting(float, **_volts("STAR:THRE"), doc="Its discriminator level.")
    start_edge = Setting(str, **_words("STAR:EDGE", "RISING", "FALLING"), doc="Its edge taken.")
    start_coupling = Setting(str, **_words("STAR:COUP", "DC", "AC"), doc="Its coupling.")
    start_delay_ps = Setting(int, minimum=0, maximum=10**12, **_times("STAR:DELA"), doc="Added to its times.")

    histogram_reference = ChannelSetting(
        str, channels=INPUTS, **_words("HIST{channel}:REF:LINK", *_EVENTS),
        doc="Block whose events times count from; combiners TSCO5 to TSCO8 hand on inputs 1 to 4.",
    )  # fmt: skip
    histogram_stop = ChannelSetting(
        str, channels=INPUTS, **_words("HIST{channel}:STOP:LINK", *_EVENTS), doc="Block whose events are counted."
    )
    histogram_minimum_ps = ChannelSetting(
        int, channels=INPUTS, minimum=0, maximum=10**12, **_times("HIST{channel}:MIN"), doc="Start of the first bin."
    )
    histogram_bin_width_ps = ChannelSetting(
        int, channels=INPUTS, minimum=100, maximum=10**9, **_times("HIST{channel}:BWID"), doc="Width of a bin."
    )
    histogram_bins = ChannelSetting(int, channels=INPUTS, **_whole("HIST{channel}:BCOU", 1, MOST_BINS), doc="Bins.")

    record_trigger = Setting(
        str, **_words("REC:TRIG:ARM:MODE", "MANUAL", "AUTO"), doc="Whether a record is started by hand."
    )
    record_enabled = Setting(bool, **_switches("REC:ENAB"), doc="Whether records can be started.")
    record_count = Setting(
        int, **(_whole("REC:NUM", 0, 10**9 - 1) | {
            "decode": lambda text: 0 if text.upper() == "INF" else int(picoseconds_of(text)),
            "encode": lambda value: value or "INF",
        }),
        doc="Sub-acquisitions of a record; 0: until it is stopped.",
    )  # fmt: skip
    record_width_ps = Setting(int, minimum=1, maximum=LONGEST_PS, **_times("REC:PWID"), doc="Length of each of them.")
    record_period_ps = Setting(
        int, minimum=1, maximum=LONGEST_PS, **_times("REC:PPER"), doc="From the start of one to that of the next."
    )
    record_stage = Setting(
        str, access="r", **_words("REC:STAG", "IDLE", "WAITING", "PLAYING", "ARMED"), doc="What the record does."
    )

    timestamp_source = ChannelSetting(
        str, channels=INPUTS, **_words("RAW{channel}:STOP:LINK", *_EVENTS), doc="Block whose timestamps are sent."
    )
    timestamp_reference = ChannelSetting(
        str, channels=INPUTS, **_words("RAW{channel}:REF:LINK", *_EVENTS), doc="Block whose events they count from."
    )
    raw_errors = ChannelSetting(
        int, access="r", channels=INPUTS, query="RAW{channel}:ERRORS?", doc="Timestamps that could not be sent."
    )

    def read_counts(self) -> tuple[int, ...]:
        """Count over one gate time and return a count for each input; takes two gates, as they run by themselves.

        Raises:
            UnitStateError: A counter is not in the mode CYCLE.
        """
        gates_ms = [self.counter_gate_ms[channel] for channel in INPUTS]
        if any(self.counter_mode[channel] != "CYCLE" for channel in INPUTS):
            raise UnitStateError("a counter counts on and on", remedy='set counter_mode to "CYCLE"')
        time.sleep(2 * max(gates_ms) / 1000)
        return tuple(self.count[channel] for channel in INPUTS)

    def reset_counts(self) -> None:
        """Set all counters to 0."""
        self._do(*(f"INPU{channel}:COUN:RESE" for channel in INPUTS))

    def read_histogram(self, number: int) -> NDArray[np.int64]:
        """Return the bins of a histogram, int64 (histogram_bins,).

        Args:
            number: 1 to 4.
        """
        _check_number(number)
        return self._retried(lambda: self._read_histogram(number))

    def clear_histogram(self, number: int) -> None:
        """Empty a histogram."""
        _check_number(number)
        self._do(f"HIST{number}:FLUS")

    def _read_histogram(self, number: int) -> NDArray[np.int64]:
        answer = self._ask(f"HIST{number}:DATA?")
        if not _HISTOGRAM.fullmatch(answer):
            raise WireFormatError(f"HIST{number}:DATA? was answered by {shown(answer)}, not by a list of counts")
        bins = answer.strip("[] \t")
        return np.array(bins.split(",") if bins else [], np.int64)

    def _synchronise(self) -> None:
        """Nothing to do: a new REQ socket hears no answer to what an earlier one asked."""

    def _identify(self) -> UnitInfo:
        answer = self._ask("*IDN?")
        match = _MODEL.search(answer)
        if match is None:
            raise UnitError(
                f"this is no {self.vendor} Time Controller: *IDN? was answered by {shown(answer)}",
                remedy="check the address and the driver name",
            )
        fields = [field.strip() for field in answer.split(",")]
        return UnitInfo(*fields) if len(fields) == 4 else UnitInfo(self.vendor, f"ID{match[1]}", "", answer)

    def _ask(self, command: str, *, timeout_s: float | None = None) -> str:
        """Send a command and return its answer. The link must be held.

        Raises:
            CommandRefusedError: The answer is an error.
        """
        self._link.discard_input()
        self._write_line(command)
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        answer = text_of(self._link.read_message(ANSWER_LIMIT_BYTES, timeout_s=wait_s))
        if "SCPI_ERR" in answer or answer.startswith("No connection") or "failed" in answer.lower():
            code = re.search(r"SCPI_ERR_[A-Z_]{1,40}", answer)
            raise CommandRefusedError(
                f"{self.model} refused {command!r}: {shown(answer)}",
                command=command,
                code=code[0] if code else "",
                remedy="check the value, the unit's state and its licence",
            )
        return answer

    def _tell(self, command: str) -> None:
        """Send a command and look at its answer."""
        self._ask(command)

    def _do(self, *commands: str) -> None:
        """Send commands that may be repeated."""
        for command in commands:
            self._retried(partial(self._tell, command))


def _check_number(number: int) -> None:
    if number not in INPUTS:
        raise ConfigurationError(f"there is no histogram {number!r}", remedy="use 1 to 4")

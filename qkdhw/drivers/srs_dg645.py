"""Driver for the Stanford Research Systems DG645 digital delay generator.

Source:
    SRS DG645 User Manual, chapter "Remote Programming" (command list, error codes, instrument status register).
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from qkdhw.drivers.instrument import ErrorStyle
from qkdhw.drivers.scpi import ScpiInstrument
from qkdhw.drivers.setting import ChannelSetting, Setting
from qkdhw.drivers.text_instrument import number_of, shown
from qkdhw.errors import ConfigurationError, UnitStateError, WireFormatError
from qkdhw.model import UnitStatus

EDGES = ("T0", "T1", "A", "B", "C", "D", "E", "F", "G", "H")  # their places are the unit's numbers for them
DELAYED = tuple(range(2, 10))
OUTPUTS = (0, 1, 2, 3, 4)  # T0, AB, CD, EF, GH
SOURCES = (
    "internal", "external rising", "external falling", "single external rising", "single external falling", "single",
    "line",
)  # fmt: skip
RESOLUTION_S = 5e-12
ALARM_BITS = {1: "trigger_while_busy", 4: "inhibited", 5: "aborted", 6: "pll_unlocked", 7: "rubidium_unlocked"}
ERRORS = {
    10: "illegal value", 11: "illegal mode", 12: "illegal delay", 13: "illegal link", 14: "recall failed",
    15: "not allowed: locked by another interface", 30: "lost data", 32: "no listener", 110: "illegal command",
    111: "undefined command", 112: "illegal query", 113: "illegal set", 114: "no parameter", 115: "too many parameters",
    116: "missing parameters", 117: "parameter overflow", 118: "invalid number", 120: "invalid whole number",
    121: "whole number overflow", 122: "invalid hexadecimal number", 126: "syntax error", 170: "communication error",
    254: "too many errors",
}  # fmt: skip


class SrsDg645(ScpiInstrument):
    """A DG645 as an `interfaces.DelayGenerator`; a context manager.

    Edges are T0, T1 and A to H. In settings an edge is its number in the unit, 2 for A to 9 for H; an output is 0 for
    T0, 1 for AB to 4 for GH.
    """

    vendor: ClassVar[str] = "Stanford Research Systems"
    model: ClassVar[str] = "DG645"
    unit_kind: ClassVar[str] = "delay generator"
    capabilities: ClassVar[frozenset[str]] = frozenset({"DelayGenerator"})
    error_style: ClassVar[ErrorStyle] = ErrorStyle.SRS_QUEUE
    schemes: ClassVar[tuple[str, ...]] = ("tcp", "visa", "serial")
    idn_pattern: ClassVar[str] = r"^stanford.research.systems,dg645,"
    error_query: ClassVar[str] = "LERR?"

    delay_reference = ChannelSetting(
        str, choices=EDGES, channels=DELAYED, range_depends=True, doc="Edge that an edge's delay counts from.",
    )  # fmt: skip
    delay_s = ChannelSetting(
        float, unit="s", minimum=0.0, maximum=1999.999999999995, step=RESOLUTION_S, channels=DELAYED,
        doc="Delay of an edge after its reference.",
    )  # fmt: skip
    amplitude_v = ChannelSetting(
        float, unit="V", minimum=0.5, maximum=5.0, step=0.01, channels=OUTPUTS, query="LAMP?{channel}",
        command="LAMP {channel},{value:.2f}", doc="Step of an output.",
    )  # fmt: skip
    offset_v = ChannelSetting(
        float, unit="V", minimum=-2.0, maximum=2.0, step=0.01, channels=OUTPUTS, query="LOFF?{channel}",
        command="LOFF {channel},{value:.2f}", doc="Level of an output between pulses.",
    )  # fmt: skip
    positive = ChannelSetting(
        bool, channels=OUTPUTS, query="LPOL?{channel}", command="LPOL {channel},{value:d}",
        doc="Whether an output's pulses go up.",
    )  # fmt: skip
    trigger_rate_hz = Setting(
        float, unit="Hz", minimum=1e-4, maximum=1e7, step=1e-6, query="TRAT?", command="TRAT {value:.6f}",
        doc="Rate of the internal trigger.",
    )  # fmt: skip
    trigger_level_v = Setting(
        float, unit="V", minimum=-3.5, maximum=3.5, step=0.01, query="TLVL?", command="TLVL {value:.2f}",
        doc="Threshold of the external trigger.",
    )  # fmt: skip
    holdoff_s = Setting(
        float, unit="s", minimum=0.0, maximum=1999.999999999995, step=RESOLUTION_S, query="HOLD?",
        command="HOLD {value:.12f}", doc="Time after a trigger in which no other one counts.",
    )  # fmt: skip
    advanced_triggering = Setting(
        bool, query="ADVT?", command="ADVT {value:d}", doc="Whether hold-off and prescalers are on.",
    )  # fmt: skip
    burst_count = Setting(
        int, minimum=1, maximum=2**32 - 1, query="BURC?", command="BURC {value}", doc="Cycles of a burst.",
    )  # fmt: skip
    burst_period_s = Setting(
        float, unit="s", minimum=100e-9, maximum=1999.99999999, step=10e-9, query="BURP?", command="BURP {value:.12f}",
        doc="Time from cycle to cycle of a burst.",
    )  # fmt: skip
    burst_delay_s = Setting(
        float, unit="s", minimum=0.0, maximum=1999.999999999995, step=RESOLUTION_S, query="BURD?",
        command="BURD {value:.12f}", doc="Time from the trigger to the first cycle of a burst.",
    )  # fmt: skip
    burst_on = Setting(bool, query="BURM?", command="BURM {value:d}", doc="Whether a trigger starts a burst.")
    trigger_source = Setting(
        str, choices=SOURCES, query="TSRC?", command="TSRC {value}", decode=lambda text: SOURCES[_digit(text)],
        encode=SOURCES.index, doc="What triggers; \"single\" is `trigger()`.",
    )  # fmt: skip
    status_bits = Setting(
        int, access="r", query="INSR?", retry=False, doc="Instrument status register; reading it clears it.",
    )  # fmt: skip

    def set_delay_s(self, channel: str, delay_s: float, *, reference: str = "T0") -> float:
        """Set an edge's delay after a reference edge at once and return what the unit then has, in s.

        Raises:
            ConfigurationError: There is no such edge, or the delay is out of range.
            CommandRefusedError: The edges would refer to each other (13), or the sum of delays is too long (12).
        """
        edge = self._edge(channel)
        reference = self._settings["delay_reference"].checked(reference)
        delay_s = self._settings["delay_s"].checked(delay_s)
        with self._exchange():
            self._tell_delay(edge, reference, delay_s)
            got_reference, got_s = self._ask_delay(edge)
            if got_reference != reference:
                raise WireFormatError(f"edge {channel} counts from {got_reference} after the unit was told {reference}")
            self._applied["delay_reference", edge] = reference
            self._applied["delay_s", edge] = delay_s
        return got_s

    def read_delay_s(self, channel: str) -> tuple[str, float]:
        """Return an edge's reference and its delay after that, in s."""
        edge = self._edge(channel)
        return self._retried(lambda: self._ask_delay(edge))

    def trigger(self) -> None:
        """Trigger once.

        Raises:
            UnitStateError: The trigger source is not "single".
        """
        if self.trigger_source != "single":
            raise UnitStateError(
                'the DG645 takes a trigger by command only from the source "single"',
                remedy='set trigger_source to "single"',
            )
        with self._exchange():
            self._tell("*TRG")

    def read_status(self) -> UnitStatus:
        """Read what happened since the last look; alarms are those of the instrument status register."""
        bits = self.status_bits
        alarms = tuple(name for bit, name in ALARM_BITS.items() if bits >> bit & 1)
        return UnitStatus(state="running" if bits & 1 else "idle", alarms=alarms)

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        if setting.name in {"delay_reference", "delay_s"} and channel is not None:
            reference, delay_s = self._ask_delay(channel)
            return reference if setting.name == "delay_reference" else delay_s
        return super()._read_value(setting, channel)

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> Any:
        if setting.name not in {"delay_reference", "delay_s"} or channel is None:
            return super()._write_value(setting, channel, value)
        reference, delay_s = self._ask_delay(channel)
        if setting.name == "delay_reference":
            self._tell_delay(channel, value, delay_s)
        else:
            self._tell_delay(channel, reference, value)
        return None

    def _ask_delay(self, edge: int) -> tuple[str, float]:
        query = f"DLAY?{edge}"
        answer = self._ask(query)
        edge_number, _, number = answer.partition(",")
        try:
            return EDGES[_digit(edge_number)], number_of(number)
        except (IndexError, ValueError) as error:
            raise WireFormatError(
                f"{query} was answered by {shown(answer)}, not by an edge and a delay",
                remedy="check the address and the driver name",
            ) from error

    def _tell_delay(self, edge: int, reference: str, delay_s: float) -> None:
        self._tell(f"DLAY {edge},{EDGES.index(reference)},{delay_s:.12f}")

    def _read_error(self) -> tuple[str, str] | None:
        error = super()._read_error()
        return error and (error[0], ERRORS.get(int(error[0]), "unknown error"))

    def _edge(self, channel: str) -> int:
        if channel not in EDGES[2:]:
            raise ConfigurationError(f"there is no edge {channel!r} to delay", remedy="edges: A to H")
        return EDGES.index(channel)


def _digit(text: str) -> int:
    """Return what one digit means; ValueError for anything else."""
    if not re.fullmatch("[0-9]", text):
        raise ValueError("not one digit")
    return int(text)

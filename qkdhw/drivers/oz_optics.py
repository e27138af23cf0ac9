"""Drivers for the OZ Optics EPC-400 polarisation controller and DD-100 motor-driven attenuator.

Source:
    OZ Optics EPC driver board (EPC-300/EPC-400) command list, as used by QuTech QMI (ozoptics/epc_driver.py and its
    tests) and pyLabLib (OZOptics/base.py); OZ Optics application note AN_DD100 and QMI ozoptics/dd100mc.py.
"""

from __future__ import annotations

import re
import time
from typing import Any, ClassVar

from qkdhw.drivers.instrument import ErrorStyle
from qkdhw.drivers.setting import ChannelSetting, Reply, Setting
from qkdhw.drivers.text_instrument import QUIET_S, TextInstrument, decoded, shown
from qkdhw.errors import CommandRefusedError, TransportTimeoutError, UnitError, UnitStateError, WireFormatError
from qkdhw.interfaces import Transport
from qkdhw.model import UnitInfo

DONE = "Done"
REPLY_LINES = 32
CHANNELS = (1, 2, 3, 4)
_CHANNEL = r"CH{}\s*([+-]?[0-9]{{1,5}})"
_FOUR_NUMBERS = r"\s+".join(_CHANNEL.format(channel) for channel in CHANNELS)
_FOUR_KINDS = re.compile(
    r"Hz<->Volt at AC Mode is (enabled|disabled):\s*" + ",".join(rf"CH{channel}-([VF])" for channel in CHANNELS)
)
_WAVEFORMS = {"sine": "Sine", "triangle": "Triangle"}


class OzInstrument(TextInstrument):
    """What both have: an answer is lines that end with `Done` or `Error!`, perhaps after an echo of the command."""

    vendor: ClassVar[str] = "OZ Optics"
    error_style: ClassVar[ErrorStyle] = ErrorStyle.ACKNOWLEDGE
    schemes: ClassVar[tuple[str, ...]] = ("serial",)
    command_end: ClassVar[bytes] = b"\r\n"
    reply_end: ClassVar[bytes] = b"\r\n"
    reply_tail: ClassVar[bytes] = b""
    """What follows the last line of an answer."""

    def _synchronise(self) -> None:
        """As for text, and skip the rest of an answer of several lines."""
        super()._synchronise()
        if self._link.fresh_when_reopened:  # on others it was skipped
            self._link.read_until_quiet(QUIET_S, timeout_s=self._timeout_s)

    def _identify(self) -> UnitInfo:
        lines = self._ask_lines(self.challenge)
        if not lines or not self._is_challenge_answer(lines[0]):
            raise UnitError(
                f"this is not an {self.model}: {self.challenge} was answered by {shown(' '.join(lines))}",
                remedy="check the address and the driver name",
            )
        return UnitInfo(self.vendor, self.model, "")

    def _ask_lines(self, command: str, *, timeout_s: float | None = None) -> list[str]:
        """Send a command and return the lines of its answer, without echo and end. The link must be held.

        Raises:
            CommandRefusedError: The answer ends with an error.
            WireFormatError: It does not end.
        """
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + wait_s
        lines = [self._ask(command, timeout_s=wait_s)]
        while lines[-1] != DONE and not lines[-1].startswith("Error"):
            if len(lines) > REPLY_LINES:
                raise WireFormatError(f"the answer to {command!r} does not end", remedy="check the address")
            lines.append(self._read_line(max(0.0, deadline_s - time.monotonic())))
        self._read_tail()
        content = [line for line in lines[:-1] if line and line != command]
        if lines[-1] != DONE:
            raise CommandRefusedError(
                f"the {self.model} refused {command!r}: {shown(' '.join([*content, lines[-1]]))}",
                command=command,
                remedy="check the value and the unit's state",
            )
        return content

    def _ask_one(self, command: str) -> str:
        lines = self._ask_lines(command)
        if len(lines) != 1:
            raise WireFormatError(f"{command!r} was answered by {len(lines)} lines, not by one")
        return lines[0]

    def _read_tail(self) -> None:
        """Read what follows an answer, if this unit sends it."""
        if not self.reply_tail:
            return
        try:
            tail = self._link.read_exactly(len(self.reply_tail), timeout_s=QUIET_S)
        except TransportTimeoutError:
            return
        if tail != self.reply_tail:
            raise WireFormatError(f"an answer was followed by {shown(tail)}", remedy="check the driver name")

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        command = setting.query
        answer = self._ask_one(command)
        if channel is None:
            return decoded(setting, command, answer)
        return decoded(setting, command, _of_channel(command, answer, channel))

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> None:
        encoded = setting.encode(value) if setting.encode else value
        self._ask_lines(setting.command.format(channel=channel, value=encoded))


class OzEpc400(OzInstrument):
    """An EPC-400 as an `interfaces.PolarizationController`: four fibre squeezers, each set by its voltage in mV."""

    model: ClassVar[str] = "EPC-400"
    unit_kind: ClassVar[str] = "polarisation controller"
    capabilities: ClassVar[frozenset[str]] = frozenset({"PolarizationController"})
    challenge: ClassVar[str] = "M?"
    retarders: ClassVar[tuple[int, ...]] = CHANNELS

    operating_mode = Setting(
        str, choices=("dc", "ac"), query="M?", command="M{value}", encode=str.upper, reply=Reply.ACK,
        decode=lambda text: _match(r"Work Mode:\s*(AC|DC)(?:\(\w+\))?", text)[1].lower(),
        doc='"dc": the voltages that are set; "ac": scrambling with the frequencies that are set.',
    )  # fmt: skip
    voltage_mv = ChannelSetting(
        float, unit="mV", minimum=-5000.0, maximum=5000.0, step=1.0, channels=CHANNELS, query="V?",
        command="V{channel},{value:.0f}", reply=Reply.ACK, doc="Voltage of a squeezer.",
    )  # fmt: skip
    frequency_hz = ChannelSetting(
        float, unit="Hz", minimum=0.0, maximum=100.0, step=1.0, channels=CHANNELS, query="F?",
        command="F{channel},{value:.0f}", reply=Reply.ACK, doc="Frequency of a squeezer while scrambling.",
    )  # fmt: skip
    waveform = Setting(
        str, choices=tuple(_WAVEFORMS), query="WF?", command="WF{value}", reply=Reply.ACK,
        encode=lambda name: 1 + list(_WAVEFORMS).index(name),
        decode=lambda text: _match(r"AC Waveform:\s*(Sine|Triangle)", text)[1].lower(),
        doc="Shape of the scrambling voltage.",
    )  # fmt: skip
    dc_in_ac_enabled = Setting(
        bool, query="VF?", command="ENVF{value:d}", reply=Reply.ACK,
        decode=lambda text: _match(_FOUR_KINDS, text)[1] == "enabled",
        doc="Whether single squeezers may keep a fixed voltage while the others scramble.",
    )  # fmt: skip
    scrambling = ChannelSetting(
        bool, channels=CHANNELS, query="VF?", command="VF{channel}", reply=Reply.ACK,
        doc="Whether a squeezer scrambles in mode ac (F) or keeps its voltage (V), where dc_in_ac_enabled allows it.",
    )  # fmt: skip

    def set_retarder(self, channel: int, value: float) -> float:
        """Set one squeezer's voltage in mV and return what the unit then has.

        Raises:
            UnitStateError: The unit scrambles: no voltage would be there.
        """
        if self.operating_mode != "dc":
            raise UnitStateError("the EPC-400 scrambles: voltages are off", remedy='set operating_mode to "dc"')
        return float(self.configure({"voltage_mv": {channel: value}})["voltage_mv"][channel])

    def read_retarder(self, channel: int) -> float:
        """Read one squeezer's voltage in mV."""
        return float(self.read_setting("voltage_mv", channel))

    def save(self) -> None:
        """Make the present settings those of power-up; the flash memory wears."""
        with self._exchange():
            self._ask_lines("SAVE")

    def _is_challenge_answer(self, line: str) -> bool:
        return line.startswith("Work Mode:")

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        if setting.name != "scrambling" or channel is None:
            return super()._read_value(setting, channel)
        answer = self._ask_one(setting.query)
        match = _FOUR_KINDS.fullmatch(answer)
        if match is None:
            raise WireFormatError(f"{setting.query} was answered by {shown(answer)}, not by four kinds")
        return match[1 + channel] == "F"

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> None:
        """Send one setting; a squeezer's part in scrambling can only be toggled."""
        if setting.name != "scrambling" or self._read_value(setting, channel) != value:
            super()._write_value(setting, channel, value)


class OzDd100(OzInstrument):
    """A DD-100 (DD-100-MC) as an `interfaces.Attenuator`. Moves are waited for.

    Args:
        transport: Open link, owned from now on.
        timeout_s: Longest wait for an answer.
        move_timeout_s: Longest wait for the motor to reach an attenuation.
        home_timeout_s: Longest wait for the motor to find its home position.
    """

    model: ClassVar[str] = "DD-100"
    unit_kind: ClassVar[str] = "attenuator"
    capabilities: ClassVar[frozenset[str]] = frozenset({"Attenuator"})
    command_end: ClassVar[bytes] = b"\r"
    reply_tail: ClassVar[bytes] = b"\r\n"
    challenge: ClassVar[str] = "CD"

    attenuation_db = Setting(
        float, unit="dB", minimum=0.0, maximum=80.0, step=0.05, query="D", command="A{value:.2f}", reply=Reply.ACK,
        range_depends=True, doc="Attenuation; from the unit's insertion loss to its own maximum, which it checks.",
    )  # fmt: skip
    position_steps = Setting(int, access="r", query="D", doc="Position of the motor.")
    insertion_loss_db = Setting(
        float, unit="dB", access="r", query="CD", doc="Smallest attenuation, as calibrated in the factory."
    )
    maximum_attenuation_db = Setting(
        float, unit="dB", access="r", query="CD", doc="Largest attenuation, as calibrated in the factory."
    )
    _prefix: ClassVar[dict[str, str]] = {
        "attenuation_db": "ATTEN:",
        "position_steps": "DPos:",
        "insertion_loss_db": "IL:",
        "maximum_attenuation_db": "MAX ATTEN:",
    }

    def __init__(
        self, transport: Transport, *, timeout_s: float = 2.0, move_timeout_s: float = 5.0, home_timeout_s: float = 30.0
    ) -> None:
        self._move_timeout_s = max(move_timeout_s, timeout_s)
        self._home_timeout_s = max(home_timeout_s, timeout_s)
        super().__init__(transport, timeout_s=timeout_s)

    def set_attenuation_db(self, attenuation_db: float) -> float:
        """Set the attenuation, wait for the motor and return what the unit then has, in dB."""
        return float(self.configure({"attenuation_db": attenuation_db})["attenuation_db"])

    def read_attenuation_db(self) -> float:
        """Read the attenuation, in dB.

        Raises:
            UnitStateError: The motor does not know where it is.
        """
        return self.attenuation_db

    def home(self) -> None:
        """Let the motor find its home position and wait for it; the attenuation is then another."""
        with self._exchange(timeout_s=self._home_timeout_s):
            self._applied.pop(("attenuation_db", None), None)
            self._ask_lines("H", timeout_s=self._home_timeout_s)

    def _is_challenge_answer(self, line: str) -> bool:
        return line.upper().startswith(("IL:", "MAX ATTEN:"))

    def _identify(self) -> UnitInfo:
        lines = [line.upper() for line in self._ask_lines("CD")]
        if not all(any(line.startswith(wanted) for line in lines) for wanted in ("IL:", "MAX ATTEN:")):
            raise UnitError(
                f"this is not a DD-100: CD was answered by {shown(' '.join(lines))}",
                remedy="check the address and the driver name",
            )
        return UnitInfo(self.vendor, self.model, "")

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        prefix = self._prefix[setting.name]
        found = [line for line in self._ask_lines(setting.query) if line.upper().startswith(prefix.upper())]
        if len(found) != 1:
            raise WireFormatError(f"{setting.query} was answered without one {prefix}", remedy="check the driver name")
        text = found[0][len(prefix) :].strip()
        if text.lower() == "unknown":
            raise UnitStateError("the DD-100 does not know where its motor is", remedy="call home()")
        return decoded(setting, setting.query, text)

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> None:
        command = setting.command.format(value=value)
        lines = self._ask_lines(command, timeout_s=self._move_timeout_s)
        if not lines or not re.fullmatch(r"Pos:\s*-?[0-9]{1,7}", lines[-1]):
            raise WireFormatError(f"{command!r} was answered by {shown(' '.join(lines))}, not by a position")


def _match(pattern: str | re.Pattern[str], text: str) -> re.Match[str]:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError("not of this form")
    return match


def _of_channel(command: str, answer: str, channel: int) -> str:
    """Return one number of four as `Voltage(mV): CH1 +2200 CH2 +5000 ...` lists them."""
    match = re.fullmatch(r"[A-Za-z]+\([A-Za-z]+\):\s*" + _FOUR_NUMBERS, answer)
    if match is None:
        raise WireFormatError(f"{command} was answered by {shown(answer)}, not by four values")
    return match[channel]

"""What the drivers of Thorlabs APT units share: packets asked for and packets that come by themselves.

Source:
    Thorlabs Motion Controllers Host-Controller Communications Protocol, issue 37.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, ClassVar

from qkdhw.drivers.apt_packets import (
    COUNTED,
    HEADER_BYTES,
    UNASKED,
    Message,
    Packet,
    data_bytes_after,
    decode_packet,
    encode_packet,
    find_packet,
)
from qkdhw.drivers.instrument import ErrorStyle, Instrument
from qkdhw.drivers.setting import Setting, Value
from qkdhw.errors import CommandRefusedError, TransportTimeoutError, UnitError, WireFormatError
from qkdhw.model import UnitInfo

ACKNOWLEDGE_AFTER = 20  # a unit falls silent after 50 reports without an acknowledgement
QUIET_S = 0.05
START_S = 0.3  # by then a motor that was told to move moves
POLL_S = 0.02  # an MPC320 that is asked faster than every 10 ms loses commands
ENABLED, DISABLED = 1, 2


class Bits(IntFlag):
    """Status bits of a motor (MOT_GET_STATUSBITS, MOT_GET_USTATUSUPDATE)."""

    MOVING = 0x2F0  # forward, reverse, jogging forward, jogging reverse, homing
    HOMED = 0x400
    MOTION_ERROR = 0x4000
    CURRENT_LIMIT = 0x0100_0000
    OVERLOAD = 0x0400_0000
    ENABLED = 0x8000_0000


ALARM_BITS = {
    Bits.MOTION_ERROR: "motion_error",
    Bits.CURRENT_LIMIT: "motor_current_limit",
    Bits.OVERLOAD: "motor_overload",
}


@dataclass(frozen=True, slots=True)
class Motion:
    """What a motor does.

    Attributes:
        position: Counts.
        bits: Status bits.
    """

    position: int
    bits: int

    @property
    def moving(self) -> bool:
        """Whether it moves."""
        return bool(self.bits & Bits.MOVING)


@dataclass(frozen=True, slots=True)
class Parameter:
    """Where a setting lies among parameters that a unit reads and sets together.

    Attributes:
        request: Message that asks for them; the answer's ID is one more, the ID that sets them one less.
        form: Their layout, as `struct` has it.
        index: Which of them.
        per_unit: Counts for 1 of the setting's unit.
    """

    request: int
    form: str
    index: int
    per_unit: float


def in_units(counts: float, per_unit: float) -> float:
    """Return counts in a unit, without digits that mean nothing: a millionth is finer than any scale here."""
    return round(counts / per_unit, 6)


class AptInstrument(Instrument):
    """Base of the drivers of APT units. Positions and speeds are counts on the wire.

    A unit sends some packets by itself, between answers too: they are told apart by message and channel. Error reports
    among them are a refusal if they name what was just sent, else an alarm; alarms latch until `clear_alarms`.
    """

    vendor: ClassVar[str] = "Thorlabs"
    error_style: ClassVar[ErrorStyle] = ErrorStyle.FRAME
    usb_ids: ClassVar[tuple[str, ...]] = ("0403:faf0",)
    parameters: ClassVar[dict[str, Parameter]] = {}

    def __init__(self, *args: Any, **options: Any) -> None:
        self._alarms: dict[str, None] = {}
        self._homed: set[int | None] = set()
        self._unacknowledged = 0
        self._last_command = 0
        super().__init__(*args, **options)

    def clear_alarms(self) -> None:
        """Forget alarms; what is still wrong comes back with the next status."""
        self._alarms.clear()

    # --- packets ---------------------------------------------------------------------------------------------
    def _synchronise(self) -> None:
        """Stop reports that come by themselves, ask for the identity and skip what comes before it and after it."""
        self._link.discard_input()
        self._send(Message.MOT_ACK_USTATUSUPDATE)  # first: a unit that has fallen silent does nothing else
        self._send(Message.HW_STOP_UPDATEMSGS)
        self._send(Message.HW_REQ_INFO)
        deadline_s = time.monotonic() + self._timeout_s
        seen = bytearray()
        while find_packet(bytes(seen), Message.HW_GET_INFO) is None:
            left_s = deadline_s - time.monotonic()
            piece = self._link.read_available(4096, timeout_s=left_s) if left_s > 0 else b""
            if not piece:
                raise TransportTimeoutError(
                    f"{self._link.url} did not tell its identity within {self._timeout_s} s",
                    remedy="check the address, the cable and the unit's power",
                )
            seen += piece
            del seen[:-8192]
        if not self._link.fresh_when_reopened:
            self._link.read_until_quiet(QUIET_S, timeout_s=self._timeout_s)
        self._unacknowledged = 0

    def _identify(self) -> UnitInfo:
        data = self._ask(Message.HW_REQ_INFO).data
        serial, name, minor, interim, major = struct.unpack_from("<l8s2x3B", data)
        model = name.rstrip(b"\0 ").decode("latin-1")
        if not (model.isascii() and model.isprintable()) or serial < 0:
            raise WireFormatError(f"{self._link.url} tells no model and serial number")
        if not model.startswith(self.model):
            raise UnitError(
                f"{self._link.url} is a {model or 'unit without a name'}, not a {self.model}",
                remedy="check the address and the driver name",
            )
        return UnitInfo(self.vendor, model, str(serial), f"{major}.{interim}.{minor}", "APT")

    def _send(self, message: int, first: int = 0, second: int = 0, *, data: bytes = b"") -> None:
        self._link.write(encode_packet(message, first, second, data=data), timeout_s=self._timeout_s)

    def _tell(self, message: int, first: int = 0, second: int = 0, *, data: bytes = b"") -> None:
        """Send a command. It is not answered; a refusal comes with the answer to the next question."""
        self._last_command = message
        self._send(message, first, second, data=data)

    def _ask(self, request: int, first: int = 0) -> Packet:
        """Send a question and return the answer, whose ID is one more. The link must be held.

        Raises:
            CommandRefusedError: The unit refuses the question or the command before it.
            WireFormatError: An answer came that nobody asked for, or other packets without end.
        """
        deadline_s = time.monotonic() + self._timeout_s
        try:
            while piece := self._link.read_available(HEADER_BYTES, timeout_s=0.0):
                self._notice(self._read_packet(self._timeout_s, piece), request)
                self._check_deadline(deadline_s)
        except WireFormatError:  # an answer that nobody waits for any more
            self._synchronise()
        if self._unacknowledged >= ACKNOWLEDGE_AFTER:
            self._send(Message.MOT_ACK_USTATUSUPDATE)
            self._unacknowledged = 0
        self._send(request, first)
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            packet = self._read_packet(max(0.0, deadline_s - time.monotonic()))
            if packet.message == request + 1 and packet.channel in {None, first}:
                return packet
            self._notice(packet, request)
            self._check_deadline(deadline_s)

    def _check_deadline(self, deadline_s: float) -> None:
        """Give up on a unit whose packets follow each other so closely that no wait for one comes to its end."""
        if time.monotonic() > deadline_s:
            raise WireFormatError(
                f"{self._link.url} keeps sending packets that nobody asked for",
                remedy="check that the address leads to the right unit",
            )

    def _read_packet(self, timeout_s: float, begun: bytes = b"") -> Packet:
        header = begun + self._link.read_exactly(HEADER_BYTES - len(begun), timeout_s=timeout_s)
        packet = decode_packet(header, self._link.read_exactly(data_bytes_after(header), timeout_s=timeout_s))
        self._unacknowledged += packet.message in COUNTED
        return packet

    def _notice(self, packet: Packet, request: int) -> None:
        """Take a packet that is not the answer."""
        if packet.message not in UNASKED:
            raise WireFormatError(
                f"{self._link.url} sent message {packet.message:#06x} of channel {packet.channel} unasked",
                remedy="it is brought back in step by itself; if this stays, check the cable",
            )
        if packet.message == Message.MOT_MOVE_HOMED:
            self._homed.add(packet.channel)
        elif packet.message == Message.HW_RESPONSE:
            self._alarms["unit_error"] = None
        elif packet.message == Message.HW_RICHRESPONSE:
            about, code, notes = struct.unpack("<HH64s", packet.data)
            text = notes.partition(b"\0")[0].decode("latin-1")
            if about not in {request, self._last_command} or not about:
                self._alarms[f"unit_error_{code}"] = None
                return
            raise CommandRefusedError(
                f"the unit refuses {Message(about).name}: {text if text.isprintable() else ''}",
                command=Message(about).name,
                code=str(code),
                remedy="check the value and the unit's state",
            )

    # --- settings --------------------------------------------------------------------------------------------
    def _read_value(self, setting: Setting[Any], channel: int | None) -> Value:
        parameter = self.parameters[setting.name]
        raw = self._read_parameters(parameter)[parameter.index + (channel or 1) - 1]
        return int(raw) if setting.kind is int else in_units(raw, parameter.per_unit)

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Value) -> None:
        parameter = self.parameters[setting.name]
        raw = self._read_parameters(parameter)
        raw[parameter.index + (channel or 1) - 1] = round(float(value) * parameter.per_unit)
        self._tell(parameter.request - 1, data=struct.pack(parameter.form, *raw))

    def _read_parameters(self, parameter: Parameter) -> list[int]:
        first = 0 if parameter.request == Message.POL_REQ_PARAMS else 1
        return list(struct.unpack(parameter.form, self._ask(parameter.request, first).data))

    def _read_enabled(self, channel: int) -> bool:
        """Say whether a motor's driver is on; the channel is the wire's."""
        state = self._ask(Message.MOD_REQ_CHANENABLESTATE, channel).parameters[1]
        if state not in {ENABLED, DISABLED}:
            raise WireFormatError(f"{self._link.url} says that channel {channel} is in state {state}")
        return state == ENABLED

    # --- motion ----------------------------------------------------------------------------------------------
    def _read_motion(self, channel: int) -> Motion:
        """Ask what a motor does; the channel is the wire's. The link must be held."""
        raise NotImplementedError

    def _watched(self, motion: Motion) -> Motion:
        """Keep the alarms that a motor's status bits tell."""
        self._alarms.update({name: None for bit, name in ALARM_BITS.items() if motion.bits & bit})
        return motion

    def _wait(
        self, read: Callable[[], Motion], arrived: Callable[[Motion], bool], *, timeout_s: float
    ) -> tuple[Motion, bool]:
        """Wait until a motor is where it should be and still.

        Returns:
            What it then does, and whether it arrived: False if it stands elsewhere, or at the end of the time.
        """
        begun_s = time.monotonic()
        while True:
            motion = read()
            elapsed_s = time.monotonic() - begun_s
            there = not motion.moving and arrived(motion)
            if there or (not motion.moving and elapsed_s > START_S) or elapsed_s >= timeout_s:
                return motion, there
            time.sleep(POLL_S)

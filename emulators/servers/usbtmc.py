"""USB Test and Measurement Class: an emulated unit as a USB instrument (`USB0::vid::pid::serial::0::INSTR`).

With the USB488 subclass, without service requests: there is no interrupt pipe, so the status byte is in the answer to
READ_STATUS_BYTE. An answer that nobody fetched stays, also when the next command comes: a host that timed out has to
clear the device.

Source: Universal Serial Bus Test and Measurement Class Specification (USBTMC), revision 1.0: 3 (bulk pipes), 4.2
(requests); its subclass USB488, revision 1.0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import TYPE_CHECKING, NoReturn

from qkdhw_emulators.servers.replies import Replies
from qkdhw_emulators.servers.usb_unit import Endpoint, UsbDescriptor, UsbGoneError, UsbNotReadyError, UsbStallError

if TYPE_CHECKING:
    from qkdhw_emulators.line import Line

BULK_OUT, BULK_IN = 0x01, 0x82
MESSAGE_BYTES = 16 << 20
MESSAGE_AVAILABLE = 0x10
HEADER = struct.Struct("<BBBxIBBxx")  # message, tag, inverse of the tag, size, attributes, termination character
END_OF_MESSAGE = 0x01
TERM_CHAR_ENABLED = 0x02
DEV_DEP_MSG_OUT, DEV_DEP_MSG_IN, TRIGGER = 1, 2, 128
CAPABILITIES = struct.pack("<BxHBB6xHBB8x", 1, 0x0100, 0x00, 0x01, 0x0100, 0x07, 0x0B)


@unique
class Status(IntEnum):
    """How a request went."""

    SUCCESS = 0x01
    FAILED = 0x80
    TRANSFER_NOT_IN_PROGRESS = 0x81


@unique
class Request(IntEnum):
    """Class requests, those of USB488 from 128 on."""

    INITIATE_ABORT_BULK_OUT = 1
    CHECK_ABORT_BULK_OUT_STATUS = 2
    INITIATE_ABORT_BULK_IN = 3
    CHECK_ABORT_BULK_IN_STATUS = 4
    INITIATE_CLEAR = 5
    CHECK_CLEAR_STATUS = 6
    GET_CAPABILITIES = 7
    READ_STATUS_BYTE = 128
    REN_CONTROL = 160
    GO_TO_LOCAL = 161
    LOCAL_LOCKOUT = 162


FIXED_ANSWERS = {
    Request.CHECK_ABORT_BULK_OUT_STATUS: struct.pack("<BxxxI", Status.SUCCESS, 0),
    Request.CHECK_ABORT_BULK_IN_STATUS: struct.pack("<BxxxI", Status.SUCCESS, 0),
    Request.CHECK_CLEAR_STATUS: bytes([Status.SUCCESS, 0]),
    Request.GET_CAPABILITIES: CAPABILITIES,
    Request.REN_CONTROL: bytes([Status.SUCCESS]),
    Request.GO_TO_LOCAL: bytes([Status.SUCCESS]),
    Request.LOCAL_LOCKOUT: bytes([Status.SUCCESS]),
}


def usbtmc_descriptor(vid: int, pid: int, manufacturer: str, product: str, serial_number: str) -> UsbDescriptor:
    """Return the descriptors of an instrument with one bulk pipe each way."""
    return UsbDescriptor(
        vid,
        pid,
        manufacturer,
        product,
        serial_number,
        endpoints=(Endpoint(BULK_OUT), Endpoint(BULK_IN)),
        interface_class=0xFE,
        interface_subclass=3,
        interface_protocol=1,
    )


@dataclass(slots=True)
class _Transfers:
    """How far the two pipes are.

    Attributes:
        outgoing: What has come of a transfer from the host.
        message: What has come of a command.
        out_tag: Tag of the last transfer from the host.
        asked: Tag, most bytes and termination character of the transfer that the host asks for.
        incoming: What the host has not fetched yet of a transfer to it.
        in_tag: Its tag.
        ends_empty: Whether a packet of no bytes has to end it.
    """

    outgoing: bytearray = field(default_factory=bytearray)
    message: bytearray = field(default_factory=bytearray)
    out_tag: int = 0
    asked: tuple[int, int, int | None] | None = None
    incoming: bytearray = field(default_factory=bytearray)
    in_tag: int = 0
    ends_empty: bool = False


class UsbTmc:
    """Serves a line as a USB instrument; a `UsbUnit` for `UsbBus.plug`.

    Args:
        line: The line to the unit.
        descriptor: Of `usbtmc_descriptor`, or with pipes of its own: the first one each way is used.
    """

    def __init__(self, line: Line, descriptor: UsbDescriptor) -> None:
        self.descriptor = descriptor
        self._line = line
        self._replies = Replies(line)
        self._in_packet = next(packet for address, _, packet in descriptor.endpoints if address & 0x80)
        self._out_packet = next(packet for address, _, packet in descriptor.endpoints if not address & 0x80)
        self._pipes = _Transfers()
        self._gone = False

    @property
    def resource(self) -> str:
        """VISA resource name of the unit."""
        it = self.descriptor
        return f"USB0::{it.vid}::{it.pid}::{it.serial_number}::0::INSTR"

    def bus_reset(self) -> None:
        """Forget the host: the unit was plugged in, unplugged or reset."""
        self._forget()
        self._gone = False
        self._line.disconnected()
        self._line.connected()

    def bulk_out(self, endpoint: int, data: bytes) -> None:
        """Take bytes of a transfer; a full packet at the end of a part means that more of it may follow."""
        self._check_there()
        if self._replies.full:
            raise UsbNotReadyError
        transfer = self._pipes.outgoing
        transfer += data
        if not transfer:
            return
        if len(transfer) < HEADER.size:
            self._refuse()
        kind, tag, inverse, size, attributes, term_char = HEADER.unpack_from(transfer)
        if not tag or tag ^ inverse != 0xFF or kind not in {DEV_DEP_MSG_OUT, DEV_DEP_MSG_IN, TRIGGER}:
            self._refuse()
        if kind == DEV_DEP_MSG_OUT and self._lacks(size, more=bool(data) and len(data) % self._out_packet == 0):
            return
        payload = bytes(transfer[HEADER.size : HEADER.size + size])
        transfer.clear()
        self._pipes.out_tag = tag
        if kind == DEV_DEP_MSG_OUT:
            self._take_message(payload, end=bool(attributes & END_OF_MESSAGE))
        elif kind == DEV_DEP_MSG_IN:
            self._pipes.asked = tag, size, term_char if attributes & TERM_CHAR_ENABLED else None
        else:
            self._line.trigger()

    def bulk_in(self, endpoint: int, size: int) -> bytes | None:
        """Return bytes of the transfer that the host has asked for."""
        self._check_there()
        pipes = self._pipes
        if not pipes.incoming and not pipes.ends_empty:
            self._begin_transfer()
        if not pipes.incoming and pipes.ends_empty:
            pipes.ends_empty = False
            return None
        data = bytes(pipes.incoming[:size])
        del pipes.incoming[:size]
        return data

    def control_in(self, request_type: int, request: int, value: int, index: int, length: int) -> bytes:
        """Answer a class request."""
        self._check_there()
        match request:
            case Request.INITIATE_ABORT_BULK_OUT:
                return self._abort_out(value & 0xFF)
            case Request.INITIATE_ABORT_BULK_IN:
                return self._abort_in(value & 0xFF)
            case Request.INITIATE_CLEAR:
                self._forget()
                self._line.clear()
                return bytes([Status.SUCCESS])
            case Request.READ_STATUS_BYTE:
                available = MESSAGE_AVAILABLE if self._pipes.incoming or self._replies.ready() else 0
                return bytes([Status.SUCCESS, value & 0x7F, self._line.status_byte() & ~MESSAGE_AVAILABLE | available])
        if request not in FIXED_ANSWERS:
            raise UsbStallError
        return FIXED_ANSWERS[Request(request)]

    def control_out(self, request_type: int, request: int, value: int, index: int, data: bytes) -> None:
        """Refuse: the class has no request that sends data."""
        raise UsbStallError

    def _forget(self) -> None:
        """Drop every transfer and message that is not done."""
        self._pipes = _Transfers()
        self._replies.clear()

    def _check_there(self) -> None:
        if self._gone and not self._pipes.incoming:
            raise UsbGoneError

    def _refuse(self) -> NoReturn:
        """Stall at what is not a message of the class."""
        self._pipes.outgoing.clear()
        self._pipes.message.clear()
        raise UsbStallError

    def _lacks(self, size: int, *, more: bool) -> bool:
        """Whether the rest of a transfer has yet to come; bytes that fill it up to a multiple of four belong to it."""
        if len(self._pipes.message) + size > MESSAGE_BYTES:
            self._refuse()
        missing = HEADER.size + size - len(self._pipes.outgoing)
        if missing > 0 and not more:
            self._refuse()
        return more and missing + -size % 4 > 0

    def _take_message(self, payload: bytes, *, end: bool) -> None:
        message = self._pipes.message
        message += payload
        if end:
            self._pipes.message = bytearray()
            self._line.feed(bytes(message))

    def _begin_transfer(self) -> None:
        """Answer the host's request, if there is one and something to answer with."""
        pipes = self._pipes
        if pipes.asked is None:
            return
        tag, size, term_char = pipes.asked
        piece = self._replies.fetch(size, term_char)
        if piece is None:
            return
        attributes = END_OF_MESSAGE if piece.end else 0
        attributes |= TERM_CHAR_ENABLED if piece.matched else 0
        pipes.asked, pipes.in_tag = None, tag
        pipes.incoming += HEADER.pack(DEV_DEP_MSG_IN, tag, tag ^ 0xFF, len(piece.data), attributes, 0) + piece.data
        pipes.ends_empty = len(pipes.incoming) % self._in_packet == 0
        self._gone = piece.hang_up

    def _abort_out(self, tag: int) -> bytes:
        """Drop a transfer of which not everything has come."""
        pipes = self._pipes
        if not pipes.outgoing:
            return bytes([Status.FAILED, pipes.out_tag])
        if pipes.outgoing[1] != tag:
            return bytes([Status.TRANSFER_NOT_IN_PROGRESS, pipes.outgoing[1]])
        pipes.outgoing.clear()
        return bytes([Status.SUCCESS, tag])

    def _abort_in(self, tag: int) -> bytes:
        """Drop a transfer that the host has asked for; a packet of no bytes ends it."""
        pipes = self._pipes
        if pipes.asked is None and not pipes.incoming:
            return bytes([Status.FAILED, pipes.in_tag])
        current = pipes.asked[0] if pipes.asked else pipes.in_tag
        if current != tag:
            return bytes([Status.TRANSFER_NOT_IN_PROGRESS, current])
        pipes.asked = None
        pipes.incoming.clear()
        pipes.ends_empty = True
        return bytes([Status.SUCCESS, tag])

"""Packets of the Thorlabs APT protocol: six bytes of header, and data if bit 7 of the destination is set.

Source:
    Thorlabs Motion Controllers Host-Controller Communications Protocol, issue 37, "Description of the message header";
    that a K10CR1 sends MOT_MOVE_COMPLETED with data and an MPC320 without is from recordings of both.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, unique

from qkdhw.errors import WireFormatError

HOST, GENERIC_USB = 0x01, 0x50
HEADER_BYTES = 6
LONG = 0x80


@unique
class Message(IntEnum):
    """Message IDs that the drivers use."""

    HW_DISCONNECT = 0x0002
    HW_REQ_INFO = 0x0005
    HW_GET_INFO = 0x0006
    HW_STOP_UPDATEMSGS = 0x0012
    HW_RESPONSE = 0x0080
    HW_RICHRESPONSE = 0x0081
    MOD_SET_CHANENABLESTATE = 0x0210
    MOD_REQ_CHANENABLESTATE = 0x0211
    MOD_GET_CHANENABLESTATE = 0x0212
    MOT_REQ_POSCOUNTER = 0x0411
    MOT_GET_POSCOUNTER = 0x0412
    MOT_SET_VELPARAMS = 0x0413
    MOT_REQ_VELPARAMS = 0x0414
    MOT_GET_VELPARAMS = 0x0415
    MOT_SET_GENMOVEPARAMS = 0x043A
    MOT_REQ_GENMOVEPARAMS = 0x043B
    MOT_GET_GENMOVEPARAMS = 0x043C
    MOT_MOVE_HOME = 0x0443
    MOT_MOVE_HOMED = 0x0444
    MOT_MOVE_ABSOLUTE = 0x0453
    MOT_MOVE_COMPLETED = 0x0464
    MOT_MOVE_STOP = 0x0465
    MOT_MOVE_STOPPED = 0x0466
    MOT_MOVE_JOG = 0x046A
    MOT_REQ_STATUSUPDATE = 0x0480
    MOT_GET_STATUSUPDATE = 0x0481
    MOT_REQ_USTATUSUPDATE = 0x0490
    MOT_GET_USTATUSUPDATE = 0x0491
    MOT_ACK_USTATUSUPDATE = 0x0492
    POL_SET_PARAMS = 0x0530
    POL_REQ_PARAMS = 0x0531
    POL_GET_PARAMS = 0x0532


DATA_BYTES: dict[int, tuple[int, ...]] = {
    Message.HW_DISCONNECT: (0,),
    Message.HW_GET_INFO: (84,),
    Message.HW_RESPONSE: (0,),
    Message.HW_RICHRESPONSE: (68,),
    Message.MOD_GET_CHANENABLESTATE: (0,),
    Message.MOT_GET_POSCOUNTER: (6,),
    Message.MOT_GET_VELPARAMS: (14,),
    Message.MOT_GET_GENMOVEPARAMS: (6,),
    Message.MOT_MOVE_HOMED: (0,),
    Message.MOT_MOVE_COMPLETED: (0, 14),
    Message.MOT_MOVE_STOPPED: (0, 14),
    Message.MOT_GET_STATUSUPDATE: (14,),
    Message.MOT_GET_USTATUSUPDATE: (14,),
    Message.POL_GET_PARAMS: (12,),
}
"""What a unit may send, with the lengths of the data that the message can have."""

COUNTED = frozenset({
    Message.MOT_MOVE_COMPLETED, Message.MOT_MOVE_STOPPED, Message.MOT_GET_STATUSUPDATE, Message.MOT_GET_USTATUSUPDATE,
})  # fmt: skip
"""What a unit counts: after 50 of them without MOT_ACK_USTATUSUPDATE it falls silent."""

UNASKED = COUNTED | {Message.HW_DISCONNECT, Message.HW_RESPONSE, Message.HW_RICHRESPONSE, Message.MOT_MOVE_HOMED}
"""What a unit may send without being asked."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet from a unit.

    Attributes:
        message: Message ID.
        parameters: The two parameters of a packet without data; else two zeros.
        data: Data, or b"".
    """

    message: int
    parameters: tuple[int, int]
    data: bytes

    @property
    def channel(self) -> int | None:
        """The channel that the packet is about, or None: POL parameters, identity and errors are the whole unit's."""
        if self.message < Message.MOD_GET_CHANENABLESTATE or self.message == Message.POL_GET_PARAMS:
            return None
        return int.from_bytes(self.data[:2], "little") if self.data else self.parameters[0]


def encode_packet(message: int, first: int = 0, second: int = 0, *, data: bytes = b"") -> bytes:
    """Return a packet to a unit on USB.

    Args:
        message: Message ID.
        first: First parameter of a packet without data, 0 to 255.
        second: Second parameter.
        data: Data; a packet with data has no parameters.
    """
    if data:
        return struct.pack("<HHBB", message, len(data), GENERIC_USB | LONG, HOST) + data
    return struct.pack("<HBBBB", message, first, second, GENERIC_USB, HOST)


def data_bytes_after(header: bytes) -> int:
    """Return how many bytes of data follow a header.

    Raises:
        WireFormatError: No unit sends such a header: unit and driver are out of step, or another kind of unit answers.
    """
    message, length, destination, source = struct.unpack("<HHBB", header)
    size = length if destination & LONG else 0
    known = size in DATA_BYTES.get(message, ()) and not (destination & LONG and not size)
    if not known or destination & ~LONG != HOST or source != GENERIC_USB:
        raise WireFormatError(
            f"{header.hex(' ')} is no header of a packet that a unit sends",
            remedy="check that the address leads to the right unit",
        )
    return size


def decode_packet(header: bytes, data: bytes) -> Packet:
    """Return what a header and the data after it say."""
    message, length = struct.unpack_from("<HH", header)
    return Packet(message, (0, 0) if data else (length & 0xFF, length >> 8), data)


def find_packet(data: bytes, message: int) -> tuple[Packet, int] | None:
    """Look for one message in bytes that may begin and end anywhere.

    Returns:
        The first such packet that is whole and the position after it, or None.
    """
    for at in range(len(data) - HEADER_BYTES + 1):
        header = data[at : at + HEADER_BYTES]
        if header[:2] != message.to_bytes(2, "little"):
            continue
        try:
            end = at + HEADER_BYTES + data_bytes_after(header)
        except WireFormatError:
            continue
        if end <= len(data):
            return decode_packet(header, data[at + HEADER_BYTES : end]), end
    return None

"""Packets of the qcrypto programs, one for each epoch of 2^32 x 125 ps: headers, and bodies of types 2 to 4.

Type 1 holds raw events, type 2 times and base bits for the peer, type 3 what is kept (a value for each event of type
2), type 4 which of the peer's events were kept, with base bits.

Source: qcrypto project, remotecrypto/filespec.txt; for the order of bits what its chopper program writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import epoch as kernel
from qkdhw.errors import EventFormatError

EPOCH_BITS = 17  # of the epoch's number in an event's time
EXTENDED = 0x100
LONG_TIME = 32
INDEX_OFFSET = 2
_FIELDS = {1: 5, 2: 6, 3: 4, 4: 5}
RAW_TIME_BITS, RAW_BASE_BITS = 49, 4
LAST_PROTOCOL = 6
_REMEDY = "give the right format with --format, or copy the file again"

PacketType = Literal[1, 2, 3, 4]


@dataclass(frozen=True, slots=True)
class PacketHeader:
    """The header of a packet.

    Attributes:
        packet_type: 1 to 4.
        epoch: Its number: 17 bits of it, or 32 bits since 1970 if extended.
        extended: See above.
        length: Entries in the body; 0 may mean that they were not counted.
        time_order: Types 2 and 4: bits of a short difference, 2 to 31.
        base_bits: Types 1, 2 and 4: bits of the base, 0 to 4.
        protocol: Type 2: 0 service (base bits are the pattern of inputs), 1 BB84, 2 rich BB84, 3 and 4 device
            independent, 5 base kept here, 6 BBM92.
        entry_bits: Types 1 (always 49) and 3 (1 to 8): bits of an entry.
    """

    packet_type: PacketType
    epoch: int
    extended: bool = False
    length: int = 0
    time_order: int = 0
    base_bits: int = 0
    protocol: int = 0
    entry_bits: int = 0

    @classmethod
    def size_bytes(cls, packet_type: PacketType) -> int:
        """Return how long a header is."""
        return 4 * _FIELDS[packet_type]

    @classmethod
    def parse(cls, data: bytes, packet_type: PacketType, *, offset_bytes: int = 0) -> PacketHeader:
        """Read a header.

        Args:
            data: At least `size_bytes`.
            packet_type: What type the packet is of.
            offset_bytes: Where it is, for the error.

        Raises:
            EventFormatError: It is cut, of another type, or has a field out of range.
        """
        if len(data) < cls.size_bytes(packet_type):
            raise EventFormatError(f"a type-{packet_type} header is cut", offset_bytes=offset_bytes, remedy=_REMEDY)
        tag, epoch, length, *rest = np.frombuffer(data, "<u4", _FIELDS[packet_type]).tolist()
        extended = bool(tag & EXTENDED)
        match packet_type:
            case 1:
                fields = {"entry_bits": rest[0], "base_bits": rest[1]}
            case 2:
                fields = {"time_order": rest[0], "base_bits": rest[1], "protocol": rest[2]}
            case 3:
                fields = {"entry_bits": rest[0]}
            case 4:
                fields = {"time_order": rest[0], "base_bits": rest[1]}
        if tag & ~EXTENDED != packet_type or (epoch >> EPOCH_BITS and not extended):
            what = f"tag {tag:#x} and epoch {epoch:#x} are not those of a type-{packet_type} packet"
        else:
            what = _wrong_field(packet_type, fields)
        if what:
            raise EventFormatError(f"byte {offset_bytes}: {what}", offset_bytes=offset_bytes, remedy=_REMEDY)
        return cls(packet_type, epoch, extended, length, **fields)

    def pack(self) -> bytes:
        """Return the header's bytes."""
        rest = {
            1: (self.entry_bits, self.base_bits),
            2: (self.time_order, self.base_bits, self.protocol),
            3: (self.entry_bits,),
            4: (self.time_order, self.base_bits),
        }[self.packet_type]
        tag = self.packet_type | (EXTENDED if self.extended else 0)
        return np.array([tag, self.epoch, self.length, *rest], "<u4").tobytes()


def _wrong_field(packet_type: PacketType, fields: dict[str, int]) -> str:
    """Say which field is out of range, or nothing."""
    allowed = {
        "time_order": range(2, 32),
        "base_bits": range(RAW_BASE_BITS, RAW_BASE_BITS + 1) if packet_type == 1 else range(RAW_BASE_BITS + 1),
        "protocol": range(LAST_PROTOCOL + 1),
        "entry_bits": range(RAW_TIME_BITS, RAW_TIME_BITS + 1) if packet_type == 1 else range(1, 9),
    }
    return "; ".join(f"{name} is {value}" for name, value in fields.items() if value not in allowed[name])


def encode_differences(
    header: PacketHeader, value: NDArray[np.int64], base: NDArray[np.uint8], *, as_chopper: bool = False
) -> tuple[bytes, NDArray[np.bool_]]:
    """Make a packet of type 2 (times since the epoch's begin, 125 ps) or 4 (indices of the peer's events).

    A difference of 0 or 1 is written in full (type 2), so every time reads back as it was. The chopper program drops
    events that are not later than the one before, and sends a difference of 1 as 3 without moving its reference: each
    such event makes all later times of its epoch read 250 ps late. `as_chopper` does the same.

    Args:
        header: Its length is set here.
        value: int64 (n,), from 0, not falling (type 4: rising), below 2^32.
        base: uint8 (n,), below 2^base_bits.
        as_chopper: See above; type 2 only.

    Returns:
        The packet, and which entries are in it, bool (n,).

    Raises:
        EventFormatError: An entry does not fit; the message names its index.
        ValueError: A field of the header is out of range.

    Source: filespec.txt, types 2 and 4.
    """
    word = np.empty((len(value) + 1) * (header.time_order + header.base_bits + LONG_TIME) // 32 + 2, np.uint32)
    written = np.empty(len(value), np.uint8)
    offset = INDEX_OFFSET if header.packet_type == 4 else 0
    value = np.ascontiguousarray(value, np.int64)
    count = kernel.encode_differences(
        value,
        base,
        header.time_order,
        header.base_bits,
        offset,
        as_chopper,
        word,
        written,
    )
    if count < 0:
        raise EventFormatError(
            f"entry {-1 - count} falls, leaves its epoch, or has more than {header.base_bits} base bits",
            remedy="sort the entries, and give each epoch its own packet",
        )
    kept = written.astype(bool)
    head = PacketHeader(
        header.packet_type, header.epoch, header.extended, int(kept.sum()), header.time_order, header.base_bits,
        header.protocol,
    )  # fmt: skip
    return head.pack() + word[:count].astype("<u4").tobytes(), kept


def encode_t3(epoch: int, value: NDArray[np.uint8], *, entry_bits: int, extended: bool = False) -> bytes:
    """Make a packet of type 3.

    Args:
        epoch: Number of the epoch.
        value: uint8 (n,), below 2^entry_bits.
        entry_bits: 1 to 8.
        extended: Whether the number has 32 bits.

    Raises:
        ValueError: A value or entry_bits is out of range.

    Source: filespec.txt, type 3.
    """
    word = np.empty((len(value) * entry_bits + 31) // 32, np.uint32)
    kernel.pack_values(value, entry_bits, word)
    header = PacketHeader(3, epoch, extended, len(value), entry_bits=entry_bits)
    return header.pack() + word.astype("<u4").tobytes()


def decode_t3(data: bytes) -> tuple[PacketHeader, NDArray[np.uint8]]:
    """Read a packet of type 3.

    Returns:
        Its header, and the values, uint8 (length,).

    Raises:
        EventFormatError: The header is wrong, or the body is not as long as it says.

    Source: filespec.txt, type 3.
    """
    header = PacketHeader.parse(data, 3)
    body = data[PacketHeader.size_bytes(3) :]
    words = (header.length * header.entry_bits + 31) // 32
    if len(body) != 4 * words:
        raise EventFormatError(
            f"a type-3 packet of {header.length} entries has {4 * words} bytes after its header, not {len(body)}",
            offset_bytes=len(data),
            remedy=_REMEDY,
        )
    value = np.empty(header.length, np.uint8)
    if header.length:
        kernel.unpack_values(np.frombuffer(body, "<u4"), header.entry_bits, value)
    return header, value


def decode_t4(data: bytes) -> tuple[PacketHeader, NDArray[np.int64], NDArray[np.uint8]]:
    """Read a packet of type 4.

    Returns:
        Its header, indices, int64 (length,), and base bits, uint8 (length,).

    Raises:
        EventFormatError: The header is wrong, or the body is cut, too long or against the format.

    Source: filespec.txt, type 4.
    """
    header = PacketHeader.parse(data, 4)
    at = PacketHeader.size_bytes(4)
    word = np.frombuffer(data, "<u4", (len(data) - at) // 4, at)
    room = 32 * len(word) // (header.time_order + header.base_bits) + 1
    index, base, state = np.empty(room, np.int64), np.empty(room, np.uint8), np.zeros(1, np.int64)
    count, bit, status = kernel.decode_differences(
        word, 0, header.time_order, header.base_bits, INDEX_OFFSET, 1 << 40, index, base, state
    )
    wrong_end = at + 4 * (-(-bit // 32)) != len(data)
    if status != 1 or wrong_end or header.length not in (0, count):
        raise EventFormatError(
            f"the body of a type-4 packet of {header.length} entries goes wrong after {count} at bit {bit}",
            offset_bytes=at + bit // 8,
            remedy=_REMEDY,
        )
    return header, index[:count], base[:count]

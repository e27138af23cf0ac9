"""Messages between a Thorlabs APT controller and its host, seen from the controller.

Source:
    Thorlabs Motion Controllers Host-Controller Communications Protocol, issue 37, "Description of the message header".
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_DATA = 255


@dataclass(frozen=True, slots=True)
class Command:
    """A message from the host.

    Attributes:
        ident: Message ID.
        param1: First parameter, 0 if data follow.
        param2: Second parameter.
        data: What follows the header.
    """

    ident: int
    param1: int
    param2: int
    data: bytes


class CommandReader:
    """Takes bytes in any split and gives the messages for this controller (address 0x50) that are complete."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def clear(self) -> None:
        """Forget a half-received message."""
        self._bytes.clear()

    def feed(self, data: bytes) -> list[Command]:
        """Take bytes; what cannot be a header is skipped byte by byte."""
        self._bytes += data
        found = []
        while len(self._bytes) >= 6:
            ident = self._bytes[0] | self._bytes[1] << 8
            follows = bool(self._bytes[4] & 0x80)
            size = self._bytes[2] | self._bytes[3] << 8 if follows else 0
            if self._bytes[4] & 0x7F != 0x50 or self._bytes[5] != 0x01 or size > LONGEST_DATA:
                del self._bytes[0]
                continue
            if len(self._bytes) < 6 + size:
                break
            params = (0, 0) if follows else (self._bytes[2], self._bytes[3])
            found.append(Command(ident, *params, bytes(self._bytes[6 : 6 + size])))
            del self._bytes[: 6 + size]
        return found


def short_message(ident: int, param1: int = 0, param2: int = 0) -> bytes:
    """Return a message of a header alone, from a USB controller to its host."""
    return ident.to_bytes(2, "little") + bytes([param1, param2, 0x01, 0x50])


def long_message(ident: int, *fields: tuple[int, int] | bytes) -> bytes:
    """Return a message with data: bytes, and numbers as (value, bytes), least byte first, in two's complement."""
    data = b"".join(
        field if isinstance(field, bytes) else (field[0] % (1 << 8 * field[1])).to_bytes(field[1], "little")
        for field in fields
    )
    return ident.to_bytes(2, "little") + len(data).to_bytes(2, "little") + bytes([0x81, 0x50]) + data


def number_at(data: bytes, at: int, size: int, *, signed: bool = True) -> int:
    """Return a number inside a message's data; what is missing at the end counts as zero."""
    return int.from_bytes(data[at : at + size], "little", signed=signed)

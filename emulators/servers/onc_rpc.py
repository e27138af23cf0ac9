"""Remote procedure calls over TCP, as far as a server of instruments needs them.

Source: RFC 5531 (ONC RPC version 2: 9 messages, 11 record marking), RFC 4506 (XDR).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, unique

from qkdhw.errors import WireFormatError

LAST_FRAGMENT = 0x8000_0000
CALL, REPLY = 0, 1
ACCEPTED, DENIED = 0, 1
RPC_VERSION = 2
RPC_MISMATCH = 0
AUTHENTICATION_BYTES = 400
MOST_RECORDS = 8


@unique
class Accepted(IntEnum):
    """How a call went that was not denied."""

    SUCCESS = 0
    PROGRAM_UNAVAILABLE = 1
    PROGRAM_MISMATCH = 2
    PROCEDURE_UNAVAILABLE = 3
    GARBAGE_ARGUMENTS = 4


class Arguments:
    """Reads XDR values one after the other; raises WireFormatError where the bytes end too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def uint(self) -> int:
        """Read an unsigned integer, a boolean or an enumeration."""
        return int.from_bytes(self._bytes(4), "big")

    def opaque(self, limit_bytes: int) -> bytes:
        """Read variable-length bytes or a string."""
        size = self.uint()
        if size > limit_bytes:
            raise WireFormatError(f"{size} bytes in a call, {limit_bytes} are taken")
        data = self._bytes(size)
        self._bytes(-size % 4)
        return data

    def _bytes(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise WireFormatError("a call ends in the middle of its arguments")
        self._at += size
        return data


@dataclass(frozen=True, slots=True)
class Call:
    """A remote procedure call."""

    xid: int
    rpc_version: int
    program: int
    version: int
    procedure: int
    arguments: Arguments


class CallReader:
    """Cuts a stream of bytes into calls.

    Args:
        limit_bytes: Longest record that is taken.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._inbox = bytearray()
        self._record = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes in any split.

        Raises:
            WireFormatError: The client sends call after call without waiting for the answers.
        """
        self._inbox += data
        if len(self._inbox) > MOST_RECORDS * self._limit_bytes:
            raise WireFormatError("calls come without end")

    def next_call(self) -> Call | None:
        """Return the next call that is complete.

        Raises:
            WireFormatError: This is not a client of remote procedures, or it sends too much.
        """
        while len(self._inbox) >= 4:
            mark = int.from_bytes(self._inbox[:4], "big")
            size = mark & ~LAST_FRAGMENT
            if len(self._record) + size > self._limit_bytes:
                raise WireFormatError(f"record above {self._limit_bytes} bytes")
            if len(self._inbox) < 4 + size:
                break
            self._record += self._inbox[4 : 4 + size]
            del self._inbox[: 4 + size]
            if mark & LAST_FRAGMENT:
                record = bytes(self._record)
                self._record.clear()
                return _decode_call(record)
        return None


def _decode_call(record: bytes) -> Call:
    reader = Arguments(record)
    xid, kind, rpc_version, program, version, procedure = (reader.uint() for _ in range(6))
    if kind != CALL:
        raise WireFormatError("a record is not a call")
    for _ in ("credentials", "verifier"):
        reader.uint()
        reader.opaque(AUTHENTICATION_BYTES)
    return Call(xid, rpc_version, program, version, procedure, reader)


def encode_reply(xid: int, outcome: Accepted, *values: int | bytes) -> bytes:
    """Return the record of a reply; integers are unsigned, bytes of variable length."""
    return _encode_record(xid, REPLY, ACCEPTED, 0, b"", outcome, *values)


def encode_denial(xid: int) -> bytes:
    """Return the record that refuses another version of RPC."""
    return _encode_record(xid, REPLY, DENIED, RPC_MISMATCH, RPC_VERSION, RPC_VERSION)


def _encode_record(*values: int | bytes) -> bytes:
    body = b"".join(
        struct.pack("!I", value)
        if isinstance(value, int)
        else struct.pack("!I", len(value)) + value + bytes(-len(value) % 4)
        for value in values
    )
    return struct.pack("!I", LAST_FRAGMENT | len(body)) + body

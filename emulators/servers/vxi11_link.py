"""What one VXI-11 client does with the unit: the calls that belong to a link.

Source: VXI-11, TCP/IP Instrument Protocol, revision 1.0: B.5 and B.6 (messages and error codes).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum, unique
from typing import TYPE_CHECKING

from qkdhw_emulators.servers.onc_rpc import Arguments
from qkdhw_emulators.servers.replies import Replies

if TYPE_CHECKING:
    from qkdhw_emulators.line import Line

RECEIVE_BYTES = 64 << 10  # largest piece of a command in one call
MESSAGE_BYTES = 16 << 20  # largest command over several calls
MESSAGE_AVAILABLE = 0x10
END_FLAG = 0x08
TERM_CHAR_FLAG = 0x80
REASON_COUNT, REASON_CHAR, REASON_END = 1, 2, 4


@unique
class Outcome(IntEnum):
    """Device error codes."""

    NO_ERROR = 0
    INVALID_LINK = 4
    PARAMETER_ERROR = 5
    NOT_SUPPORTED = 8
    OUT_OF_RESOURCES = 9
    LOCKED_ELSEWHERE = 11
    NO_LOCK_HELD = 12
    TIMED_OUT = 15
    ABORTED = 23


Results = tuple[int | bytes, ...]


class Read:
    """A device_read that has not been answered yet.

    Args:
        replies: What the client fetches from.
        arguments: The arguments of the call.
    """

    def __init__(self, replies: Replies, arguments: Arguments) -> None:
        self._replies = replies
        self._limit_bytes, io_timeout_ms, _lock_timeout_ms, flags, char = (arguments.uint() for _ in range(5))
        self._term_char = char & 0xFF if flags & TERM_CHAR_FLAG else None
        self._deadline_s = time.monotonic() + io_timeout_ms / 1000

    def results(self) -> tuple[Results | None, bool]:
        """Return the results when there are any, and whether the connection then drops."""
        piece = self._replies.fetch(self._limit_bytes, self._term_char, whole=True)
        if piece is not None:
            reason = REASON_END if piece.end else 0
            reason |= REASON_CHAR if piece.matched else 0
            reason |= REASON_COUNT if len(piece.data) == self._limit_bytes else 0
            return (Outcome.NO_ERROR, reason, piece.data), piece.hang_up
        if time.monotonic() >= self._deadline_s:
            return (Outcome.TIMED_OUT, 0, b""), False
        return None, False


class Link:
    """A client's link to the unit.

    Args:
        line: The line to the unit.
        link_id: Number that the client gives in every call.
        locked: Whether the client has a lock.
        destroy: Ends the link.
    """

    def __init__(self, line: Line, link_id: int, *, locked: bool, destroy: Callable[[], None]) -> None:
        self.link_id = link_id
        self._line = line
        self._locked = locked
        self._destroy = destroy
        self._replies = Replies(line)
        self._message = bytearray()

    def write(self, arguments: Arguments) -> Results:
        """device_write: take a piece of a command; the last one makes the unit work."""
        _io_timeout_ms, _lock_timeout_ms, flags = (arguments.uint() for _ in range(3))
        data = arguments.opaque(RECEIVE_BYTES)
        if self._replies.full:
            return Outcome.TIMED_OUT, 0
        if len(self._message) + len(data) > MESSAGE_BYTES:
            self._message.clear()
            return Outcome.PARAMETER_ERROR, 0
        self._message += data
        if flags & END_FLAG:
            message = bytes(self._message)
            self._message.clear()
            self._line.feed(message)
        return Outcome.NO_ERROR, len(data)

    def read(self, arguments: Arguments) -> Read:
        """device_read: to be answered when there is something."""
        return Read(self._replies, arguments)

    def status(self, _arguments: Arguments) -> Results:
        """device_readstb."""
        available = MESSAGE_AVAILABLE if self._replies.ready() else 0
        return Outcome.NO_ERROR, self._line.status_byte() & ~MESSAGE_AVAILABLE | available

    def trigger(self, _arguments: Arguments) -> Results:
        """device_trigger."""
        self._line.trigger()
        return (Outcome.NO_ERROR,)

    def clear(self, _arguments: Arguments) -> Results:
        """device_clear."""
        self._message.clear()
        self._line.clear()
        self._replies.clear()
        return (Outcome.NO_ERROR,)

    def accept(self, _arguments: Arguments) -> Results:
        """device_remote, device_local: the unit has no front panel."""
        return (Outcome.NO_ERROR,)

    def lock(self, _arguments: Arguments) -> Results:
        """device_lock: nobody else is here to wait for."""
        outcome = Outcome.LOCKED_ELSEWHERE if self._locked else Outcome.NO_ERROR
        self._locked = True
        return (outcome,)

    def unlock(self, _arguments: Arguments) -> Results:
        """device_unlock."""
        outcome = Outcome.NO_ERROR if self._locked else Outcome.NO_LOCK_HELD
        self._locked = False
        return (outcome,)

    def refuse(self, _arguments: Arguments) -> Results:
        """device_enable_srq: there are no service requests."""
        return (Outcome.NOT_SUPPORTED,)

    def refuse_command(self, _arguments: Arguments) -> Results:
        """device_docmd: the unit is not a bus interface."""
        return Outcome.NOT_SUPPORTED, b""

    def destroy(self, _arguments: Arguments) -> Results:
        """destroy_link."""
        self._destroy()
        return (Outcome.NO_ERROR,)


PROCEDURES: dict[int, tuple[Callable[[Link, Arguments], Results | Read], Results]] = {
    # number: what it does, and its results after the error code if there is no such link
    11: (Link.write, (0,)),
    12: (Link.read, (0, b"")),
    13: (Link.status, (0,)),
    14: (Link.trigger, ()),
    15: (Link.clear, ()),
    16: (Link.accept, ()),
    17: (Link.accept, ()),
    18: (Link.lock, ()),
    19: (Link.unlock, ()),
    20: (Link.refuse, ()),
    22: (Link.refuse_command, (b"",)),
    23: (Link.destroy, ()),
}

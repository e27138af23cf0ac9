"""Replies that a client fetches piece by piece, on transports where the unit may not speak unasked."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qkdhw_emulators.line import Delivery, Line

FULL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """What one fetch got.

    Attributes:
        data: The bytes.
        end: Whether they end the reply.
        matched: Whether the last one is the client's termination character.
        hang_up: Whether the connection drops after them.
    """

    data: bytes
    end: bool
    matched: bool
    hang_up: bool


class Replies:
    """Keeps what a line has handed over until the client fetches it.

    Args:
        line: The line to the unit.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._head = bytearray()
        self._end = self._hang_up = False
        self._later: deque[Delivery] = deque()

    @property
    def full(self) -> bool:
        """Whether the client leaves so much unread that it has to fetch before it asks for more."""
        return len(self._head) + sum(len(delivery.data) for delivery in self._later) >= FULL_BYTES

    def ready(self) -> bool:
        """Return whether there is something to fetch."""
        self._collect()
        return bool(self._head or self._end or self._hang_up)

    def fetch(self, limit_bytes: int, term_char: int | None = None, *, whole: bool = False) -> Piece | None:
        """Take the next piece of the reply at the front, or None if there is nothing yet.

        Args:
            limit_bytes: Most bytes to take.
            term_char: Stop after this byte, too.
            whole: Wait until the limit, the termination character or the end of the reply is reached.
        """
        self._collect()
        size = min(limit_bytes, len(self._head))
        at = -1 if term_char is None else self._head.find(term_char, 0, size)
        matched = at >= 0
        size = at + 1 if matched else size
        stops = self._end or self._hang_up or matched or size == limit_bytes
        if not stops and (whole or not size):
            return None
        return self._cut(size, matched=matched)

    def clear(self) -> None:
        """Forget everything."""
        self._head.clear()
        self._later.clear()
        self._end = self._hang_up = False

    def _cut(self, size: int, *, matched: bool) -> Piece:
        data = bytes(self._head[:size])
        del self._head[:size]
        last = not self._head
        piece = Piece(data, end=last and self._end, matched=matched, hang_up=last and self._hang_up)
        if last:
            self._end = self._hang_up = False
        return piece

    def _collect(self) -> None:
        """Join what has come up to the end of one reply."""
        if not self.full:
            self._later.extend(self._line.take())
        while self._later and not self._end and not self._hang_up:
            delivery = self._later.popleft()
            self._head += delivery.data
            self._end, self._hang_up = delivery.end, delivery.hang_up

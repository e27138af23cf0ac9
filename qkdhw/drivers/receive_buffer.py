"""Received bytes that wait to be decoded, in one buffer that the link reads into and the decoder reads from."""

from __future__ import annotations

from qkdhw.interfaces import Transport


class ReceiveBuffer:
    """A bounded window of a stream of bytes; nothing is copied but the few bytes of a word that is not yet whole.

    Args:
        size_bytes: How much it holds.
    """

    def __init__(self, size_bytes: int) -> None:
        self._data = memoryview(bytearray(size_bytes))
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def unread(self) -> memoryview:
        """What waits; valid until the next `fill`, `append` or `clear`."""
        return self._data[self._begin : self._end]

    def fill(self, link: Transport, *, timeout_s: float) -> int:
        """Read what there is room for from a link, as soon as there is anything, and return how many bytes that was.

        Returns 0 at the deadline, and if there is no room.
        """
        if self._begin and len(self._data) - self._end < self._begin:
            self._move_to_front(len(self._data))
        if self._end == len(self._data):
            return 0
        size = link.read_into(self._data[self._end :], timeout_s=timeout_s)
        self._end += size
        return size

    def append(self, data: bytes | bytearray) -> None:
        """Add bytes that were received otherwise; makes room for them."""
        self._move_to_front(max(len(self._data), len(self) + len(data)))
        self._data[self._end : self._end + len(data)] = data
        self._end += len(data)

    def consume(self, size_bytes: int) -> None:
        """Let go of what was decoded."""
        self._begin += size_bytes
        if self._begin == self._end:
            self._begin = self._end = 0

    def clear(self) -> None:
        """Forget everything."""
        self._begin = self._end = 0

    def _move_to_front(self, size_bytes: int) -> None:
        rest = bytes(self.unread)
        if size_bytes > len(self._data):
            self._data = memoryview(bytearray(size_bytes))
        self._data[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)

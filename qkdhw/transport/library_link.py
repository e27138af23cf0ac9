"""library://SERIAL: a unit that only its vendor's own library reaches; the driver calls that, no bytes cross here."""

from __future__ import annotations

from qkdhw.errors import NotSupportedError, TransportClosedError


class LibraryWire:
    """A wire without bytes (`qkdhw.transport.byte_link.Wire`): it gives the link its address, lock and end."""

    keeps_messages = False
    fresh_when_reopened = True

    def __init__(self) -> None:
        self._open = True

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Refuse: there are no bytes."""
        raise self._refusal()

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Refuse: there are no bytes."""
        raise self._refusal()

    def close(self) -> None:
        """Close it."""
        self._open = False

    def _refusal(self) -> NotSupportedError | TransportClosedError:
        if not self._open:
            return TransportClosedError("the link to the vendor's library is closed", remedy="open the unit again")
        return NotSupportedError(
            "a library:// address carries no bytes", remedy="use it for drivers that need a vendor's library"
        )

"""Who may be asked: Protocols only. A driver inherits nothing; mypy checks that it fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self, runtime_checkable

from qkdhw.model import (
    DecoyCounts,
    DetectionBlock,
    KeyLength,
    KeyRecord,
    KeyState,
    PreparationBlock,
    UnitInfo,
    UnitStatus,
)
from qkdhw.secret import SecretBuffer


@runtime_checkable
class Transport(Protocol):
    """A byte link to a unit. Every wait has a deadline; one owner at a time."""

    @property
    def url(self) -> str:
        """Where the link leads, without credentials."""
        ...

    def write(self, data: bytes, *, timeout_s: float = 5.0) -> None:
        """Send all bytes or raise TransportError."""
        ...

    def read_exactly(self, size: int, *, timeout_s: float = 5.0) -> bytes:
        """Return exactly `size` bytes or raise TransportTimeoutError (bytes read so far stay readable)."""
        ...

    def read_until(self, terminator: bytes, *, limit: int = 65536, timeout_s: float = 5.0) -> bytes:
        """Return bytes up to and including `terminator`; WireFormatError if `limit` is passed without it."""
        ...

    def read_available(self, limit: int, *, timeout_s: float = 5.0) -> bytes:
        """Return 1..limit bytes as soon as there are any, or b"" at the deadline."""
        ...

    def discard_input(self) -> int:
        """Throw away what has arrived (resynchronisation) and return how many bytes that was."""
        ...

    def exchange(self, resynchronise: Callable[[], None], *, timeout_s: float = 5.0) -> AbstractContextManager[None]:
        """Own the link for one write-and-read; after a failed one, `resynchronise` is called before the next."""
        ...

    def reconnect(self, *, timeout_s: float = 5.0) -> None:
        """Close and open the link again, so that nothing asked for before can still arrive."""
        ...

    def close(self) -> None:
        """Close the link; closing twice is allowed."""
        ...


@runtime_checkable
class Unit(Protocol):
    """What every unit can do. Units are context managers: leaving one stops and closes it."""

    def identify(self) -> UnitInfo:
        """Ask the unit who it is."""
        ...

    def read_status(self) -> UnitStatus:
        """Read state, counters, monitors and alarms."""
        ...

    def close(self) -> None:
        """Stop what runs and close the transport."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class TransmitterUnit(Unit, Protocol):
    """A prepare-and-measure QKD transmitter."""

    def configure(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Apply settings and return what the unit says it now has (quantised read-back)."""
        ...

    def arm(self) -> None:
        """Make ready to send."""
        ...

    def start(self) -> None:
        """Send pulses."""
        ...

    def stop(self) -> None:
        """Stop sending."""
        ...

    def read_preparation(self, max_pulses: int, *, timeout_s: float = 5.0) -> PreparationBlock:
        """Read what was prepared, in order, each pulse once; empty at the deadline."""
        ...


@runtime_checkable
class TimeTagger(Unit, Protocol):
    """A time tagger: detection events with exact times."""

    def start(self) -> None:
        """Start a stream of events."""
        ...

    def stop(self) -> None:
        """Stop the stream."""
        ...

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        """Read the next events, in the order sent, each once; empty at the deadline."""
        ...


class ClassicalChannel(Protocol):
    """A reliable, ordered message link to the peer site; it authenticates nothing."""

    def send(self, message: bytes, *, timeout_s: float = 30.0) -> None:
        """Send one message whole."""
        ...

    def receive(self, *, timeout_s: float = 30.0, limit_bytes: int = 1 << 26) -> bytes:
        """Return the next whole message or raise TransportError, as for one above `limit_bytes`."""
        ...

    def close(self) -> None:
        """Close the channel."""
        ...


class KeyStore(Protocol):
    """Durable, exactly-once store of wrapped keys."""

    def put(self, *, key_id: str, link: str, block_id: int, key: SecretBuffer, metadata: Mapping[str, Any]) -> None:
        """Store a key as PENDING, wrapped; durable on return."""
        ...

    def activate(self, key_ids: Sequence[str]) -> None:
        """PENDING to READY: the peer has them too."""
        ...

    def burn(self, key_ids: Sequence[str], *, reason: str) -> None:
        """Any state but DELIVERED to BURNT, and erase the wrapped key."""
        ...

    def reserve(self, *, receiver: str, count: int = 1, key_ids: Sequence[str] | None = None) -> list[KeyRecord]:
        """READY to RESERVED: the oldest `count`, or exactly these."""
        ...

    def take(self, key_id: str, *, receiver: str) -> SecretBuffer:
        """RESERVED to DELIVERED, durable before the key is unwrapped and returned; at most once."""
        ...

    def records(self, *, state: KeyState | None = None) -> list[KeyRecord]:
        """List keys, oldest first."""
        ...


class KeyLengthProof(Protocol):
    """A security proof: counts in, length and intermediate bounds out."""

    def __call__(self, counts: DecoyCounts, *, eps_sec: float, eps_cor: float) -> KeyLength:
        """Compute the secret key length of a block."""
        ...

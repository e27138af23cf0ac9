"""Who may be asked: Protocols only. A driver inherits nothing; mypy checks that it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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

    def read_into(self, buffer: memoryview, *, timeout_s: float = 5.0) -> int:
        """Do as `read_available` into a buffer of the caller's and return how many bytes came."""
        ...

    def discard_input(self) -> int:
        """Throw away what has arrived (resynchronisation) and return how many bytes; WireFormatError if endless."""
        ...

    def read_until_quiet(self, quiet_s: float, *, timeout_s: float = 5.0) -> int:
        """Throw away what comes until nothing came for `quiet_s`; WireFormatError if that is not so in time."""
        ...

    @property
    def fresh_when_reopened(self) -> bool:
        """Whether after `reconnect` no answer to anything asked before can arrive."""
        ...

    @property
    def generation(self) -> int:
        """How often the link was dialled, from 1."""
        ...

    @property
    def draw_nonce(self) -> Callable[[], int]:
        """Returns a number below 2^31 that was hardly used before, for a challenge."""
        ...

    def read_message(self, limit: int = ..., *, timeout_s: float = 5.0) -> bytes:
        """Return the next whole message; NotSupportedError on a stream of bytes."""
        ...

    def control_in(
        self, request_type: int, request: int, value: int, index: int, size: int, *, timeout_s: float = 1.0
    ) -> bytes:
        """Read at most `size` bytes by a USB control transfer; NotSupportedError on anything but USB."""
        ...

    def control_out(
        self, request_type: int, request: int, value: int, index: int, data: bytes = b"", *, timeout_s: float = 1.0
    ) -> None:
        """Write by a USB control transfer; NotSupportedError on anything but USB."""
        ...

    def read_pipe(self, pipe: int, limit: int, *, timeout_s: float = 1.0) -> bytes:
        """Do as `read_available` on a further USB bulk pipe; NotSupportedError on anything but USB."""
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


class EventSource(Protocol):
    """A running stream of detection events: an iterator of blocks and a context manager that stops it."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __iter__(self) -> Iterator[DetectionBlock]: ...


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

    def stream(self) -> EventSource:
        """Start, and return the blocks as they come; leaving it stops the unit."""
        ...


@runtime_checkable
class Counter(Unit, Protocol):
    """A counter of pulses at several inputs."""

    def read_counts(self) -> tuple[int, ...]:
        """Count over one gate time and return a count for each input."""
        ...


@runtime_checkable
class PhotonDetector(Unit, Protocol):
    """Single-photon detectors with their bias and their counts."""

    def read_count_rates_hz(self, *, timeout_s: float = 5.0) -> tuple[float, ...]:
        """Return the count rate of each detector."""
        ...

    def enable_detectors(self) -> None:
        """Bias the detectors."""
        ...

    def disable_detectors(self) -> None:
        """Take the bias away."""
        ...


@runtime_checkable
class PhotonSource(Unit, Protocol):
    """A laser or pair source whose light can be switched."""

    def enable_output(self) -> None:
        """Let light out; UnitStateError if an interlock forbids it."""
        ...

    def disable_output(self) -> None:
        """Switch the light off."""
        ...

    def read_output_enabled(self) -> bool:
        """Say whether light is on."""
        ...


@runtime_checkable
class PatternGenerator(Unit, Protocol):
    """A modulator's pattern: one symbol a pulse."""

    def load_pattern(self, symbols: Sequence[int]) -> None:
        """Hand over the symbols to be sent, in order."""
        ...

    def run_pattern(self, *, timeout_s: float = 30.0) -> None:
        """Send the pattern once and wait for its end."""
        ...


@runtime_checkable
class Attenuator(Unit, Protocol):
    """A variable optical attenuator."""

    def set_attenuation_db(self, attenuation_db: float) -> float:
        """Set the attenuation and return what the unit then has."""
        ...

    def read_attenuation_db(self) -> float:
        """Read the attenuation."""
        ...


@runtime_checkable
class PolarizationController(Unit, Protocol):
    """Several retarders in a fibre, each set by one number in the unit's own measure (angle or voltage)."""

    @property
    def retarders(self) -> tuple[int, ...]:
        """Their channel numbers."""
        ...

    def set_retarder(self, channel: int, value: float) -> float:
        """Set one retarder, wait until it is there and return what the unit then has."""
        ...

    def read_retarder(self, channel: int) -> float:
        """Read one retarder."""
        ...


@runtime_checkable
class RandomSource(Unit, Protocol):
    """A hardware random number generator whose output is health-tested before it is handed out."""

    def read_random(self, size_bytes: int, *, timeout_s: float = 5.0) -> SecretBuffer:
        """Return random bytes; UnitStateError while a health test has failed."""
        ...


@runtime_checkable
class ClockReference(Unit, Protocol):
    """A reference clock, or a unit that locks to one."""

    def read_clock_locked(self) -> bool:
        """Say whether it is locked."""
        ...


@runtime_checkable
class DelayGenerator(Unit, Protocol):
    """A digital delay generator."""

    def set_delay_s(self, channel: str, delay_s: float, *, reference: str = "T0") -> float:
        """Set an edge's delay after a reference edge and return what the unit then has."""
        ...

    def read_delay_s(self, channel: str) -> tuple[str, float]:
        """Return an edge's reference and delay."""
        ...


@runtime_checkable
class OpticalPowerMeter(Unit, Protocol):
    """An optical power meter."""

    def read_power_w(self) -> float:
        """Return the optical power."""
        ...


@runtime_checkable
class PositionerStage(Unit, Protocol):
    """A motor with a scale."""

    def home(self, *, timeout_s: float = 60.0) -> None:
        """Find the zero of the scale and wait for it."""
        ...

    def move_to(self, position: float, *, timeout_s: float = 60.0) -> float:
        """Move, wait, and return where it then is, in the unit's own measure (degrees or millimetres)."""
        ...

    def read_position(self) -> float:
        """Return where it is."""
        ...


@runtime_checkable
class ReceiverUnit(Unit, Protocol):
    """A whole QKD receiver: arms, streams detection events, reports its monitors."""

    def arm(self) -> None:
        """Make ready to receive."""
        ...

    def start(self) -> None:
        """Start a stream of events."""
        ...

    def stop(self) -> None:
        """Stop the stream."""
        ...

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        """Read the next events, in the order sent, each once; empty at the deadline."""
        ...


@runtime_checkable
class KeySource(Unit, Protocol):
    """A vendor's QKD system that only hands out finished keys (ETSI GS QKD 014)."""

    def read_key_status(self) -> Mapping[str, int]:
        """Return how many keys are stored, and their size limits, by the standard's field names."""
        ...

    def get_keys(self, count: int, *, size_bits: int) -> list[tuple[str, SecretBuffer]]:
        """Take new keys: key ID and key."""
        ...

    def get_keys_with_ids(self, key_ids: Sequence[str]) -> list[tuple[str, SecretBuffer]]:
        """Take the keys that the peer took, by key ID."""
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

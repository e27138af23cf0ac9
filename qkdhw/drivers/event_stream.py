"""Events of a running time tagger, read by a thread into a ring of arrays, handed out as blocks without a copy.

with tagger.stream() as events:
    for block in events:
        ...
print(events.counts)

Nothing is dropped here: when the ring is full the thread stops reading, the unit's own buffer fills, and the unit
says so.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import tally
from qkdhw.errors import EventOverflowError, QkdhwError, TransportTimeoutError, UnitStateError
from qkdhw.model import DetectionBlock, EventKind

POLL_S = 0.1  # how soon the thread notices that it shall end
NAP_S = 0.001  # after a short read: the next one finds more, and costs the same
LATENCY_S = 0.02  # a block is handed out this long after its first event, also if it is not full
STUCK_S = 10.0


@dataclass(slots=True)
class EventBuffer:
    """Arrays that a driver writes events into, one after the other.

    Attributes:
        time_ticks: int64 (n,).
        channel: uint8 (n,).
        kind: uint8 (n,), an EventKind each.
        filled: How many events are in it.
        missed: How many events the unit itself said were lost on the way.
    """

    time_ticks: NDArray[np.int64]
    channel: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    filled: int = 0
    missed: int = 0

    @classmethod
    def of_size(cls, n_events: int) -> Self:
        """Make one with room for this many events."""
        return cls(np.empty(n_events, np.int64), np.empty(n_events, np.uint8), np.empty(n_events, np.uint8))

    @property
    def free(self) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:
        """The rest of the arrays, to be written to from the front."""
        return self.time_ticks[self.filled :], self.channel[self.filled :], self.kind[self.filled :]

    def block(self, tick_ps: Fraction) -> DetectionBlock:
        """Return what is in it, as views."""
        n = self.filled
        return DetectionBlock(self.time_ticks[:n], self.channel[:n], self.kind[:n], tick_ps, missed=self.missed)


class EventReader(Protocol):
    """What is needed of a unit: a part of `interfaces.TimeTagger`."""

    def start(self) -> None:
        """Start a stream of events."""
        ...

    def stop(self) -> None:
        """Stop it; EventOverflowError if events were lost in the unit."""
        ...

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        """Read the next events; empty at the deadline."""
        ...


@runtime_checkable
class FillingTagger(Protocol):
    """What a driver of a fast unit gives beside `interfaces.TimeTagger`: its events need not be copied.

    Attributes:
        tick_ps: Length of a tick.
        events_at_once: How many events one step of the unit's stream can be: less room than that is no room.
    """

    @property
    def tick_ps(self) -> Fraction: ...  # noqa: D102
    @property
    def events_at_once(self) -> int: ...  # noqa: D102

    def fill_events(self, buffer: EventBuffer, *, timeout_s: float) -> None:
        """Write the next events behind those in the buffer as soon as there are any; nothing at the deadline."""
        ...


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """What has come in a stream so far.

    Attributes:
        photons: Detection events.
        markers: Marker events.
        dummies: Events that only tell the time.
        gaps: Gaps that the unit announced.
        missed: Events that the unit said were lost.
        clock_errors: Losses of the reference clock in the stream.
        non_monotone: Events that were earlier than the one before them.
        overflows: Overflows of the unit's buffer, known at the end.
        stalls: How often the ring was full and the reading stopped.
    """

    photons: int = 0
    markers: int = 0
    dummies: int = 0
    gaps: int = 0
    missed: int = 0
    clock_errors: int = 0
    non_monotone: int = 0
    overflows: int = 0
    stalls: int = 0


@dataclass(slots=True)
class _Filled:
    block: DetectionBlock
    buffer: EventBuffer | None  # where it lies, if that is ours


@dataclass(slots=True)
class _Failure:
    error: Exception
    raised: bool = False


class EventStream:
    """A stream as an `interfaces.EventSource`: a context manager and an iterator of blocks.

    Entering it starts the unit, leaving it stops the unit. Iterating gives a block as soon as there are events, and an
    empty one whenever `timeout_s` has passed without any, so that a loop can look at other things; it never ends by
    itself. The arrays of a block hold until the next block is taken: copy what is to stay.

    Args:
        unit: The tagger; nobody else reads its events meanwhile.
        max_events: Most events in a block.
        buffer_events: Size of the ring; at least two blocks.
        timeout_s: Longest wait for a block.

    Attributes:
        alarms: What the unit said was wrong with the stream; known after the end.

    Raises:
        ValueError: A block has no room for what the unit sends at once, or the ring not for two blocks.
    """

    def __init__(
        self, unit: EventReader, *, max_events: int = 1 << 16, buffer_events: int = 1 << 21, timeout_s: float = 0.5
    ) -> None:
        self._filling = unit if isinstance(unit, FillingTagger) else None
        at_once = self._filling.events_at_once if self._filling else 1
        if max_events < at_once or buffer_events < 2 * max_events:
            raise ValueError(
                f"max_events is {max_events}, at least {at_once}; buffer_events is {buffer_events}, at least twice that"
            )
        self.alarms: tuple[str, ...] = ()
        self._unit = unit
        self._max_events = max_events
        self._timeout_s = timeout_s
        self._free: queue.SimpleQueue[EventBuffer | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Filled | _Failure] = queue.SimpleQueue()
        for _ in range(buffer_events // max_events):
            self._free.put(EventBuffer.of_size(max_events) if self._filling else None)
        self._taken: _Filled | None = None
        self._failure: _Failure | None = None
        self._tally = np.zeros(len(EventKind) + 1, np.int64)
        self._last_ticks = np.full(1, np.iinfo(np.int64).min)
        self._missed = self._stalls = self._overflows = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="event stream", daemon=True)

    @property
    def counts(self) -> StreamCounts:
        """What has come so far, blocks not yet taken included."""
        by_kind = {kind: int(self._tally[kind]) for kind in EventKind}
        return StreamCounts(
            photons=by_kind[EventKind.PHOTON],
            markers=by_kind[EventKind.MARKER],
            dummies=by_kind[EventKind.DUMMY],
            gaps=by_kind[EventKind.GAP_BEGIN],
            missed=self._missed,
            clock_errors=by_kind[EventKind.CLOCK_ERROR],
            non_monotone=int(self._tally[-1]),
            overflows=self._overflows,
            stalls=self._stalls,
        )

    def __enter__(self) -> Self:
        self._unit.start()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join(self._timeout_s + STUCK_S)
        if any(exc):
            with contextlib.suppress(QkdhwError):  # the first error tells more
                self._stop_unit()
            return
        self._stop_unit()
        if self._failure is not None and not self._failure.raised:
            raise self._failure.error

    def __iter__(self) -> Iterator[DetectionBlock]:
        return self

    def __next__(self) -> DetectionBlock:
        """Return the next block, an empty one after `timeout_s`.

        Raises:
            QkdhwError: Whatever ended the reading; blocks that came before it are handed out first.
        """
        if self._taken is not None:
            self._free.put(self._taken.buffer)
            self._taken = None
        if self._failure is not None and self._failure.raised:
            raise UnitStateError("this stream was ended by an earlier error", remedy="start a new one")
        try:
            got = self._ready.get(timeout=self._timeout_s + STUCK_S)
        except queue.Empty:
            raise TransportTimeoutError(
                f"reading the unit has hung for {STUCK_S} s", remedy="check the cable; open the unit again"
            ) from None
        if isinstance(got, _Failure):
            got.raised = True
            raise got.error
        self._taken = got
        return got.block

    def _stop_unit(self) -> None:
        try:
            self._unit.stop()
        except EventOverflowError:
            self._overflows += 1
            raise
        finally:
            self.alarms = tuple(getattr(self._unit, "stream_alarms", ()))

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                buffer = self._free.get()
                if self._filling is None or buffer is None:
                    self._hand_out(self._read_block(), buffer)
                    continue
                try:
                    self._fill(self._filling, buffer)
                finally:  # what came before an error is handed out too
                    self._hand_out(buffer.block(self._filling.tick_ps), buffer)
        except Exception as error:  # noqa: BLE001 - whatever ends the thread is raised where its data is awaited
            self._failure = _Failure(error)
            self._ready.put(self._failure)

    def _hand_out(self, block: DetectionBlock, buffer: EventBuffer | None) -> None:
        tally.tally_events(block.time_ticks, block.kind, self._tally, self._last_ticks)
        self._missed += block.missed
        self._ready.put(_Filled(block, buffer))

    def _wait_for_room(self) -> bool:
        """Wait for room in the ring; False when the stream shall end."""
        self._stalls += self._free.empty()
        while self._free.empty() and not self._stopping.wait(NAP_S):  # the only taker is this thread
            pass
        return not self._stopping.is_set()

    def _read_block(self) -> DetectionBlock:
        until_s = time.monotonic() + self._timeout_s
        while True:
            block = self._unit.read_block(self._max_events, timeout_s=min(POLL_S, self._timeout_s))
            if len(block) or time.monotonic() >= until_s or self._stopping.wait(NAP_S):
                return block

    def _fill(self, unit: FillingTagger, buffer: EventBuffer) -> None:
        """Fill a buffer until there is no room, its first event has waited long enough, or none has come."""
        size, until_s = buffer.time_ticks.shape[0], time.monotonic() + self._timeout_s
        buffer.filled = buffer.missed = 0
        while buffer.filled + unit.events_at_once <= size and not self._stopping.is_set():
            before = buffer.filled
            unit.fill_events(buffer, timeout_s=0.0 if before else POLL_S)
            now_s = time.monotonic()
            if now_s >= until_s:
                break
            if not before and buffer.filled:
                until_s = now_s + LATENCY_S
            if buffer.filled - before < size // 8:
                self._stopping.wait(NAP_S)

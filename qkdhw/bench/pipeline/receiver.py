"""The receiver's side of a prepare-and-measure link: from events to announcements, and from replies to sifted bits."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.pipeline.ahead import Ahead
from qkdhw.bench.pipeline.observer import Observer
from qkdhw.bench.pipeline.pieces import PIECE_EVENTS, PIECE_S, Pieces, Source, joined
from qkdhw.bench.pipeline.records import RecordReader
from qkdhw.bench.pipeline.sifted import PipelineStatistics, SiftedBits, pack
from qkdhw.bench.pipeline.sync_frame import SyncFrame
from qkdhw.errors import ClockAlignmentError, PeerProtocolError
from qkdhw.events.alignment import MAX_PPM, align_to_sync_frame
from qkdhw.events.clock import SlotClock
from qkdhw.events.gating import Gate, GatedBlock
from qkdhw.events.wiring import Wiring
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.postprocessing.sifting import announce, sift_at_receiver
from qkdhw.quantities import PS_PER_S

MAX_UNANSWERED = 4
ALIGN_S = Fraction(1, 2)  # beyond the frame's length; the stream may begin before it


class EventPipeline:
    """From a source of detections to sifted bits, in constant memory; a context manager and an iterator.

    with EventPipeline(unit, wiring, period_ps=10_000, window_ps=2_000, sync_frame=frame) as pipeline:
        for announcement in pipeline:
            sifted = pipeline.sift(exchange(announcement))

    A thread reads ahead into a bounded queue; while nobody takes announcements the queue fills, the reader waits, a
    unit's own buffer fills, and its overflow is what is counted. At most four announcements may wait for replies.

    Args:
        source: An open tagger or receiver, an event file or its path, several of them `Merged`, or blocks in order.
        wiring: Which input is which detector.
        period_ps: Nominal slot period of the transmitter, exact.
        window_ps: Full width of the window around a slot's centre.
        dead_time_ps: Longest dead time of the detectors; 0 switches the rule off.
        sync_frame: What the transmitter disclosed, if the clock is to be found from it; or a function that returns it,
            called when the events are read already.
        clock: The clock, if it is known; exactly one of the two is given.
        max_ppm: Largest relative difference of the two clocks, parts per million.
        measured: For a receiver that switches: its record of bases (bit 1 of each byte); the wiring then says the bit.
        observer: Collects what monitors look at.
        random_bytes: Source of fresh random bytes for slots with several clicks.
        piece_events: Most events handled at once.
        piece_s: Longest time of the stream handled at once.
        duration_s: End after this time of the stream.
        timeout_s: Longest wait for events.

    Raises:
        ValueError: Both or none of sync frame and clock are given, or a piece is empty.
    """

    def __init__(
        self,
        source: Source,
        wiring: Wiring,
        *,
        period_ps: Fraction | int,
        window_ps: Fraction | int,
        dead_time_ps: Fraction | int = 0,
        sync_frame: SyncFrame | Callable[[], SyncFrame] | None = None,
        clock: SlotClock | None = None,
        max_ppm: float = MAX_PPM,
        measured: RecordReader | None = None,
        observer: Observer | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        piece_events: int = PIECE_EVENTS,
        piece_s: Fraction | float = PIECE_S,
        duration_s: float | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        if (sync_frame is None) == (clock is None):
            raise ValueError("give a sync frame or a clock")
        self._wiring, self._period_ps, self._max_ppm = wiring, Fraction(period_ps), max_ppm
        self._window_ps, self._dead_time_ps, self._random_bytes = window_ps, dead_time_ps, random_bytes
        self._sync_frame, self._clock, self._measured = sync_frame, clock, measured
        self._observer = observer
        self._pieces = Pieces(source, piece_events=piece_events, piece_s=piece_s, duration_s=duration_s)
        self._ahead = Ahead(self._pieces.read, "event reader", timeout_s=timeout_s)
        self._gate: Gate | None = None
        self._waiting: deque[DetectionBlock] = deque()
        self._unanswered: deque[GatedBlock] = deque()
        self._counted = PipelineStatistics()
        self._flushed = False

    def __enter__(self) -> Self:
        self._ahead.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead.__exit__(kind, error, trace)
        for block in self._unanswered:
            block.wipe()

    def stop(self) -> None:
        """End the stream; what was read before is still handed out. May be called from any thread."""
        self._ahead.stop()

    @property
    def clock(self) -> SlotClock | None:
        """The clock as last corrected, or None before it is found."""
        return self._gate.clock if self._gate else self._clock

    @property
    def residual_histogram(self) -> NDArray[np.int64]:
        """Clicks by their place in the slot: int64 (256,), equal bins from -period/2 to period/2."""
        return self._gate.residual_histogram if self._gate else np.zeros(256, np.int64)

    @property
    def statistics(self) -> PipelineStatistics:
        """What became of everything so far."""
        source = self._pieces.counts
        return replace(
            self._counted,
            n_waiting=sum(map(len, self._waiting)),
            n_unanswered=self._counted.n_unanswered + sum(map(len, self._unanswered)),
            n_missed=source.missed,
            n_late=source.late,
            n_overflows=source.overflows,
            n_unit_stalls=source.stalls,
            n_stalls=self._ahead.stalls,
        )

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next announcement.

        Raises:
            ClockAlignmentError: The clock is not found, or was lost; make a new pipeline with a new sync frame.
            EventError: The events are wrong (time goes backwards, the tick changes), or the file is.
            UnitError: The unit failed.
            TransportTimeoutError: No events came in time; asking again is allowed.
            ValueError: Four announcements wait for their replies.
        """
        if len(self._unanswered) >= MAX_UNANSWERED:
            raise ValueError(f"{MAX_UNANSWERED} announcements wait for their replies")
        while True:
            block = self._select(self._next_gated())
            if len(block):
                self._unanswered.append(block)
                return announce(block.slot, block.basis)

    def sift(self, reply: bytes) -> SiftedBits:
        """Take the transmitter's reply to the oldest announcement without one.

        Raises:
            PeerProtocolError: The reply does not fit; its announcement is dropped.
            ValueError: No announcement waits for a reply.
        """
        if not self._unanswered:
            raise ValueError("no announcement waits for a reply")
        block = self._unanswered.popleft()
        try:
            sifted = sift_at_receiver(block.basis, block.bit, np.frombuffer(reply, np.uint8))
        except PeerProtocolError:
            self._add(n_unanswered=len(block))
            raise
        finally:
            block.wipe()
        packed = pack(sifted, block.slot, block.basis)
        n_kept = packed.n_key + packed.n_test
        self._add(n_refused=len(block) - n_kept, n_key=packed.n_key, n_test=packed.n_test)
        if self._observer is not None:
            self._observer.sifted(packed)
        return packed

    def _next_gated(self) -> GatedBlock:
        """Gate the next piece; raise StopIteration at the end."""
        if self._gate is None:
            self._gate = self._aligned()
        if self._waiting:
            return self._feed(self._gate, self._waiting.popleft())
        piece = next(self._ahead, None)
        if piece is not None:
            self._add(n_events=len(piece))
            return self._feed(self._gate, piece)
        if self._flushed:
            raise StopIteration
        self._flushed = True
        return self._noted(self._gate, self._gate.flush())

    def _feed(self, gate: Gate, piece: DetectionBlock) -> GatedBlock:
        before = gate.statistics
        n_photons = int(np.count_nonzero(piece.kind == EventKind.PHOTON))
        self._add(n_not_photons=len(piece) - n_photons)
        try:
            gated = gate.feed(piece)
        except ClockAlignmentError:
            after = gate.statistics
            self._add(
                n_clock_lost=n_photons - (after.n_photons - before.n_photons),
                n_outcomes_lost=after.n_slots - before.n_slots,
            )
            self._counted = replace(self._counted, gating=after)
            raise
        if self._observer is not None:
            self._observer.gated(gate, int(piece.time_ticks[-1]))
        return self._noted(gate, gated)

    def _noted(self, gate: Gate, gated: GatedBlock) -> GatedBlock:
        self._counted = replace(self._counted, gating=gate.statistics)
        return gated

    def _aligned(self) -> Gate:
        """Read until the clock is found; what was read waits and is gated afterwards."""
        if callable(self._sync_frame):
            self._sync_frame = self._sync_frame()
        frame, clock = self._sync_frame, self._clock
        wanted_ps = Fraction(0) if frame is None else len(frame.record) * self._period_ps + ALIGN_S * PS_PER_S
        while self._take_waiting() and self._waiting_ps() < wanted_ps:
            pass
        if not self._waiting:
            raise StopIteration
        tick_ps = self._waiting[0].tick_ps
        if frame is not None:
            clock = align_to_sync_frame(
                joined(list(self._waiting)),
                self._wiring,
                frame.record,
                frame.first_slot,
                self._period_ps / tick_ps,
                max_ppm=self._max_ppm,
            ).clock
        if clock is None:
            raise ValueError("there is neither a clock nor a sync frame")
        if self._observer is not None:
            self._observer.begin(clock.ref_slot)
        return Gate(clock, self._wiring, self._window_ps, self._dead_time_ps, tick_ps, random_bytes=self._random_bytes)

    def _waiting_ps(self) -> Fraction:
        first, last = self._waiting[0], self._waiting[-1]
        return (int(last.time_ticks[-1]) - int(first.time_ticks[0])) * first.tick_ps

    def _take_waiting(self) -> bool:
        piece = next(self._ahead, None)
        if piece is None:
            return False
        self._add(n_events=len(piece))
        self._waiting.append(piece)
        return True

    def _select(self, gated: GatedBlock) -> GatedBlock:
        """Leave out the sync frame, and put in the bases that a switch chose."""
        if isinstance(self._sync_frame, SyncFrame):
            begin = int(np.searchsorted(gated.slot, self._sync_frame.end_slot))
            if begin:
                self._add(n_sync_frame=begin)
                gated = replace(gated, slot=gated.slot[begin:], basis=gated.basis[begin:], bit=gated.bit[begin:])
        if self._measured is None:
            return gated
        record, found = self._measured.take(gated.slot)
        self._add(n_unmeasured=len(gated) - int(np.count_nonzero(found)))
        basis = record[found] >> np.uint8(1) & np.uint8(1)
        measured = replace(gated, slot=gated.slot[found], basis=basis, bit=gated.bit[found])
        gated.wipe()
        return measured

    def _add(self, **numbers: int) -> None:
        self._counted = replace(self._counted, **{n: getattr(self._counted, n) + v for n, v in numbers.items()})

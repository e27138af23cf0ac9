"""The receiver's side of a prepare-and-measure link: from events to announcements, and from replies to sifted bits."""

from __future__ import annotations

import math
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
from qkdhw.bench.pipeline.clock_log import MAX_LOST_S, ClockChange, ClockLog, ignore
from qkdhw.bench.pipeline.observer import Observer
from qkdhw.bench.pipeline.pieces import PIECE_EVENTS, PIECE_S, Pieces, Source, joined
from qkdhw.bench.pipeline.reacquire import (
    RESYNC_MARGIN_S,
    ErrorWatch,
    Resync,
    has_pulses,
    join_gated,
    longest_rest,
    lost_for_good,
    nothing_gated,
)
from qkdhw.bench.pipeline.records import RecordReader
from qkdhw.bench.pipeline.sifted import PipelineStatistics, SiftedBits, pack
from qkdhw.bench.pipeline.sync_frame import SyncFrame
from qkdhw.errors import ClockAlignmentError, PeerProtocolError
from qkdhw.events.alignment import MAX_PPM, Alignment, align_to_sync_frame
from qkdhw.events.clock import SlotClock
from qkdhw.events.gating import Gate, GatedBlock, GatingStatistics
from qkdhw.events.wiring import Wiring
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.postprocessing.sifting import announce, sift_at_receiver
from qkdhw.quantities import PS_PER_S

MAX_UNANSWERED = 4
MAX_REST_S = 2.0
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
        resync: Asks the transmitter for another sync frame from a slot on (`SenderPipeline.disclose`), when the clock
            was lost; it must come after all announcements that were handed out. Without it the stream ends then.
        resync_margin_s: With `resync`: the largest step of the clock after which it is found again.
        max_lost_s: With `resync`: end with an error when the clock was lost for so long a time of the stream.
        max_rest_s: With `resync`: after so long a time without light that confirms it, the clock counts as lost, for
            the slot number is in doubt; and after three times what was usual before.
        on_clock: Called with each change of the clock.
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
        resync: Resync | None = None,
        resync_margin_s: Fraction | float = RESYNC_MARGIN_S,
        max_lost_s: float = MAX_LOST_S,
        max_rest_s: float = MAX_REST_S,
        on_clock: Callable[[ClockChange], None] = ignore,
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
        self._resync, self._max_lost_s, self._max_rest_s = resync, max_lost_s, max_rest_s
        self._margin_ps = Fraction(resync_margin_s) * PS_PER_S
        self._log = ClockLog(on_clock)
        self._errors = ErrorWatch()
        self._lost: SlotClock | None = None
        self._alignment: Alignment | None = None
        self._first_tick = self._lost_tick = self._early = 0
        self._tick_ps = Fraction(1)
        self._is_anew = False
        self._rest_ticks: int | None = None
        self._announced_to = -1
        self._in_doubt: list[GatedBlock] = []
        self._before = GatingStatistics()
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
        for block in [*self._unanswered, *self._in_doubt]:
            block.wipe()

    def stop(self) -> None:
        """End the stream; what was read before is still handed out. May be called from any thread."""
        self._ahead.stop()

    @property
    def clock(self) -> SlotClock | None:
        """The clock as last corrected, or None while it is not known."""
        return self._gate.clock if self._gate else self._clock

    @property
    def alignment(self) -> Alignment | None:
        """How the clock was found first, or None if it was not, or was given."""
        return self._alignment

    @property
    def clock_changes(self) -> tuple[ClockChange, ...]:
        """The latest changes of the clock, oldest first."""
        return tuple(self._log.latest)

    @property
    def is_clock_lost(self) -> bool:
        """Whether the clock was lost and not yet found again."""
        return self._lost is not None

    @property
    def residual_histogram(self) -> NDArray[np.int64]:
        """Clicks by place in the slot, since the clock was found: int64 (256,), equal bins, -period/2 to period/2."""
        return self._gate.residual_histogram if self._gate else np.zeros(256, np.int64)

    @property
    def statistics(self) -> PipelineStatistics:
        """What became of everything so far."""
        source = self._pieces.counts
        return replace(
            self._counted,
            n_waiting=sum(map(len, self._waiting)),
            n_clock_lost=self._counted.n_clock_lost + self._early,
            n_in_doubt=sum(map(len, self._in_doubt)),
            n_unanswered=self._counted.n_unanswered + sum(map(len, self._unanswered)),
            n_missed=source.missed,
            n_late=source.late,
            n_overflows=source.overflows,
            n_unit_stalls=source.stalls,
            n_stalls=self._ahead.stalls,
            n_clock_losses=self._log.n_lost,
            n_relocks=self._log.n_found,
        )

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next announcement.

        Raises:
            ClockAlignmentError: The clock is not found, or was lost for too long; make a new pipeline.
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
                self._announced_to = int(block.slot[-1])
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

    def report_errors(self, wrong: int, compared: int) -> None:
        """Tell how many compared bits were wrong: a slip by whole slots shows nowhere else.

        With `resync` the clock counts as lost when they are wrong as only bits of other slots are, about half of them.
        """
        self._errors.add(wrong, compared)

    def _next_gated(self) -> GatedBlock:
        """Gate the next piece; raise StopIteration at the end."""
        if self._gate is None:
            self._gate = self._aligned() if self._lost is None else self._reacquired(self._lost)
        elif self._resync is not None and self._errors.is_slipped:
            return self._lose(self._gate, self._gate.clock, self._errors.said)
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
        before, clock, corrected = gate.statistics, gate.clock, gate.corrected_ticks
        n_photons = int(np.count_nonzero(piece.kind == EventKind.PHOTON))
        self._add(n_not_photons=len(piece) - n_photons)
        self._first_tick = self._first_tick or int(piece.time_ticks[0])
        self._lost_tick = int(piece.time_ticks[-1])
        try:
            gated = gate.feed(piece)
        except ClockAlignmentError as error:
            after = gate.statistics
            self._add(
                n_clock_lost=n_photons - (after.n_photons - before.n_photons),
                n_outcomes_lost=after.n_slots - before.n_slots,
            )
            if self._resync is None:
                self._drop_doubtful()
                self._count_gating(gate)
                raise
            return self._lose(gate, clock, str(error))
        if self._observer is not None:
            self._observer.gated(gate, int(piece.time_ticks[-1]))
        rest = self._rested(corrected, gate.corrected_ticks)
        if rest and self._resync is not None:
            self._in_doubt.append(gated)
            return self._lose(gate, clock, rest)
        return self._noted(gate, gated)

    def _rested(self, before: int | None, after: int | None) -> str:
        """Say for how long nothing confirmed the clock, if that was too long."""
        if before is None or after is None or after == before:
            return ""
        usual_ticks, self._rest_ticks = self._rest_ticks, after - before
        if usual_ticks is None or after - before <= longest_rest(self._max_rest_s, self._tick_ps, usual_ticks):
            return ""
        rest_s = float((after - before) * self._tick_ps / PS_PER_S)
        return f"no light confirmed the clock for {rest_s:.3g} s: the slot number is in doubt"

    def _noted(self, gate: Gate, gated: GatedBlock) -> GatedBlock:
        """Count, and hand out what was kept until the clock is confirmed, or keep this too."""
        self._count_gating(gate)
        if not self._in_doubt and not gate.is_in_doubt:
            return gated
        self._in_doubt.append(gated)
        if gate.is_in_doubt:
            if self._flushed:
                self._drop_doubtful()
            return nothing_gated()
        parts, self._in_doubt = self._in_doubt, []
        return join_gated(parts)

    def _count_gating(self, gate: Gate) -> None:
        """Take over a gate's counts; what comes before the first slot of a clock found again came while it was lost."""
        counted = gate.statistics
        self._early = counted.n_before_start if self._is_anew else 0
        counted = replace(
            counted, n_photons=counted.n_photons - self._early, n_before_start=counted.n_before_start - self._early
        )
        self._counted = replace(self._counted, gating=self._before + counted)

    def _drop_doubtful(self) -> None:
        """Drop outcomes whose clock is not confirmed."""
        self._add(n_outcomes_lost=sum(map(len, self._in_doubt)))
        for block in self._in_doubt:
            block.wipe()
        self._in_doubt = []

    def _lose(self, gate: Gate, clock: SlotClock, reason: str) -> GatedBlock:
        """Give up a gate whose clock was lost, and what it had not confirmed."""
        rest = gate.flush()
        self._add(n_outcomes_lost=len(rest))
        rest.wipe()
        self._drop_doubtful()
        self._count_gating(gate)
        self._add(n_clock_lost=self._early)
        self._before, self._early = self._counted.gating, 0
        self._gate, self._lost, self._rest_ticks = None, clock, None
        self._errors = ErrorWatch()
        self._log.add(ClockChange("lost", self._at_s(self._lost_tick), reason))
        return nothing_gated()

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
        tick_ps = self._tick_ps = self._waiting[0].tick_ps
        if frame is not None:
            self._alignment = align_to_sync_frame(
                joined(list(self._waiting)),
                self._wiring,
                frame.record,
                frame.first_slot,
                self._period_ps / tick_ps,
                max_ppm=self._max_ppm,
            )
            clock = self._alignment.clock
        if clock is None:
            raise ValueError("there is neither a clock nor a sync frame")
        return self._new_gate(clock)

    def _reacquired(self, lost: SlotClock) -> Gate:
        """Read until another sync frame finds the clock again; raise StopIteration if the stream ends before."""
        resync, period_ticks = self._resync, self._period_ps / self._tick_ps
        if resync is None:
            raise ValueError("the clock was lost, and nobody can be asked for a sync frame")
        n_pulses = len(self._sync_frame.record) if isinstance(self._sync_frame, SyncFrame) else 1 << 20
        wanted_ps = n_pulses * self._period_ps + 2 * self._margin_ps
        while True:
            while self._waiting_ps() < wanted_ps and self._take_waiting():
                pass
            pieces = self._first_waiting(wanted_ps)
            if not pieces:
                self._drop_waiting(len(self._waiting))
                raise StopIteration
            block, reason = joined(pieces), "no light that follows the pulses"
            if has_pulses(block, self._wiring, period_ticks, self._max_ppm):
                margin_slots = math.ceil(self._margin_ps / self._period_ps)
                asked = max(lost.slot_at(int(block.time_ticks[0])) + margin_slots, self._announced_to + 1)
                frame = resync(asked)
                if frame.first_slot <= self._announced_to:
                    raise PeerProtocolError(
                        f"a sync frame from slot {frame.first_slot}, up to {self._announced_to} were announced",
                        remedy="Disclose pulses after the last announcement only.",
                    )
                self._announced_to = frame.end_slot - 1
                try:
                    found = align_to_sync_frame(
                        block, self._wiring, frame.record, frame.first_slot, period_ticks, max_ppm=self._max_ppm
                    )
                except ClockAlignmentError as error:
                    reason = str(error)
                else:
                    self._sync_frame, self._lost, self._is_anew = frame, None, True
                    moved = found.clock.slot_at(self._lost_tick) - lost.slot_at(self._lost_tick)
                    said = f"slots moved by {moved:+d}, {found.significance:.0f} standard deviations"
                    self._log.add(ClockChange("found", self._at_s(int(block.time_ticks[-1])), said))
                    return self._new_gate(found.clock)
            self._drop_waiting(len(pieces))
            lost_s = self._at_s(int(block.time_ticks[-1])) - self._at_s(self._lost_tick)
            if lost_s > self._max_lost_s:
                raise lost_for_good(self._max_lost_s, reason)

    def _new_gate(self, clock: SlotClock) -> Gate:
        if self._observer is not None:
            self._observer.begin(clock.ref_slot)
        return Gate(
            clock,
            self._wiring,
            self._window_ps,
            self._dead_time_ps,
            self._tick_ps,
            random_bytes=self._random_bytes,
        )

    def _first_waiting(self, wanted_ps: Fraction) -> list[DetectionBlock]:
        """Return the first pieces that wait, of so long a time; none if they are shorter than that."""
        for n, piece in enumerate(self._waiting, 1):
            if (int(piece.time_ticks[-1]) - int(self._waiting[0].time_ticks[0])) * self._tick_ps >= wanted_ps:
                return list(self._waiting)[:n]
        return []

    def _drop_waiting(self, n_pieces: int) -> None:
        for _ in range(n_pieces):
            self._add(n_clock_lost=len(self._waiting.popleft()))

    def _at_s(self, tick: int) -> float:
        """Return a time of the stream, seconds since its first event."""
        return float((tick - self._first_tick) * self._tick_ps / PS_PER_S)

    def _waiting_ps(self) -> Fraction:
        if not self._waiting:
            return Fraction(0)
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

"""The site of a pair source that finds the clock and follows it, finds the pairs, and replies what it keeps."""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.pipeline.clock_log import MAX_LOST_S, ClockChange, ClockLog, ignore
from qkdhw.bench.pipeline.pairs import MAX_WAITING, PairStatistics, _PairSite, parse_first_times
from qkdhw.bench.pipeline.pieces import PIECE_EVENTS, PIECE_S, Source
from qkdhw.bench.pipeline.placing import PairPlacer
from qkdhw.errors import ClockAlignmentError, PeerProtocolError
from qkdhw.events.alignment import MAX_PPM
from qkdhw.events.pair_alignment import MAX_OFFSET_S, PairAlignment, align_pair_times, nominal_clock
from qkdhw.events.pair_tracking import SEARCH_OFFSET_S, PairTracker, TrackedEpoch, TrackingState
from qkdhw.events.wiring import Wiring
from qkdhw.postprocessing.announced_times import announced_times, unplaced_answer
from qkdhw.postprocessing.pair_sifting import PairAnswer
from qkdhw.quantities import PS_PER_S

_MOST_PENDING = MAX_WAITING // 2
_EPOCH_PAIRS = 500.0  # pairs that an epoch should have, for its peak to stand out
_SHORTEST_EPOCH_S, _LONGEST_EPOCH_S = 0.125, 4.0
_NO_TIMES = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Announced:
    """An announcement without an answer."""

    sequence: int
    message: bytes
    first_unit: int
    last_unit: int
    n: int


class PairSifterPipeline(_PairSite):
    """The site that finds the clock and the pairs; a context manager.

    Announced and own times go to a `PairTracker`. An announcement is answered when the clock over its time was judged:
    with the clock that held there, or, while the clock was lost, as one that could not be placed.

    Args:
        source: As for the announcer.
        wiring: Which input is which detector.
        window_ps: Full width of the coincidence window.
        tracking_ps: Full width of what the drift servo follows; three windows if not given.
        offset_s: About how much later this site's clock reads than the announcer's.
        max_offset_s: How far from that the true difference may lie.
        max_ppm: Largest relative difference of the two clocks, parts per million.
        max_step_s: Largest step of a clock after which it is found again.
        max_lost_s: End with an error when the clock was lost for so long a time of the stream.
        epoch_s: How much of the stream judges the clock at a time; about 500 pairs of the alignment if not given.
        on_clock: Called with each change of the clock.
        random_bytes: As for the announcer, likewise the rest.
        piece_events: See there.
        piece_s: See there.
        duration_s: See there.
        timeout_s: See there.
    """

    def __init__(
        self,
        source: Source,
        wiring: Wiring,
        *,
        window_ps: Fraction | int,
        tracking_ps: Fraction | int | None = None,
        offset_s: Fraction | float = 0,
        max_offset_s: float = MAX_OFFSET_S,
        max_ppm: float = MAX_PPM,
        max_step_s: float = SEARCH_OFFSET_S,
        max_lost_s: float = MAX_LOST_S,
        epoch_s: float | None = None,
        on_clock: Callable[[ClockChange], None] = ignore,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        piece_events: int = PIECE_EVENTS,
        piece_s: Fraction | float = PIECE_S,
        duration_s: float | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(source, wiring, random_bytes, piece_events, piece_s, duration_s, timeout_s)
        self._window_ps, self._tracking_ps = Fraction(window_ps), Fraction(tracking_ps or 3 * window_ps)
        self._offset_s, self._max_offset_s, self._max_ppm = offset_s, max_offset_s, max_ppm
        self._max_step_s, self._max_lost_s, self._epoch_s = max_step_s, max_lost_s, epoch_s
        self._log = ClockLog(on_clock)
        self._tracker: PairTracker | None = None
        self._placer: PairPlacer | None = None
        self._unit_ps = Fraction(1)
        self._pending: deque[_Announced] = deque()
        self._untracked_units: list[NDArray[np.int64]] = []
        self._untracked: list[NDArray[np.int64]] = []
        self._last_sequence = -1
        self._first_unit: int | None = None
        self._last_unit = self._own_last = self._tracked_to = -(1 << 62)
        self._heard_to = 0  # the peer's last time, in an announcement or before
        self._lost_ticks = 0
        self._own_ended = self._stepped = False
        self._matched = 0
        self._failure: ClockAlignmentError | None = None
        self.accidentals = self._accidentals_variance = 0.0

    @property
    def accidentals_error(self) -> float:
        """Standard error of `accidentals`, which are told from Poissonian counts outside the window."""
        return math.sqrt(self._accidentals_variance)

    @property
    def statistics(self) -> PairStatistics:
        """What became of everything so far."""
        placer, log = self._placer, self._log
        held = placer.n_held if placer else 0
        counted = self._statistics(
            n_dropped=placer.dropped_events if placer else 0,
            n_refused=self._matched - self._n_key - self._n_test,
            n_offered=placer.n_taken - held if placer else 0,
            n_clock_lost=placer.n_unplaced if placer else 0,
            n_held=held,
        )
        return replace(counted, n_clock_losses=log.n_lost, n_relocks=log.n_found, n_clock_moves=log.n_moved)

    @property
    def clock_changes(self) -> tuple[ClockChange, ...]:
        """The latest changes of the clock, oldest first."""
        return tuple(self._log.latest)

    @property
    def is_clock_lost(self) -> bool:
        """Whether the clock is lost as far as it was judged."""
        return self._lost_ticks > 0

    def align(self, first_times: bytes) -> PairAlignment:
        """Find the clock from the other site's first times; once, before the first announcement.

        Raises:
            PeerProtocolError: The message is malformed.
            ClockAlignmentError: No offset and rate stand out with 6 standard deviations.
            EventError: The events are wrong.
        """
        units, unit_ps = parse_first_times(first_times)
        span_s = Fraction(int(units[-1]) - int(units[0])) * unit_ps / PS_PER_S if len(units) else Fraction(0)
        until_s = Fraction(self._offset_s) + Fraction(self._max_offset_s)
        if len(units):
            until_s += int(units[-1]) * unit_ps / PS_PER_S
        own = self._wait_for(span_s + 2 * Fraction(self._max_offset_s), until_s=until_s)
        tick_ps = self._tick_ps or Fraction(1)
        found = align_pair_times(
            units,
            own.ticks,
            nominal_clock(unit_ps, tick_ps, self._offset_s),
            reach_ticks=math.ceil(Fraction(self._max_offset_s) * PS_PER_S / unit_ps),
            max_ppm=self._max_ppm,
            resolution_ticks=self._window_ps / tick_ps,
            span_ticks=int(span_s * PS_PER_S / unit_ps) + 1,
        )
        self._unit_ps, self._heard_to = unit_ps, int(units[-1])
        self._tracker = PairTracker(
            found.clock,
            unit_ps,
            tick_ps,
            epoch_s=self._epoch_s or self._fitting_epoch_s(found),
            resolution_ps=float(self._window_ps),
            search_offset_s=self._max_step_s,
            patience=None,  # own events are read as far as the announcement needs
        )
        self._placer = PairPlacer(
            found.clock,
            window_ticks=int(self._window_ps / 2 / tick_ps),
            tracking_ticks=int(self._tracking_ps / 2 / tick_ps),
        )
        return found

    def answer(self, announcement: bytes) -> list[PairAnswer]:
        """Take an announcement, and give the replies that are complete, in order; own events are read as needed.

        Replies lag behind by up to an epoch, but never by more than 32 announcements.

        Raises:
            PeerProtocolError: The announcement is malformed or out of order; it is dropped.
            ClockAlignmentError: The clock was lost for longer than allowed.
            QkdhwError: As for the announcer's iteration.
            ValueError: The clock was not looked for.
        """
        tracker, placer = self._found()
        sequence, units = announced_times(announcement)
        if sequence <= self._last_sequence or (len(units) and int(units[0]) < self._last_unit):
            raise PeerProtocolError(
                f"bad announcement, byte 4: number {sequence} does not follow {self._last_sequence} in time and number",
                remedy="Drop this message; check that both sites run the same version.",
            )
        if len(units) and (int(units[-1]) - self._heard_to) * self._unit_ps > Fraction(self._max_lost_s) * PS_PER_S:
            raise PeerProtocolError(
                f"bad announcement, byte 12: its times go on for more than {self._max_lost_s:g} s at once",
                remedy="Drop this message; a longer pause of the light needs a new stream, or a larger max_lost_s.",
            )
        self._last_sequence = sequence
        if not len(units):
            return [unplaced_answer(sequence, 0)]
        self._first_unit = int(units[0]) if self._first_unit is None else self._first_unit
        self._last_unit = self._heard_to = int(units[-1])
        self._pending.append(_Announced(sequence, announcement, int(units[0]), self._last_unit, len(units)))
        self._untracked_units.append(units)
        self._read_to(placer, self._last_unit)
        tracker.add(_joined(self._untracked_units), _joined(self._untracked))
        self._untracked_units, self._untracked = [], []
        answers = self._judged(placer, tracker)
        while len(self._pending) > _MOST_PENDING:
            answers.append(self._answer_next(placer))
        return answers

    def finish(self) -> list[PairAnswer]:
        """Give the replies to all announcements that wait; call it when the other site's stream has ended."""
        tracker, placer = self._found()
        answers = self._judged(placer, tracker, ended=True)
        while self._pending:
            answers.append(self._answer_next(placer))
        return answers

    def _found(self) -> tuple[PairTracker, PairPlacer]:
        if self._failure is not None:
            raise self._failure
        if self._tracker is None or self._placer is None:
            raise ValueError("align first")
        return self._tracker, self._placer

    def _fitting_epoch_s(self, found: PairAlignment) -> float:
        span_s = float(found.span_ticks * self._unit_ps / PS_PER_S)
        return min(_LONGEST_EPOCH_S, max(_SHORTEST_EPOCH_S, _EPOCH_PAIRS * span_s / max(found.pairs, 1.0)))

    @property
    def _step_ticks(self) -> int:
        return math.ceil(Fraction(self._max_step_s) * PS_PER_S / self._tick_ps)

    def _read_to(self, placer: PairPlacer, unit: int) -> None:
        """Read own events until they lie beyond a time of the peer, whatever step its clock may make."""
        end = placer.own_ticks(unit) + 2 * self._step_ticks
        while self._own_last <= end and self._read_own(placer):
            pass

    def _read_own(self, placer: PairPlacer) -> bool:
        photons = None if self._own_ended else self._next_photons()
        if photons is None:
            self._own_ended = True
            placer.close()
            return False
        if len(photons):
            self._own_last = int(photons.ticks[-1])
            self._untracked.append(photons.ticks)
            placer.add_events(photons)
        return True

    def _judged(self, placer: PairPlacer, tracker: PairTracker, *, ended: bool = False) -> list[PairAnswer]:
        """Answer what lies before the end of each epoch, with the clock that it found."""
        answers = []
        for epoch in tracker.epochs(ended=ended):
            end = epoch.first_ticks + tracker.epoch_ticks
            is_short = ended and end > self._last_unit
            if not (is_short and epoch.state is TrackingState.LOST):  # too little of an epoch says nothing
                self._follow(placer, tracker, epoch)
            while self._pending and self._pending[0].last_unit < end:
                answers.append(self._answer_next(placer))
            if self._lost_ticks * self._unit_ps > Fraction(self._max_lost_s) * PS_PER_S:
                self._failure = ClockAlignmentError(
                    f"the clock was lost and not found for {self._max_lost_s:g} s of the stream",
                    remedy="Check the light and both clocks, then begin a new stream with new first times; or allow "
                    "a larger step or a longer time.",
                )
                if answers:
                    return answers  # what was answered is handed out first
                raise self._failure
        return answers

    def _follow(self, placer: PairPlacer, tracker: PairTracker, epoch: TrackedEpoch) -> None:
        """Take over what an epoch says about the clock, and note it."""
        # What is far off again right after a step is no step: the rate has changed, and the tracker finds it.
        was_lost, had_stepped = self.is_clock_lost, self._stepped
        self._stepped = False
        if epoch.state is TrackingState.LOST or epoch.found_again:
            if not was_lost:
                self._note("lost", epoch, "no pairs where the clock says")
            if not epoch.found_again:
                self._lost_ticks += tracker.epoch_ticks
                return
        self._lost_ticks = 0
        self._tracked_to = epoch.first_ticks + tracker.epoch_ticks
        middle, window_ticks = epoch.measured.ref_a_ticks, self._window_ps / self._tick_ps
        moved = epoch.measured.map_ticks(middle) - placer.own_ticks(middle)
        said = f"moved by {float(moved * self._tick_ps) / 1e6:+.6g} us, {epoch.significance:.0f} standard deviations"
        stretch_q48 = epoch.clock.rate_q48 - epoch.measured.rate_q48
        if was_lost or epoch.found_again:
            self._stepped = True
            placer.replace_clock(epoch.measured)
            tracker.step(epoch.measured)
            self._note("found", epoch, said)
        elif abs(epoch.residual_ticks) > window_ticks / 2 and not had_stepped:
            self._stepped = True
            placer.replace_clock(epoch.measured)
            tracker.step(epoch.measured)
            self._note("moved", epoch, said)
        elif abs(moved) > window_ticks / 4:  # a drift that the sifting's own servo is too slow for
            placer.replace_clock(epoch.measured.rebased(middle, stretch_q48=stretch_q48))

    def _note(self, what: str, epoch: TrackedEpoch, reason: str) -> None:
        at_s = float((epoch.first_ticks - (self._first_unit or 0)) * self._unit_ps / PS_PER_S)
        self._log.add(ClockChange(what, at_s, reason))  # type: ignore[arg-type]

    def _answer_next(self, placer: PairPlacer) -> PairAnswer:
        """Answer the oldest announcement; it stays if own events do not come in time."""
        asked = self._pending[0]
        if self.is_clock_lost and self._tracked_to <= asked.first_unit:
            answer = unplaced_answer(asked.sequence, asked.n)
        else:
            while (found := placer.sift(asked.message, asked.last_unit)) is None:
                self._read_own(placer)
            answer = found
        self._pending.popleft()
        placer.forget(math.floor(placer.own_ticks(asked.last_unit)) - self._step_ticks)
        self._matched += answer.counts.matched
        self._n_key += answer.sifted.n_key
        self._n_test += answer.sifted.n_test
        counts = answer.counts
        self.accidentals += counts.accidentals
        self._accidentals_variance += counts.accidentals**2 / max(1, counts.edge)
        return answer


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return parts[0] if len(parts) == 1 else np.concatenate([_NO_TIMES, *parts])

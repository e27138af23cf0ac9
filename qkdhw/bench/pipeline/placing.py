"""Announced detections laid on own events by a clock that may be replaced: what was taken once is not taken again."""

from __future__ import annotations

import math
from collections import deque
from fractions import Fraction

import numpy as np

from qkdhw.bench.pipeline.photons import Photons
from qkdhw.events.pair_correlation import PairClock
from qkdhw.postprocessing.pair_sifting import AnnouncedClock, PairAnswer, PairSifter


class PairPlacer:
    """Keeps own events until the announcements that they may belong to are answered or given up.

    Args:
        clock: Own ticks in terms of the peer's units.
        window_ticks: Half width of the coincidence window.
        tracking_ticks: Half width of what the servo follows.

    Attributes:
        n_taken: Own events handed in.
        n_unplaced: Of these, never offered to the search for pairs, since their announcements were given up.
    """

    def __init__(self, clock: PairClock, *, window_ticks: int, tracking_ticks: int) -> None:
        self._window_ticks, self._tracking_ticks = window_ticks, tracking_ticks
        self._kept: deque[Photons] = deque()
        self._n_offered = 0  # chunks at the front of the kept that the sifter has
        self._offered_to = self._used_to = -(1 << 62)
        self._last_unit: int | None = None  # of what was answered
        self._open: tuple[bytes, int] | None = None  # an announcement that waits for own events
        self._dropped_before = 0
        self._closed = self._sifter_closed = False
        self._sifter = self._new_sifter(clock)
        self.n_taken = self.n_unplaced = 0

    @property
    def dropped_events(self) -> int:
        """Own events dropped as too many waited."""
        return self._dropped_before + self._sifter.dropped_events

    @property
    def n_held(self) -> int:
        """Own events that were not yet offered."""
        return sum(int(np.count_nonzero(chunk.ticks > self._offered_to)) for chunk in self._kept)

    def own_ticks(self, unit: int) -> Fraction:
        """Return the own tick that belongs to a time of the peer."""
        return self._sifter.own_ticks(unit)

    def add_events(self, photons: Photons) -> None:
        """Add the next own events; the arrays are kept."""
        if len(photons):
            self._kept.append(photons)
            self.n_taken += len(photons)

    def close(self) -> None:
        """Say that there are no more own events."""
        self._closed = True

    def replace_clock(self, clock: PairClock) -> None:
        """Go on with another clock, with own events after those that can have been taken."""
        if self._last_unit is not None:
            used_to = math.ceil(self._sifter.own_ticks(self._last_unit)) + self._tracking_ticks
            self._used_to = max(self._used_to, used_to)
        self._dropped_before += self._sifter.dropped_events
        self._sifter = self._new_sifter(clock)
        self._sifter_closed = False
        self._n_offered = 0
        if self._open is not None:
            self._sifter.add_announcement(self._open[0])

    def sift(self, announcement: bytes, last_unit: int) -> PairAnswer | None:
        """Find the pairs of an announcement, in order; None if later own events are needed: then add and ask again."""
        if self._open is None:
            self._sifter.add_announcement(announcement)
            self._open = announcement, last_unit
        while True:
            for answer in self._sifter.answers():
                self._last_unit, self._open = self._open[1], None
                return answer
            if not self._offer():
                return None

    def forget(self, before_ticks: int) -> None:
        """Forget own events that no later announcement can ask for."""
        while self._kept and int(self._kept[0].ticks[-1]) < before_ticks:
            chunk = self._kept.popleft()
            if self._n_offered:
                self._n_offered -= 1
            self.n_unplaced += int(np.count_nonzero(chunk.ticks > self._offered_to))

    def _offer(self) -> bool:
        """Give the sifter the next own events; False if there are none."""
        if self._n_offered == len(self._kept):
            if not self._closed or self._sifter_closed:
                return False
            self._sifter_closed = True
            self._sifter.close()
            return True
        chunk = self._kept[self._n_offered]
        self._n_offered += 1
        ticks, detectors = chunk.ticks, chunk.detectors
        if int(ticks[0]) <= self._used_to:
            begin = int(np.searchsorted(ticks, self._used_to, "right"))
            ticks, detectors = ticks[begin:], detectors[begin:]
        self._offered_to = max(self._offered_to, int(chunk.ticks[-1]))
        self._sifter.add_events(ticks, detectors)
        return True

    def _new_sifter(self, clock: PairClock) -> PairSifter:
        # The announced clock is whole ticks at unit 0: half a tick at most is left to the servo.
        return PairSifter(
            AnnouncedClock(round(clock.map_ticks(0)), clock.rate),
            window_ticks=self._window_ticks,
            tracking_ticks=self._tracking_ticks,
        )

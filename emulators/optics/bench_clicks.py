"""Clicks of the detectors on an emulated bench: their mean rates through time, and pulses drawn from these."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.link_model import TICK_PS, LinkChunk
from qkdhw_emulators.world import World

KEPT_PIECES = 20_000
TICK_S = TICK_PS * 1e-12
SLICE_S = 0.1  # of a stream made at once
TAGGER_INPUTS = 4


class ClickHistory:
    """Mean click rate of each detector, constant in each piece of time; before the first piece nothing happened.

    Args:
        n_detectors: How many detectors.
        dead_time_s: Of each detector; the rates are those of what is counted, so it is in them already.

    Attributes:
        n_detectors: How many detectors.
        dead_time_s: Of each detector.
        now_s: How far it goes.
        rates_hz: float64 (n_detectors,), in the last piece.
    """

    def __init__(self, n_detectors: int, dead_time_s: float) -> None:
        self.n_detectors, self.dead_time_s = n_detectors, dead_time_s
        self.rates_hz: NDArray[np.float64] = np.zeros(n_detectors)
        self._ends_s = [0.0]
        self._sums = [np.zeros(n_detectors)]  # mean counts from the beginning to these ends

    @property
    def now_s(self) -> float:
        """Bench time up to which the rates are known."""
        return self._ends_s[-1]

    def extend(self, end_s: float, rates_hz: NDArray[np.float64]) -> None:
        """Add a piece that lasts until `end_s`."""
        sums = self._sums[-1] + rates_hz * (end_s - self._ends_s[-1])
        if len(self._ends_s) > 1 and (rates_hz == self.rates_hz).all():
            self._ends_s[-1], self._sums[-1] = end_s, sums
        else:
            self._ends_s.append(end_s)
            self._sums.append(sums)
            self.rates_hz = rates_hz
        if len(self._ends_s) > 2 * KEPT_PIECES:
            del self._ends_s[:KEPT_PIECES], self._sums[:KEPT_PIECES]

    def mean_counts(self, begin_s: float, end_s: float) -> NDArray[np.float64]:
        """Return each detector's mean counts in a time, which goes on as now beyond what is known."""
        return self._sum_at(end_s) - self._sum_at(begin_s)

    def pieces(self, detector: int, begin_s: float, end_s: float) -> Iterator[tuple[float, float, float]]:
        """Return begin, end and a detector's rate in hertz of the pieces that a time consists of."""
        inner = self._ends_s[bisect_right(self._ends_s, begin_s) : bisect_left(self._ends_s, end_s)]
        edges = [begin_s, *inner, end_s]
        for begin, end in pairwise(edges):
            if end > begin:
                yield begin, end, float(self.mean_counts(begin, end)[detector]) / (end - begin)

    def _sum_at(self, at_s: float) -> NDArray[np.float64]:
        after = bisect_left(self._ends_s, at_s)
        if after == len(self._ends_s):
            return self._sums[-1] + self.rates_hz * (at_s - self._ends_s[-1])
        if after == 0:
            return self._sums[0]
        begin_s, end_s = self._ends_s[after - 1], self._ends_s[after]
        before, behind = self._sums[after - 1], self._sums[after]
        between: NDArray[np.float64] = before + (behind - before) * ((at_s - begin_s) / (end_s - begin_s))
        return between


class PulseTrain:
    """The pulses of one detector from a time on: Poissonian but for the dead time after each.

    Args:
        history: The rates.
        detector: Which one, from 0.
        begin_s: Bench time from which times are counted.
        rng: Randomness.
    """

    def __init__(self, history: ClickHistory, detector: int, begin_s: float, rng: np.random.Generator) -> None:
        self._history, self._detector, self._rng = history, detector, rng
        self._begin_s = self._at_s = begin_s
        self._ready_s = -math.inf  # of the detector after its last pulse, since the beginning

    def until(self, end_s: float) -> NDArray[np.float64]:
        """Return the next pulses before a bench time, float64 (n,), in seconds since the beginning, rising."""
        drawn = [
            self._in_piece(begin - self._begin_s, end - self._begin_s, rate_hz)
            for begin, end, rate_hz in self._history.pieces(self._detector, self._at_s, end_s)
        ]
        self._at_s = max(self._at_s, end_s)
        return np.concatenate(drawn) if drawn else np.empty(0)

    def skip(self, end_s: float) -> None:
        """Let the pulses before a bench time go by."""
        self._at_s = max(self._at_s, end_s)

    def _in_piece(self, begin_s: float, end_s: float, counted_hz: float) -> NDArray[np.float64]:
        if counted_hz <= 0:
            return np.empty(0)
        dead_s = self._history.dead_time_s
        gap_s = max(1 / counted_hz - dead_s, 1e-12)
        drawn = []
        at_s = max(begin_s, self._ready_s)
        while at_s < end_s:
            expected = (end_s - at_s) * counted_hz
            n = int(expected + 5 * math.sqrt(expected)) + 10
            times_s = at_s + np.cumsum(self._rng.exponential(gap_s, n)) + dead_s * np.arange(n)
            at_s = float(times_s[-1]) + dead_s
            drawn.append(times_s)
        times_s = np.concatenate(drawn) if drawn else np.empty(0)
        times_s = times_s[: int(np.searchsorted(times_s, end_s))]
        if len(times_s):
            self._ready_s = float(times_s[-1]) + dead_s
        return times_s


class BenchInputs:
    """The inputs of a tagger that detectors of a bench are connected to; events are there once their time has come.

    It has the methods of `LinkRun` that a receiver's stream uses.

    Args:
        history: The detectors' rates.
        detectors: The detector, from 0, at each input in use, from 1.
        world: Surroundings of the tagger.

    Attributes:
        seed: Seed of the bench.
    """

    def __init__(self, history: ClickHistory, detectors: Mapping[int, int], world: World) -> None:
        self.seed = world.seed
        self._history = history
        self._detectors = dict(detectors)
        self._rng = world.rng("pulses")
        self._counts_rng = world.rng("counts")
        self._trains: dict[int, PulseTrain] = {}
        self._begin_s = self._at_s = 0.0

    def start_receiver(self, settings: Mapping[str, Any] | None = None) -> None:
        """Begin a stream of events now; times are counted from here."""
        self._begin_s = self._at_s = self._history.now_s
        self._trains = {
            channel: PulseTrain(self._history, detector, self._begin_s, self._rng)
            for channel, detector in self._detectors.items()
        }

    def stop_receiver(self) -> None:
        """End the stream."""
        self._trains = {}

    def go_on(self) -> None:
        """Begin a stream if none runs, else let go by what has happened since its last events were taken."""
        if not self._trains:
            self.start_receiver()
        self._at_s = self._history.now_s
        for train in self._trains.values():
            train.skip(self._at_s)

    def next_pulses(self) -> tuple[NDArray[np.float64], NDArray[np.int64], float] | None:
        """Return what happened next at the inputs, or None: nothing until now.

        Returns:
            Times in seconds since the start, rising; inputs from 1; how far the time has come.
        """
        end_s = min(self._history.now_s, self._at_s + SLICE_S)
        if not self._trains or end_s <= self._at_s:
            return None
        self._at_s = end_s
        times = {channel: train.until(end_s) for channel, train in self._trains.items()}
        times_s = np.concatenate(list(times.values()))
        channels = np.repeat(list(times), [len(each) for each in times.values()])
        order = np.argsort(times_s, kind="stable")
        return times_s[order], channels[order], end_s - self._begin_s

    def next_events(self) -> LinkChunk | None:
        """Return what happened next in ticks of 2 ns, the inputs of a tick together; None: nothing until now."""
        pulses = self.next_pulses()
        if pulses is None:
            return None
        times_s, channels, horizon_s = pulses
        ticks, which = np.unique((times_s / TICK_S).astype(np.int64), return_inverse=True)
        pattern = np.zeros(len(ticks), np.uint8)
        np.bitwise_or.at(pattern, which, np.left_shift(1, channels - 1).astype(np.uint8))
        return LinkChunk(np.empty(0, np.uint8), ticks, pattern, int(horizon_s / TICK_S))

    def pulses_within(self, channel: int, begin_s: float, end_s: float) -> NDArray[np.float64]:
        """Return the pulses at an input between two bench times, float64 (n,), in seconds since the first of them."""
        if channel not in self._detectors:
            return np.empty(0)
        return PulseTrain(self._history, self._detectors[channel], begin_s, self._rng).until(end_s)

    def counts(self, begin_s: float, end_s: float) -> list[int]:
        """Draw what plain counters at inputs 1 to 4 show for a gate between two bench times."""
        return [int(n) for n in self._counts_rng.poisson(self.mean_counts(begin_s, end_s))]

    def mean_counts(self, begin_s: float, end_s: float) -> list[float]:
        """Return the mean counts at inputs 1 to 4 between two bench times; before the bench's zero nothing happens."""
        mean = self._history.mean_counts(begin_s, end_s)
        inputs = range(1, TAGGER_INPUTS + 1)
        return [float(mean[self._detectors[c]]) if c in self._detectors else 0.0 for c in inputs]

    def rate_hz(self, channel: int) -> float:
        """Return the rate of pulses at an input now."""
        return float(self._history.rates_hz[self._detectors[channel]]) if channel in self._detectors else 0.0

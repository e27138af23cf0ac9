"""What a simulated run counts while it goes on: a fixed amount of memory however long it is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.closed_forms import sigma_of_fwhm
from qkdhw_emulators.optics.detection import DetectedEvents
from qkdhw_emulators.optics.setup import OpticalSetup, Receiver, Tagger
from qkdhw_emulators.simulate.matching import SWITCHED, Clicks

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

INTERVAL_EDGES_PS = np.logspace(2, 13, 221)  # 20 bins a decade, 100 ps to 10 s
PHASE_BINS = 200
LAG_PULSES = 20
LAG_BINS = 201
SLICES = 256
COINCIDENCE_SIGMAS = 3


class EndCounts:
    """Clicks of one end, apart from what they mean.

    Args:
        receiver: The end.
        tick_ps: Of its tagger.
        first_tick: What its clock shows when the first pulse arrives: clicks before are counted apart.

    Attributes:
        clicks: int64 (n_detectors,), from then on.
        before: Clicks before: noise while the tagger waited for light.
        intervals: int64 (n_detectors, bins), times between two clicks of a detector, in `INTERVAL_EDGES_PS`.
    """

    def __init__(self, receiver: Receiver, tick_ps: float, first_tick: int) -> None:
        n = len(receiver.detectors)
        self.clicks = np.zeros(n, np.int64)
        self.intervals = np.zeros((n, len(INTERVAL_EDGES_PS) - 1), np.int64)
        self.before = 0
        self._tick_ps, self._first_tick = tick_ps, first_tick
        self._last: list[Counts] = [np.empty(0, np.int64) for _ in range(n)]

    def add(self, events: DetectedEvents) -> DetectedEvents:
        """Count a cell's clicks, and return those since the first pulse."""
        early = int(np.searchsorted(events.ticks, self._first_tick))
        if early:
            self.before += early
            ticks, channels = events.ticks[early:], events.channel[early:]
            events = DetectedEvents(ticks, channels, events.cause[early:], events.arrival[early:], events.end_ticks)
        self.clicks += np.bincount(events.channel, minlength=len(self.clicks))
        for channel, last in enumerate(self._last):
            own = np.concatenate((last, events.ticks[events.channel == channel]))
            self.intervals[channel] += np.histogram(np.diff(own) * self._tick_ps, INTERVAL_EDGES_PS)[0]
            self._last[channel] = own[-1:]
        return events


class Timeline:
    """Sums over time in at most `SLICES` slices; when they are full, two become one.

    Args:
        width: Numbers in a slice.

    Attributes:
        cells: How many cells are in a slice.
        sums: float64 (n, width).
    """

    def __init__(self, width: int) -> None:
        self.cells = 1
        self._sums = np.zeros((SLICES, width))
        self._seen = 0

    @property
    def sums(self) -> Floats:
        """What was summed, (slices begun, width)."""
        return self._sums[: math.ceil(self._seen / self.cells)]

    def add(self, *numbers: float) -> None:
        """Add a cell's numbers."""
        if self._seen == SLICES * self.cells:
            self._sums[: SLICES // 2] = self._sums[::2] + self._sums[1::2]
            self._sums[SLICES // 2 :] = 0
            self.cells *= 2
        self._sums[self._seen // self.cells] += numbers
        self._seen += 1


class PulseCounts:
    """Detections of prepared pulses, by what was sent and what was found.

    Args:
        setup: The link.

    Attributes:
        clicks: int64 (intensities, 3, 2, 3, 2): intensity, basis and bit sent, basis and bit found; a pulse with two
            clicks counts in both.
        detections: int64 (intensities, 3, 3): intensity, basis sent, basis found; pulses with any click.
        half_errors: int64, the same shape: 2 for a wrong bit, 1 for both bits.
        matched: int64 (n_detectors,), clicks that belong to a pulse.
        phases: int64 (n_detectors, bins), time of clicks in the period, about the pulse's arrival.
        lags: int64 (LAG_PULSES + 1,), pairs of those clicks of different detectors, by distance in pulses.
        timeline: Sifted detections and half errors over time: key, key, test, test.
    """

    def __init__(self, setup: OpticalSetup) -> None:
        n = max(1, len(setup.source.intensities))
        self.clicks = np.zeros((n, 3, 2, 3, 2), np.int64)
        self.detections = np.zeros((n, 3, 3), np.int64)
        self.half_errors = np.zeros((n, 3, 3), np.int64)
        self.matched = np.zeros(len(setup.receiver.detectors), np.int64)
        self.phases = np.zeros((len(setup.receiver.detectors), PHASE_BINS), np.int64)
        self.lags = np.zeros(LAG_PULSES + 1, np.int64)
        self.timeline = Timeline(4)
        self._period_ps = setup.source.period_ps

    def add(self, matched: Clicks, choice: NDArray[np.uint8], switched: NDArray[np.uint8]) -> None:
        """Count a cell's clicks.

        Args:
            matched: What they mean.
            choice: The sender's choice for each; anything for those without a pulse.
            switched: The receiver's basis for each, if it switches.
        """
        self._add_phases(matched)
        inside = matched.pulse >= 0
        pulse, bit = matched.pulse[inside], matched.bit[inside].astype(np.int64)
        basis = np.where(matched.basis == SWITCHED, switched, matched.basis)[inside].astype(np.int64)
        self.matched += np.bincount(matched.channel[inside], minlength=len(self.matched))
        sent = choice[inside].astype(np.int64)
        found = (sent * 3 + basis) * 2 + bit
        self.clicks += np.bincount(found, minlength=self.clicks.size).reshape(self.clicks.shape)
        self._add_lags(pulse, matched.channel[inside])
        order = np.argsort(pulse * 3 + basis, kind="stable")
        place = (pulse * 3 + basis)[order]
        begins = np.flatnonzero(np.diff(place, prepend=-1))
        before = self.detections.copy(), self.half_errors.copy()
        if len(begins):
            bits = np.bitwise_or.reduceat((1 << bit)[order], begins)
            sent, basis = sent[order][begins], basis[order][begins]
            wrong = np.where(bits == 3, 1, np.where(bits >> (sent & 1) & 1, 0, 2))
            flat = (sent >> 1) * 3 + basis
            shape = self.detections.shape
            self.detections += np.bincount(flat, minlength=self.detections.size).reshape(shape)
            self.half_errors += np.bincount(flat, wrong, self.detections.size).astype(np.int64).reshape(shape)
        now = [(self.detections - before[0]).sum(axis=0), (self.half_errors - before[1]).sum(axis=0)]
        self.timeline.add(now[0][0, 0], now[1][0, 0], now[0][1, 1], now[1][1, 1])

    def _add_phases(self, matched: Clicks) -> None:
        known = np.isfinite(matched.phase_ps)
        share = (matched.phase_ps[known] / self._period_ps + 0.5) % 1.0
        place = np.minimum((share * PHASE_BINS).astype(np.int64), PHASE_BINS - 1)
        at = matched.channel[known].astype(np.int64) * PHASE_BINS + place
        self.phases += np.bincount(at, minlength=self.phases.size).reshape(self.phases.shape)

    def _add_lags(self, pulse: Counts, channel: NDArray[np.uint8]) -> None:
        order = np.argsort(pulse, kind="stable")
        pulse, channel = pulse[order], channel[order]
        for step in range(1, len(pulse)):
            lag = pulse[step:] - pulse[:-step]
            near = lag <= LAG_PULSES
            if not near.any():
                return
            near &= channel[step:] != channel[:-step]
            self.lags += np.bincount(lag[near], minlength=LAG_PULSES + 1)


class PairCounts:
    """Coincidences of two ends that share pairs.

    They are pairs of clicks within the window or, with a pulsed pump, pulses with clicks at both ends.

    Args:
        setup: The link.

    Attributes:
        window_ps: Full width of the coincidence window.
        coincidences: float64 (3, 2, 3, 2): Alice's basis and bit, Bob's basis and bit; a pulse with both bits of a
            basis at an end counts half for each.
        half_ps: How far the histogram of delays goes to each side: ten windows, and with pulses at least `LAG_PULSES`.
        delays: int64 (LAG_BINS,), pairs of clicks by Bob's time less Alice's, in equal bins; with pulses
            (2 LAG_PULSES + 1,), those within the window about a distance of whole pulses.
        timeline: Sifted coincidences and errors over time: key, key, test, test.
    """

    def __init__(self, setup: OpticalSetup) -> None:
        self.window_ps = coincidence_window_ps(setup)
        self.coincidences = np.zeros((3, 2, 3, 2))
        self._period_ps = 0 if setup.source.kind == "pair-cw" else setup.source.period_ps
        self.delays = np.zeros(2 * LAG_PULSES + 1 if self._period_ps else LAG_BINS, np.int64)
        self.half_ps = 10 * self.window_ps
        if self._period_ps:  # a bin has an odd number of pulses, so that no pulse is on an edge
            pulses_ps = len(self.delays) * self._period_ps / 2
            self.half_ps = (math.ceil(self.half_ps / pulses_ps) | 1) * pulses_ps
        self.timeline = Timeline(4)

    @property
    def level(self) -> float:
        """Pairs by chance in a bin of delay: the mean of the outer quarters."""
        quarter = len(self.delays) // 4
        return float(np.r_[self.delays[:quarter], self.delays[-quarter:]].mean())

    def add(self, alice: Clicks, bob: Clicks) -> None:
        """Count a cell's coincidences."""
        half_ps = self.half_ps
        at_alice, at_bob = (np.nan_to_num(side.times_ps, nan=np.inf) for side in (alice, bob))
        order = np.argsort(at_bob, kind="stable")
        first, last = (np.searchsorted(at_bob[order], at_alice + side) for side in (-half_ps, half_ps))
        n = np.where(np.isfinite(at_alice), last - first, 0)
        a = np.repeat(np.arange(len(at_alice)), n)
        b = order[np.arange(len(a)) - np.repeat(np.cumsum(n) - n, n) + first[a]]
        delay = at_bob[b] - at_alice[a]
        bins = np.floor((delay / half_ps + 1) / 2 * len(self.delays)).astype(np.int64)
        if self._period_ps:
            off_ps = delay - np.rint(delay / self._period_ps) * self._period_ps
            bins = bins[np.abs(off_ps) <= self.window_ps / 2]
        self.delays += np.bincount(np.clip(bins, 0, len(self.delays) - 1), minlength=len(self.delays))
        if self._period_ps:
            now = _pulses_at_both(alice, bob)
        else:
            near = np.abs(delay) <= self.window_ps / 2
            a, b = a[near], b[near]
            at = ((alice.basis[a].astype(np.int64) * 2 + alice.bit[a]) * 3 + bob.basis[b]) * 2 + bob.bit[b]
            now = np.bincount(at, minlength=36).reshape(3, 2, 3, 2).astype(np.float64)
        self.coincidences += now
        key, test = now[0, :, 0], now[1, :, 1]
        self.timeline.add(key.sum(), key[0, 1] + key[1, 0], test.sum(), test[0, 1] + test[1, 0])


def _pulses_at_both(alice: Clicks, bob: Clicks) -> Floats:
    """Return how many pulses clicked at both ends, (3, 2, 3, 2) as `PairCounts.coincidences`."""
    at_alice, at_bob = ([_pulses_in(side, basis) for basis in range(3)] for side in (alice, bob))
    counts = np.zeros((3, 2, 3, 2))
    for i, j in np.ndindex(3, 3):
        (pulses, shares), (others, other_shares) = at_alice[i], at_bob[j]
        _, a, b = np.intersect1d(pulses, others, assume_unique=True, return_indices=True)
        counts[i, :, j] = shares[a].T @ other_shares[b]
    return counts


def _pulses_in(side: Clicks, basis: int) -> tuple[Counts, Floats]:
    """Return the pulses that clicked in a basis, (n,), and how much of each is of either bit, (n, 2)."""
    own = (side.pulse >= 0) & (side.basis == basis)
    found = np.unique(side.pulse[own] * 2 + side.bit[own])
    pulses, place = np.unique(found // 2, return_inverse=True)
    shares = np.zeros((len(pulses), 2))
    shares[place, found % 2] = 1.0
    return pulses, shares / np.maximum(shares.sum(axis=1, keepdims=True), 1.0)


def coincidence_window_ps(setup: OpticalSetup) -> float:
    """Return six standard deviations of the difference of two detections of a pair, at least four ticks."""
    ticks_fs = (setup.tagger.tick_fs, (setup.sender_tagger or Tagger()).tick_fs)
    return max(2 * COINCIDENCE_SIGMAS * coincidence_sigma_ps(setup), 4 * max(ticks_fs) / 1000)


def coincidence_sigma_ps(setup: OpticalSetup) -> float:
    """Return the standard deviation of the difference of two detections of a pair."""
    taggers = (setup.tagger, setup.sender_tagger or Tagger())
    receivers = (setup.receiver, setup.sender_receiver or setup.receiver)
    variance = setup.source.pair_width_ps**2 + 2 * sigma_of_fwhm(setup.source.pulse_fwhm_ps) ** 2
    for receiver, tagger in zip(receivers, taggers, strict=True):
        variance += max(d.jitter_ps**2 + (d.jitter_tail_weight * d.jitter_tail_ps) ** 2 for d in receiver.detectors)
        variance += tagger.noise_ps**2 + (tagger.tick_fs / 1000) ** 2 / 12
    return math.sqrt(variance)

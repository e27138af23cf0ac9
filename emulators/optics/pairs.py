"""Light of a source of entangled pairs: which photons reach which detectors of the two ends, and when.

A steady pump ("pair-cw") makes pairs at random times, a pulsed one ("pair-pulsed") any number of them in each pulse;
see `pair_tables` for what is kept and what is left out. Only pairs or pulses that some detector sees are drawn: the
cost follows detections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.link_tables import FWHM_PER_SIGMA
from qkdhw_emulators.optics.pair_tables import Flags, Floats, Outcomes, build_places, pulse_outcomes, steady_outcomes
from qkdhw_emulators.optics.setup import PROBABILITY_STEPS, PS_PER_S, OpticalSetup

Integers = NDArray[np.int64]

LIGHT_PURPOSE = 3
BASIS_PURPOSES = (0, 1)  # Alice, Bob
CELL_DETECTIONS = 16_384
MIN_CELL_PS = PS_PER_S // 100_000
MAX_CELL_PS = PS_PER_S // 100

_GUIDE_STEPS = 1024
_NO_PLACE = 255
_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, slots=True)
class SideArrivals:
    """Light at the detectors of one end in a cell.

    Attributes:
        time_ps: float64 (n,), since the begin of the cell, rising; jitter may put it a little outside of the cell.
        detector: uint8 (n,).
        pair: int64 (n,), truth: number of the pulse in the cell; for a steady pump, of the pair among those of the cell
            that any detector sees.
    """

    time_ps: Floats
    detector: NDArray[np.uint8]
    pair: Integers


@dataclass(frozen=True, slots=True)
class PairArrivals:
    """Light of a cell at both ends."""

    alice: SideArrivals
    bob: SideArrivals


class PairLight:
    """Light of a source of pairs, cell by cell; each cell is made from the seed, the run and its number alone.

    Args:
        setup: The link.
        rotation: float64 (3, 3), what the channel does to the Bloch vector of Bob's photon: a rotation, or what shrinks
            it; None: nothing.
        length_ps: Length of a cell, for pulses a whole number of periods. None: `cell_ps` of the setup; under an attack
            give the one of the setup without.

    Attributes:
        length_ps: Length of a cell.

    Raises:
        ConfigurationError: The source makes no pairs, or an end does not suit it.
    """

    def __init__(self, setup: OpticalSetup, rotation: Floats | None = None, *, length_ps: int | None = None) -> None:
        self.length_ps = length_ps or cell_ps(setup)
        self._source = setup.source
        self._places = build_places(setup, rotation)
        self._steady = setup.source.kind == "pair-cw"
        if self._steady:
            outcomes = steady_outcomes(*self._places)
        else:
            outcomes = pulse_outcomes(*self._places, setup.source.mean_pairs)
        self._table = _DrawTable(outcomes)
        self._sigma_ps = _sigma_ps(setup)
        self._basis_thresholds = _basis_thresholds(setup, [len(end.weight) for end in self._places])

    def arrivals(self, seed: int, run: int, cell: int) -> PairArrivals:
        """Make a cell's light.

        Args:
            seed: Seed of everything random, 0 or more.
            run: Number of the run.
            cell: Number of the cell.
        """
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(run, LIGHT_PURPOSE, cell))))
        if self._steady:
            emitted_ps, outcome = self._steady_pump(rng)
            origin = np.arange(len(outcome))
        else:
            origin, outcome = self._pulsed_pump(rng, seed, run, cell)
            emitted_ps = (origin * self._source.period_ps).astype(np.float64)
        return PairArrivals(
            self._side(0, rng, origin, emitted_ps, outcome), self._side(1, rng, origin, emitted_ps, outcome)
        )

    def bases(self, side: int, seed: int, run: int, pulses: Integers) -> NDArray[np.uint8]:
        """Return the bases in which an end with an active choice measures pulses; 0 for a passive one.

        Args:
            side: 0 for Alice, 1 for Bob.
            seed: Seed of everything random.
            run: Number of the run.
            pulses: int64 (n,), numbers of pulses since the begin of the run.
        """
        key = np.random.SeedSequence(seed, spawn_key=(run, BASIS_PURPOSES[side])).generate_state(1, np.uint64)
        word = key + (pulses.astype(np.uint64) + np.uint64(1)) * _GOLDEN  # SplitMix64 at any place of its stream
        word = (word ^ (word >> np.uint64(30))) * _MIX_1
        word = (word ^ (word >> np.uint64(27))) * _MIX_2
        drawn = np.asarray(word >> np.uint64(48), np.int64)
        return np.searchsorted(self._basis_thresholds[side], drawn, side="right").astype(np.uint8)

    def _steady_pump(self, rng: np.random.Generator) -> tuple[Floats, Integers]:
        """Draw the pairs that are seen: time of emission, outcome."""
        n = int(rng.poisson(self._source.pair_rate_hz * self._table.seen * self.length_ps / PS_PER_S))
        emitted_ps = np.cumsum(rng.standard_exponential(n + 1))
        emitted_ps *= self.length_ps / emitted_ps[-1]
        return emitted_ps[:-1], self._table.draw(rng, np.zeros(n))

    def _pulsed_pump(self, rng: np.random.Generator, seed: int, run: int, cell: int) -> tuple[Integers, Integers]:
        """Draw the pulses that are seen, or would be with the best bases: number in the cell, outcome."""
        n_pulses = self.length_ps // self._source.period_ps
        pulses = _successes(rng, self._table.seen, n_pulses)
        way = np.zeros(len(pulses))
        for side, thresholds in enumerate(self._basis_thresholds):
            if len(thresholds):
                way *= len(thresholds) + 1
                way += self.bases(side, seed, run, pulses + cell * n_pulses)
        return pulses, self._table.draw(rng, way)

    def _side(
        self, side: int, rng: np.random.Generator, origin: Integers, emitted_ps: Floats, outcome: Integers
    ) -> SideArrivals:
        """Say where and when outcomes are detected at one end."""
        places = self._places[side]
        index, place = self._table.places(side, outcome)
        time_ps = emitted_ps[index] + places.offset_ps[place]
        if self._sigma_ps[side]:
            time_ps += rng.standard_normal(len(time_ps)) * self._sigma_ps[side]
        order = np.argsort(time_ps, kind="stable")  # fast: nearly in order already
        return SideArrivals(time_ps[order], places.detector[place[order]], origin[index[order]])


def cell_ps(setup: OpticalSetup) -> int:
    """Return how long a cell suits a source of pairs: about 16,384 detections, at least 10 us and at most 10 ms.

    For pulses it is a power of two of them, the largest within that.

    Raises:
        ConfigurationError: The source makes no pairs, or an end does not suit it.
    """
    source = setup.source
    places = build_places(setup)
    steady = source.kind == "pair-cw"
    pair_rate_hz = source.pair_rate_hz if steady else 2 * source.mean_pairs * source.pulse_rate_hz
    rate_hz = sum(pair_rate_hz * float(end.weight.sum(axis=1).max()) / 2 for end in places)
    for receiver in (setup.sender_receiver, setup.receiver):
        rate_hz += sum(d.dark_count_rate_hz for d in receiver.detectors) if receiver else 0.0
    length_ps = CELL_DETECTIONS * PS_PER_S / rate_hz if rate_hz else MAX_CELL_PS
    length_ps = min(max(length_ps, MIN_CELL_PS), MAX_CELL_PS)
    if steady:
        return round(length_ps)
    return source.period_ps << max(0, math.floor(math.log2(length_ps / source.period_ps)))


class _DrawTable:
    """Draws outcomes.

    Attributes:
        seen: Probability that anything is seen, with the best bases.
    """

    def __init__(self, outcomes: Outcomes) -> None:
        cumulative = np.minimum(np.cumsum(outcomes.probability, axis=1), 1.0)
        n_ways = len(cumulative)
        self.seen = float(cumulative.max(initial=0.0))
        # way w has its outcomes in w .. w + 1, and at the end that nothing is seen
        steps = np.ones((n_ways, cumulative.shape[1] + 1))
        if self.seen:
            steps[:, :-1] = cumulative / self.seen
        self._steps = (steps + np.arange(n_ways)[:, None]).ravel()
        self._places = tuple(_lists(at, n_ways) for at in (outcomes.at_alice, outcomes.at_bob))
        edges = np.arange(n_ways * _GUIDE_STEPS + 1) / _GUIDE_STEPS
        self._guide = np.searchsorted(self._steps, edges[:-1], side="right")
        self._straddles = self._guide != np.searchsorted(self._steps, edges[1:], side="left")

    def draw(self, rng: np.random.Generator, way: Floats) -> Integers:
        """Draw an outcome for each way, 1 / `seen` times as often as it happens."""
        drawn = rng.random(len(way))
        drawn += way
        step = (drawn * _GUIDE_STEPS).astype(np.int64)
        outcome = self._guide[step]
        unsure = np.flatnonzero(self._straddles[step])
        outcome[unsure] = np.searchsorted(self._steps, drawn[unsure], side="right")
        return outcome

    def places(self, side: int, outcome: Integers) -> tuple[Integers, Integers]:
        """Return where outcomes are detected at one end: index of the outcome, place; in the order of the outcomes."""
        lists = self._places[side]
        places = lists[outcome].ravel()
        hit = np.flatnonzero(places != _NO_PLACE)
        return hit // lists.shape[1], places[hit].astype(np.int64)


def _lists(at: Flags, n_ways: int) -> NDArray[np.uint8]:
    """Turn flags of places to lists of them, with a list more for nothing seen, for each way."""
    rows = np.concatenate((at, np.zeros((1, at.shape[1]), bool)))
    longest = max(1, int(rows.sum(axis=1).max()))
    first = np.argsort(~rows, axis=1, kind="stable")[:, :longest]
    lists = np.where(np.take_along_axis(rows, first, axis=1), first, _NO_PLACE)
    return np.tile(lists.astype(np.uint8), (n_ways, 1))


def _sigma_ps(setup: OpticalSetup) -> tuple[float, float]:
    """Return the standard deviations of arrival times at Alice and Bob, relative to the pair or to the pulse."""
    source, channel = setup.source, setup.channel
    dispersion_ps = channel.dispersion_ps_per_nm_km * channel.length_km * source.spectral_width_nm
    spread_ps = math.hypot(dispersion_ps, channel.pmd_ps_per_sqrt_km * math.sqrt(channel.length_km) / 2)
    if source.kind == "pair-cw":  # emission is at any time: all of the pair's width may be Bob's
        return 0.0, math.hypot(source.pair_width_ps, spread_ps)
    pulse_ps = source.pulse_fwhm_ps / FWHM_PER_SIGMA
    return pulse_ps, math.hypot(pulse_ps, spread_ps)


def _basis_thresholds(setup: OpticalSetup, n_ways: list[int]) -> list[Integers]:
    """Return where each end's bases end in 65536ths, the last end left out: empty for a passive end."""
    made: list[Integers] = []
    for receiver, n in zip((setup.sender_receiver, setup.receiver), n_ways, strict=True):
        key = receiver.key_basis_probability if receiver else 1.0
        upper = [key + (1 - key) * k / max(1, n - 1) for k in range(n - 1)]
        made.append(np.rint(np.array(upper) * PROBABILITY_STEPS).astype(np.int64))
    return made


def _successes(rng: np.random.Generator, probability: float, n: int) -> Integers:
    """Return which of n independent trials succeed, int64, rising."""
    last, drawn = -1, [np.empty(0, np.int64)]
    while probability and last < n - 1:
        expected = (n - 1 - last) * probability
        gaps = np.minimum(rng.geometric(probability, math.ceil(expected + 4 * math.sqrt(expected) + 4)), n + 1)
        drawn.append(last + np.cumsum(gaps))
        last = int(drawn[-1][-1])
    found = np.concatenate(drawn)
    return found[: np.searchsorted(found, n)]

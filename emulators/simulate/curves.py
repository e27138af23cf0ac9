"""The points of plots with their error bars, one standard deviation to each side, as long as there is data for them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qkdhw_emulators.simulate.observation import LAG_PULSES, Counts, Floats, PulseCounts, Timeline

FEWEST_PAIRS = 5  # by chance, for a correlation to say anything
FEWEST_SIFTED = 400  # in a slice of time, on average: 1 % of error rate
QBER_POINTS = 64
LARGEST_MISPLACEMENT = 0.1  # of an edge between two pulses, in widths of the bin


class Curve(NamedTuple):
    """Points and their bars, float64 (n,) each.

    Attributes:
        x: Where they are.
        y: What they are.
        low: Lower ends of the bars.
        high: Upper ends.
    """

    x: Floats
    y: Floats
    low: Floats
    high: Floats

    @property
    def bars(self) -> Floats:
        """Lengths of the bars below and above, (2, n)."""
        return np.maximum(np.stack((self.y - self.low, self.high - self.y)), 0.0)


def wilson(some: Floats, of: Floats) -> tuple[Floats, Floats]:
    """Return the ends of the 68 % score interval of Wilson of a share: never of no length, never beyond 0 and 1.

    Args:
        some: How many are of a kind.
        of: How many there are, above 0.
    """
    share = some / of
    middle = (share + 0.5 / of) / (1 + 1 / of)
    half = np.sqrt(share * (1 - share) / of + 0.25 / of**2) / (1 + 1 / of)
    return middle - half, middle + half


def poisson(counted: Floats) -> tuple[Floats, Floats]:
    """Return the ends of the 68 % interval of a mean of which so many were counted, approximated (Gehrels 1986)."""
    low = np.where(counted > 0, counted - np.sqrt(np.maximum(counted - 0.25, 0)), 0.0)
    return low, counted + 1 + np.sqrt(counted + 0.75)


def detector_correlation(prepared: PulseCounts, pulses: int) -> Curve:
    """Return g2 of clicks of different detectors against their distance in pulses; without points if there are few.

    Args:
        prepared: What was counted; both the pairs and those by chance are of clicks that belong to a pulse.
        pulses: Pulses sent.
    """
    rates = prepared.matched / max(pulses, 1)
    unlike = (rates.sum() ** 2 - (rates**2).sum()) * pulses
    by_chance = unlike * np.r_[0.5, np.ones(LAG_PULSES)]  # a lag of 0 has each pair once
    some = by_chance >= FEWEST_PAIRS
    counted, by_chance = prepared.lags[some].astype(np.float64), by_chance[some]
    low, high = poisson(counted)
    return Curve(np.flatnonzero(some).astype(np.float64), counted / by_chance, low / by_chance, high / by_chance)


def delay_correlation(delays: Floats, level: float, half: float) -> Curve:
    """Return g2 of two ends against the delay; without points if there are few.

    Args:
        delays: Pairs of clicks in equal bins of delay.
        level: How many there are by chance in a bin.
        half: The bins go from minus this to this, in ns or pulses.
    """
    if level * len(delays) < FEWEST_PAIRS:
        delays = delays[:0]
    edges = np.linspace(-half, half, len(delays) + 1)
    low, high = poisson(delays)
    return Curve((edges[1:] + edges[:-1]) / 2, delays / level, low / level, high / level)


def interval_density(edges_ps: Floats, counted: Counts, period_ps: int) -> tuple[Floats, Floats]:
    """Return intervals per ps where there are any: centres of the bins in ps, and densities.

    Args:
        edges_ps: Of the bins, float64 (n + 1,), rising.
        counted: int64 (n,), intervals in them.
        period_ps: Of the pulses, between which intervals are whole periods: bins are joined until their edges lie
            between two pulses, nearly enough for their width, and they are as wide as they have pulses. 0: steady.
    """
    width_ps = np.diff(edges_ps)
    if period_ps:
        kept = [0]
        for place, edge_ps in enumerate(edges_ps[1:], 1):
            off_ps = abs(edge_ps % period_ps - period_ps / 2)
            if edge_ps < period_ps / 2 or off_ps <= LARGEST_MISPLACEMENT * (edge_ps - edges_ps[kept[-1]]):
                kept.append(place)
        counted = np.add.reduceat(counted, kept[:-1])  # what is beyond the last edge kept is in the last bin
        edges_ps = edges_ps[kept]
        pulses = np.diff(np.ceil(edges_ps / period_ps))
        width_ps = np.where(pulses > 0, pulses * period_ps, np.diff(edges_ps))
    some = counted > 0
    return np.sqrt(edges_ps[1:] * edges_ps[:-1])[some], counted[some] / width_ps[some]


def qber_over_time(timeline: Timeline, first: int, *, weight: float, cell_s: float) -> Curve:
    """Return the error rate in slices of time that are long enough for it; slices without detections have no point.

    Args:
        timeline: Sums over time: detections, and errors behind them.
        first: Which of the sums are the detections.
        weight: What one error is in the sums.
        cell_s: Length of a cell.
    """
    sifted, errors = timeline.sums[:, first], timeline.sums[:, first + 1] / weight
    n = len(sifted)
    enough = int(np.ceil(n * FEWEST_SIFTED / max(sifted.sum(), 1.0)))
    joined = max(1, min(n, max(enough, -(-n // QBER_POINTS))))
    begins = np.arange(0, n, joined)
    middle_s = (begins + np.minimum(begins + joined, n)) / 2 * timeline.cells * cell_s
    sifted, errors = (np.add.reduceat(sums, begins) if n else sums for sums in (sifted, errors))
    some = sifted > 0
    low, high = wilson(errors[some], sifted[some])
    return Curve(middle_s[some], errors[some] / sifted[some], low, high)

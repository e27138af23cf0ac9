"""Streams of two sites that share photon pairs, as the alignment and the tracking of clocks meet them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

TICK_PS = Fraction(125)


@dataclass(frozen=True)
class PairStreams:
    """What two sites see; the time of B is offset_s + t (1 + rate) at the time t of A."""

    a_ticks: np.ndarray
    b_ticks: np.ndarray
    offset_s: float
    rate: float
    a_tick_ps: Fraction
    b_tick_ps: Fraction

    def error_ticks(self, clock):
        """Ticks of B by which a clock is wrong at its own reference."""
        a_s = clock.ref_a_ticks * float(self.a_tick_ps) * 1e-12
        true_ticks = (self.offset_s + a_s * (1 + self.rate)) / (float(self.b_tick_ps) * 1e-12)
        return float(clock.map_ticks(clock.ref_a_ticks)) - true_ticks


def pair_streams(
    seed, *, singles=(5e4, 5e4), pairs=1e3, span_s=2.0, offset_s=0.0, rate=0.0, jitter_s=300e-12, pulse_s=0.0,
    a_tick_ps=TICK_PS, b_tick_ps=TICK_PS,
):  # fmt: skip
    """Poissonian singles and pairs a second (singles include pairs) at both sites, each with Gaussian jitter.

    If `pulse_s` is given, all light comes in pulses so far apart.
    """
    rng = np.random.default_rng(seed)
    together = rng.uniform(0, span_s, rng.poisson(pairs * span_s))
    ticks = []
    for per_s in singles:
        alone = rng.uniform(0, span_s, rng.poisson(max(0.0, per_s - pairs) * span_s))
        t = np.concatenate([alone, together])
        if pulse_s:
            t = np.floor(t / pulse_s) * pulse_s
        ticks.append(t + rng.normal(0, jitter_s, len(t)))
    a_s, b_s = ticks[0], offset_s + ticks[1] * (1 + rate)
    return PairStreams(
        *(np.sort(np.floor(t / (float(tick) * 1e-12)).astype(np.int64)) for t, tick in ((a_s, a_tick_ps), (b_s, b_tick_ps))),
        offset_s, rate, a_tick_ps, b_tick_ps,
    )  # fmt: skip

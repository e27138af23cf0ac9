"""Photon numbers of a phase-randomised coherent pulse."""

from __future__ import annotations

import math

from qkdhw.model import DecoyCounts
from qkdhw.protocols.concentration import hoeffding_deviation


def photon_number_probability(counts: DecoyCounts, photons: int) -> float:
    """Probability that a pulse of unknown intensity holds this many photons, sum_k p_k e^(-mu_k) mu_k^n / n!.

    Args:
        counts: Gives the intensities and their probabilities.
        photons: Photon number n, >= 0.
    """
    return math.fsum(
        p * math.exp(-mu) * mu**photons / math.factorial(photons)
        for mu, p in zip(counts.mean_photon_number, counts.intensity_probability, strict=True)
    )


def source_weights(counts: DecoyCounts) -> tuple[float, ...]:
    """Return e^(mu_k) / p_k per intensity: it turns a count into the power series that decoy formulas combine."""
    return tuple(
        math.exp(mu) / p for mu, p in zip(counts.mean_photon_number, counts.intensity_probability, strict=True)
    )


def weighted_hoeffding_bounds(
    counts: DecoyCounts, line: tuple[int, ...], eps: float, *, clip: bool = False
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Bound the weighted mean counts of a basis by Hoeffding's inequality, as lower and upper bounds per intensity.

    Args:
        counts: Gives the source.
        line: Detections or errors of one basis per intensity.
        eps: Failure probability of each bound.
        clip: Floor the lower bounds at 0.

    Source: Lim et al., Phys. Rev. A 89, 022307 (2014), before equation (2). The deviation is that of the basis total,
    the same for every intensity.
    """
    deviation = hoeffding_deviation(sum(line), eps)
    weights = source_weights(counts)
    floor = 0.0 if clip else -math.inf
    lower = tuple(w * max(floor, n - deviation) for w, n in zip(weights, line, strict=True))
    return lower, tuple(w * (n + deviation) for w, n in zip(weights, line, strict=True))

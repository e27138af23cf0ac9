"""Checks on a block's counts, before any proof works on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from qkdhw.errors import ConfigurationError
from qkdhw.model import DecoyCounts

# Outside these the formulas divide by what rounding has left.
MAX_MEAN_PHOTON_NUMBER = 100.0
MIN_DIFFERENCE = 1e-9


def check_epsilons(eps_sec: float, eps_cor: float) -> None:
    """Raise ConfigurationError unless both security parameters are at least 1e-100 and below 1."""
    for name, value in (("eps_sec", eps_sec), ("eps_cor", eps_cor)):
        if not 1e-100 <= value < 1.0:
            raise ConfigurationError(
                f"{name} is {value}", remedy=f"Choose {name} above 0 and below 1, such as 1e-9 (eps_cor 1e-15)."
            )


def check_decoy_counts(counts: DecoyCounts, *, intensities: int, proof: str) -> None:
    """Check that counts are possible and that they have the intensities that a proof is made for.

    Args:
        counts: The block's statistics.
        intensities: Number of intensities that the proof needs.
        proof: Name of the proof, for the message.

    Raises:
        ConfigurationError: Wrong number of intensities, intensities not falling, probabilities that do not sum to 1,
            negative counts, or more errors than detections.
    """
    if len(counts.mean_photon_number) != intensities:
        raise ConfigurationError(
            f"proof {proof} needs counts for {intensities} intensities, not {len(counts.mean_photon_number)}",
            remedy={
                1: "Use a decoy-state proof (rigorous) for weak coherent pulses with several intensities.",
                2: "Use proof rigorous for three intensities; rusca2018 is made for two.",
                3: "Run the transmitter with three intensities; two are covered by rusca2018, for comparison only.",
            }[intensities],
        )
    _check_intensities(counts)
    lines = {"n_key": counts.n_key, "n_test": counts.n_test, "m_test": counts.m_test}
    if counts.m_key is not None:
        lines["m_key"] = counts.m_key
    for name, line in lines.items():
        if len(line) != intensities or any(value < 0 for value in line):
            raise _impossible(f"{name} must hold {intensities} counts that are not negative")
    for errors, detections in (("m_test", "n_test"), ("m_key", "n_key")):
        if errors in lines and any(m > n for m, n in zip(lines[errors], lines[detections], strict=True)):
            raise _impossible(f"{errors} counts more errors than {detections} counts detections")
    if not (math.isfinite(counts.leak_bits) and counts.leak_bits >= 0.0):
        raise _impossible(f"leak_bits is {counts.leak_bits}")


def _check_intensities(counts: DecoyCounts) -> None:
    mu: Sequence[float] = counts.mean_photon_number
    p: Sequence[float] = counts.intensity_probability
    if not all(0.0 <= value <= MAX_MEAN_PHOTON_NUMBER for value in mu):
        raise _impossible(f"mean_photon_number must be 0 to {MAX_MEAN_PHOTON_NUMBER:g}")
    if any(brighter - darker < MIN_DIFFERENCE for brighter, darker in pairwise(mu)):
        raise _impossible(
            f"mean_photon_number must fall from each intensity to the next, by {MIN_DIFFERENCE:g} or more"
        )
    if len(mu) == 3 and mu[0] - mu[1] - mu[2] < MIN_DIFFERENCE:
        raise ConfigurationError(
            f"two-decoy bounds need mu_1 > mu_2 + mu_3 by {MIN_DIFFERENCE:g}; here they are {mu[0]}, {mu[1]}, {mu[2]}",
            remedy="Lower the decoy intensities of the transmitter.",
        )
    if len(p) != len(mu) or not all(0.0 < value <= 1.0 for value in p) or abs(math.fsum(p) - 1.0) > 1e-6:
        raise _impossible("intensity_probability must hold one probability an intensity and sum to 1")


def _impossible(message: str) -> ConfigurationError:
    return ConfigurationError(message, remedy="Correct the counts; see docs/reference/counts-file.md.")

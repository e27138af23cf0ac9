"""Two-decoy BB84 as printed by Lim et al.: for comparison, not for released key.

The sampling term gamma is an approximation, and the statistics are treated as if the length were fixed beforehand;
see docs/explanation/finite-key.md. The default for released key is `qkdhw.protocols.rigorous`.
"""

from __future__ import annotations

import math

from qkdhw.model import DecoyCounts, KeyLength
from qkdhw.protocols.block_statistics import check_decoy_counts, check_epsilons
from qkdhw.protocols.concentration import fung_ma_chau_deviation
from qkdhw.protocols.poisson_source import photon_number_probability, weighted_hoeffding_bounds
from qkdhw.protocols.two_decoy import (
    single_photon_error_upper_bound,
    single_photon_lower_bound,
    vacuum_lower_bound,
)
from qkdhw.quantities import binary_entropy_of_bound

TERMS = 21
ASSUMPTIONS = (
    "phase-randomised weak coherent pulses of known intensities",
    "intensity chosen independently of basis and bit",
    "detection probability independent of the basis",
    "printed formula: its sampling term is an approximation, and its length is not proven for variable-length use",
)


def key_length(counts: DecoyCounts, *, eps_sec: float, eps_cor: float, clip: bool = False) -> KeyLength:
    """Compute equation (1) of the paper from a block's counts.

    Args:
        counts: Three intensities, mu_1 > mu_2 + mu_3. The paper's X is the key basis, its Z the test basis.
        eps_sec: Secrecy parameter, 0..1.
        eps_cor: Correctness parameter, 0..1.
        clip: Floor lower count bounds at 0. Sound, since expected counts are not negative, but not as printed.

    Returns:
        Length with the paper's intermediate bounds; `rigorous` is False.

    Raises:
        ConfigurationError: Impossible counts or not three intensities.

    Source: Lim, Curty, Walenta, Xu, Zbinden, Phys. Rev. A 89, 022307 (2014), equations (1) to (5).
    """
    check_epsilons(eps_sec, eps_cor)
    check_decoy_counts(counts, intensities=3, proof="lim2014")
    eps = eps_sec / TERMS
    tau_1 = photon_number_probability(counts, 1)
    s_key_0, s_key_1 = _photon_counts(counts, counts.n_key, eps, clip=clip)
    _, s_test_1 = _photon_counts(counts, counts.n_test, eps, clip=clip)
    m_lower, m_upper = weighted_hoeffding_bounds(counts, counts.m_test, eps, clip=clip)
    v_test_1 = single_photon_error_upper_bound(
        counts.mean_photon_number, tau_1, middle_upper=m_upper[1], dark_lower=m_lower[2]
    )
    bounds = {"s_key_0": s_key_0, "s_key_1": s_key_1, "s_test_1": s_test_1, "v_test_1": v_test_1}
    bounds["leak_bits"] = counts.leak_bits
    length_bits, reason = 0, ""
    if s_key_1 <= 0.0 or s_test_1 <= 0.0:
        reason = "no single-photon detections are certain in one of the bases"
    else:
        rate = v_test_1 / s_test_1
        phase_error_rate = rate + fung_ma_chau_deviation(min(rate, 1.0), s_test_1, s_key_1, eps_sec, TERMS)
        bounds["phase_error_rate"] = phase_error_rate
        exact = (
            s_key_0
            + s_key_1 * (1.0 - binary_entropy_of_bound(phase_error_rate))
            - counts.leak_bits
            - 6.0 * math.log2(TERMS / eps_sec)
            - math.log2(2.0 / eps_cor)
        )
        length_bits = max(0, math.floor(exact))
        if length_bits == 0:
            reason = "leakage and phase errors leave no secret bits"
    return KeyLength(length_bits, "lim2014", False, eps_sec, eps_cor, bounds, reason, ASSUMPTIONS)


def _photon_counts(counts: DecoyCounts, detections: tuple[int, ...], eps: float, *, clip: bool) -> tuple[float, float]:
    """Return the bounds on zero- and one-photon detections of one basis, equations (2) and (3)."""
    mu = counts.mean_photon_number
    tau_0, tau_1 = photon_number_probability(counts, 0), photon_number_probability(counts, 1)
    lower, upper = weighted_hoeffding_bounds(counts, detections, eps, clip=clip)
    s_0 = vacuum_lower_bound(mu, tau_0, dark_lower=lower[2], middle_upper=upper[1])
    s_1 = single_photon_lower_bound(
        mu,
        tau_1,
        middle_lower=lower[1],
        dark_upper=upper[2],
        bright_upper=upper[0],
        vacuum_series=s_0 / tau_0,
    )
    return s_0, max(0.0, s_1)

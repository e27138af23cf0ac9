"""One-decoy BB84 as printed by Rusca et al.: for comparison, not for released key.

The formula needs the bit errors of the key basis, which are known only after error correction. Its sampling term is
the same approximation as in `qkdhw.protocols.lim2014`.
"""

from __future__ import annotations

import math

from qkdhw.errors import ConfigurationError
from qkdhw.model import DecoyCounts, KeyLength
from qkdhw.protocols.block_statistics import check_decoy_counts, check_epsilons
from qkdhw.protocols.concentration import fung_ma_chau_deviation, hoeffding_deviation
from qkdhw.protocols.poisson_source import photon_number_probability, weighted_hoeffding_bounds
from qkdhw.quantities import binary_entropy_of_bound

TERMS = 19
ASSUMPTIONS = (
    "phase-randomised weak coherent pulses of known intensities",
    "intensity chosen independently of basis and bit",
    "detection probability independent of the basis",
    "printed formula: its sampling term is an approximation, and its length is not proven for variable-length use",
)


def key_length(counts: DecoyCounts, *, eps_sec: float, eps_cor: float) -> KeyLength:
    """Compute equation (A25) of the paper from a block's counts.

    Args:
        counts: Two intensities, with `m_key`. The paper's Z is the key basis, its X the test basis.
        eps_sec: Secrecy parameter, 0..1.
        eps_cor: Correctness parameter, 0..1.

    Returns:
        Length with the paper's intermediate bounds; `rigorous` is False.

    Raises:
        ConfigurationError: Impossible counts, not two intensities, or no key-basis errors.

    Source: Rusca, Boaron, Gruenenfelder, Martin, Zbinden, Appl. Phys. Lett. 112, 171104 (2018), appendix A. Equation
    (A18) prints no e^(mu_k)/p_k, which its derivation has; (A21) prints 21 where its own sum of terms gives 19.
    """
    check_epsilons(eps_sec, eps_cor)
    check_decoy_counts(counts, intensities=2, proof="rusca2018")
    if counts.m_key is None:
        raise ConfigurationError(
            "proof rusca2018 needs the bit errors of the key basis (m_key)",
            remedy="Give m_key; it is known once error correction is done.",
        )
    eps = eps_sec / TERMS
    mu_1, mu_2 = counts.mean_photon_number
    tau_1 = photon_number_probability(counts, 1)
    s_key_0, s_key_0_upper, s_key_1 = _photon_counts(counts, counts.n_key, counts.m_key, eps)
    _, _, s_test_1 = _photon_counts(counts, counts.n_test, counts.m_test, eps)
    m_lower, m_upper = weighted_hoeffding_bounds(counts, counts.m_test, eps)
    v_test_1 = max(0.0, tau_1 * (m_upper[0] - m_lower[1]) / (mu_1 - mu_2))
    bounds = {"s_key_0": s_key_0, "s_key_0_upper": s_key_0_upper, "s_key_1": s_key_1}
    bounds |= {"s_test_1": s_test_1, "v_test_1": v_test_1, "leak_bits": counts.leak_bits}
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
    return KeyLength(length_bits, "rusca2018", False, eps_sec, eps_cor, bounds, reason, ASSUMPTIONS)


def _photon_counts(
    counts: DecoyCounts, detections: tuple[int, ...], errors: tuple[int, ...], eps: float
) -> tuple[float, float, float]:
    """Return s_0 from below, s_0 from above and s_1 from below of one basis, equations (A19), (A16), (A17)."""
    mu_1, mu_2 = counts.mean_photon_number
    tau_0, tau_1 = photon_number_probability(counts, 0), photon_number_probability(counts, 1)
    lower, upper = weighted_hoeffding_bounds(counts, detections, eps)
    _, errors_upper = weighted_hoeffding_bounds(counts, errors, eps)
    deviation = hoeffding_deviation(sum(detections), eps)
    s_0_upper = min(2.0 * (tau_0 * error + deviation) for error in errors_upper)
    s_0 = max(0.0, tau_0 * (mu_1 * lower[1] - mu_2 * upper[0]) / (mu_1 - mu_2))
    series = lower[1] - (mu_2 / mu_1) ** 2 * upper[0] - (mu_1**2 - mu_2**2) / mu_1**2 * s_0_upper / tau_0
    s_1 = tau_1 * mu_1 / (mu_2 * (mu_1 - mu_2)) * series
    return s_0, s_0_upper, max(0.0, s_1)

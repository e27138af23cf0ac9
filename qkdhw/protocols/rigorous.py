"""Rigorous finite-key length of two-decoy BB84: the default for released key.

What is claimed. Let the two sites agree on a key of the length that `key_length` gives for the counts of the block.
Then the protocol is eps_cor-correct and eps_sec-secret against coherent attacks, within the ASSUMPTIONS. The length
may be chosen after the counts are seen (variable-length security).

How. Write s_K and s_T for the single-photon detections with both sites in the key and in the test basis, v_T for the
bit errors among the latter, and e_ph for the error rate that the s_K rounds would have shown in the test basis. If

    P[ s_K < B_1  or  e_ph > B_e ] <= eps_AT^2

for functions B_1, B_e of the announced counts, then entropic uncertainty and leftover hashing make

    ell = floor( B_1 (1 - h(B_e)) - leak - 2 log2(1/(2 eps_PA)) - log2(2/eps_cor) )

(2 eps_AT + eps_PA)-secret. Here eps_AT = eps_PA = eps_sec/3.

The bounds. All hold at once except with probability eps_AT^2, which is split evenly over NUMBER_OF_BOUNDS events:

1. Given each round's photon number, intensities are independent of everything that an eavesdropper or a detector does.
   So a count of intensity k among the n_B detections of basis B is a sum of n_B independent 0/1 variables, with mean
   sum_n p(k|n) s_(B,n). Chernoff and Hoeffding's relative-entropy tail bounds that mean from the count. The same holds
   for errors. These are statements on the actual numbers s_(B,n), not on averages over runs.
2. The two-decoy formulas turn bounds on the three means into bounds on s_(B,0), s_(B,1) and v_(T,1). They use, in each
   basis, the middle and dark intensities from both sides and the brightest from above (5 bounds, twice), and for errors
   the middle from above and the dark from below (2).
3. A single photon's state is the same in both bases, and detection does not depend on the basis. So the test rounds
   are a random sample, without replacement, of all single-photon rounds: 1 bound, derived and shown to be monotone in
   the unknowns in `qkdhw.protocols.concentration.unsampled_rate_upper_bound`.

Zero-photon detections of the key basis are secret too; they are given away, which costs little and is safe.

Sources: Tupkary, Nahar, Sinha, Luetkenhaus, arXiv:2408.17349 (variable-length theorem); Lim, Curty, Walenta, Xu,
Zbinden, Phys. Rev. A 89, 022307 (2014) (decoy formulas); Tomamichel, Lim, Gisin, Renner, Nat. Commun. 3, 634 (2012)
(entropic uncertainty); Hoeffding, J. Am. Stat. Assoc. 58, 13 (1963) (tails, sampling). See
docs/explanation/finite-key.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qkdhw.model import DecoyCounts, KeyLength
from qkdhw.protocols.block_statistics import check_decoy_counts, check_epsilons
from qkdhw.protocols.concentration import mean_lower_bound, mean_upper_bound, unsampled_rate_upper_bound
from qkdhw.protocols.poisson_source import photon_number_probability, source_weights
from qkdhw.protocols.two_decoy import (
    single_photon_error_upper_bound,
    single_photon_lower_bound,
    vacuum_lower_bound,
)
from qkdhw.quantities import binary_entropy_of_bound

NUMBER_OF_BOUNDS = 13
ASSUMPTIONS = (
    "phase-randomised weak coherent pulses whose intensities and probabilities are known exactly",
    "intensity, basis and bit chosen at random, independently of each other and of the past",
    "the four single-photon states are those of BB84 (no encoding flaw, no side channel, no Trojan horse)",
    "detection probability independent of the basis, also for light that an attacker prepares",
    "double clicks within a basis get a random bit; no detection is dropped by its outcome",
    "leak_bits covers every bit that either site publishes and that depends on the key",
    "authenticated classical channel; privacy amplification with a fresh two-universal function",
)


@dataclass(frozen=True, slots=True)
class SinglePhotonBounds:
    """What the counts say about single-photon rounds.

    Attributes:
        s_key_0: Lower bound on zero-photon detections in the key basis (enters `s_key_1` only).
        s_key_1: Lower bound on single-photon detections in the key basis.
        s_test_0: As `s_key_0`, in the test basis.
        s_test_1: Lower bound on single-photon detections in the test basis.
        v_test_1: Upper bound on bit errors among the test basis' single-photon detections.
        phase_error_rate: Upper bound on the phase error rate of the key's single-photon rounds; 0.5 if unknown.
    """

    s_key_0: float
    s_key_1: float
    s_test_0: float
    s_test_1: float
    v_test_1: float
    phase_error_rate: float


def key_length(counts: DecoyCounts, *, eps_sec: float, eps_cor: float) -> KeyLength:
    """Compute how many secret bits a block holds.

    Args:
        counts: Three intensities, mu_1 > mu_2 + mu_3; `m_key` is not used.
        eps_sec: Secrecy parameter of this block, 0..1.
        eps_cor: Correctness parameter of this block, 0..1; verification must fail to notice with at most this.

    Returns:
        Length with intermediate bounds; 0 with a reason if the counts allow no key.

    Raises:
        ConfigurationError: Impossible counts, or not three intensities.

    Source: the module's docstring.
    """
    check_epsilons(eps_sec, eps_cor)
    check_decoy_counts(counts, intensities=3, proof="rigorous")
    eps_at = eps_pa = eps_sec / 3.0
    eps_per_bound = eps_at**2 / NUMBER_OF_BOUNDS
    found = single_photon_bounds(counts, eps_per_bound)
    overhead_bits = 2.0 * math.log2(1.0 / (2.0 * eps_pa)) + math.log2(2.0 / eps_cor)
    entropy_bits = found.s_key_1 * (1.0 - binary_entropy_of_bound(found.phase_error_rate))
    length_bits = max(0, math.floor(entropy_bits - counts.leak_bits - overhead_bits))
    bounds = {
        "s_key_0": found.s_key_0,
        "s_key_1": found.s_key_1,
        "s_test_0": found.s_test_0,
        "s_test_1": found.s_test_1,
        "v_test_1": found.v_test_1,
        "phase_error_rate": found.phase_error_rate,
        "entropy_bits": entropy_bits,
        "leak_bits": counts.leak_bits,
        "overhead_bits": overhead_bits,
        "eps_at": eps_at,
        "eps_pa": eps_pa,
        "number_of_bounds": float(NUMBER_OF_BOUNDS),
        "eps_per_bound": eps_per_bound,
    }
    reason = "" if length_bits else _reason(found, entropy_bits)
    return KeyLength(length_bits, "rigorous", True, eps_sec, eps_cor, bounds, reason, ASSUMPTIONS)


def single_photon_bounds(counts: DecoyCounts, eps_per_bound: float) -> SinglePhotonBounds:
    """Bound the single-photon rounds of a block; NUMBER_OF_BOUNDS events fail with at most `eps_per_bound` each.

    Args:
        counts: Three intensities, checked before.
        eps_per_bound: Failure probability of each one-sided bound, 0..1.

    Source: Lim et al., Phys. Rev. A 89, 022307 (2014), equations (2) to (4), on relative-entropy bounds.
    """
    mu = counts.mean_photon_number
    tau_1 = photon_number_probability(counts, 1)
    weights = source_weights(counts)
    s_key_0, s_key_1 = _photon_counts(counts, counts.n_key, eps_per_bound)
    s_test_0, s_test_1 = _photon_counts(counts, counts.n_test, eps_per_bound)
    errors = sum(counts.m_test)
    v_test_1 = single_photon_error_upper_bound(
        mu,
        tau_1,
        middle_upper=weights[1] * mean_upper_bound(counts.m_test[1], errors, eps_per_bound),
        dark_lower=weights[2] * mean_lower_bound(counts.m_test[2], errors, eps_per_bound),
    )
    v_test_1 = min(v_test_1, float(errors))
    phase_error_rate = 0.5
    if s_key_1 > 0.0 and s_test_1 > 0.0:
        phase_error_rate = unsampled_rate_upper_bound(v_test_1, s_test_1, s_key_1, eps_per_bound)
    return SinglePhotonBounds(s_key_0, s_key_1, s_test_0, s_test_1, v_test_1, phase_error_rate)


def _photon_counts(counts: DecoyCounts, detections: tuple[int, ...], eps: float) -> tuple[float, float]:
    """Return lower bounds on the zero- and one-photon detections of one basis, from five one-sided bounds."""
    mu = counts.mean_photon_number
    tau_0, tau_1 = photon_number_probability(counts, 0), photon_number_probability(counts, 1)
    weights = source_weights(counts)
    total = sum(detections)
    bright_upper = weights[0] * mean_upper_bound(detections[0], total, eps)
    middle_upper = weights[1] * mean_upper_bound(detections[1], total, eps)
    middle_lower = weights[1] * mean_lower_bound(detections[1], total, eps)
    dark_upper = weights[2] * mean_upper_bound(detections[2], total, eps)
    dark_lower = weights[2] * mean_lower_bound(detections[2], total, eps)
    s_0 = vacuum_lower_bound(mu, tau_0, dark_lower=dark_lower, middle_upper=middle_upper)
    s_1 = single_photon_lower_bound(
        mu,
        tau_1,
        middle_lower=middle_lower,
        dark_upper=dark_upper,
        bright_upper=bright_upper,
        vacuum_series=s_0 / tau_0,
    )
    return s_0, min(max(0.0, s_1), float(total))


def _reason(found: SinglePhotonBounds, entropy_bits: float) -> str:
    if found.s_key_1 <= 0.0:
        return "no single-photon detections are certain in the key basis"
    if found.s_test_1 <= 0.0:
        return "no single-photon detections are certain in the test basis"
    if found.phase_error_rate >= 0.5:
        return "the phase error rate is not certain to be below 1/2"
    return f"leakage and overhead use up the {entropy_bits:.0f} bits of entropy that are certain"

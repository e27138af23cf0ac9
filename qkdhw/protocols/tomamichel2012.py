"""Finite key of single-photon or entanglement-based BB84 by Tomamichel et al., as printed.

The theorem is for a fixed length: n, k, Q_tol and the leakage are chosen before the run, and the block is dropped when
the test error rate exceeds Q_tol. It says nothing about weak coherent pulses with decoys, nor about a length that is
chosen after looking at the data.
"""

from __future__ import annotations

import math

from qkdhw.errors import ConfigurationError
from qkdhw.model import DecoyCounts, KeyLength
from qkdhw.protocols.block_statistics import check_decoy_counts, check_epsilons
from qkdhw.quantities import binary_entropy_of_bound

ASSUMPTIONS = (
    "single photons or an entangled-photon source (every detection is a single-photon detection)",
    "detection probability independent of the basis",
    "n, k, q_tol and the leakage fixed before the run; the block is dropped above q_tol",
)


def tomamichel_length(
    n: int, k: int, q_tol: float, leak_bits: float, eps_sec: float, eps_cor: float, q: float = 1.0
) -> KeyLength:
    """Compute the length bound of the paper's theorem.

    Args:
        n: Key bits, > 0.
        k: Test bits, all announced, > 0.
        q_tol: Largest test error rate at which the block is kept, 0..1/2.
        leak_bits: Bits published for error correction, >= 0.
        eps_sec: Secrecy parameter, 0..1.
        eps_cor: Correctness parameter, 0..1.
        q: Preparation quality, 1 for ideal BB84 or BBM92, 0..1.

    Returns:
        Length with the sampling deviation; `rigorous` is False, because the theorem's fixed-length setting cannot be
        checked from counts.

    Raises:
        ConfigurationError: A parameter is out of range.

    Source: Tomamichel, Lim, Gisin, Renner, Nat. Commun. 3, 634 (2012), equation (2).
    """
    check_epsilons(eps_sec, eps_cor)
    if n <= 0 or k <= 0 or not 0.0 <= q_tol <= 0.5 or not 0.0 <= q <= 1.0 or not leak_bits >= 0.0:
        raise ConfigurationError(
            f"n={n}, k={k}, q_tol={q_tol}, q={q}, leak_bits={leak_bits} is out of range",
            remedy="Give n > 0, k > 0, q_tol in 0..0.5, q in 0..1 and leak_bits >= 0.",
        )
    deviation = math.sqrt((n + k) / (n * k) * (k + 1) / k * math.log(4.0 / eps_sec))
    phase_error_rate = q_tol + deviation
    exact = (
        n * (q - binary_entropy_of_bound(phase_error_rate))
        - leak_bits
        - math.log2(2.0 / eps_cor)
        - 2.0 * math.log2(1.0 / eps_sec)
    )
    bounds = {
        "sampling_deviation": deviation,
        "phase_error_rate": phase_error_rate,
        "leak_bits": leak_bits,
    }
    length_bits = max(0, math.floor(exact)) if math.isfinite(exact) else 0
    reason = "" if length_bits else "leakage and phase errors leave no secret bits"
    return KeyLength(length_bits, "tomamichel2012", False, eps_sec, eps_cor, bounds, reason, ASSUMPTIONS)


def key_length(
    counts: DecoyCounts, *, eps_sec: float, eps_cor: float, q_tol: float | None = None, q: float = 1.0
) -> KeyLength:
    """Apply the theorem to a block with a single intensity, whose detections are taken for single photons.

    Args:
        counts: One intensity: n and k are its key- and test-basis detections.
        eps_sec: Secrecy parameter, 0..1.
        eps_cor: Correctness parameter, 0..1.
        q_tol: Error rate at which blocks are dropped, chosen before the run.
        q: Preparation quality, 0..1.

    Raises:
        ConfigurationError: More than one intensity (weak coherent pulses with decoys), or no `q_tol`.

    Source: as `tomamichel_length`.
    """
    check_decoy_counts(counts, intensities=1, proof="tomamichel2012")
    if q_tol is None:
        raise ConfigurationError(
            "proof tomamichel2012 needs q_tol, the test error rate above which the block is dropped",
            remedy="Give q_tol as it was chosen before the run; the observed rate is not a substitute.",
        )
    answer = tomamichel_length(counts.n_key[0], counts.n_test[0], q_tol, counts.leak_bits, eps_sec, eps_cor, q)
    observed = counts.m_test[0] / counts.n_test[0]
    if observed <= q_tol:
        return answer
    reason = f"the test error rate {observed:.4f} exceeds q_tol {q_tol:.4f}"
    return KeyLength(0, answer.proof, answer.rigorous, eps_sec, eps_cor, answer.bounds, reason, ASSUMPTIONS)

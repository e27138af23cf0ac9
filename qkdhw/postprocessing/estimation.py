"""Is the error rate low enough to go on? The security proofs make their own, stricter bounds from the counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qkdhw.errors import QberTooHighError

CONFIDENCE_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class QberEstimate:
    """A QBER from compared bits.

    Attributes:
        qber: Fraction observed, 0 if nothing was compared.
        upper: Fraction that the true rate exceeds with probability at most eps.
    """

    qber: float
    upper: float


def _relative_entropy_nats(observed: float, assumed: float) -> float:
    total = 0.0
    if observed > 0:
        total += observed * math.log(observed / assumed)
    if observed < 1:
        total += (1 - observed) * math.log((1 - observed) / (1 - assumed))
    return total


def estimate_qber(errors: int, total: int, *, eps: float = CONFIDENCE_EPS) -> QberEstimate:
    """Estimate the error rate behind `errors` wrong bits of `total` compared.

    The upper bound p solves total * D(errors / total || p) = ln(1 / eps), D the binary relative entropy: for
    independent errors P(at most that many) <= exp(-total D), so a true rate above p shows so few errors with
    probability at most eps.

    Raises:
        ValueError: Not 0 <= errors <= total, or eps outside (0, 1).

    Source:
        W. Hoeffding, J. Am. Stat. Assoc. 58 (1963) 13, theorem 1.
    """
    if not 0 <= errors <= total or not 0 < eps < 1:
        raise ValueError("need 0 <= errors <= total and 0 < eps < 1")
    qber = errors / total if total else 0.0
    if errors == total:
        return QberEstimate(qber, 1.0)
    low, high = qber, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if middle >= 1.0 or total * _relative_entropy_nats(qber, middle) > -math.log(eps):
            high = middle
        else:
            low = middle
    return QberEstimate(qber, high)


def check_qber(errors: int, total: int, limit: float) -> QberEstimate:
    """Estimate the QBER and refuse to go on if it is, or may well be, above the limit.

    Args:
        errors: Wrong bits among those compared.
        total: Bits compared; with none the upper bound is 1.
        limit: Highest fraction allowed, for the upper confidence bound.

    Returns:
        The estimate.

    Raises:
        QberTooHighError: The upper bound (probability 1e-6 to be passed) is above the limit.

    Source:
        As estimate_qber.
    """
    estimate = estimate_qber(errors, total)
    if estimate.upper > limit:
        raise QberTooHighError(
            f"QBER {estimate.qber:.4f} of {total} compared bits, upper bound {estimate.upper:.4f}, "
            f"is above the limit {limit:.4f}",
            qber=estimate.qber,
            limit=limit,
            remedy="check alignment and detectors, and suspect an eavesdropper; larger blocks tighten the bound",
        )
    return estimate

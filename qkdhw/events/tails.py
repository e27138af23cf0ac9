"""Exact tails of the binomial and the Poisson law, limits from counts, and a bound on chi-square with an allowance.

Tails are logarithms, so that a probability of 1e-300 is one. They are summed term by term, outwards from the count: no
normal approximation, whatever the count.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_NEGLIGIBLE = 1e-13
_STEPS = 80  # halvings of an interval of probabilities or rates


def log_upper_binomial(k: int, n: int, p: float) -> float:
    """Return log P(K >= k) for n trials of probability p; 0 unless k is above the mean.

    Args:
        k: Count, 0 <= k <= n.
        n: Trials.
        p: Probability, 0 to 1.

    Returns:
        Natural logarithm of the tail.

    Raises:
        ValueError: An argument is out of range.
    """
    if not (0 <= k <= n and 0.0 <= p <= 1.0):
        raise ValueError(f"{k} of {n} at probability {p} is no binomial count")
    if k <= n * p:
        return 0.0
    if p == 0.0:
        return -math.inf
    log_choices = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    first = log_choices + k * math.log(p) + ((n - k) * math.log1p(-p) if k < n else 0.0)
    odds = p / (1.0 - p)
    return first + _log_sum(lambda j: (n - k - j) / (k + j + 1) * odds)


def log_lower_binomial(k: int, n: int, p: float) -> float:
    """Return log P(K <= k), as `log_upper_binomial`; 0 unless k is below the mean."""
    return log_upper_binomial(n - k, n, 1.0 - p)


def log_upper_poisson(k: int, mean: float) -> float:
    """Return log P(K >= k) of a Poisson law; 0 unless k is above the mean."""
    _check_poisson(k, mean)
    if k <= mean:
        return 0.0
    if mean == 0.0:
        return -math.inf
    return _log_poisson(k, mean) + _log_sum(lambda j: mean / (k + j + 1))


def log_lower_poisson(k: int, mean: float) -> float:
    """Return log P(K <= k) of a Poisson law; 0 unless k is below the mean."""
    _check_poisson(k, mean)
    if k >= mean:
        return 0.0
    return _log_poisson(k, mean) + _log_sum(lambda j: (k - j) / mean)


def binomial_limits(k: int, n: int, log_risk: float) -> tuple[float, float]:
    """Return the probabilities between which the true one lies, but for a risk on each side.

    Source:
        C. J. Clopper and E. S. Pearson, Biometrika 26, 404 (1934).
    """
    low = 0.0 if k == 0 else _crossing(lambda p: log_upper_binomial(k, n, p), 0.0, k / n, log_risk)
    high = 1.0 if k == n else _crossing(lambda p: log_lower_binomial(k, n, p), 1.0, k / n, log_risk)
    return low, high


def poisson_limits(k: int, log_risk: float) -> tuple[float, float]:
    """Return the means between which the true one lies, but for a risk on each side.

    Source:
        F. Garwood, Biometrika 28, 437 (1936).
    """
    beyond = k + 10.0 * (math.sqrt(-log_risk * (k + 1)) - log_risk)
    low = 0.0 if k == 0 else _crossing(lambda m: log_upper_poisson(k, m), 0.0, float(k), log_risk)
    return low, _crossing(lambda m: log_lower_poisson(k, m), beyond, float(k), log_risk)


def chi_square_limit(degrees: int, noncentrality: float, log_risk: float) -> float:
    """Return what a chi-square variable with this noncentrality or less exceeds at most with the given risk.

    Source:
        L. Birge, "An alternative point of view on Lepski's method", IMS Lecture Notes 36 (2001), lemma 8.1.
    """
    x = -log_risk
    return degrees + noncentrality + 2.0 * math.sqrt((degrees + 2.0 * noncentrality) * x) + 2.0 * x


def _check_poisson(k: int, mean: float) -> None:
    if not (k >= 0 and 0.0 <= mean < math.inf):
        raise ValueError(f"a count of {k} at a mean of {mean} is no Poisson count")


def _log_poisson(k: int, mean: float) -> float:
    return k * math.log(mean) - mean - math.lgamma(k + 1)


def _log_sum(ratio: Callable[[int], float]) -> float:
    """Return log(1 + r0 + r0 r1 + ...), whose ratios are below 1 and fall."""
    total = term = 1.0
    j = 0
    while term > total * _NEGLIGIBLE:
        term *= ratio(j)
        total += term
        j += 1
    return math.log(total)


def _crossing(log_tail: Callable[[float], float], outside: float, inside: float, log_risk: float) -> float:
    """Return the outer end of where a tail, which grows from `outside` to `inside`, passes the risk."""
    for _ in range(_STEPS):
        middle = (outside + inside) / 2.0
        if middle in {outside, inside}:
            break
        if log_tail(middle) < log_risk:
            outside = middle
        else:
            inside = middle
    return outside

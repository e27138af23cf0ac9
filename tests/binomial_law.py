"""The binomial law: how likely counts are, and how many events tell two probabilities apart."""

from __future__ import annotations

import math
from bisect import bisect_left
from statistics import NormalDist

FALSE_ALARM, POWER = 1e-9, 0.999
NORMAL_ENOUGH = 100  # expected events from which on the normal law is good enough


def events_needed(p0: float, p1: float) -> int:
    """Return how many trials tell a share p1 from p0.

    Two-sided false-alarm rate 1e-9, power 0.999. The normal law, but the exact one where few events are expected.
    """
    z_false, z_power = NormalDist().inv_cdf(1 - FALSE_ALARM / 2), NormalDist().inv_cdf(POWER)
    spread = z_false * math.sqrt(p0 * (1 - p0)) + z_power * math.sqrt(p1 * (1 - p1))
    normal = math.ceil((spread / (p1 - p0)) ** 2)
    if normal * min(p0, 1 - p0) > NORMAL_ENOUGH:
        return normal
    if p1 < p0:
        p0, p1 = 1 - p0, 1 - p1
    enough = 1
    while not told_apart(enough, p0, p1):
        enough *= 2
    return 1 + bisect_left(range(1, enough), True, key=lambda n: told_apart(n, p0, p1))


def told_apart(n: int, p0: float, p1: float) -> bool:
    """Whether n trials are enough to tell p1 > p0 by the exact laws."""
    threshold = bisect_left(range(n + 1), True, key=lambda k: upper_tail(k, n, p0) <= FALSE_ALARM / 2)
    return upper_tail(threshold, n, p1) >= POWER


def upper_tail(k: int, n: int, p: float) -> float:
    """Return P(K >= k) of a binomial law."""
    if k > n or not 0 < p < 1:
        return float(k <= n * p)
    if k <= n * p:
        return 1 - upper_tail(n - k + 1, n, 1 - p)
    log_choices = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    term = tail = math.exp(log_choices + k * math.log(p) + (n - k) * math.log1p(-p))
    while k < n and term > tail * 1e-12:
        term *= (n - k) / (k + 1) * p / (1 - p)
        k += 1
        tail += term
    return tail


def binomial_p_value(k: int, n: int, p: float) -> float:
    """Two-sided: twice the smaller tail."""
    return min(1.0, 2 * upper_tail(k, n, p), 2 * upper_tail(n - k, n, 1 - p))

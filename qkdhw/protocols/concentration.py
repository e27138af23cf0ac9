"""Concentration and sampling bounds: from observed counts to what they say about means and unseen bits.

`mean_lower_bound`, `mean_upper_bound` and `unsampled_rate_upper_bound` are rigorous. `hoeffding_deviation` is rigorous
and loose. `fung_ma_chau_deviation` is an approximation that two papers print as a bound; it fails for small error
rates and serves only to reproduce those papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def hoeffding_deviation(total: float, eps: float) -> float:
    """Largest likely deviation of a sum of `total` independent 0/1 variables: sqrt((total/2) ln(1/eps)).

    Args:
        total: Number of variables, >= 0: all detections of a basis, not those of one intensity.
        eps: Failure probability of one side, 0 < eps <= 1.

    Source: W. Hoeffding, J. Am. Stat. Assoc. 58, 13 (1963), theorem 1.
    """
    return math.sqrt(total / 2.0 * math.log(1.0 / eps))


def fung_ma_chau_deviation(rate: float, sample: float, rest: float, eps_sec: float, terms: int) -> float:
    """Printed deviation gamma between the error rate of a sample and that of the rest. Not a bound.

    It is a Taylor expansion of a hypergeometric tail; it goes to 0 with the observed rate, whatever the sample.

    Args:
        rate: Error rate seen in the sample, 0..1.
        sample: Size of the sample, > 0.
        rest: Size of what was not sampled, > 0.
        eps_sec: Secrecy parameter of the block.
        terms: Number of terms that `eps_sec` is split into: 21 (two decoys) or 19 (one decoy).

    Source: Fung, Ma, Chau, Phys. Rev. A 81, 012318 (2010); Lim et al., Phys. Rev. A 89, 022307 (2014), equation (5).
    """
    spread = rate * (1.0 - rate)
    if spread <= 0.0:
        return 0.0
    inverse = (sample + rest) / (sample * rest * spread)
    bits = math.log2(inverse * (terms / eps_sec) ** 2)
    return math.sqrt(max(0.0, (sample + rest) * spread / (sample * rest * math.log(2.0)) * bits))


def relative_entropy_exponent(observed: float, mean: float, total: float) -> float:
    """Exponent total * D(observed/total || mean/total) of the Chernoff-Hoeffding tail, in nats.

    The logarithms are taken of one plus a difference, so that nothing cancels at large counts.

    Args:
        observed: Count seen, 0..total.
        mean: Supposed mean of the count, 0..total.
        total: Number of 0/1 variables summed.
    """
    exponent = 0.0
    if observed > 0.0:
        if mean <= 0.0:
            return math.inf
        exponent += _log_ratio(observed, mean)
    if observed < total:
        if mean >= total:
            return math.inf
        exponent += _log_ratio(total - observed, total - mean)
    return max(0.0, exponent)


def _log_ratio(a: float, b: float) -> float:
    """Return a ln(a/b) for a > 0, b > 0."""
    difference = (a - b) / b
    return a * (math.log1p(difference) if abs(difference) < 0.5 else math.log(a) - math.log(b))


def mean_upper_bound(observed: float, total: float, eps: float) -> float:
    """Largest mean of a sum of independent 0/1 variables that the observed count does not exclude.

    The variables need not be alike. P[sum <= x] <= exp(-n D(x/n || mean/n)) for x below the mean; the exponent grows
    with the mean above x, so the mean at which it reaches ln(1/eps) is an upper confidence bound of level 1 - eps.

    Args:
        observed: Count seen, 0..total.
        total: Number of variables, >= 0.
        eps: Probability that the true mean lies above the answer, 0 < eps < 1.

    Returns:
        The bound, observed..total.

    Source: W. Hoeffding, J. Am. Stat. Assoc. 58, 13 (1963), theorem 1, equation (2.1).
    """
    limit = math.log(1.0 / eps)
    if observed >= total:
        return total

    def excluded(mean: float) -> bool:
        return relative_entropy_exponent(observed, mean, total) >= limit

    return _bisect(excluded, kept=observed, excluded_end=total)


def mean_lower_bound(observed: float, total: float, eps: float) -> float:
    """Smallest mean of a sum of independent 0/1 variables that the observed count does not exclude.

    The mirror image of `mean_upper_bound`: the complements of the variables are 0/1 variables too.

    Args:
        observed: Count seen, 0..total.
        total: Number of variables, >= 0.
        eps: Probability that the true mean lies below the answer, 0 < eps < 1.

    Returns:
        The bound, 0..observed.

    Source: as `mean_upper_bound`.
    """
    limit = math.log(1.0 / eps)
    if observed <= 0.0:
        return 0.0

    def excluded(mean: float) -> bool:
        return relative_entropy_exponent(observed, mean, total) >= limit

    return _bisect(excluded, kept=observed, excluded_end=0.0)


def _bisect(excluded: Callable[[float], bool], *, kept: float, excluded_end: float) -> float:
    """Narrow [kept, excluded_end] until floating point has nothing between; return the excluded, safe side."""
    while True:
        middle = kept + (excluded_end - kept) / 2.0
        if middle in {kept, excluded_end}:
            return excluded_end
        if excluded(middle):
            excluded_end = middle
        else:
            kept = middle


def unsampled_rate_upper_bound(errors: float, sample: float, rest: float, eps: float) -> float:
    """Upper bound on the error rate of the rest of a population, from a random sample without replacement.

    Let a population of N = s + r members hold pN errors, and let s of them, drawn at random, show x errors. A sample
    without replacement is at least as concentrated as one with replacement, so P[X <= x] <= exp(-s D(x/s || p)) for
    x/s <= p, and p <= p_U(x, s), the p at which the exponent reaches ln(1/eps), fails with probability at most eps.
    The rest then holds at most p_U N - x errors: with b = x/s, a rate of

        g(x, s, r) = p_U + (p_U - b) s/r.

    Only bounds are known: x <= `errors`, s >= `sample`, r >= `rest`. The answer is g at these ends, or 1/2 if that is
    smaller, and it holds for all such x, s, r:

    * g grows with x while p_U <= 1/2: dp_U/db = p(1-p)/(p-b) * integral_b^p dy/(y(1-y)) >= 1, because 1/(y(1-y)) falls
      up to 1/2, and (s+r)/s >= 1.
    * g falls with r, since p_U >= b.
    * p_U falls with s at fixed x, since d/ds [s D(x/s || p)] = ln((1-b)/(1-p)) > 0, and dg/ds has the sign of
      1 - ((s+r)/s) (1-p) ln((1-b)/(1-p))/(p-b). The logarithm over p-b is the mean of 1/(1-y) over b..p, at least
      1/(1-b), so dg/ds > 0 needs r/s < (p-b)/(1-p), and then g > p + (1-p) = 1. Where g is below 1 it can only fall
      as s grows, so once it is at most 1/2 it stays there.

    Args:
        errors: Upper bound on the errors in the sample, >= 0.
        sample: Lower bound on the sample's size, > 0.
        rest: Lower bound on the size of the rest, > 0.
        eps: Failure probability, 0 < eps < 1.

    Returns:
        The bound, at most 1/2: above 1/2 nothing is claimed and 1/2 stands for "no key".

    Source: W. Hoeffding, J. Am. Stat. Assoc. 58, 13 (1963), theorems 1 and 4.
    """
    if errors >= sample / 2.0:
        return 0.5
    population_rate = mean_upper_bound(errors, sample, eps) / sample
    return min(0.5, population_rate + (population_rate * sample - errors) / rest)

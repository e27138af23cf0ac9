"""Concentration bounds against exact tails, and the sampling bound's monotonicity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw.protocols.concentration import (
    fung_ma_chau_deviation,
    mean_lower_bound,
    mean_upper_bound,
    relative_entropy_exponent,
    unsampled_rate_upper_bound,
)
from qkdhw.quantities import binary_entropy, binary_entropy_of_bound

# Observed test error rate, test size, key size: where the printed approximation was compared with exact tails.
ROWS = [(0.02, 1e5, 1e6), (0.005, 1e5, 1e6), (0.05, 1e4, 1e6), (0.002, 1e4, 1e6), (0.001, 5e3, 1e5)]


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _hypergeometric_log_tail(errors: int, sample: int, rest: int, at_most: int) -> float:
    """ln P[X <= at_most], X the errors among `sample` drawn from sample+rest that hold `errors`."""
    low = max(0, errors - rest)
    terms = [
        _log_choose(sample, x) + _log_choose(rest, errors - x) - _log_choose(sample + rest, errors)
        for x in range(low, min(at_most, errors, sample) + 1)
    ]
    if not terms:
        return -math.inf
    top = max(terms)
    return top + math.log(math.fsum(math.exp(term - top) for term in terms))


@pytest.mark.parametrize(("b", "c", "d"), ROWS)
@pytest.mark.parametrize("eps", [1e-10 / 21, (1e-9 / 3) ** 2 / 13])
def test_sampling_bound_holds_against_the_exact_hypergeometric_tail(b: float, c: float, d: float, eps: float) -> None:
    seen, sample, rest = round(b * c), round(c), round(d)
    rate = unsampled_rate_upper_bound(seen, sample, rest, eps)
    errors = seen + math.floor(rate * rest) + 1
    exact = _hypergeometric_log_tail(errors, sample, rest, seen)
    assert exact <= math.log(eps)
    assert exact >= 1.35 * math.log(eps) - 4.0, "much looser than it need be"


@pytest.mark.parametrize(
    ("b", "c", "d", "log10_exact"),
    [(*row, tail) for row, tail in zip(ROWS, [-17.31, -16.01, -16.25, -9.65, -6.55], strict=True)],
)
def test_printed_gamma_is_not_a_bound(b: float, c: float, d: float, log10_exact: float) -> None:
    gamma = fung_ma_chau_deviation(b, c, d, 1e-9, 21)
    seen = round(b * c)
    errors = seen + round((b + gamma) * d)
    exact = _hypergeometric_log_tail(errors, round(c), round(d), seen) / math.log(10)
    assert exact == pytest.approx(log10_exact, abs=0.02)
    assert (exact > math.log10(1e-9 / 21)) == (b <= 0.002)


@pytest.mark.parametrize(("sample", "rest"), [(8, 5), (20, 20), (12, 40), (40, 9)])
@pytest.mark.parametrize("eps", [0.3, 0.05, 0.002])
def test_sampling_bound_covers_every_population(sample: int, rest: int, eps: float) -> None:
    bound = [unsampled_rate_upper_bound(x, sample, rest, eps) for x in range(sample + 1)]
    worst = 0.0
    for errors in range(sample + rest + 1):
        failed = 0.0
        for x in range(max(0, errors - rest), min(errors, sample) + 1):
            if bound[x] < 0.5 and (errors - x) / rest > bound[x] + 1e-12:
                log_p = _log_choose(sample, x) + _log_choose(rest, errors - x)
                failed += math.exp(log_p - _log_choose(sample + rest, errors))
        worst = max(worst, failed)
    assert worst <= eps


@settings(max_examples=500, deadline=None)
@given(
    sample=st.floats(20, 1e5),
    growth=st.floats(0, 6).map(lambda x: 10.0**x),
    rest=st.floats(0, 6).map(lambda x: 10.0**x),
    rate=st.floats(0, 0.3),
    log_eps=st.floats(-20, -0.05),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 3)),
)
def test_sampling_bound_holds_over_the_whole_range_of_its_unknowns(
    sample: float, growth: float, rest: float, rate: float, log_eps: float, fractions: tuple[float, float, float]
) -> None:
    eps, errors = 10.0**log_eps, rate * sample
    bound = unsampled_rate_upper_bound(errors, sample, rest, eps)
    x, s, r = errors * fractions[0], sample * growth ** fractions[1], rest * (1.0 + fractions[2])
    population = mean_upper_bound(x, s, eps) / s
    assert bound >= min(population + (population * s - x) / r, 0.5) - 1e-12


def test_zero_observed_errors_leave_a_phase_error_rate() -> None:
    assert fung_ma_chau_deviation(0.0, 1e4, 1e5, 1e-9, 21) == 0.0
    rate = unsampled_rate_upper_bound(0.0, 1e4, 1e5, 1e-20)
    assert rate == pytest.approx((1.0 - 1e-20 ** (1 / 1e4)) * 1.1, rel=1e-9)


@settings(max_examples=300, deadline=None)
@given(total=st.integers(1, 10**12), fraction=st.floats(0, 1), log_eps=st.floats(-40, -0.1))
def test_mean_bounds_lie_on_the_excluded_side_of_the_tail(total: int, fraction: float, log_eps: float) -> None:
    observed, limit = round(total * fraction), -log_eps * math.log(10.0)
    eps = 10.0**log_eps
    lower, upper = mean_lower_bound(observed, total, eps), mean_upper_bound(observed, total, eps)
    assert 0.0 <= lower <= observed <= upper <= total
    if observed > 0:
        assert relative_entropy_exponent(observed, lower, total) >= limit * (1 - 1e-12)
    if observed < total:
        assert relative_entropy_exponent(observed, upper, total) >= limit * (1 - 1e-12)


@pytest.mark.parametrize("eps", [0.2, 0.01])
def test_mean_bounds_cover_sums_of_unlike_variables(eps: float) -> None:
    rng = np.random.default_rng(3)
    probabilities = np.concatenate([np.full(300, 0.02), np.full(30, 0.6), np.full(10, 0.95)])
    draws = (rng.random((4000, probabilities.size)) < probabilities).sum(axis=1)
    values, times = np.unique(draws, return_counts=True)
    mean, total = float(probabilities.sum()), float(probabilities.size)
    above = sum(t for v, t in zip(values, times, strict=True) if mean_upper_bound(float(v), total, eps) < mean)
    below = sum(t for v, t in zip(values, times, strict=True) if mean_lower_bound(float(v), total, eps) > mean)
    for failures in (int(above), int(below)):
        assert failures <= 4000 * eps
        assert eps < 0.1 or failures > 0, "a bound that never fails at eps 0.2 is not tested by this"


def test_mean_bounds_at_the_ends() -> None:
    assert mean_lower_bound(0.0, 10.0, 1e-3) == 0.0
    assert mean_upper_bound(10.0, 10.0, 1e-3) == 10.0
    assert mean_upper_bound(0.0, 0.0, 1e-3) == 0.0
    assert mean_upper_bound(0.0, 100.0, 1e-3) == pytest.approx(100 * (1 - 1e-3 ** (1 / 100)), rel=1e-12)
    assert mean_lower_bound(1.0, 1.0, 1e-3) == pytest.approx(1e-3, rel=1e-12)


def test_binary_entropy() -> None:
    assert binary_entropy(0.0) == binary_entropy(1.0) == 0.0
    assert binary_entropy(0.5) == 1.0
    assert binary_entropy(0.11002786443835955) == pytest.approx(0.5, abs=1e-12)
    assert binary_entropy_of_bound(0.7) == 1.0
    with pytest.raises(ValueError, match="probability"):
        binary_entropy(-0.1)

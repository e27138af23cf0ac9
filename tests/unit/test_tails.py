"""Tails equal exact fractions, and limits are where the tails say."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.events.tails import (
    binomial_limits,
    chi_square_limit,
    log_lower_binomial,
    log_lower_poisson,
    log_upper_binomial,
    log_upper_poisson,
    poisson_limits,
)


def binomial(k, n, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 64).map(lambda n: Fraction(n, 64)))
def test_binomial_tails_are_exact(n, k, p):
    k = min(k, n)
    upper = sum(binomial(j, n, p) for j in range(k, n + 1))
    lower = sum(binomial(j, n, p) for j in range(k + 1))
    for got, tail, beyond in (
        (log_upper_binomial(k, n, float(p)), upper, k > n * p),
        (log_lower_binomial(k, n, float(p)), lower, k < n * p),
    ):
        assert math.exp(got) == pytest.approx(float(tail) if beyond else 1.0, rel=1e-9)


@given(st.integers(0, 80), st.floats(0.01, 60))
def test_poisson_tails_are_exact(k, mean):
    terms = [math.exp(j * math.log(mean) - mean - math.lgamma(j + 1)) for j in range(500)]
    assert math.exp(log_upper_poisson(k, mean)) == pytest.approx(sum(terms[k:]) if k > mean else 1.0, rel=1e-9)
    assert math.exp(log_lower_poisson(k, mean)) == pytest.approx(sum(terms[: k + 1]) if k < mean else 1.0, rel=1e-9)


def test_tails_far_out_are_logarithms():
    # Nothing of 10^6 at a rate of 10^-2, and 6 standard deviations of a large count: 1e-9 on one side.
    assert log_lower_binomial(0, 10**6, 0.01) == pytest.approx(10**6 * math.log(0.99))
    assert log_upper_binomial(500_000_000 + 94_868, 10**9, 0.5) == pytest.approx(math.log(0.9866e-9), abs=0.01)
    assert log_upper_poisson(1, 0.0) == -math.inf
    assert log_upper_binomial(1, 5, 0.0) == -math.inf


@given(st.integers(0, 300), st.integers(1, 300), st.floats(-25, -3))
def test_limits_are_where_the_tail_is_the_risk(k, n, log_risk):
    k = min(k, n)
    low, high = binomial_limits(k, n, log_risk)
    assert low <= k / n <= high
    if k:
        assert log_upper_binomial(k, n, low) == pytest.approx(log_risk, abs=1e-3)
    if k < n:
        assert log_lower_binomial(k, n, high) == pytest.approx(log_risk, abs=1e-3)
    low, high = poisson_limits(k, log_risk)
    assert low <= k <= high
    assert log_lower_poisson(k, high) == pytest.approx(log_risk, abs=1e-3)
    if k:
        assert log_upper_poisson(k, low) == pytest.approx(log_risk, abs=1e-3)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 37.32), (10, 62.94), (100, 209.26)],  # of chi-square at 1e-9
)
def test_the_bound_on_chi_square_lies_above_its_quantile_and_not_far(degrees, quantile):
    limit = chi_square_limit(degrees, 0.0, math.log(1e-9))
    assert quantile < limit < 1.5 * quantile


def test_a_noncentral_chi_square_stays_below_its_limit():
    rng = np.random.default_rng(1)
    for degrees, noncentrality in ((3, 50.0), (30, 400.0)):
        drawn = rng.noncentral_chisquare(degrees, noncentrality, 200_000)
        assert (drawn > chi_square_limit(degrees, noncentrality, math.log(1e-3))).mean() < 1e-3


@pytest.mark.parametrize(("k", "n", "p"), [(-1, 5, 0.5), (6, 5, 0.5), (1, 5, 1.5), (1, 5, math.nan)])
def test_counts_that_cannot_be_are_refused(k, n, p):
    with pytest.raises(ValueError, match="binomial"):
        log_upper_binomial(k, n, p)


def test_poisson_counts_that_cannot_be_are_refused():
    for k, mean in ((-1, 1.0), (1, -1.0), (1, math.nan), (1, math.inf)):
        with pytest.raises(ValueError, match="Poisson"):
            log_lower_poisson(k, mean)

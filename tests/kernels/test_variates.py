"""The variates that the optics' kernels draw: their laws, their tails, and that a wrong law would be found out."""

import math

import numpy as np
import pytest
from statistics_of_counts import LEAST_P, p_gauss, p_kolmogorov

from qkdhw_emulators._optics.variates import Variates

N = 4_000_000

LAWS = {
    "random": lambda x: x,
    "standard_normal": np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)), otypes=[float]),
    "standard_exponential": lambda x: -np.expm1(-x),
}


def drawn(law, seed=11):
    out = np.empty(N)
    Variates(np.random.SFC64(seed)).fill(law, out)
    return out


@pytest.mark.parametrize("law", LAWS)
def test_variates_follow_their_law(law):
    sample = drawn(law)
    assert p_kolmogorov(sample, LAWS[law]) > LEAST_P
    assert p_kolmogorov(sample * 1.01, lambda x: np.clip(LAWS[law](x), 0, 1)) < LEAST_P


@pytest.mark.parametrize(
    ("law", "beyond", "p"),
    [
        ("standard_normal", 3.0, math.erfc(3 / math.sqrt(2))),
        ("standard_normal", 3.6541528853610088, math.erfc(3.6541528853610088 / math.sqrt(2))),
        ("standard_normal", 4.2, math.erfc(4.2 / math.sqrt(2))),
        ("standard_exponential", 7.69711747013104972, math.exp(-7.69711747013104972)),
        ("standard_exponential", 9.5, math.exp(-9.5)),
    ],
)
def test_tails_are_as_heavy_as_they_should_be(law, beyond, p):
    found = int((np.abs(drawn(law)) > beyond).sum())
    assert p_gauss(found, N * p, math.sqrt(N * p)) > LEAST_P
    assert found > 50


@pytest.mark.parametrize("law", LAWS)
def test_successive_variates_have_nothing_to_do_with_each_other(law):
    sample = drawn(law)
    sample = (sample - sample.mean()) / sample.std()
    for lag in (1, 2, 3, 4, 8):
        assert p_gauss(float((sample[:-lag] * sample[lag:]).mean()), 0.0, 1 / math.sqrt(N - lag)) > LEAST_P


def test_blocks_of_256_are_the_stream_whatever_is_asked_for():
    one, many = Variates(np.random.SFC64(3)), Variates(np.random.SFC64(3))
    out, parts = np.empty(1000), np.empty(1000)
    for law in ("random", "standard_normal", "standard_exponential"):
        many.fill(law, out)
        for first, last in ((0, 256), (256, 768), (768, 1000)):
            one.fill(law, parts[first:last])
        assert parts.tolist() == out.tolist()
    assert one.standard_normal() == many.standard_normal()
    assert one.standard_exponential() == many.standard_exponential()
    assert one.random() == many.random()
    assert Variates(np.random.SFC64(4)).random() != Variates(np.random.SFC64(5)).random()


def test_another_law_is_refused():
    with pytest.raises(ValueError, match="cauchy"):
        Variates(np.random.SFC64(1)).fill("cauchy", np.empty(1))

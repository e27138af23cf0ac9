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


@pytest.mark.parametrize("law", LAWS)
def test_numbers_drawn_side_by_side_are_those_drawn_one_by_one(law):
    """Blocks of any length, so that words are left over; enough numbers that the edges of all layers are met."""
    wide, portable = Variates(np.random.SFC64(6)), Variates(np.random.SFC64(6), portable=True)
    lengths = np.random.default_rng(1).integers(0, 700, 3000)
    for n in lengths:
        found, expected = np.empty((2, n))
        wide.fill(law, found)
        portable.fill(law, expected)
        assert found.tolist() == expected.tolist()
        assert wide.random() == portable.random()


def test_the_words_are_those_of_eight_published_generators_in_turn():
    """xoshiro256++ in plain Python, its state the words of the seed, lane by lane."""
    seed = [int(word) for word in np.random.SFC64(8).random_raw(32)]
    lanes = [[seed[8 * i + lane] for i in range(4)] for lane in range(8)]

    def turned(x, k):
        return (x << k | x >> (64 - k)) % 2**64

    def word(s):
        found = (turned((s[0] + s[3]) % 2**64, 23) + s[0]) % 2**64
        shifted = s[1] << 17 & 2**64 - 1
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= shifted
        s[3] = turned(s[3], 45)
        return found

    for s in lanes:
        s[0] |= 1
    variates = Variates(np.random.SFC64(8))
    for _ in range(50):
        assert [variates.random() for _ in range(8)] == [(word(s) >> 11) / 2**53 for s in lanes]


def test_another_law_is_refused():
    with pytest.raises(ValueError, match="cauchy"):
        Variates(np.random.SFC64(1)).fill("cauchy", np.empty(1))

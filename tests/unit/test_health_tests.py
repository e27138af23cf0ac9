"""Health tests of a noise source: cutoffs as published, what is found out and what is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw.drivers.health_tests import HealthTests, proportion_cutoff, repetition_cutoff
from qkdhw.errors import ConfigurationError


@pytest.mark.parametrize(
    ("entropy", "exponent", "cutoff"),
    [(2.0, 20, 11), (8.0, 30, 5), (1.0, 20, 21), (1.0, 30, 31), (0.8, 40, 51), (0.3, 20, 68)],
)
def test_repetition_cutoffs(entropy, exponent, cutoff):
    """The first is the example of SP 800-90B, 4.4.1."""
    assert repetition_cutoff(entropy, exponent) == cutoff


@pytest.mark.parametrize(
    ("window", "entropy", "cutoff"),
    [
        (1024, 0.2, 941), (1024, 0.4, 840), (1024, 0.6, 748), (1024, 0.8, 664), (1024, 1.0, 589),
        (512, 0.5, 410), (512, 1.0, 311), (512, 2.0, 177), (512, 4.0, 62), (512, 8.0, 13),
    ],
)  # fmt: skip
def test_proportion_cutoffs_are_those_of_sp_800_90b(window, entropy, cutoff):
    """SP 800-90B, 4.4.2, tables of cutoffs for alpha = 2^-20."""
    assert proportion_cutoff(window, entropy, 20) == cutoff


@given(st.sampled_from([512, 1024]), st.floats(0.1, 8.0), st.integers(20, 40))
def test_proportion_cutoffs_by_exact_arithmetic(window, entropy, exponent):
    """The smallest count that a source with this min-entropy passes only with probability 2^-exponent or less."""
    cutoff = proportion_cutoff(window, entropy, exponent)
    above = _tail(window, entropy, cutoff)
    assert above <= 2.0**-exponent * (1 + 1e-9)
    assert _tail(window, entropy, cutoff - 1) > 2.0**-exponent * (1 - 1e-9)


def _tail(n, entropy, count):
    """P(more than count - 1 hits) by multiplying ratios, without logarithms of factorials."""
    hit = 2.0**-entropy
    mode = int((n + 1) * hit)
    weights = np.ones(n + 1)
    for k in range(mode + 1, n + 1):
        weights[k] = weights[k - 1] * (n - k + 1) / k * hit / (1 - hit)
    for k in range(mode - 1, -1, -1):
        weights[k] = weights[k + 1] * (k + 1) / (n - k) * (1 - hit) / hit
    return weights[count:].sum() / weights.sum()


def bits(rng, size, probability):
    return np.packbits(rng.random(8 * size) < probability).tobytes()


def bytes_until_failure(tests, source, limit):
    """Return how many bytes were taken when a test failed, in packets of 512, or None."""
    for packet in range(limit // 512):
        if not tests.passes(memoryview(source())):
            return 512 * (packet + 1)
    return None


@pytest.mark.parametrize("sample_bits", [1, 8])
def test_a_good_source_passes(sample_bits):
    rng = np.random.default_rng(8)
    tests = HealthTests(sample_bits=sample_bits, min_entropy_bits=0.8 * sample_bits)
    assert bytes_until_failure(tests, lambda: rng.bytes(512), 4 << 20) is None
    assert tests.failure == ""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("probability", "within"), [(0.7, 4096), (0.3, 4096), (0.75, 2048), (0.65, 131_072)])
def test_bias_is_found_out(seed, probability, within):
    """On average it takes 204 bytes at 0.7, 12 kilobytes at 0.65; the limits are ten times that, or 32 windows."""
    rng = np.random.default_rng(seed)
    tests = HealthTests()
    assert bytes_until_failure(tests, lambda: bits(rng, 512, probability), within)
    assert tests.failure == "adaptive_proportion_test"


@pytest.mark.parametrize("seed", range(3))
def test_a_weak_bias_needs_a_stronger_claim(seed):
    """A coin of 0.6 has 0.74 bits: by far not enough to fail a claim of 0.8 soon; a claim of 1.0 finds it at once."""
    rng = np.random.default_rng(seed)
    assert bytes_until_failure(HealthTests(), lambda: bits(rng, 512, 0.6), 1 << 20) is None
    assert bytes_until_failure(HealthTests(min_entropy_bits=1.0), lambda: bits(rng, 512, 0.6), 16_384)


def test_a_stuck_source_fails_at_the_cutoff():
    tests = HealthTests()
    assert tests.passes(memoryview(b"\x55" * 8 + b"\0" * 6))  # 48 zeros and the one before them
    assert tests.passes(memoryview(b"\0" * 0))
    assert not tests.passes(memoryview(b"\0"))
    assert tests.failure == "repetition_count_test"


def test_one_stuck_bit_of_eight_is_found_out_by_bits():
    rng = np.random.default_rng(1)

    def source():
        return (np.frombuffer(rng.bytes(512), np.uint8) | 0x80).tobytes()

    assert bytes_until_failure(HealthTests(min_entropy_bits=1.0), source, 1 << 20)
    assert bytes_until_failure(HealthTests(sample_bits=8, min_entropy_bits=7.0), source, 1 << 20) is None


@settings(max_examples=10)
@given(st.integers(1, 1000), st.integers(0, 2**32 - 1))
def test_output_that_repeats_is_found_out_after_one_period(packets, seed):
    rng = np.random.default_rng(seed)
    loop = [rng.bytes(512) for _ in range(packets)]
    tests, played = HealthTests(), iter(loop * 2)
    assert bytes_until_failure(tests, lambda: next(played), 2 * 512 * packets) == 512 * (packets + 1)
    assert tests.failure == "repeated_block_test"


def test_a_period_longer_than_what_is_remembered_is_not_found_out():
    rng = np.random.default_rng(2)
    loop = [rng.bytes(512) for _ in range(4097)]
    tests, played = HealthTests(), iter(loop * 2)
    assert bytes_until_failure(tests, lambda: next(played), 2 * 512 * 4097) is None


def test_a_failure_latches_until_restart():
    rng = np.random.default_rng(4)
    tests = HealthTests()
    assert not tests.passes(memoryview(bytes(512)))
    assert not tests.passes(memoryview(b"\xff" + rng.bytes(511)))
    tests.restart()
    assert tests.passes(memoryview(rng.bytes(512)))


@pytest.mark.parametrize(
    "options",
    [
        {"min_entropy_bits": 0.05}, {"min_entropy_bits": 1.01}, {"min_entropy_bits": float("nan")}, {"sample_bits": 4},
        {"false_alarm_exponent": 19}, {"false_alarm_exponent": 41}, {"false_alarm_exponent": 30.5},
        {"sample_bits": 8, "min_entropy_bits": 8.1},
    ],
)  # fmt: skip
def test_options_that_are_not_allowed(options):
    with pytest.raises(ConfigurationError) as caught:
        HealthTests(**options)
    assert caught.value.remedy

"""Two sites' streams that nothing can be found in: a typed error each time, whatever is asked for, and no false lock."""

from fractions import Fraction

import numpy as np
import pytest

from qkdhw.errors import ClockAlignmentError, ConfigurationError, EventError
from qkdhw.events.pair_alignment import align_pairs
from qkdhw.model import DetectionBlock

BINS = 1 << 17
SECOND = 10**12


def block(ticks, tick_ps=1):
    ticks = np.sort(np.asarray(ticks, np.int64))
    return DetectionBlock(ticks, np.ones(len(ticks), np.uint8), np.zeros(len(ticks), np.uint8), Fraction(tick_ps))


def unrelated(seed, n=2000):
    return np.random.default_rng(seed).integers(0, SECOND, n)


@pytest.mark.parametrize("n", [16, 17, 100])
def test_short_regular_streams_show_no_offset(n):
    with pytest.raises(ClockAlignmentError):
        align_pairs(block(np.arange(n) * 1000), block(np.arange(n) * 1000), max_bins=BINS)


@pytest.mark.parametrize("n", [16, 100, 1000])
def test_a_common_beat_is_no_common_offset(n):
    a, b = (np.arange(n) * 100_000 + np.random.default_rng(k).integers(-900, 900, n) for k in (1, 2))
    with pytest.raises(ClockAlignmentError):
        align_pairs(block(a), block(b), max_bins=BINS)


def test_streams_of_a_tick_or_two_are_too_short():
    ticks = [0] * 50 + [1]
    with pytest.raises(ClockAlignmentError, match="too short"):
        align_pairs(block(ticks), block(ticks), max_bins=BINS)


@pytest.mark.parametrize("max_offset_s", [10, 3600, 1e6, 1e300])
def test_ends_of_short_streams_are_no_offset(max_offset_s):
    with pytest.raises(ClockAlignmentError, match="no common offset"):
        align_pairs(block(unrelated(0)), block(unrelated(50)), max_offset_s=max_offset_s, max_bins=BINS)


@pytest.mark.parametrize("max_offset_s", [10, 3600, 1e300])
def test_an_offset_is_found_however_large_a_one_is_allowed(max_offset_s):
    pairs = unrelated(7, 4000)
    a, b = np.concatenate((pairs, unrelated(8))), np.concatenate((pairs + SECOND // 3, unrelated(9)))
    found = align_pairs(block(a), block(b), max_offset_s=max_offset_s)
    assert abs(found.clock.map_ticks(0) - SECOND // 3) < 1000


@pytest.mark.parametrize("tick_ps", [Fraction(10**6), Fraction(10) ** 30, Fraction(1, 10**30)])
def test_ticks_that_differ_too_much_are_named(tick_ps):
    with pytest.raises(ConfigurationError, match="differ by more than 4096"):
        align_pairs(block(unrelated(0)), block(unrelated(1), tick_ps))


@pytest.mark.parametrize("first", [-(1 << 62) - 5, 1 << 62, (1 << 63) - SECOND - 1])
def test_times_beyond_the_range_are_refused(first):
    with pytest.raises(EventError, match="beyond 2\\^60 ticks"):
        align_pairs(block(unrelated(0) + first), block(unrelated(1) + first))


@pytest.mark.parametrize(
    "asked",
    [{"max_offset_s": float("inf")}, {"max_offset_s": 0.0}, {"resolution_ps": float("inf")}, {"resolution_ps": 1e300},
     {"resolution_ps": float("nan")}, {"span_s": float("inf")}, {"max_ppm": float("nan")}, {"max_ppm": float("inf")}],
)  # fmt: skip
def test_numbers_that_are_none_are_named(asked):
    with pytest.raises(ConfigurationError):
        align_pairs(block(unrelated(0)), block(unrelated(1)), **asked)


def test_bins_as_wide_as_the_streams_are_named():
    pairs = unrelated(7, 4000)
    with pytest.raises(ConfigurationError, match="too wide"):
        align_pairs(block(pairs), block(pairs + 5), resolution_ps=SECOND)

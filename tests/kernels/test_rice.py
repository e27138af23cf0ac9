"""Rice coding equals its oracle, round-trips, and reads hostile bytes without harm."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_pair_sifting import encode_gaps as encode_oracle

from qkdhw._core.rice import decode_gaps, encode_gaps

LARGEST = (1 << 62) - 1
gaps = st.lists(st.integers(0, 40) | st.integers(0, 1 << 40), max_size=40)


def encode(numbers, beside, least, step):
    data = np.full(12 * len(numbers) + 9, 0xAA, np.uint8)
    size = encode_gaps(np.array(numbers, np.int64), np.array(beside, np.uint8), least, step, data)
    return size if size < 0 else data[:size].tobytes()


def decode(data, least, step, limit, n):
    numbers = np.empty(n, np.int64)
    read = decode_gaps(np.frombuffer(data + bytes(8), np.uint8), least, step, limit, numbers)
    return read if read < 0 else numbers.tolist()


def increasing(gap_list, least, step):
    numbers = []
    for gap in gap_list:
        numbers.append(least + gap)
        least = numbers[-1] + step
    return numbers


@given(gaps, st.integers(-(1 << 61), 1 << 61), st.integers(0, 1))
def test_coding_is_the_oracle_s_and_round_trips(gap_list, least, step):
    numbers = increasing(gap_list, least, step)
    data = encode(numbers, [], least, step)
    assert data == encode_oracle(numbers, [], least, step)
    assert decode(data, least, step, LARGEST, len(numbers)) == numbers


@given(st.integers(0, 3000), st.integers(0, 40), st.integers(0, 1 << 32))
def test_blocks_have_a_parameter_each(n, scale, seed):
    rng = np.random.default_rng(seed)
    gap_list = np.floor(rng.exponential(1.5**scale, n)).astype(int)
    gap_list[rng.integers(0, n, n // 500)] = 1 << 45
    numbers = increasing(gap_list.tolist(), 0, 0)
    beside = rng.integers(0, 2, n).tolist()
    assert encode(numbers, beside, 0, 0) == encode_oracle(numbers, beside, 0, 0)
    data = encode(numbers, [], 0, 0)
    assert decode(data, 0, 0, LARGEST, n) == numbers


@given(st.binary(max_size=40), st.integers(0, 60), st.integers(0, 1), st.integers(0, 1000))
def test_hostile_bytes_give_a_place_or_numbers_within_the_limit(data, n, step, limit):
    numbers = decode(data, 0, step, limit, n)
    if isinstance(numbers, int):
        assert 0 <= -1 - numbers <= len(data)
    else:
        assert all(0 <= number <= limit for number in numbers)
        assert all(b - a >= step for a, b in pairwise(numbers))


@pytest.mark.parametrize(
    ("data", "n", "limit", "offset"),
    [
        (b"", 1, 9, 0),
        (b"\x00", 0, 9, 0),  # a byte too many
        (b"\x20\x00", 1, 9, 1),
        (b"\x60", 1, 9, 0),  # padding
        (b"\x20", 2, 9, 0),  # stops before the second number
        (b"\x00\x10", 1, 6, 0),  # 7 is above the limit
        (b"\x00\x00\x00\xe0" + bytes(8), 1, LARGEST, 0),  # 7 in the long form
        (b"\x00\x00\x00\xe0", 1, LARGEST, 0),  # the long form stops early
    ],
)
def test_the_first_bad_byte_is_named(data, n, limit, offset):
    assert decode(data, 0, 0, limit, n) == -1 - offset


@pytest.mark.parametrize(
    ("numbers", "beside", "step", "index"),
    [([3, 3], [], 1, 1), ([3, 2], [], 0, 1), ([-1], [], 0, 0), ([1 << 62], [], 0, 0), ([1, 2], [0, 2], 0, 1)],
)
def test_numbers_that_cannot_be_written_are_named(numbers, beside, step, index):
    assert encode(numbers, beside, 0, step) == -1 - index


def test_arrays_that_do_not_fit_are_refused():
    number, none, data = np.zeros(2, np.int64), np.empty(0, np.uint8), np.empty(33, np.uint8)
    with pytest.raises(ValueError, match="12 bytes"):
        encode_gaps(number, none, 0, 0, data[:32])
    with pytest.raises(ValueError, match="beside"):
        encode_gaps(number, data[:1], 0, 0, data)
    with pytest.raises(ValueError, match="step"):
        encode_gaps(number, none, 0, 2, data)
    with pytest.raises(ValueError, match="step"):
        decode_gaps(data, 0, 0, 1 << 62, number)
    with pytest.raises(ValueError, match="8 bytes"):
        decode_gaps(data[:7], 0, 0, 9, number)

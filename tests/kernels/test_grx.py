"""decode_grx equals its NumPy oracle and stops where a frame cannot be true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_grx import decode_grx as oracle

from qkdhw._core.grx import decode_grx

LARGEST_BASE = (1 << 63) - (1 << 44) - 1
GOOD = st.one_of(
    st.tuples(st.just(0), st.integers(1, 4)),
    st.tuples(st.just(1), st.integers(1, 255)),
    st.tuples(st.just(4), st.integers(1, 65535)),
    st.tuples(st.sampled_from([2, 3, 5, 6]), st.just(0)),
)
ANY = st.tuples(st.integers(0, 15), st.integers(0, 65535))
TIMES = st.one_of(st.integers(0, 50), st.integers(0, (1 << 44) - 1))
BASES = st.one_of(st.integers(0, 100), st.integers(0, LARGEST_BASE), st.just(LARGEST_BASE))


def run(data, base=0, last=-1):
    n = len(data) // 8
    time_ticks, channel, kind = np.full(n, -7, np.int64), np.full(n, 99, np.uint8), np.full(n, 99, np.uint8)
    missed, bad, back = decode_grx(data, base, last, time_ticks, channel, kind)
    good = n if bad == back == -1 else max(bad, back)
    assert (time_ticks[good:] == -7).all()
    return time_ticks[:good], channel[:good], kind[:good], missed, bad, back


def encode(records):
    return b"".join((t | value << 44 | kind << 60).to_bytes(8, "little") for t, (kind, value) in records)


def equal(got, want):
    for column in range(3):
        np.testing.assert_array_equal(got[column], want[column])
    assert got[3:] == want[3:]


@given(st.lists(st.tuples(TIMES, GOOD), max_size=60), BASES)
def test_true_frames_decode_as_the_oracle_says(records, base):
    records.sort(key=lambda record: record[0])
    got = run(encode(records), base)
    equal(got, oracle(encode(records), base, -1))
    assert got[4:] == (-1, -1)
    assert got[0].tolist() == [base + t for t, _ in records]


@given(st.lists(st.tuples(TIMES, st.one_of(GOOD, GOOD, GOOD, ANY)), max_size=60), BASES, st.integers(-1, 200))
def test_frames_with_mistakes_decode_as_the_oracle_says(records, base, last):
    equal(run(encode(records), base, last), oracle(encode(records), base, last))


@given(st.binary(max_size=200))
def test_any_bytes_decode_as_the_oracle_says(data):
    data = data[: len(data) // 8 * 8]
    equal(run(data), oracle(data, 0, -1))


@pytest.mark.parametrize(
    ("kind", "value"), [(0, 0), (0, 5), (1, 0), (1, 256), (2, 1), (3, 1), (4, 0), (5, 1), (6, 1), (7, 0), (15, 65535)]
)
def test_every_value_that_cannot_be(kind, value):
    assert run(encode([(1, (0, 1)), (2, (kind, value))]))[4:] == (1, -1)


def test_times_are_exact_beyond_doubles():
    base = (1 << 53) + 1
    assert run(encode([(0, (0, 1)), (1, (0, 2))]), base)[0].tolist() == [base, base + 1]
    assert run(encode([((1 << 44) - 1, (6, 0))]), LARGEST_BASE)[0].tolist() == [(1 << 63) - 2]


@pytest.mark.parametrize("base", [-1, LARGEST_BASE + 1])
def test_bases_out_of_range(base):
    with pytest.raises(ValueError, match="base"):
        run(b"", base)


@pytest.mark.parametrize("sizes", [(8, 2, 1, 1), (8, 1, 2, 1), (8, 1, 1, 2), (9, 1, 1, 1), (0, 1, 1, 1)])
def test_lengths_that_do_not_match_are_refused(sizes):
    size, *columns = sizes
    arrays = [np.zeros(n, t) for n, t in zip(columns, (np.int64, np.uint8, np.uint8), strict=True)]
    with pytest.raises(ValueError, match="8 bytes"):
        decode_grx(bytes(size), 0, -1, *arrays)

from itertools import pairwise

import numpy as np
import oracle_qutag as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw._core import qutag

PATIENT = settings(deadline=None, max_examples=200)  # the machine may be busy

RECORDS = st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 2**40), st.integers(0, 300)), max_size=40)


def arrays(n):
    return np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)


def run(data):
    columns, state = arrays(len(data) // 10), np.zeros(2, np.int64)
    assert qutag.decode_records(np.frombuffer(data, np.uint8), *columns, state) == len(data) // 10
    return columns, int(state[0]), int(state[1])


@PATIENT
@given(RECORDS)
def test_equals_the_oracle(records):
    data = np.array(records, oracle.RECORD).tobytes()
    columns, invalid, first_invalid = run(data)
    *wanted, wanted_invalid = oracle.decode(data)
    for column, same in zip(columns, wanted, strict=True):
        assert column.tolist() == same.tolist()
    assert invalid == len(wanted_invalid)
    assert first_invalid == (wanted_invalid[0] if invalid else -1)


# Times near both ends of the counter, so that it wraps and steps back over the wrap.
ENDS = st.tuples(st.sampled_from([0, 2**37 - 2**20]), st.integers(0, 2**20 - 1), st.integers(0, 7)).map(
    lambda parts: parts[0] + parts[1] | parts[2] << 37
)


@PATIENT
@given(st.lists(st.integers(0, 2**40 - 1) | ENDS, max_size=40), st.lists(st.integers(0, 40), max_size=3))
def test_compressed_equals_the_oracle_for_any_split(words, cuts):
    data = b"".join(word.to_bytes(5, "little") for word in words)
    state, events = np.array([-1, 0, 0, -1], np.int64), []
    edges = [0, *sorted(min(cut, len(words)) for cut in cuts), len(words)]
    for first, end in pairwise(edges):
        time, channel, kind = arrays(end - first)
        qutag.decode_compressed(np.frombuffer(data[5 * first : 5 * end], np.uint8), time, channel, kind, state)
        assert not kind.any()
        events += zip(time.tolist(), channel.tolist(), strict=True)
    assert events == oracle.decode_compressed(data)


def test_endless_wrapping_is_refused_before_time_leaves_int64():
    state = np.array([2**37 - 1, 2**61, 0, -1], np.int64)
    time, channel, kind = arrays(2)
    data = np.frombuffer(bytes(5) + (2**37 - 1 | 1 << 37).to_bytes(5, "little"), np.uint8)
    qutag.decode_compressed(data, time, channel, kind, state)
    assert (kind.tolist(), state[2:].tolist()) == ([255, 0], [1, 0])


@pytest.mark.parametrize(("decode", "size", "state"), [(qutag.decode_records, 10, 2), (qutag.decode_compressed, 5, 4)])
def test_wrong_lengths_are_refused(decode, size, state):
    data, numbers = np.zeros(2 * size, np.uint8), np.zeros(state, np.int64)
    time, channel, kind = arrays(2)
    with pytest.raises(ValueError, match="whole number"):
        decode(data[:-1], time, channel, kind, numbers)
    with pytest.raises(ValueError, match="shorter"):
        decode(data, time, channel, kind[:1], numbers)
    with pytest.raises(ValueError, match="state"):
        decode(data, time, channel, kind, numbers[:-1])

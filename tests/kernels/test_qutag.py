import numpy as np
import oracle_qutag as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw._core import qutag

PATIENT = settings(deadline=None, max_examples=200)  # the machine may be busy

RECORDS = st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 2**40), st.integers(0, 300)), max_size=40)


def run(data):
    n = len(data) // 10
    time, channel, state = np.empty(n, np.int64), np.empty(n, np.uint8), np.zeros(2, np.int64)
    count = qutag.decode_records(np.frombuffer(data, np.uint8), time, channel, state)
    return time[:count], channel[:count], int(state[0]), int(state[1])


@PATIENT
@given(RECORDS)
def test_equals_the_oracle(records):
    data = np.array(records, oracle.RECORD).tobytes()
    time, channel, invalid, first_invalid = run(data)
    wanted_time, wanted_channel, wanted_invalid = oracle.decode(data)
    assert time.tolist() == wanted_time.tolist()
    assert channel.tolist() == wanted_channel.tolist()
    assert invalid == len(wanted_invalid)
    assert first_invalid == (wanted_invalid[0] if invalid else -1)


def test_wrong_lengths_are_refused():
    data, time, byte, state = (
        np.zeros(20, np.uint8),
        np.zeros(2, np.int64),
        np.zeros(2, np.uint8),
        np.zeros(2, np.int64),
    )
    with pytest.raises(ValueError, match="whole number"):
        qutag.decode_records(data[:19], time, byte, state)
    with pytest.raises(ValueError, match="shorter"):
        qutag.decode_records(data, time[:1], byte, state)
    with pytest.raises(ValueError, match="state"):
        qutag.decode_records(data, time, byte, state[:1])

import numpy as np
import oracle_swabian as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw._core import swabian

PATIENT = settings(deadline=None, max_examples=200)  # the machine may be busy
RECORD = st.tuples(
    st.integers(0, 5),
    st.sampled_from([0, 0, 0, 0, 1]),
    st.just(0) | st.integers(0, 65535),
    st.integers(-130, 130) | st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
)


@PATIENT
@given(st.lists(RECORD, max_size=30), st.integers(0, 30))
def test_equals_the_oracle_for_any_split(records, cut):
    data = b"".join(oracle.RECORD.pack(*record) for record in records)
    state, events, invalid = np.zeros(3, np.int64), [], []
    for part, first in ((data[: 16 * cut], 0), (data[16 * cut :], cut)):
        n, before = len(part) // 16, int(state[1])
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        assert swabian.decode_records(np.frombuffer(part, np.uint8), time, channel, kind, state) == n
        events += zip(time.tolist(), channel.tolist(), kind.tolist(), strict=True)
        invalid += [first + int(state[2])] if state[1] > before else []
    wanted, missed, wanted_invalid = oracle.decode(data)
    assert events == wanted
    assert state[:2].tolist() == [missed, len(wanted_invalid)]
    assert invalid[:1] == wanted_invalid[:1]


def test_wrong_lengths_are_refused():
    data, time, byte = np.zeros(32, np.uint8), np.zeros(2, np.int64), np.zeros(2, np.uint8)
    with pytest.raises(ValueError, match="whole number"):
        swabian.decode_records(data[:31], time, byte, byte, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="shorter"):
        swabian.decode_records(data, time, byte[:1], byte, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="state"):
        swabian.decode_records(data, time, byte, byte, np.zeros(2, np.int64))

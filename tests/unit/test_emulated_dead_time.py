import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators.optics.dead_time import live_events


def one_by_one(times, dead_time, last):
    out = []
    for index, time in enumerate(times):
        if time >= last + dead_time:
            out.append(index)
            last = time
    return out


@given(
    st.lists(st.integers(0, 300), max_size=60).map(sorted), st.integers(0, 40), st.integers(-50, 50), st.integers(0, 60)
)
def test_same_as_one_by_one_whole_and_in_two_parts(times, dead_time, last, cut):
    times_ps = np.array(times, np.int64)
    first_allowed = [t for t in times if t >= last]
    times_ps = np.array(first_allowed, np.int64)
    expected = one_by_one(first_allowed, dead_time, last)
    assert live_events(times_ps, dead_time, last).tolist() == expected
    head, tail = times_ps[:cut], times_ps[cut:]
    first = live_events(head, dead_time, last)
    then = live_events(tail, dead_time, int(head[first[-1]]) if first.shape[0] else last)
    assert [*first.tolist(), *(then + head.shape[0]).tolist()] == expected


@pytest.mark.parametrize("n", [0, 1])
def test_no_and_one_event(n):
    assert live_events(np.arange(n), 5, -5).tolist() == list(range(n))

"""tally_events equals its NumPy oracle, in any cut of the stream."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_tally import tally_events as oracle

from qkdhw._core.tally import tally_events

events = st.lists(st.tuples(st.integers(-(1 << 40), 1 << 40), st.integers(0, 9)), max_size=50)


@given(events, st.integers(-100, 100), st.integers(0, 50))
def test_any_events_in_two_pieces_count_as_the_oracle_says(found, last, cut):
    time_ticks = np.array([t for t, _ in found], np.int64)
    kind = np.array([k for _, k in found], np.uint8)
    counts, state = np.zeros(8, np.int64), np.array([last], np.int64)
    for piece in (slice(cut), slice(cut, None)):
        tally_events(time_ticks[piece], kind[piece], counts, state)
    want, want_last = oracle(time_ticks, kind, last)
    assert counts.tolist() == want
    assert state.tolist() == [want_last]


@pytest.mark.parametrize("sizes", [(3, 2, 8, 1), (3, 3, 7, 1), (3, 3, 8, 2)])
def test_lengths_that_do_not_match_are_refused(sizes):
    arrays = [np.zeros(n, t) for n, t in zip(sizes, (np.int64, np.uint8, np.int64, np.int64), strict=True)]
    with pytest.raises(ValueError, match=r"must have|shorter"):
        tally_events(*arrays)

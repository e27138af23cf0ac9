"""The tests that compare kernels with their oracles find seeded bugs: a rare word, a rare cut."""

import pytest
import test_tdc1
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qkdhw._core.tdc1 import decode_tdc1


def wrong_for_a_pattern(data, state, time_ticks, channel, kind):
    """Decode, but take input 4 for input 3 if input 2 fired just before it."""
    events, words, bad = decode_tdc1(data, state, time_ticks, channel, kind)
    channel[1:events][(channel[1:events] == 4) & (channel[: max(events - 1, 0)] == 2)] = 3
    return events, words, bad


def wrong_for_a_cut(data, state, time_ticks, channel, kind):
    """Decode, but lose the last event when the outputs are full."""
    events, words, bad = decode_tdc1(data, state, time_ticks, channel, kind)
    return events - (events > len(channel) - 4), words, bad


@pytest.mark.parametrize(
    ("wrong", "judge", "strategies"),
    [
        (wrong_for_a_pattern, test_tdc1.test_true_streams_decode_as_the_oracle_says, ()),
        (
            wrong_for_a_cut,
            test_tdc1.test_any_split_and_any_capacity_give_the_same_events,
            (st.integers(4, 40), st.lists(st.integers(0, 30), max_size=20)),
        ),
    ],
)
def test_a_seeded_bug_is_found(monkeypatch, wrong, judge, strategies):
    search = given(st.integers(0, test_tdc1.WRAP - 1), test_tdc1.steps, *strategies)(judge.hypothesis.inner_test)
    monkeypatch.setattr(test_tdc1, "decode_tdc1", wrong)
    with pytest.raises(AssertionError):
        # To make the example small would take long; slow builds look at as many examples as the others.
        settings(phases=[Phase.generate], derandomize=True, max_examples=100)(search)()

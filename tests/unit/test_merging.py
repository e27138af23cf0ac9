"""The merged stream is one, however the streams are cut and whichever is ahead; nothing is lost without a word."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.errors import EventError, EventOverflowError, NonMonotonicTimeError
from qkdhw.events.merging import MergeSource, StreamMerger, common_tick_ps, whole_ticks
from qkdhw.model import DetectionBlock

PS = Fraction(1)


def block(events, tick_ps=PS, missed=0):
    columns = (np.array([event[i] for event in events], t) for i, t in enumerate((np.int64, np.uint8, np.uint8)))
    return DetectionBlock(*columns, tick_ps, missed=missed)


def listed(*blocks):
    return [
        event for b in blocks for event in zip(b.time_ticks.tolist(), b.channel.tolist(), b.kind.tolist(), strict=True)
    ]


def merged_oracle(streams, sources, tick, window):
    """Sort what is not late by time; equal times by source, then by arrival."""
    kept, n_late = [], []
    for events, source in zip(streams, sources, strict=True):
        factor, latest, late = int(source.tick_ps / tick), -(1 << 62), 0
        for time, channel, kind in events:
            ticks = time * factor
            if ticks < latest - window:
                late += 1
            elif kind == 0:
                kept.append(
                    (
                        ticks - int(Fraction(source.skew_ps.get(channel, 0)) / tick),
                        channel + source.channel_offset,
                        kind,
                    )
                )
            else:
                kept.append((ticks, channel, kind))
            latest = max(latest, ticks)
        n_late.append(late)
    return sorted(kept, key=lambda event: event[0]), tuple(n_late)


@st.composite
def cases(draw):
    """Streams that are almost in order, with skews, cut and fed in any order."""
    sources, streams, feeds = [], [], []
    for index in range(draw(st.integers(1, 4))):
        tick = draw(st.sampled_from([Fraction(1), Fraction(3, 2), Fraction(1000, 256), Fraction(81)]))
        skew = draw(
            st.dictionaries(st.integers(0, 3), st.integers(-40, 40).map(lambda n: n * Fraction(1, 4)), max_size=2)
        )
        sources.append(MergeSource(tick, 8 * index, skew))
        steps = draw(st.lists(st.integers(-6, 20), max_size=20))
        kinds = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=len(steps), max_size=len(steps)))
        channels = draw(st.lists(st.integers(0, 3), min_size=len(steps), max_size=len(steps)))
        streams.append(list(zip(np.cumsum(steps).tolist(), channels, kinds, strict=True)))
        cuts = sorted(draw(st.lists(st.integers(0, len(steps)), max_size=4)))
        feeds += [index] * (len(cuts) + 1)
        streams[-1] = (streams[-1], [0, *cuts, len(steps)])
    order = draw(st.permutations(feeds))
    return sources, streams, order, draw(st.integers(0, 100))


@given(cases())
def test_any_cut_and_any_order_of_feeding_gives_the_one_stream(case):
    sources, streams, order, window = case
    merger = StreamMerger(sources, tick_ps=Fraction(1, 64), ordering_window_ps=window, drop_late=True)
    want, n_late = merged_oracle([events for events, _ in streams], sources, Fraction(1, 64), 64 * window)
    fed, out = [0] * len(sources), []
    for index in order:
        events, edges = streams[index]
        part = events[edges[fed[index]] : edges[fed[index] + 1]]
        fed[index] += 1
        out.append(merger.feed(index, block(part, sources[index].tick_ps)))
    out.append(merger.flush())
    assert listed(*out) == want
    assert all(b.tick_ps == Fraction(1, 64) for b in out)
    statistics = merger.statistics
    assert (statistics.n_merged, statistics.n_late, set(statistics.n_buffered)) == (len(want), n_late, {0})


def test_ticks_meet_in_the_longest_common_one():
    assert common_tick_ps([Fraction(1000, 256), Fraction(81)]) == Fraction(1, 32)
    assert common_tick_ps([Fraction(4), Fraction(6)]) == 2
    merger = StreamMerger([MergeSource(Fraction(4)), MergeSource(Fraction(6), channel_offset=4)])
    assert merger.tick_ps == 2
    assert listed(merger.feed(0, block([(0, 1, 0), (3, 1, 0)], Fraction(4)))) == []
    assert listed(merger.feed(1, block([(1, 1, 0), (2, 1, 0)], Fraction(6)))) == [(0, 1, 0), (3, 5, 0)]
    assert listed(merger.flush()) == [(6, 1, 0), (6, 5, 0)]


def test_what_cannot_be_exact_is_refused():
    with pytest.raises(ValueError, match="no whole number of ticks"):
        StreamMerger([MergeSource(Fraction(81)), MergeSource(Fraction(4))], tick_ps=Fraction(4))
    with pytest.raises(ValueError, match="no whole number of ticks"):
        StreamMerger([MergeSource(PS, skew_ps={1: Fraction(1, 2)})])
    assert whole_ticks(Fraction(125, 32), Fraction(125, 64)) == 2
    for bad in ([], [Fraction(0)]):
        with pytest.raises(ValueError, match="longer than 0"):
            common_tick_ps(bad)


def test_late_events_raise_and_nothing_of_the_chunk_is_taken():
    merger = StreamMerger([MergeSource(PS)], ordering_window_ps=5)
    merger.feed(0, block([(10, 1, 0)]))
    with pytest.raises(NonMonotonicTimeError) as caught:
        merger.feed(0, block([(20, 1, 0), (15, 1, 0), (14, 2, 0)]))
    assert caught.value.index == 2
    merger.feed(0, block([(12, 2, 0)]))
    assert listed(merger.flush()) == [(10, 1, 0), (12, 2, 0)]
    assert merger.statistics.n_merged == 2


def test_a_silent_source_holds_up_the_others_until_it_says_how_far_it_is():
    merger = StreamMerger([MergeSource(PS), MergeSource(Fraction(2), channel_offset=8)], max_buffered_events=3)
    assert len(merger.feed(0, block([(t, 1, 0) for t in range(4)], missed=7))) == 0
    with pytest.raises(EventOverflowError, match="4 events wait for source 1") as caught:
        merger.feed(0, block([(9, 1, 0)]))
    assert caught.value.lost == 0
    assert listed(merger.advance(1, 1)) == [(0, 1, 0), (1, 1, 0)]
    assert listed(merger.feed(0, block([(9, 1, 0)]))) == []
    assert listed(merger.finish(1)) == [(2, 1, 0), (3, 1, 0)]
    with pytest.raises(ValueError, match="has ended"):
        merger.feed(1, block([(9, 1, 0)], Fraction(2)))
    assert listed(merger.flush()) == [(9, 1, 0)]


def test_missed_events_are_passed_on():
    assert StreamMerger([MergeSource(PS)]).feed(0, block([], missed=7)).missed == 7


def test_memory_holds_the_window_and_not_the_stream():
    merger = StreamMerger([MergeSource(PS), MergeSource(PS, channel_offset=1)], ordering_window_ps=100)
    for start in range(0, 100_000, 1000):
        for source in (0, 1):
            merger.feed(source, block([(t, 1, 0) for t in range(start, start + 1000, 10)]))
        assert max(merger.statistics.n_buffered) <= 111
    merger.flush()
    assert merger.statistics.n_merged == 20_000


def test_gross_disorder_is_sorted_alike():
    times = np.random.default_rng(3).permutation(5000).tolist()
    merger = StreamMerger([MergeSource(PS)], ordering_window_ps=5000)
    merger.feed(0, block([(t, 1, 0) for t in times]))
    assert [event[0] for event in listed(merger.flush())] == list(range(5000))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (block([], Fraction(2)), "tick of 1 ps brought"),
        (block([(0, 250, 0)]), "more than 255"),
        (block([(1 << 62, 1, 0)]), "event 0 lies beyond"),
        (
            DetectionBlock(*(np.empty(0, t) for t in (np.int64, np.uint8, np.uint8)), PS, np.empty(0, np.uint16), PS),
            "T3",
        ),
    ],
)
def test_bad_blocks_are_refused(bad, says):
    with pytest.raises(EventError, match=says):
        StreamMerger([MergeSource(PS, channel_offset=8)]).feed(0, bad)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sources": []},
        {"sources": [MergeSource(PS, channel_offset=256)]},
        {"sources": [MergeSource(PS, skew_ps={256: 0})]},
        {"sources": [MergeSource(PS, skew_ps={1: 1 << 62})]},
        {"sources": [MergeSource(PS)], "ordering_window_ps": -1},
    ],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"no source|out of range"):
        StreamMerger(**arguments)

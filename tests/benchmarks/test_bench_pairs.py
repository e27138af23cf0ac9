"""Merging, coincidences and histograms against NumPy and tomtag (C), in one run: equal results, CPU time.

Two streams as of an entangled-pair source: 1e6 and 3e5 singles a second, a third of the latter with a partner, ticks
of 125 ps. tomtag gives each event one partner; compared with it under the same rule, and counting every pair besides.
"""

import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qkdhw._core import delays, merge
from qkdhw.events.coincidences import CoincidenceFinder, CoincidenceWindow, count_coincidences, find_coincidences
from qkdhw.events.delays import DelayHistogram
from qkdhw.model import DetectionBlock

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from oracle_coincidences import all_pairs_vectorised, count_pairs_vectorised
from oracle_delays import arrival_counts_vectorised, delay_counts_vectorised
from oracle_merge import merge_vectorised

N_FIRST, N_PAIRS = 5_000_000, 500_000
WINDOW = CoincidenceWindow(-8, 8)


@pytest.fixture(scope="module")
def streams():
    rng = np.random.default_rng(1)
    first = np.cumsum(rng.exponential(8000, N_FIRST)).astype(np.int64)
    partners = first[rng.choice(N_FIRST, N_PAIRS, replace=False)] + rng.normal(0, 2.4, N_PAIRS).astype(np.int64)
    return first, np.sort(np.concatenate((partners, rng.integers(0, first[-1], 2 * N_PAIRS))))


def best_s(*calls, rounds=5):
    """Best CPU time of each, taken in turns so that a busy machine slows all."""
    times = [[] for _ in calls]
    for _ in range(rounds):
        for call, kept in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            kept.append(time.process_time() - start)
    return [min(kept) for kept in times]


def record(benchmark, n_events, ours, **others):
    """Keep and print rate and ratios; each of the others must be slower."""
    ours_s, *others_s = best_s(ours, *others.values())
    ratios = {f"ratio_to_{name}": round(s / ours_s, 2) for name, s in zip(others, others_s, strict=True)}
    rates = {f"{name}_mevents_per_s": round(n_events / s / 1e6) for name, s in zip(others, others_s, strict=True)}
    benchmark.extra_info.update(mevents_per_s=round(n_events / ours_s / 1e6), **ratios, **rates)
    print(f"\n{benchmark.name}: {n_events / ours_s / 1e6:.0f} Mevents/s, {ratios}, {rates}")
    assert min(ratios.values()) > 1.0


def test_bench_counting_one_partner(benchmark, streams):
    tomtag = pytest.importorskip("tomtag")
    first, second = streams

    def ours():
        return count_coincidences(first, second, WINDOW, one_partner=True)

    def theirs():
        return tomtag.count_twofolds(first, second, len(first), len(second), 8)

    assert benchmark(ours) == theirs()
    record(benchmark, len(first) + len(second), ours, tomtag=theirs)


def test_bench_counting_every_pair(benchmark, streams):
    tomtag = pytest.importorskip("tomtag")
    first, second = streams

    def ours():
        return count_coincidences(first, second, WINDOW)

    def theirs():
        return tomtag.count_twofolds(first, second, len(first), len(second), 8)

    def vectorised():
        return count_pairs_vectorised(first, second, -8, 8)

    assert benchmark(ours) == vectorised()
    assert 0.99 < theirs() / ours() <= 1.0
    record(benchmark, len(first) + len(second), ours, tomtag=theirs, numpy=vectorised)


def test_bench_collecting_one_partner(benchmark, streams):
    tomtag = pytest.importorskip("tomtag")
    first, second = streams

    def ours():
        index_first, index_second = find_coincidences(first, second, WINDOW, one_partner=True)
        return first[index_first], second[index_second]

    def theirs():
        return tomtag.get_twofold_tags(first, second, len(first), len(second), 8)

    for got, want in zip(benchmark(ours), theirs(), strict=True):
        np.testing.assert_array_equal(got, want)
    record(benchmark, len(first) + len(second), ours, tomtag=theirs)


def test_bench_collecting_every_pair(benchmark, streams):
    tomtag = pytest.importorskip("tomtag")
    first, second = streams

    def ours():
        return find_coincidences(first, second, WINDOW)

    def theirs():
        return tomtag.get_twofold_tags(first, second, len(first), len(second), 8)

    def vectorised():
        return all_pairs_vectorised(first, second, -8, 8)

    for got, want in zip(benchmark(ours), vectorised(), strict=True):
        np.testing.assert_array_equal(got, want)
    record(benchmark, len(first) + len(second), ours, tomtag=theirs, numpy=vectorised)


def as_blocks(first, second, size):
    times = np.concatenate((first, second))
    order = np.argsort(times, kind="stable")
    channel = np.repeat(np.array([1, 2], np.uint8), [len(first), len(second)])[order]
    kind, times = np.zeros(len(times), np.uint8), times[order]
    return [
        DetectionBlock(times[k : k + size], channel[k : k + size], kind[k : k + size], Fraction(125))
        for k in range(0, len(times), size)
    ]


def test_bench_coincidences_of_a_stream(benchmark, streams):
    """From blocks of both channels, chunk by chunk, against NumPy that has the two streams whole."""
    first, second = streams
    blocks = as_blocks(first, second, 1 << 18)

    def ours():
        finder = CoincidenceFinder((1, 2), WINDOW, Fraction(125), collect=False)
        for block in blocks:
            finder.feed(block)
        finder.flush()
        return finder.statistics.n_coincidences

    def vectorised():
        times = [np.concatenate([b.time_ticks[(b.channel == c) & (b.kind == 0)] for b in blocks]) for c in (1, 2)]
        return count_pairs_vectorised(*times, -8, 8)

    assert benchmark(ours) == vectorised()
    record(benchmark, len(first) + len(second), ours, numpy=vectorised)


def test_bench_delay_histogram(benchmark, streams):
    """400 bins of 2 ticks, both channels in one stream, chunk by chunk."""
    first, second = streams
    blocks = as_blocks(first, second, 1 << 18)

    def ours():
        histogram = DelayHistogram(1, 2, tick_ps=Fraction(125), bin_width_ticks=2, n_bins=400)
        for block in blocks:
            histogram.feed(block)
        histogram.flush()
        return histogram.counts

    def vectorised():
        return delay_counts_vectorised(first, second, -400, 2, 400)

    np.testing.assert_array_equal(benchmark(ours), vectorised())
    record(benchmark, len(first) + len(second), ours, numpy=vectorised)


def test_bench_arrival_histogram(benchmark, streams):
    first, _ = streams
    counts = np.empty(1000, np.int64)

    def ours():
        counts.fill(0)
        delays.bin_arrivals(first, 5, 25_003, 10, counts)

    def vectorised():
        return arrival_counts_vectorised(first, 5, 25_003, 10, 1000)

    benchmark(ours)
    np.testing.assert_array_equal(counts, vectorised())
    record(benchmark, len(first), ours, numpy=vectorised)


def test_bench_merging(benchmark, streams):
    columns = [(times, *np.ones((2, len(times)), np.uint8)) for times in streams]
    n = sum(map(len, streams))

    def ours():
        out = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        merge.merge_two(*columns[0], *columns[1], *out)
        return out

    def vectorised():
        return merge_vectorised(*columns)

    for got, want in zip(benchmark(ours), vectorised(), strict=True):
        np.testing.assert_array_equal(got, want)
    record(benchmark, n, ours, numpy=vectorised)

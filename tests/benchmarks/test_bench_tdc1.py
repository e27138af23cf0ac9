"""TDC1 decoding against its NumPy oracle, in one run."""

import sys
import time
from pathlib import Path

import numpy as np

from qkdhw._core.tdc1 import decode_tdc1

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from oracle_tdc1 import decode_tdc1 as oracle

N_WORDS = 1_000_000


def best_s(call, rounds=5):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def test_bench_tdc1(benchmark):
    rng = np.random.default_rng(1)
    raw = np.cumsum(rng.integers(1, 5000, N_WORDS)) % (1 << 27)
    data = (raw.astype("<u4") << 5 | rng.integers(1, 17, N_WORDS).astype("<u4")).tobytes()
    time_ticks, channel, kind = (np.empty(4 * N_WORDS, t) for t in (np.int64, np.uint8, np.uint8))

    def kernel():
        return decode_tdc1(data, np.array([0, -1], np.int64), time_ticks, channel, kind)

    events, words, bad = benchmark(kernel)
    want = oracle(data, 0, -1)
    assert (words, bad) == (N_WORDS, -1)
    np.testing.assert_array_equal(time_ticks[:events], want[0])
    np.testing.assert_array_equal(channel[:events], want[1])
    np.testing.assert_array_equal(kind[:events], want[2])
    ratio = best_s(lambda: oracle(data, 0, -1)) / best_s(kernel)
    benchmark.extra_info.update(ratio_to_numpy=round(ratio, 1), events=events, words=words)
    assert ratio > 1.0

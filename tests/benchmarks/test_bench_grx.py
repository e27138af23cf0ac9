"""GRX/1 decoding against its NumPy oracle, in one run."""

import sys
import time
import zlib
from pathlib import Path

import numpy as np

from qkdhw._core.grx import decode_grx

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from oracle_grx import decode_grx as oracle

N_EVENTS = 1 << 20


def best_s(call, rounds=5):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def test_bench_grx(benchmark):
    rng = np.random.default_rng(1)
    ticks = np.cumsum(rng.integers(1, 5000, N_EVENTS)).astype(np.uint64)
    data = (ticks | rng.integers(1, 5, N_EVENTS).astype(np.uint64) << np.uint64(44)).astype("<u8").tobytes()
    time_ticks, channel, kind = (np.empty(N_EVENTS, t) for t in (np.int64, np.uint8, np.uint8))

    def kernel():
        return decode_grx(data, 0, -1, time_ticks, channel, kind)

    assert benchmark(kernel) == (0, -1, -1)
    want = oracle(data, 0, -1)
    np.testing.assert_array_equal(time_ticks, want[0])
    np.testing.assert_array_equal(channel, want[1])
    kernel_s, crc_s = best_s(kernel), best_s(lambda: zlib.crc32(data))
    ratio = best_s(lambda: oracle(data, 0, -1)) / kernel_s
    rate = N_EVENTS / (kernel_s + crc_s)
    benchmark.extra_info.update(ratio_to_numpy=round(ratio, 1), events_per_s_with_crc=f"{rate:.3g}")
    assert ratio > 1.0

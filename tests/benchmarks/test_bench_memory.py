"""What memory itself gives in this run, for scale beside the rates of the kernels."""

import time

import numpy as np
import pytest

ROUNDS = 9


@pytest.mark.parametrize("size", [1 << 19, 1 << 27], ids=["in the cache", "in memory"])
def test_bench_copy(benchmark, size):
    """Copy bytes from one place to another; a byte that is copied is read once and written once."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    times = max(1, (1 << 28) // size)

    def copies():
        for _ in range(times):
            np.copyto(target, source)

    best_s = np.inf
    for _ in range(ROUNDS):
        begun_s = time.thread_time()
        copies()
        best_s = min(best_s, time.thread_time() - begun_s)
    benchmark.pedantic(copies, rounds=1)
    assert target.all()
    benchmark.extra_info.update(copied_gb_per_s=round(times * size / best_s / 1e9, 1))

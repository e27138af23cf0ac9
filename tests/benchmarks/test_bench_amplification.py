"""Amplification against the float64 FFT oracle in one run; `--benchmark-only` prints the ratio."""

import sys
import time
from pathlib import Path

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from qkdhw.postprocessing.amplification import amplify, seed_bits

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from oracle_toeplitz import toeplitz_by_fft


def test_amplify_a_million_bits(benchmark: BenchmarkFixture) -> None:
    n, m = 1_000_000, 500_000
    rng = np.random.default_rng(11)
    bits = rng.integers(0, 2, n, dtype=np.uint8)
    seed = rng.bytes((seed_bits(n, m) + 7) // 8)

    def run() -> bytes:
        with amplify(bits, seed, m) as key:
            return bytes(key)

    oracle_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        expected = toeplitz_by_fft(bits, seed, m)
        oracle_s.append(time.perf_counter() - started_s)
    assert benchmark.pedantic(run, rounds=10, warmup_rounds=1) == expected
    kernel_s = benchmark.stats.stats.min
    benchmark.extra_info["ratio_to_numpy"] = round(min(oracle_s) / kernel_s, 1)
    benchmark.extra_info["input_mbit_per_s"] = round(n / kernel_s / 1e6, 1)
    assert min(oracle_s) > kernel_s

"""Reconciliation of half a million bits: what it leaks over the Shannon limit, and how fast the receiver decodes."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from qkdhw.postprocessing.reconciliation import SyndromeSink, SyndromeSource, efficiency

N = 500_000


@pytest.mark.parametrize("qber", [0.005, 0.01, 0.02, 0.05])
def test_bench_reconciliation(benchmark: BenchmarkFixture, qber: float) -> None:
    rng = np.random.default_rng(5)
    sent = rng.integers(0, 2, N, dtype=np.uint8)
    received = sent ^ (rng.random(N) < qber).astype(np.uint8)

    def run() -> tuple[SyndromeSource, SyndromeSink]:
        source, sink = SyndromeSource(sent.copy(), qber), SyndromeSink(received.copy(), qber)
        request = sink.receive(source.first_message())
        while request is not None:
            request = sink.receive(source.answer(request))
        return source, sink

    source, sink = benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    assert np.array_equal(sink.corrected, sent)
    assert source.leak_bits == sink.leak_bits
    f = efficiency(sink.leak_bits, N, sink.n_errors)
    benchmark.extra_info.update(f=round(f, 3), mbit_per_s=round(N / benchmark.stats.stats.min / 1e6, 2))

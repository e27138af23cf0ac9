"""Alignment of pairs: folding against NumPy, and the whole of it in processor time, beside fpfind on the same files."""

import resource
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pair_streams import pair_streams
from qkdhw._core.folding import fold_events, fold_residuals
from qkdhw.events.pair_alignment import align_pairs
from qkdhw.formats.registry import open_events, write_events
from qkdhw.model import DetectionBlock

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from oracle_folding import fold_pairs_vectorised, fold_vectorised

TICK_PS = Fraction(125, 32)
ROUNDS = 5


def best_cpu_s(*calls, rounds=ROUNDS):
    """Best processor time of each, taken in turns so that a busy machine slows all."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for k, call in enumerate(calls):
            begin = time.process_time()
            call()
            best[k] = min(best[k], time.process_time() - begin)
    return best


@pytest.fixture(scope="module")
def ten_seconds():
    """10.7 million and 3.2 million events; 0.1 million pairs a second, clocks 10 ppm apart."""
    return pair_streams(
        1, singles=(1.07e6, 0.32e6), pairs=1e5, span_s=10.0, offset_s=154_321e-9, rate=-1e-5,
        a_tick_ps=TICK_PS, b_tick_ps=TICK_PS,
    )  # fmt: skip


def blocks(streams):
    return [
        DetectionBlock(ticks, np.ones(len(ticks), np.uint8), np.zeros(len(ticks), np.uint8), TICK_PS)
        for ticks in (streams.a_ticks, streams.b_ticks)
    ]


def test_bench_fold(benchmark, ten_seconds):
    ticks, bins, step, fraction_bits = ten_seconds.b_ticks[:2_000_000], 1 << 20, 3 << 45, 18
    ref = int(ticks[0])
    histogram = np.zeros(bins, np.float32)

    def kernel():
        histogram.fill(0)
        return fold_events(ticks, ref, step, fraction_bits, histogram)

    def oracle():
        return fold_vectorised(ticks, ref, step, fraction_bits, bins)

    assert benchmark(kernel) == len(ticks)
    np.testing.assert_array_equal(histogram, oracle())
    ours_s, numpy_s = best_cpu_s(kernel, oracle)
    assert numpy_s > ours_s
    benchmark.extra_info.update(
        ratio_to_numpy=round(numpy_s / ours_s, 1), mevents_per_s=round(len(ticks) / ours_s / 1e6)
    )


def test_bench_residuals(benchmark, ten_seconds):
    a, b = ten_seconds.a_ticks[:2_000_000], ten_seconds.b_ticks[:600_000]
    clock = (int(a[0]), int(a[0] + ten_seconds.offset_s / 3.90625e-12), 1 << 30, round((1 - 1e-5) * 2**48))
    slice_shift = 36  # 2^36 ticks are 0.27 s
    histogram = np.zeros((10, 128), np.int64)

    def kernel():
        histogram.fill(0)
        return fold_residuals(a, b, *clock, int(a[0]), slice_shift, 32 + 8, histogram)

    def oracle():
        return fold_pairs_vectorised(a, b, clock, int(a[0]), slice_shift, 32 + 8, 10, 128)

    pairs = benchmark(kernel)
    want = oracle()
    assert pairs == histogram.sum() > 150_000
    assert np.abs(histogram - want).sum() <= pairs // 1000  # the oracle's bins differ at their edges
    ours_s, numpy_s = best_cpu_s(kernel, oracle, rounds=3)
    assert numpy_s > ours_s
    benchmark.extra_info.update(
        ratio_to_numpy=round(numpy_s / ours_s, 1), mevents_per_s=round((len(a) + len(b)) / ours_s / 1e6)
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("2^20 bins of 1 ns", {"max_offset_s": 2**19 * 1e-9, "max_ppm": 10.0}),
        ("2^20 bins of 1 ns, 20 ppm", {"max_offset_s": 2**19 * 1e-9}),
        ("100 ms, 20 ppm", {}),
        ("100 ms, 20 ppm, fit over 10 s", {"span_s": 10.0}),
    ],
)
def test_bench_align(benchmark, ten_seconds, name, options):
    a, b = blocks(ten_seconds)
    found = benchmark(align_pairs, a, b, **options)
    assert abs(ten_seconds.error_ticks(found.clock)) <= found.resolution_ticks
    assert abs(float(found.relative_rate) + 1e-5) < 1e-9
    (cpu_s,) = best_cpu_s(lambda: align_pairs(a, b, **options))
    benchmark.extra_info.update(searched=name, cpu_s=round(cpu_s, 3))


@pytest.mark.parametrize("order", [20, 23])
def test_bench_align_beside_fpfind(benchmark, ten_seconds, tmp_path, order):
    """From files to offset and rate, 20 ppm scanned; the time that fpfind needs to start is not counted."""
    pytest.importorskip("fpfind")
    command = [str(Path(sys.executable).parent / "fpfind"), "-p", "-X", "-P", "-q", str(order)]
    names = [tmp_path / "a.ts", tmp_path / "b.ts"]
    for name, each in zip(names, blocks(ten_seconds), strict=True):
        write_events(name, [each], tick_ps=TICK_PS, format_name="qcrypto-a1x")

    def peer(*arguments):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def ours():
        whole = [next(open_events(name, "qcrypto-a1x").read_blocks(len(ten_seconds.a_ticks))) for name in names]
        return align_pairs(*whole)

    _, start_s = peer("--help")
    done, peer_s = peer("-T", str(names[0]), "-t", str(names[1]))
    (ours_s,) = best_cpu_s(ours, rounds=3)
    found = benchmark.pedantic(ours, rounds=1)
    assert abs(ten_seconds.error_ticks(found.clock)) <= found.resolution_ticks
    assert ours_s < peer_s - start_s
    benchmark.extra_info.update(
        cpu_s=round(ours_s, 2),
        fpfind_cpu_s=round(peer_s - start_s, 2),
        ratio=round((peer_s - start_s) / ours_s, 1),
        fpfind_found=done.stdout.strip().replace("\t", " "),
    )

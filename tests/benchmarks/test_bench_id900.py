"""The ID900's stream from end to end: emulator in another process, ZeroMQ, decoding, merging, NumPy blocks."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qkdhw import open_unit
from qkdhw._core.idq import decode_id900, merge_id900
from qkdhw.model import EventKind

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from oracle_idq import decode_and_merge_fast as oracle

RATE_HZ = 5e6  # at each of four inputs
PERIOD_PS = 200_000
N_EVENTS = 100_000_000
SUB_ACQUISITION_S = 0.1
SERVE = """
import sys
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.idq_id900 import EmulatedIdqId900
from qkdhw_emulators.world import VirtualClock, World
world = World(clock=VirtualClock(pace=None if sys.argv[1] == "none" else float(sys.argv[1])))
unit = EmulatedIdqId900(world)
for number in range(1, 5):
    world.set_condition(f"rate_{number}_hz", float(sys.argv[2]))
with serve_unit(unit, world, transport="zmq") as served:
    print(served.url, flush=True)
    sys.stdin.read()
"""


def best_s(call, rounds=5):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def emulator(pace):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, pace, str(RATE_HZ)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait(20) == 0


def read_all(tagger, n_events):
    """Count what comes, and look at each block: time never goes back, and inputs take turns pulse for pulse."""
    photons, last, sums = 0, -1, np.zeros(5, np.int64)
    while photons < n_events:
        block = tagger.read_block(1 << 22, timeout_s=10.0)
        assert len(block) > 0
        assert block.missed == 0
        assert block.time_ticks[0] >= last
        last = int(block.time_ticks[-1])
        n = int(np.count_nonzero(block.kind == EventKind.PHOTON))
        photons += n
        sums += np.bincount(block.channel, minlength=5)
    return photons, sums


@pytest.mark.parametrize("pace", ["none", "1"])
def test_bench_id900_stream(benchmark, pace):
    """As fast as it is read, and in real time at 20 million events a second."""
    with emulator(pace) as url, open_unit("idq-id900", url, timeout_s=5.0) as tagger:
        tagger.start(sub_acquisition_s=SUB_ACQUISITION_S)
        first = tagger.read_block(1 << 22, timeout_s=10.0)
        for channel in range(1, 5):
            times = first.time_ticks[first.channel == channel]
            assert len(times) > 100_000
            assert (np.diff(times) == PERIOD_PS).all()
        photons, sums = benchmark.pedantic(lambda: read_all(tagger, N_EVENTS), rounds=1)
        seconds = benchmark.stats.stats.mean
        tagger.stop()  # EventOverflowError if one is missing
        counters = tagger.read_status().counters
        while len(tagger.read_block(1 << 22, timeout_s=0.0)):
            pass
        assert max(sums[1:]) - min(sums[1:]) <= len(first) // 2
        assert counters["missed"] == 0
    benchmark.extra_info.update(million_events_a_second=round(photons / seconds / 1e6, 1), events=photons, lost=0)


def test_bench_id900_kernels(benchmark):
    """Decoding and merging against NumPy, in one run."""
    rng = np.random.default_rng(1)
    n, width = 500_000, 2 * 10**11
    messages = [np.sort(rng.integers(0, width, n)).astype("<u8").tobytes() for _ in range(4)]
    numbers = np.array([1, 2, 3, 4], np.uint8)
    streams = [np.empty(n, np.int64) for _ in messages]
    times, channel = np.empty(4 * n, np.int64), np.empty(4 * n, np.uint8)

    def kernels():
        for message, stream in zip(messages, streams, strict=True):
            assert decode_id900(message, 10**12, width, 0, stream) == -1
        return merge_id900(*streams, numbers, times, channel)

    assert benchmark(kernels) == 4 * n
    want_times, want_channel = oracle(messages, [1, 2, 3, 4], 10**12, width)
    np.testing.assert_array_equal(times, want_times)
    np.testing.assert_array_equal(channel, want_channel)
    ratio = best_s(lambda: oracle(messages, [1, 2, 3, 4], 10**12, width)) / best_s(kernels)
    benchmark.extra_info.update(ratio_to_numpy=round(ratio, 1), events=4 * n)
    assert ratio > 1.0

"""Event decoding against vectorised NumPy on the same data in one run: equal results, and by what ratio faster."""

import sys
import time
from pathlib import Path

import numpy as np

from qkdhw._core import ptu, qcrypto, qutag

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
import oracle_ptu
import oracle_qcrypto
import oracle_qutag

RECORDS = 2_000_000


def compare(benchmark, kernel, oracle, *, rounds=5):
    """Time both alternately, so that a busy machine slows both; print and keep the ratio of the best times."""
    kernel_s, oracle_s = [], []
    for _ in range(rounds):
        for call, times in ((kernel, kernel_s), (oracle, oracle_s)):
            start = time.perf_counter()
            wanted = call()
            times.append(time.perf_counter() - start)
    found = benchmark(kernel)
    for column, same in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(column, same)
    ratio = min(oracle_s) / min(kernel_s)
    rate = RECORDS / min(kernel_s) / 1e6
    benchmark.extra_info.update(ratio_to_numpy=round(ratio, 1), mrecords_per_s=round(rate, 1), records=RECORDS)
    print(f"\n{benchmark.name}: {ratio:.1f} times NumPy, {rate:.0f} Mrecords/s")


def test_bench_ptu_t2(benchmark):
    rng = np.random.default_rng(1)
    # Shares as in a recording of a HydraHarp: mostly inputs, some overflows, few markers, sync events.
    draw = rng.random(RECORDS)
    ticks = rng.integers(0, 2**25, RECORDS, dtype=np.uint32)
    record = rng.integers(0, 4, RECORDS, dtype=np.uint32) << 25 | ticks
    record[draw < 0.06] = 0xFE000000 | rng.integers(0, 8, int((draw < 0.06).sum()), dtype=np.uint32)
    record[draw > 0.99] = 0x82000000 | ticks[draw > 0.99]
    record[(draw > 0.97) & (draw < 0.99)] = 0x80000000 | ticks[(draw > 0.97) & (draw < 0.99)]

    def kernel():
        time_ticks, channel, kind = (np.empty(RECORDS, t) for t in (np.int64, np.uint8, np.uint8))
        n = ptu.decode_hydraharp_t2(record, 33554432, True, time_ticks, channel, kind, np.zeros(4, np.int64))
        return time_ticks[:n], channel[:n], kind[:n]

    compare(benchmark, kernel, lambda: oracle_ptu.numpy_hydraharp_t2(record))


def test_bench_qcrypto(benchmark):
    rng = np.random.default_rng(2)
    ticks = np.cumsum(rng.integers(1, 5000, RECORDS)).astype(np.uint64)
    # Mostly one input, now and then two, few dummies.
    pattern = np.array([1, 2, 4, 8, 3, 16], np.uint64)[
        np.searchsorted(np.cumsum([0.25, 0.25, 0.24, 0.24, 0.01]), rng.random(RECORDS))
    ]
    word = ticks << np.uint64(10) | np.uint64(0x300) | pattern

    def kernel():
        time_ticks, channel, kind = (np.empty(4 * RECORDS, t) for t in (np.int64, np.uint8, np.uint8))
        state = np.array([-1, 0, 0, 0, -1], np.int64)
        n = qcrypto.decode_words(word, 54, False, time_ticks, channel, kind, np.zeros(16, np.int64), state)
        return time_ticks[:n], channel[:n], kind[:n]

    compare(benchmark, kernel, lambda: oracle_qcrypto.numpy_decode(word, 54))


def test_bench_qutag(benchmark):
    rng = np.random.default_rng(3)
    record = np.empty(RECORDS, oracle_qutag.RECORD)
    record["time"] = np.cumsum(rng.integers(1, 5000, RECORDS))
    record["channel"] = rng.integers(1, 6, RECORDS)
    data = np.frombuffer(record.tobytes(), np.uint8)

    def kernel():
        time_ticks, channel = np.empty(RECORDS, np.int64), np.empty(RECORDS, np.uint8)
        n = qutag.decode_records(data, time_ticks, channel, np.zeros(2, np.int64))
        return time_ticks[:n], channel[:n]

    compare(benchmark, kernel, lambda: oracle_qutag.decode(data)[:2])

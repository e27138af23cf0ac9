"""Event decoding against NumPy, ptufile and fpfind on the same data in one run: equal results, and ratios of CPU time.

Kernels decode pieces that fit the cache into outputs that are made once, as the streaming decoder's callers do; NumPy
does the same pieces. The peers are called as their users call them, on the whole.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qkdhw._core import epoch, ptu, qcrypto, qutag, swabian
from qkdhw.formats import EventDecoder

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
import oracle_ptu
import oracle_qcrypto
import oracle_qutag

RECORDS = 2_000_000
PIECE = 1 << 16
ROUNDS = 7


def cpu_s(call):
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def compare(benchmark, kernel, peers, records=RECORDS):
    """Time all alternately, so that a busy machine slows all; note the ratios of the best CPU times."""
    best = dict.fromkeys(["kernel", *peers], np.inf)
    for _ in range(ROUNDS):
        for name, call in (("kernel", kernel), *peers.items()):
            best[name] = min(best[name], cpu_s(call)[0])
    benchmark.pedantic(kernel, rounds=3)
    ratios = {f"ratio_to_{name}": round(best[name] / best["kernel"], 2) for name in peers}
    benchmark.extra_info.update(ratios, mrecords_per_s=round(records / best["kernel"] / 1e6, 1), records=records)
    print(f"\n{benchmark.name}: {ratios}, {records / best['kernel'] / 1e6:.0f} Mrecords/s")
    return ratios


def equal(found, wanted):
    for column, same in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(column, same)


def in_pieces(record, size=PIECE):
    return [record[first : first + size] for first in range(0, len(record), size)]


def outputs(n):
    return np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)


def joined(decode, pieces, columns):
    """Decode pieces into the same outputs and keep what each gave."""
    parts = [[column[:n].copy() for column in columns] for n in map(decode, pieces)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def hydraharp_records(n):
    rng = np.random.default_rng(1)
    # Shares as in a recording of a HydraHarp: mostly inputs, some overflows, few markers, sync events.
    draw = rng.random(n)
    ticks = rng.integers(0, 2**25, n, dtype=np.uint32)
    record = rng.integers(0, 4, n, dtype=np.uint32) << 25 | ticks
    record[draw < 0.06] = 0xFE000000 | rng.integers(0, 8, int((draw < 0.06).sum()), dtype=np.uint32)
    record[draw > 0.99] = 0x82000000 | ticks[draw > 0.99]
    record[(draw > 0.97) & (draw < 0.99)] = 0x80000000 | ticks[(draw > 0.97) & (draw < 0.99)]
    return record


@pytest.fixture(scope="module")
def t2_record():
    return hydraharp_records(RECORDS)


def test_bench_ptu_t2(benchmark, t2_record):
    decode_t2_records = pytest.importorskip("ptufile._ptufile").decode_t2_records
    dtype = pytest.importorskip("ptufile.ptufile").T2_RECORD_DTYPE
    pieces, columns = in_pieces(t2_record), outputs(PIECE)
    state = np.zeros(4, np.int64)

    def decode(piece):
        return ptu.decode_hydraharp_t2(piece, 33554432, True, *columns, state)

    def kernel():
        state[:] = 0
        return [decode(piece) for piece in pieces]

    def peer():
        found = np.zeros(RECORDS, dtype)
        decode_t2_records(found, t2_record, 0x00010207)
        return found

    found = joined(decode, pieces, columns)
    equal(found, oracle_ptu.numpy_hydraharp_t2(t2_record))
    theirs = peer()
    # ptufile keeps a row for each overflow (channel -1), and calls both sync and input 1 channel 0.
    theirs = theirs[(theirs["channel"] >= 0) | (theirs["marker"] > 0)]
    np.testing.assert_array_equal(theirs["time"], found[0])
    ratios = compare(
        benchmark,
        kernel,
        {
            "numpy": lambda: [oracle_ptu.numpy_hydraharp_t2(piece) for piece in pieces],
            "numpy_whole": lambda: oracle_ptu.numpy_hydraharp_t2(t2_record),
            "ptufile": peer,
        },
    )
    assert ratios["ratio_to_ptufile"] > 1


def test_bench_ptu_t2_of_a_file(benchmark):
    """The records of a file of 80 MB: in pieces as they are read, NumPy all at once, whose arrays are of new memory then."""
    n = 10 * RECORDS
    record, columns, state = hydraharp_records(n), outputs(PIECE), np.zeros(4, np.int64)
    pieces = in_pieces(record)

    def kernel():
        state[:] = 0
        return sum(ptu.decode_hydraharp_t2(piece, 33554432, True, *columns, state) for piece in pieces)

    assert kernel() == len(oracle_ptu.numpy_hydraharp_t2(record)[0])
    compare(benchmark, kernel, {"numpy_whole": lambda: oracle_ptu.numpy_hydraharp_t2(record)}, n)


def test_bench_ptu_t2_portable(benchmark, t2_record):
    """The plain loop, which processors without wider instructions take."""
    decode_t2_records = pytest.importorskip("ptufile._ptufile").decode_t2_records
    dtype = pytest.importorskip("ptufile.ptufile").T2_RECORD_DTYPE
    pieces, columns, state = in_pieces(t2_record), outputs(PIECE), np.zeros(4, np.int64)

    def kernel():
        state[:] = 0
        return [ptu.decode_hydraharp_t2(piece, 33554432, True, *columns, state, True) for piece in pieces]

    def peer():
        decode_t2_records(np.zeros(RECORDS, dtype), t2_record, 0x00010207)

    numpy = [oracle_ptu.numpy_hydraharp_t2(piece) for piece in pieces]
    assert kernel() == [len(time) for time, _, _ in numpy]
    compare(benchmark, kernel, {"numpy_whole": lambda: oracle_ptu.numpy_hydraharp_t2(t2_record), "ptufile": peer})


@pytest.fixture(scope="module")
def words():
    rng = np.random.default_rng(2)
    ticks = np.cumsum(rng.integers(1, 5000, RECORDS)).astype(np.uint64)
    # Mostly one input, now and then two, few dummies.
    pattern = np.array([1, 2, 4, 8, 3, 16], np.uint64)[
        np.searchsorted(np.cumsum([0.25, 0.25, 0.24, 0.24, 0.01]), rng.random(RECORDS))
    ]
    return ticks << np.uint64(10) | np.uint64(0x300) | pattern


def word_decoder(size):
    columns, state, patterns = outputs(4 * size), np.array([-1, 0, 0, 0, -1], np.int64), np.zeros(16, np.int64)

    def decode(piece):
        return qcrypto.decode_words(piece, 54, False, *columns, patterns, state)

    return decode, columns, state


def test_bench_qcrypto(benchmark, words):
    """In memory. fpfind's reader gives one row a word; dummies, several inputs and wraps are left to its user."""
    fpfind = pytest.importorskip("fpfind")
    read_buffer = pytest.importorskip("fpfind.lib.parse_timestamps").read_a1_from_buffer
    pieces, data = in_pieces(words, PIECE // 2), words.tobytes()
    decode, columns, state = word_decoder(PIECE // 2)
    exact = {"resolution": fpfind.TSRES.PS4, "fractional": False}

    def kernel():
        state[:] = -1, 0, 0, 0, -1
        return [decode(piece) for piece in pieces]

    found = joined(decode, pieces, columns)
    equal(found, oracle_qcrypto.numpy_decode(words, 54))
    theirs, their_pattern = read_buffer(data, **exact)
    index, bit = np.nonzero(their_pattern[:, None] >> np.arange(4, dtype=np.uint32) & 1)
    photon = found[2] == 0
    equal((found[0][photon], found[1][photon]), (theirs[index].astype(np.int64), (bit + 1).astype(np.uint8)))
    compare(
        benchmark,
        kernel,
        {
            "numpy": lambda: [oracle_qcrypto.numpy_decode(piece, 54) for piece in pieces],
            "fpfind": lambda: read_buffer(data),
            "fpfind_integers": lambda: read_buffer(data, **exact),
        },
    )


def test_bench_qcrypto_file(benchmark, words, tmp_path):
    """From a file in the page cache: half of the kernel's side is the copy that reading makes."""
    fpfind = pytest.importorskip("fpfind")
    read_a1 = pytest.importorskip("fpfind.lib.parse_timestamps").read_a1
    path = tmp_path / "x.ts"
    words.tofile(path)
    decode, _, state = word_decoder(PIECE // 2)
    piece = np.empty(PIECE // 2, np.uint64)

    def kernel():
        state[:] = -1, 0, 0, 0, -1
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(piece):
                decode(piece[: n // 8])

    exact = {"resolution": fpfind.TSRES.PS4, "fractional": False}
    np.testing.assert_array_equal(read_a1(path, **exact)[0], words >> np.uint64(10))
    compare(benchmark, kernel, {"fpfind": lambda: read_a1(path), "fpfind_integers": lambda: read_a1(path, **exact)})


def test_bench_qutag(benchmark):
    rng = np.random.default_rng(3)
    record = np.empty(RECORDS, oracle_qutag.RECORD)
    record["time"] = np.cumsum(rng.integers(1, 5000, RECORDS))
    record["channel"] = rng.integers(1, 6, RECORDS)
    data = np.frombuffer(record.tobytes(), np.uint8)
    pieces, columns, state = [data[a : a + 10 * PIECE] for a in range(0, len(data), 10 * PIECE)], outputs(PIECE), np.zeros(2, np.int64)  # fmt: skip

    def decode(piece):
        return qutag.decode_records(piece, *columns, state)

    equal(joined(decode, pieces, columns), oracle_qutag.decode(data)[:3])
    compare(
        benchmark,
        lambda: [decode(piece) for piece in pieces],
        {"numpy": lambda: [oracle_qutag.decode(piece) for piece in pieces]},
    )


def numpy_dump(data):
    """Vectorised decoder of Dump records that are all right."""
    record = np.frombuffer(data, np.dtype("u1,u1,<u2,<i4,<i8"))
    source = record["f3"]
    kind = np.array([0, 5, 2, 3, 4], np.uint8)[record["f0"]]
    return record["f4"].astype(np.int64), np.where(source < 0, 128 - source, source).astype(np.uint8), kind


def test_bench_swabian(benchmark):
    rng = np.random.default_rng(4)
    record = np.zeros(RECORDS, np.dtype("u1,u1,<u2,<i4,<i8"))
    record["f3"], record["f4"] = rng.integers(1, 9, RECORDS), np.cumsum(rng.integers(1, 5000, RECORDS))
    data = np.frombuffer(record.tobytes(), np.uint8)
    pieces, columns, state = [data[a : a + 16 * PIECE] for a in range(0, len(data), 16 * PIECE)], outputs(PIECE), np.zeros(3, np.int64)  # fmt: skip

    def decode(piece):
        return swabian.decode_records(piece, *columns, state)

    equal(joined(decode, pieces, columns), numpy_dump(data))
    compare(
        benchmark,
        lambda: [decode(piece) for piece in pieces],
        {"numpy": lambda: [numpy_dump(piece) for piece in pieces]},
    )


def test_bench_epoch_t2(benchmark, tmp_path):
    """One packet of type 2 with differences of 17 bits; fpfind's reader goes through it bit by bit in Python."""
    read_t2 = pytest.importorskip("fpfind.lib.parse_epochs").read_T2
    fpfind = pytest.importorskip("fpfind")
    n = 200_000
    rng = np.random.default_rng(5)
    value, base = np.cumsum(rng.integers(0, 40_000, n)), rng.integers(0, 2, n).astype(np.uint8)
    word, written = np.empty(2 * n, np.uint32), np.empty(n, np.uint8)
    count = epoch.encode_differences(value, base, 17, 1, 0, False, word, written)
    word = word[:count]
    head = np.array([0x102, 0xB1234567, n, 17, 1, 1], "<u4")
    path = tmp_path / "b1234567"
    path.write_bytes(head.tobytes() + word.tobytes())
    found, found_base = np.empty(n, np.int64), np.empty(n, np.uint8)

    def kernel():
        return epoch.decode_differences(word, 0, 17, 1, 0, 1 << 33, found, found_base, np.zeros(1, np.int64))

    assert kernel()[0::2] == (n, 1)
    equal((found, found_base), (value, base))
    start = time.process_time()
    theirs, _ = read_t2(path, resolution=fpfind.TSRES.PS125, fractional=False)
    peer_s = time.process_time() - start
    np.testing.assert_array_equal(theirs.astype(np.int64) & 0xFFFFFFFF, value)
    kernel_s = min(cpu_s(kernel)[0] for _ in range(ROUNDS))
    benchmark.pedantic(kernel, rounds=3)
    benchmark.extra_info.update(
        ratio_to_fpfind=round(peer_s / kernel_s, 1), mentries_per_s=round(n / kernel_s / 1e6, 1)
    )


def test_bench_stream(benchmark, words):
    """The streaming decoder, arrays of their own for each block included, beside copying as many bytes."""
    data = words.tobytes()
    pieces = [data[a : a + 8 * PIECE] for a in range(0, len(data), 8 * PIECE)]
    written = sum(column.nbytes for column in oracle_qcrypto.numpy_decode(words, 54))
    source = np.zeros(written, np.uint8)

    def kernel():
        decoder = EventDecoder("qcrypto-a1")
        return sum(len(decoder.feed(piece)) for piece in pieces) + len(decoder.finish())

    assert kernel() == len(oracle_qcrypto.numpy_decode(words, 54)[0])
    compare(benchmark, kernel, {"copying_the_events": source.copy})

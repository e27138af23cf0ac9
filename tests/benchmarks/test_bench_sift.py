"""Gating and sifting kernels against NumPy in one run: equal results, and a ratio in extra_info."""

import sys
import time
from pathlib import Path

import numpy as np

from qkdhw._core.gating import gate_events, reset_state
from qkdhw._core.sifting import decode_slots, encode_slots, sift_receiver, sift_transmitter

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from oracle_gating import gate_vectorised
from oracle_sifting import decode_slots_vectorised, encode_slots_vectorised
from oracle_sifting import sift_receiver as receiver_oracle
from oracle_sifting import sift_transmitter as transmitter_oracle

N = 2_000_000
ONE = 1 << 32


def best_s(kernel, oracle, rounds=5):
    """Best processor time of each, taken in turns so that a busy machine slows both."""
    times = ([], [])
    for _ in range(rounds):
        for call, kept in zip((kernel, oracle), times, strict=True):
            start = time.thread_time()
            call()
            kept.append(time.thread_time() - start)
    return min(times[0]), min(times[1])


def record_ratio(benchmark, kernel, oracle):
    ours_s, numpy_s = best_s(kernel, oracle)
    ratio = numpy_s / ours_s
    benchmark.extra_info.update(
        ratio_to_numpy=round(ratio, 1),
        mevents_per_s=round(N / ours_s / 1e6),
        numpy_mevents_per_s=round(N / numpy_s / 1e6),
    )
    assert ratio > 1.0


class Clicks:
    """Two million clicks of four detectors, one tenth dark, at one in twenty slots, and what gating them needs."""

    def __init__(self):
        rng = np.random.default_rng(1)
        pulses = np.sort(rng.integers(0, 40_000_000, N))
        dark = rng.random(N) < 0.1
        signal = np.floor(25.0003 * pulses + 5 + rng.normal(0, 0.3, N))
        self.ticks = np.sort(np.where(dark, rng.integers(0, 10**9, N), signal)).astype(np.int64)
        self.channel = rng.integers(1, 5, N, dtype=np.uint8)
        self.kind = np.zeros(N, np.uint8)
        self.wiring = np.full(256, 255, np.uint8)
        self.wiring[1:5] = range(4)
        self.clock = (0, 4, 3 << 30, int(25.0003 * ONE))
        self.half_width, self.dead_time = int(1.5 * ONE), 50 * ONE
        self.random = rng.integers(0, 256, N, dtype=np.uint8)
        self.slot = np.empty(N + 1, np.int64)
        self.basis, self.bit = np.empty(N + 1, np.uint8), np.empty(N + 1, np.uint8)
        self.state, self.counts, self.histogram = np.empty(8, np.int64), np.empty(15, np.int64), np.empty(256, np.int64)

    def reset(self):
        reset_state(self.state)
        self.counts.fill(0)
        self.histogram.fill(0)
        self.used = 0

    def gate(self, begin=0, end=N):
        done = gate_events(
            self.ticks[begin:end], self.channel[begin:end], self.kind[begin:end], self.wiring, *self.clock, -(1 << 60),
            self.half_width, self.dead_time, self.random[self.used :], end == N, self.state, self.slot, self.basis, self.bit,
            self.counts, self.histogram,
        )  # fmt: skip
        assert done == end - begin
        self.used += int(self.state[6])
        n = int(self.state[7])
        return self.slot[:n], self.basis[:n], self.bit[:n]

    def gate_in_numpy(self):
        return gate_vectorised(
            self.ticks, self.channel, self.wiring, self.clock, self.half_width, self.dead_time, self.random, 256
        )


def test_bench_gating(benchmark):
    clicks = Clicks()

    def kernel():
        clicks.reset()
        return clicks.gate()

    outcomes, want = benchmark(kernel), clicks.gate_in_numpy()
    assert len(outcomes[0]) > N // 10
    for got, expected in zip(outcomes, want, strict=False):
        np.testing.assert_array_equal(got, expected)
    assert np.abs(clicks.histogram - want[3]).sum() <= N // 1000  # NumPy has no 128-bit product: bins differ at edges
    record_ratio(benchmark, kernel, clicks.gate_in_numpy)


def test_bench_gating_and_sifting(benchmark):
    """The same clicks gated, and their outcomes sifted at both sites, on one core; rates are clicks a second.

    The kernels take 65,536 clicks at a time, as a stream brings them, NumPy all at once.
    """
    clicks, chunk = Clicks(), 65_536
    record = np.random.default_rng(2).integers(0, 12, 40_000_100, dtype=np.uint8)
    outs = [np.empty(chunk + 1, np.uint8) for _ in range(8)]
    replies = {begin: np.empty(chunk + 1, np.uint8) for begin in range(0, N, chunk)}
    counts = np.zeros(2, np.int64)

    def kernel(take=lambda site, bits: None, *, transmitter=True):
        clicks.reset()
        for begin, reply in replies.items():
            slot, basis, bit = clicks.gate(begin, min(begin + chunk, N))
            n = len(slot)
            here = [out[:n] for out in outs]
            if transmitter:
                assert sift_transmitter(slot, basis, record, 0, reply[:n], *here[:4], counts) == n
                take("sent", cut(here[:4], counts))
            assert sift_receiver(basis, bit, reply[:n], *here[4:], counts) == n
            take("received", cut(here[4:], counts))

    def oracle():
        slot, basis, bit, _ = clicks.gate_in_numpy()
        reply, sent = transmitter_oracle(slot, basis, record, 0)
        return {"sent": sent, "received": receiver_oracle(bit, reply)}

    taken = {"sent": [], "received": []}
    kernel(lambda site, bits: taken[site].append([a.copy() for a in bits]))
    for site, want in oracle().items():
        for got, expected in zip(zip(*taken[site], strict=True), want, strict=True):
            np.testing.assert_array_equal(np.concatenate(got), expected)
    benchmark(kernel)
    record_ratio(benchmark, kernel, oracle)
    receiver_s, _ = best_s(lambda: kernel(transmitter=False), lambda: None)
    benchmark.extra_info.update(receiver_alone_mevents_per_s=round(N / receiver_s / 1e6))


def sifting_input():
    rng = np.random.default_rng(2)
    record = rng.integers(0, 12, 40_000_000, dtype=np.uint8)
    slot = np.unique(rng.integers(0, len(record), N + N // 20))[:N]
    return record, slot, rng.integers(0, 2, N, dtype=np.uint8), rng.integers(0, 2, N, dtype=np.uint8)


def cut(outs, counts):
    return [out[: counts[i % 2]] for i, out in enumerate(outs)]


def test_bench_sift_transmitter(benchmark):
    record, slot, basis, _ = sifting_input()
    outs = [np.empty(N, np.uint8) for _ in range(5)]
    counts = np.zeros(2, np.int64)

    def kernel():
        return sift_transmitter(slot, basis, record, 0, *outs, counts)

    def oracle():
        return transmitter_oracle(slot, basis, record, 0)

    assert benchmark(kernel) == N
    reply, want = oracle()
    np.testing.assert_array_equal(outs[0], reply)
    for got, expected in zip(cut(outs[1:], counts), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    record_ratio(benchmark, kernel, oracle)


def test_bench_sift_receiver(benchmark):
    record, slot, basis, bit = sifting_input()
    reply, _ = transmitter_oracle(slot, basis, record, 0)
    outs = [np.empty(N, np.uint8) for _ in range(4)]
    counts = np.zeros(2, np.int64)

    def kernel():
        return sift_receiver(basis, bit, reply, *outs, counts)

    def oracle():
        return receiver_oracle(bit, reply)

    assert benchmark(kernel) == N
    for got, expected in zip(cut(outs, counts), oracle(), strict=True):
        np.testing.assert_array_equal(got, expected)
    record_ratio(benchmark, kernel, oracle)


def test_bench_slot_coding(benchmark):
    _, slot, *_ = sifting_input()
    data = np.empty(9 * N, np.uint8)
    back = np.empty(N, np.int64)

    def kernel():
        size = encode_slots(slot, 0, data)
        return size, decode_slots(data[:size], 0, back)

    def oracle():
        coded = encode_slots_vectorised(slot, 0)
        return coded, decode_slots_vectorised(coded, 0)

    size, read = benchmark(kernel)
    coded, decoded = oracle()
    assert read == size
    np.testing.assert_array_equal(data[:size], coded)
    np.testing.assert_array_equal(back, slot)
    np.testing.assert_array_equal(decoded, slot)
    benchmark.extra_info.update(bits_per_event=round(8 * size / N, 2))
    record_ratio(benchmark, kernel, oracle)

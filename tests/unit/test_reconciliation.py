"""Both sites end with the transmitter's bits, and both count the same leak, which is what went over the wire."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw.errors import PeerProtocolError
from qkdhw.postprocessing.reconciliation import SyndromeSink, SyndromeSource, efficiency
from qkdhw.quantities import binary_entropy


def noisy_pair(n: int, qber: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, n, dtype=np.uint8)
    return bits, bits ^ (rng.random(n) < qber).astype(np.uint8)


def reconcile(bits: np.ndarray, noisy: np.ndarray, estimate: float) -> tuple[SyndromeSource, SyndromeSink, int, int]:
    """Run it; also count the bits on the wire beyond headers, and the further rounds."""
    source, sink = SyndromeSource(bits, estimate), SyndromeSink(noisy, estimate)
    message, header, payload_bits, rounds = source.first_message(), 10, 0, 0
    while True:
        payload_bits += 8 * (len(message) - header)
        request = sink.receive(message)
        if request is None:
            return source, sink, payload_bits, rounds
        message, header = source.answer(request), 2
        rounds += 1


@pytest.mark.parametrize("qber", [0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.11])
def test_qber_range(qber: float) -> None:
    n = 70_000
    bits, noisy = noisy_pair(n, qber, seed=int(1e4 * qber))
    before = noisy.copy()
    source, sink, payload_bits, rounds = reconcile(bits, noisy, qber)
    assert np.array_equal(sink.corrected, bits)
    assert np.array_equal(noisy, before)
    assert sink.n_errors == np.count_nonzero(bits != noisy)
    assert source.leak_bits == sink.leak_bits
    assert sink.leak_bits >= n * binary_entropy(sink.n_errors / n)
    # One frame of whole bytes: every bit on the wire, and one for each turn of the receiver.
    assert sink.leak_bits == payload_bits + rounds + 1
    if 0.01 <= qber <= 0.08:
        assert efficiency(sink.leak_bits, n, sink.n_errors) < 1.35


@pytest.mark.parametrize("n", [0, 1, 7, 511, 512, 513, 1000, 5003, 98_303, 98_305, 140_001])
def test_any_length(n: int) -> None:
    bits, noisy = noisy_pair(n, 0.02, seed=n)
    source, sink, _, _ = reconcile(bits, noisy, 0.02)
    assert np.array_equal(sink.corrected, bits)
    assert source.leak_bits == sink.leak_bits
    if n < 512:
        assert sink.leak_bits == n


@pytest.mark.parametrize(("qber", "estimate"), [(0.03, 0.02), (0.01, 0.03), (0.02, 0.0), (0.25, 0.05)])
def test_wrong_estimate_costs_rounds_not_correctness(qber: float, estimate: float) -> None:
    bits, noisy = noisy_pair(20_000, qber, seed=3)
    source, sink, _, rounds = reconcile(bits, noisy, estimate)
    assert np.array_equal(sink.corrected, bits)
    assert source.leak_bits == sink.leak_bits >= 20_000 * binary_entropy(sink.n_errors / 20_000)
    assert rounds <= 20


def test_bursts_spread_over_all_frames() -> None:
    bits, noisy = noisy_pair(200_000, 0.0, seed=1)
    noisy[40_000:60_000] ^= (np.random.default_rng(2).random(20_000) < 0.2).astype(np.uint8)
    _, sink, _, _ = reconcile(bits, noisy, 0.02)
    assert np.array_equal(sink.corrected, bits)
    assert efficiency(sink.leak_bits, 200_000, sink.n_errors) < 1.35


def test_requests_do_not_depend_on_which_bits_were_wrong() -> None:
    # The request is the round's number and one flag a frame, whatever the errors were.
    bits, noisy = noisy_pair(140_000, 0.03, seed=4)
    sink = SyndromeSink(noisy, 0.02)
    request = sink.receive(SyndromeSource(bits, 0.02).first_message())
    assert request == struct.pack(">HB", 1, 0b1100_0000)


@given(st.binary(max_size=40))
@settings(max_examples=100, deadline=None)
def test_garbage_is_refused(garbage: bytes) -> None:
    bits, noisy = noisy_pair(3000, 0.02, seed=5)
    source, sink = SyndromeSource(bits, 0.02), SyndromeSink(noisy, 0.02)
    message = source.first_message()
    for wrong in (garbage, message[:10] + garbage, message + garbage + b"\0", message[:-1]):
        if wrong != message:
            with pytest.raises(PeerProtocolError):
                SyndromeSink(noisy, 0.02).receive(wrong)
    assert sink.receive(message) is None or sink.n_errors >= 0
    if garbage != b"\0\x01\x80":
        with pytest.raises(PeerProtocolError):
            source.answer(garbage)


def test_peer_cannot_ask_or_send_out_of_turn() -> None:
    bits, noisy = noisy_pair(3000, 0.0, seed=6)
    source, sink = SyndromeSource(bits, 0.02), SyndromeSink(noisy, 0.02)
    message = source.first_message()
    assert sink.receive(message) is None
    with pytest.raises(PeerProtocolError, match="every frame"):
        sink.receive(message)
    for request in (b"\0\x02\x80", b"\0\x01\x00", b"\0\x01\xc0", b"\0\x01\x80\0"):
        with pytest.raises(PeerProtocolError):
            source.answer(request)
    for number in range(1, 60):
        try:
            source.answer(struct.pack(">HB", number, 0x80))
        except PeerProtocolError:
            break
    assert number < 30
    whole, _ = SyndromeSource(bits[:100], 0.02), None
    whole.first_message()
    with pytest.raises(PeerProtocolError, match="whole"):
        whole.answer(b"\0\x01\x80")


def test_efficiency_by_hand() -> None:
    assert efficiency(500, 1000, 110) == pytest.approx(0.5 / 0.49992, rel=1e-4)
    assert math.isinf(efficiency(5, 1000, 0))
    assert math.isinf(efficiency(0, 0, 0))

"""The Toeplitz kernel equals a bit matrix and a convolution, bit for bit, with and without the fast instruction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_toeplitz import toeplitz_by_fft, toeplitz_by_matrix

from qkdhw._core.toeplitz import accelerated, toeplitz_hash

LENGTHS = [1, 2, 3, 63, 64, 65, 127, 128, 129, 251, 255, 256, 257, 1021, 4095, 4096, 4097, 7919]
KINDS = ["random", "ones", "impulse", "zeros"]


def hashed(bits: np.ndarray, seed: bytes, m: int, *, portable: bool = False) -> bytes:
    out = bytearray(b"\xa5" * (m // 8))
    toeplitz_hash(bits, seed, out, portable)
    return bytes(out)


def a_seed(n: int, m: int, rng: np.random.Generator) -> bytes:
    return rng.bytes((n + m - 1 + 7) // 8)


@given(data=st.data(), n=st.integers(1, 1500), out_bytes=st.integers(1, 90), portable=st.booleans())
@settings(max_examples=80, deadline=None)
def test_equals_bit_matrix(data: st.DataObject, n: int, out_bytes: int, portable: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    bits = rng.integers(0, 2, n, dtype=np.uint8)
    seed = a_seed(n, 8 * out_bytes, rng)
    assert hashed(bits, seed, 8 * out_bytes, portable=portable) == toeplitz_by_matrix(bits, seed, 8 * out_bytes)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_around_words_and_hard_patterns(n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    bits = {
        "random": rng.integers(0, 2, n, dtype=np.uint8),
        "ones": np.ones(n, np.uint8),
        "zeros": np.zeros(n, np.uint8),
        "impulse": (np.arange(n) == n // 2).astype(np.uint8),
    }[kind]
    for m in (8, 64, 72, (n // 2 + 7) // 8 * 8 or 8):
        seed = b"\xff" * ((n + m + 6) // 8) if kind == "ones" else a_seed(n, m, rng)
        expected = toeplitz_by_fft(bits, seed, m)
        assert hashed(bits, seed, m) == expected
        assert hashed(bits, seed, m, portable=True) == expected


@pytest.mark.parametrize(("n", "m"), [(100_003, 50_000), (131_071, 16_384), (65_537, 65_536), (20_000, 100_000)])
def test_long_blocks_equal_convolution_and_portable(n: int, m: int) -> None:
    rng = np.random.default_rng(m)
    bits = rng.integers(0, 2, n, dtype=np.uint8)
    seed = a_seed(n, m, rng)
    expected = toeplitz_by_fft(bits, seed, m)
    assert hashed(bits, seed, m) == expected
    assert hashed(bits, seed, m, portable=True) == expected


def test_impulses_read_the_matrix_off_the_seed() -> None:
    n, m = 70, 80
    rng = np.random.default_rng(3)
    seed = a_seed(n, m, rng)
    t = np.unpackbits(np.frombuffer(seed, np.uint8))
    for j in (0, 1, 63, 64, n - 1):
        bits = (np.arange(n) == j).astype(np.uint8)
        column = np.unpackbits(np.frombuffer(hashed(bits, seed, m), np.uint8))
        assert np.array_equal(column, t[n - 1 - j : n - 1 - j + m])


def test_spare_seed_bits_do_not_matter() -> None:
    bits = np.ones(10, np.uint8)
    assert hashed(bits, b"\x12\x34\x80", 8) == hashed(bits, b"\x12\x34\xff", 8)


def test_wrong_lengths_are_refused() -> None:
    bits = np.ones(16, np.uint8)
    for seed, out in ((bytes(2), bytearray(1)), (bytes(4), bytearray(1)), (bytes(3), bytearray(0))):
        with pytest.raises(ValueError, match="must"):
            toeplitz_hash(bits, seed, out)
    with pytest.raises(ValueError, match="empty"):
        toeplitz_hash(np.zeros(0, np.uint8), b"", bytearray(1))
    with pytest.raises(BufferError):
        toeplitz_hash(bits, bytes(3), bytes(1))


def test_says_whether_the_instruction_is_there() -> None:
    assert accelerated() in {True, False}

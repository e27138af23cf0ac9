"""Privacy amplification as the rest of the package calls it."""

import numpy as np
import pytest

from qkdhw.postprocessing.amplification import amplify, seed_bits


def test_key_by_hand() -> None:
    # n = 3, m = 8 is refused (longer than the input), so n = 8, m = 8: t[7] = 1 only makes the identity matrix.
    bits = np.array([1, 0, 1, 1, 0, 0, 1, 0], np.uint8)
    with amplify(bits, bytes([0b00000001, 0b00000000]), 8) as key:
        assert bytes(key) == bytes([0b10110010])


def test_linear_in_the_bits() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 2, (2, 1000), dtype=np.uint8)
    seed = rng.bytes((seed_bits(1000, 256) + 7) // 8)
    keys = []
    for bits in (a, b, a ^ b):
        with amplify(bits, seed, 256) as key:
            keys.append(np.frombuffer(bytes(key), np.uint8))
    assert np.array_equal(keys[0] ^ keys[1], keys[2])
    assert keys[0].any()


@pytest.mark.parametrize("length_bits", [0, -8, 7, 12, 24])
def test_length_must_be_whole_bytes_and_not_above_the_input(length_bits: int) -> None:
    with pytest.raises(ValueError, match="length_bits"):
        amplify(np.zeros(16, np.uint8), bytes(5), length_bits)


def test_seed_must_have_its_length() -> None:
    assert seed_bits(16, 8) == 23
    for n_bytes in (2, 4):
        with pytest.raises(ValueError, match="seed"):
            amplify(np.zeros(16, np.uint8), bytes(n_bytes), 8)
    with pytest.raises(ValueError, match="positive"):
        seed_bits(0, 8)

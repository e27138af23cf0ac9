"""Verification tags tell different strings apart and do not depend on how they are stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.errors import VerificationError
from qkdhw.postprocessing.verification import TAG_BITS, verification_eps, verification_tag, verify_tags

SEED = bytes(range(1, 17))


@given(n=st.integers(1, 300), flip=st.integers(0, 10**6), seed=st.binary(min_size=16, max_size=16).filter(any))
def test_one_wrong_bit_is_seen(n: int, flip: int, seed: bytes) -> None:
    bits = np.random.default_rng(n).integers(0, 2, n, dtype=np.uint8)
    other = bits.copy()
    other[flip % n] ^= 1
    tag = verification_tag(bits, seed)
    assert len(tag) == TAG_BITS // 8
    verify_tags(tag, verification_tag(bits.copy(), seed))
    with pytest.raises(VerificationError):
        verify_tags(tag, verification_tag(other, seed))


def test_length_counts() -> None:
    tags = {verification_tag(np.zeros(n, np.uint8), SEED) for n in range(64)}
    assert len(tags) == 64


def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        verification_tag(np.zeros(8, np.uint8), bytes(15))
    with pytest.raises(VerificationError):
        verify_tags(b"", b"")
    with pytest.raises(VerificationError):
        verify_tags(bytes(8), bytes(7))


def test_eps_counts_blocks() -> None:
    assert verification_eps(8) == 2 / 2**128
    assert verification_eps(64) == 2 / 2**128
    assert verification_eps(65) == 3 / 2**128

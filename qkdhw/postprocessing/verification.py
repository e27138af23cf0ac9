"""Verification: do both sites hold the same corrected bits? A tag under a fresh hash function tells.

The seed is drawn after both strings are fixed and is used for nothing else. The tag is public: TAG_BITS count as
leaked, or are covered by the proof's own correctness term.
"""

from __future__ import annotations

import hmac

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import gf128 as kernels
from qkdhw.errors import VerificationError

SEED_BYTES = 16
TAG_BITS = 128


def verification_eps(n_bits: int) -> float:
    """Probability bound that two different strings of n bits get the same tag: (L + 1) / 2^128.

    L is the number of 16-byte blocks of the string and its 8-byte length. Even for 10^12 bits that is below 10^-28,
    so a proof's correctness parameter always covers it.

    Source:
        M. N. Wegman, J. L. Carter, J. Comput. Syst. Sci. 22 (1981) 265; polynomial hash as in RFC 8452.
    """
    n_blocks = (8 + (n_bits + 7) // 8 + 15) // 16
    return float((n_blocks + 1) * 2.0**-TAG_BITS)


def verification_tag(bits: NDArray[np.uint8], seed: bytes) -> bytes:
    """Hash the corrected bits and their number to a tag.

    Args:
        bits: uint8 (n,), each 0 or 1.
        seed: 16 random bytes, drawn after `bits` was fixed at both sites.

    Returns:
        16 bytes: the polynomial hash over GF(2^128) of n (8 bytes, little-endian) and the bits,
        packed with the first in the most significant bit.

    Raises:
        ValueError: The seed is not 16 bytes long.

    Source:
        RFC 8452, section 3 (POLYVAL).
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"the seed must have {SEED_BYTES} bytes")
    packed = np.empty(8 + (bits.size + 7) // 8, np.uint8)
    packed[:8] = np.frombuffer(bits.size.to_bytes(8, "little"), np.uint8)
    body = np.packbits(bits)
    packed[8:] = body
    tag = bytearray(TAG_BITS // 8)
    kernels.polynomial_hash(seed, packed, tag)
    packed.fill(0)
    body.fill(0)
    return bytes(tag)


def verify_tags(own: bytes, peer: bytes) -> None:
    """Compare the two sites' tags in constant time.

    Raises:
        VerificationError: They differ.

    """
    if len(own) != TAG_BITS // 8 or not hmac.compare_digest(own, peer):
        raise VerificationError(
            "the corrected bits of the two sites differ",
            remedy="the block is dropped; if it happens again, look at the QBER and at the peer's version",
        )

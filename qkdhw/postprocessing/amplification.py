"""Privacy amplification: exact Toeplitz hashing of the verified bits to the secret key.

Conventions, for whoever must interoperate: y[i] = XOR over j of t[n - 1 + i - j] x[j] for i < m, so t[n - 1] is the
matrix's upper left corner, t[n - 1 + i] its first column and t[n - 1 - j] its first row. Seed and key are packed as
np.packbits does: element 0 is the most significant bit of byte 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import toeplitz as kernels
from qkdhw.secret import SecretBuffer


def seed_bits(n_bits: int, length_bits: int) -> int:
    """Number of random bits that hashing `n_bits` to `length_bits` takes: n + m - 1.

    Raises:
        ValueError: A length is below 1.
    """
    if n_bits < 1 or length_bits < 1:
        raise ValueError("n_bits and length_bits must be positive")
    return n_bits + length_bits - 1


def amplify(bits: NDArray[np.uint8], seed: bytes, length_bits: int) -> SecretBuffer:
    """Hash the verified bits to the secret key.

    The family is 2-universal: two different inputs collide for at most a fraction 2^-m of the seeds. The seed is
    public, uniformly random, drawn after both sites have fixed their bits, and never used twice.

    Args:
        bits: uint8 (n,), each 0 or 1, all bits of the block that were verified.
        seed: ceil((n + m - 1) / 8) bytes, m = length_bits; spare bits at the end are ignored.
        length_bits: m, a positive multiple of 8, not above n.

    Returns:
        The key, m / 8 bytes; the caller closes it.

    Raises:
        ValueError: A length does not fit.

    Source:
        H. Krawczyk, CRYPTO 1994 (Toeplitz family); R. Renner, arXiv:quant-ph/0512258, section 5 (leftover hashing).
    """
    if length_bits < 8 or length_bits % 8 or length_bits > bits.size:
        raise ValueError("length_bits must be a positive multiple of 8 and not above the number of bits")
    if len(seed) != (seed_bits(bits.size, length_bits) + 7) // 8:
        raise ValueError("the seed must have ceil((n + m - 1) / 8) bytes")
    key = SecretBuffer(length_bits // 8)
    kernels.toeplitz_hash(np.ascontiguousarray(bits), seed, key)
    return key

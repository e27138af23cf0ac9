"""Toeplitz hashing as one reads it: a bit matrix, and a floating-point convolution with its rounding checked."""

import numpy as np


def unpack_seed(seed: bytes, n_seed: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(seed, np.uint8))[:n_seed]


def toeplitz_by_matrix(bits: np.ndarray, seed: bytes, m: int) -> bytes:
    n = bits.size
    t = unpack_seed(seed, n + m - 1)
    i, j = np.ogrid[:m, :n]
    matrix = t[n - 1 + i - j].astype(np.int64)
    return np.packbits((matrix @ bits.astype(np.int64) & 1).astype(np.uint8)).tobytes()


def smooth_size(at_least: int) -> int:
    """Smallest 2^a 3^b 5^c >= at_least."""
    best = 1 << (at_least - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = three << max(0, (-(-at_least // three) - 1).bit_length())
            best = min(best, size)
            three *= 3
        five *= 5
    return best


def toeplitz_by_fft(bits: np.ndarray, seed: bytes, m: int) -> bytes:
    """Coefficients n-1 .. n+m-2 of the product; a cyclic length of n + m - 1 leaves them free of wrap-around."""
    n = bits.size
    size = smooth_size(n + m - 1)
    spectrum = np.fft.rfft(unpack_seed(seed, n + m - 1).astype(np.float64), size)
    spectrum *= np.fft.rfft(bits.astype(np.float64), size)
    sums = np.fft.irfft(spectrum, size)[n - 1 : n - 1 + m]
    whole = np.rint(sums)
    residue = float(np.abs(sums - whole).max())
    assert residue < 0.25, f"rounding residue {residue}: this length is too long for float64"
    return np.packbits((whole.astype(np.int64) & 1).astype(np.uint8)).tobytes()

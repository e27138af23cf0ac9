"""LDPC over circulants as one reads it: a dense matrix, and layered sum-product with exact tanh in float64."""

import numpy as np


def dense(row_start: np.ndarray, column: np.ndarray, shift: np.ndarray, columns: int, size: int) -> np.ndarray:
    rows = row_start.size - 1
    matrix = np.zeros((rows * size, columns * size), np.uint8)
    for r in range(rows):
        for e in range(row_start[r], row_start[r + 1]):
            for i in range(size):
                matrix[r * size + i, column[e] * size + (i + shift[e]) % size] ^= 1
    return matrix


def one_pass(matrix: np.ndarray, size: int, syndrome: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Posterior after one pass over all layers, messages starting at zero."""
    posterior = prior.astype(np.float64)
    for first in range(0, matrix.shape[0], size):
        before = posterior.copy()
        for check in range(first, first + size):
            bits = np.flatnonzero(matrix[check])
            tanh = np.tanh(before[bits] / 2)
            for k, bit in enumerate(bits):
                product = np.prod(np.delete(tanh, k)) * (1 - 2.0 * syndrome[check])
                posterior[bit] += 2 * np.arctanh(np.clip(product, -0.9999998, 0.9999998))
    return posterior

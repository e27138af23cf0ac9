"""Probabilities of what was counted: Gaussian, chi-square and Kolmogorov-Smirnov, without a library of statistics."""

import math

import numpy as np

LEAST_P = 1e-6


def p_gauss(found, expected, sigma):
    """Two-sided."""
    return math.erfc(abs(found - expected) / sigma / math.sqrt(2))


def p_chi_square(counts, expected):
    """Of counts in cells with given expectations; Wilson-Hilferty."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    chi2, n = float(((counts - expected) ** 2 / expected).sum()), len(counts)
    z = ((chi2 / n) ** (1 / 3) - (1 - 2 / (9 * n))) / math.sqrt(2 / (9 * n))
    return 0.5 * math.erfc(z / math.sqrt(2))


def p_kolmogorov(sample, cdf):
    """Of a sample and a continuous distribution."""
    f = cdf(np.sort(sample))
    n = len(f)
    d = max(float((np.arange(1, n + 1) / n - f).max()), float((f - np.arange(n) / n).max()))
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * d
    if x < 0.3:
        return 1.0
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101)))

"""Physical quantities: conversions between the units that names in this package end in.

A number's name says its unit: _s, _ps, _hz, _db, _dbm, _bits, _bytes. Fractions (QBER, efficiency) lie in 0..1.
"""

from __future__ import annotations

import math
from fractions import Fraction

PS_PER_S = 1_000_000_000_000
PS_PER_NS = 1_000


def seconds_of(ticks: int, tick_ps: Fraction) -> float:
    """Convert a count of ticks to seconds, for display only: events keep their exact count."""
    return float(ticks * tick_ps / PS_PER_S)


def binary_entropy(x: float) -> float:
    """Entropy of a biased coin, h(x) = -x log2 x - (1-x) log2(1-x), in bits.

    Args:
        x: Probability, 0..1.

    Raises:
        ValueError: If `x` is not a probability.
    """
    if not 0.0 <= x <= 1.0:
        raise ValueError(f"binary entropy needs a probability, not {x}")
    if x in {0.0, 1.0}:
        return 0.0
    return -x * math.log2(x) - (1.0 - x) * math.log2(1.0 - x)


def binary_entropy_of_bound(x: float) -> float:
    """Largest binary entropy that an error rate of at most `x` can have: h(min(x, 1/2)).

    Args:
        x: Upper bound on an error rate, >= 0; it may exceed 1.
    """
    return binary_entropy(min(x, 0.5))

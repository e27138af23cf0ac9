"""Binary entropy, in bits."""

from __future__ import annotations

import math


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

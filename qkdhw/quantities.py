"""Physical quantities: conversions between the units that names in this package end in.

A number's name says its unit: _s, _ps, _hz, _db, _dbm, _bits, _bytes. Fractions (QBER, efficiency) lie in 0..1.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

PS_PER_S = 1_000_000_000_000
PS_PER_NS = 1_000


_PREFIXES = {"f": -15, "p": -12, "n": -9, "u": -6, "µ": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12}
_BASES = ("Hz", "bit/s", "V", "A", "W", "s", "m", "K")
_SAME = {"deg": "°", "deg/s": "°/s", "degC": "°C", "percent": "%"}
_QUANTITY = re.compile(r"([+-]?(?:[0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20})(?:[eE][+-]?[0-9]{1,3})?)\s*(\S+)")


def number_in(text: str, unit: str) -> Fraction:
    """Read a number with its unit, such as "500 mV", and return it in another unit of the same quantity, exactly.

    Args:
        text: A decimal number and a unit: Hz, bit/s, V, A, W, s, m or K with an SI prefix, or another without.
        unit: The unit to convert to, such as "V".

    Raises:
        ValueError: The text is no such quantity.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError("it is not a number with a unit")
    (given, given_exponent), (wanted, wanted_exponent) = _split_unit(match[2]), _split_unit(unit)
    if given != wanted:
        raise ValueError(f"it is not in {unit}")
    return Fraction(match[1]) * Fraction(10) ** (given_exponent - wanted_exponent)


def _split_unit(unit: str) -> tuple[str, int]:
    """Split a unit into its base and the power of ten of its prefix."""
    unit = _SAME.get(unit, unit)
    for base in _BASES:
        prefix = unit.removesuffix(base)
        if unit.endswith(base) and prefix in _PREFIXES:
            return base, _PREFIXES[prefix]
    return unit, 0


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

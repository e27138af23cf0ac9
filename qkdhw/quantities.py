"""Physical quantities: conversions between the units that names in this package end in.

A number's name says its unit: _s, _ps, _hz, _db, _dbm, _bits, _bytes. Fractions (QBER, efficiency) lie in 0..1.
"""

from __future__ import annotations

from fractions import Fraction

PS_PER_S = 1_000_000_000_000
PS_PER_NS = 1_000


def transmittance_of(loss_db: float) -> float:
    """Convert a loss in dB to the transmitted fraction 10^(-loss/10)."""
    return float(10.0 ** (-loss_db / 10.0))


def seconds_of(ticks: int, tick_ps: Fraction) -> float:
    """Convert a count of ticks to seconds, for display only: events keep their exact count."""
    return float(ticks * tick_ps / PS_PER_S)

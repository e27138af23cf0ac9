"""The light between the two boxes of a teaching kit: a laser behind a turning polariser, and an eavesdropper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

KEPT_PULSES = 256
EVE_NOISE = 0.02


@dataclass(frozen=True, slots=True)
class Pulse:
    """Light from one time to another.

    Attributes:
        start_s: When it begins on the bench's clock.
        end_s: When it ends; infinite while the laser is simply on.
        angle_deg: Angle of its polarisation.
        carries_symbol: Whether it carries a symbol: an eavesdropper lets other light pass.
    """

    start_s: float
    end_s: float
    angle_deg: float
    carries_symbol: bool = False


class EkpqcBeam:
    """What the sender shines, past and planned, and what arrives of it.

    Args:
        rng: What the eavesdropper draws from.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._pulses: list[Pulse] = []
        self._resent: dict[Pulse, Pulse] = {}

    def shine(self, pulse: Pulse) -> None:
        """Add light that comes after all that was added before."""
        self._pulses = [*self._pulses, pulse][-KEPT_PULSES:]

    def stop(self, at_s: float) -> None:
        """Switch the laser off: what was planned after this does not happen."""
        self._pulses = [
            Pulse(p.start_s, min(p.end_s, at_s), p.angle_deg, p.carries_symbol)
            for p in self._pulses
            if p.start_s < at_s
        ]

    def at(self, time_s: float, *, intercepted: bool) -> Pulse | None:
        """Return the light that arrives at a time, None if it is dark."""
        for pulse in reversed(self._pulses):
            if pulse.start_s <= time_s < pulse.end_s:
                return self._intercepted(pulse) if intercepted and pulse.carries_symbol else pulse
        return None

    def after(self, time_s: float) -> list[Pulse]:
        """Return the light that is still on at a time or comes later, in order."""
        return [pulse for pulse in self._pulses if pulse.end_s > time_s]

    def _intercepted(self, pulse: Pulse) -> Pulse:
        """Measure a pulse in a random basis and send on what was found: once for each pulse."""
        if pulse not in self._resent:
            basis_deg = 45.0 * int(self._rng.integers(2))
            seen = passed(pulse.angle_deg - basis_deg) + EVE_NOISE * float(self._rng.standard_normal())
            found_deg = basis_deg if seen > 0.5 else basis_deg + 90.0
            self._resent = dict([*self._resent.items()][-KEPT_PULSES:])
            self._resent[pulse] = Pulse(pulse.start_s, pulse.end_s, found_deg, carries_symbol=True)
        return self._resent[pulse]


def passed(angle_deg: float) -> float:
    """Return the fraction of polarised light that a polariser at this angle to it lets pass (Malus)."""
    return math.cos(math.radians(angle_deg)) ** 2

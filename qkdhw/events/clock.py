"""The clock that maps a receiver's ticks to the transmitter's slots, in exact fixed-point arithmetic.

Slot s is the time of pulse number s. Its centre, in units of 2^-32 ticks, lies at

    ref_ticks * 2^32 + phase_q32 + (s - ref_slot) * period_q32

Four integers, so no rounding grows with time: an event 10^15 ticks from the reference is mapped as exactly as one
next to it. An event belongs to the slot whose centre is nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import gating as kernels

ONE_TICK_Q32 = 1 << 32


@dataclass(frozen=True, slots=True)
class SlotClock:
    """A linear clock between slots and receiver ticks.

    Attributes:
        ref_slot: A slot number.
        ref_ticks: Whole ticks of that slot's centre.
        phase_q32: The rest of it in 2^-32 ticks, 0 .. 2^32 - 1.
        period_q32: Slot period in 2^-32 ticks; 2 to 2^28 ticks.

    Raises:
        ValueError: A number lies where the arithmetic would not be exact.
    """

    ref_slot: int
    ref_ticks: int
    phase_q32: int
    period_q32: int

    def __post_init__(self) -> None:
        kernels.check_clock(self.ref_slot, self.ref_ticks, self.phase_q32, self.period_q32)

    @classmethod
    def nominal(cls, period_ticks: Fraction, *, ref_slot: int = 0, ref_ticks: int = 0) -> Self:
        """Make a clock of this period (ticks a slot) with a slot's centre at a given tick."""
        return cls(ref_slot, ref_ticks, 0, round(period_ticks * ONE_TICK_Q32))

    @property
    def period_ticks(self) -> Fraction:
        """Slot period in ticks, exact."""
        return Fraction(self.period_q32, ONE_TICK_Q32)

    def centre_q32(self, slot: int) -> int:
        """Return the centre of a slot in 2^-32 ticks, exact."""
        offset = (slot - self.ref_slot) * self.period_q32
        return self.ref_ticks * ONE_TICK_Q32 + self.phase_q32 + offset

    def slot_at(self, ticks: int) -> int:
        """Return the slot whose centre is nearest to a time; a tie belongs to the later slot."""
        distance = ticks * ONE_TICK_Q32 - self.centre_q32(self.ref_slot) + (self.period_q32 >> 1)
        return self.ref_slot + distance // self.period_q32

    def rebased(self, slot: int, *, number: int | None = None, shift_q32: int = 0, stretch_q32: int = 0) -> Self:
        """Return the clock with another reference slot, and corrections if given.

        Args:
            slot: The new reference slot, in this clock's numbers.
            number: What the new clock calls that slot; by default the same number.
            shift_q32: Added to that slot's centre, in 2^-32 ticks.
            stretch_q32: Added to the slot period, in 2^-32 ticks.

        Returns:
            A clock that without corrections maps every event as this one does.
        """
        ticks, phase_q32 = divmod(self.centre_q32(slot) + shift_q32, ONE_TICK_Q32)
        return type(self)(slot if number is None else number, ticks, phase_q32, self.period_q32 + stretch_q32)

    def assign(self, time_ticks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give each time its slot and its distance from that slot's centre.

        Args:
            time_ticks: int64 (n,), contiguous, any order, within +-2^62 ticks.

        Returns:
            slot int64 (n,), and residual int64 (n,) in 2^-32 ticks, -period/2 <= residual < period/2.

        Raises:
            ValueError: A time is out of range.
        """
        slot = np.empty(len(time_ticks), np.int64)
        residual_q32 = np.empty(len(time_ticks), np.int64)
        done = kernels.assign_slots(
            time_ticks, self.ref_slot, self.ref_ticks, self.phase_q32, self.period_q32, slot, residual_q32
        )
        if done != len(time_ticks):
            raise ValueError(f"event {done} has a time beyond 2^62 ticks")
        return slot, residual_q32

"""What emulated time taggers share that hand over events when asked: light at their inputs, and events lost."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.sent_events import SentEvents
from qkdhw_emulators.units.table_unit import TableUnit

PS_PER_S = 1e12


class TaggerUnit(TableUnit):
    """Base of such emulated taggers; events come as fast as they are fetched, from all inputs alike.

    Attributes:
        tick_ps: Exact length of a tick.
        inputs: How many inputs it has.
        sent_events: What it generated: the conformance suite compares it with what the driver read.
    """

    tick_ps: ClassVar[Fraction] = Fraction(1)
    inputs: ClassVar[int] = 4
    conditions: ClassVar[dict[str, float]] = {"light_rate_hz": 1e5}  # photons at all inputs together
    unit_faults: ClassVar[frozenset[Fault]] = TableUnit.unit_faults | {Fault.OVERFLOW}

    def power_cycle(self) -> None:
        """Go back to the state of power-up; time begins at 0."""
        super().power_cycle()
        self._last_ticks = 0
        self.sent_events = SentEvents(self.tick_ps)

    def take_events(self, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Return the next events: their times in ticks, their inputs from 1, and how many more were lost."""
        rate_hz = self.world.conditions["light_rate_hz"]
        if rate_hz <= 0:
            limit, rate_hz = 0, 1.0
        gaps = self._rng.exponential(PS_PER_S / rate_hz / float(self.tick_ps), limit)
        ticks = self._last_ticks + np.cumsum(np.rint(gaps).astype(np.int64))
        channel = self._rng.integers(1, self.inputs + 1, limit)
        self._last_ticks = int(ticks[-1]) if limit else self._last_ticks
        if Fault.OVERFLOW in self.faults:
            ticks, channel = ticks[::2], channel[::2]
        self.sent_events.add(ticks, channel)
        return ticks, channel, limit - len(ticks)

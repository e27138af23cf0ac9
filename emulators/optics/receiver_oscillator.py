"""The oscillator of a time tagger: what its clock shows, exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import LinkCondition
from qkdhw_emulators.optics.setup import PS_PER_S, Tagger

# Frequencies are whole 1e-15ths, and readings whole 1e-15ths of a picosecond: sums over any time are exact.
PARTS = 10**15
PARTS_PER_PPM = 10**9
PARTS_PER_FS = PARTS // 1000
LAST_TICK = 1 << 62
MAX_DRAWN_OFFSET_PS = PS_PER_S // 100


class Reading(NamedTuple):
    """What a clock shows at the begin of a cell, and how fast it goes.

    Attributes:
        tick: Whole ticks.
        beyond_ps: The rest, less than a tick.
        rate: Seconds of the clock per second.
    """

    tick: int
    beyond_ps: float
    rate: float


class ReceiverOscillator:
    """A clock that is linear in each cell.

    Its frequency drifts and walks from cell to cell; the walk's standard deviation after a second is the same for cells
    of any length.

    Args:
        tagger: The time tagger.
        cell_ps: Length of a cell.
        bit_generator: Of its walk, and of its first reading if the tagger says none.

    Attributes:
        offset_ps: What it shows at the begin of the first cell.
        set_back_ps: How far the latest reading is before the one that the cell before led to; below 0: after it.
    """

    def __init__(self, tagger: Tagger, cell_ps: int, bit_generator: np.random.BitGenerator) -> None:
        self._rng = np.random.Generator(bit_generator)
        self._tagger = tagger
        self._cell_ps = cell_ps
        self._cell_s = cell_ps / PS_PER_S
        self._walk_ppm = 0.0
        self._next_cell = 0
        if tagger.clock_offset_s is None:
            self.offset_ps = int(self._rng.integers(MAX_DRAWN_OFFSET_PS))
        else:
            self.offset_ps = round(tagger.clock_offset_s * PS_PER_S)
        self._reading = self.offset_ps * PARTS
        self.set_back_ps = 0.0
        self._led_to: int | None = None

    def advance(self, cell_index: int, condition: LinkCondition) -> Reading:
        """Return the reading of a cell, and go on by it.

        Args:
            cell_index: Number of the cell.
            condition: Its `clock_ppm` is added to the frequency, its `clock_step_ps` and delay to the reading
                while it lasts: gates and pulses travel the same way, so a longer way is a later reading.

        Raises:
            ConfigurationError: It is not the next cell, or the clock has counted 2^62 ticks.
        """
        if cell_index != self._next_cell:
            raise ConfigurationError(f"cell {cell_index}: the next one is {self._next_cell}")
        tagger = self._tagger
        drift_ppm = tagger.clock_drift_ppm_per_s * (cell_index + 0.5) * self._cell_s
        ppm = tagger.clock_ppm + drift_ppm + self._walk_ppm + condition.clock_ppm
        parts = PARTS + round(ppm * PARTS_PER_PPM)
        shift = round((condition.clock_step_ps + condition.delay_ps) * 1000) * PARTS_PER_FS
        shown = self._reading + shift
        tick, beyond = divmod(shown, tagger.tick_fs * PARTS_PER_FS)
        if not -LAST_TICK <= tick < LAST_TICK:
            raise ConfigurationError(
                f"tagger.tick_fs: {tagger.tick_fs}: after {cell_index * self._cell_s:.6g} s its clock is at 2^62 ticks",
                remedy="Give a longer tick, or end the run before.",
            )
        if self._led_to is not None:
            self.set_back_ps = (self._led_to - shown) / PARTS
        self._led_to = shown + self._cell_ps * (parts + round(condition.delay_ps_per_s * (PARTS // PS_PER_S)))
        self._reading += self._cell_ps * parts
        if tagger.clock_walk_ppm:
            self._walk_ppm += tagger.clock_walk_ppm * self._cell_s**0.5 * self._rng.standard_normal()
        self._next_cell += 1
        return Reading(tick, beyond / PARTS, parts / PARTS + condition.delay_ps_per_s / PS_PER_S)

"""What monitors look at, collected while a pipeline runs: counts of one stretch of slots after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.pipeline.sifted import SiftedBits
from qkdhw.events.gating import HISTOGRAM_BINS, Gate, GatingStatistics
from qkdhw.events.monitors import Observation
from qkdhw.postprocessing.sifting import N_INTENSITIES


@dataclass(slots=True)
class Observer:
    """Hands out an `Observation` of each stretch; give its `judge` to a bank, or keep them to calibrate one.

    A stretch ends with the first piece of events that makes it long enough. Sifted detections are counted where their
    reply comes, a few pieces later.

    Attributes:
        judge: Called with each observation, such as `MonitorBank.judge` or `list.append`.
        n_slots: Least length of a stretch.
    """

    judge: Callable[[Observation], object]
    n_slots: int
    _begin: int = 0
    _statistics: GatingStatistics = field(default_factory=GatingStatistics)
    _histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(HISTOGRAM_BINS, np.int64))
    _sifted: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_INTENSITIES, np.int64))

    def begin(self, first_slot: int) -> None:
        """Learn where the stream begins, or begins anew after the clock was lost: a new gate counts from 0."""
        self._begin = first_slot
        self._statistics, self._histogram = GatingStatistics(), np.zeros(HISTOGRAM_BINS, np.int64)

    def gated(self, gate: Gate, last_tick: int) -> None:
        """Look at a gate after a piece whose last event was at this tick."""
        end = gate.clock.slot_at(last_tick) + 1
        if end - self._begin < self.n_slots:
            return
        statistics, histogram = gate.statistics, gate.residual_histogram
        difference = (getattr(statistics, f.name) - getattr(self._statistics, f.name) for f in fields(statistics))
        sifted = tuple(int(n) for n in self._sifted)
        self.judge(
            Observation(
                end - self._begin,
                GatingStatistics(*difference),
                histogram - self._histogram,
                sifted if any(sifted) else None,
            )
        )
        self._begin, self._statistics, self._histogram = end, statistics, histogram
        self._sifted = np.zeros_like(self._sifted)

    def sifted(self, bits: SiftedBits) -> None:
        """Count sifted detections by intensity."""
        self._sifted += bits.counts.sum(axis=(0, 2))

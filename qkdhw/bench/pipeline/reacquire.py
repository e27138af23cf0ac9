"""How a receiver notices that its clock is lost, and what it needs to find it again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qkdhw.bench.pipeline.sync_frame import SyncFrame
from qkdhw.errors import ClockAlignmentError
from qkdhw.events.alignment import recover_period
from qkdhw.events.gating import GatedBlock
from qkdhw.events.tails import log_upper_binomial
from qkdhw.events.wiring import NOT_WIRED, Wiring
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.quantities import PS_PER_S

Resync = Callable[[int], SyncFrame]
RESYNC_MARGIN_S = Fraction(1, 4)  # the frame may lie so much earlier or later than the lost clock says
_WINDOW_BITS = 512
_MOST_HONEST = 0.35  # error rate that an attack may make; bits of other slots make one half
_LOG_RISK = math.log(1e-9)
_UNUSUAL = 3


@dataclass(slots=True)
class ErrorWatch:
    """Looks for error rates that only bits of other slots have; each bit is looked at once.

    Attributes:
        is_slipped: Whether such a rate was seen.
        said: What was seen, in words.
    """

    is_slipped: bool = False
    said: str = ""
    _wrong: int = 0
    _compared: int = 0

    def add(self, wrong: int, compared: int) -> None:
        """Count compared bits, and judge what came since some hundred of them were found good."""
        self._wrong += wrong
        self._compared += compared
        if self._compared and log_upper_binomial(self._wrong, self._compared, _MOST_HONEST) < _LOG_RISK:
            self.is_slipped = True
            self.said = f"{self._wrong} of {self._compared} compared bits are wrong: they are of other slots"
        if self._compared >= _WINDOW_BITS:
            self._wrong = self._compared = 0


def has_pulses(block: DetectionBlock, wiring: Wiring, period_ticks: Fraction, max_ppm: float) -> bool:
    """Say whether clicks follow pulses at all; without light it is no use to ask for a sync frame."""
    table = wiring.table[block.channel]
    clicked = (block.kind == EventKind.PHOTON) & (table != NOT_WIRED)
    try:
        recover_period(block.time_ticks[clicked], period_ticks, max_ppm)
    except ClockAlignmentError:
        return False
    return True


def longest_rest(max_rest_s: float, tick_ps: Fraction, usual_ticks: int) -> int:
    """Return how many ticks may pass without a correction of the clock, given how many passed last."""
    return max(_UNUSUAL * usual_ticks, math.floor(Fraction(max_rest_s) * PS_PER_S / tick_ps))


def lost_for_good(max_lost_s: float, reason: str) -> ClockAlignmentError:
    """Make the error of a clock that was not found again in time."""
    return ClockAlignmentError(
        f"the clock was lost and not found again for {max_lost_s:g} s of the stream: {reason}",
        remedy="Check the light and the clock reference, then begin a new stream with a new sync frame; or allow more "
        "time.",
    )


def nothing_gated() -> GatedBlock:
    """Return a block without outcomes."""
    return GatedBlock(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.uint8))


def join_gated(parts: list[GatedBlock]) -> GatedBlock:
    """Put outcomes behind one another, and wipe the parts."""
    joined = GatedBlock(
        np.concatenate([part.slot for part in parts]),
        np.concatenate([part.basis for part in parts]),
        np.concatenate([part.bit for part in parts]),
    )
    for part in parts:
        part.wipe()
    return joined

"""One outcome a slot from the clicks of four detectors, chunk by chunk, with the clock followed on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import gating as kernels
from qkdhw.errors import ClockAlignmentError, EventError, NonMonotonicTimeError
from qkdhw.events.alignment import MIN_TRACKED_EVENTS, check_ascending, spans, track_times
from qkdhw.events.clock import ONE_TICK_Q32, SlotClock
from qkdhw.events.wiring import NOT_WIRED, Wiring
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.quantities import PS_PER_S

HISTOGRAM_BINS = 256
_LOST_AFTER_EVENTS = 4096  # clicks without any trace of the pulses before the clock counts as lost
_TRACKED_EVENTS = 4096  # the clock is corrected from this many clicks at most: phase to 1/32 of the jitter
_TRACKED_RUN = 64  # neighbours that are chosen together, so that no pattern of inputs hides from the choice
_CORRECTION_S = Fraction(1, 16)
_STATE_RANDOM_USED, _STATE_EMITTED, _STATE_SIZE = 6, 7, 8


@dataclass(frozen=True, slots=True)
class GatingStatistics:
    """What became of the clicks: n_photons is the sum of the four drops, n_slots, n_merged and an open slot's clicks.

    Attributes:
        n_photons: Clicks seen.
        n_unwired: Dropped: an input without a detector.
        n_before_start: Dropped: before the first slot.
        n_outside_window: Dropped: outside the window around the slot's centre.
        n_dead_time: Dropped: a detector was dead when the slot's window opened.
        n_slots: Outcomes.
        n_merged: Clicks beyond the first of a slot, merged into its outcome.
        n_double_key: Outcomes whose bit was drawn because both key-basis detectors clicked.
        n_double_test: The same in the test basis.
        n_cross_basis: Outcomes whose basis was drawn because detectors of both bases clicked.
        n_loss_marks: Gaps and losses the stream reports; each restarts the dead time.
        n_click_key_0: Clicks inside the window (dead time not yet applied) of this detector, and so on.
        n_click_key_1: See above.
        n_click_test_0: See above.
        n_click_test_1: See above.
    """

    n_photons: int = 0
    n_unwired: int = 0
    n_before_start: int = 0
    n_outside_window: int = 0
    n_dead_time: int = 0
    n_slots: int = 0
    n_merged: int = 0
    n_double_key: int = 0
    n_double_test: int = 0
    n_cross_basis: int = 0
    n_loss_marks: int = 0
    n_click_key_0: int = 0
    n_click_key_1: int = 0
    n_click_test_0: int = 0
    n_click_test_1: int = 0

    def __add__(self, other: Self) -> Self:
        """Add count by count."""
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class GatedBlock:
    """Outcomes of slots in which at least one detector clicked.

    Attributes:
        slot: int64 (n,), strictly increasing, also from block to block.
        basis: uint8 (n,), 0 key, 1 test.
        bit: uint8 (n,), secret: never printed; `wipe` it when it is sifted.
        statistics: What was counted while this block was made.
    """

    slot: NDArray[np.int64]
    basis: NDArray[np.uint8]
    bit: NDArray[np.uint8] = field(repr=False)
    statistics: GatingStatistics = field(default_factory=GatingStatistics)

    def __len__(self) -> int:
        return int(self.slot.shape[0])

    def wipe(self) -> None:
        """Overwrite the bits with zeros."""
        self.bit.fill(0)


class Gate:
    """Gates a stream of detections.

    A click counts if it lies within half the window of its slot's centre. A slot counts only if no detector, of
    either basis, clicked in the dead time before its window opened: a dead detector would otherwise tell the other
    one's bit. Several clicks in one slot give one outcome: basis drawn among those that clicked, then the bit drawn if
    both detectors of that basis clicked.

    The result does not depend on how the stream is cut into chunks, except through the clock. It is corrected before
    each chunk, from that chunk's clicks too, when 256 clicks are there and a sixteenth of a second went by, and every
    quarter of a second within a chunk; from at most 4096 clicks, evenly chosen.

    Args:
        clock: From `align_to_sync_frame`; clicks before its reference slot are dropped.
        wiring: Which input is which detector.
        window_ps: Full width of the window, less than a slot.
        dead_time_ps: Longest dead time of the detectors; 0 switches the rule off.
        tick_ps: Exact tick of the stream.
        random_bytes: Called with a number, returns that many fresh random bytes; each is used once.

    Raises:
        ValueError: Window or dead time does not fit the slot period or the tick.
    """

    def __init__(
        self,
        clock: SlotClock,
        wiring: Wiring,
        window_ps: Fraction | int,
        dead_time_ps: Fraction | int,
        tick_ps: Fraction,
        *,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._half_width_q32 = math.floor(Fraction(window_ps) / 2 / tick_ps * ONE_TICK_Q32)
        self._dead_time_q32 = math.ceil(Fraction(dead_time_ps) / tick_ps * ONE_TICK_Q32)
        if not 0 < self._half_width_q32 < clock.period_q32 * 63 // 128:
            raise ValueError(f"a window of {window_ps} ps does not fit a slot of {clock.period_ticks * tick_ps} ps")
        if not 0 <= self._dead_time_q32 < 1 << 61:
            raise ValueError(f"a dead time of {dead_time_ps} ps is out of range")
        self._clock = clock
        self._wiring = wiring
        self._first_slot = clock.ref_slot
        self._tick_ps = tick_ps
        self._random_bytes = random_bytes
        self._random = np.empty(0, np.uint8)
        self._state = np.empty(_STATE_SIZE, np.int64)
        kernels.reset_state(self._state)
        self._histogram = np.zeros(HISTOGRAM_BINS, np.int64)
        self._untracked = np.empty(0, np.int64)
        self._n_astray = 0
        self._corrected_ticks = -(1 << 62)
        self._correction_ticks = math.floor(_CORRECTION_S * PS_PER_S / tick_ps)
        self._statistics = GatingStatistics()

    @property
    def clock(self) -> SlotClock:
        """The clock as last corrected."""
        return self._clock

    @property
    def is_in_doubt(self) -> bool:
        """Whether the latest clicks, enough to judge, did not follow the pulses; thousands of them lose the clock."""
        return self._n_astray > 0

    @property
    def corrected_ticks(self) -> int | None:
        """Time of the last click that corrected the clock, None before the first correction."""
        return self._corrected_ticks if self._corrected_ticks > -(1 << 62) else None

    @property
    def statistics(self) -> GatingStatistics:
        """Counts since the beginning."""
        return self._statistics

    @property
    def residual_histogram(self) -> NDArray[np.int64]:
        """Clicks by their place in the slot: int64 (256,), equal bins from -period/2 to period/2, a copy."""
        return self._histogram.copy()

    def feed(self, block: DetectionBlock) -> GatedBlock:
        """Gate the next chunk; the last slot stays open, for the next chunk may add clicks to it.

        Args:
            block: The events that follow those of the last call.

        Returns:
            Outcomes of the slots that are complete.

        Raises:
            NonMonotonicTimeError: Time goes backwards; carries the index within `block`.
            ClockAlignmentError: The clicks no longer follow the pulses. What this call had gated is lost; align again
                and make a new Gate.
            EventError: The block has another tick than the stream.
        """
        if block.tick_ps != self._tick_ps:
            raise EventError(
                f"the tick changed from {self._tick_ps} ps to {block.tick_ps} ps in mid-stream",
                remedy="Keep the time tagger's resolution while a link runs.",
            )
        check_ascending(block.time_ticks)
        parts = []
        for begin, end in spans(block.time_ticks, self._tick_ps):
            part = slice(begin, end)
            self._follow(block.time_ticks[part], block.channel[part], block.kind[part])
            parts.append(self._gate(block.time_ticks[part], block.channel[part], block.kind[part], begin))
        return _joined(parts)

    def flush(self) -> GatedBlock:
        """Close the last slot at the end of the stream."""
        nothing = np.empty(0, np.uint8)
        return self._gate(np.empty(0, np.int64), nothing, nothing, 0, flush=True)

    def _follow(self, ticks: NDArray[np.int64], channel: NDArray[np.uint8], kind: NDArray[np.uint8]) -> None:
        """Correct the clock from the clicks since the last correction, this span's included."""
        chosen = _evenly(len(ticks))
        ticks, channel, kind = ticks[chosen], channel[chosen], kind[chosen]
        start = -(-self._clock.centre_q32(self._first_slot) // ONE_TICK_Q32)
        wanted = (kind == EventKind.PHOTON) & (self._wiring.table[channel] != NOT_WIRED) & (ticks >= start)
        fresh = ticks[wanted]
        n_fresh = len(fresh)
        if n_fresh < MIN_TRACKED_EVENTS or fresh[-1] - fresh[0] < self._correction_ticks:
            fresh = np.concatenate((self._untracked, fresh))
        self._untracked = fresh = fresh[_evenly(len(fresh))]
        if len(fresh) < MIN_TRACKED_EVENTS or fresh[-1] - self._corrected_ticks < self._correction_ticks:
            return
        try:
            self._clock = track_times(self._clock, fresh)
        except ClockAlignmentError:
            self._n_astray += n_fresh
            if self._n_astray >= _LOST_AFTER_EVENTS:
                raise
        else:
            self._corrected_ticks = int(fresh[-1])
            self._untracked, self._n_astray = fresh[:0], 0

    def _gate(
        self,
        ticks: NDArray[np.int64],
        channel: NDArray[np.uint8],
        kind: NDArray[np.uint8],
        offset: int,
        *,
        flush: bool = False,
    ) -> GatedBlock:
        n = len(ticks)
        slot = np.empty(n + 1, np.int64)
        basis = np.empty(n + 1, np.uint8)
        bit = np.empty(n + 1, np.uint8)
        counts = np.zeros(len(fields(GatingStatistics)), np.int64)
        missing = n // 2 + 2 - len(self._random)
        if missing > 0:
            fresh = np.frombuffer(self._random_bytes(missing), np.uint8)
            self._random = np.concatenate((self._random, fresh))
        c = self._clock
        done = kernels.gate_events(
            ticks, channel, kind, self._wiring.table,
            c.ref_slot, c.ref_ticks, c.phase_q32, c.period_q32,
            self._first_slot, self._half_width_q32, self._dead_time_q32, self._random, flush,
            self._state, slot, basis, bit, counts, self._histogram,
        )  # fmt: skip
        if done != n:
            raise NonMonotonicTimeError(
                f"event {offset + done} is earlier than the chunk before it",
                index=offset + done,
                remedy="Feed chunks in the order in which the instrument sent them.",
            )
        self._random = self._random[int(self._state[_STATE_RANDOM_USED]) :]
        n_out = int(self._state[_STATE_EMITTED])
        statistics = GatingStatistics(*counts.tolist())
        self._statistics += statistics
        return GatedBlock(slot[:n_out], basis[:n_out], bit[:n_out], statistics)


def _evenly(n: int) -> slice | NDArray[np.int64]:
    """Choose at most _TRACKED_EVENTS of n places, evenly, in runs of neighbours."""
    if n <= _TRACKED_EVENTS:
        return slice(None)
    starts = np.linspace(0, n - _TRACKED_RUN, _TRACKED_EVENTS // _TRACKED_RUN).astype(np.int64)
    return (starts[:, None] + np.arange(_TRACKED_RUN)).ravel()


def _joined(parts: list[GatedBlock]) -> GatedBlock:
    if len(parts) == 1:
        return parts[0]
    joined = GatedBlock(
        np.concatenate([part.slot for part in parts] or [np.empty(0, np.int64)]),
        np.concatenate([part.basis for part in parts] or [np.empty(0, np.uint8)]),
        np.concatenate([part.bit for part in parts] or [np.empty(0, np.uint8)]),
        sum((part.statistics for part in parts), GatingStatistics()),
    )
    for part in parts:
        part.wipe()
    return joined

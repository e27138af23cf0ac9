"""Clock alignment from detections alone: slot period and phase, slot number, and tracking.

Three steps. The arrival times, folded at the nominal period, turn steadily if the two clocks differ: a periodogram
finds how fast, then a straight line through the folded times over growing windows gives period and phase. The
transmitter discloses what it prepared in one sync frame; the correlation of the clicks with it gives the slot number.
After that each chunk of events corrects phase and period. Times stay integers; only residuals within one slot, as
fractions of a slot, are floating-point numbers.

Source: L. Calderaro et al., Phys. Rev. Applied 13, 054041 (2020), "Fast and simple qubit-based synchronization for
quantum key distribution".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ClockAlignmentError, NonMonotonicTimeError
from qkdhw.events.clock import SlotClock
from qkdhw.events.correlation import correlate_sync_frame
from qkdhw.events.wiring import NOT_WIRED, Wiring
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.quantities import PS_PER_S

MIN_SIGMA = 6.0
MIN_TRACKED_EVENTS = 256
MAX_PPM = 20.0
_TRACK_MAX_SLOPE = 1e-6  # largest change of the relative frequency from one chunk to the next
_TRACK_MAX_JUMP = 0.35  # of a slot; a larger jump may have changed the slot number
_FIRST_WINDOW_EVENTS = 512
_DRIFT_CONTRAST = 0.8
_SPAN_S = Fraction(1, 4)
_MAX_BINS = 1 << 20


@dataclass(frozen=True, slots=True)
class Alignment:
    """A clock whose slot numbers are the transmitter's, and how sure that is.

    Attributes:
        clock: Reference slot is the first slot of the sync frame.
        significance: Gaussian standard deviations of the correlation, after all places looked at.
        matched: Clicks in the sync frame in the basis of preparation.
        qber_estimate: Fraction of them with the wrong bit, dark counts within a quarter slot of the centre included.
    """

    clock: SlotClock
    significance: float
    matched: int
    qber_estimate: float


def recover_period(time_ticks: NDArray[np.int64], nominal_period_ticks: Fraction, max_ppm: float) -> SlotClock:
    """Find slot period and phase from arrival times alone.

    Args:
        time_ticks: int64 (n,), times of clicks, ascending.
        nominal_period_ticks: Nominal slot period in ticks, at least 2.
        max_ppm: Largest relative difference of the two clocks, parts per million.

    Returns:
        A clock with the right period and phase; its slot numbers are off by an unknown constant.

    Raises:
        NonMonotonicTimeError: Time goes backwards.
        ClockAlignmentError: The times have no significant period in this range.
    """
    check_ascending(time_ticks)
    ticks = np.ascontiguousarray(time_ticks)
    if len(ticks) < MIN_TRACKED_EVENTS:
        raise ClockAlignmentError(
            f"{len(ticks)} clicks are too few to find the slot period; {MIN_TRACKED_EVENTS} are needed",
            remedy="Collect longer, or check that light reaches the detectors.",
        )
    nominal = SlotClock.nominal(nominal_period_ticks, ref_ticks=int(ticks[0]))
    window = min(_FIRST_WINDOW_EVENTS, len(ticks))
    log_looks = math.log(math.ceil(math.log2(len(ticks) / window)) + 1)
    best: SlotClock | None = None
    best_contrast = 0.0
    while True:
        clock, contrast, log_p = _lock(nominal, ticks[:window], max_ppm * 1e-6)
        if sigma_of(log_p + log_looks) >= MIN_SIGMA:
            if contrast < _DRIFT_CONTRAST * best_contrast:
                break  # the drift is no straight line over a window this long, or the light went out
            best, best_contrast = clock, max(contrast, best_contrast)
        if window == len(ticks):
            break
        window = min(2 * window, len(ticks))
    if best is None:
        raise ClockAlignmentError(
            f"no slot period within {max_ppm:g} ppm of {float(nominal_period_ticks):.6f} ticks in {window} clicks",
            remedy="Check the pulse rate setting, that the transmitter runs, and that light reaches the detectors.",
        )
    return best


def align_to_sync_frame(
    block: DetectionBlock,
    wiring: Wiring,
    sync_record: NDArray[np.uint8],
    first_slot: int,
    nominal_period_ticks: Fraction,
    *,
    max_ppm: float = MAX_PPM,
) -> Alignment:
    """Find the clock that gives every detection its slot number.

    The cost grows with the block's length; half a second around the sync frame is plenty. The stream may begin
    before or after the frame, but part of the frame must lie in it: about 80 clicks in the right basis.

    Args:
        block: Detections, times ascending.
        wiring: Which input is which detector.
        sync_record: uint8 (L,), the disclosed preparation record; never used as key.
        first_slot: Slot number of its first pulse.
        nominal_period_ticks: Nominal slot period in the receiver's ticks.
        max_ppm: Largest relative difference of the two clocks, parts per million.

    Returns:
        Clock, significance, and what the frame says about the error rate.

    Raises:
        NonMonotonicTimeError: Time goes backwards.
        ClockAlignmentError: No significant period or no correlation of at least 6 standard deviations.
    """
    table = wiring.table[block.channel]
    clicked = (block.kind == EventKind.PHOTON) & (table != NOT_WIRED)
    ticks, detector = block.time_ticks[clicked], table[clicked]
    clock = recover_period(ticks, nominal_period_ticks, max_ppm)
    slot = np.empty(len(ticks), np.int64)
    in_gate = np.empty(len(ticks), np.bool_)
    clocks: list[tuple[int, SlotClock]] = []
    for begin, end in spans(ticks, block.tick_ps):
        clock = _follow(clock, ticks[begin:end])
        slot[begin:end], residual_q32 = clock.assign(ticks[begin:end])
        in_gate[begin:end] = np.abs(residual_q32) <= clock.period_q32 >> 2
        clocks.append((int(slot[end - 1]), clock))
    peak = correlate_sync_frame(slot[in_gate], detector[in_gate], sync_record)
    significance = sigma_of(peak.log_p)
    if significance < MIN_SIGMA:
        raise ClockAlignmentError(
            f"the clicks do not match the sync frame: best correlation {significance:.1f} of {MIN_SIGMA:g} standard "
            f"deviations with {peak.matched} clicks",
            remedy="Check the wiring table and the start times, or disclose a longer sync frame.",
        )
    at_frame = next((c for last_slot, c in clocks if last_slot >= peak.slot), clocks[-1][1])
    return Alignment(
        clock=at_frame.rebased(peak.slot, number=first_slot),
        significance=significance,
        matched=peak.matched,
        qber_estimate=peak.wrong / peak.matched,
    )


def track(clock: SlotClock, block: DetectionBlock, *, wiring: Wiring | None = None) -> SlotClock:
    """Correct phase and period from the clicks of a following chunk.

    Args:
        clock: The clock so far.
        block: The next chunk, times ascending, at most about a second long.
        wiring: If given, clicks of other inputs are left out.

    Returns:
        The corrected clock; the same clock if the chunk has too few clicks (256) to judge.

    Raises:
        NonMonotonicTimeError: Time goes backwards.
        ClockAlignmentError: The clicks no longer follow the pulses, or the phase jumped so far that the slot number
            is in doubt.
    """
    wanted = block.kind == EventKind.PHOTON
    if wiring is not None:
        wanted &= wiring.table[block.channel] != NOT_WIRED
    return track_times(clock, block.time_ticks[wanted])


def track_times(clock: SlotClock, time_ticks: NDArray[np.int64]) -> SlotClock:
    """Do what `track` does, given the times of the clicks, int64 (n,), ascending."""
    if len(time_ticks) < MIN_TRACKED_EVENTS:
        return clock
    check_ascending(time_ticks)
    found, _, log_p = _lock(clock, time_ticks, _TRACK_MAX_SLOPE)
    if sigma_of(log_p) < MIN_SIGMA:
        raise ClockAlignmentError(
            f"{len(time_ticks)} clicks no longer follow the pulses ({sigma_of(log_p):.1f} standard deviations)",
            remedy="Check the light and the clock reference, then align again with a new sync frame.",
        )
    begin = clock.slot_at(int(time_ticks[0]))
    jump = (found.centre_q32(begin) - clock.centre_q32(begin)) / clock.period_q32
    if abs(jump) > _TRACK_MAX_JUMP:
        raise ClockAlignmentError(
            f"the clock jumped by {jump:+.2f} slots between two chunks",
            remedy="Check the clock reference, then align again with a new sync frame.",
        )
    return found


def spans(time_ticks: NDArray[np.int64], tick_ps: Fraction) -> list[tuple[int, int]]:
    """Cut ascending times into index ranges of at most a quarter of a second, over which a clock is a straight line."""
    if len(time_ticks) == 0:
        return []
    span_ticks = math.floor(_SPAN_S * PS_PER_S / tick_ps)
    first, edges = int(time_ticks[0]), [0]
    while edges[-1] < len(time_ticks):
        number = (int(time_ticks[edges[-1]]) - first) // span_ticks
        last_tick = first + (number + 1) * span_ticks - 1
        edges.append(int(np.searchsorted(time_ticks, last_tick, "right")))
    return list(pairwise(edges))


def check_ascending(time_ticks: NDArray[np.int64]) -> None:
    """Raise NonMonotonicTimeError at the first event that is earlier than the one before it."""
    backwards = time_ticks[1:] < time_ticks[:-1]
    if backwards.any():
        index = int(np.argmax(backwards)) + 1
        raise NonMonotonicTimeError(
            f"event {index} of {len(time_ticks)} is earlier than the one before it",
            index=index,
            remedy="Sort the stream by time first, or check the time tagger for overflows.",
        )


def sigma_of(log_p: float) -> float:
    """Convert the logarithm of a one-sided tail probability to Gaussian standard deviations (0 if p > 0.05)."""
    if log_p > math.log(0.05):
        return 0.0
    sigma = math.sqrt(-2.0 * log_p)
    for _ in range(20):
        # Mills ratio, first terms: Q(z) ~ exp(-z^2/2) / (z sqrt(2 pi)) * z^2 / (z^2 + 1)
        sigma = math.sqrt(-2.0 * (log_p + math.log(math.sqrt(2 * math.pi) * (sigma + 1 / sigma))))
    return sigma


def _follow(clock: SlotClock, time_ticks: NDArray[np.int64]) -> SlotClock:
    """Track if the span allows it: before the first pulse there is nothing to follow."""
    try:
        return track_times(clock, time_ticks)
    except ClockAlignmentError:
        return clock


def _lock(clock: SlotClock, time_ticks: NDArray[np.int64], max_slope: float) -> tuple[SlotClock, float, float]:
    """Fit phase and period; return the clock, the contrast (0..1) and log of the false-alarm probability."""
    slot, residual_q32 = clock.assign(time_ticks)
    phase = residual_q32 / clock.period_q32
    elapsed = slot - slot[0]
    slope, contrast, log_p = _strongest_slope(elapsed, phase, max_slope)
    centre = int(elapsed[-1]) // 2
    tick = 2.0**32 / clock.period_q32
    offset, slope = _fit_line((elapsed - centre).astype(np.float64), phase, slope, tick)
    found = clock.rebased(
        int(slot[0]) + centre,
        shift_q32=round(offset * clock.period_q32),
        stretch_q32=round(slope * clock.period_q32),
    )
    return found, contrast, log_p


def _strongest_slope(
    elapsed: NDArray[np.int64], phase: NDArray[np.float64], max_slope: float
) -> tuple[float, float, float]:
    """Search the periodogram of the folded times (phases, in slots) for the strongest slope (slots a slot)."""
    span = int(elapsed[-1]) + 1
    width = max(1, min(int(1 / (8 * max_slope)), -(-span // 16)))
    bins = -(-span // width)
    if bins > _MAX_BINS:
        raise ClockAlignmentError(
            f"{len(phase)} clicks lie {span} slots apart, too far for a clock that is off by {max_slope * 1e6:g} ppm",
            remedy="Check the time tagger for jumps in time, or align on a shorter piece of the stream.",
        )
    turn = np.exp(2j * np.pi * phase)
    index = elapsed // width
    folded = np.bincount(index, turn.real, bins) + 1j * np.bincount(index, turn.imag, bins)
    size = 8 << max(0, (bins - 1).bit_length())
    power = np.abs(np.fft.fft(folded, size)) ** 2 / len(phase)
    slopes = np.fft.fftfreq(size, width)
    power[np.abs(slopes) > max_slope] = 0.0
    best = int(np.argmax(power))
    # About 2 max_slope * span independent slopes, and three times as many to cover what lies between them.
    log_p = math.log(1 + 6 * max_slope * span) - float(power[best])
    return float(slopes[best]), math.sqrt(float(power[best]) / len(phase)), log_p


def _fit_line(
    elapsed: NDArray[np.float64], phase: NDArray[np.float64], slope: float, tick: float
) -> tuple[float, float]:
    """Fit a line to phases (mod 1) by least squares in a window that narrows onto the pulse.

    Dark counts lie anywhere in the slot: the circular mean starts in the right place in spite of them, and the window
    then keeps most of them out. It is never narrower than three ticks, for the tick hides where in it an event was.
    """
    turn = np.exp(2j * np.pi * (phase - slope * elapsed))
    offset = float(np.angle(turn.sum())) / (2 * np.pi)
    window = 0.25
    for _ in range(4):
        error = phase - slope * elapsed - offset
        error -= np.rint(error)
        inside = np.abs(error) <= window
        if np.count_nonzero(inside) < 16:
            break
        x, y = elapsed[inside], error[inside]
        mean_x, mean_y = float(x.mean()), float(y.mean())
        x = x - mean_x
        variance = float((x * x).sum())  # no threads of BLAS for a sum this short
        change = float((x * y).sum()) / variance if variance > 0 else 0.0
        offset += mean_y - change * mean_x
        slope += change
        spread = 1.4826 * float(np.median(np.abs(y - mean_y - change * x)))
        window = min(window, max(4 * spread, 1.5 * tick))
    return offset, slope

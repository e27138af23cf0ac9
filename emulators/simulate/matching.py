"""Which pulse a click belongs to: a simulated run can read it off the light, as a perfect synchronisation would.

The clock of a tagger is found cell by cell from clicks whose light is known, so every click, noise too, gets a time of
the sender's; a window about each pulse's arrival (time bins: about each bin's) then says which pulse it is of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.detection import DetectedEvents
from qkdhw_emulators.optics.light_stage import Arrivals
from qkdhw_emulators.optics.setup import BASES, OpticalSetup, Receiver, Tagger

FEWEST_FOR_A_SLOPE = 20
KEPT = 200  # clicks of known light that a cell of few falls back on
NO_PULSE = -1


class ClockFinder:
    """Turns a tagger's ticks into the sender's time.

    Args:
        receiver: The end's detectors, for their delays.
        tagger: The end's time tagger.
        cell_ps: Length of a cell.
    """

    def __init__(self, receiver: Receiver, tagger: Tagger, cell_ps: int) -> None:
        self._tick_ps = tagger.tick_fs / 1000
        skew = (*tagger.skew_ps, *(0.0 for _ in receiver.detectors))
        self._skew_ps = np.array(skew[: len(receiver.detectors)])
        self._delay_ps = np.array([d.delay_ps for d in receiver.detectors])
        self._cell_ps = cell_ps
        self._before = Arrivals.empty()
        self._lit = 0
        self._usual_slope = 1 / (1 + tagger.clock_ppm * 1e-6) - 1
        self._ticks = np.empty(0, np.int64)
        self._skews, self._true_ps = np.empty(0), np.empty(0)

    def origins(self, events: DetectedEvents, light: Arrivals) -> NDArray[np.int64]:
        """Return the number of the pulse (or pair) whose light made each event, -1 for noise; truth."""
        known = np.concatenate((self._before.origin, light.origin))
        index = events.arrival - (self._lit - len(self._before.origin))
        made = (events.arrival >= 0) & (index >= 0)
        found = np.full(len(index), NO_PULSE, np.int64)
        found[made] = known[index[made]]
        return found

    def times_ps(self, events: DetectedEvents, light: Arrivals) -> NDArray[np.float64]:
        """Return times since the cell's begin, delays of the detectors taken off; once for each cell, in order.

        Before the first light there is no clock: then all times are nan.
        """
        index = events.arrival - self._lit
        lit = np.flatnonzero(index >= 0)
        ticks = np.concatenate((self._ticks, events.ticks[lit]))
        skew = np.concatenate((self._skews, self._skew_ps[events.channel[lit]]))
        true = np.concatenate((self._true_ps, light.time_ps[index[lit]]))
        kept = slice(-max(len(lit), KEPT), None)
        self._ticks, self._skews, self._true_ps = ticks[kept], skew[kept], true[kept]
        times = self._timed(events) if len(self._ticks) else np.full(len(events.ticks), np.nan)
        self._true_ps = self._true_ps - self._cell_ps
        self._before = light
        self._lit += len(light.time_ps)
        shifted: NDArray[np.float64] = times - self._delay_ps[events.channel]
        return shifted

    def _timed(self, events: DetectedEvents) -> NDArray[np.float64]:
        """Draw a line through clicks of known light, of this cell or, if it has few, of the last ones too."""
        anchor = int(self._ticks[-1])
        since_ps = (self._ticks - anchor) * self._tick_ps - self._skews
        lag = self._true_ps - since_ps
        middle, slope = since_ps.mean(), self._usual_slope
        if len(lag) >= FEWEST_FOR_A_SLOPE:
            slope = float(np.polyfit(since_ps - middle, lag, 1)[0])
        offset = np.median(lag - slope * (since_ps - middle))
        of_events = (events.ticks - anchor) * self._tick_ps - self._skew_ps[events.channel]
        times: NDArray[np.float64] = of_events + offset + slope * (of_events - middle)
        return times


@dataclass(frozen=True, slots=True)
class Clicks:
    """What the clicks of a cell mean.

    Attributes:
        channel: uint8 (n,), index of the detector.
        times_ps: float64 (n,), since the cell's begin; nan without a clock.
        pulse: int64 (n,), number of the pulse since the begin of the run, -1 for clicks outside of all windows.
        phase_ps: float64 (n,), time after that pulse's arrival.
        basis: uint8 (n,), basis of the detector; 255 if a switch says it.
        bit: uint8 (n,).
    """

    channel: NDArray[np.uint8]
    times_ps: NDArray[np.float64]
    pulse: NDArray[np.int64]
    phase_ps: NDArray[np.float64]
    basis: NDArray[np.uint8]
    bit: NDArray[np.uint8]


SWITCHED = 255


class PulseMatcher:
    """Gives each click of a receiver its pulse, basis and bit; with a steady pump there are no pulses.

    Args:
        setup: The link.
        receiver: One end of it.

    Attributes:
        window_ps: Full width of the windows; None: they touch.
    """

    def __init__(self, setup: OpticalSetup, receiver: Receiver) -> None:
        self._steady = setup.source.kind == "pair-cw"
        self._period_ps = setup.source.period_ps
        meaning = receiver.meaning
        self._by_time = np.array([m == "key" for m in meaning])
        self._basis = np.array([_basis(m) for m in meaning], np.uint8)
        self._bit = np.array([int(m[-1]) if m[-1] in "01" else 0 for m in meaning], np.uint8)
        self._bin_ps = receiver.bin_separation_ps if setup.source.encoding == "time-bin" else 0.0
        self._late_ps = np.array([self._bin_ps * (m == "key1") for m in meaning])
        self.window_ps = min(self._bin_ps, self._period_ps - self._bin_ps) if self._bin_ps else None

    def match(self, first_pulse: int, times_ps: NDArray[np.float64], channel: NDArray[np.uint8]) -> Clicks:
        """Match clicks.

        Args:
            first_pulse: Number of the cell's first pulse.
            times_ps: Since its begin.
            channel: Index of the detector.
        """
        if self._steady:
            none = np.full(len(times_ps), NO_PULSE, np.int64)
            nowhere = np.full(len(times_ps), np.nan)
            return Clicks(channel, times_ps, none, nowhere, self._basis[channel], self._bit[channel])
        window_ps = self.window_ps or self._period_ps
        times = times_ps - self._late_ps[channel]
        known = np.isfinite(times)
        number = np.floor((np.where(known, times, 0.0) + window_ps / 2) / self._period_ps)
        phase = times - number * self._period_ps
        bit = self._bit[channel]
        within = phase
        if self._by_time.any():
            second = self._by_time[channel] & (phase > self._bin_ps / 2)
            bit = np.where(second, np.uint8(1), bit)
            within = phase - second * self._bin_ps
        inside = known & (np.abs(within) <= window_ps / 2)
        pulse = np.where(inside, number.astype(np.int64) + first_pulse, NO_PULSE)
        pulse[pulse < 0] = NO_PULSE
        return Clicks(channel, times_ps, pulse, phase, self._basis[channel], bit)


def _basis(meaning: str) -> int:
    names: tuple[str, ...] = BASES
    return SWITCHED if meaning.startswith("any") else names.index(meaning.rstrip("01"))

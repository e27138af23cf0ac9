"""Which pulse a click belongs to: a simulated run knows the clock of a tagger, as a perfect synchronisation would.

The clock's readings are worked out as the tagger's own are, so that every click, also noise of a dark fibre, gets a
time of the sender's; a window about each pulse's arrival (time bins: about each bin's) then says which pulse it is of.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.attack import LinkCondition
from qkdhw_emulators.optics.detection import EARLY_PS, OSCILLATOR_STREAM, DetectedEvents, latest_ps
from qkdhw_emulators.optics.light_stage import Arrivals, Purpose, stream
from qkdhw_emulators.optics.receiver_oscillator import Reading, ReceiverOscillator
from qkdhw_emulators.optics.setup import BASES, OpticalSetup, Receiver, Tagger

NO_PULSE = -1


class EndClock:
    """Turns a tagger's ticks into the sender's time.

    Args:
        receiver: The end's detectors, for their delays.
        tagger: The end's time tagger.
        cell_ps: Length of a cell.
        seed: Seed of everything random.
        purpose: Number of the end's random streams.

    Attributes:
        first_tick: What the clock shows when the first pulse arrives.
    """

    def __init__(self, receiver: Receiver, tagger: Tagger, cell_ps: int, seed: int, purpose: Purpose) -> None:
        bits = np.random.SFC64(stream(seed, 0, purpose, OSCILLATOR_STREAM))
        self._oscillator = ReceiverOscillator(tagger, cell_ps, bits)
        self.first_tick = self._oscillator.offset_ps * 1000 // tagger.tick_fs
        self._tick_ps = tagger.tick_fs / 1000
        skew = (*tagger.skew_ps, *(0.0 for _ in receiver.detectors))
        self._skew_ps = np.array(skew[: len(receiver.detectors)])
        self._delay_ps = np.array([d.delay_ps for d in receiver.detectors])
        self._cell_ps, self._cells = cell_ps, 0
        self._latest: Reading | None = None
        n_kept = int(latest_ps(receiver, tagger) // cell_ps) + 3
        self._origins: deque[NDArray[np.int64]] = deque(maxlen=n_kept)
        self._first_kept = 0

    def origins(self, events: DetectedEvents, light: Arrivals) -> NDArray[np.int64]:
        """Return the number of the pulse (or pair) whose light made each event, -1 for noise; truth.

        Once for each cell, in order.
        """
        if len(self._origins) == self._origins.maxlen:
            self._first_kept += len(self._origins[0])
        self._origins.append(light.origin)
        known = np.concatenate(tuple(self._origins))
        index = events.arrival - self._first_kept
        made = events.arrival >= 0
        found = np.full(len(index), NO_PULSE, np.int64)
        found[made] = known[index[made]]
        return found

    def times_ps(self, events: DetectedEvents, condition: LinkCondition) -> NDArray[np.float64]:
        """Return times since the cell's begin, delays of the detectors taken off; once for each cell, in order.

        Args:
            events: What the tagger gave in the cell; some are of the end of the cell before.
            condition: What acts on the clock in the cell.
        """
        now = self._oscillator.advance(self._cells, condition)
        self._cells += 1
        times = self._since(now, events)
        if self._latest is not None:
            earlier = times < -EARLY_PS  # what comes after that is detected, and registered, in this cell
            falls = np.flatnonzero(np.diff(events.ticks) < 0)  # the clock was set back
            if len(falls):
                earlier[: falls[-1] + 1] = True
            times = np.where(earlier, self._since(self._latest, events) - self._cell_ps, times)
        self._latest = now
        shifted: NDArray[np.float64] = times - self._delay_ps[events.channel]
        return shifted

    def _since(self, reading: Reading, events: DetectedEvents) -> NDArray[np.float64]:
        """Return times since the begin of the cell of a reading."""
        shown_ps = (events.ticks - reading.tick + 0.5) * self._tick_ps - reading.beyond_ps
        times: NDArray[np.float64] = (shown_ps - self._skew_ps[events.channel]) / reading.rate
        return times


@dataclass(frozen=True, slots=True)
class Clicks:
    """What the clicks of a cell mean.

    Attributes:
        channel: uint8 (n,), index of the detector.
        times_ps: float64 (n,), since the cell's begin.
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
        number = np.floor((times + window_ps / 2) / self._period_ps)
        phase = times - number * self._period_ps
        bit = self._bit[channel]
        within = phase
        if self._by_time.any():
            second = self._by_time[channel] & (phase > self._bin_ps / 2)
            bit = np.where(second, np.uint8(1), bit)
            within = phase - second * self._bin_ps
        inside = np.abs(within) <= window_ps / 2
        pulse = np.where(inside, number.astype(np.int64) + first_pulse, NO_PULSE)
        pulse[pulse < 0] = NO_PULSE
        return Clicks(channel, times_ps, pulse, phase, self._basis[channel], bit)


def _basis(meaning: str) -> int:
    names: tuple[str, ...] = BASES
    return SWITCHED if meaning.startswith("any") else names.index(meaning.rstrip("01"))

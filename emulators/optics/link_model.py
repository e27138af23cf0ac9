"""The optical link, chunk by chunk: what was prepared and what was detected, from one seed.

Every chunk of 2^20 pulses has its own random streams, keyed by run, chunk and purpose, so that nothing depends on
how much is asked for at a time, and switching the eavesdropper on leaves what was prepared as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.dead_time import live_events
from qkdhw_emulators.optics.parameters import PS_PER_S, LinkParameters
from qkdhw_emulators.optics.photons import Clicks, detect_photons, pack_records, prepare_records
from qkdhw_emulators.optics.receiver_clock import ReceiverClock

CHUNK_PULSES = 1 << 20
N_DETECTORS = 4
TICK_PS = 2000


@unique
class Purpose(IntEnum):
    """What a random stream is for; never renumber, or the same seed gives other bytes."""

    RECORD = 0
    PHOTON = 1
    DARK = 2
    CLOCK = 3
    EVE = 4


@dataclass(frozen=True, slots=True)
class LinkChunk:
    """What one chunk adds at both ends.

    Attributes:
        records: uint8 (2^19,), preparation records, two pulses a byte; empty without light.
        ticks: int64 (n,), times of events in units of 2 ns since the receiver started, strictly rising.
        pattern: uint8 (n,), bit d set if detector d registered a click in that tick.
        horizon_ticks: No later chunk brings an event before this time.
    """

    records: NDArray[np.uint8]
    ticks: NDArray[np.int64]
    pattern: NDArray[np.uint8]
    horizon_ticks: int


class LinkModel:
    """One run of the link, from pulse 0 on.

    Args:
        parameters: What the link is made of.
        seed: Seed of the link, 0 or more.
        run: Number of the run; each has its own random streams.

    Attributes:
        truth: int64 (3, 2, 2, 4): photon clicks before dead time by intensity, prepared basis, prepared bit and
            detector. For tests of the model; no unit shows it.
    """

    def __init__(self, parameters: LinkParameters, *, seed: int, run: int = 0) -> None:
        self.parameters = parameters
        self.truth = np.zeros((3, 2, 2, N_DETECTORS), dtype=np.int64)
        self._seed = seed
        self._run = run
        self._chunk = 0
        self._chunk_ps = CHUNK_PULSES * parameters.pulse_period_ps
        self._clock = ReceiverClock(parameters, self._chunk_ps, np.random.Generator(self._bits()))
        self._dead_time_ps = round(parameters.dead_time_ns * 1000)
        self._last_ps = [-self._dead_time_ps] * N_DETECTORS
        self._waiting = np.empty(0, dtype=np.int64)

    @property
    def end_s(self) -> float:
        """The transmitter's time up to which chunks were made, for pacing."""
        return self._chunk * self._chunk_ps / PS_PER_S

    def next_chunk(self, *, light: bool = True, fibre_connected: bool = True) -> LinkChunk:
        """Make the next chunk.

        Args:
            light: Whether the transmitter is on; without it there are only dark counts.
            fibre_connected: Whether what it prepares gets to the receiver.
        """
        self._clock.advance(self._rng(Purpose.CLOCK))
        arrivals = [self._dark_counts()]
        records = np.empty(0, dtype=np.uint8)
        if light:
            record = prepare_records(self.parameters, CHUNK_PULSES, self._bits(Purpose.RECORD))
            records = pack_records(record)
        if light and fibre_connected:
            clicks = detect_photons(self.parameters, record, self._rng(Purpose.PHOTON), self._rng(Purpose.EVE))
            self._count_truth(record, clicks)
            since_ps = clicks.pulse * self.parameters.pulse_period_ps + clicks.jitter_ps
            arrivals.append(self._clock.receiver_time_ps(since_ps) * N_DETECTORS + clicks.detector)
        self._chunk += 1
        return self._register(records, arrivals)

    def _bits(self, *purpose: Purpose) -> np.random.Philox:
        """Random stream of this chunk for a purpose; without one, of the whole run."""
        key = (self._run, self._chunk, *purpose) if purpose else (self._run,)
        return np.random.Philox(np.random.SeedSequence(self._seed, spawn_key=key))

    def _rng(self, purpose: Purpose) -> np.random.Generator:
        return np.random.Generator(self._bits(purpose))

    def _dark_counts(self) -> NDArray[np.int64]:
        """Draw dark counts of this chunk; the first also has those from the receiver's start to pulse 0."""
        rng = self._rng(Purpose.DARK)
        begin_ps = -self._clock.offset_ps if self._chunk == 0 else 0
        mean = self.parameters.dark_count_rate_hz * (self._chunk_ps - begin_ps) / PS_PER_S
        counts = rng.poisson(mean, N_DETECTORS)
        since_ps = rng.integers(begin_ps, self._chunk_ps, int(counts.sum()))
        detector = np.repeat(np.arange(N_DETECTORS), counts)
        return self._clock.receiver_time_ps(since_ps) * N_DETECTORS + detector

    def _count_truth(self, record: NDArray[np.uint8], clicks: Clicks) -> None:
        nibble = record[clicks.pulse].astype(np.int64)
        cell = (((nibble >> 2) * 2 + ((nibble >> 1) & 1)) * 2 + (nibble & 1)) * N_DETECTORS + clicks.detector
        self.truth += np.bincount(cell, minlength=self.truth.size).reshape(self.truth.shape)

    def _register(self, records: NDArray[np.uint8], arrivals: list[NDArray[np.int64]]) -> LinkChunk:
        """Put arrivals (time in ps * 4 + detector) in order, apply dead time, round to ticks.

        What lies so close to the end of the chunk that an earlier click may still come waits for the next chunk.
        """
        margin_ps = round(8 * self.parameters.jitter_ps) + 1000
        end = self._clock.receiver_time_ps(np.array([self._chunk_ps], dtype=np.int64))
        horizon_ticks = max(0, (int(end[0]) - margin_ps) // TICK_PS)
        arrivals.append(self._waiting)
        keys = np.sort(np.concatenate(arrivals))
        first = int(np.searchsorted(keys, 0))
        cut = int(np.searchsorted(keys, horizon_ticks * TICK_PS * N_DETECTORS))
        self._waiting = keys[cut:]
        keys = keys[first:cut]
        live = np.zeros(keys.shape[0], dtype=np.bool_)
        detector = (keys & (N_DETECTORS - 1)).astype(np.uint8)
        times_ps = keys >> 2
        for d in range(N_DETECTORS):
            mine = np.flatnonzero(detector == d)
            mine = mine[live_events(times_ps[mine], self._dead_time_ps, self._last_ps[d])]
            live[mine] = True
            if mine.shape[0]:
                self._last_ps[d] = int(times_ps[mine[-1]])
        ticks = times_ps[live] // TICK_PS
        pattern = np.left_shift(np.uint8(1), detector[live])
        if ticks.shape[0]:
            starts = np.flatnonzero(np.diff(ticks, prepend=-1))
            ticks, pattern = ticks[starts], np.bitwise_or.reduceat(pattern, starts)
        return LinkChunk(records, ticks, pattern, horizon_ticks)

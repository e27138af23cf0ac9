"""The light of an emulated transmitter and receiver, chunk by chunk: what was prepared and what was detected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.detection import DetectedEvents
from qkdhw_emulators.optics.parameters import PS_PER_S, LinkParameters
from qkdhw_emulators.optics.simulation import LinkSimulation

CHUNK_PULSES = 1 << 20
N_DETECTORS = 4
TICK_PS = 2000


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
    """One run of the link, from pulse 0 on: a simulation whose cells are chunks of 2^20 pulses.

    Args:
        parameters: What the link is made of.
        seed: Seed of the link, 0 or more.
        run: Number of the run; each has its own random streams.

    Attributes:
        truth: int64 (3, 2, 2, 4): photons at a detector, before dead time, by intensity, prepared basis, prepared bit
            and detector. For tests of the model; no unit shows it.
    """

    def __init__(self, parameters: LinkParameters, *, seed: int, run: int = 0) -> None:
        self.truth = np.zeros((3, 2, 2, N_DETECTORS), dtype=np.int64)
        self._chunks = 0
        self._simulation = LinkSimulation(
            parameters.setup(), seed=seed, run=run, schedule=parameters.schedule(), cell_pulses=CHUNK_PULSES
        )

    @property
    def end_s(self) -> float:
        """The transmitter's time up to which chunks were made, for pacing."""
        return self._chunks * self._simulation.cell_ps / PS_PER_S

    def next_chunk(self, *, light: bool = True, fibre_connected: bool = True) -> LinkChunk:
        """Make the next chunk.

        Args:
            light: Whether the transmitter is on; without it there are only dark counts.
            fibre_connected: Whether what it prepares gets to the receiver.
        """
        cell = self._simulation.next_cell(lit=light and fibre_connected)
        self._chunks += 1
        records = np.empty(0, np.uint8)
        if light:
            records = pack_records(self._simulation.prepared(cell.first_pulse, cell.n_pulses))
        record = _record(self._simulation.prepared_at(cell.bob_light.origin))
        place = record.astype(np.int64) * N_DETECTORS + cell.bob_light.detector
        self.truth += np.bincount(place, minlength=self.truth.size).reshape(self.truth.shape)
        return LinkChunk(records, *_patterns(cell.bob), cell.bob.end_ticks)


def _record(choice: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn (intensity * 3 + basis) * 2 + bit into a record of two bases, (intensity * 2 + basis) * 2 + bit."""
    return choice - choice // np.uint8(6) * np.uint8(2)


def pack_records(choice: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack choices as preparation records: two pulses a byte, the first in the low half.

    Args:
        choice: uint8 (n,), (intensity * 3 + basis) * 2 + bit; n is even.
    """
    record = _record(choice)
    return record[::2] | record[1::2] << np.uint8(4)


def _patterns(events: DetectedEvents) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Put clicks of one tick together."""
    ticks, pattern = events.ticks, np.left_shift(np.uint8(1), events.channel)
    if not len(ticks):
        return ticks, pattern
    starts = np.flatnonzero(np.diff(ticks, prepend=-1))
    return ticks[starts], np.bitwise_or.reduceat(pattern, starts)

"""The receiver's free-running clock: start offset, frequency error, drift and random walk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.parameters import PS_PER_S, LinkParameters

MAX_DRAWN_OFFSET_S = 0.01


class ReceiverClock:
    """Maps the transmitter's time to the receiver's, both in ps; its frequency changes once a chunk.

    Args:
        parameters: Offset and frequency error.
        chunk_ps: Length of a chunk.
        rng: Draws the start offset if the parameters leave it open.
    """

    def __init__(self, parameters: LinkParameters, chunk_ps: int, rng: np.random.Generator) -> None:
        drawn_s = rng.random() * MAX_DRAWN_OFFSET_S
        fixed_s = parameters.receiver_clock_offset_s
        self.offset_ps = round((drawn_s if fixed_s is None else fixed_s) * PS_PER_S)
        self._parameters = parameters
        self._chunk_ps = chunk_ps
        self._chunk = -1
        self._walk_ppm = 0.0
        self._ppm = 0.0
        self._gained_ps = 0.0

    def advance(self, rng: np.random.Generator) -> None:
        """Go on to the next chunk."""
        self._gained_ps += self._chunk_ps * self._ppm * 1e-6 if self._chunk >= 0 else 0.0
        self._chunk += 1
        chunk_s = self._chunk_ps / PS_PER_S
        p = self._parameters
        self._walk_ppm += float(rng.standard_normal()) * p.receiver_clock_walk_ppm * chunk_s**0.5
        drift_ppm = p.receiver_clock_drift_ppm_per_s * chunk_s * (self._chunk + 0.5)
        self._ppm = p.receiver_clock_ppm + drift_ppm + self._walk_ppm

    def receiver_time_ps(self, since_chunk_ps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Convert times since the start of this chunk; the whole picoseconds are added as integers."""
        gained = np.rint(self._gained_ps + since_chunk_ps * (self._ppm * 1e-6)).astype(np.int64)
        shift_ps: NDArray[np.int64] = gained + np.int64(self.offset_ps + self._chunk * self._chunk_ps)
        return since_chunk_ps + shift_ps

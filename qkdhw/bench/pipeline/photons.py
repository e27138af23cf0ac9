"""Photons of wired detectors out of pieces of a stream, of those at one time one at random, what falls out counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import NonMonotonicTimeError
from qkdhw.events.wiring import NOT_WIRED, Wiring
from qkdhw.model import DetectionBlock, EventKind


@dataclass(frozen=True, slots=True)
class Photons:
    """Detections of one site.

    Attributes:
        ticks: int64 (n,), strictly increasing, also from piece to piece.
        detectors: uint8 (n,), 2 * basis + bit; secret.
    """

    ticks: NDArray[np.int64]
    detectors: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ticks)


class PhotonFilter:
    """Keeps at most one detection a tick: of several, one at random, so that none of them is favoured.

    Detections at the last tick of a piece wait, for the next piece may have more of them.

    Args:
        wiring: Which input is which detector.
        random_bytes: Source of fresh random bytes.

    Attributes:
        n_not_photons: Markers, gaps, dummies and other events that are no detections.
        n_unwired: Dropped: an input without a detector.
        n_simultaneous: Dropped: another detection at the same tick was drawn.
    """

    def __init__(self, wiring: Wiring, random_bytes: Callable[[int], bytes]) -> None:
        self._table, self._random_bytes = wiring.table, random_bytes
        self._rest = Photons(np.empty(0, np.int64), np.empty(0, np.uint8))
        self.n_not_photons = self.n_unwired = self.n_simultaneous = 0

    @property
    def n_waiting(self) -> int:
        """Detections at the last tick."""
        return len(self._rest)

    def feed(self, piece: DetectionBlock) -> Photons:
        """Take the next piece.

        Raises:
            NonMonotonicTimeError: Time goes backwards.
        """
        detectors = self._table[piece.channel]
        photon = piece.kind == EventKind.PHOTON
        wanted = photon & (detectors != NOT_WIRED)
        n_photons, n_wanted = int(np.count_nonzero(photon)), int(np.count_nonzero(wanted))
        self.n_not_photons += len(piece) - n_photons
        self.n_unwired += n_photons - n_wanted
        ticks = piece.time_ticks
        if n_wanted < len(piece):
            ticks, detectors = ticks[wanted], detectors[wanted]
        if len(self._rest):
            ticks = np.concatenate((self._rest.ticks, ticks))
            detectors = np.concatenate((self._rest.detectors, detectors))
        again = np.flatnonzero(ticks[1:] <= ticks[:-1])
        backwards = ticks[again + 1] < ticks[again]
        if backwards.any():
            raise NonMonotonicTimeError(
                "detections of a piece are not in order of time",
                index=int(again[np.argmax(backwards)]) + 1,
                remedy="merge and sort the stream first",
            )
        end = max(len(ticks) - 1, 0)
        while end > 0 and ticks[end - 1] == ticks[end]:
            end -= 1
        self._rest = Photons(ticks[end:].copy(), detectors[end:].copy())
        return self._one_a_tick(Photons(ticks[:end], detectors[:end]), again[again < end])

    def flush(self) -> Photons:
        """Give what waits, at the end of the stream."""
        rest = self._rest
        self._rest = Photons(rest.ticks[:0], rest.detectors[:0])
        return self._one_a_tick(rest, np.arange(max(0, len(rest) - 1)))

    def _one_a_tick(self, photons: Photons, again: NDArray[np.int64]) -> Photons:
        """Draw one of those that share a tick: each in `again` shares it with the next."""
        if not len(again):
            return photons
        self.n_simultaneous += len(again)
        begins = np.flatnonzero(np.diff(again, prepend=-2) != 1)
        sizes = np.diff(begins, append=len(again)) + 1
        draws = np.frombuffer(self._random_bytes(4 * len(sizes)), np.uint32).astype(np.int64)
        kept = np.ones(len(photons), np.bool_)
        kept[again] = kept[again + 1] = False
        kept[again[begins] + (draws * sizes >> 32)] = True
        return Photons(photons.ticks[kept], photons.detectors[kept])

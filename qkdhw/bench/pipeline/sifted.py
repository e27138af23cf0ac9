"""What a pipeline gives: packed sifted bits with their counts, and a statistics value in which nothing is missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from qkdhw.events.gating import GatingStatistics
from qkdhw.model import Basis
from qkdhw.postprocessing.sifting import N_INTENSITIES, SiftedBlock


@dataclass(frozen=True, slots=True)
class SiftedBits:
    """One site's sifted bits of one announcement, in the order of detection; the bits are never printed.

    Attributes:
        slot: int64 (n,), the announced slots.
        basis: uint8 (n,), the announced bases.
        reply: uint8 (n,), the transmitter's reply: 0 for those that are not kept.
        n_key: Number of key bits.
        n_test: Number of test bits.
        key_bits: uint8 (ceil(n_key / 8),), packed, first bit in bit 0, padding zero; secret.
        test_bits: uint8 (ceil(n_test / 8),), packed likewise.
        key_intensity: uint8 (n_key,), 0 is the brightest.
        test_intensity: uint8 (n_test,).
        counts: int64 (2, 3, 2), this site's bits by basis, intensity and bit value.
    """

    slot: NDArray[np.int64] = field(repr=False)
    basis: NDArray[np.uint8] = field(repr=False)
    reply: NDArray[np.uint8] = field(repr=False)
    n_key: int
    n_test: int
    key_bits: NDArray[np.uint8] = field(repr=False)
    test_bits: NDArray[np.uint8] = field(repr=False)
    key_intensity: NDArray[np.uint8] = field(repr=False)
    test_intensity: NDArray[np.uint8] = field(repr=False)
    counts: NDArray[np.int64] = field(repr=False)

    @property
    def key_slot(self) -> NDArray[np.int64]:
        """Slots of the key bits, int64 (n_key,)."""
        slots: NDArray[np.int64] = self.slot[(self.reply != 0) & (self.basis == Basis.KEY)]
        return slots

    @property
    def test_slot(self) -> NDArray[np.int64]:
        """Slots of the test bits, int64 (n_test,)."""
        slots: NDArray[np.int64] = self.slot[(self.reply != 0) & (self.basis == Basis.TEST)]
        return slots

    def wipe(self) -> None:
        """Overwrite all bits with zeros."""
        self.key_bits.fill(0)
        self.test_bits.fill(0)


def pack(sifted: SiftedBlock, slot: NDArray[np.int64], basis: NDArray[np.uint8]) -> SiftedBits:
    """Pack a site's sifted block and wipe it.

    Args:
        sifted: The block.
        slot: int64 (n,), the announced slots.
        basis: uint8 (n,), the announced bases.
    """
    counts = np.empty((len(Basis), N_INTENSITIES, 2), np.int64)
    for basis_of, intensity, bits in (
        (Basis.KEY, sifted.key_intensity, sifted.key_bits),
        (Basis.TEST, sifted.test_intensity, sifted.test_bits),
    ):
        total, ones = count_by_intensity(intensity), count_by_intensity(intensity, bits)
        counts[basis_of] = np.stack((total - ones, ones), axis=1)
    packed = SiftedBits(
        slot,
        basis,
        sifted.reply,
        len(sifted.key_bits),
        len(sifted.test_bits),
        np.packbits(sifted.key_bits, bitorder="little"),
        np.packbits(sifted.test_bits, bitorder="little"),
        sifted.key_intensity,
        sifted.test_intensity,
        counts,
    )
    sifted.wipe()
    return packed


def count_by_intensity(intensity: NDArray[np.uint8], bits: NDArray[np.uint8] | None = None) -> NDArray[np.int64]:
    """Count elements, or ones among their bits, by intensity, int64 (3,); no bit selects an address or a branch."""
    found = np.empty(N_INTENSITIES, np.int64)
    for k in range(N_INTENSITIES):
        of_k = intensity == k
        found[k] = np.count_nonzero(of_k if bits is None else of_k & bits.view(np.bool_))
    return found


@dataclass(frozen=True, slots=True)
class PipelineStatistics:
    """What became of the events and outcomes at a receiver; every event is in exactly one of `fates`.

    Attributes:
        n_events: Events taken in, all kinds.
        n_waiting: Taken in, kept until the clock is found.
        n_clock_lost: Dropped: events that came while the clock was lost.
        n_not_photons: Markers, gaps, dummies and other events that are no detections.
        gating: What the gate did with the detections.
        n_in_doubt: Outcomes kept until the clock is confirmed; part of `gating.n_slots`.
        n_outcomes_lost: Outcomes whose clock was not confirmed before it was lost; part of `gating.n_slots`.
        n_sync_frame: Outcomes in the disclosed sync frame, never key.
        n_unmeasured: Outcomes for which the receiver's own choice of basis is not known.
        n_unanswered: Outcomes announced, without a valid reply yet.
        n_refused: Outcomes that the transmitter's reply leaves out: another basis, or no record.
        n_key: Sifted key bits.
        n_test: Sifted test bits.
        n_missed: Events that the stream says were lost before it; never taken in.
        n_late: Events dropped before, as they came too late to be put in order; never taken in.
        n_overflows: Overflows that the unit told of.
        n_unit_stalls: How often the unit's ring was full and its reading stopped.
        n_stalls: How often the pipeline's queue was full and its reader waited.
        n_clock_losses: How often the clock was lost.
        n_relocks: How often it was found again.
    """

    n_events: int = 0
    n_waiting: int = 0
    n_clock_lost: int = 0
    n_not_photons: int = 0
    gating: GatingStatistics = field(default_factory=GatingStatistics)
    n_in_doubt: int = 0
    n_outcomes_lost: int = 0
    n_sync_frame: int = 0
    n_unmeasured: int = 0
    n_unanswered: int = 0
    n_refused: int = 0
    n_key: int = 0
    n_test: int = 0
    n_missed: int = 0
    n_late: int = 0
    n_overflows: int = 0
    n_unit_stalls: int = 0
    n_stalls: int = 0
    n_clock_losses: int = 0
    n_relocks: int = 0

    @property
    def n_open(self) -> int:
        """Clicks in the slot that is still open; 0 at the end of the stream."""
        g = self.gating
        return g.n_photons - sum(self._dropped().values()) - g.n_slots - g.n_merged

    def _dropped(self) -> dict[str, int]:
        g = self.gating
        return {
            "unwired": g.n_unwired,
            "before_start": g.n_before_start,
            "outside_window": g.n_outside_window,
            "dead_time": g.n_dead_time,
        }

    @property
    def fates(self) -> dict[str, int]:
        """What became of events, by name; the values sum to `n_events` (a slot's first click is its outcome)."""
        return {
            "waiting": self.n_waiting,
            "clock_lost": self.n_clock_lost + self.n_outcomes_lost,
            "not_photons": self.n_not_photons,
            **self._dropped(),
            "merged": self.gating.n_merged,
            "open": self.n_open,
            "in_doubt": self.n_in_doubt,
            "sync_frame": self.n_sync_frame,
            "unmeasured": self.n_unmeasured,
            "unanswered": self.n_unanswered,
            "refused": self.n_refused,
            "key": self.n_key,
            "test": self.n_test,
        }

    def as_dict(self) -> dict[str, object]:
        """Return all numbers, JSON-able."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SenderStatistics:
    """What a transmitter answered: n_announced is the sum of the others.

    Attributes:
        n_announced: Detections announced.
        n_unprepared: Dropped: no record of the pulse, or it is in the disclosed sync frame.
        n_basis_differs: Dropped: measured in another basis than prepared.
        n_key: Sifted key bits.
        n_test: Sifted test bits.
    """

    n_announced: int = 0
    n_unprepared: int = 0
    n_basis_differs: int = 0
    n_key: int = 0
    n_test: int = 0

    def __add__(self, other: SenderStatistics) -> SenderStatistics:
        """Add count by count."""
        return SenderStatistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

"""Both sites of a prepare-and-measure link in one process: error rates and gains from a file of events and a record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.pipeline.pieces import Source
from qkdhw.bench.pipeline.receiver import EventPipeline
from qkdhw.bench.pipeline.records import Records
from qkdhw.bench.pipeline.sender import SenderPipeline
from qkdhw.bench.pipeline.sifted import PipelineStatistics, SenderStatistics, SiftedBits, count_by_intensity
from qkdhw.errors import PeerProtocolError
from qkdhw.events.alignment import Alignment
from qkdhw.events.wiring import FOUR_DETECTORS, Wiring
from qkdhw.interfaces import TransmitterUnit
from qkdhw.model import Basis
from qkdhw.postprocessing.sifting import N_INTENSITIES


@dataclass(frozen=True, slots=True)
class SiftReport:
    """What both sites together know of a run: numbers, no bits.

    Attributes:
        kept: int64 (2, 3), sifted bits by basis and intensity.
        errors: int64 (2, 3), those of them that differ between the sites.
        sent: int64 (2, 3), pulses sent by basis and intensity, or None if the record does not have all.
        receiver: The receiver's statistics.
        sender: The sender's.
        alignment: How the receiver's clock was found first; None if it was not, or was given.
    """

    kept: NDArray[np.int64]
    errors: NDArray[np.int64]
    sent: NDArray[np.int64] | None
    receiver: PipelineStatistics
    sender: SenderStatistics
    alignment: Alignment | None = None

    def qber(self, basis: Basis = Basis.KEY, intensity: int | None = None) -> float:
        """Return the error rate of a basis, of one intensity or of all; nan without bits."""
        cells = slice(None) if intensity is None else intensity
        kept = int(self.kept[basis, cells].sum())
        return int(self.errors[basis, cells].sum()) / kept if kept else float("nan")

    @property
    def gains(self) -> NDArray[np.float64] | None:
        """Sifted bits per pulse sent, (2, 3), nan where none was sent; None if `sent` is."""
        if self.sent is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.sent > 0, self.kept / self.sent, np.nan)


def ignore(_receiver: SiftedBits, _sender: SiftedBits) -> None:
    """Take both sites' bits and do nothing."""


def sift_both(
    receiver: EventPipeline, sender: SenderPipeline, on_sifted: Callable[[SiftedBits, SiftedBits], None] = ignore
) -> SiftReport:
    """Run both sites' pipelines to the end of the events.

    Args:
        receiver: Entered.
        sender: Entered.
        on_sifted: Called with the receiver's and the sender's bits of each announcement; they are wiped afterwards.

    Raises:
        PeerProtocolError: The sites kept different positions.
        QkdhwError: Whatever ends one of them.
    """
    kept = np.zeros((len(Basis), N_INTENSITIES), np.int64)
    errors = np.zeros_like(kept)
    for announcement in receiver:
        reply, theirs = sender.answer(announcement)
        ours = receiver.sift(reply)
        kept += ours.counts.sum(axis=2)
        wrong = _errors(ours, theirs)
        errors += wrong
        receiver.report_errors(int(wrong[Basis.TEST].sum()), ours.n_test)
        on_sifted(ours, theirs)
        ours.wipe()
        theirs.wipe()
    return SiftReport(kept, errors, sender.sent, receiver.statistics, sender.statistics, receiver.alignment)


def sift_files(
    events: Source,
    record: Records,
    *,
    period_ps: Fraction | int,
    window_ps: Fraction | int,
    wiring: Wiring = FOUR_DETECTORS,
    sync_pulses: int = 1 << 20,
    on_sifted: Callable[[SiftedBits, SiftedBits], None] = ignore,
    **options: Any,
) -> SiftReport:
    """Sift a receiver's events against a sender's record.

    Args:
        events: The receiver's event file, or any source of an `EventPipeline`.
        record: The sender's record, as `SenderPipeline` takes it; the file of `qkdhw link simulate` is one.
        period_ps: Slot period.
        window_ps: Full width of the window around a slot's centre.
        wiring: Which input is which detector.
        sync_pulses: Pulses at the start that are used for clock alignment, and for nothing else; 0 with a known `clock`
            among the options.
        on_sifted: See `sift_both`.
        options: Further options of `EventPipeline`.

    Raises:
        QkdhwError: Whatever ends one of the sites.
    """
    sender = SenderPipeline(record, sync_pulses=sync_pulses, count_sent=True)
    with (
        EventPipeline(
            events,
            wiring,
            period_ps=period_ps,
            window_ps=window_ps,
            sync_frame=(lambda: sender.sync_frame) if sync_pulses else None,
            resync=sender.disclose if sync_pulses else None,
            **options,
        ) as receiver,
        sender,  # second: a transmitter's light goes nowhere before the receiver runs
    ):
        report = sift_both(receiver, sender, on_sifted)
        if not isinstance(record, TransmitterUnit):
            sender.read_on()
        return replace(report, sent=sender.sent)


def _errors(ours: SiftedBits, theirs: SiftedBits) -> NDArray[np.int64]:
    """Compare two sites' bits, by basis and intensity."""
    if not (np.array_equal(ours.slot, theirs.slot) and np.array_equal(ours.reply, theirs.reply)):
        raise PeerProtocolError("the sites kept different positions", remedy="check that both run the same version")
    rows = []
    for intensity, a, b in (
        (theirs.key_intensity, ours.key_bits, theirs.key_bits),
        (theirs.test_intensity, ours.test_bits, theirs.test_bits),
    ):
        wrong = np.unpackbits(a ^ b, count=len(intensity), bitorder="little")
        rows.append(count_by_intensity(intensity, wrong))
    return np.array(rows)


@dataclass(slots=True)
class SeededBytes:
    """Random bytes from a secret seed, for runs that must give the same again; call it with a number of bytes.

    Attributes:
        seed: 32 secret bytes; each stream needs its own.
    """

    seed: bytes = field(repr=False)
    _calls: int = field(default=0, repr=False)

    def __call__(self, n: int) -> bytes:
        """Return the next `n` bytes."""
        self._calls += 1
        return hashlib.shake_256(self.seed + self._calls.to_bytes(8, "big")).digest(n)

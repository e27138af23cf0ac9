"""The transmitter's side: discloses a sync frame, answers announcements, keeps its own sifted bits."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.pipeline.records import RecordReader, Records
from qkdhw.bench.pipeline.sifted import SenderStatistics, SiftedBits, pack
from qkdhw.bench.pipeline.sync_frame import MAX_SYNC_PULSES, SyncFrame
from qkdhw.errors import EventError, PeerProtocolError
from qkdhw.postprocessing.sifting import parse_announcement, sift_at_transmitter

_FILLER = 7  # seed of what stands for pulses that a record leaves out


class SenderPipeline:
    """Answers a receiver's announcements from the record of what was prepared; a context manager.

    Its memory does not grow: the record is read forwards, a block at a time, as far as announcements go.

    Args:
        records: A running transmitter unit, a sender's record (Parquet), or blocks in order.
        sync_pulses: Pulses at the start that are disclosed for clock alignment; never key.
        count_sent: Count what was sent by basis and intensity, for gains; see `sent`.
        timeout_s: Longest wait for the record.

    Raises:
        ValueError: More than 2^24 sync pulses.
    """

    def __init__(
        self, records: Records, *, sync_pulses: int = 1 << 20, count_sent: bool = False, timeout_s: float = 30.0
    ) -> None:
        if not 0 <= sync_pulses <= MAX_SYNC_PULSES:
            raise ValueError(f"a sync frame has up to {MAX_SYNC_PULSES} pulses, not {sync_pulses}")
        self._reader = RecordReader(records, timeout_s=timeout_s, count_sent=count_sent)
        self._sync_pulses = sync_pulses
        self._sync_frame: SyncFrame | None = None
        self._answered_to = -1
        self._disclosed = np.zeros((2, 3), np.int64)
        self._statistics = SenderStatistics()

    def __enter__(self) -> Self:
        self._reader.__enter__()
        if self._sync_pulses:
            self._sync_frame = self.disclose(0, self._sync_pulses)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    @property
    def sync_frame(self) -> SyncFrame:
        """The disclosed frame, to be given to the receiver.

        Raises:
            ValueError: There is none, or the pipeline is not entered.
        """
        if self._sync_frame is None:
            raise ValueError("no sync frame: enter the pipeline with sync_pulses above 0")
        return self._sync_frame

    @property
    def statistics(self) -> SenderStatistics:
        """Counts so far."""
        return self._statistics

    def read_on(self) -> None:
        """Read the record to its end, so that `sent` has all of it."""
        self._reader.read_on()

    @property
    def sent(self) -> NDArray[np.int64] | None:
        """Pulses sent by basis and intensity, int64 (2, 3), disclosed ones left out; None if not known."""
        sent = self._reader.sent
        return None if sent is None else sent - self._disclosed

    def answer(self, announcement: bytes) -> tuple[bytes, SiftedBits]:
        """Answer an announcement; each detection is answered once, in ascending order.

        Args:
            announcement: As the receiver's pipeline gave it.

        Returns:
            The reply (one byte a detection), and this site's sifted bits.

        Raises:
            PeerProtocolError: The announcement is malformed, or goes back to slots that were answered.
            EventError: The record cannot be read, or holds a byte that no transmitter may give.
        """
        slot, basis = parse_announcement(announcement)
        if len(slot) and int(slot[0]) <= self._answered_to:
            raise PeerProtocolError(
                f"slot {int(slot[0])} is announced after slot {self._answered_to} was answered",
                remedy="Drop this block; check that both sites run the same version.",
            )
        record, found = self._reader.take(slot)
        if len(slot):
            self._answered_to = int(slot[-1])
            _check_record(record)
        # What is not there is looked at as prepared in the basis that was not measured: it is answered with 0.
        prepared = np.where(found, record, (basis ^ 1) << 1)
        sifted = sift_at_transmitter(np.arange(len(slot)), basis, prepared, 0)
        packed = pack(sifted, slot, basis)
        n, n_found = len(slot), int(np.count_nonzero(found))
        kept = packed.n_key + packed.n_test
        self._statistics += SenderStatistics(n, n - n_found, n_found - kept, packed.n_key, packed.n_test)
        return sifted.reply.tobytes(), packed

    def disclose(self, first_slot: int, n: int | None = None) -> SyncFrame:
        """Disclose another piece of the record, for a receiver that lost its clock: none of it becomes key.

        Args:
            first_slot: Beyond all that was answered or disclosed; what lies between is not answered any more.
            n: How many pulses; as many as in the first frame if not given.

        Raises:
            PeerProtocolError: Some of it was answered, or is too long.
            EventError: The record has nothing there.
        """
        n = n or self._sync_pulses or 1 << 20
        if first_slot <= self._answered_to or not 0 < n <= MAX_SYNC_PULSES:
            raise PeerProtocolError(
                f"{n} pulses from slot {first_slot} are asked for, slots up to {self._answered_to} were answered",
                remedy="Ask for up to 2^24 pulses after the last announcement.",
            )
        record, found = self._reader.take(np.arange(first_slot, first_slot + n))
        if not found.any():
            raise EventError("the record has nothing of the sync frame", remedy="check the sender's record")
        _check_record(record)
        # Pulses that the record leaves out were not detected: any bits can stand for them.
        filler = np.random.default_rng(_FILLER).integers(0, 4, len(record), np.uint8)
        self._answered_to = first_slot + n - 1
        frame = SyncFrame(first_slot, np.where(found, record, filler))
        self._disclosed += np.bincount(frame.record >> 1, minlength=6).reshape(3, 2).T
        return frame


def _check_record(record: NDArray[np.uint8]) -> None:
    if int(record.max()) > 11:
        raise EventError("the record has an intensity that does not exist", remedy="check the transmitter unit")

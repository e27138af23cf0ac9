"""Threads that keep a unit's stream flowing while a block is being processed; bounded, and an error is not lost.

When the bound is reached the thread stops reading: the unit's own buffer then fills, and the unit says so (overflow
status, lost records). Nothing is dropped here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import TransportTimeoutError, UnitError
from qkdhw.interfaces import TimeTagger, TransmitterUnit
from qkdhw.model import DetectionBlock
from qkdhw.quantities import PS_PER_S

READ_PULSES = 1 << 21
READ_EVENTS = 1 << 16
POLL_S = 0.5


class _Reader:
    """A daemon thread that calls `_read_once` until told to stop; a context manager."""

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._stopping = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._read_once()
        except Exception as error:  # noqa: BLE001 - whatever ends the thread is raised where its data is awaited
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _read_once(self) -> None:
        raise NotImplementedError

    def _wait(self, deadline: float, timeout_s: float, what: str) -> None:
        """Wait for the thread to deliver; the caller holds the condition."""
        if self._error is not None:
            raise self._error
        if time.monotonic() >= deadline:
            raise TransportTimeoutError(
                f"the unit delivered no {what} for {timeout_s} s", remedy="check that it runs and its cable"
            )
        self._changed.wait(min(POLL_S, max(0.0, deadline - time.monotonic())))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=10.0)


class PreparationReader(_Reader):
    """Keeps what the transmitter prepared until the block that needs it has taken it.

    Args:
        unit: A running transmitter unit; nobody else reads its records meanwhile.
        limit_pulses: Bound on what is kept.
    """

    def __init__(self, unit: TransmitterUnit, limit_pulses: int) -> None:
        super().__init__("preparation reader")
        self._unit = unit
        self._limit = limit_pulses
        self._pieces: deque[NDArray[np.uint8]] = deque()
        self._first = 0
        self._held = 0

    def _read_once(self) -> None:
        with self._changed:
            if self._held >= self._limit:
                self._changed.wait(POLL_S)
                return
        block = self._unit.read_preparation(READ_PULSES, timeout_s=POLL_S)
        if not len(block):
            return
        with self._changed:
            if block.first_pulse_index != self._first + self._held:
                raise UnitError(
                    f"preparation records jump from pulse {self._first + self._held} to {block.first_pulse_index}"
                )
            self._pieces.append(block.record)
            self._held += len(block)
            self._changed.notify_all()

    def take(self, first: int, n: int, *, timeout_s: float) -> NDArray[np.uint8]:
        """Return the records of pulses first .. first + n - 1 as a new array and forget them and all before.

        Raises:
            ValueError: Some of them are forgotten already.
            TransportTimeoutError: The unit did not deliver them in time.
        """
        if first < self._first:
            raise ValueError(f"records from pulse {first} are asked for, those before {self._first} are forgotten")
        deadline = time.monotonic() + timeout_s
        out = np.empty(n, np.uint8)
        filled = 0
        while filled < n:
            with self._changed:
                while not self._pieces:
                    self._wait(deadline, timeout_s, "preparation records")
                piece = self._pieces.popleft()
                start = max(0, first + filled - self._first)
                use = piece[start : start + n - filled]
                rest = piece[start + use.size :]
                if rest.size:
                    self._pieces.appendleft(rest)
                used = piece.size - rest.size
                self._first += used
                self._held -= used
                self._changed.notify_all()
            out[filled : filled + use.size] = use
            filled += use.size
            piece[:used].fill(0)
        return out


class DetectionReader(_Reader):
    """Hands out the tagger's events in pieces of equal time, so that results do not depend on how bytes arrived.

    Args:
        unit: A streaming time tagger; nobody else reads it meanwhile.
        piece_s: Length of a piece.
        limit_events: Bound on what is kept.
    """

    def __init__(self, unit: TimeTagger, piece_s: float, limit_events: int) -> None:
        super().__init__("detection reader")
        self._unit = unit
        self._piece_s = piece_s
        self._limit = limit_events
        self._blocks: deque[DetectionBlock] = deque()
        self._held = 0
        self._parts: list[DetectionBlock] = []
        self._boundary: int | None = None

    def _read_once(self) -> None:
        with self._changed:
            if self._held >= self._limit:
                self._changed.wait(POLL_S)
                return
        block = self._unit.read_block(READ_EVENTS, timeout_s=POLL_S)
        if not len(block):
            return
        with self._changed:
            self._blocks.append(block)
            self._held += len(block)
            self._changed.notify_all()

    def next_piece(self, *, timeout_s: float) -> DetectionBlock:
        """Return all events up to the next boundary in time; needs an event after it to know it is complete.

        Raises:
            TransportTimeoutError: No such event came in time; nothing is lost, and asking again is allowed.
            UnitError: More events than the bound came without one.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            piece = self._complete_piece()
            if piece is not None:
                return piece
            if sum(map(len, self._parts)) > self._limit:
                raise UnitError(f"{self._limit} events are not enough for {self._piece_s} s: the unit's time stands")
            with self._changed:
                while not self._blocks or time.monotonic() >= deadline:
                    self._wait(deadline, timeout_s, f"events of the next {self._piece_s} s")
                block = self._blocks.popleft()
                self._held -= len(block)
                self._changed.notify_all()
            self._parts.append(block)

    def _complete_piece(self) -> DetectionBlock | None:
        """Cut off the next piece if an event after it is there."""
        if not self._parts:
            return None
        last = self._parts[-1]
        piece_ticks = int(self._piece_s * PS_PER_S / last.tick_ps)
        if self._boundary is None:
            self._boundary = int(last.time_ticks[0]) + piece_ticks
        cut = int(np.searchsorted(last.time_ticks, self._boundary))
        if cut == len(last):
            return None
        self._boundary += piece_ticks
        before, after = (last.missed, 0) if cut else (0, last.missed)
        piece = join_blocks([*self._parts[:-1], _cut(last, slice(cut), before)])
        self._parts = [_cut(last, slice(cut, None), after)]
        return piece


def _cut(block: DetectionBlock, part: slice, missed: int) -> DetectionBlock:
    return DetectionBlock(block.time_ticks[part], block.channel[part], block.kind[part], block.tick_ps, missed=missed)


def join_blocks(parts: list[DetectionBlock]) -> DetectionBlock:
    """Put blocks of one stream after one another."""
    return DetectionBlock(
        np.concatenate([part.time_ticks for part in parts]),
        np.concatenate([part.channel for part in parts]),
        np.concatenate([part.kind for part in parts]),
        parts[0].tick_ps,
        missed=sum(part.missed for part in parts),
    )

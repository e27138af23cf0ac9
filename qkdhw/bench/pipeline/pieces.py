"""Events of a unit, a file or any iterable, cut into pieces that do not depend on how the bytes arrived."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from qkdhw.bench.pipeline.merged import Merged
from qkdhw.drivers.event_stream import EventStream
from qkdhw.errors import EventError, EventOverflowError
from qkdhw.formats import EventFile, open_events
from qkdhw.model import DetectionBlock
from qkdhw.quantities import PS_PER_S

PIECE_EVENTS = 1 << 18
PIECE_S = Fraction(1, 4)


@runtime_checkable
class StreamingUnit(Protocol):
    """An open time tagger or receiver: leaving its stream stops it."""

    def stream(self) -> EventStream:
        """Start, and return the blocks as they come."""
        ...


Source = StreamingUnit | EventFile | Merged | Path | str | Iterable[DetectionBlock]


@dataclass(slots=True)
class SourceCounts:
    """What a source said of itself.

    Attributes:
        missed: Events that the stream says were lost before it.
        overflows: Overflows of the unit's own buffer.
        stalls: How often the unit's ring was full and its reading stopped.
        late: Events dropped as they came too late to be put in order.
    """

    missed: int = 0
    overflows: int = 0
    stalls: int = 0
    late: int = 0


class Pieces:
    """Cuts a source into pieces of at most so many events and at most so much time between them.

    The cuts depend on the events alone. A unit's stream ends by `stop` or after `duration_s`; an overflow of its
    buffer, which it tells at the end, is counted and not raised.

    Args:
        source: An open unit, an event file or its path, several of them `Merged`, or blocks in order, whose arrays must
            stay as they are.
        piece_events: Most events in a piece.
        piece_s: Most time between the first and the last of them.
        duration_s: If given, the source ends after this time by its own clock.

    Attributes:
        counts: What the source said so far.
    """

    def __init__(
        self,
        source: Source,
        *,
        piece_events: int = PIECE_EVENTS,
        piece_s: Fraction | float = PIECE_S,
        duration_s: float | None = None,
    ) -> None:
        if piece_events < 1 or piece_s <= 0:
            raise ValueError(f"pieces of {piece_events} events and {piece_s} s are none")
        self._source = open_events(source) if isinstance(source, str | Path) else source
        self._piece_events = piece_events
        self._piece_s = Fraction(piece_s)
        self._duration_s = duration_s
        self.counts = SourceCounts()

    def read(self, stopping: threading.Event) -> Generator[DetectionBlock, None, None]:
        """Yield the pieces until the source ends or `stopping` is set.

        Raises:
            EventError: The tick changes, or the events are of start-stop (T3) measurements.
        """
        parts: list[DetectionBlock] = []
        held, boundary, tick_ps = 0, 0, None
        for block in self._blocks(stopping):
            tick_ps = _checked_tick(block, tick_ps)
            piece_ticks = max(1, math.floor(self._piece_s * PS_PER_S / tick_ps))
            ticks, begin = block.time_ticks, 0
            while begin < len(block):
                if held == 0:
                    boundary = int(ticks[begin]) + piece_ticks
                end = min(begin + self._piece_events - held, len(block))
                late = int(ticks[end - 1]) >= boundary
                if late:
                    end = begin + int(np.searchsorted(ticks[begin:end], boundary))
                parts.append(_part(block, begin, end))
                held += end - begin
                if late or held == self._piece_events:
                    yield joined(parts)
                    parts, held = [], 0
                begin = end
        if held:
            yield joined(parts)

    def _blocks(self, stopping: threading.Event) -> Iterator[DetectionBlock]:
        """Yield blocks that stay, none of them empty, up to the end of the duration."""
        with self._opened(stopping) as blocks:
            copied = isinstance(blocks, EventStream)
            end_ticks: int | None = None
            for block in blocks:
                if stopping.is_set():
                    return
                self.counts.missed += block.missed
                if not len(block):
                    continue
                kept = block if not copied else _copied(block)
                if self._duration_s is not None:
                    if end_ticks is None:
                        end_ticks = int(block.time_ticks[0]) + math.ceil(self._duration_s * PS_PER_S / block.tick_ps)
                    cut = int(np.searchsorted(block.time_ticks, end_ticks))
                    if cut < len(block):
                        if cut:
                            yield _part(kept, 0, cut)
                        return
                yield kept

    @contextmanager
    def _opened(self, stopping: threading.Event) -> Iterator[Iterable[DetectionBlock]]:
        source = self._source
        if isinstance(source, EventFile):
            yield source.read_blocks(self._piece_events)
            return
        if isinstance(source, Merged):
            yield self._merged(source, stopping)
            return
        if not isinstance(source, StreamingUnit):
            yield source
            return
        stream = source.stream()
        try:
            with stream:
                yield stream
        except EventOverflowError:
            pass  # counted by the stream
        finally:
            self.counts.overflows, self.counts.stalls = stream.counts.overflows, stream.counts.stalls

    def _merged(self, merged: Merged, stopping: threading.Event) -> Iterator[DetectionBlock]:
        parts = [Pieces(source, piece_events=self._piece_events, piece_s=self._piece_s) for source in merged.sources]
        with ExitStack() as stack:
            readers = [stack.enter_context(closing(part.read(stopping))) for part in parts]
            for block, late in merged.blocks(readers):
                self.counts.late = late
                yield block
        self.counts.overflows = sum(part.counts.overflows for part in parts)
        self.counts.stalls = sum(part.counts.stalls for part in parts)


def _checked_tick(block: DetectionBlock, tick_ps: Fraction | None) -> Fraction:
    if block.fine_ticks is not None:
        raise EventError(
            "events of a start-stop (T3) measurement have no time of their own",
            remedy="record in T2 mode; converting a T3 file does not help, `qkdhw events histogram` draws it",
        )
    if tick_ps is not None and block.tick_ps != tick_ps:
        raise EventError(
            f"the tick changed from {tick_ps} ps to {block.tick_ps} ps in mid-stream",
            remedy="keep the time tagger's resolution while it runs",
        )
    return block.tick_ps


def _part(block: DetectionBlock, begin: int, end: int) -> DetectionBlock:
    if begin == 0 and end == len(block):
        return block
    part = slice(begin, end)
    missed = block.missed if begin == 0 else 0
    return DetectionBlock(block.time_ticks[part], block.channel[part], block.kind[part], block.tick_ps, missed=missed)


def _copied(block: DetectionBlock) -> DetectionBlock:
    arrays = (block.time_ticks.copy(), block.channel.copy(), block.kind.copy())
    return DetectionBlock(*arrays, block.tick_ps, missed=block.missed)


def joined(parts: list[DetectionBlock]) -> DetectionBlock:
    """Put blocks of one stream after one another."""
    if len(parts) == 1:
        return parts[0]
    return DetectionBlock(
        np.concatenate([part.time_ticks for part in parts]),
        np.concatenate([part.channel for part in parts]),
        np.concatenate([part.kind for part in parts]),
        parts[0].tick_ps,
        missed=sum(part.missed for part in parts),
    )

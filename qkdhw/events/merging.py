"""One stream of events in time order from the streams of several taggers or channels, chunk by chunk, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import merge as kernels
from qkdhw.errors import EventError, EventOverflowError, NonMonotonicTimeError
from qkdhw.model import DetectionBlock

MAX_BUFFERED_EVENTS = 1 << 24
_TIME_LIMIT = 1 << 62
_LATEST, _LATE, _FIRST_LATE, _STATE_SIZE = 0, 1, 2, 3
_MOVES_PER_EVENT = 32  # with more disorder than this a general sort is faster

_Columns = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]  # time, channel, kind


def whole_ticks(duration_ps: Fraction | int, tick_ps: Fraction) -> int:
    """Convert a duration to ticks, exactly.

    Args:
        duration_ps: Duration in picoseconds, of either sign.
        tick_ps: Length of a tick in picoseconds.

    Raises:
        ValueError: It is no whole number of ticks.
    """
    ticks = Fraction(duration_ps) / tick_ps
    if ticks.denominator != 1:
        raise ValueError(
            f"{duration_ps} ps is no whole number of ticks of {tick_ps} ps; {round(ticks) * tick_ps} ps is"
        )
    return int(ticks)


def common_tick_ps(ticks_ps: Sequence[Fraction]) -> Fraction:
    """Find the longest tick of which every tick given is a whole multiple, in picoseconds.

    Raises:
        ValueError: There is none given, or one is not positive.
    """
    if not ticks_ps or min(ticks_ps) <= 0:
        raise ValueError("a tick must be longer than 0 ps, and there must be one")
    denominator = math.lcm(*(tick.denominator for tick in ticks_ps))
    return Fraction(math.gcd(*(int(tick * denominator) for tick in ticks_ps)), denominator)


@dataclass(frozen=True, slots=True)
class MergeSource:
    """A stream that is merged: a tagger, or one channel of it.

    Attributes:
        tick_ps: Exact tick of its events, in picoseconds.
        channel_offset: Added to the channel of each photon, so that the channels of two taggers differ. Other events
            (markers, gaps) keep theirs.
        skew_ps: By channel, as the tagger numbers it: how much later its photons are told than those of a channel
            without skew; it is subtracted. It must be a whole number of common ticks: multiply a number of ticks by
            the tick. A channel that is not named has none.
    """

    tick_ps: Fraction
    channel_offset: int = 0
    skew_ps: Mapping[int, Fraction | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MergeStatistics:
    """What became of the events.

    Attributes:
        n_merged: Events handed out.
        n_late: By source, events dropped because they came later than the ordering window allows.
        n_buffered: By source, events that wait for those of the others.
    """

    n_merged: int
    n_late: tuple[int, ...]
    n_buffered: tuple[int, ...]


class StreamMerger:
    """Merges streams into one in time order.

    Every stream may be a little out of order. An event that lies more than the ordering window before the latest one
    of its own stream so far, by the times that the tagger tells, is late; it is refused, or dropped and counted.
    Channel skews need no window: they are corrected and the stream put in order again. Events of equal time are
    handed out in the order of the sources, and of one source in the order in which they came.

    An event is handed out when no source can bring an earlier one any more. The stream that comes out therefore does
    not depend on how the streams are cut into chunks or which source is ahead. A source without events holds up the
    others: tell the merger with `advance` how far it is.

    Args:
        sources: Streams, at least one.
        tick_ps: Tick of the merged stream, in picoseconds; None takes the longest that suits every source.
        ordering_window_ps: How far an event may lie before the latest one of its stream, in picoseconds; rounded up
            to a tick.
        drop_late: Whether late events are dropped and counted; otherwise they raise.
        max_buffered_events: `feed` raises when more than this wait; memory is bounded by this and one chunk.

    Raises:
        ValueError: A source's tick or skew is no whole number of ticks of the merged stream, or another argument is
            out of range.
    """

    def __init__(
        self,
        sources: Sequence[MergeSource],
        *,
        tick_ps: Fraction | None = None,
        ordering_window_ps: Fraction | int = 0,
        drop_late: bool = False,
        max_buffered_events: int = MAX_BUFFERED_EVENTS,
    ) -> None:
        if not sources:
            raise ValueError("there is no source to merge")
        self._tick_ps = common_tick_ps([source.tick_ps for source in sources]) if tick_ps is None else tick_ps
        window = math.ceil(Fraction(ordering_window_ps) / self._tick_ps)
        if not 0 <= window < _TIME_LIMIT:
            raise ValueError(f"an ordering window of {ordering_window_ps} ps is out of range")
        self._inputs = [_Input(source, self._tick_ps, window) for source in sources]
        self._drop_late = drop_late
        self._max_buffered_events = max_buffered_events
        self._n_merged = 0

    @property
    def tick_ps(self) -> Fraction:
        """Exact tick of the merged stream, in picoseconds."""
        return self._tick_ps

    @property
    def statistics(self) -> MergeStatistics:
        """Counts since the beginning."""
        return MergeStatistics(
            self._n_merged,
            tuple(int(source.state[_LATE]) for source in self._inputs),
            tuple(len(source.waiting[0]) for source in self._inputs),
        )

    def feed(self, source: int, block: DetectionBlock) -> DetectionBlock:
        """Take the next chunk of a source.

        Args:
            source: Its place in `sources`.
            block: The events that follow those of this source's last call.

        Returns:
            The merged events that are complete, often fewer or more than were fed. Its `missed` is the chunk's.

        Raises:
            NonMonotonicTimeError: An event is late and late events are not dropped; carries the index within `block`.
            EventOverflowError: Too many events wait for a source that is silent. Nothing was lost.
            EventError: The block has another tick than its source, or start-stop (T3) times, or a time that is out of
                range. After any of these errors the block was not taken.
            ValueError: The source has ended.
        """
        buffered = sum(len(each.waiting[0]) for each in self._inputs)
        if buffered > self._max_buffered_events:
            behind = min(range(len(self._inputs)), key=lambda index: self._inputs[index].complete_before)
            raise EventOverflowError(
                f"{buffered:,} events wait for source {behind}",
                lost=0,
                remedy="Feed that source, or tell with advance() up to when it has no events.",
            )
        self._inputs[source].take(block, drop_late=self._drop_late)
        return self._hand_out(block.missed)

    def advance(self, source: int, time_ticks: int) -> DetectionBlock:
        """Learn that a source has no events before a time; return the merged events that this completes.

        Args:
            source: Its place in `sources`.
            time_ticks: The time, in ticks of the source. Events that lie more than the window before it are late.
        """
        self._inputs[source].advance(time_ticks)
        return self._hand_out(0)

    def finish(self, source: int) -> DetectionBlock:
        """Learn that a source has ended; return the merged events that this completes."""
        self._inputs[source].end()
        return self._hand_out(0)

    def flush(self) -> DetectionBlock:
        """Hand out what waits, at the end of all streams."""
        for source in self._inputs:
            source.end()
        return self._hand_out(0)

    def _hand_out(self, missed: int) -> DetectionBlock:
        complete_before = min(source.complete_before for source in self._inputs)
        parts = [source.hand_out(complete_before) for source in self._inputs]
        while len(parts) > 1:
            parts = [_merged(*parts[k : k + 2]) for k in range(0, len(parts), 2)]
        time_ticks, channel, kind = parts[0]
        self._n_merged += len(time_ticks)
        return DetectionBlock(time_ticks, channel, kind, self._tick_ps, missed=missed)


class _Input:
    """A source, and its events that wait for those of the others, in order."""

    def __init__(self, source: MergeSource, tick_ps: Fraction, window: int) -> None:
        self._tick_ps = source.tick_ps
        self._factor = whole_ticks(source.tick_ps, tick_ps)
        if self._factor >= _TIME_LIMIT:
            raise ValueError(f"a tick of {source.tick_ps} ps is too long for a common one of {tick_ps} ps")
        self._window = window
        self._shift = np.zeros(256, np.int64)
        for channel, skew_ps in source.skew_ps.items():
            ticks = whole_ticks(skew_ps, tick_ps)
            if not (0 <= channel <= 255 and abs(ticks) < _TIME_LIMIT // 2):
                raise ValueError(f"a skew of {skew_ps} ps of channel {channel} is out of range")
            self._shift[channel] = -ticks
        if not 0 <= source.channel_offset <= 255:
            raise ValueError(f"a channel offset of {source.channel_offset} is out of range")
        self._n_channels = 256 - source.channel_offset
        self._renumbered = (np.arange(256) + source.channel_offset).astype(np.uint8)
        self.state = np.empty(_STATE_SIZE, np.int64)
        kernels.reset_state(self.state)
        self.waiting: _Columns = (np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.uint8))
        self._ended = False

    @property
    def complete_before(self) -> int:
        """No event of this source that is still to come is earlier than this, in common ticks."""
        if self._ended:
            return _TIME_LIMIT
        return int(self.state[_LATEST]) - self._window + min(0, int(self._shift.min()))

    def take(self, block: DetectionBlock, *, drop_late: bool) -> None:
        """Correct and order a chunk, and put it behind what waits."""
        self._check(block)
        n = len(block)
        state = self.state.copy()
        kept = n_ahead = len(self.waiting[0])
        columns = tuple(np.empty(n_ahead + n, column.dtype) for column in self.waiting)
        for column, waiting in zip(columns, self.waiting, strict=True):
            column[:n_ahead] = waiting
        fresh = [column[n_ahead:] for column in columns]
        written = kernels.correct_events(
            np.ascontiguousarray(block.time_ticks), np.ascontiguousarray(block.channel),
            np.ascontiguousarray(block.kind), self._factor, self._shift, self._renumbered, self._window, state, *fresh,
        )  # fmt: skip
        if written < 0:
            raise EventError(f"event {-1 - written} lies beyond 2^62 ticks of {self._tick_ps / self._factor} ps")
        if written < n and not drop_late:
            index = int(state[_FIRST_LATE])
            told = block.time_ticks[: index + 1]
            latest = max(int(self.state[_LATEST]), int(told.max()) * self._factor)
            back_ps = (latest - int(told[-1]) * self._factor) * self._tick_ps / self._factor
            raise NonMonotonicTimeError(
                f"event {index} lies {back_ps} ps before the latest event of its stream, more than the ordering "
                f"window of {self._window * self._tick_ps / self._factor} ps",
                index=index,
                remedy=f"Put events in order within {math.ceil(back_ps)} ps or more (--order-within; `events info` "
                "says how far they step back), or have late events dropped and counted.",
            )
        kept += written
        self.state = state
        self.waiting = _ordered(*(column[:kept] for column in columns))

    def _check(self, block: DetectionBlock) -> None:
        if self._ended:
            raise ValueError("this source has ended")
        if block.tick_ps != self._tick_ps:
            raise EventError(
                f"a source with a tick of {self._tick_ps} ps brought events with one of {block.tick_ps} ps",
                remedy="Keep the time tagger's resolution while a stream runs.",
            )
        if block.fine_ticks is not None:
            raise EventError("start-stop (T3) events have two times each and cannot be merged")
        if self._n_channels < 256 and len(block):
            photons = block.channel[block.kind == 0]
            if len(photons) and int(photons.max()) >= self._n_channels:
                raise EventError(f"channel {photons.max()} and its offset are more than 255")

    def advance(self, time_ticks: int) -> None:
        """Learn that no event before this is to come."""
        ticks = time_ticks * self._factor
        if abs(ticks) >= _TIME_LIMIT:
            raise ValueError(f"{time_ticks} ticks are out of range")
        self.state[_LATEST] = max(int(self.state[_LATEST]), ticks)

    def end(self) -> None:
        """Learn that no event is to come."""
        self._ended = True

    def hand_out(self, complete_before: int) -> _Columns:
        """Give away the events before a time."""
        time_ticks, channel, kind = self.waiting
        n = int(np.searchsorted(time_ticks, complete_before))
        self.waiting = (time_ticks[n:].copy(), channel[n:].copy(), kind[n:].copy())
        return time_ticks[:n], channel[:n], kind[:n]


def _ordered(time_ticks: NDArray[np.int64], channel: NDArray[np.uint8], kind: NDArray[np.uint8]) -> _Columns:
    """Sort events, equal times in their old order; in place if they are almost sorted."""
    if kernels.order_events(time_ticks, channel, kind, _MOVES_PER_EVENT * len(time_ticks)):
        return time_ticks, channel, kind
    order = np.argsort(time_ticks, kind="stable")
    return time_ticks[order], channel[order], kind[order]


def _merged(left: _Columns, right: _Columns | None = None) -> _Columns:
    if right is None or len(right[0]) == 0:
        return left
    if len(left[0]) == 0:
        return right
    n = len(left[0]) + len(right[0])
    columns = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
    kernels.merge_two(*left, *right, *columns)
    return columns

"""The photon times of single channels from a stream of all, chunk by chunk, and how long they must be kept."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import coincidences as kernels
from qkdhw.errors import EventError, NonMonotonicTimeError
from qkdhw.model import DetectionBlock

Times = NDArray[np.int64]


def disorder_error(*streams: Times) -> NonMonotonicTimeError:
    """Make the error that names the first event, in the first stream that has one, that is out of order."""
    for times in streams:
        index = kernels.first_descent(times)
        if index < len(times):
            break
    return NonMonotonicTimeError(
        f"event {index} is earlier than the one before it, or beyond 2^62 ticks",
        index=index,
        remedy="Put the stream in order: --order-within of the command, or qkdhw.events.merging.StreamMerger.",
    )


class OrderedChannels:
    """Splits a stream of events, chunk by chunk, into the times of its channels, and sees that time does not go back.

    Args:
        channels: Channels wanted; their photons alone are taken.
        tick_ps: Exact tick of the stream, in picoseconds.
    """

    def __init__(self, channels: Sequence[int], tick_ps: Fraction) -> None:
        if not all(0 <= channel <= 255 for channel in channels):
            raise ValueError(f"channels {list(channels)} do not all lie in 0 to 255")
        self._channels = tuple(channels)
        self.tick_ps = tick_ps
        self.first_ticks: int | None = None
        self.last_ticks: int | None = None

    def split(self, block: DetectionBlock) -> list[Times]:
        """Return the photon times of each channel in the next chunk.

        Raises:
            NonMonotonicTimeError: Time goes backwards; carries the index within `block`.
            EventError: The block has another tick than the stream.
        """
        if block.tick_ps != self.tick_ps:
            raise EventError(
                f"the tick changed from {self.tick_ps} ps to {block.tick_ps} ps in mid-stream",
                remedy="Keep the time tagger's resolution while a stream runs.",
            )
        times = np.ascontiguousarray(block.time_ticks)
        if len(times) == 0:
            return [times] * len(self._channels)
        if kernels.first_descent(times) < len(times):
            raise disorder_error(times)
        if self.last_ticks is not None and times[0] < self.last_ticks:
            raise NonMonotonicTimeError(
                "event 0 is earlier than the last one of the chunk before",
                index=0,
                remedy="Feed chunks in the order in which the instrument sent them.",
            )
        self.first_ticks = int(times[0]) if self.first_ticks is None else self.first_ticks
        self.last_ticks = int(times[-1])
        channel, kind = np.ascontiguousarray(block.channel), np.ascontiguousarray(block.kind)
        parts = []
        for wanted in self._channels:
            out = np.empty(len(times) + 1, np.int64)
            parts.append(out[: kernels.select_channel(times, channel, kind, wanted, out)])
        return parts


class PendingTimes:
    """Of each channel, the times that events still to come may coincide with. Memory: the window, not the stream.

    Args:
        low_ticks: For each channel, least delay to the first channel's event.
        high_ticks: Largest delay of all channels.

    Attributes:
        times: int64 arrays, one a channel.
        n_retired: For each channel, events that went before.
    """

    def __init__(self, low_ticks: Sequence[int], high_ticks: int) -> None:
        self._low_ticks = tuple(low_ticks)
        self._high_ticks = high_ticks
        self.times: list[Times] = [np.empty(0, np.int64)] * len(low_ticks)
        self.n_retired = [0] * len(low_ticks)

    def extend(self, fresh: Sequence[Times], now_ticks: int | None) -> int:
        """Add the times of a chunk; return how many events of the first channel have seen all their partners.

        Args:
            fresh: Times of each channel.
            now_ticks: No event to come is earlier; None at the end of the stream.
        """
        self.times = [np.concatenate(pair) for pair in zip(self.times, fresh, strict=True)]
        if now_ticks is None:
            return len(self.times[0])
        return int(np.searchsorted(self.times[0], now_ticks - self._high_ticks))

    def retire(self, n_complete: int, now_ticks: int | None, next_event: Sequence[int] | None = None) -> None:
        """Let go of events that can be in no coincidence to come.

        Args:
            n_complete: Events of the first channel that are done with.
            now_ticks: As for `extend`.
            next_event: For each channel, how many of its events are used up.
        """
        if now_ticks is None:
            cuts = [len(times) for times in self.times]
        else:
            waiting = self.times[0][n_complete:]
            earliest = int(waiting[0]) if len(waiting) else now_ticks
            cuts = [int(np.searchsorted(t, earliest + low)) for t, low in zip(self.times, self._low_ticks, strict=True)]
            cuts[0] = n_complete
            if next_event is not None:
                cuts[1:] = map(max, cuts[1:], next_event[1:])
        self.n_retired = [n + cut for n, cut in zip(self.n_retired, cuts, strict=True)]
        self.times = [times[cut:].copy() for times, cut in zip(self.times, cuts, strict=True)]

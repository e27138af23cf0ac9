"""Read and write the .bin files of the IDQ Time Controller: one channel's 64-bit picoseconds, nothing else.

Nothing in a file says which channel it is of. Times start again from 0 with every sub-acquisition; a file that holds
several can be read by who knows their period. With a reference, each time is since the reference event whose 64-bit
number follows it.

Source: IDQ Time Controller Series User Manual, 6.3.4 (raw data).
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import idq as kernel
from qkdhw.errors import EventFormatError, NonMonotonicTimeError
from qkdhw.formats.atomic import write_whole_file
from qkdhw.formats.encoding import KEEP_ALL_REMEDY, LeftOut, refuse_fine_ticks, rescaled_ticks
from qkdhw.formats.event_file import EventFile, file_size_bytes
from qkdhw.formats.stream import Columns, FixedDecoder, decode_file, refuse_a_cut_record
from qkdhw.model import DetectionBlock, EventKind

TICK_PS = Fraction(1)
LARGEST_TICKS = 1 << 61


class IdqDecoder(FixedDecoder):
    """Decodes the times of one channel as they come.

    Args:
        channel: The channel's number, 1 to 255.
        reference_period_ps: From one reference event to the next, >= 1; 0 if the file has no reference numbers.
        record_period_ps: From one sub-acquisition to the next, >= 1; 0 if there is one only, so that a step back in
            time is an error.
    """

    def __init__(
        self,
        *,
        channel: int = 1,
        reference_period_ps: int = 0,
        record_period_ps: int = 0,
        tolerant: bool = False,
        name: str = "the stream",
    ) -> None:
        if not 1 <= channel <= 255 or reference_period_ps < 0 or record_period_ps < 0:
            msg = "channel must be 1 to 255, periods must not be negative"
            raise ValueError(msg)
        super().__init__(least_bytes=16 if reference_period_ps else 8, tick_ps=TICK_PS, tolerant=tolerant, name=name)
        self._channel = channel
        self._reference_ps = reference_period_ps
        self._record_ps = record_period_ps
        self._begin = 0
        self._last = 0

    def _records(self, data: NDArray[np.uint8]) -> Columns:
        size, parts, at = self._least_bytes, [], 0
        while at < len(data):
            time = np.empty((len(data) - at) // size, np.int64)
            width = self._record_ps or LARGEST_TICKS
            bad = kernel.decode_id900(data[at:], self._begin, width, self._reference_ps, time)
            good = len(time) if bad < 0 else bad
            if good and int(time[0]) < self._last:
                good, bad = 0, 0  # the kernel cannot know the last time of the call before
            if good:
                parts.append(self._events(time[:good]))
            at += good * size
            if bad >= 0 and not self._begin_again(data, at):
                self._note_invalid(1, self.offset_bytes + at, "its time is earlier than the one before, or too late")
                parts.append(Columns.invalid())
                at += size
        return Columns.joined(parts)

    def _events(self, time: NDArray[np.int64]) -> Columns:
        self._last = int(time[-1])
        return Columns(time, np.full(len(time), self._channel, np.uint8), np.zeros(len(time), np.uint8))

    def _begin_again(self, data: NDArray[np.uint8], at: int) -> bool:
        """Take a step back in time for the next sub-acquisition, if there can be one; return whether."""
        begin = self._begin + self._record_ps
        first = np.empty(1, np.int64)
        size = self._least_bytes
        if not self._record_ps or begin > LARGEST_TICKS:
            return False
        if kernel.decode_id900(data[at : at + size], begin, self._record_ps, self._reference_ps, first) >= 0:
            return False
        self._begin = self._last = begin
        return True


def open_idq(
    path: Path,
    *,
    channel: int = 1,
    reference_period_ps: int = 0,
    record_period_ps: int = 0,
    tolerant: bool = False,
) -> EventFile:
    """Make the events of a .bin file readable.

    Args:
        path: The file.
        channel: See IdqDecoder, also for the next two.
        reference_period_ps: See there.
        record_period_ps: See there.
        tolerant: Accept a file that is cut short, make gaps of times that step back, and count both.

    Raises:
        EventFormatError: The last record is cut.
        EventError: The file cannot be read.
        ValueError: A number is out of range.

    Source: Time Controller Series User Manual, 6.3.4.
    """
    make = partial(
        IdqDecoder,
        channel=channel,
        reference_period_ps=reference_period_ps,
        record_period_ps=record_period_ps,
        tolerant=tolerant,
        name=str(path),
    )
    make()  # a mistake in its numbers shows here
    record_bytes = 16 if reference_period_ps else 8
    size_bytes = file_size_bytes(path)
    refuse_a_cut_record(path, size_bytes, record_bytes, tolerant=tolerant)
    return EventFile(
        path=path,
        format="idq",
        tick_ps=TICK_PS,
        fine_tick_ps=None,
        header={},
        records_expected=size_bytes // record_bytes,
        decode=partial(decode_file, path, make, size_bytes, record_bytes),
    )


def write_idq(
    path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, reference_period_ps: int = 0
) -> LeftOut:
    """Write a .bin file, whole or not at all.

    Args:
        path: The new file.
        blocks: Photons of one channel, in order of time; dummies are left out and counted.
        tick_ps: Tick of the events; times must be whole picoseconds.
        reference_period_ps: Write times since a reference event of this period and its number; 0: no reference.

    Raises:
        EventFormatError: An event that this format cannot hold exactly.
        NonMonotonicTimeError: A step back in time.
        EventError: The file cannot be written.

    Source: Time Controller Series User Manual, 6.3.4.
    """
    left_out = LeftOut()
    channels: set[int] = set()
    last = 0
    with write_whole_file(path) as file:
        for block in blocks:
            refuse_fine_ticks(block, "IDQ files")
            keep = left_out.keep(block, "IDQ files", allowed={EventKind.PHOTON})
            time = rescaled_ticks(block.time_ticks[keep], tick_ps, TICK_PS)
            channels |= set(np.unique(block.channel[keep]).tolist())
            if len(channels) > 1 or (len(time) and int(time.max()) > LARGEST_TICKS):
                raise EventFormatError(
                    "an IDQ file holds the events of one channel, up to 2^61 ps", remedy=KEEP_ALL_REMEDY
                )
            if len(time) and int(np.diff(time, prepend=last).min()) < 0:
                index = left_out.events - len(time) + int(np.argmin(np.diff(time, prepend=last)))
                raise NonMonotonicTimeError(
                    f"event {index} is earlier than the one before", index=index, remedy="sort the events first"
                )
            last = int(time[-1]) if len(time) else last
            if reference_period_ps:
                index_of, since = np.divmod(time, reference_period_ps)
                time = np.stack((since, index_of), axis=1)
            file.write(time.astype("<u8").tobytes())
    return left_out

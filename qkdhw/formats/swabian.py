"""Read and write the files of the Swabian Time Tagger's `Dump`: records of 16 bytes, no header.

A record is a type (tag, error, overflow begin, overflow end, missed events), missed events, a channel, and picoseconds.
Falling edges, whose channels are negative, are channels 128 + their number here. An instrument whose channels have
larger numbers, such as several taggers that are synchronised, needs a list of them: channel n here is its n-th.

Source: Swabian Instruments, Time Tagger documentation, `Dump` and `Tag`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import swabian as kernel
from qkdhw.errors import EventFormatError
from qkdhw.formats.atomic import write_whole_file
from qkdhw.formats.encoding import KEEP_ALL_REMEDY, LeftOut, refuse_fine_ticks, rescaled_ticks
from qkdhw.formats.event_file import EventFile, file_size_bytes
from qkdhw.formats.stream import Columns, FixedDecoder, decode_file, refuse_a_cut_record
from qkdhw.model import DetectionBlock, EventKind

TICK_PS = Fraction(1)
RECORD = np.dtype([("type", "u1"), ("reserved", "u1"), ("missed", "<u2"), ("channel", "<i4"), ("time", "<i8")])
FALLING = 128
_TYPES = {
    EventKind.PHOTON: 0,
    EventKind.CLOCK_ERROR: 1,
    EventKind.GAP_BEGIN: 2,
    EventKind.GAP_END: 3,
    EventKind.MISSED: 4,
}


class DumpDecoder(FixedDecoder):
    """Decodes the records of a `Dump` as they come.

    Args:
        channels: The instrument's numbers of channels 1, 2 and so on, at most 127, in any order; a record of another
            channel is invalid. Empty: channel k is k, and -k is 128 + k.
    """

    def __init__(self, *, channels: tuple[int, ...] = (), tolerant: bool = False, name: str = "the stream") -> None:
        super().__init__(least_bytes=RECORD.itemsize, tick_ps=TICK_PS, tolerant=tolerant, name=name)
        _refuse_channels(channels)
        order = np.argsort(channels)
        self._known, self._number = np.array(channels, np.int64)[order], order.astype(np.int32) + 1
        self._state = np.zeros(3, np.int64)

    def _records(self, data: NDArray[np.uint8]) -> Columns:
        n = len(data) // RECORD.itemsize
        if len(self._known):
            data = self._renumbered(data)
        missed, invalid = int(self._state[0]), int(self._state[1])
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        kernel.decode_records(data, time, channel, kind, self._state)
        self._note_invalid_record(
            int(self._state[1]) - invalid,
            int(self._state[2]),
            "its type is unknown, its reserved byte is set, or its missed events or channel are impossible "
            "(channels beyond 127 need --format swabian-dump:channels=LIST)",
        )
        return Columns(time, channel, kind, missed=int(self._state[0]) - missed)

    def _renumbered(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Give channels the numbers that they have here; one that is not listed becomes impossible."""
        record = data.view(RECORD).copy()
        theirs = record["channel"].astype(np.int64)
        place = np.minimum(np.searchsorted(self._known, theirs), len(self._known) - 1)
        listed = np.where(self._known[place] == theirs, self._number[place], FALLING)
        record["channel"] = np.where((theirs == 0) & (record["type"] != 0), 0, listed)
        return record.view(np.uint8)


def _refuse_channels(channels: tuple[int, ...]) -> None:
    fitting = all(c and abs(c) < 1 << 31 for c in channels) and len(set(channels)) == len(channels) < FALLING
    if not fitting:
        msg = "channels must be 127 different numbers of 32 bits at most, none of them 0"
        raise ValueError(msg)


def open_dump(path: Path, *, channels: tuple[int, ...] = (), tolerant: bool = False) -> EventFile:
    """Make the events of a `Dump` file readable.

    Args:
        path: The file.
        channels: See DumpDecoder.
        tolerant: Accept a file that is cut short, make gaps of impossible records, and count both.

    Raises:
        EventFormatError: The last record is cut.
        EventError: The file cannot be read.
        ValueError: The channels are impossible.

    Source: Time Tagger documentation, `Dump`.
    """
    make = partial(DumpDecoder, channels=channels, tolerant=tolerant, name=str(path))
    make()  # a mistake in the channels shows here
    size_bytes = file_size_bytes(path)
    refuse_a_cut_record(path, size_bytes, RECORD.itemsize, tolerant=tolerant)
    return EventFile(
        path=path,
        format="swabian-dump",
        tick_ps=TICK_PS,
        fine_tick_ps=None,
        header={},
        records_expected=size_bytes // RECORD.itemsize,
        decode=partial(
            decode_file,
            path,
            make,
            size_bytes,
            RECORD.itemsize,
        ),
    )


def write_dump(
    path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, channels: tuple[int, ...] = ()
) -> LeftOut:
    """Write a `Dump` file, whole or not at all.

    A block's missed events are shared out among its MISSED events, 65535 at most to each, the first ones first.

    Args:
        path: The new file.
        blocks: Photons on channels 1 to 127 and 129 to 255, gaps, missed events, clock errors; dummies are left out
            and counted.
        tick_ps: Tick of the events; times must be whole picoseconds.
        channels: See DumpDecoder; the numbers that are written.

    Raises:
        EventFormatError: An event that this format cannot hold exactly.
        EventError: The file cannot be written.
        ValueError: The channels are impossible.

    Source: Time Tagger documentation, `Dump` and `Tag`.
    """
    _refuse_channels(channels)
    left_out = LeftOut()
    with write_whole_file(path) as file:
        for block in blocks:
            refuse_fine_ticks(block, "Swabian Dump files")
            keep = left_out.keep(block, "Swabian Dump files", allowed=set(_TYPES), holds_missed=True)
            file.write(_encode(block, keep, tick_ps, channels).tobytes())
    return left_out


def _encode(
    block: DetectionBlock, keep: NDArray[np.bool_], tick_ps: Fraction, channels: tuple[int, ...]
) -> NDArray[np.void]:
    kind, channel = block.kind[keep], block.channel[keep].astype(np.int32)
    largest = len(channels) or 2 * FALLING
    if (((channel == 0) & (kind == EventKind.PHOTON)) | (channel == FALLING) | (channel > largest)).any():
        held = f"the {largest} channels that are listed" if channels else "channels 1 to 127 and 129 to 255"
        raise EventFormatError(f"Swabian Dump files hold {held}", remedy=KEEP_ALL_REMEDY)
    type_of = np.zeros(256, np.uint8)
    type_of[[int(k) for k in _TYPES]] = list(_TYPES.values())
    record = np.zeros(len(kind), RECORD)
    record["type"] = type_of[kind]
    if channels:
        record["channel"] = np.array((0, *channels), np.int32)[channel]
    else:
        record["channel"] = np.where(channel < FALLING, channel, FALLING - channel)
    record["time"] = rescaled_ticks(block.time_ticks[keep], tick_ps, TICK_PS)
    places = np.flatnonzero(kind == EventKind.MISSED)
    share = np.clip(block.missed - 65535 * np.arange(len(places)), 0, 65535)
    if int(share.sum()) != block.missed:
        raise EventFormatError(
            f"Swabian Dump files hold 65535 missed events at most for each MISSED event, not {block.missed} for "
            f"{len(places)}",
            remedy=KEEP_ALL_REMEDY,
        )
    record["missed"][places] = share
    return record

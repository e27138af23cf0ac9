"""Write epoch files of the qcrypto programs, types 1 to 3: one file of many packets, or a folder.

Source: qcrypto project, remotecrypto/filespec.txt; for the order of bits, and the tables of bases and values, what its
chopper program writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import EventFormatError, NonMonotonicTimeError
from qkdhw.formats.atomic import write_error, write_whole_file
from qkdhw.formats.encoding import KEEP_ALL_REMEDY, LeftOut, refuse_fine_ticks, rescaled_ticks
from qkdhw.formats.epoch_packets import (
    EPOCH_BITS,
    RAW_BASE_BITS,
    RAW_TIME_BITS,
    PacketHeader,
    encode_differences,
    encode_t3,
)
from qkdhw.formats.qcrypto_epoch import FILE_NAME_DIGITS, RAW_BITS, TICK_PS, TIME_BITS
from qkdhw.model import DetectionBlock, EventKind

SILENT_EPOCHS = 1 << 16
# Base and value of inputs 1 to 4 by protocol; in the service protocol (0) both are the whole pattern.
_BASES = {1: (0, 1, 0, 1), 6: (0, 0, 1, 1)}
_VALUES = {1: (0, 0, 1, 1), 6: (1, 0, 1, 0)}


@dataclass(frozen=True, slots=True)
class EpochLayout:
    """How to write epoch packets.

    Attributes:
        packet_type: 1 (raw events) or 2 (times and base bits).
        protocol: Type 2: 0 service, 1 BB84 or 6 BBM92.
        time_order: Type 2: bits of a short time difference, 4 to 27; 17 suits 1e5 events/s, 2 more a quarter of that.
        epoch_offset: Added to the number of an epoch since the tagger's counter was 0, a multiple of 2^17; epochs are
            extended ones then. None: they are the counter's upper 17 bits.
        as_chopper: As the chopper program does it: see `encode_differences`; and no packet for a silent epoch.
    """

    packet_type: Literal[1, 2]
    protocol: int = 0
    time_order: int = 17
    epoch_offset: int | None = None
    as_chopper: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in (0, *_BASES) or not 4 <= self.time_order <= 27:
            msg = "protocol must be 0, 1 or 6, time_order 4 to 27"
            raise ValueError(msg)
        if self.epoch_offset is not None and (self.epoch_offset < 0 or self.epoch_offset % (1 << EPOCH_BITS)):
            msg = "epoch_offset must be a multiple of 2^17"
            raise ValueError(msg)

    def header(self, count: int, length: int) -> PacketHeader:
        """Return the header of the packet of an epoch, counted from where the tagger's counter was 0."""
        extended = self.epoch_offset is not None
        epoch = count + (self.epoch_offset or 0) & ((1 << (32 if extended else EPOCH_BITS)) - 1)
        if self.packet_type == 1:
            return PacketHeader(1, epoch, extended, length, base_bits=RAW_BASE_BITS, entry_bits=RAW_TIME_BITS)
        base_bits = 1 if self.protocol else RAW_BASE_BITS
        return PacketHeader(2, epoch, extended, length, self.time_order, base_bits, self.protocol)


def write_epochs(path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, layout: EpochLayout) -> LeftOut:
    """Write one file of many packets, whole or not at all.

    Events that follow each other at the same time on rising inputs become one entry (type 1, service protocol).

    Args:
        path: The new file.
        blocks: Photons on inputs 1 to 4, their epochs in order, their times too for type 2; dummies are left out and
            counted.
        tick_ps: Tick of the events; times must be whole ticks of 125/32 ps (type 1) or 125 ps (type 2).
        layout: How.

    Raises:
        EventFormatError: An event that this format cannot hold exactly, or a silence of more than 2^16 epochs.
        NonMonotonicTimeError: Events out of order.
        EventError: The file cannot be written.

    Source: filespec.txt, types 1 and 2.
    """
    left_out = LeftOut()
    with write_whole_file(path) as file:
        for count, time, pattern in _epochs(blocks, tick_ps, layout, left_out):
            packet, written = _packet(layout, count, time, pattern)
            left_out.events -= len(written) - int(written.sum())
            file.write(packet)
    return left_out


def write_epoch_folder(
    folder: Path,
    blocks: Iterable[DetectionBlock],
    *,
    tick_ps: Fraction,
    layout: EpochLayout,
    values_folder: Path | None = None,
) -> LeftOut:
    """Write one file for each epoch, named by it; each is whole or not there at all.

    Args:
        folder: Where to; it must be there.
        blocks: See `write_epochs`.
        tick_ps: See there.
        layout: See there.
        values_folder: Where to write the files of type 3 (a value for each entry of type 2) that stay at this site.

    Raises:
        EventFormatError: See `write_epochs`.
        NonMonotonicTimeError: See there.
        EventError: A file cannot be written.

    Source: filespec.txt, types 1 to 3.
    """
    left_out = LeftOut()
    for count, time, pattern in _epochs(blocks, tick_ps, layout, left_out):
        packet, written = _packet(layout, count, time, pattern)
        left_out.events -= len(written) - int(written.sum())
        header = layout.header(count, 0)
        name = f"{header.epoch:0{FILE_NAME_DIGITS}x}"
        _write(folder / name, packet)
        if values_folder is not None and layout.packet_type == 2:
            value, bits = _values(layout.protocol, pattern[written])
            _write(values_folder / name, encode_t3(header.epoch, value, entry_bits=bits, extended=header.extended))
    return left_out


def _write(path: Path, data: bytes) -> None:
    if path.is_dir():
        raise write_error(path, IsADirectoryError(21, "Is a directory"))
    with write_whole_file(path) as file:
        file.write(data)


def _epochs(
    blocks: Iterable[DetectionBlock], tick_ps: Fraction, layout: EpochLayout, left_out: LeftOut
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield each epoch's number, times of its entries since it began, and their patterns of inputs."""
    bits = TIME_BITS[layout.packet_type]
    waiting = np.empty(0, np.int64), np.empty(0, np.uint8)
    last = -1
    for block in blocks:
        time, pattern = _entries(block, tick_ps, layout, left_out)
        if not len(time):
            continue
        time, pattern = np.concatenate((waiting[0], time)), np.concatenate((waiting[1], pattern))
        if layout.packet_type == 1 or layout.protocol == 0:
            time, pattern = _merged(time, pattern)
        epoch = time >> bits
        _refuse_disorder(time if layout.packet_type == 2 and not layout.as_chopper else epoch, left_out.events)
        begins = np.flatnonzero(np.diff(epoch, prepend=-1))
        for first, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            yield from _silent(last, int(epoch[first]), layout)
            last = int(epoch[first])
            yield last, time[first:end] - (last << bits), pattern[first:end]
        waiting = time[begins[-1] :], pattern[begins[-1] :]
    if len(waiting[0]):
        count = int(waiting[0][0]) >> bits
        yield from _silent(last, count, layout)
        yield count, waiting[0] - (count << bits), waiting[1]


def _entries(
    block: DetectionBlock, tick_ps: Fraction, layout: EpochLayout, left_out: LeftOut
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    refuse_fine_ticks(block, "epoch files")
    keep = left_out.keep(block, "epoch files", allowed={EventKind.PHOTON})
    time = rescaled_ticks(block.time_ticks[keep], tick_ps, TICK_PS[layout.packet_type])
    channel = block.channel[keep]
    if ((channel < 1) | (channel > 4)).any():
        raise EventFormatError("epoch files hold inputs 1 to 4 only", remedy=KEEP_ALL_REMEDY)
    return time, ((1 << channel.astype(np.int64)) >> 1).astype(np.uint8)


def _merged(time: NDArray[np.int64], pattern: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Join neighbours of the same time whose inputs rise; joining again changes nothing."""
    joins = np.zeros(len(time), bool)
    lowest = pattern & (~pattern + np.uint8(1))
    joins[1:] = (time[1:] == time[:-1]) & (lowest[1:] > pattern[:-1])
    first = np.flatnonzero(~joins)
    return time[first], np.bitwise_or.reduceat(pattern, first)


def _refuse_disorder(rising: NDArray[np.int64], events: int) -> None:
    falls = np.flatnonzero(np.diff(rising) < 0)
    if len(falls):
        index = events - len(rising) + int(falls[0]) + 1
        raise NonMonotonicTimeError(
            f"entry {index} is earlier than the one before", index=index, remedy="sort the events first"
        )


def _silent(last: int, count: int, layout: EpochLayout) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield the epochs without events between two others."""
    if last < 0 or layout.as_chopper:
        if last < 0 and count >> EPOCH_BITS:
            raise EventFormatError(
                "the first time is beyond the 17 bits of an epoch in a tagger's counter", remedy=KEEP_ALL_REMEDY
            )
        return
    if count - last > SILENT_EPOCHS:
        raise EventFormatError(f"a silence of {count - last} epochs takes as many files", remedy=KEEP_ALL_REMEDY)
    for epoch in range(last + 1, count):
        yield epoch, np.empty(0, np.int64), np.empty(0, np.uint8)


def _packet(
    layout: EpochLayout, count: int, time: NDArray[np.int64], pattern: NDArray[np.uint8]
) -> tuple[bytes, NDArray[np.bool_]]:
    """Return an epoch's packet, and which entries are in it."""
    header = layout.header(count, len(time))
    if layout.packet_type == 2:
        base = pattern if not layout.protocol else _looked_up(_BASES[layout.protocol], pattern)
        return encode_differences(header, time, base, as_chopper=layout.as_chopper)
    raw = (time + ((count & ((1 << EPOCH_BITS) - 1)) << TIME_BITS[1])).astype(np.uint64)
    word = raw << np.uint64(64 - RAW_BITS) | pattern
    stored = (word << np.uint64(32)) | (word >> np.uint64(32))
    return header.pack() + stored.astype("<u8").tobytes() + bytes(8), np.ones(len(time), bool)


def _values(protocol: int, pattern: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    return (_looked_up(_VALUES[protocol], pattern), 1) if protocol else (pattern, RAW_BASE_BITS)


def _looked_up(table: tuple[int, ...], pattern: NDArray[np.uint8]) -> NDArray[np.uint8]:
    of_pattern = np.zeros(16, np.uint8)
    of_pattern[[1, 2, 4, 8]] = table
    found: NDArray[np.uint8] = of_pattern[pattern]
    return found

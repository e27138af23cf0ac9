"""Fuzz targets of the event files that the libraries of HDF5 and Parquet read, and of CSV.

The first octet of the input chooses the size of the blocks; the rest is the file. It must give the same for any size:
the same events and tally, or the same error. Events that were read are written again, and read as the same events.
"""

from __future__ import annotations

import itertools
import tempfile
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_target import Target, refusal

from qkdhw.errors import EventError, EventFormatError
from qkdhw.formats import FORMATS, open_events, write_events
from qkdhw.formats.event_file import EventFile
from qkdhw.model import DetectionBlock, EventKind

_MEMORY = Path("/dev/shm")
_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)
_FILE = Path(_FOLDER.name, "events")
_COPY = Path(_FOLDER.name, "copy")
_ALL_AT_ONCE = 1 << 18


def read(file: EventFile, max_events: int) -> tuple[Any, ...]:
    """Return all that a file holds as octets, and what was met."""
    blocks = list(file.read_blocks(max_events))
    columns = [("time_ticks", "<i8"), ("channel", "u1"), ("kind", "u1"), ("fine_ticks", "<u2")]
    octets = [b"".join(np.asarray(c, kind).tobytes() for b in blocks if (c := getattr(b, name)) is not None)
              for name, kind in columns]  # fmt: skip
    assert len(octets[0]) == 8 * len(octets[1]) == 8 * len(octets[2])
    return *octets, sum(block.missed for block in blocks), file.tick_ps, file.fine_tick_ps, file.tally


def outcome(name: str, size_bytes: int, max_events: int) -> tuple[Any, ...]:
    """Read the file; return its content, or the error's class and offset."""
    try:
        return read(open_events(_FILE, name), max_events)
    except EventFormatError as error:
        return refusal(error, size_bytes)
    except EventError as error:
        return (type(error),)


def check(name: str, data: bytes) -> None:
    """Read octets as a file in two ways, and write now and then what was read again."""
    if not data:
        return
    _FILE.write_bytes(data[1:])
    whole = outcome(name, len(data) - 1, _ALL_AT_ONCE)
    pieces = outcome(name, len(data) - 1, 1 + data[0] % 8)
    assert whole == pieces, f"{name}: {whole} and in small blocks {pieces}"
    if len(whole) > 2 and data[0] >= 224:
        write_again(name, whole[:4])


def write_again(name: str, columns: tuple[Any, ...]) -> None:
    """Write the events of the file in its own format: it is refused, or reading the copy gives the same."""
    file = open_events(_FILE, name)
    try:
        write_events(_COPY, file.read_blocks(), name, tick_ps=file.tick_ps, fine_tick_ps=file.fine_tick_ps)
    except EventError:
        return
    copy = read(open_events(_COPY, name), _ALL_AT_ONCE)[:4]
    assert copy == columns, f"{name}: {columns} was written and {copy} was read"


def block_of(tick_ps: Fraction, fine_tick_ps: Fraction | None, kinds: list[int], step: int) -> DetectionBlock:
    """Return some events."""
    rng = np.random.default_rng(7)
    n = 12
    kind = rng.choice(kinds, n).astype(np.uint8)
    return DetectionBlock(
        time_ticks=np.cumsum(rng.integers(0, step, n)),
        channel=np.where(kind == EventKind.PHOTON, rng.integers(1, 5, n), kind == EventKind.MARKER).astype(np.uint8),
        kind=kind,
        tick_ps=tick_ps,
        fine_ticks=None if fine_tick_ps is None else rng.integers(0, 4096, n).astype(np.uint16),
        fine_tick_ps=fine_tick_ps,
    )


@cache
def written_files(*names: str) -> list[bytes]:
    """Write some events in each format, or those named, with each tick and sort of events that it takes."""
    ticks_ps = [Fraction(1), Fraction(125, 32), Fraction(125), Fraction(2000), Fraction(125, 256)]
    sorts = [[0], [0, int(EventKind.MARKER)], [0, int(EventKind.DUMMY)]]
    made = []
    for name in names or [name for name in FORMATS if name not in TARGETS]:
        for tick_ps, fine_ps, kinds, step in itertools.product(ticks_ps, (None, Fraction(32)), sorts, (50, 20_000_000)):
            try:
                block = block_of(tick_ps, fine_ps, kinds, step)
                write_events(_FILE, [block], name, tick_ps=tick_ps, fine_tick_ps=fine_ps)
            except EventError:
                continue
            made.append(_FILE.read_bytes())
    return list(dict.fromkeys(made))


def seeds(name: str) -> list[bytes]:
    """Return files of the format."""
    return [bytes([choice]) + file for choice in (2, 230) for file in written_files(name)[:8]]


TARGETS = {
    name: Target(partial(check, name), partial(seeds, name), max_bytes, slowness)
    for name, max_bytes, slowness in (("csv", 400, 1), ("hdf5", 16384, 100), ("parquet", 4096, 20))
}

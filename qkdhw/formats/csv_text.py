"""Read and write detection events as text: one line an event, exact ticks.

First line `# qkdhw events 1 tick_ps=125/32` (and fine_tick_ps=... for start-stop events), second line the column
names time_ticks,channel,kind[,fine_ticks], then numbers.

Source: docs/reference/event-files.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qkdhw.errors import EventFormatError
from qkdhw.formats.atomic import write_whole_file
from qkdhw.formats.encoding import KEEP_ALL_REMEDY, LeftOut
from qkdhw.formats.event_file import EventFile, Tally, read_error
from qkdhw.model import DetectionBlock, EventKind

MAGIC = b"# qkdhw events 1 "
COLUMNS = ("time_ticks", "channel", "kind")
LARGEST = (2**63 - 1, 255, max(EventKind), 65535)
LINE_LIMIT_BYTES = 200


def open_csv(path: Path) -> EventFile:
    """Read the two head lines of a text file of events and make them readable.

    Raises:
        EventFormatError: The head lines are not those of this format.
        EventError: The file cannot be read.

    Source: docs/reference/event-files.md.
    """
    try:
        with path.open("rb") as file:
            first, names = file.readline(LINE_LIMIT_BYTES), file.readline(LINE_LIMIT_BYTES)
            data_bytes = file.tell()
    except OSError as error:
        raise read_error(path, error) from error
    try:
        facts = dict(word.split("=") for word in first.removeprefix(MAGIC).decode("ascii").split())
        tick_ps = Fraction(facts["tick_ps"])
        fine_tick_ps = Fraction(facts["fine_tick_ps"]) if "fine_tick_ps" in facts else None
    except (ValueError, KeyError, ZeroDivisionError) as error:
        raise _bad_line(path, 0, "it is no head line of an event file") from error
    wanted = COLUMNS if fine_tick_ps is None else (*COLUMNS, "fine_ticks")
    if not first.startswith(MAGIC) or tick_ps <= 0 or names != ",".join(wanted).encode() + b"\n":
        raise _bad_line(path, len(first), f"the columns are not {','.join(wanted)}")
    return EventFile(
        path=path,
        format="csv",
        tick_ps=tick_ps,
        fine_tick_ps=fine_tick_ps,
        header=facts,
        records_expected=None,
        decode=partial(_decode, path, data_bytes, tick_ps, fine_tick_ps),
    )


def _bad_line(path: Path, offset_bytes: int, why: str) -> EventFormatError:
    return EventFormatError(
        f"{path}: the line at byte {offset_bytes} is wrong: {why}",
        offset_bytes=offset_bytes,
        remedy="repair the line, or write the file again",
    )


def _decode(
    path: Path, data_bytes: int, tick_ps: Fraction, fine_tick_ps: Fraction | None, max_events: int, tally: Tally
) -> Iterator[DetectionBlock]:
    width = 3 if fine_tick_ps is None else 4
    try:
        with path.open("rb") as file:
            file.seek(data_bytes)
            while rows := _read_rows(path, file, max_events, width):
                column = list(zip(*rows, strict=True))
                tally.records += len(rows)
                yield DetectionBlock(
                    time_ticks=np.array(column[0], np.int64),
                    channel=np.array(column[1], np.uint8),
                    kind=np.array(column[2], np.uint8),
                    tick_ps=tick_ps,
                    fine_ticks=None if fine_tick_ps is None else np.array(column[3], np.uint16),
                    fine_tick_ps=fine_tick_ps,
                )
    except OSError as error:
        raise read_error(path, error) from error


def _read_rows(path: Path, file: BinaryIO, max_rows: int, width: int) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    while len(rows) < max_rows:
        offset_bytes = file.tell()
        line = file.readline(LINE_LIMIT_BYTES)
        if not line:
            break
        if not line.endswith(b"\n"):
            raise _bad_line(path, offset_bytes, "it is cut")
        try:
            row = tuple(int(word) for word in line.split(b","))
        except ValueError as error:
            raise _bad_line(path, offset_bytes, "it holds something else than whole numbers") from error
        if len(row) != width or not all(0 <= n <= top for n, top in zip(row, LARGEST[:width], strict=True)):
            raise _bad_line(path, offset_bytes, f"it does not hold {width} numbers in range")
        rows.append(row)
    return rows


def write_csv(
    path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, fine_tick_ps: Fraction | None = None
) -> LeftOut:
    """Write a text file of events, whole or not at all.

    Args:
        path: The new file.
        blocks: Events of any kind.
        tick_ps: Tick of the events.
        fine_tick_ps: Tick of the fine times, if they have any.

    Raises:
        EventFormatError: A block says that events were missed, or a time is negative: this layout keeps neither.
        EventError: The file cannot be written.

    Source: docs/reference/event-files.md.
    """
    left_out = LeftOut()
    names = COLUMNS if fine_tick_ps is None else (*COLUMNS, "fine_ticks")
    fine_word = "" if fine_tick_ps is None else f" fine_tick_ps={fine_tick_ps}"
    with write_whole_file(path) as file:
        file.write(MAGIC + f"tick_ps={tick_ps}{fine_word}\n{','.join(names)}\n".encode())
        for block in blocks:
            left_out.keep(block, "CSV files", allowed=set(EventKind))
            if len(block) and int(block.time_ticks.min()) < 0:
                raise EventFormatError("CSV files hold no times below 0", remedy=KEEP_ALL_REMEDY)
            columns = [getattr(block, name).tolist() for name in names]
            rows = zip(*columns, strict=True)
            file.write("".join(",".join(map(str, row)) + "\n" for row in rows).encode())
    return left_out

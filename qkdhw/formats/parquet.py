"""Read and write detection events as Apache Parquet, times delta-coded.

Columns time_ticks (int64), channel (uint8), kind (uint8) and, for start-stop events, fine_ticks (uint16); file
metadata qkdhw.tick_ps and qkdhw.fine_tick_ps as exact fractions ("125/32") and qkdhw.version (1).

Source: docs/reference/event-files.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qkdhw.errors import ConfigurationError, EventFormatError
from qkdhw.formats.atomic import write_error, write_whole_file
from qkdhw.formats.encoding import LeftOut
from qkdhw.formats.event_file import EventFile, Tally, file_size_bytes
from qkdhw.model import DetectionBlock, EventKind

MAGIC = b"PAR1"
VERSION = b"1"


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError("Parquet files need pyarrow", remedy="pip install 'qkdhw[parquet]'") from error
    return pyarrow, pyarrow.parquet


def _schema(arrow: Any, *, with_fine: bool) -> Any:
    fields = [("time_ticks", arrow.int64()), ("channel", arrow.uint8()), ("kind", arrow.uint8())]
    if with_fine:
        fields.append(("fine_ticks", arrow.uint16()))
    return arrow.schema([arrow.field(name, kind, nullable=False) for name, kind in fields])


def open_parquet(path: Path) -> EventFile:
    """Read the metadata of a Parquet file of events and make them readable.

    Raises:
        EventFormatError: Not these columns, or damaged.
        EventError: The file cannot be read.
        ConfigurationError: pyarrow is not installed.

    Source: docs/reference/event-files.md.
    """
    file_size_bytes(path)
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            facts = dict(schema.metadata or {})
            records = file.metadata.num_rows
        if "pulse" in schema.names and b"qkdhw.tick_ps" not in facts:
            raise EventFormatError(
                f"{path} is a record of pulses, not of events",
                remedy="It goes with a receiver's events: qkdhw events sift EVENTS RECORD --period PS --window PS",
            )
        if facts.get(b"qkdhw.version") != VERSION:
            raise _damaged(path, "no qkdhw metadata")
        tick_ps = Fraction(facts[b"qkdhw.tick_ps"].decode())
        fine = facts.get(b"qkdhw.fine_tick_ps")
        fine_tick_ps = Fraction(fine.decode()) if fine else None
    except (OSError, arrow.ArrowException, KeyError, ValueError, ZeroDivisionError) as error:
        raise _damaged(path, error) from error
    if not schema.equals(_schema(arrow, with_fine=fine_tick_ps is not None)) or tick_ps <= 0:
        raise _damaged(path, "the columns are not those of events")
    return EventFile(
        path=path,
        format="parquet",
        tick_ps=tick_ps,
        fine_tick_ps=fine_tick_ps,
        header={name.decode(): value.decode() for name, value in facts.items() if name.startswith(b"qkdhw.")},
        records_expected=records,
        decode=partial(_decode, path, tick_ps, fine_tick_ps),
    )


def _damaged(path: Path, why: object) -> EventFormatError:
    return EventFormatError(
        f"{path} is no whole Parquet file of events: {why}", remedy="write it again with qkdhw events convert"
    )


def _decode(
    path: Path, tick_ps: Fraction, fine_tick_ps: Fraction | None, max_events: int, tally: Tally
) -> Iterator[DetectionBlock]:
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=max_events):
                column = {name: batch.column(name).to_numpy() for name in batch.schema.names}
                tally.records += batch.num_rows
                yield DetectionBlock(
                    time_ticks=column["time_ticks"],
                    channel=column["channel"],
                    kind=column["kind"],
                    tick_ps=tick_ps,
                    fine_ticks=column.get("fine_ticks"),
                    fine_tick_ps=fine_tick_ps,
                )
    except (OSError, arrow.ArrowException) as error:
        raise _damaged(path, error) from error


def write_parquet(
    path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, fine_tick_ps: Fraction | None = None
) -> LeftOut:
    """Write a Parquet file of events, whole or not at all.

    Args:
        path: The new file.
        blocks: Events of any kind.
        tick_ps: Tick of the events.
        fine_tick_ps: Tick of the fine times, if they have any.

    Raises:
        EventFormatError: A block says that events were missed, which this layout does not keep.
        EventError: The file cannot be written.
        ConfigurationError: pyarrow is not installed.

    Source: docs/reference/event-files.md.
    """
    arrow, parquet = _pyarrow()
    facts = {"qkdhw.version": VERSION.decode(), "qkdhw.tick_ps": str(tick_ps)}
    if fine_tick_ps is not None:
        facts["qkdhw.fine_tick_ps"] = str(fine_tick_ps)
    schema = _schema(arrow, with_fine=fine_tick_ps is not None)
    left_out = LeftOut()
    with write_whole_file(path) as file:
        try:
            with parquet.ParquetWriter(
                file,
                schema.with_metadata(facts),
                compression="zstd",
                use_dictionary=["channel", "kind"],
                column_encoding={"time_ticks": "DELTA_BINARY_PACKED"},
            ) as writer:
                for block in blocks:
                    left_out.keep(block, "Parquet files", allowed=set(EventKind))
                    columns = [np.ascontiguousarray(getattr(block, name)) for name in schema.names]
                    writer.write_table(arrow.table(columns, schema=schema.with_metadata(facts)))
        except arrow.ArrowException as error:
            raise write_error(path, error) from error
    return left_out

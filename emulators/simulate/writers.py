"""Files of a simulated run, written while it goes on: events in any format, tables as Parquet, all or nothing."""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError, EventError, EventFormatError
from qkdhw.formats import FORMATS, write_events
from qkdhw.formats.atomic import write_error, write_whole_file
from qkdhw.model import DetectionBlock, EventKind

BLOCKS_WAITING = 4
BLOCK_ROWS = 1 << 16  # rows that are gathered before they are written
LOOK_EVERY_S = 0.5


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder, for its owner only, that becomes `folder` when the body ends well and else disappears.

    Raises:
        ConfigurationError: `folder` is there and not empty, or none can be made there.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ConfigurationError(
            f"--out {folder} is there already and is no empty folder", remedy="Name one that does not exist yet."
        )
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    mask = os.umask(0o077)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.umask(mask)


def file_ending(format_name: str) -> str:
    """Return the ending of the name of a file in this format."""
    return (*FORMATS[format_name].suffixes, f".{format_name}")[0]


def check_format(folder: Path, format_name: str, *, tick_ps: Fraction, channels: int) -> None:
    """Find out before any work whether a format can hold the events of a tagger, by writing one of each input.

    Raises:
        ConfigurationError: It cannot, or the library for it is not installed.
    """
    probe = folder / f"probe{file_ending(format_name)}"
    each = events_block(np.arange(1, channels + 1), np.arange(channels, dtype=np.uint8), tick_ps)
    try:
        write_events(probe, [each], format_name, tick_ps=tick_ps)
    except EventFormatError as error:
        raise ConfigurationError(
            f"--format {format_name} cannot hold what this receiver writes: {error}",
            remedy="Choose parquet or hdf5, which hold everything, or give the tagger the ticks of the format's own, "
            "such as --set tagger.tick_fs=125000 for those of qcrypto.",
        ) from error
    finally:
        probe.unlink(missing_ok=True)


def events_block(ticks: NDArray[np.int64], channel: NDArray[np.uint8], tick_ps: Fraction) -> DetectionBlock:
    """Make a block of events of an emulated tagger, whose channels count from 0: inputs count from 1."""
    return DetectionBlock(ticks, channel + np.uint8(1), np.full(len(ticks), EventKind.PHOTON, np.uint8), tick_ps)


class _Gathered:
    """Rows of some columns that wait until there are enough of them."""

    def __init__(self, columns: Mapping[str, type[np.generic]]) -> None:
        self._columns = {name: [np.empty(0, kind)] for name, kind in columns.items()}
        self._rows = 0

    def add(self, **columns: NDArray[Any]) -> bool:
        """Add rows, and tell whether there are enough now."""
        for name, parts in self._columns.items():
            parts.append(columns[name])
        self._rows += len(parts[-1])
        return self._rows >= BLOCK_ROWS

    def take(self) -> dict[str, NDArray[Any]]:
        """Return the rows and forget them."""
        rows = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        for name, parts in self._columns.items():
            parts[:] = [rows[name][:0]]
        self._rows = 0
        return rows


class _CancelledError(Exception):
    """The file is not wanted any more."""


class EventSink:
    """A file of events that blocks are pushed into; a thread writes it.

    On leaving without an error the file is complete; otherwise nothing of it is left.

    Args:
        path: The new file.
        format_name: A name in `qkdhw.formats.FORMATS`.
        tick_ps: Tick of the events.
    """

    def __init__(self, path: Path, format_name: str, tick_ps: Fraction) -> None:
        self._path, self._format, self._tick_ps = path, format_name, tick_ps
        self._queue: queue.Queue[DetectionBlock | type[_CancelledError] | None] = queue.Queue(BLOCKS_WAITING)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"write {self._path.name}")
        self._gathered = _Gathered({"ticks": np.int64, "channel": np.uint8})
        try:
            self._written = self._pool.submit(
                write_events, self._path, self._blocks(), self._format, tick_ps=self._tick_ps
            )
        except BaseException:  # Ctrl-C while the thread starts: it must not wait for blocks for ever
            self._queue.put(_CancelledError)
            self._pool.shutdown(wait=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._push()
            self._put(None if kind is None else _CancelledError)
        finally:
            self._pool.shutdown(wait=True)
        if kind is None:
            self._written.result()

    def write(self, ticks: NDArray[np.int64], channel: NDArray[np.uint8]) -> None:
        """Add events, channels from 0.

        Raises:
            EventError: The file cannot be written.
        """
        if self._gathered.add(ticks=ticks, channel=channel):
            self._push()
        if self._written.done():
            self._written.result()

    def _push(self) -> None:
        rows = self._gathered.take()
        self._put(events_block(rows["ticks"], rows["channel"], self._tick_ps))

    def _put(self, item: DetectionBlock | type[_CancelledError] | None) -> None:
        while not self._written.done():
            try:
                self._queue.put(item, timeout=LOOK_EVERY_S)
            except queue.Full:
                continue
            return

    def _blocks(self) -> Iterator[DetectionBlock]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, DetectionBlock):
                yield item
            else:
                raise _CancelledError


class TableSink:
    """A Parquet file of columns that rows are added to; complete on leaving without an error, else it disappears.

    Args:
        path: The new file.
        columns: Names of the columns and their types.
        facts: What the file's metadata says, by name.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """

    def __init__(self, path: Path, columns: Mapping[str, type[np.generic]], facts: Mapping[str, str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigurationError(
                "the sender's record needs pyarrow", remedy="pip install 'qkdhw[parquet]', or --record none"
            ) from error
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self._path = path
        fields = [
            pyarrow.field(name, pyarrow.from_numpy_dtype(np.dtype(kind)), nullable=False)
            for name, kind in columns.items()
        ]
        self._schema = pyarrow.schema(fields).with_metadata({f"qkdhw.{name}": text for name, text in facts.items()})
        self._gathered = _Gathered(columns)
        self._stack = ExitStack()
        self._writer: Any = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            file = stack.enter_context(write_whole_file(self._path))
            self._writer = stack.enter_context(self._parquet.ParquetWriter(file, self._schema, compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._typed_errors():
            if kind is None:
                self._push()
            self._stack.__exit__(kind, error, trace)

    def write(self, **columns: NDArray[Any]) -> None:
        """Add rows.

        Raises:
            EventError: The file cannot be written.
        """
        if self._gathered.add(**columns):
            with self._typed_errors():
                self._push()

    def _push(self) -> None:
        rows = self._gathered.take()
        if len(rows[self._schema.names[0]]):
            self._writer.write_table(self._arrow.table([*rows.values()], schema=self._schema))

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except EventError:
            raise
        except (OSError, self._arrow.ArrowException) as error:
            raise write_error(self._path, error) from error

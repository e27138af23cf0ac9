"""Read and write detection events as HDF5: one group, exact ticks, everything a block holds.

Layout: group /events with datasets time_ticks (int64), channel (uint8), kind (uint8) and, for start-stop events,
fine_ticks (uint16); attributes tick_ps_numerator, tick_ps_denominator, fine_tick_ps_numerator,
fine_tick_ps_denominator, missed and version (1).

Source: docs/reference/event-files.md.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qkdhw.errors import ConfigurationError, EventFormatError
from qkdhw.formats.atomic import write_whole_file
from qkdhw.formats.encoding import LeftOut
from qkdhw.formats.event_file import EventFile, Tally, file_size_bytes
from qkdhw.model import DetectionBlock

MAGIC = b"\x89HDF\r\n\x1a\n"
VERSION = 1
COLUMNS = {"time_ticks": np.int64, "channel": np.uint8, "kind": np.uint8, "fine_ticks": np.uint16}
CHUNK_EVENTS = 1 << 16


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigurationError("HDF5 files need h5py", remedy="pip install 'qkdhw[hdf5]'") from error
    return h5py


def open_hdf5(path: Path) -> EventFile:
    """Read the attributes of an HDF5 file of events and make them readable.

    Raises:
        EventFormatError: Not this layout, or damaged.
        EventError: The file cannot be read.
        ConfigurationError: h5py is not installed.

    Source: docs/reference/event-files.md.
    """
    file_size_bytes(path)
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            group = file["events"]
            facts = {name: int(value) for name, value in group.attrs.items()}
            names = [name for name in COLUMNS if name in group]
            lengths = {len(group[name]) for name in names}
            right = all(group[name].dtype == COLUMNS[name] for name in names)
        tick_ps = Fraction(facts["tick_ps_numerator"], facts["tick_ps_denominator"])
        fine_tick_ps = None
        if "fine_ticks" in names:
            fine_tick_ps = Fraction(facts["fine_tick_ps_numerator"], facts["fine_tick_ps_denominator"])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise _damaged(path, error) from error
    if len(names) < 3 or len(lengths) != 1 or not right or tick_ps <= 0 or facts.get("version") != VERSION:
        raise _damaged(path, "datasets or attributes are missing or do not fit together")
    return EventFile(
        path=path,
        format="hdf5",
        tick_ps=tick_ps,
        fine_tick_ps=fine_tick_ps,
        header=facts,
        records_expected=lengths.pop(),
        decode=partial(_decode, path, tick_ps, fine_tick_ps, facts.get("missed", 0)),
    )


def _damaged(path: Path, why: object) -> EventFormatError:
    return EventFormatError(
        f"{path} is no whole HDF5 file of events: {why}", remedy="write it again with qkdhw events convert"
    )


def _decode(
    path: Path, tick_ps: Fraction, fine_tick_ps: Fraction | None, missed: int, max_events: int, tally: Tally
) -> Iterator[DetectionBlock]:
    try:
        with _h5py().File(path, "r") as file:
            group = file["events"]
            for first in range(0, len(group["time_ticks"]), max_events):
                part = slice(first, first + max_events)
                block = DetectionBlock(
                    time_ticks=group["time_ticks"][part],
                    channel=group["channel"][part],
                    kind=group["kind"][part],
                    tick_ps=tick_ps,
                    fine_ticks=None if fine_tick_ps is None else group["fine_ticks"][part],
                    fine_tick_ps=fine_tick_ps,
                    missed=missed if first == 0 else 0,
                )
                tally.records += len(block)
                yield block
    except (OSError, RuntimeError) as error:
        raise _damaged(path, error) from error


@contextmanager
def _signals_wait() -> Iterator[list[int]]:
    """Give a list that takes the signals to end that come in the body; they act after it.

    What a handler raises while HDF5 calls the file below would not get through HDF5.
    """
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if main}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for sent in came:
            signal.raise_signal(sent)


class _GuardedFile:
    """Keeps a write error back until HDF5 has closed its file.

    The HDF5 library crashes the process when closing a file fails because the disk is full. So after the first
    failed write this file takes everything and keeps nothing; `check` then raises the error.
    """

    def __init__(self, disk: BinaryIO) -> None:
        self._disk = disk
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the error of the first write that failed."""
        self.flush()
        if self._error is not None:
            raise self._error

    def checked(self, blocks: Iterable[DetectionBlock], signals: list[int]) -> Iterator[DetectionBlock]:
        """Pass blocks on and end after a failed write, or a signal."""
        for block in blocks:
            if self._error is not None or signals:
                return
            yield block

    @contextmanager
    def _kept_back(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error

    def write(self, data: memoryview) -> int:
        if self._error is None:
            with self._kept_back():
                self._disk.write(data)
        return len(data)

    def read(self, size: int) -> bytes:
        data = b""
        if self._error is None:
            with self._kept_back():
                data = self._disk.read(size)
        return data.ljust(size, b"\0")

    def truncate(self, size: int) -> int:
        if self._error is None:
            with self._kept_back():
                self._disk.truncate(size)
        return size

    def flush(self) -> None:
        if self._error is None:
            with self._kept_back():
                self._disk.flush()

    def seek(self, offset: int, whence: int = 0) -> None:
        if self._error is None:
            with self._kept_back():
                self._disk.seek(offset, whence)

    def tell(self) -> int:
        return self._disk.tell()


def write_hdf5(
    path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, fine_tick_ps: Fraction | None = None
) -> LeftOut:
    """Write an HDF5 file of events, whole or not at all.

    Args:
        path: The new file.
        blocks: Any events.
        tick_ps: Tick of the events.
        fine_tick_ps: Tick of the fine times, if they have any.

    Raises:
        EventFormatError: A tick that is no fraction of 63-bit numbers.
        EventError: The file cannot be written.
        ConfigurationError: h5py is not installed.

    Source: docs/reference/event-files.md.
    """
    h5py = _h5py()
    with write_whole_file(path) as disk:
        guarded = _GuardedFile(disk)
        with _signals_wait() as signals, h5py.File(guarded, "w") as file:
            left_out = _write_group(
                file.create_group("events"), guarded.checked(blocks, signals), tick_ps, fine_tick_ps
            )
        guarded.check()
    return left_out


def _write_group(
    group: Any, blocks: Iterable[DetectionBlock], tick_ps: Fraction, fine_tick_ps: Fraction | None
) -> LeftOut:
    left_out = LeftOut()
    missed = 0
    group.attrs["version"] = VERSION
    _set_fraction(group, "tick_ps", tick_ps)
    names = list(COLUMNS)
    if fine_tick_ps is None:
        names.remove("fine_ticks")
    else:
        _set_fraction(group, "fine_tick_ps", fine_tick_ps)
    for name in names:
        group.create_dataset(
            name, (0,), COLUMNS[name], maxshape=(None,), chunks=(CHUNK_EVENTS,), shuffle=True, compression=4
        )
    for block in blocks:
        first, end = left_out.events, left_out.events + len(block)
        for name in names:
            group[name].resize((end,))
            group[name][first:end] = getattr(block, name)
        left_out.events = end
        missed += block.missed
    group.attrs["missed"] = missed
    return left_out


def _set_fraction(group: Any, name: str, value: Fraction) -> None:
    if max(value.numerator, value.denominator) >= 2**63:
        raise EventFormatError(f"{name} = {value} does not fit 63 bits", remedy="write Parquet or CSV")
    group.attrs[f"{name}_numerator"] = value.numerator
    group.attrs[f"{name}_denominator"] = value.denominator

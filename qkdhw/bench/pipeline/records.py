"""What a site chose pulse by pulse, looked up by pulse number in ascending order, a block in memory at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.pipeline.ahead import POLL_S, Ahead
from qkdhw.errors import ConfigurationError, EventError, UnitError
from qkdhw.interfaces import TransmitterUnit
from qkdhw.model import PreparationBlock
from qkdhw.postprocessing.sifting import N_INTENSITIES

READ_PULSES = 1 << 20
MEANINGS = 8  # basis and intensity of a record byte: record >> 1
# Columns of a record file, the largest value that each may have, and what is made of it.
_COLUMNS = {
    "pulse": ((1 << 62) - 1, np.int64),
    "intensity": (255, np.uint8),
    "basis": (2, np.uint8),
    "bit": (1, np.uint8),
}


@dataclass(frozen=True, slots=True)
class PreparationRows:
    """Some pulses of a record. It is raw key: the repr shows none.

    Attributes:
        pulse: int64 (n,), strictly increasing.
        record: uint8 (n,), as in `PreparationBlock`.
    """

    pulse: NDArray[np.int64] = field(repr=False)
    record: NDArray[np.uint8] = field(repr=False)


Records = TransmitterUnit | Path | str | Iterable[PreparationBlock | PreparationRows]


class RecordReader:
    """Reads a record once, forwards; a context manager.

    Args:
        records: A running transmitter unit, a sender's record as a Parquet file (columns pulse, intensity, basis and
            bit, all pulses or some), or blocks in order.
        timeout_s: Longest wait for a block.
        count_sent: Count pulses by basis and intensity on the way; only whole blocks (not rows) can be counted.
    """

    def __init__(self, records: Records, *, timeout_s: float = 30.0, count_sent: bool = False) -> None:
        blocks = _blocks_of(records)
        self._ahead: Ahead[PreparationBlock | PreparationRows] = Ahead(blocks, "record reader", timeout_s=timeout_s)
        self._block: PreparationBlock | PreparationRows | None = None
        self._next = 0  # pulses below are in the block or forgotten
        self._whole = True
        self._count_sent = count_sent
        self._sent = np.zeros(MEANINGS, np.int64)

    def __enter__(self) -> Self:
        self._ahead.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead.__exit__(kind, error, trace)
        self._block = None

    def read_on(self) -> None:
        """Read to the end, for the counts of what was sent."""
        while self._advance():
            pass

    @property
    def sent(self) -> NDArray[np.int64] | None:
        """Pulses read so far by basis and intensity, int64 (2, 3); None if not counted or some were left out."""
        if not (self._count_sent and self._whole):
            return None
        return self._sent.reshape(4, 2).T[:, :N_INTENSITIES].copy()

    def take(self, pulse: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Look pulses up.

        Args:
            pulse: int64 (n,), strictly increasing, beyond those of the last call.

        Returns:
            record uint8 (n,), 0 where there is none, and whether there is one, bool (n,).

        Raises:
            EventError: The record cannot be read or is out of order.
        """
        record, found = np.zeros(len(pulse), np.uint8), np.zeros(len(pulse), np.bool_)
        begin = 0
        while True:
            end = int(np.searchsorted(pulse, self._next))
            if self._block is not None and end > begin:
                part = slice(begin, end)
                record[part], found[part] = _look_up(self._block, pulse[part])
            begin = max(begin, end)
            if begin == len(pulse) or not self._advance():
                return record, found

    def _advance(self) -> bool:
        block = next(self._ahead, None)
        if block is None:
            return False
        first, end = _extent(block)
        if first < self._next:
            raise EventError(f"the record goes back from pulse {self._next} to {first}", remedy="give it in order")
        whole = isinstance(block, PreparationBlock)
        self._whole &= whole and first == self._next
        if whole and self._count_sent:
            self._sent += np.bincount((block.record >> 1) & (MEANINGS - 1), minlength=MEANINGS)
        self._block, self._next = block, end
        return True


def _extent(block: PreparationBlock | PreparationRows) -> tuple[int, int]:
    if isinstance(block, PreparationBlock):
        return block.first_pulse_index, block.first_pulse_index + len(block)
    return int(block.pulse[0]), int(block.pulse[-1]) + 1


def _look_up(
    block: PreparationBlock | PreparationRows, pulse: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    if isinstance(block, PreparationBlock):
        index = pulse - block.first_pulse_index
        if index[0] >= 0:
            return block.record[index], np.ones(len(pulse), np.bool_)
        found = index >= 0
    else:
        index = np.minimum(np.searchsorted(block.pulse, pulse), len(block.pulse) - 1)
        found = block.pulse[index] == pulse
    return np.where(found, block.record[np.maximum(index, 0)], np.uint8(0)), found


class _UnitBlocks:
    """Reads a transmitter unit until told to stop."""

    def __init__(self, unit: TransmitterUnit) -> None:
        self._unit = unit

    def __call__(self, stopping: threading.Event) -> Iterator[PreparationBlock]:
        expected = 0
        while not stopping.is_set():
            block = self._unit.read_preparation(READ_PULSES, timeout_s=POLL_S)
            if not len(block):
                continue
            if block.first_pulse_index != expected:
                raise UnitError(f"preparation records jump from pulse {expected} to {block.first_pulse_index}")
            expected += len(block)
            yield block


def _blocks_of(records: Records) -> Any:
    if isinstance(records, str | Path):
        path = Path(records)
        return lambda _stopping: read_record_file(path)
    if isinstance(records, TransmitterUnit):
        return _UnitBlocks(records)
    return lambda _stopping: (block for block in records if len(block.record))


def read_record_file(path: Path | str) -> Iterator[PreparationBlock | PreparationRows]:
    """Read a sender's record from Parquet, in bounded memory; pulses of a third basis are left out.

    Raises:
        ConfigurationError: pyarrow is not installed, or there are more than three intensities.
        EventError: The file cannot be read, lacks a column, or is out of order.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError("a sender's record needs pyarrow", remedy="pip install 'qkdhw[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(READ_PULSES, columns=list(_COLUMNS)):
                rows = _rows(Path(path), *(_whole_numbers(path, batch.column(name), name) for name in _COLUMNS))
                if len(rows.record):
                    yield rows
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise EventError(
            f"{path} is no sender's record: {error}", remedy=f"a Parquet file with columns {', '.join(_COLUMNS)}"
        ) from error


def _whole_numbers(path: Path | str, column: Any, name: str) -> NDArray[Any]:
    """Return a column of whole numbers in the range that it may have."""
    numbers = column.to_numpy(zero_copy_only=False)
    if column.null_count or numbers.dtype.kind not in "iu":
        raise EventError(
            f"{path}: column {name} is of type {column.type} with {column.null_count} empty places",
            remedy="give whole numbers in every row",
        )
    most, kind = _COLUMNS[name]
    if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) <= most):
        raise EventError(
            f"{path}: {name} is {numbers.min()} to {numbers.max()} in some rows", remedy=f"it must be 0 to {most}"
        )
    whole: NDArray[Any] = numbers.astype(kind, copy=False)
    return whole


def _rows(
    path: Path,
    pulse: NDArray[np.int64],
    intensity: NDArray[np.uint8],
    basis: NDArray[np.uint8],
    bit: NDArray[np.uint8],
) -> PreparationBlock | PreparationRows:
    if (np.diff(pulse) <= 0).any():
        raise EventError(f"{path}: pulses are not in order", remedy="sort the record by pulse")
    if len(intensity) and int(intensity.max()) >= N_INTENSITIES:
        raise ConfigurationError(f"{path} has more than {N_INTENSITIES} intensities", remedy="the proofs take three")
    record = (bit | basis << 1 | intensity << 2).astype(np.uint8)
    two_bases = basis < 2
    if not two_bases.all():
        pulse, record = pulse[two_bases], record[two_bases]
    elif len(pulse) and int(pulse[-1]) - int(pulse[0]) == len(pulse) - 1:
        return PreparationBlock(int(pulse[0]), record)
    return PreparationRows(pulse, record)

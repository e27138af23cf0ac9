"""Which formats there are, which one a file is in, and how to open and write each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError, EventFormatError
from qkdhw.formats import csv_text, hdf5, parquet, ptu, ptu_writer, qcrypto, qutag
from qkdhw.formats.encoding import LeftOut
from qkdhw.formats.event_file import EventFile, file_size_bytes, read_error
from qkdhw.model import DetectionBlock

SAMPLE_WORDS = 4096
CERTAIN_WORDS = 8
FORMAT_REMEDY = "name the format with --format; `qkdhw events formats` lists them"


@dataclass(frozen=True, slots=True)
class EventFormat:
    """One format of event files.

    Attributes:
        description: What it is, in a few words.
        suffixes: File name endings that mean it when a file is to be written.
        open: Opens a file: (path, tolerant) to EventFile.
        write: Writes a file: (path, blocks, tick_ps, fine_tick_ps) to LeftOut.
    """

    description: str
    suffixes: tuple[str, ...]
    open: Callable[[Path, bool], EventFile]
    write: Callable[[Path, Iterable[DetectionBlock], Fraction, Fraction | None], LeftOut]


def _qcrypto_format(name: str) -> EventFormat:
    layout = qcrypto.LAYOUTS[name]
    is_tdc2 = layout.time_bits == qcrypto.TDC2_BITS
    card = "TDC2, 1/256 ns" if is_tdc2 else "older cards, 125 ps"
    form = f"text, {layout.line_digits} digits a line" if layout.line_digits else "binary"
    order = "high half first" if layout.high_half_first else "low half first"
    suffixes = (f".{name.removeprefix('qcrypto-')}.ts",) if is_tdc2 else ()
    return EventFormat(
        f"S-Fifteen {card}; {form}, {order}",
        (*suffixes, ".ts") if name == "qcrypto-a1" else suffixes,
        lambda path, tolerant: qcrypto.open_qcrypto(path, name, tolerant=tolerant),
        lambda path, blocks, tick_ps, _: qcrypto.write_qcrypto(path, blocks, tick_ps=tick_ps, format_name=name),
    )


def _qutag_format(description: str, suffixes: tuple[str, ...], *, raw: bool) -> EventFormat:
    return EventFormat(
        description,
        suffixes,
        lambda path, tolerant: qutag.open_qutag(path, raw=raw, tolerant=tolerant),
        lambda path, blocks, tick_ps, _: qutag.write_qutag(path, blocks, tick_ps=tick_ps, raw=raw),
    )


def _own_format(
    description: str, suffixes: tuple[str, ...], open_file: Callable[[Path], EventFile], write: Callable[..., LeftOut]
) -> EventFormat:
    return EventFormat(
        description,
        suffixes,
        lambda path, _: open_file(path),
        lambda path, blocks, tick_ps, fine_tick_ps: write(path, blocks, tick_ps=tick_ps, fine_tick_ps=fine_tick_ps),
    )


FORMATS: Mapping[str, EventFormat] = {
    "ptu": EventFormat(
        "PicoQuant PTU, T2 and T3",
        (".ptu",),
        lambda path, tolerant: ptu.open_ptu(path, tolerant=tolerant),
        lambda path, blocks, tick_ps, fine_tick_ps: ptu_writer.write_ptu(
            path, blocks, tick_ps=tick_ps, fine_tick_ps=fine_tick_ps
        ),
    ),
    "qutag": _qutag_format("quTAG BINARY, 10 bytes an event", (".qutag",), raw=False),
    "qutag-raw": _qutag_format("quTAG RAW, the same without header", (), raw=True),
    **{name: _qcrypto_format(name) for name in qcrypto.LAYOUTS},
    "hdf5": _own_format("HDF5, exact ticks, every kind", (".h5", ".hdf5"), hdf5.open_hdf5, hdf5.write_hdf5),
    "parquet": _own_format("Apache Parquet, delta-coded", (".parquet",), parquet.open_parquet, parquet.write_parquet),
    "csv": _own_format("text, one line an event", (".csv",), csv_text.open_csv, csv_text.write_csv),
}
_MAGIC = {
    ptu.MAGIC: "ptu",
    qutag.MAGIC.to_bytes(4, "little"): "qutag",
    hdf5.MAGIC: "hdf5",
    parquet.MAGIC: "parquet",
    csv_text.MAGIC: "csv",
}


def open_events(path: Path | str, format_name: str | None = None, *, tolerant: bool = False) -> EventFile:
    """Open a file of detection events.

    Args:
        path: The file.
        format_name: A name in FORMATS; None finds it from the file's content.
        tolerant: Accept a file that is cut short, skip invalid records, and count both.

    Raises:
        EventFormatError: The format is not recognised, or the file does not follow it; carries the byte offset.
        EventError: The file cannot be read.
        ConfigurationError: No such format name, or the library for it is not installed.
    """
    path = Path(path)
    name = detect_format(path) if format_name is None else format_name
    return _format(name).open(path, tolerant)


def write_events(
    path: Path | str,
    blocks: Iterable[DetectionBlock],
    format_name: str | None = None,
    *,
    tick_ps: Fraction,
    fine_tick_ps: Fraction | None = None,
) -> LeftOut:
    """Write a file of detection events, whole or not at all.

    Args:
        path: The new file; an old one of that name is replaced at the end.
        blocks: Events in order.
        format_name: A name in FORMATS; None takes it from the file name's ending.
        tick_ps: Tick of the events.
        fine_tick_ps: Tick of the fine times of start-stop (T3) events.

    Returns:
        What was written and what the format has no place for.

    Raises:
        EventFormatError: An event that the format cannot hold exactly.
        EventError: The file cannot be written; nothing is left behind.
        ConfigurationError: No such format name or ending, or the library for it is not installed.
    """
    path = Path(path)
    name = format_of_name(path) if format_name is None else format_name
    return _format(name).write(path, blocks, tick_ps, fine_tick_ps)


def _format(name: str) -> EventFormat:
    try:
        return FORMATS[name]
    except KeyError as error:
        raise ConfigurationError(
            f"there is no event format {name!r}", remedy=f"one of: {', '.join(FORMATS)}"
        ) from error


def format_of_name(path: Path) -> str:
    """Return the format that a new file's name asks for.

    Raises:
        ConfigurationError: The ending is not known.
    """
    endings = [(suffix, name) for name, known in FORMATS.items() for suffix in known.suffixes]
    fitting = [(suffix, name) for suffix, name in endings if path.name.lower().endswith(suffix)]
    if not fitting:
        raise ConfigurationError(
            f"the name {path.name} does not say which format to write",
            remedy="name it with --out-format; `qkdhw events formats` lists them",
        )
    return max(fitting, key=lambda pair: len(pair[0]))[1]


def detect_format(path: Path) -> str:
    """Find the format of a file from its content; only quTAG RAW needs its name, since nothing in it tells.

    Raises:
        EventFormatError: No format, or more than one, fits.
        EventError: The file cannot be read.
    """
    size_bytes = file_size_bytes(path)
    try:
        with path.open("rb") as file:
            head = file.read(8 * SAMPLE_WORDS)
    except OSError as error:
        raise read_error(path, error) from error
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if not head:
        raise EventFormatError(f"{path} is empty", offset_bytes=0, remedy="record it again")
    fitting = _fitting_layouts(path, head, size_bytes)
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        raise EventFormatError(
            f"{path} is too short to tell {' from '.join(fitting)}", offset_bytes=0, remedy=FORMAT_REMEDY
        )
    raise EventFormatError(
        f"{path} is in no event format that this program knows", offset_bytes=0, remedy=FORMAT_REMEDY
    )


def _fitting_layouts(path: Path, head: bytes, size_bytes: int) -> list[str]:
    """Name the word layouts that the first words of a file fit."""
    first_line = head[:17].split(b"\n", 1)[0]
    is_text = all(octet in b"0123456789abcdefABCDEF" for octet in first_line)
    digits = len(first_line) if is_text else 0
    fitting = []
    for name, layout in qcrypto.LAYOUTS.items():
        records = min(SAMPLE_WORDS // 2, size_bytes // layout.record_bytes)
        if layout.line_digits != digits or not records:
            continue
        word = next(qcrypto.read_words(path, layout, records=records, chunk_records=records))
        if layout.high_half_first:
            word = (word << np.uint64(32)) | (word >> np.uint64(32))
        if _looks_like_events(word, layout.time_bits):
            fitting.append(name)
    return fitting


def _looks_like_events(word: NDArray[np.uint64], time_bits: int) -> bool:
    """Judge by the bits between time and pattern, which are fixed, the pattern, and by time, which mostly rises.

    Words of a TDC2 have bits 9 and 8 set and 7 and 6 clear. The older cards leave bits 14 to 5 clear; a TDC2 asked
    to imitate them (option -s) clears bits 14 to 10 only.
    """
    low = word & np.uint64(0x7FE0)
    imitated = (low & np.uint64(0x7FC0)) == np.uint64(qcrypto.TDC2_FIXED_BITS)
    if time_bits == qcrypto.TDC2_BITS:
        right = (low & np.uint64(0x3C0)) == np.uint64(qcrypto.TDC2_FIXED_BITS)
        if len(word) >= CERTAIN_WORDS and imitated.all():
            return False
    else:
        right = imitated | (low == 0)
    ticks = (word >> np.uint64(64 - time_bits)).astype(np.int64)
    named = int(np.count_nonzero(word & np.uint64(31)))  # an input or a dummy
    backward = int(np.count_nonzero(np.diff(ticks) < 0))
    return bool(right.all()) and 2 * named > len(word) and 4 * backward <= len(word)

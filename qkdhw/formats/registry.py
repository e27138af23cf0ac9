"""Which formats there are, and how to open and write each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

from qkdhw.errors import ConfigurationError, EventError
from qkdhw.formats import (
    csv_text,
    hdf5,
    idq,
    parquet,
    ptu,
    ptu_writer,
    qcrypto,
    qcrypto_epoch,
    qcrypto_epoch_writer,
    qcrypto_fast,
    qutag,
    swabian,
    tdc1,
)
from qkdhw.formats.detection import detect_format
from qkdhw.formats.encoding import GapDropper, LeftOut
from qkdhw.formats.event_file import EventFile
from qkdhw.formats.format_options import OPTIONS, FormatOption, option_values, split_format_name
from qkdhw.formats.stream import StreamDecoder
from qkdhw.model import DetectionBlock


@dataclass(frozen=True, slots=True)
class EventFormat:
    """One format of event files.

    Attributes:
        description: What it is, in a few words.
        suffixes: File name endings that mean it when a file is to be written.
        open: Opens a file: (path, tolerant) to EventFile.
        write: Writes a file: (path, blocks, tick_ps, fine_tick_ps) to LeftOut.
        decoder: Makes a decoder of its bytes: (tolerant) to StreamDecoder; None for formats that need a whole file.
        options: What may be said beside its name, `name:option=value`.
        bound: Makes the format that reads and writes with values of options, for formats that have some.
        holds_gaps: Whether it has a place for gaps in the events.
    """

    description: str
    suffixes: tuple[str, ...]
    open: Callable[[Path, bool], EventFile]
    write: Callable[[Path, Iterable[DetectionBlock], Fraction, Fraction | None], LeftOut]
    decoder: Callable[[bool], StreamDecoder] | None = None
    options: tuple[FormatOption, ...] = ()
    bound: Callable[[dict[str, Any]], EventFormat] | None = None
    holds_gaps: bool = False


def _raw_format(
    description: str,
    suffixes: tuple[str, ...],
    open_file: Callable[..., EventFile],
    write: Callable[..., LeftOut],
    decoder: Callable[..., StreamDecoder],
    options: tuple[FormatOption, ...] = (),
    *,
    holds_gaps: bool = False,
) -> EventFormat:
    """Describe a format of a tagger, which has a decoder and no fine times."""

    def bound(values: dict[str, Any]) -> EventFormat:
        return EventFormat(
            description,
            suffixes,
            lambda path, tolerant: open_file(path, tolerant=tolerant, **values),
            lambda path, blocks, tick_ps, _: write(path, blocks, tick_ps=tick_ps, **values),
            lambda tolerant: decoder(tolerant=tolerant, **values),
            options,
            holds_gaps=holds_gaps,
        )

    return replace(bound({}), bound=bound)


def _qcrypto_format(name: str) -> EventFormat:
    layout = qcrypto.LAYOUTS[name]
    is_tdc2 = layout.time_bits == qcrypto.TDC2_BITS
    card = "TDC2, 1/256 ns" if is_tdc2 else "older cards, 125 ps"
    form = f"text, {layout.line_digits} digits a line" if layout.line_digits else "binary"
    order = "high half first" if layout.high_half_first else "low half first"
    suffixes = (f".{name.removeprefix('qcrypto-')}.ts",) if is_tdc2 else ()
    return _raw_format(
        f"S-Fifteen {card}; {form}, {order}",
        (*suffixes, ".ts") if name == "qcrypto-a1" else suffixes,
        partial(qcrypto.open_qcrypto, format_name=name),
        partial(qcrypto.write_qcrypto, format_name=name),
        partial(qcrypto.QcryptoDecoder, name),
    )


def _epoch_format(packet_type: Literal[1, 2], description: str) -> EventFormat:
    return _raw_format(
        description,
        (f".t{packet_type}",),
        partial(qcrypto_epoch.open_epochs, packet_type=packet_type),
        partial(_write_epochs, packet_type),
        partial(qcrypto_epoch.EpochDecoder, packet_type),
        OPTIONS[f"qcrypto-t{packet_type}"],
    )


def _write_epochs(
    packet_type: Literal[1, 2], path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, **values: Any
) -> LeftOut:
    layout = qcrypto_epoch_writer.EpochLayout(packet_type, **values)
    return qcrypto_epoch_writer.write_epochs(path, blocks, tick_ps=tick_ps, layout=layout)


def _own_format(
    description: str, suffixes: tuple[str, ...], open_file: Callable[[Path], EventFile], write: Callable[..., LeftOut]
) -> EventFormat:
    return EventFormat(
        description,
        suffixes,
        lambda path, _: open_file(path),
        lambda path, blocks, tick_ps, fine_tick_ps: write(path, blocks, tick_ps=tick_ps, fine_tick_ps=fine_tick_ps),
        holds_gaps=True,
    )


FORMATS: Mapping[str, EventFormat] = {
    "ptu": EventFormat(
        "PicoQuant PTU, T2 and T3",
        (".ptu",),
        lambda path, tolerant: ptu.open_ptu(path, tolerant=tolerant),
        lambda path, blocks, tick_ps, fine_tick_ps: ptu_writer.write_ptu(
            path, blocks, tick_ps=tick_ps, fine_tick_ps=fine_tick_ps
        ),
        lambda tolerant: ptu.PtuDecoder(tolerant=tolerant),
    ),
    "qutag": _raw_format(
        "quTAG BINARY, 10 bytes an event", (".qutag",), qutag.open_qutag, qutag.write_qutag, qutag.QutagDecoder
    ),
    "qutag-raw": _raw_format(
        "quTAG RAW, the same without header",
        (),
        partial(qutag.open_qutag, raw=True),
        partial(qutag.write_qutag, raw=True),
        partial(qutag.QutagDecoder, raw=True),
    ),
    "qutag-compressed": _raw_format(
        "quTAG COMPRESSED, 5 bytes an event",
        (),
        qutag.open_compressed,
        qutag.write_compressed,
        qutag.CompressedDecoder,
        OPTIONS["qutag-compressed"],
    ),
    **{name: _qcrypto_format(name) for name in qcrypto.LAYOUTS},
    "qcrypto-fast": _raw_format(
        "S-Fifteen TDC2 fast mode, 4 bytes an event",
        (".fast.ts",),
        qcrypto_fast.open_fast_mode,
        qcrypto_fast.write_fast_mode,
        qcrypto_fast.FastModeDecoder,
    ),
    "qcrypto-t1": _epoch_format(1, "qcrypto epoch files, type 1: raw events; a file or a folder"),
    "qcrypto-t2": _epoch_format(2, "qcrypto epoch files, type 2: times and bases; a file or a folder"),
    "tdc1": _raw_format(
        "S-Fifteen TDC1 stream, 4 bytes an event", (".tdc1",), tdc1.open_tdc1, tdc1.write_tdc1, tdc1.Tdc1Decoder
    ),
    "idq": _raw_format(
        "IDQ Time Controller .bin, one channel's times",
        (".bin",),
        idq.open_idq,
        idq.write_idq,
        idq.IdqDecoder,
        OPTIONS["idq"],
    ),
    "swabian-dump": _raw_format(
        "Swabian Time Tagger Dump, 16 bytes an event",
        (".dump",),
        swabian.open_dump,
        swabian.write_dump,
        swabian.DumpDecoder,
        OPTIONS["swabian-dump"],
        holds_gaps=True,
    ),
    "hdf5": _own_format("HDF5, exact ticks, every kind", (".h5", ".hdf5"), hdf5.open_hdf5, hdf5.write_hdf5),
    "parquet": _own_format("Apache Parquet, delta-coded", (".parquet",), parquet.open_parquet, parquet.write_parquet),
    "csv": _own_format("text, one line an event", (".csv",), csv_text.open_csv, csv_text.write_csv),
}


def open_events(path: Path | str, format_name: str | None = None, *, tolerant: bool = False) -> EventFile:
    """Open a file of detection events.

    Args:
        path: The file.
        format_name: A name in FORMATS, with options if need be (`idq:channel=3`); None finds it from the content.
        tolerant: Accept a file that is cut short, skip invalid records, and count both.

    Raises:
        EventFormatError: The format is not recognised, or the file does not follow it; carries the byte offset.
        EventError: The file cannot be read.
        ConfigurationError: No such format name or option, or the library for it is not installed.
    """
    path = Path(path)
    if path.is_fifo():  # opening it would wait for a writer, and its content can be read once only
        raise EventError(f"{path} is a pipe and no file", remedy="save what comes out of it as a file first")
    name = detect_format(path) if format_name is None else format_name
    return format_named(name).open(path, tolerant)


def write_events(
    path: Path | str,
    blocks: Iterable[DetectionBlock],
    format_name: str | None = None,
    *,
    tick_ps: Fraction,
    fine_tick_ps: Fraction | None = None,
    drop_gaps: bool = False,
) -> LeftOut:
    """Write a file of detection events, whole or not at all.

    Args:
        path: The new file; an old one of that name is replaced at the end.
        blocks: Events in order.
        format_name: A name in FORMATS, with options if need be; None takes it from the file name's ending.
        tick_ps: Tick of the events.
        fine_tick_ps: Tick of the fine times of start-stop (T3) events.
        drop_gaps: Leave the marks of gaps out of a format that has no place for them, and count the gaps. The file
            does not show then where events are missing.

    Returns:
        What was written and what the format has no place for.

    Raises:
        EventFormatError: An event that the format cannot hold exactly.
        EventError: The file cannot be written; nothing is left behind.
        ConfigurationError: No such format name, option or ending, or the library for it is not installed.
    """
    path = Path(path)
    name = format_of_name(path) if format_name is None else format_name
    known = format_named(name, writing=True)
    dropper = GapDropper()
    if drop_gaps and not known.holds_gaps:
        blocks = dropper.pass_on(blocks)
    left_out = known.write(path, blocks, tick_ps, fine_tick_ps)
    left_out.gaps = dropper.gaps
    return left_out


def format_named(text: str, *, writing: bool = False) -> EventFormat:
    """Return the format of a name, with the options that follow it: `idq:channel=3:record_period_ps=2000000000`.

    Args:
        text: A name in FORMATS, then options.
        writing: Whether a file is to be written, not read.

    Raises:
        ConfigurationError: There is no such format, or an option or its value is wrong.
    """
    name, given = split_format_name(text)
    known = FORMATS.get(name)
    if known is None:
        raise ConfigurationError(f"there is no event format {name!r}", remedy=f"one of: {', '.join(FORMATS)}")
    values = option_values(name, known.options, given, writing=writing)
    return known.bound(values) if known.bound and values else known


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

"""`qkdhw events info`, `convert`, `record` and `formats`: files of detection events as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qkdhw.bench import open_bench, record_events
from qkdhw.cli.console import JsonOption, err, out, plain, print_json
from qkdhw.cli.events.options import (
    FileArgument,
    FormatOption,
    OutFormatOption,
    TolerantOption,
    check_out,
    with_progress,
)
from qkdhw.cli.target import TimeoutOption
from qkdhw.errors import ConfigurationError
from qkdhw.formats import FORMATS, EventCounter, EventReport, open_events, write_events


def info(
    file: FileArgument,
    format_name: FormatOption = None,
    tolerant: TolerantOption = False,
    as_json: JsonOption = False,
) -> None:
    """Count a file's events per kind and channel and report rate, duration and anomalies."""
    source = open_events(file, format_name, tolerant=tolerant)
    counter = EventCounter()
    for block in with_progress(source, "reading"):
        counter.add(block)
    report = counter.report(source)
    if as_json:
        print_json(_plain(report))
    else:
        _print_report(report)


def convert(
    file: FileArgument,
    out_file: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; it appears whole or not at all.")],
    format_name: FormatOption = None,
    out_format: OutFormatOption = None,
    tolerant: TolerantOption = False,
    drop_gaps: Annotated[
        bool,
        typer.Option("--drop-gaps", help="If OUT has no place for marks of gaps, leave them out and say how many."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a file's events in another format, exactly or not at all; times are never rounded."""
    check_out(file, out_file, force=force)
    source = open_events(file, format_name, tolerant=tolerant)
    left_out = write_events(
        out_file,
        with_progress(source, "converting"),
        out_format,
        tick_ps=source.tick_ps,
        fine_tick_ps=source.fine_tick_ps,
        drop_gaps=drop_gaps,
    )
    if as_json:
        counts = {"events": left_out.events, "dummies_left_out": left_out.dummies, "gaps_left_out": left_out.gaps}
        print_json({"out": str(out_file), **counts, **dataclasses.asdict(source.tally)})
        return
    out.print(f"{left_out.events:,} events written to {out_file}", highlight=False, markup=False, soft_wrap=True)
    if left_out.dummies:
        out.print(
            f"{left_out.dummies:,} dummies left out: the format has no place for them", highlight=False, soft_wrap=True
        )
    if left_out.gaps:
        gaps = f"{left_out.gaps:,} gap{'s' * (left_out.gaps > 1)} left out"
        out.print(
            plain(f"{gaps}: {out_file.name} does not show where events are missing"), highlight=False, soft_wrap=True
        )
    if source.tally.invalid_records or source.tally.missing_records:
        out.print(
            f"{source.tally.invalid_records:,} invalid records skipped, "
            f"{source.tally.missing_records:,} records missing",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def record(
    bench: Annotated[Path, typer.Argument(metavar="BENCH", help="Bench file; all of its units are opened and set.")],
    unit: Annotated[str, typer.Argument(metavar="UNIT", help="The tagger's name in the bench file.")],
    out_file: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; OUT.json gets the bench's settings.")],
    duration_s: Annotated[float, typer.Option("--duration", metavar="SECONDS", min=0.001, help="How long.")],
    out_format: OutFormatOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT and OUT.json if they exist.")] = False,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Record a tagger's events for a while. They are raw key: only their owner may read the file."""
    beside = out_file.with_name(out_file.name + ".json")
    for each in (out_file, beside):
        if (each.exists() or each.is_symlink()) and not force:
            raise ConfigurationError(
                f"{each} exists already", remedy="Give OUT another name, or replace both with --force."
            )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    with (
        open_bench(bench, timeout_s=timeout_s) as opened,
        Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress,
    ):
        task = progress.add_task(f"recording {unit}", total=duration_s)

        def show(events: int, spent_s: float) -> None:
            rate_hz = events / spent_s if spent_s else 0.0
            progress.update(task, completed=spent_s, description=f"{unit}: {events:,} events, {rate_hz:,.0f} /s")

        recorded = record_events(
            opened, unit, out_file, duration_s=duration_s, format_name=out_format, overwrite=force, on_progress=show
        )
    if as_json:
        print_json({"out": str(out_file), **dataclasses.asdict(recorded)})
        return
    out.print(
        plain(f"{recorded.events:,} events, {recorded.span_s:.6g} s of them, in {out_file}; the bench in {beside}"),
        soft_wrap=True,
    )
    if recorded.missed or recorded.gaps:
        where = "" if recorded.shows_losses else f"; {out_file} does not show where (HDF5 and Parquet do)"
        lost = f"{recorded.missed:,} events were lost by the unit, {recorded.gaps:,} gaps{where}"
        out.print(plain(lost), highlight=False, soft_wrap=True)


def formats(as_json: JsonOption = False) -> None:
    """List the formats, the file name endings that ask for each when writing, and options: NAME:OPTION=VALUE."""
    if as_json:
        print_json(
            {
                name: {
                    "description": known.description,
                    "suffixes": list(known.suffixes),
                    "options": {
                        each.name: {"help": each.help, "reading": each.reading, "writing": each.writing}
                        for each in known.options
                    },
                }
                for name, known in FORMATS.items()
            }
        )
        return
    table = Table("format", "description", "endings")
    for name, known in FORMATS.items():
        table.add_row(name, known.description, " ".join(known.suffixes))
    out.print(table)
    options = Table("option", "what it is; without it", "to")
    for name, known in FORMATS.items():
        for each in known.options:
            to = " ".join(verb for verb, is_for in (("read", each.reading), ("write", each.writing)) if is_for)
            options.add_row(f"{name}:{each.name}=", each.help, to)
    out.print(options)


def _plain(report: EventReport) -> dict[str, Any]:
    """Make JSON of a report; exact ticks stay exact as text such as "125/32"."""
    return {
        name: str(value) if isinstance(value, Fraction) else value for name, value in dataclasses.asdict(report).items()
    }


def _print_report(report: EventReport) -> None:
    table = Table(title=plain(Path(report.path).name), show_header=False, title_justify="left")
    for name, value in _rows(report):
        table.add_row(name, plain(value))
    for anomaly in report.anomalies or ("none found",):
        table.add_row("anomaly" if report.anomalies else "anomalies", plain(anomaly))
    out.print(table)


def _rows(report: EventReport) -> Iterator[tuple[str, str]]:
    yield "format", f"{report.format} ({FORMATS[report.format].description})"
    if "record_type" in report.header:
        yield "record type", str(report.header["record_type"])
    yield "tick", _exact(report.tick_ps)
    if report.fine_tick_ps is not None:
        yield "fine tick", _exact(report.fine_tick_ps)
    yield "records", f"{report.records:,}"
    yield "overflow records", f"{report.overflow_records:,}"
    yield "events", f"{report.events:,}"
    for kind, count in report.kinds.items():
        yield f"  {kind}", f"{count:,}"
    for channel, count in report.channels.items():
        yield f"  channel {channel}{' (sync)' if channel == 0 else ''}", _counted(count, report)
    for pattern, count in report.pattern_records.items():
        yield f"  pattern {pattern:04b}", f"{count:,} records"
    if report.first_ticks is not None:
        yield "first, last", f"{report.first_ticks:,} … {report.last_ticks:,} ticks"
    yield "duration", f"{report.duration_s:.9g} s"
    yield "rate", f"{report.rate_hz:,.1f} photons/s"
    yield "steps back in time", f"{report.backward_steps:,} ({report.backward_steps_with_dummies:,} with dummies)"
    if report.backward_steps_with_dummies and report.fine_tick_ps is None:
        yield "largest step back", _exact(report.largest_step_back_ticks * report.tick_ps)
    yield "repeated events", f"{report.repeated_events:,}"


def _exact(tick_ps: Fraction) -> str:
    return f"{tick_ps} ps" + ("" if tick_ps.denominator == 1 else f" = {float(tick_ps):.9g} ps")


def _counted(count: int, report: EventReport) -> str:
    return f"{count:,}" + (f"  ({count / report.duration_s:,.1f} /s)" if report.duration_s else "")

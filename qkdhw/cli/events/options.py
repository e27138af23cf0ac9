"""What the commands of `qkdhw events` have in common: their arguments, progress, and where they may write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qkdhw.bench.clocks import on_clock_of, read_clock
from qkdhw.bench.ordered import OrderedEvents
from qkdhw.cli.console import err, out, plain
from qkdhw.errors import ConfigurationError
from qkdhw.formats import FORMATS, EventFile, open_events
from qkdhw.model import DetectionBlock

REMEDY_TICKS = "Give whole numbers of ticks; `qkdhw events info` says how long a tick is."
_LONGEST_NUMBER = 40


def complete_format(incomplete: str) -> list[tuple[str, str]]:
    """List the formats that begin so, or the options of the one that is named, for a shell."""
    known, colon = FORMATS.get(incomplete.partition(":")[0]), incomplete.rfind(":") + 1
    if known and colon:
        said = [(f"{incomplete[:colon]}{option.name}=", option.help) for option in known.options]
    else:
        said = [(name, known.description) for name, known in FORMATS.items()]
    return [(text, what) for text, what in said if text.startswith(incomplete)]


FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File of detection events.")]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of FILE, with options such as idq:channel=3 (see `formats`); found from its content if not given.",
        autocompletion=complete_format,
    ),
]
FormatsOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of all event files, with options (see `formats`); found from their content if not given.",
        autocompletion=complete_format,
    ),
]
OutFormatOption = Annotated[
    str | None,
    typer.Option(
        "--out-format",
        help="Format of OUT, with options (see `formats`); taken from its name if not given.",
        autocompletion=complete_format,
    ),
]
TolerantOption = Annotated[
    bool, typer.Option("--tolerant", help="Read what is whole in a damaged file, and count the rest.")
]


def picoseconds(text: str | Fraction) -> Fraction:
    """Read an exact time: 12, 12.5 or 25/2."""
    try:
        return Fraction(text if len(str(text)) <= _LONGEST_NUMBER and "e" not in str(text).lower() else "")
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(f"{text!r} is no number of picoseconds, such as 81, 12.5 or 25/2") from error


OtherArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[OTHER]", help="Second file, of the same clock or with --clock; its channel 1 is 101, and so on."
    ),
]
OrderingOption = Annotated[
    Fraction,
    typer.Option(
        "--order-within", metavar="PS", parser=picoseconds, help="Put events right that are out of order by so much."
    ),
]
SkewOption = Annotated[
    list[str] | None,
    typer.Option("--skew", metavar="CHANNEL=PS", help="Take so much off the times of a channel; may be repeated."),
]

ClockOption = Annotated[
    Path | None,
    typer.Option(
        "--clock",
        metavar="CLOCK",
        help="Put OTHER on FILE's clock, each time rounded to a tick: by what `align FILE OTHER --out CLOCK` wrote.",
    ),
]


def skews(given: list[str]) -> dict[int, Fraction]:
    """Read skews by channel.

    Raises:
        ConfigurationError: One is not CHANNEL=PS.
    """
    found = {}
    for text in given:
        channel, equals, skew = text.partition("=")
        if not (equals and channel.isdecimal() and len(channel) <= 3):
            raise ConfigurationError(f"--skew {text!r} is not CHANNEL=PS", remedy="For example --skew 2=350")
        try:
            found[int(channel)] = picoseconds(skew)
        except typer.BadParameter as error:
            raise ConfigurationError(f"--skew {text!r}: {error}", remedy="For example --skew 2=350") from error
    return found


class RateColumn(ProgressColumn):
    """How many records a second are read."""

    def render(self, task: Task) -> Text:
        """Show the rate, or nothing before there is one."""
        return Text(f"{task.speed / 1e6:,.1f} M/s" if task.speed else "", style="progress.data.speed")


def with_progress(source: EventFile, what: str) -> Iterator[DetectionBlock]:
    """Pass the blocks on and show how far the file is; nothing is shown unless a person looks on."""
    columns = (TextColumn("{task.description}"), BarColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(f"{what} {source.path.name}", total=source.records_expected)
        for block in source.read_blocks():
            progress.update(task, completed=source.tally.records)
            yield block


def check_out(file: Path, out_file: Path, *, force: bool) -> None:
    """Refuse to write over the events that are read, and over another file unless that is asked for."""
    exists = out_file.exists()
    if file.resolve() == out_file.resolve() or (exists and file.exists() and file.samefile(out_file)):
        raise ConfigurationError(f"{file} and {out_file} are the same file", remedy="Give OUT another name.")
    if (exists or out_file.is_symlink()) and not force:
        raise ConfigurationError(
            f"{out_file} exists already", remedy="Give OUT another name, or replace it with --force."
        )


def ordered_events(
    file: Path,
    other: Path | None,
    ordering_ps: Fraction,
    skew: list[str],
    format_name: str | None,
    *,
    tolerant: bool,
    common_of: Sequence[int] = (),
    clock: Path | None = None,
) -> OrderedEvents:
    """Open one or two files whose events come in time order, and show how far they are read."""
    files = [open_events(path, format_name, tolerant=tolerant) for path in (file, other) if path is not None]
    if clock is not None:
        if len(files) < 2:
            raise ConfigurationError("--clock belongs to two files", remedy="Give FILE and OTHER.")
        files[1] = on_clock_of(files[0], files[1], read_clock(clock))
    return OrderedEvents(
        files,
        ordering_window_ps=ordering_ps,
        skew_ps=skews(skew),
        follow=lambda f: with_progress(f, "reading"),
        common_of=common_of,
    )


def channel_list(text: str) -> list[int]:
    """Read channels such as 1,2.

    Raises:
        ConfigurationError: They are none.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"{text!r} are no channels", remedy="For example --channels 1,2") from error


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print a table of names and numbers."""
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:,.6g}")
    out.print(table)


def say_written(path: Path | None, *, as_json: bool = False) -> None:
    """Say where something was written."""
    if path is not None and not as_json:
        out.print(plain(f"written: {path}"), soft_wrap=True)

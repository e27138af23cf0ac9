"""What the commands of `qkdhw events` have in common: their arguments, progress, and where they may write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from qkdhw.cli.console import err
from qkdhw.errors import ConfigurationError
from qkdhw.formats import FORMATS, EventFile
from qkdhw.model import DetectionBlock


def complete_format(incomplete: str) -> list[tuple[str, str]]:
    """List the formats that begin so, for a shell."""
    return [(name, known.description) for name, known in FORMATS.items() if name.startswith(incomplete)]


FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File of detection events.")]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format", help="Format of FILE; found from its content if not given.", autocompletion=complete_format
    ),
]
TolerantOption = Annotated[
    bool, typer.Option("--tolerant", help="Read what is whole in a damaged file, and count the rest.")
]


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

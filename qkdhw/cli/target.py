"""Which unit a command is about: a driver's name and an address, or a unit of a bench file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from qkdhw.bench import BenchFile, open_bench_unit, read_bench_file
from qkdhw.drivers import installed_drivers, open_unit


def _complete_name(incomplete: str) -> list[str]:
    return [name for name in installed_drivers() if name.startswith(incomplete)]


NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Driver name, as `qkdhw devices list` shows it; with --bench the unit's name in the file.",
        autocompletion=_complete_name,
    ),
]
UrlArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="URL", help="Address, such as tcp://host:port or serial:///dev/NAME?baud=N; none with --bench."
    ),
]
BenchOption = Annotated[
    Path | None, typer.Option("--bench", metavar="FILE", help="The unit of this name in a bench file, without a URL.")
]
LONGEST_S = 3600.0  # of anything on the command line
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=LONGEST_S, help="Longest wait.")
]


@dataclass(frozen=True, slots=True)
class Target:
    """A unit to open.

    Attributes:
        name: Driver name.
        url: Address.
        title: What to call it when printing.
        options: What its driver takes.
        bench: The bench file that it is of, or None.
        label: Its name there, or "".
    """

    name: str
    url: str
    title: str
    options: dict[str, Any] = field(default_factory=dict)
    bench: BenchFile | None = None
    label: str = ""

    def open(self, timeout_s: float) -> AbstractContextManager[Any]:
        """Open it; of a bench it must be the one that the file names. Its settings stay as they are."""
        if self.bench is not None:
            return open_bench_unit(self.bench, self.label, timeout_s=timeout_s)
        unit: AbstractContextManager[Any] = open_unit(self.name, self.url, timeout_s=timeout_s)
        return unit


def target_of(
    name: str, url: str | None, bench: Path | None, further: Sequence[str] | None = None
) -> tuple[Target, list[str]]:
    """Return which unit is meant, and the further arguments: with --bench they begin where else the URL stands.

    Raises:
        ConfigurationError: The bench file cannot be read, or has no such unit.
        typer.BadParameter: There is no URL.
    """
    rest = list(further or ())
    if bench is None:
        if url is None:
            raise typer.BadParameter("Missing argument 'URL' (or --bench FILE and a unit's name in it).")
        return Target(name, url, f"{name} at {url}"), rest
    file = read_bench_file(bench)
    unit = file.unit(name)
    title = f"{name}: {unit.name} at {unit.url}"
    return Target(unit.name, unit.url, title, dict(unit.options), file, name), [*([url] if url else []), *rest]

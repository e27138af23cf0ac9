"""Figures of `qkdhw events`: written as PNG, SVG or PDF, or shown in a window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkdhw.errors import ConfigurationError
from qkdhw.formats.atomic import write_whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#9d755d")

PlotOption = Annotated[
    Path | None, typer.Option("--plot", metavar="PLOT", help="Draw it into this file: *.png, *.svg or *.pdf.")
]
ShowOption = Annotated[bool, typer.Option("--show", help="Draw it in a window.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]


def check_figure(plot: Path | None, *, show: bool = False, force: bool = False) -> None:
    """Find out before any work whether a figure can be drawn and where it goes.

    Raises:
        ConfigurationError: matplotlib is not installed, PLOT exists or cannot be drawn, or no window can be opened.
    """
    if plot is None and not show:
        return
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("plots need matplotlib", remedy='pip install "qkdhw[plot]"') from error
    if plot is not None and plot.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(f"{plot} is no {', '.join(SUFFIXES)}", remedy="Give the plot one of these endings.")
    if plot is not None and (plot.exists() or plot.is_symlink()) and not force:
        raise ConfigurationError(f"{plot} exists already", remedy="Give it another name, or replace it with --force.")
    if show:
        import matplotlib.pyplot as plt

        if plt.get_backend().lower() == "agg":
            raise ConfigurationError("no window can be opened here", remedy="Draw into a file with --plot FILE.png.")


@contextmanager
def figure(plot: Path | None, *, show: bool = False) -> Iterator[Figure]:
    """Give a figure to draw on, then write it or show it, or both; check with `check_figure` before."""
    from matplotlib.figure import Figure as FileFigure

    if show:
        import matplotlib.pyplot as plt

        drawn: Figure = plt.figure(figsize=(8.0, 5.0), layout="constrained")
    else:
        drawn = FileFigure(figsize=(8.0, 5.0), layout="constrained")
    yield drawn
    if plot is not None:
        data = BytesIO()
        drawn.savefig(data, format=plot.suffix[1:].lower(), dpi=150)
        with write_whole_file(plot, private=False) as file:
            file.write(data.getvalue())
    if show:
        plt.show()
        plt.close(drawn)

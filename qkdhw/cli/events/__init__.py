"""`qkdhw events`: record detection events, look at files of them, convert and analyse them."""

from __future__ import annotations

import typer

from qkdhw.cli.events import coincidences, delays, files, looks, periods, sites

app = typer.Typer(
    help="Record detection events, look at files of them, convert and analyse them.", no_args_is_help=True
)
for command in (
    files.info, files.convert, files.record, files.formats, looks.plot,
    periods.histogram, delays.correlate, delays.g2, coincidences.coincidences,
    sites.align, sites.sift, sites.process,
):  # fmt: skip
    app.command()(command)

"""`qkdhw events`: record detection events, look at files of them, convert and analyse them."""

from __future__ import annotations

import signal
import sys
import threading

import typer

from qkdhw.cli.events import clocks, coincidences, delays, files, looks, periods, sites

app = typer.Typer(
    help="Record detection events, look at files of them, convert and analyse them.", no_args_is_help=True
)


@app.callback()
def _end_in_order() -> None:
    """End by an exception when told to end, so that no half-written file, which is raw key, is left behind."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


for command in (
    files.info, files.convert, files.record, files.formats, looks.plot,
    periods.histogram, delays.correlate, delays.g2, coincidences.coincidences,
    clocks.align, sites.sift, sites.process,
):  # fmt: skip
    app.command()(command)

"""`qkdhw events plot`: what people look at first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qkdhw.bench.curves import EventCurves
from qkdhw.cli.console import JsonOption, out, plain, print_json
from qkdhw.cli.events.figures import COLOURS, ForceOption, ShowOption, check_figure, figure
from qkdhw.cli.events.options import FileArgument, FormatOption, TolerantOption, with_progress
from qkdhw.errors import ConfigurationError
from qkdhw.formats import open_events


def plot(
    file: FileArgument,
    plot_file: Annotated[
        Path | None, typer.Argument(metavar="[PLOT]", help="File to draw into: *.png, *.svg or *.pdf.")
    ] = None,
    format_name: FormatOption = None,
    tolerant: TolerantOption = False,
    show: ShowOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw the rate over time and the intervals between clicks of each channel of a file."""
    if plot_file is None and not show:
        raise ConfigurationError("nowhere to draw", remedy="Name a file such as rates.png, or give --show.")
    check_figure(plot_file, show=show, force=force)
    source = open_events(file, format_name, tolerant=tolerant)
    curves = EventCurves(source.tick_ps)
    for block in with_progress(source, "reading"):
        curves.add(block)
    if not curves.channels:
        raise ConfigurationError(f"{file} has no photons", remedy="`qkdhw events info` says what is in it.")
    with figure(plot_file, show=show) as drawn:
        rates, intervals = drawn.subplots(2, 1)
        middle_ps = np.sqrt(curves.interval_edges_ps[:-1] * curves.interval_edges_ps[1:])
        seen = np.flatnonzero(sum(curves.intervals(channel) for channel in curves.channels))
        for number, channel in enumerate(curves.channels):
            colour, rate_hz = COLOURS[number % len(COLOURS)], curves.rates_hz(channel)
            time_s = np.arange(len(rate_hz)) * curves.bin_s
            rates.step(time_s, rate_hz, where="post", color=colour, label=f"channel {channel}")
            intervals.plot(middle_ps, curves.intervals(channel), drawstyle="steps-mid", color=colour)
        rates.set(xlabel="time / s", ylabel="photons / s", title=Path(source.path).name)
        rates.set_ylim(bottom=0)
        rates.legend()
        intervals.set(xscale="log", yscale="log", xlabel="interval / ps", ylabel="intervals in a bin")
        if len(seen):
            intervals.set_xlim(middle_ps[seen[0]] / 2, middle_ps[seen[-1]] * 2)
    if as_json:
        mean = {channel: float(curves.rates_hz(channel).mean()) for channel in curves.channels}
        print_json({"plot": plot_file, "bin_s": curves.bin_s, "mean_rate_hz": mean})
    elif plot_file is not None:
        out.print(plain(f"drawn into {plot_file}"), soft_wrap=True)

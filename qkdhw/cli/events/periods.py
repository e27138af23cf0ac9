"""`qkdhw events histogram`: when photons come within a period."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from qkdhw.bench.ordered import OrderedEvents
from qkdhw.cli.console import JsonOption, out, print_json
from qkdhw.cli.events.figures import COLOURS, ForceOption, PlotOption, ShowOption, check_figure, figure
from qkdhw.cli.events.options import (
    FileArgument,
    FormatOption,
    OrderingOption,
    TolerantOption,
    channel_list,
    picoseconds,
    say_written,
    with_progress,
)
from qkdhw.errors import ConfigurationError
from qkdhw.events.delays import ArrivalHistogram, even_bins
from qkdhw.formats import EventFile, open_events
from qkdhw.model import DetectionBlock, EventKind


def histogram(
    file: FileArgument,
    period_ps: Annotated[
        Fraction | None,
        typer.Option("--period", metavar="PS", parser=picoseconds, help="Period, exact: 12513, 12512.5 or 25025/2."),
    ] = None,
    bins: Annotated[
        int | None,
        typer.Option(
            "--bins", min=1, max=1 << 20, help="Bins of a period; if not given about 256 that hold as many ticks each."
        ),
    ] = None,
    channels: Annotated[str | None, typer.Option("--channels", help="Channels such as 1,2; all if not given.")] = None,
    ordering_ps: OrderingOption = Fraction(0),
    format_name: FormatOption = None,
    tolerant: TolerantOption = False,
    plot: PlotOption = None,
    show: ShowOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Histogram of arrival times within a period, exact over any length; of a T3 file, of the times since the sync."""
    check_figure(plot, show=show, force=force)
    source = open_events(file, format_name, tolerant=tolerant)
    wanted = channel_list(channels) if channels else range(256)
    if period_ps is None and source.fine_tick_ps is None:
        raise ConfigurationError("--period is missing", remedy="Say within what period, in picoseconds.")
    if period_ps is not None and source.fine_tick_ps is not None:
        raise ConfigurationError(
            f"{file} is a start-stop (T3) measurement: its times count syncs", remedy="Leave out --period."
        )
    counts, even, width_ps = _arrivals(source, period_ps, bins, wanted, ordering_ps)
    if not counts:
        raise ConfigurationError(f"{file} has no photons on these channels", remedy="See `qkdhw events info`.")
    if plot or show:
        with figure(plot, show=show) as drawn:
            axes = drawn.subplots()
            for number, (channel, counted) in enumerate(even.items()):
                colour = COLOURS[number % len(COLOURS)]
                axes.step(np.arange(len(counted)) * width_ps, counted, color=colour, label=f"channel {channel}")
            since = "since the sync" if period_ps is None else "in the period"
            axes.set(xlabel=f"time {since} / ps", ylabel=f"photons in {width_ps:g} ps", title=file.name)
            axes.legend()
    if as_json:
        lists = {c: [n if math.isfinite(n) else None for n in each.tolist()] for c, each in even.items()}
        print_json(
            {"bin_ps": width_ps, "counts": {c: n.tolist() for c, n in counts.items()}, "counts_of_even_bins": lists}
        )
        return
    table = Table("channel", "photons", "busiest bin / ps", "photons in it", "in the median bin")
    for channel, per_bin in counts.items():
        best = int(np.nanargmax(even[channel]))
        cells = (
            channel,
            f"{per_bin.sum():,}",
            f"{best * width_ps:,.1f}",
            f"{per_bin[best]:,}",
            f"{np.nanmedian(even[channel]):g}",
        )
        table.add_row(*map(str, cells))
    out.print(table)
    say_written(plot)


def _arrivals(
    source: EventFile, period_ps: Fraction | None, bins: int | None, channels: Sequence[int], ordering_ps: Fraction
) -> tuple[dict[int, NDArray[np.int64]], dict[int, NDArray[np.float64]], float]:
    """Return counts by channel, the same as if all bins held as many ticks, and the width of a bin in picoseconds."""
    found: dict[int, Any] = {}
    if period_ps is None:
        by_channel: dict[int, NDArray[np.int64]] = {}
        for block in with_progress(source, "reading"):
            _add_fine_times(block, by_channel, channels)
        longest = max((len(counts) for counts in by_channel.values()), default=0)
        padded = {c: np.pad(counts, (0, longest - len(counts))) for c, counts in sorted(by_channel.items())}
        return padded, {c: n.astype(np.float64) for c, n in padded.items()}, float(source.fine_tick_ps or 0)
    bins = even_bins(period_ps / source.tick_ps) if bins is None else bins
    follow = partial(with_progress, what="reading")
    try:
        for block in OrderedEvents([source], ordering_window_ps=ordering_ps, follow=follow):
            for channel in set(np.unique(block.channel[block.kind == EventKind.PHOTON]).tolist()) & set(channels):
                if channel not in found:
                    found[channel] = ArrivalHistogram(
                        channel, tick_ps=source.tick_ps, period_ticks=period_ps / source.tick_ps, n_bins=bins
                    )
                found[channel].feed(block)
    except ValueError as error:
        raise ConfigurationError(str(error), remedy="A period is a tick at least.") from error
    counts = {c: found[c].counts for c in sorted(found)}
    return counts, {c: found[c].even_counts for c in counts}, float(period_ps / bins)


def _add_fine_times(block: DetectionBlock, counts: dict[int, NDArray[np.int64]], channels: Sequence[int]) -> None:
    if block.fine_ticks is None:
        return
    photon = block.kind == EventKind.PHOTON
    for channel in set(np.unique(block.channel[photon]).tolist()) & set(channels):
        fresh = np.bincount(block.fine_ticks[photon & (block.channel == channel)])
        before = counts.get(channel, np.zeros(0, np.int64))
        total = np.zeros(max(len(before), len(fresh)), np.int64)
        total[: len(before)] += before
        total[: len(fresh)] += fresh
        counts[channel] = total

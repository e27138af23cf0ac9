"""`qkdhw events correlate` and `g2`: how events of two channels follow each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qkdhw.cli.console import JsonOption, out, print_json
from qkdhw.cli.events.figures import COLOURS, ForceOption, PlotOption, ShowOption, check_figure, figure
from qkdhw.cli.events.options import (
    ClockOption,
    FileArgument,
    FormatsOption,
    OrderingOption,
    OtherArgument,
    SkewOption,
    TolerantOption,
    ordered_events,
    picoseconds,
    print_facts,
    say_written,
)
from qkdhw.errors import ConfigurationError
from qkdhw.events.delays import DelayHistogram, SecondOrderCorrelation, second_order_correlation
from qkdhw.events.merging import whole_ticks

_REMEDY = "Give a --bin of whole ticks (see `qkdhw events info`), wider, or a shorter --range, if bins are too many."
ENOUGH_EXPECTED = 20  # pairs in a bin by chance: then g2 is told to a quarter
StartOption = Annotated[int, typer.Option("--start", metavar="CHANNEL", help="Channel of the start events.")]
StopOption = Annotated[int, typer.Option("--stop", metavar="CHANNEL", help="Channel of the stop events.")]
BinOption = Annotated[
    Fraction | None,
    typer.Option("--bin", metavar="PS", parser=picoseconds, help="Width of a bin; if not given a 1,000th of --range."),
]
RangeOption = Annotated[
    Fraction, typer.Option("--range", metavar="PS", parser=picoseconds, help="Delays of up to so much, of both signs.")
]


def correlate(
    file: FileArgument,
    other: OtherArgument = None,
    clock: ClockOption = None,
    start: StartOption = 1,
    stop: StopOption = 2,
    range_ps: RangeOption = Fraction(10_000),
    bin_ps: BinOption = None,
    ordering_ps: OrderingOption = Fraction(0),
    skew: SkewOption = None,
    format_name: FormatsOption = None,
    tolerant: TolerantOption = False,
    plot: PlotOption = None,
    show: ShowOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Histogram of the delays from every start to every stop: counts."""
    check_figure(plot, show=show, force=force)
    delays = _delays(
        _Pair(file, other, clock, start, stop, range_ps, bin_ps, ordering_ps, skew or [], format_name, tolerant)
    )
    result = second_order_correlation(delays)
    if plot or show:
        with figure(plot, show=show) as drawn:
            axes = drawn.subplots()
            axes.step(result.delay_ps, result.counts, where="mid", color=COLOURS[0])
            axes.set(xlabel=f"channel {stop} - channel {start} / ps", ylabel="pairs in a bin", title=file.name)
    _print_delays(result, delays, as_json=as_json)
    say_written(plot, as_json=as_json)


def g2(
    file: FileArgument,
    other: OtherArgument = None,
    clock: ClockOption = None,
    start: StartOption = 1,
    stop: StopOption = 2,
    range_ps: RangeOption = Fraction(100_000),
    bin_ps: BinOption = None,
    ordering_ps: OrderingOption = Fraction(0),
    skew: SkewOption = None,
    format_name: FormatsOption = None,
    tolerant: TolerantOption = False,
    plot: PlotOption = None,
    show: ShowOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Second-order correlation g2 of two channels, or of one with itself, with Poissonian errors.

    Of two files, what both cover counts.
    """
    check_figure(plot, show=show, force=force)
    pair = _Pair(file, other, clock, start, stop, range_ps, bin_ps, ordering_ps, skew or [], format_name, tolerant)
    delays = _delays(pair, normalised=True)
    result = second_order_correlation(delays)
    if plot or show:
        with figure(plot, show=show) as drawn:
            axes = drawn.subplots()
            low, high = result.g2 - result.g2_error, result.g2 + result.g2_error
            axes.fill_between(result.delay_ps, low, high, step="mid", alpha=0.3, color=COLOURS[0], linewidth=0)
            axes.step(result.delay_ps, result.g2, where="mid", color=COLOURS[0])
            axes.axhline(1.0, color="0.5", linewidth=0.8)
            axes.set(xlabel=f"channel {stop} - channel {start} / ps", ylabel="g2", title=file.name)
            axes.set_ylim(bottom=0.0)
    _print_delays(result, delays, normalised=True, as_json=as_json)
    say_written(plot, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two channels of one or two files, and how their delays are counted."""

    file: Path
    other: Path | None
    clock: Path | None
    start: int
    stop: int
    range_ps: Fraction
    bin_ps: Fraction | None
    ordering_ps: Fraction
    skew: list[str]
    format_name: str | None
    tolerant: bool


def _delays(pair: _Pair, *, normalised: bool = False) -> DelayHistogram:
    events = ordered_events(
        pair.file,
        pair.other,
        pair.ordering_ps,
        pair.skew,
        pair.format_name,
        tolerant=pair.tolerant,
        clock=pair.clock,
        common_of=(pair.start, pair.stop) if normalised else (),
    )
    tick_ps = events.tick_ps
    try:
        usual = max(1, round(pair.range_ps / 1000 / tick_ps))
        width = usual if pair.bin_ps is None else whole_ticks(pair.bin_ps, tick_ps)
        half = max(0, math.ceil(pair.range_ps / (width * tick_ps))) if width else 0
        delays = DelayHistogram(
            pair.start, pair.stop, tick_ps=tick_ps, bin_width_ticks=width, n_bins=2 * half + 1,
            first_delay_ticks=-half * width - width // 2,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigurationError(str(error), remedy=_REMEDY) from error
    for block in events:
        delays.feed(block)
    delays.flush()
    for name, channel, n in (("--start", pair.start, delays.n_start), ("--stop", pair.stop, delays.n_stop)):
        if not n:
            raise ConfigurationError(
                f"channel {channel} has no photons", remedy=f"Choose {name} by `qkdhw events info`."
            )
    return delays


def _print_delays(
    result: SecondOrderCorrelation, delays: DelayHistogram, *, normalised: bool = False, as_json: bool
) -> None:
    best = int(np.argmax(result.counts))
    facts: dict[str, Any] = {
        "start_events": delays.n_start,
        "stop_events": delays.n_stop,
        "duration_s": result.duration_s,
        "bin_ps": float(delays.bin_width_ticks * delays.tick_ps),
        "pairs": int(result.counts.sum()),
        "largest_delay_ps": float(result.delay_ps[best]),
        "largest_counts": int(result.counts[best]),
    }
    if normalised:
        facts |= {"largest_g2": float(result.g2[best]), "expected_in_a_bin": float(np.median(result.expected))}
    if as_json:
        lists = {"delay_ps": result.delay_ps, "counts": result.counts}
        if normalised:
            lists |= {
                name: np.where(np.isfinite(v), v, 0.0) for name, v in (("g2", result.g2), ("g2_error", result.g2_error))
            }
        print_json(facts | {name: values.tolist() for name, values in lists.items()})
        return
    print_facts(facts)
    expected = float(np.median(result.expected))
    if normalised and 0 < expected < ENOUGH_EXPECTED:
        width_ps = math.ceil(ENOUGH_EXPECTED / expected * delays.bin_width_ticks) * delays.tick_ps
        span_ps = len(result.counts) * delays.bin_width_ticks * delays.tick_ps
        wider = f"--bin {width_ps} would have {ENOUGH_EXPECTED}" + (
            f", with a longer --range, such as {10 * width_ps}" if 10 * width_ps > span_ps else ""
        )
        out.print(f"{expected:.2g} pairs are expected in a bin by chance: {wider}", highlight=False, soft_wrap=True)

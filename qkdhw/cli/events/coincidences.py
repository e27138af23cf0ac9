"""`qkdhw events coincidences`: events of two or more channels at the same time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from qkdhw.bench.ordered import OrderedEvents
from qkdhw.cli.console import JsonOption, out, print_json
from qkdhw.cli.events.figures import ForceOption
from qkdhw.cli.events.options import (
    REMEDY_TICKS,
    ClockOption,
    FileArgument,
    FormatsOption,
    OrderingOption,
    OtherArgument,
    SkewOption,
    TolerantOption,
    channel_list,
    ordered_events,
    picoseconds,
    print_facts,
    say_written,
)
from qkdhw.errors import ConfigurationError
from qkdhw.events.coincidences import CoincidenceFinder, CoincidenceStatistics, CoincidenceWindow
from qkdhw.formats.atomic import write_whole_file

_DELAYED = 10
_DELAY_PS = 10_000_000  # of the first delayed window


def coincidences(
    file: FileArgument,
    other: OtherArgument = None,
    clock: ClockOption = None,
    channels: Annotated[
        str, typer.Option("--channels", help="Two to sixteen channels, such as 1,2 or 1,2,103.")
    ] = "1,2",
    window_ps: Annotated[
        Fraction, typer.Option("--window", metavar="PS", parser=picoseconds, help="Full width of the window.")
    ] = Fraction(2000),
    centre_ps: Annotated[
        Fraction, typer.Option("--centre", metavar="PS", parser=picoseconds, help="Delay at the window's middle.")
    ] = Fraction(0),
    delayed: Annotated[
        int, typer.Option("--delayed", min=0, max=1000, help="Delayed windows that estimate the accidentals.")
    ] = _DELAYED,
    one_partner: Annotated[
        bool, typer.Option("--one-partner", help="An event is in one coincidence at most, not in all that fit.")
    ] = False,
    ordering_ps: OrderingOption = Fraction(0),
    skew: SkewOption = None,
    format_name: FormatsOption = None,
    tolerant: TolerantOption = False,
    table_file: Annotated[
        Path | None, typer.Option("--out", metavar="CSV", help="Write the times of all coincidences in ticks.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Count coincidences of two or more channels, and estimate the accidental ones by delayed windows."""
    if table_file is not None and (table_file.exists() or table_file.is_symlink()) and not force:
        raise ConfigurationError(f"{table_file} exists already", remedy="Replace it with --force.")
    events = ordered_events(file, other, ordering_ps, skew or [], format_name, tolerant=tolerant, clock=clock)
    wanted = channel_list(channels)
    if not 2 <= len(wanted) <= 16 or len(set(wanted)) < len(wanted):
        raise ConfigurationError(
            f"a coincidence has 2 to 16 different channels, not {channels}", remedy="For example --channels 1,2"
        )
    try:
        window = CoincidenceWindow.around(window_ps, events.tick_ps, centre_ps=centre_ps)
        step = math.ceil(_DELAY_PS / events.tick_ps) + window.high_ticks - window.low_ticks
        finder = CoincidenceFinder(
            wanted,
            window,
            events.tick_ps,
            one_partner=one_partner,
            accidental_delays_ticks=[step * k for k in range(1, delayed + 1)],
            collect=table_file is not None,
        )
    except ValueError as error:
        raise ConfigurationError(str(error), remedy=REMEDY_TICKS) from error
    if table_file is None:
        for _ in _coincident(finder, events):
            pass
    else:
        with write_whole_file(table_file) as written:
            written.write((",".join(f"channel_{channel}_ticks" for channel in wanted) + "\n").encode())
            for rows in _coincident(finder, events):
                np.savetxt(written, rows, "%d", ",")
    _print_coincidences(finder.statistics, wanted, window, events.tick_ps, as_json=as_json)
    say_written(table_file, as_json=as_json)


def _coincident(finder: CoincidenceFinder, events: OrderedEvents) -> Iterator[NDArray[np.int64]]:
    for block in events:
        yield finder.feed(block).time_ticks
    yield finder.flush().time_ticks


def _print_coincidences(
    counted: CoincidenceStatistics,
    channels: Sequence[int],
    window: CoincidenceWindow,
    tick_ps: Fraction,
    *,
    as_json: bool,
) -> None:
    facts: dict[str, Any] = {f"singles_{c}": n for c, n in zip(channels, counted.n_singles, strict=True)}
    facts |= {"window_ps": float((window.high_ticks - window.low_ticks + 1) * tick_ps)}
    facts |= {"coincidences": counted.n_coincidences}
    if counted.n_delayed:
        facts |= {
            "accidentals": counted.accidentals,
            "accidentals_error": counted.accidentals_error,
            "net_coincidences": counted.net_coincidences,
            "coincidences_to_accidentals": counted.coincidences_to_accidentals,
        }
    if as_json:
        print_json({n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in facts.items()})
        return
    print_facts(facts)
    for channel, n in zip(channels, counted.n_singles, strict=True):
        if not n:
            said = f"channel {channel} has no photons: `qkdhw events info` says which channels have"
            out.print(said, highlight=False, soft_wrap=True)

"""`qkdhw events align`: the clock of one site's file in terms of the other's, and what to do with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from qkdhw.bench.clocks import align_files
from qkdhw.cli.console import JsonOption, err, out, print_json
from qkdhw.cli.events.figures import ForceOption
from qkdhw.cli.events.options import FormatsOption, TolerantOption, check_out, print_facts, say_written
from qkdhw.errors import ConfigurationError
from qkdhw.events.pair_alignment import MAX_OFFSET_S, RESOLUTION_PS
from qkdhw.formats import EventFile, open_events
from qkdhw.formats.atomic import write_whole_file
from qkdhw.model import DetectionBlock
from qkdhw.quantities import PS_PER_S

MAX_PPM = 20.0
_LONGEST_NUMBER = 40
_LONGEST_S = 10**12


def seconds_of(text: str | Fraction) -> Fraction:
    """Read an exact time in seconds: 40, -7200.5 or 1/3."""
    try:
        value = Fraction(text if len(str(text)) <= _LONGEST_NUMBER and "e" not in str(text).lower() else "")
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(f"{text!r} is no number of seconds, such as 40 or -7200.5") from error
    if abs(value) > _LONGEST_S:
        raise typer.BadParameter(f"{text} seconds are more than {_LONGEST_S}")
    return value


OffsetOption = Annotated[
    Fraction | None,
    typer.Option(
        "--offset",
        metavar="SECONDS",
        parser=seconds_of,
        help="About how much later the second file's clock reads, within --max-offset. If not given 0, and where the "
        "files have no times in common what their first events say.",
    ),
]
MaxOffsetOption = Annotated[
    float,
    typer.Option(
        "--max-offset", metavar="SECONDS", min=1e-9, max=1e6, help="How far from --offset the clocks may be apart."
    ),
]
MaxPpmOption = Annotated[
    float,
    typer.Option(
        "--max-ppm",
        min=0.0,
        max=1000.0,
        help="Largest difference of the clocks' rates that is searched; one a little beyond is found and told as well.",
    ),
]


def align(
    a: Annotated[Path, typer.Argument(metavar="A", help="Events of one site.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Events of the other, by a clock of its own.")],
    seconds: Annotated[float, typer.Option("--seconds", min=0.001, help="How much of each file is read.")] = 4.0,
    offset_s: OffsetOption = None,
    max_offset_s: MaxOffsetOption = MAX_OFFSET_S,
    max_ppm: MaxPpmOption = MAX_PPM,
    resolution_ps: Annotated[
        float, typer.Option("--resolution", metavar="PS", min=1.0, help="Finest bin: about as wide as the jitter.")
    ] = RESOLUTION_PS,
    format_name: FormatsOption = None,
    tolerant: TolerantOption = False,
    clock_file: Annotated[
        Path | None,
        typer.Option("--out", metavar="CLOCK", help="Write what --json prints, for --clock of correlate and others."),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the clock of B in terms of A's from the photon pairs that the two sites share.

    The offset is B's time less A's at the first event of A; the relative rate is above 0 where B's clock is the faster.
    Significance is that of the final peak, and of the coarse search before it, in Gaussian standard deviations.
    """
    if not math.isfinite(seconds):
        raise ConfigurationError(f"{seconds} is no number of seconds to read", remedy="For example 4.")
    if clock_file is not None:
        check_out(a, clock_file, force=force)
        check_out(b, clock_file, force=force)
    first, second = (open_events(path, format_name, tolerant=tolerant) for path in (a, b))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        waiting = [first.path, second.path]
        reading = {path: progress.add_task(f"reading {path.name}", total=seconds, start=False) for path in waiting}

        def follow(file: EventFile) -> Iterator[DetectionBlock]:
            """Pass the blocks on and show how much of what is asked for is read, and how fast; then the search."""
            task, events, begin = reading[file.path], 0, None
            progress.start_task(task)
            try:
                for block in file.read_blocks():
                    events += len(block)
                    begin = int(block.time_ticks[0]) if begin is None else begin
                    read_s = float((int(block.time_ticks[-1]) - begin) * file.tick_ps / PS_PER_S)
                    spent_s = progress.tasks[task].elapsed
                    rate = f", {events / spent_s / 1e6:,.1f} M/s" if spent_s else ""
                    said = f"{file.path.name}: {events:,} events{rate}"
                    progress.update(task, completed=min(seconds, read_s), description=said)
                    yield block
            finally:
                waiting.remove(file.path)
                progress.stop_task(task)
                if not waiting:
                    progress.add_task("searching for the clock", total=None)

        found = align_files(
            first, second, seconds=seconds, offset_s=offset_s, max_offset_s=max_offset_s, max_ppm=max_ppm,
            resolution_ps=resolution_ps, follow=follow,
        )  # fmt: skip
    if clock_file is not None:
        with write_whole_file(clock_file) as file:
            file.write((json.dumps(found.as_dict(), indent=2) + "\n").encode())
    if as_json:
        print_json(found.as_dict())
        return
    print_facts(found.numbers | {"offset_ps": round(found.clock.offset_ps)})
    if found.guess.source == "first events":
        said = (
            f"no --offset was given and the files have no times in common: their beginnings, "
            f"{float(found.guess.offset_s):.6g} s apart, were taken for about the same moment; the peak was found near"
        )
        out.print(said, highlight=False, soft_wrap=True)
    say_written(clock_file)

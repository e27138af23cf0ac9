"""`qkdhw devices counts`: what a counter, a detector or a time tagger counts, once or live."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from qkdhw.cli.console import JsonOption, out, plain, print_json
from qkdhw.cli.target import LONGEST_S, BenchOption, NameArgument, TimeoutOption, UrlArgument, target_of
from qkdhw.errors import NotSupportedError
from qkdhw.interfaces import Counter, PhotonDetector, TimeTagger
from qkdhw.model import EventKind


def counts(
    name: NameArgument,
    url: UrlArgument = None,
    bench: BenchOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, until Ctrl-C or --count.")] = False,
    interval_s: Annotated[
        float,
        typer.Option(
            "--interval", metavar="SECONDS", min=0.05, max=LONGEST_S, help="How often; of a tagger also how long."
        ),
    ] = 1.0,
    count: Annotated[int, typer.Option(min=0, help="With --watch: how many times; 0 until Ctrl-C.")] = 0,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Count at each input: a detector's rates, a counter's counts of one gate, a tagger's rates from a short stream."""
    target, _ = target_of(name, url, bench)
    with target.open(timeout_s) as unit:
        if not watch:
            reading = _reading(unit, interval_s, timeout_s)
            if as_json:
                print_json(reading)
            else:
                out.print(_table(target.title, reading))
            return
        turns = _turns(unit, interval_s, timeout_s, count)
        if as_json:
            for reading in turns:
                sys.stdout.write(json.dumps(reading) + "\n")
                sys.stdout.flush()
            return
        with Live(console=out, auto_refresh=False) as live:
            for reading in turns:
                live.update(_table(target.title, reading), refresh=True)


def _turns(unit: Any, interval_s: float, timeout_s: float, count: int) -> Iterator[dict[str, Any]]:
    done = 0
    while not done or done != count:
        begun_s = time.monotonic()
        yield _reading(unit, interval_s, timeout_s)
        done += 1
        if done != count:
            time.sleep(max(0.0, interval_s - (time.monotonic() - begun_s)))


def _reading(unit: Any, interval_s: float, timeout_s: float) -> dict[str, Any]:
    """Return the count or the rate of each input, by what the unit can do."""
    if isinstance(unit, PhotonDetector):
        return {"rates_hz": _numbered(unit.read_count_rates_hz(timeout_s=timeout_s))}
    if isinstance(unit, Counter):
        return {"counts": _numbered(unit.read_counts())}
    if isinstance(unit, TimeTagger):
        return _streamed(unit, interval_s)
    raise NotSupportedError(
        f"{type(unit).__name__} counts nothing", remedy="name a counter, a photon detector or a time tagger"
    )


def _numbered(values: tuple[float, ...]) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values, 1)}


def _streamed(unit: TimeTagger, interval_s: float) -> dict[str, Any]:
    """Stream for a while; rates are by the unit's own clock, from its first event to its last."""
    photons = np.zeros(256, np.int64)
    first_ticks = last_ticks = None
    missed, span_s = 0, 0.0
    with unit.stream() as events:
        until_s = time.monotonic() + interval_s
        for block in events:
            photons += np.bincount(block.channel[block.kind == EventKind.PHOTON], minlength=256)
            missed += block.missed
            if len(block):
                last_ticks = int(block.time_ticks[-1])
                first_ticks = int(block.time_ticks[0]) if first_ticks is None else first_ticks
                span_s = float((last_ticks - first_ticks) * block.tick_ps / 10**12)
            if time.monotonic() >= until_s:
                break
    channels = sorted({*getattr(unit, "inputs", ()), *map(int, np.flatnonzero(photons))})
    rates_hz = {str(channel): int(photons[channel]) / (span_s or interval_s) for channel in channels}
    return {"rates_hz": rates_hz, "span_s": span_s, "missed": missed}


def _table(title: str, reading: dict[str, Any]) -> Group:
    kind = "counts" if "counts" in reading else "rates_hz"
    table = Table("input", "counts" if kind == "counts" else "rate")
    for channel, value in reading[kind].items():
        table.add_row(channel, f"{value:,}" if kind == "counts" else f"{value:,.1f} Hz")
    if reading.get("missed"):
        table.add_row("missed", f"{reading['missed']:,}")
    return Group(plain(title), table)

"""Record the events of a tagger into a file, with a snapshot of the bench beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qkdhw._core import tally
from qkdhw.errors import ConfigurationError
from qkdhw.formats import FORMATS, format_named, format_of_name, write_events
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.version import __version__

if TYPE_CHECKING:
    from qkdhw.bench.opened import Bench


PICOSECONDS = 10**12  # in a second
LOSSES = (EventKind.GAP_BEGIN, EventKind.GAP_END, EventKind.MISSED, EventKind.CLOCK_ERROR)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was recorded.

    Attributes:
        events: Events in the file.
        dummies_left_out: Dummies that the format has no place for.
        missed: Events that the unit said were lost, up to the last one written.
        gaps: Stretches without events that the unit, or the driver, said there were.
        shows_losses: Whether the file says where that was.
        unwritten_at_end: Photons and markers that had come when the time was over and are not in the file.
        duration_s: Wall-clock time.
        span_s: From the first to the last event by the unit's own clock: exact ticks, rounded once; 0 without events.
        snapshot: The file with the bench's snapshot.
    """

    events: int
    dummies_left_out: int
    missed: int
    gaps: int
    shows_losses: bool
    unwritten_at_end: int
    duration_s: float
    span_s: float
    snapshot: Path


def record_events(
    bench: Bench,
    label: str,
    path: Path | str,
    *,
    duration_s: float,
    format_name: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, float], None] = lambda _events, _seconds: None,
) -> Recorded:
    """Record a tagger's events for a while; a snapshot of the whole bench goes into PATH.json.

    The events are raw key: the file is readable by its owner only. A format that has no place for gaps and other losses
    gets the events alone; PATH.json has the number of the losses in any case.

    Args:
        bench: The open bench.
        label: The tagger's name in the bench file.
        path: The new file; its ending names the format.
        duration_s: How long, above 0.
        format_name: Format, if not by the ending.
        overwrite: Replace an earlier recording and its snapshot.
        on_progress: Called after each block with events so far and seconds so far.

    Raises:
        ConfigurationError: There is no such unit, or it is no tagger, or the format is unknown, or one of the two files
            exists; the unit was not started.
        EventError: The unit lost events and said so at the end, or the file cannot be written.
    """
    unit = _tagger(bench, label)
    path = Path(path)
    format_name, beside = _format(path, format_name), path.with_name(path.name + ".json")
    there = [str(each) for each in (path, beside) if each.exists() or each.is_symlink()]
    if there and not overwrite:
        raise ConfigurationError(
            f"{' and '.join(there)} would be written over", remedy="choose another name, or overwrite=True"
        )
    snapshot: dict[str, Any] = {
        "unit": label,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "qkdhw": __version__,
    }
    snapshot |= bench.snapshot()
    written, begun_s = _Written(), time.monotonic()
    with unit.stream() as events:
        first = next(events)
        blocks = written.counting(_for_a_while(chain([first], events), begun_s, duration_s, on_progress))
        if not format_named(format_name).holds_gaps:
            blocks = map(without_losses, blocks)
        left_out = write_events(path, blocks, format_name, tick_ps=first.tick_ps, fine_tick_ps=first.fine_tick_ps)
    came, counts = events.counts, written.counts()
    unwritten = came.photons + came.markers - counts["photons"] - counts["markers"]
    span_s = float(written.span_ticks * first.tick_ps / PICOSECONDS)
    snapshot |= {
        "events_file": path.name,
        "events": left_out.events,
        "counts": counts | {"overflows": came.overflows, "stalls": came.stalls},
        "dummies_left_out": left_out.dummies,
        "unwritten_at_end": unwritten,
        "span_ticks": written.span_ticks,
        "tick_ps": str(first.tick_ps),
        "span_s": span_s,
    }
    beside.write_text(json.dumps(snapshot, indent=2, default=str) + "\n", "utf-8")
    took_s = time.monotonic() - begun_s
    return Recorded(
        events=left_out.events,
        dummies_left_out=left_out.dummies,
        missed=written.missed,
        gaps=counts["gaps"],
        shows_losses=format_named(format_name).holds_gaps,
        unwritten_at_end=unwritten,
        duration_s=took_s,
        span_s=span_s,
        snapshot=beside,
    )


def without_losses(block: DetectionBlock) -> DetectionBlock:
    """Return a block without what it says about losses, for a file that has no place for that."""
    keep = ~np.isin(block.kind, LOSSES)
    if keep.all() and not block.missed:
        return block
    return replace(
        block,
        time_ticks=block.time_ticks[keep],
        channel=block.channel[keep],
        kind=block.kind[keep],
        fine_ticks=None if block.fine_ticks is None else block.fine_ticks[keep],
        missed=0,
    )


class _Written:
    """Counts the events that are handed to the file: when it ends, more of them have come."""

    def __init__(self) -> None:
        self.missed = 0
        self.span_ticks = 0
        self._first_ticks: int | None = None
        self._last_ticks = np.full(1, np.iinfo(np.int64).min)
        self._tally = np.zeros(len(EventKind) + 1, np.int64)

    def counting(self, blocks: Iterable[DetectionBlock]) -> Iterator[DetectionBlock]:
        """Pass blocks on."""
        for block in blocks:
            tally.tally_events(block.time_ticks, block.kind, self._tally, self._last_ticks)
            self.missed += block.missed
            if len(block):
                self._first_ticks = int(block.time_ticks[0]) if self._first_ticks is None else self._first_ticks
                self.span_ticks = int(block.time_ticks[-1]) - self._first_ticks
            yield block

    def counts(self) -> dict[str, int]:
        """Return what was counted, by the names of a stream's counts."""
        names = {
            "photons": EventKind.PHOTON, "markers": EventKind.MARKER, "dummies": EventKind.DUMMY,
            "gaps": EventKind.GAP_BEGIN, "clock_errors": EventKind.CLOCK_ERROR,
        }  # fmt: skip
        by_kind = {name: int(self._tally[kind]) for name, kind in names.items()}
        return by_kind | {"missed": self.missed, "non_monotone": int(self._tally[-1])}


def _tagger(bench: Bench, label: str) -> Any:
    unit = bench.units.get(label)
    if unit is None or not hasattr(unit, "stream"):
        taggers = [name for name, each in bench.units.items() if hasattr(each, "stream")]
        raise ConfigurationError(
            f"units.{label} is no time tagger of this bench", remedy=f"time taggers: {', '.join(taggers) or 'none'}"
        )
    return unit


def _format(path: Path, format_name: str | None) -> str:
    try:
        name = format_of_name(path) if format_name is None else format_name
    except ConfigurationError as error:
        raise ConfigurationError(str(error), remedy=f"format_name is one of: {', '.join(FORMATS)}") from error
    format_named(name, writing=True)  # a name or an option that does not exist shows here
    return name


def _for_a_while(
    blocks: Iterable[DetectionBlock], begun_s: float, duration_s: float, on_progress: Callable[[int, float], None]
) -> Iterator[DetectionBlock]:
    seen = 0
    for block in blocks:
        yield block
        seen += len(block)
        spent_s = time.monotonic() - begun_s
        on_progress(seen, spent_s)
        if spent_s >= duration_s:
            return

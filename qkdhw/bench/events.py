"""Record the events of a tagger into a file, with a snapshot of the bench beside it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkdhw.errors import ConfigurationError
from qkdhw.formats import write_events
from qkdhw.model import DetectionBlock
from qkdhw.version import __version__

if TYPE_CHECKING:
    from qkdhw.bench.opened import Bench


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was recorded.

    Attributes:
        events: Events in the file.
        dummies_left_out: Dummies that the format has no place for.
        missed: Events that the unit said were lost.
        duration_s: Wall-clock time.
        snapshot: The file with the bench's snapshot.
    """

    events: int
    dummies_left_out: int
    missed: int
    duration_s: float
    snapshot: Path


def record_events(
    bench: Bench,
    label: str,
    path: Path | str,
    *,
    duration_s: float,
    format_name: str | None = None,
    on_progress: Callable[[int, float], None] = lambda _events, _seconds: None,
) -> Recorded:
    """Record a tagger's events for a while; a snapshot of the whole bench goes into PATH.json.

    The events are raw key: the file is readable by its owner only.

    Args:
        bench: The open bench.
        label: The tagger's name in the bench file.
        path: The new file; its ending names the format.
        duration_s: How long, above 0.
        format_name: Format, if not by the ending.
        on_progress: Called after each block with events so far and seconds so far.

    Raises:
        ConfigurationError: There is no such unit, or it is no tagger, or the format is unknown.
        EventError: The unit lost events and said so at the end, or the file cannot be written.
    """
    unit = bench.units.get(label)
    if unit is None or not hasattr(unit, "stream"):
        raise ConfigurationError(f"units.{label} is no time tagger of this bench", remedy="name one of its taggers")
    path = Path(path)
    snapshot: dict[str, Any] = {
        "unit": label,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "qkdhw": __version__,
    }
    snapshot |= bench.snapshot()
    begun_s = time.monotonic()
    with unit.stream() as events:
        first = next(events)
        blocks = _for_a_while(chain([first], events), begun_s, duration_s, on_progress)
        mask = os.umask(0o077)
        try:
            left_out = write_events(path, blocks, format_name, tick_ps=first.tick_ps, fine_tick_ps=first.fine_tick_ps)
        finally:
            os.umask(mask)
    snapshot |= {"events_file": path.name, "counts": asdict(events.counts)}
    beside = path.with_name(path.name + ".json")
    beside.write_text(json.dumps(snapshot, indent=2, default=str) + "\n", "utf-8")
    took_s = time.monotonic() - begun_s
    return Recorded(left_out.events, left_out.dummies, events.counts.missed, took_s, beside)


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

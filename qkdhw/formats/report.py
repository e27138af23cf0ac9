"""Count what a file of detection events holds: the facts that `qkdhw events info` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkdhw.formats.event_file import DEFAULT_BLOCK_EVENTS, EventFile
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.quantities import PS_PER_NS, seconds_of


@dataclass(frozen=True, slots=True)
class EventReport:
    """What a file of detection events holds.

    Attributes:
        path: Where it is.
        format: Name in `qkdhw.formats.FORMATS`.
        tick_ps: Exact length of a tick in picoseconds.
        fine_tick_ps: Exact length of a fine tick (T3), or None.
        records: Records in the file.
        events: Events in it; a record with two inputs is two events, an overflow record none.
        kinds: Events per kind, by name.
        channels: Photons per channel; channel 0 is the sync input.
        pattern_records: Records per pattern of inputs, for formats that store patterns.
        overflow_records: Records that only carry the clock on.
        invalid_records: Records skipped because they follow no rule of the format.
        missing_records: Records that the header promises and the file does not have.
        trailing_bytes: Bytes after the last whole record.
        missed: Events that the stream itself says were lost.
        first_ticks: Time of the first event in the file, or None without events.
        last_ticks: Time of the last event in the file.
        duration_s: From the earliest to the latest event.
        rate_hz: Photons per second over that duration, or 0.0 if it is 0.
        backward_steps: Events, dummies set aside, that are earlier than the one before.
        largest_step_back_ticks: The farthest that an event, dummies included, lies before the latest one until then.
        first_backward_index: Index, dummies set aside, of the first of them, or None.
        backward_steps_with_dummies: The same count with dummies left in.
        repeated_events: Events that equal the one before in time, channel and kind.
        anomalies: What a reader should know before using the file, one sentence each.
        header: Facts from the file's header.
    """

    path: str
    format: str
    tick_ps: Fraction
    fine_tick_ps: Fraction | None
    records: int
    events: int
    kinds: Mapping[str, int]
    channels: Mapping[int, int]
    pattern_records: Mapping[int, int]
    overflow_records: int
    invalid_records: int
    missing_records: int
    trailing_bytes: int
    missed: int
    first_ticks: int | None
    last_ticks: int | None
    duration_s: float
    rate_hz: float
    backward_steps: int
    largest_step_back_ticks: int
    first_backward_index: int | None
    backward_steps_with_dummies: int
    repeated_events: int
    anomalies: tuple[str, ...]
    header: Mapping[str, Any]


class _Order:
    """Steps back in time and repeated events, counted across blocks."""

    def __init__(self) -> None:
        self.seen = 0
        self.backward = 0
        self.largest_back = 0
        self._latest: int | None = None
        self.first_backward: int | None = None
        self.repeated = 0
        self._last: tuple[int, int, int, int] | None = None

    def add(self, block: DetectionBlock, keep: NDArray[np.bool_]) -> None:
        if not keep.any():
            return
        fine = np.zeros(len(block), np.uint16) if block.fine_ticks is None else block.fine_ticks
        columns = [column[keep].astype(np.int64) for column in (block.time_ticks, fine, block.channel, block.kind)]
        last = self._last or tuple(int(column[0]) for column in columns)
        skipped = 0 if self._last else 1
        steps = [np.diff(column, prepend=first)[skipped:] for column, first in zip(columns, last, strict=True)]
        time, fine_step, channel, kind = steps
        back = (time < 0) | ((time == 0) & (fine_step < 0))
        if back.any() and self.first_backward is None:
            self.first_backward = self.seen + skipped + int(np.argmax(back))
        self.backward += int(back.sum())
        highest = int(columns[0][0]) if self._latest is None else self._latest
        if back.any() or int(columns[0][0]) < highest:
            latest = np.maximum(np.maximum.accumulate(columns[0]), highest)
            self.largest_back = max(self.largest_back, int((latest - columns[0]).max()))
        self._latest = max(highest, int(columns[0].max()))
        self.repeated += int(((time == 0) & (fine_step == 0) & (channel == 0) & (kind == 0)).sum())
        self.seen += len(columns[0])
        self._last = (int(columns[0][-1]), int(columns[1][-1]), int(columns[2][-1]), int(columns[3][-1]))


class EventCounter:
    """Counts the blocks of one file as they pass by; `report` then says what was in them."""

    def __init__(self) -> None:
        self._kinds = np.zeros(256, np.int64)
        self._channels = np.zeros(256, np.int64)
        self._order = _Order()
        self._order_with_dummies = _Order()
        self._first: int | None = None
        self._last: int | None = None
        self._earliest = 2**63
        self._latest = -(2**63)
        self._missed = 0
        self._largest_fine = 0

    def add(self, block: DetectionBlock) -> None:
        """Count one block."""
        self._missed += block.missed
        if not len(block):
            return
        self._kinds += np.bincount(block.kind, minlength=256)
        self._channels += np.bincount(block.channel[block.kind == EventKind.PHOTON], minlength=256)
        self._order.add(block, block.kind != EventKind.DUMMY)
        self._order_with_dummies.add(block, np.ones(len(block), bool))
        if self._first is None:
            self._first = int(block.time_ticks[0])
        self._last = int(block.time_ticks[-1])
        self._earliest = min(self._earliest, int(block.time_ticks.min()))
        self._latest = max(self._latest, int(block.time_ticks.max()))
        if block.fine_ticks is not None:
            self._largest_fine = max(self._largest_fine, int(block.fine_ticks.max()))

    def report(self, source: EventFile) -> EventReport:
        """Say what was in the blocks of `source`, which must have been read to the end."""
        photons = int(self._kinds[EventKind.PHOTON])
        duration_s = 0.0
        if self._first is not None:
            duration_s = seconds_of(self._latest - self._earliest, source.tick_ps)
        tally = source.tally
        return EventReport(
            path=str(source.path),
            format=source.format,
            tick_ps=source.tick_ps,
            fine_tick_ps=source.fine_tick_ps,
            records=tally.records,
            events=int(self._kinds.sum()),
            kinds={kind.name.lower(): int(self._kinds[kind]) for kind in EventKind if self._kinds[kind]},
            channels={int(c): int(self._channels[c]) for c in np.flatnonzero(self._channels)},
            pattern_records=dict(tally.pattern_records),
            overflow_records=tally.overflow_records,
            invalid_records=tally.invalid_records,
            missing_records=tally.missing_records,
            trailing_bytes=tally.trailing_bytes,
            missed=self._missed,
            first_ticks=self._first,
            last_ticks=self._last,
            duration_s=duration_s,
            rate_hz=photons / duration_s if duration_s else 0.0,
            backward_steps=self._order.backward,
            largest_step_back_ticks=self._order_with_dummies.largest_back,
            first_backward_index=self._order.first_backward,
            backward_steps_with_dummies=self._order_with_dummies.backward,
            repeated_events=self._order.repeated,
            anomalies=tuple(self._anomalies(source)),
            header=dict(source.header),
        )

    def _said_of_steps_back(self, source: EventFile) -> str:
        said = f"steps back in time: {self._order.backward}, first at event {self._order.first_backward}"
        if source.fine_tick_ps is not None:
            return said
        back_ps = math.ceil(self._order_with_dummies.largest_back * source.tick_ps)
        return f"{said}; --order-within {back_ps} puts them right"

    def _anomalies(self, source: EventFile) -> list[str]:
        tally = source.tally
        order = self._order
        found = []
        if self._first is None:
            found.append("the file holds no events")
        if order.backward:
            found.append(self._said_of_steps_back(source))
        if order.repeated:
            found.append(f"events equal to the one before: {order.repeated}")
        if tally.missing_records:
            found.append(f"records that the header promises and the file lacks: {tally.missing_records}")
        if tally.trailing_bytes:
            found.append(f"bytes after the last record that counts: {tally.trailing_bytes}")
        if tally.invalid_records:
            found.append(
                f"invalid records skipped: {tally.invalid_records}, first at byte {tally.first_invalid_offset_bytes}"
            )
        if tally.pattern_records.get(0):
            found.append(f"records that name no input: {tally.pattern_records[0]}")
        if self._missed:
            found.append(f"events lost, as the stream itself says: {self._missed}")
        if source.fine_tick_ps is not None and self._largest_fine * source.fine_tick_ps >= source.tick_ps:
            found.append(
                f"the time since the sync reaches {float(self._largest_fine * source.fine_tick_ps) / PS_PER_NS:.3f} ns "
                f"though a sync period is {float(source.tick_ps) / PS_PER_NS:.3f} ns: syncs were divided, or the "
                "header's period is wrong"
            )
        return found


def report_events(source: EventFile, *, max_events: int = DEFAULT_BLOCK_EVENTS) -> EventReport:
    """Read a file to its end and report what it holds.

    Raises:
        EventFormatError: The file does not follow its format.
        EventError: The file cannot be read.
    """
    counter = EventCounter()
    for block in source.read_blocks(max_events):
        counter.add(block)
    return counter.report(source)

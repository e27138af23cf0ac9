"""One simulated run: cells from the engine into files and counts, until enough has happened."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import LinkCondition
from qkdhw_emulators.optics.detection import DetectedEvents, latest_ps
from qkdhw_emulators.optics.expected import expected_counts
from qkdhw_emulators.optics.light_stage import Arrivals, Purpose
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.setup import PS_PER_S, OpticalSetup, Receiver, Tagger
from qkdhw_emulators.optics.simulation import LinkSimulation, SimulatedCell
from qkdhw_emulators.simulate.matching import SWITCHED, Clicks, EndClock, PulseMatcher
from qkdhw_emulators.simulate.observation import EndCounts, PairCounts, PulseCounts
from qkdhw_emulators.simulate.writers import EventSink, TableSink, check_format, file_ending

Record = Literal["auto", "detected", "full", "none"]

SMALL_PULSES = 10_000_000
CHUNK_PULSES = 1 << 20
RECORD_BYTES = 2  # of a pulse in a record of all
LONGEST_WAIT_S = 3600.0  # for a number of events
RECORD_COLUMNS: dict[str, type[np.generic]] = {
    "pulse": np.int64,
    "intensity": np.uint8,
    "basis": np.uint8,
    "bit": np.uint8,
}
TRUTH_COLUMNS: dict[str, type[np.generic]] = {"pulse": np.int64, "cause": np.uint8}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to simulate and what to write.

    Attributes:
        setup: The link.
        seed: Seed of everything random.
        threads: How many cells of light are made at a time; changes nothing in what comes out.
        schedule: Attacks and faults.
        duration_s: Longest time of the link; None: `LONGEST_WAIT_S`. Whole cells are run.
        events: Ends the run once the receiver has so many; None: no limit.
        format_name: Format of the event files.
        record: Which pulses the sender's record has; "auto" is all of a run of a known and small number of pulses.
        truth: Write what made each event, and which pulse it came from.
    """

    setup: OpticalSetup
    seed: int = 1
    threads: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    duration_s: float | None = None
    events: int | None = None
    format_name: str = "parquet"
    record: Record = "auto"
    truth: bool = False


@dataclass(slots=True)
class Observed:
    """What a run had.

    Attributes:
        cells: Cells run.
        cell_s: Length of one.
        pulses: Pulses sent; 0 with a steady pump.
        bob: Clicks of the receiver.
        alice: Clicks of the sender, if the source makes pairs.
        prepared: Detections of prepared pulses; None if the source makes pairs.
        pairs: Coincidences; None if it makes none, or if a switch chooses the basis of pairs.
        monitors: Lowest and highest reading of each monitor.
    """

    cells: int
    cell_s: float
    pulses: int
    bob: EndCounts
    alice: EndCounts | None
    prepared: PulseCounts | None
    pairs: PairCounts | None
    monitors: dict[str, tuple[float, float]]

    @property
    def duration_s(self) -> float:
        """How long the run was, on the link."""
        return self.cells * self.cell_s


@dataclass(slots=True)
class _Files:
    """What is being written of one end."""

    events: EventSink | None = None
    truth: TableSink | None = None


class _End:
    """One end: its counts, clock and files."""

    def __init__(self, setup: OpticalSetup, receiver: Receiver, tagger: Tagger, clock: EndClock) -> None:
        self.counts = EndCounts(receiver, tagger.tick_fs / 1000, clock.first_tick)
        self.tick_ps = Fraction(tagger.tick_fs, 1000)
        self.channels = len(receiver.detectors)
        self.switches = any(m.startswith("any") for m in receiver.meaning)
        self.files = _Files()
        self._clock = clock
        self._matcher = PulseMatcher(setup, receiver)

    def take(
        self, cell: SimulatedCell, events: DetectedEvents, light: Arrivals, condition: LinkCondition, end_ps: float
    ) -> Clicks:
        """Write a cell's events before an end, count those since the first pulse and say what they mean."""
        origins = self._clock.origins(events, light)
        times_ps = self._clock.times_ps(events, condition)
        if end_ps < math.inf:
            kept = times_ps < end_ps
            origins, times_ps, events = origins[kept], times_ps[kept], events.part(kept)
        if self.files.events is not None:
            self.files.events.write(events.ticks, events.channel)
        if self.files.truth is not None:
            self.files.truth.write(pulse=origins, cause=events.cause)
        counted = self.counts.add(events)
        times_ps = times_ps[len(events.ticks) - len(counted.ticks) :]
        return self._matcher.match(cell.first_pulse, times_ps, counted.channel)


class _FreshPulses:
    """Finds the pulses that clicked and did not before: one may click at the end of a cell and in the next."""

    def __init__(self) -> None:
        self._before = np.empty(0, np.int64)

    def rows(self, pulse: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """Return their numbers in order, and where each is."""
        rows, where = np.unique(pulse, return_index=True)
        fresh = (rows >= 0) & ~np.isin(rows, self._before)
        self._before = rows
        return rows[fresh], where[fresh]


class _SenderRecord:
    """The sender's choices, for her own file and for the statistics."""

    def __init__(self, simulation: LinkSimulation, table: TableSink | None, *, full: bool) -> None:
        self._simulation, self._table, self._full = simulation, table, full
        self._fresh = _FreshPulses()

    def choices(self, cell: SimulatedCell, clicks: Clicks, *, ended: bool) -> NDArray[np.uint8]:
        """Return the choice for each click, and write the cell's rows; if the run has ended, no pulses but these."""
        pulses = np.maximum(clicks.pulse, 0)
        choice = self._simulation.prepared_at(pulses)
        if self._table is not None and self._full and not ended:
            end = cell.first_pulse + cell.n_pulses
            for first in range(cell.first_pulse, end, CHUNK_PULSES):
                n = min(CHUNK_PULSES, end - first)
                self._write(self._table, np.arange(first, first + n), self._simulation.prepared(first, n))
        elif self._table is not None and not self._full:
            rows, where = self._fresh.rows(clicks.pulse)
            self._write(self._table, rows, choice[where])
        return choice

    @staticmethod
    def _write(table: TableSink, pulse: NDArray[np.int64], choice: NDArray[np.uint8]) -> None:
        if len(pulse):
            table.write(pulse=pulse, intensity=choice // 6, basis=choice // 2 % 3, bit=choice % 2)


class LinkRun:
    """A run that writes into a folder, or only counts.

    Args:
        options: What to do.
        folder: Where files go; None: there are none.

    Attributes:
        simulation: The engine.
        cells: Cells run so far.
        cells_wanted: After how many it ends at the latest.
        cell_s: Length of one.

    Raises:
        ConfigurationError: There is no end of the run, or the format cannot hold what a tagger writes.
    """

    def __init__(self, options: RunOptions, folder: Path | None = None) -> None:
        setup = options.setup
        if options.duration_s is None and options.events is None:
            raise ConfigurationError("nothing ends the run", remedy="Give a duration, or a number of events or pulses.")
        self.options, self._folder = options, folder
        self.simulation = LinkSimulation(setup, seed=options.seed, threads=options.threads, schedule=options.schedule)
        self.cell_s = self.simulation.cell_s
        longest_s = LONGEST_WAIT_S if options.duration_s is None else options.duration_s
        self.cells_wanted = math.ceil(longest_s / self.cell_s - 1e-9)
        self._undisturbed = LinkCondition([])
        self._bob = self._end(setup.receiver, setup.tagger, Purpose.BOB_DETECTION)
        self._alice: _End | None = None
        if setup.sender_receiver is not None:
            self._alice = self._end(setup.sender_receiver, setup.sender_tagger or Tagger(), Purpose.ALICE_DETECTION)
        self._prepared = None if setup.source.of_pairs else PulseCounts(setup)
        self._pairs = PairCounts(setup) if self._alice and not (self._alice.switches or self._bob.switches) else None
        self._window_ps = setup.source.period_ps / 2 if self.simulation.cell_pulses else 0.0
        self._monitors: dict[str, tuple[float, float]] = {}
        self.cells = 0
        self._record: _SenderRecord | None = None
        self._bases: TableSink | None = None
        self._measured = _FreshPulses()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.simulation.close)
            if self._folder is not None:
                self._open_files(self._folder, stack)
            elif self._prepared is not None:
                self._record = _SenderRecord(self.simulation, None, full=False)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def run(self, follow: Callable[[int, int], None] = lambda _cells, _events: None) -> Observed:
        """Run to the end.

        Args:
            follow: Called after each cell with cells and the receiver's events so far.

        Raises:
            EventError: A file cannot be written.
        """
        events = 0
        while self.cells < self.cells_wanted and (self.options.events is None or events < self.options.events):
            cell = self.simulation.next_cell()
            events += self._take(cell, math.inf)
            self.cells += 1
            follow(self.cells, events)
        for late in range(self._late_cells() if self.cells else 0):
            self._take(self.simulation.next_cell(after=cell), -late * self.simulation.cell_ps - self._window_ps)
        return Observed(
            cells=self.cells,
            cell_s=self.cell_s,
            pulses=self.cells * self.simulation.cell_pulses,
            bob=self._bob.counts,
            alice=self._alice.counts if self._alice else None,
            prepared=self._prepared,
            pairs=self._pairs,
            monitors=self._monitors,
        )

    def _end(self, receiver: Receiver, tagger: Tagger, purpose: Purpose) -> _End:
        clock = EndClock(receiver, tagger, self.simulation.cell_ps, self.options.seed, purpose)
        return _End(self.options.setup, receiver, tagger, clock)

    def _late_cells(self) -> int:
        """Return in how many cells after the last one its events may still come: a tagger gives them in order."""
        setup = self.options.setup
        ends = [(setup.receiver, setup.tagger)]
        if setup.sender_receiver is not None:
            ends.append((setup.sender_receiver, setup.sender_tagger or Tagger()))
        return int(max(latest_ps(*end) for end in ends) // self.simulation.cell_ps) + 1

    def _take(self, cell: SimulatedCell, end_ps: float) -> int:
        """Count and write a cell up to an end, and return how many events the receiver had since the first pulse."""
        bob = self._bob.take(cell, cell.bob, cell.bob_light, cell.condition, end_ps)
        if self._alice is not None and cell.alice is not None and cell.alice_light is not None:
            alice = self._alice.take(cell, cell.alice, cell.alice_light, self._undisturbed, end_ps)
            if self._pairs is not None:
                self._pairs.add(alice, bob)
        if self._prepared is not None and self._record is not None:
            choice = self._record.choices(cell, bob, ended=end_ps < math.inf)
            switched = np.zeros(len(choice), np.uint8)
            if (bob.basis == SWITCHED).any():
                switched = self.simulation.measured_at(np.maximum(bob.pulse, 0))
            self._prepared.add(bob, choice, switched)
            if self._bases is not None:
                rows, where = self._measured.rows(bob.pulse)
                none = np.zeros(len(rows), np.uint8)
                self._bases.write(pulse=rows, intensity=none, basis=switched[where], bit=none)
        for name, value in cell.monitors.items() if end_ps == math.inf else ():
            low, high = self._monitors.get(name, (value, value))
            self._monitors[name] = min(low, value), max(high, value)
        return len(bob.channel)

    def _likely_pulses(self) -> float:
        """Return about how many pulses it will send, if nothing attacks."""
        pulses = float(self.cells_wanted * self.simulation.cell_pulses)
        if self.options.events is None:
            return pulses
        a_pulse = float(expected_counts(self.options.setup, 1).detector_clicks.sum())
        return min(pulses, self.options.events / a_pulse) if a_pulse else pulses

    def _open_files(self, folder: Path, stack: ExitStack) -> None:
        options = self.options
        ends = {"bob": self._bob} | ({"alice": self._alice} if self._alice else {})
        for name, end in ends.items():
            check_format(folder, options.format_name, tick_ps=end.tick_ps, channels=end.channels)
            path = folder / f"{name}{file_ending(options.format_name)}"
            end.files.events = stack.enter_context(EventSink(path, options.format_name, end.tick_ps))
            if options.truth:
                facts = {"content": "truth", "version": "1"}
                end.files.truth = stack.enter_context(TableSink(folder / f"{name}.truth.parquet", TRUTH_COLUMNS, facts))
        if self._prepared is None:
            return
        full = options.record == "full" or (
            options.record == "auto" and self.cells_wanted * self.simulation.cell_pulses <= SMALL_PULSES
        )
        if full:
            _check_room(folder, self._likely_pulses())
        table = None
        if options.record != "none":
            facts = {"content": "sender", "version": "1", "pulses": "all" if full else "detected"}
            facts["period_ps"] = str(options.setup.source.period_ps)
            table = stack.enter_context(TableSink(folder / "alice.record.parquet", RECORD_COLUMNS, facts))
            if self._bob.switches:
                facts = facts | {"content": "receiver", "pulses": "detected"}
                self._bases = stack.enter_context(TableSink(folder / "bob.record.parquet", RECORD_COLUMNS, facts))
        self._record = _SenderRecord(self.simulation, table, full=full)


def _check_room(folder: Path, pulses: float) -> None:
    """Refuse a record of so many pulses that the disk has no room for it."""
    needed, free = pulses * RECORD_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigurationError(
            f"a record of all {pulses:.3g} pulses needs {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free",
            remedy="--record detected keeps what sifting needs; or run less.",
        )


def duration_of(setup: OpticalSetup, pulses: int) -> float:
    """Return how long it takes to send so many pulses.

    Raises:
        ConfigurationError: The source has a steady pump.
    """
    if setup.source.kind == "pair-cw":
        raise ConfigurationError("a source with a steady pump has no pulses", remedy="Give --duration or --events.")
    return pulses * setup.source.period_ps / PS_PER_S

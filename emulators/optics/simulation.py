"""The engine: a link from its setup and a seed, cell by cell, at a cost that follows detections and not pulses.

Time is cut into cells of a fixed length. The light of a cell depends on the seed, the run and the number of the cell
alone, so it may be made ahead in another thread; detectors and taggers see the cells in order. Nothing depends on how
much is asked for at a time. Truth lies in the cells: it is for tests and reports, no emulated unit shows it.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import Attack, DetectorCondition, LinkCondition
from qkdhw_emulators.optics.attacks import baseline_monitors
from qkdhw_emulators.optics.detection import DetectedEvents, Detection, latest_ps
from qkdhw_emulators.optics.drift import Drift
from qkdhw_emulators.optics.light_stage import (
    MAX_CELL_PULSES,
    Arrivals,
    PairStage,
    PulseStage,
    Purpose,
    pulse_keys,
    stream,
    suitable_cell_pulses,
)
from qkdhw_emulators.optics.link_tables import build_tables
from qkdhw_emulators.optics.pairs import PairLight
from qkdhw_emulators.optics.pairs import cell_ps as pair_cell_ps
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.setup import PS_PER_S, OpticalSetup, Receiver, Tagger

NO_ORIGIN = np.array([-1])
MAX_THREADS = 64


@dataclass(frozen=True, slots=True)
class SimulatedCell:
    """What happened in one cell.

    Attributes:
        first_pulse: Number of its first pulse.
        n_pulses: How many it has; 0 for a steady pump.
        begin_s: Its begin in the sender's time.
        end_s: Its end.
        bob: What the receiver's tagger wrote.
        alice: What the sender's tagger wrote, if the source makes pairs.
        monitors: Readings of the monitors.
        condition: Truth: what attackers and faults do to the receiver.
        bob_light: Truth: the light at the receiver's detectors.
        alice_light: Truth: the same at the sender's, if the source makes pairs.
    """

    first_pulse: int
    n_pulses: int
    begin_s: float
    end_s: float
    bob: DetectedEvents
    alice: DetectedEvents | None
    monitors: dict[str, float]
    condition: LinkCondition
    bob_light: Arrivals
    alice_light: Arrivals | None
    _known: tuple[NDArray[np.int64], ...]
    _first_known: int

    @property
    def bob_origin(self) -> NDArray[np.int64]:
        """Truth: int64 (n,), the pulse (steady pump: the pair in its cell) of each of Bob's events, -1 for noise."""
        arrival = self.bob.arrival
        known = np.concatenate([*self._known, NO_ORIGIN])
        return known[np.where(arrival < 0, -1, arrival - self._first_known)]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a cell depends on besides its number."""

    setup: OpticalSetup
    stage: PulseStage | PairStage
    condition: LinkCondition


class LinkSimulation:
    """One run of a link.

    Not for several threads; what it does in threads of its own changes nothing in what it gives.

    Args:
        setup: The link.
        seed: Seed of everything random, 0 or more.
        run: Number of the run; each has its own random streams.
        threads: How many cells of light are made at a time.
        schedule: Attacks and faults, and when; they begin and end with a cell.
        cell_pulses: Pulses in a cell, in place of the number that suits the setup.

    Attributes:
        setup: The link.
        cell_pulses: Pulses in a cell; 0 for a steady pump.
        cell_ps: Length of a cell.

    Raises:
        ConfigurationError: The receiver cannot measure what the source sends, or an argument is out of range.
    """

    def __init__(
        self,
        setup: OpticalSetup,
        *,
        seed: int,
        run: int = 0,
        threads: int = 1,
        schedule: Schedule | None = None,
        cell_pulses: int | None = None,
    ) -> None:
        setup = _checked(setup)
        seed, run, threads = _whole("seed", seed), _whole("run", run), _whole("threads", threads, 1, MAX_THREADS)
        if cell_pulses is not None:
            cell_pulses = _whole("cell_pulses", cell_pulses, 1, MAX_CELL_PULSES)
        if not isinstance(schedule, Schedule | None):
            raise ConfigurationError(
                f"schedule is {schedule!r:.100}, not a Schedule",
                remedy='for example Schedule.from_arguments(["fibre-cut:from_s=1"])',
            )
        self.setup = setup
        self._seed, self._run, self._threads = seed, run, threads
        self._keys = pulse_keys(seed, run)
        self._schedule = schedule or Schedule(())
        self._schedule.check(setup)
        self._set_cell(cell_pulses)
        self._drift = Drift(setup, self.cell_s, stream(seed, run, Purpose.DRIFT))
        self._bob = self._detection(setup.receiver, setup.tagger, Purpose.BOB_DETECTION)
        self._alice: Detection | None = None
        if setup.sender_receiver is not None:
            self._alice = self._detection(
                setup.sender_receiver, setup.sender_tagger or Tagger(), Purpose.ALICE_DETECTION
            )
        self._planned_for: tuple[int, ...] | None = None
        self._latest = self._detected_with = _Plan(setup, self._stage(setup, np.eye(3), ()), self._clean())
        # an event may come out some cells after its light
        n_kept = int(latest_ps(setup.receiver, setup.tagger) // self.cell_ps) + 3
        self._origins: deque[NDArray[np.int64]] = deque(maxlen=n_kept)
        self._first_origin = 0
        self._planned = self._made = 0
        self._ahead: deque[tuple[_Plan, Future[tuple[Arrivals | None, Arrivals]]]] = deque()
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def cell_s(self) -> float:
        """Length of a cell."""
        return self.cell_ps / PS_PER_S

    def prepared(self, first: int, n_pulses: int) -> NDArray[np.uint8]:
        """Return the sender's choices, (intensity * 3 + basis) * 2 + bit, of pulses from `first` on."""
        return self._pulses().prepared(first, n_pulses)

    def prepared_at(self, pulses: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the sender's choices of these pulses."""
        return self._pulses().prepared(pulses, len(pulses))

    def measured_at(self, pulses: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the bases in which a receiver that switches measures these pulses; 0 for one with a splitter."""
        return self._pulses().measured(pulses, len(pulses))

    def next_cell(self, *, lit: bool = True, after: SimulatedCell | None = None) -> SimulatedCell:
        """Make the next cell.

        Args:
            lit: Whether any of the sender's light gets to the detectors; False is for a simulation of one thread.
            after: The last cell of a run whose late events are all that is wanted: nothing begins or ends after it.
        """
        plan, (alice_light, bob_light) = self._next_light(lit)
        if after is not None:
            plan = replace(plan, setup=self._detected_with.setup, condition=after.condition)
        cell, condition = self._made, plan.condition
        self._made += 1
        alice = None
        if self._alice is not None and alice_light is not None:
            alice = self._alice.register(cell, alice_light, self._clean(self.setup.sender_receiver))
        if plan is not self._detected_with and after is None:
            self._bob.set_noise(plan.setup.receiver, plan.setup.channel.background_rate_hz)
            self._detected_with = plan
        bob = self._bob.register(cell, bob_light, condition)
        if len(self._origins) == self._origins.maxlen:
            self._first_origin += len(self._origins[0])
        self._origins.append(bob_light.origin)
        return SimulatedCell(
            first_pulse=cell * self.cell_pulses,
            n_pulses=self.cell_pulses,
            begin_s=cell * self.cell_ps / PS_PER_S,
            end_s=(cell + 1) * self.cell_ps / PS_PER_S,
            bob=bob,
            alice=alice,
            monitors=dict(condition.monitors),
            condition=condition,
            bob_light=bob_light,
            alice_light=alice_light,
            _known=tuple(self._origins),
            _first_known=self._first_origin,
        )

    def bob_blocks(self, n_events: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Go through what the receiver's tagger writes, without end: ticks and channels, so many at a time.

        Args:
            n_events: Events in a block.
        """
        ticks: list[NDArray[np.int64]] = []
        channels: list[NDArray[np.uint8]] = []
        have = 0
        while True:
            while have < n_events:
                bob = self.next_cell().bob
                ticks.append(bob.ticks)
                channels.append(bob.channel)
                have += len(bob.ticks)
            all_ticks, all_channels = np.concatenate(ticks), np.concatenate(channels)
            whole = have - have % n_events
            for begin in range(0, whole, n_events):
                yield all_ticks[begin : begin + n_events], all_channels[begin : begin + n_events]
            ticks, channels, have = [all_ticks[whole:]], [all_channels[whole:]], have - whole

    def _set_cell(self, cell_pulses: int | None) -> None:
        setup = self.setup
        if setup.source.kind == "pair-cw":
            self.cell_pulses, self.cell_ps = 0, pair_cell_ps(setup)
            return
        if setup.source.of_pairs:
            suitable = pair_cell_ps(setup) // setup.source.period_ps
        else:
            noise_hz = sum(d.dark_count_rate_hz for d in setup.receiver.detectors) + setup.channel.background_rate_hz
            suitable = suitable_cell_pulses(build_tables(setup), noise_hz)
        self.cell_pulses = cell_pulses or suitable
        self.cell_ps = self.cell_pulses * setup.source.period_ps

    def _detection(self, receiver: Receiver, tagger: Tagger, purpose: Purpose) -> Detection:
        at_bob = purpose is Purpose.BOB_DETECTION
        return Detection(
            receiver,
            tagger,
            period_ps=self.setup.source.period_ps,
            cell_ps=self.cell_ps,
            seed=self._seed,
            run=self._run,
            purpose=purpose,
            background_rate_hz=self.setup.channel.background_rate_hz if at_bob else 0.0,
        )

    def _next_light(self, lit: bool) -> tuple[_Plan, tuple[Arrivals | None, Arrivals]]:
        if not lit:
            dark = Arrivals.empty()
            return self._plan(), (dark if self._alice is not None else None, dark)
        if self._pool is None:
            plan = self._plan()
            return plan, plan.stage.arrivals(self._planned - 1)
        while len(self._ahead) < 2 * self._threads:
            plan = self._plan()
            self._ahead.append((plan, self._pool.submit(plan.stage.arrivals, self._planned - 1)))
        plan, future = self._ahead.popleft()
        return plan, future.result()

    def _plan(self) -> _Plan:
        """Say what the next cell depends on; the optics are worked out again only if something has changed."""
        now_s = self._planned * self.cell_ps / PS_PER_S
        self._planned += 1
        active = self._schedule.active(now_s)
        on = tuple(self._schedule.attacks.index(attack) for attack in active)
        thermal = self.setup.channel.temperature_swing_k > 0
        if on != self._planned_for or any(a.varies for a in active) or not self._drift.stands_still or thermal:
            self._planned_for = on
            changed, condition = self.setup, self._clean()
            condition.delay_ps, condition.delay_ps_per_s = self.setup.channel.thermal_delay(now_s)
            for attack in active:
                changed = attack.change_setup(changed, now_s - attack.from_s)
            stage = self._stage(changed, self._drift.rotation, active)
            for attack in active:
                attack.change_condition(condition, changed, now_s - attack.from_s)
            self._latest = _Plan(changed, stage, condition)
        self._drift.advance()
        return self._latest

    def _stage(
        self, setup: OpticalSetup, rotation: NDArray[np.float64], active: tuple[Attack, ...]
    ) -> PulseStage | PairStage:
        if setup.source.of_pairs:
            pairs = PairLight(setup, rotation, length_ps=self.cell_ps)
            return PairStage(pairs, self._seed, self._run, self.cell_pulses)
        tables = build_tables(setup, rotation)
        for attack in active:
            tables = attack.change_tables(tables, setup)
        return PulseStage(tables, self._keys, self.cell_pulses)

    def _pulses(self) -> PulseStage:
        stage = self._latest.stage
        if isinstance(stage, PairStage):
            raise ConfigurationError("a source of pairs prepares nothing", remedy="Read what Alice detects.")
        return stage

    def _clean(self, receiver: Receiver | None = None) -> LinkCondition:
        detectors = [DetectorCondition() for _ in (receiver or self.setup.receiver).detectors]
        return LinkCondition(detectors, monitors=baseline_monitors(self.setup))


def _whole(name: str, value: object, least: int = 0, most: int | None = None) -> int:
    """Return an argument as a whole number between bounds."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        raise ConfigurationError(
            f"{name} is {value!r:.100}",
            remedy=f"give a whole number from {least}{'' if most is None else f' to {most}'}",
        )
    return number


def _checked(setup: OpticalSetup) -> OpticalSetup:
    """Return the setup if it holds what its parts promise: a copy with changes was not looked at."""
    if not isinstance(setup, OpticalSetup):
        raise ConfigurationError(
            f"setup is {setup!r:.100}, not an OpticalSetup",
            remedy="read a preset or a file by qkdhw_emulators.optics.presets.load_setup(name)",
        )
    try:
        return OpticalSetup.model_validate(setup.model_dump(warnings=False))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"setup: {field}: {first['msg']}", remedy="See optics/setup.py for ranges.") from error

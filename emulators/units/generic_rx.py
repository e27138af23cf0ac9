"""A receiver unit that speaks GRX/1 (docs/reference/generic-receiver-protocol.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.link_model import LinkChunk
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.sent_events import SentEvents
from qkdhw_emulators.units.event_log import SPAN_TICKS, EventLog, Kind
from qkdhw_emulators.units.generic_unit import GenericUnit, RefusedError, State, decimal, decimals, expect, integer, ok
from qkdhw_emulators.world import World

TICK_PS = "1000/3"
TICKS_PER_LINK_TICK = 6  # the link model counts in 2 ns
DUMMY_AFTER_TICKS = 300_000_000  # 100 ms
WRAP_AFTER_TICKS = 150_000_000  # 50 ms
MAX_EVENTS = 1_048_576
EVENTS_AT_ONCE = 65_536
CHUNKS_AT_ONCE = 16
CAPACITY_EVENTS = 1 << 22
STORM_DUMMIES, STORM_LIMIT = 2000, 200_000
BACKWARD_EVERY = 500
ALARM_OVERRUN, ALARM_CLOCK, ALARM_TEMPERATURE, ALARM_BRIGHT = 0x01, 0x02, 0x04, 0x08
TEMPERATURE_K = (213.0, 253.0)
BRIGHT_LIGHT_NW = 1.0
DETECTORS = (1, 2, 3, 4)

# name: lowest, highest, steps in 1
_RANGES = {
    "detector_enabled": (0.0, 1.0, 1.0),
    "detector_efficiency": (0.0, 1.0, 100.0),
    "threshold_v": (-5.0, 5.0, 512.0),
    "dead_time_ns": (0.0, 1e6, 0.2),
    "gate_delay_ns": (0.0, 1e6, 100.0),
    "gate_width_ns": (0.0, 1e6, 100.0),
    "key_basis_probability": (0.05, 0.95, 65536.0),
}
_OF_A_DETECTOR = ("detector_enabled", "detector_efficiency", "threshold_v")
_FIXED = {"basis_choice": "passive", "tick_ps": TICK_PS}


class EmulatedGenericRx(GenericUnit):
    """Answers GRX/1 commands byte for byte; no I/O, no clock of its own.

    Args:
        world: Surroundings; their seed is that of its own light source.
        light: Light source; without one the unit has its own, which is dark.
        faults: Faults that are on.

    Attributes:
        faults: Faults that are on; may be changed while the unit runs.
        sent_events: What it generated.
    """

    model: ClassVar[str] = "GRX-EMU"
    protocol: ClassVar[str] = "GRX/1"
    conditions: ClassVar[dict[str, float]] = {
        "detector_temperature_k": 233.0,
        "reference_clock_locked": 1.0,
        "received_power_nw": 0.0,
    }
    unit_faults: ClassVar[frozenset[Fault]] = GenericUnit.unit_faults | {
        Fault.OVERFLOW, Fault.COUNTER_WRAP, Fault.NON_MONOTONE, Fault.DUMMY_STORM,
    }  # fmt: skip
    setting_names: frozenset[str] = frozenset(
        {name for name in _RANGES if name not in _OF_A_DETECTOR}
        | {f"{name}.{d}" for name in _OF_A_DETECTOR for d in DETECTORS}
        | set(_FIXED)
    )

    def __init__(
        self, world: World | None = None, *, light: LinkRun | None = None, faults: Iterable[Fault | str] = ()
    ) -> None:
        world = world or World(seed=light.seed if light else 1)
        self._log = EventLog()
        self.sent_events = SentEvents(Fraction(TICK_PS))
        self._run_rng = world.rng("run")
        super().__init__(world, light or LinkRun(LinkParameters(), seed=world.seed, transmitter=False), faults)
        self._commands["EVT?"] = self._read_events

    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        super().power_cycle()
        parameters = self._link.parameters
        self._values: dict[str, float] = {
            "dead_time_ns": parameters.dead_time_ns,
            "gate_delay_ns": 0.0,
            "gate_width_ns": 0.0,
            "key_basis_probability": parameters.receiver_key_basis_probability,
        }
        usual = {
            "detector_enabled": 1.0,
            "detector_efficiency": parameters.detector_efficiency,
            "threshold_v": 0.5,
        }
        self._values |= {f"{name}.{d}": value for name, value in usual.items() for d in DETECTORS}
        self._run = int(self._run_rng.integers(1, 1 << 31))
        self._begin()
        self._link.stop_receiver()

    def _begin(self) -> None:
        """Forget the last run."""
        self._log.clear()
        self._photons = [0] * len(DETECTORS)
        self._offset = SPAN_TICKS - WRAP_AFTER_TICKS if Fault.COUNTER_WRAP in self.faults else 0
        self._log.last_ticks = self._offset
        self._stalled = False
        self._was_locked = True
        self._thin_rng = self.world.rng(f"efficiency of run {self._run}")

    def _set(self, name: str, text: str) -> None:
        if name in _FIXED:
            raise RefusedError(7, "fixed by construction")
        stem = name.partition(".")[0]
        low, high, _ = _RANGES[stem]
        (value,) = decimals(text)
        if not low <= value <= high or (stem == "detector_enabled" and text not in {"0", "1"}):
            raise RefusedError(2, f"{stem} is {low:g} to {high:g}")
        self._values[name] = _quantised(name, value)

    def _get(self, name: str) -> str:
        return _FIXED[name] if name in _FIXED else decimal(_quantised(name, self._values[name]))

    def _look_around(self) -> None:
        if Fault.FULL_BUFFER in self.faults and self._state is State.RUNNING and not self._stalled:
            self._log.add(self._log.last_ticks, Kind.GAP_BEGIN)
            self._alarms |= ALARM_OVERRUN
            self._stalled = True
        super()._look_around()

    def _causes(self) -> int:
        bright = self.world.conditions["received_power_nw"] > BRIGHT_LIGHT_NW
        return self._fatal_causes() | ALARM_CLOCK * self._clock_is_free() | ALARM_BRIGHT * bright

    def _fatal_causes(self) -> int:
        low_k, high_k = TEMPERATURE_K
        return 0 if low_k <= self.world.conditions["detector_temperature_k"] <= high_k else ALARM_TEMPERATURE

    def _efficiencies(self) -> list[float]:
        values = self._values
        return [values[f"detector_efficiency.{d}"] * values[f"detector_enabled.{d}"] for d in DETECTORS]

    def _started(self) -> bytes:
        self._run += 1
        self._begin()
        settings: dict[str, Any] = {
            "detector_efficiency": max(self._efficiencies()),
            "dead_time_ns": self._values["dead_time_ns"],
            "receiver_key_basis_probability": self._values["key_basis_probability"],
        }
        self._link.start_receiver(settings)
        return ok(str(self._run))

    def _stopped(self) -> None:
        self._link.stop_receiver()

    def _counts(self) -> dict[str, int]:
        buffered = CAPACITY_EVENTS if self._stalled else self._log.end - self._log.first
        counts = {"events": self._log.end, "buffered": buffered, "lost": self._log.lost}
        return counts | {f"photons_{d}": n for d, n in zip(DETECTORS, self._photons, strict=True)}

    def _monitors(self) -> dict[str, float]:
        biased = self._state in {State.ARMED, State.RUNNING}
        rates = self._link.expected_counts(1.0) if self._state is State.RUNNING else [0] * len(DETECTORS)
        readings: dict[str, float] = {}
        for d, rate, efficiency in zip(DETECTORS, rates, self._efficiencies(), strict=True):
            readings[f"count_rate_hz_{d}"] = rate if efficiency else 0
            readings[f"detector_bias_v_{d}"] = round(60 + 5 * efficiency, 2) if biased and efficiency else 0
        for name in ("detector_temperature_k", "received_power_nw"):
            readings[name] = self.world.conditions[name]
        return readings

    def _read_events(self, arguments: list[str]) -> bytes:
        expect(arguments, 3)
        run, first, limit = (integer(a) for a in arguments)
        if not 1 <= limit <= MAX_EVENTS:
            raise RefusedError(2, "at most 1048576 events")
        if run != self._run or not self._log.first <= first <= self._log.end:
            raise RefusedError(5, "events are gone")
        self._log.release(first)
        wanted = first + min(limit, EVENTS_AT_ONCE)
        for _ in range(CHUNKS_AT_ONCE):
            if self._log.end >= wanted or self._stalled or self._state is not State.RUNNING:
                break
            chunk = self._link.next_events()
            if chunk is None:
                break
            self._register(chunk)
        return self._log.frame(limit)

    def _register(self, chunk: LinkChunk) -> None:
        """Put a chunk of the link's events into the log."""
        locked = not self._clock_is_free()
        if self._was_locked and not locked:
            self._log.add(self._log.last_ticks, Kind.CLOCK_ERROR)
        self._was_locked = locked
        row, detector = np.nonzero(chunk.pattern[:, None] >> np.arange(len(DETECTORS), dtype=np.uint8) & 1)
        ticks = chunk.ticks[row] * TICKS_PER_LINK_TICK + self._offset
        live = self._clicks(detector)
        ticks, detector = ticks[live], detector[live]
        kept = len(ticks) // 2 if Fault.OVERFLOW in self.faults else len(ticks)
        horizon_ticks = chunk.horizon_ticks * TICKS_PER_LINK_TICK + self._offset
        self.sent_events.add(ticks[:kept], detector[:kept] + 1)
        self._append(ticks[:kept], detector[:kept] + 1, horizon_ticks if kept == len(ticks) else int(ticks[kept]))
        if kept < len(ticks):
            self._log.add_loss(self._log.last_ticks, horizon_ticks, len(ticks) - kept)
            self._alarms |= ALARM_OVERRUN

    def _clicks(self, detector: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which clicks there are: less efficient detectors miss some, bright light blinds all."""
        efficiencies = np.array(self._efficiencies())
        if self.world.conditions["received_power_nw"] > BRIGHT_LIGHT_NW or not efficiencies.any():
            return np.zeros(len(detector), np.bool_)
        keep = efficiencies / efficiencies.max()
        if (keep == 1.0).all():
            return np.ones(len(detector), np.bool_)
        clicks: NDArray[np.bool_] = self._thin_rng.random(len(detector)) < keep[detector]
        return clicks

    def _append(self, ticks: NDArray[np.int64], value: NDArray[np.int64], horizon_ticks: int) -> None:
        """Append photons, with dummies where nothing happens for long."""
        for index, n in enumerate(np.bincount(value, minlength=len(DETECTORS) + 1)[1:]):
            self._photons[index] += int(n)
        kind = np.full(len(ticks), Kind.PHOTON, np.int64)
        before = np.concatenate(([self._log.last_ticks], ticks))
        if Fault.NON_MONOTONE in self.faults:
            early = (np.arange(len(ticks)) + sum(self._photons)) % BACKWARD_EVERY == 0
            ticks = np.where(early, np.maximum(before[:-1] - 1000, 0), ticks)
        after = np.append(ticks, max(horizon_ticks, int(before[-1])))
        idle = np.maximum(after - before - 1, 0) // DUMMY_AFTER_TICKS
        step = np.full(len(idle), DUMMY_AFTER_TICKS)
        if Fault.DUMMY_STORM in self.faults:
            storm = idle == 0
            idle[storm] = min(STORM_DUMMIES, STORM_LIMIT // len(idle))
            step[storm] = 0
        gap = np.repeat(np.arange(len(idle)), idle)
        nth = np.arange(len(gap)) - np.repeat(np.cumsum(idle) - idle, idle) + 1
        self._log.append(
            np.insert(ticks, gap, before[gap] + nth * step[gap]),
            np.insert(value, gap, 0),
            np.insert(kind, gap, Kind.DUMMY),
        )


def _quantised(name: str, value: float) -> float:
    low, high, steps = _RANGES[name.partition(".")[0]]
    return min(max(round(value * steps), math.ceil(low * steps)), math.floor(high * steps)) / steps

"""A transmitter unit that speaks GTX/1 (docs/reference/generic-transmitter-protocol.md)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import ClassVar

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.link_run import RECORD_CAPACITY_PULSES, LinkRun
from qkdhw_emulators.optics.parameters import (
    PROBABILITY_STEPS,
    LinkParameters,
    nearest_pulse_rate_hz,
    probability_weights,
    valid_intensity_probability,
    valid_mean_photon_number,
)
from qkdhw_emulators.units.generic_unit import GenericUnit, RefusedError, decimal, decimals, expect, integer, ok
from qkdhw_emulators.world import World

MAX_RECORDS = 4_194_304
MAX_PULSE_INDEX = 1 << 62
ALARM_OVERRUN = 0x01
ALARM_CLOCK = 0x02
ALARM_LASER_TEMPERATURE = 0x04
ALARM_BACK_REFLECTION = 0x08
LASER_TEMPERATURE_C = (15.0, 35.0)
BACK_REFLECTION_LIMIT_NW = 10.0


class EmulatedGenericTx(GenericUnit):
    """Answers GTX/1 commands byte for byte; no I/O, no clock of its own.

    Args:
        world: Surroundings; their seed is that of its own light source.
        light: Light source; without one the unit has its own, which runs without a receiver.
        faults: Faults that are on.

    Attributes:
        faults: Faults that are on; may be changed while the unit runs.
    """

    model: ClassVar[str] = "GTX-EMU"
    protocol: ClassVar[str] = "GTX/1"
    conditions: ClassVar[dict[str, float]] = {
        "laser_temperature_c": 25.0,
        "reference_clock_locked": 1.0,
        "back_reflection_dbm": -65.0,
    }
    unit_faults: ClassVar[frozenset[Fault]] = GenericUnit.unit_faults | {Fault.RECORD_OVERRUN, Fault.LASER_TEMPERATURE}

    def __init__(
        self, world: World | None = None, *, light: LinkRun | None = None, faults: Iterable[Fault | str] = ()
    ) -> None:
        world = world or World(seed=light.seed if light else 1)
        self.setting_names = frozenset(_PARSERS)
        super().__init__(world, light or LinkRun(LinkParameters(), seed=world.seed, receiver=False), faults)
        self._commands["REC?"] = self._read_records

    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        super().power_cycle()
        self._settings = _as_quantised(self._link.parameters)
        self._stalled = False
        self._link.stop_transmitter()
        self._link.records.clear()

    def _set(self, name: str, text: str) -> None:
        self._settings = _PARSERS[name](self._settings, text)

    def _get(self, name: str) -> str:
        value = getattr(self._settings, name)
        return ",".join(decimal(v) for v in (value if isinstance(value, tuple) else (value,)))

    def _look_around(self) -> None:
        self._link.hold_for_transmitter = Fault.RECORD_OVERRUN not in self.faults
        self._stalled |= Fault.FULL_BUFFER in self.faults
        if self._link.records.overrun:
            self._alarms |= ALARM_OVERRUN
            self._link.records.overrun = False
        super()._look_around()

    def _laser_temperature_c(self) -> float:
        return 41.7 if Fault.LASER_TEMPERATURE in self.faults else self.world.conditions["laser_temperature_c"]

    def _back_reflection_nw(self) -> float:
        return float(10 ** (self.world.conditions["back_reflection_dbm"] / 10) * 1e6)

    def _causes(self) -> int:
        bright = self._back_reflection_nw() > BACK_REFLECTION_LIMIT_NW
        return self._fatal_causes() | ALARM_CLOCK * self._clock_is_free() | ALARM_BACK_REFLECTION * bright

    def _fatal_causes(self) -> int:
        low_c, high_c = LASER_TEMPERATURE_C
        return 0 if low_c <= self._laser_temperature_c() <= high_c else ALARM_LASER_TEMPERATURE

    def _started(self) -> bytes:
        self._stalled = Fault.FULL_BUFFER in self.faults
        self._link.start_transmitter(self._settings)
        return ok()

    def _stopped(self) -> None:
        self._link.stop_transmitter()

    def _counts(self) -> dict[str, int]:
        records = self._link.records
        buffered = RECORD_CAPACITY_PULSES if self._stalled else records.buffered
        return {"pulses": records.end, "buffered": buffered, "lost": records.lost}

    def _monitors(self) -> dict[str, float]:
        means = {f"mean_photon_number_{k}": mean for k, mean in enumerate(self._settings.mean_photon_number)}
        readings = {"laser_bias_ma": 42.1, "laser_temperature_c": self._laser_temperature_c(), "attenuator_db": 38.6}
        return readings | means | {"back_reflection_nw": round(self._back_reflection_nw(), 3)}

    def _read_records(self, arguments: list[str]) -> bytes:
        expect(arguments, 2)
        first, limit = (integer(a) for a in arguments)
        if first % 2 or first > MAX_PULSE_INDEX or not 1 <= limit <= MAX_RECORDS:
            raise RefusedError(2, "first pulse is even, at most 4194304 records")
        records = self._link.records
        if first < records.first:
            raise RefusedError(5, "records are gone")
        records.forget(first)
        if not self._stalled:
            self._link.fill_records(first + limit)
        if first < records.first:
            raise RefusedError(5, "records are gone")
        n = (
            0 if self._stalled else max(0, min(limit, records.end - first)) & ~1
        )  # pulses come in whole chunks, so the last is odd
        body = records.read(first, n) if n else b""
        return ok(f"{first} {n}") + body + zlib.crc32(body).to_bytes(4, "little")


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def _with_pulse_rate(settings: LinkParameters, text: str) -> LinkParameters:
    rate_hz = integer(text)
    if not 1_000_000 <= rate_hz <= 5_000_000_000:
        raise RefusedError(2, "pulse_rate_hz is 1000000 to 5000000000")
    return replace(settings, pulse_rate_hz=nearest_pulse_rate_hz(rate_hz))


def _with_mean_photon_number(settings: LinkParameters, text: str) -> LinkParameters:
    values = _three(round(v, 6) for v in decimals(text, 3))
    if not valid_mean_photon_number(values):
        raise RefusedError(2, "mean_photon_number is 0 to 2, strictly falling")
    return replace(settings, mean_photon_number=values)


def _with_intensity_probability(settings: LinkParameters, text: str) -> LinkParameters:
    values = _three(decimals(text, 3))
    if not valid_intensity_probability(values):
        raise RefusedError(2, "intensity_probability is above 0 with sum 1")
    return _as_quantised(replace(settings, intensity_probability=values))


def _with_key_basis_probability(settings: LinkParameters, text: str) -> LinkParameters:
    (value,) = decimals(text, 1)
    if not 0.05 <= value <= 0.95:
        raise RefusedError(2, "key_basis_probability is 0.05 to 0.95")
    return _as_quantised(replace(settings, key_basis_probability=value))


def _as_quantised(settings: LinkParameters) -> LinkParameters:
    """Round both probabilities to 65536ths, the key basis inside its range."""
    p = _three(w / PROBABILITY_STEPS for w in probability_weights(settings.intensity_probability))
    key = min(max(round(settings.key_basis_probability * PROBABILITY_STEPS), 3277), 62259)
    return replace(settings, intensity_probability=p, key_basis_probability=key / PROBABILITY_STEPS)


_PARSERS: dict[str, Callable[[LinkParameters, str], LinkParameters]] = {
    "pulse_rate_hz": _with_pulse_rate,
    "mean_photon_number": _with_mean_photon_number,
    "intensity_probability": _with_intensity_probability,
    "key_basis_probability": _with_key_basis_probability,
}

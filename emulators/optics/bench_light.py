"""The light of an emulated bench: from the laser through all units on its path to detectors behind an analyser.

Light has a power and a state of polarisation, a point on the Poincare sphere: (1, 0, 0) is horizontal, (0, 1, 0)
diagonal. It leaves the laser horizontal and stays so up to the fibre, which turns it somewhere. A splitter and two
polarising splitters follow the fibre: horizontal is bit 0 of the key basis, diagonal bit 0 of the test basis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.bench_clicks import ClickHistory
from qkdhw_emulators.optics.drift import rotation_about
from qkdhw_emulators.world import World

PLANCK_J_S, LIGHT_M_PER_S = 6.62607015e-34, 299_792_458.0
HORIZONTAL = np.array([1.0, 0.0, 0.0])
AXES = {"key": 0, "test": 1}  # component of the state that a basis sees
EXTINCTION = 10**-2.7  # share of the light that a polarising splitter sends the wrong way
RESOLUTION_S = 1e-3
STEP_MOVING_S, STEP_STILL_S, MOST_STEPS = 0.02, 1.0, 1000
DRIFT_PERIODS_S = (600.0, 7200.0)  # shortest and longest
CONDITIONS = {
    "fibre_connected": 1.0,
    "fibre_twist_rad": 0.0,  # how far somebody has bent it: turns the polarisation
    "fibre_drift_rad": 0.1,  # how far the weather turns it, within hours
}


@runtime_checkable
class LightSource(Protocol):
    """A unit that emits light."""

    def optical_power_w(self) -> float:
        """Return its power now."""
        ...


@runtime_checkable
class LightFilter(Protocol):
    """A unit that lets a part of the light pass."""

    @property
    def transmittance(self) -> float:
        """Part that passes now."""
        ...


@runtime_checkable
class Retarding(Protocol):
    """A unit that turns polarisation.

    Attributes:
        in_fibre: Whether the light comes to it by the fibre.
        moving: Whether it changes by itself at present.
    """

    in_fibre: bool

    @property
    def moving(self) -> bool: ...  # noqa: D102

    def retarders(self, at_s: float) -> Sequence[tuple[float, float]]:
        """Return angle and retardance of its wave plates in radians, at a time since which nothing was changed."""
        ...


@runtime_checkable
class ClickingDetectors(Protocol):
    """A unit with photon detectors."""

    n_detectors: int
    dead_time_s: float

    def rates_hz(self, light_hz: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the mean click rate of each detector for the photons that come to it a second."""
        ...


@dataclass(frozen=True, slots=True)
class Port:
    """An output of the analyser.

    Attributes:
        detector: Number of the detector behind it, from 0.
        basis: "key" or "test".
        bit: Bit value.
    """

    detector: int
    basis: str
    bit: int


class BenchLight:
    """Follows the light through the units, and so the detectors' click rates through time.

    Args:
        world: Surroundings of the receiver: its conditions are those of the fibre.
        path: The units that the light passes on its way from the source to the detectors, both among them.
        ports: Where the detectors are.
        fixed_loss_db: Loss of what is no unit.
        wavelength_nm: Of the light.

    Attributes:
        history: The detectors' click rates up to now.
    """

    def __init__(
        self, world: World, path: Sequence[Any], ports: Sequence[Port], *, fixed_loss_db: float, wavelength_nm: float
    ) -> None:
        self._world = world
        self._source, *between, self._detectors = path
        self._filters = [unit for unit in between if isinstance(unit, LightFilter)]
        self._retarding = [unit for unit in between if isinstance(unit, Retarding)]
        self._ports = tuple(ports)
        photon_j = PLANCK_J_S * LIGHT_M_PER_S / (wavelength_nm * 1e-9)
        self._photons_per_j = 10 ** (-fixed_loss_db / 10) / photon_j
        self._share_of_basis = 1 / max(1, len({port.basis for port in ports}))
        rng = world.rng("fibre")
        axis = rng.standard_normal(3)
        self._fibre = rotation_about(axis / np.linalg.norm(axis) * rng.uniform(0.5, 1.0) * math.pi)
        shortest, longest = map(math.log, DRIFT_PERIODS_S)
        self._drift_hz = np.exp(-rng.uniform(shortest, longest, 3))
        self._drift_from = rng.uniform(0, 2 * math.pi, 3)
        self._twist_axis = rng.standard_normal(3)
        self._twist_axis /= np.linalg.norm(self._twist_axis)
        world.declare(CONDITIONS)
        self.history = ClickHistory(self._detectors.n_detectors, self._detectors.dead_time_s)
        world.followers.append(self.come_to_now)

    def come_to_now(self) -> None:
        """Take in how the units were until now; what was set less than a millisecond ago counts from then on."""
        begin_s, now_s = self.history.now_s, self._world.now_s()
        if now_s - begin_s < RESOLUTION_S:
            return
        moving = any(unit.moving for unit in self._retarding)
        n = min(math.ceil((now_s - begin_s) / (STEP_MOVING_S if moving else STEP_STILL_S)), MOST_STEPS)
        step_s = (now_s - begin_s) / n
        for number in range(n):
            end_s = now_s if number == n - 1 else begin_s + (number + 1) * step_s
            self.history.extend(end_s, self._detectors.rates_hz(self.light_hz(begin_s + (number + 0.5) * step_s)))

    def light_hz(self, at_s: float) -> NDArray[np.float64]:
        """Return the photons a second at each detector, for the units as they are and the fibre at a time."""
        photons_hz = (
            self._source.optical_power_w() * self._photons_per_j * (self._world.conditions["fibre_connected"] > 0.5)
        )
        for unit in self._filters:
            photons_hz *= unit.transmittance
        state = self._state(at_s)
        light_hz = np.zeros(self._detectors.n_detectors)
        for port in self._ports:
            seen = float(state[AXES[port.basis]]) * (1 - 2 * port.bit)
            light_hz[port.detector] += photons_hz * self._share_of_basis * (1 + (1 - 2 * EXTINCTION) * seen) / 2
        return light_hz

    def _state(self, at_s: float) -> NDArray[np.float64]:
        """Return the state of polarisation at the analyser."""
        state, fibre_to_come = HORIZONTAL, True
        for unit in self._retarding:
            if unit.in_fibre and fibre_to_come:
                state, fibre_to_come = self._fibre_at(at_s) @ state, False
            for angle, retardance in unit.retarders(at_s):
                axis = np.array([math.cos(2 * angle), math.sin(2 * angle), 0.0])
                state = rotation_about(axis * retardance) @ state
        return self._fibre_at(at_s) @ state if fibre_to_come else state

    def _fibre_at(self, at_s: float) -> NDArray[np.float64]:
        conditions = self._world.conditions
        drift = np.sin(2 * math.pi * self._drift_hz * at_s + self._drift_from) * conditions["fibre_drift_rad"]
        turned: NDArray[np.float64] = (
            rotation_about(self._twist_axis * conditions["fibre_twist_rad"]) @ rotation_about(drift) @ self._fibre
        )
        return turned

"""Which emulated units of a bench the light passes, and whose inputs its detectors are connected to."""

from __future__ import annotations

import inspect
from typing import Any

from qkdhw.bench import BenchFile, Optics
from qkdhw.errors import ConfigurationError
from qkdhw_emulators.in_process import emulator_class
from qkdhw_emulators.optics.bench_clicks import BenchInputs
from qkdhw_emulators.optics.bench_light import (
    BenchLight,
    ClickingDetectors,
    LightFilter,
    LightSource,
    Port,
    Retarding,
)
from qkdhw_emulators.world import World

REPLACED_CONDITIONS = ("light_rate_hz",)


def coupled_units(file: BenchFile, optics: Optics, world: World) -> dict[str, Any]:
    """Make the units of a bench file whose light takes this path.

    Args:
        file: The bench file.
        optics: What the light passes.
        world: Surroundings of the bench.

    Returns:
        The units by their names.

    Raises:
        ConfigurationError: Light cannot take this path, or a detector is wired to what takes no pulses.
    """
    units = {label: emulator_class(file.units[label].name)(world.part(label)) for label in optics.path}
    _check_path(units)
    receiver = optics.path[-1]
    light = BenchLight(
        world.part(receiver), list(units.values()), _ports(file, receiver, units[receiver].n_detectors),
        fixed_loss_db=optics.fixed_loss_db, wavelength_nm=optics.wavelength_nm,
    )  # fmt: skip
    units[receiver].clicks = light.history
    for name in REPLACED_CONDITIONS:
        world.part(receiver).conditions.pop(name, None)
    numbers = {name: channel - 1 for channel, name in _detectors_at(file, receiver).items()}
    for label, unit in file.units.items():
        wired = _detectors_at(file, label) if label != receiver else {}
        emulator = emulator_class(unit.name)
        if wired and (label in units or "inputs" not in inspect.signature(emulator).parameters):
            raise ConfigurationError(
                f"wiring: the emulated unit {label!r} takes no pulses from detectors of a bench",
                remedy="Wire another tagger, or leave [optics] out.",
            )
        if wired:
            inputs = BenchInputs(light.history, _numbered(wired, numbers, label), world.part(label))
            units[label] = emulator(world.part(label), inputs=inputs)
        elif label not in units:
            units[label] = emulator(world.part(label))
    return units


def _check_path(path: dict[str, Any]) -> None:
    """Check that each unit does with light what its place on the path asks for."""
    wanted: dict[int, tuple[str, tuple[type, ...]]] = {
        0: ("a light source", (LightSource,)), len(path) - 1: ("photon detectors", (ClickingDetectors,)),
    }  # fmt: skip
    for number, (label, unit) in enumerate(path.items()):
        what, kinds = wanted.get(number, ("a unit that light passes", (LightFilter, Retarding)))
        if not isinstance(unit, kinds) or len(path) == 1:
            raise ConfigurationError(
                f"optics.path.{number}: the emulated unit {label!r} is not {what}",
                remedy="A path begins with a light source and ends with photon detectors.",
            )


def _ports(file: BenchFile, receiver: str, n_detectors: int) -> list[Port]:
    ports = [Port(wire.channel - 1, wire.basis, wire.bit) for wire in file.wiring if wire.unit == receiver]
    if not ports or max(port.detector for port in ports) >= n_detectors:
        raise ConfigurationError(
            f"wiring: {receiver!r} has {n_detectors} detectors, and the bench file does not say well what they see",
            remedy=f'Add [[wiring]] with unit = "{receiver}", channel = 1 to {n_detectors}, detector, basis, bit.',
        )
    return ports


def _detectors_at(file: BenchFile, label: str) -> dict[int, str]:
    """Return the name of the detector at each wired channel of a unit."""
    return {wire.channel: wire.detector for wire in file.wiring if wire.unit == label}


def _numbered(wired: dict[int, str], numbers: dict[str, int], label: str) -> dict[int, int]:
    """Return the detector, from 0, at each input."""
    for channel, name in wired.items():
        if name not in numbers:
            raise ConfigurationError(
                f"wiring: channel {channel} of {label!r} is connected to {name!r}, which is no detector of the bench",
                remedy=f"There are: {', '.join(numbers)}.",
            )
    return {channel: numbers[name] for channel, name in wired.items()}

"""Which emulated units of a bench the light passes, and whose inputs its detectors are connected to."""

from __future__ import annotations

import inspect
from typing import Any

from qkdhw.bench import BenchFile
from qkdhw.errors import ConfigurationError
from qkdhw_emulators.in_process import emulator_class
from qkdhw_emulators.optics.bench_clicks import BenchInputs, detectors_at_inputs
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


def coupled_units(file: BenchFile, world: World) -> dict[str, Any]:
    """Make the units of a bench file whose light takes the path in the file.

    Args:
        file: The bench file, with `optics`.
        world: Surroundings of the bench.

    Returns:
        The units by their names.

    Raises:
        ConfigurationError: Light cannot take this path, or a detector is wired to what takes no pulses.
    """
    if file.optics is None:
        raise ConfigurationError("the bench file has no [optics]", remedy="Say what the light passes.")
    path = file.optics.path
    units = {label: emulator_class(file.units[label].name)(world.part(label)) for label in path}
    _check_path({label: units[label] for label in path})
    detectors, receiver = units[path[-1]], world.part(path[-1])
    light = BenchLight(
        receiver, [units[label] for label in path], _ports(file, path[-1], detectors.n_detectors),
        fixed_loss_db=file.optics.fixed_loss_db, wavelength_nm=file.optics.wavelength_nm,
    )  # fmt: skip
    detectors.clicks = light.history
    for name in REPLACED_CONDITIONS:
        receiver.conditions.pop(name, None)
    for label in file.units.keys() - units.keys():
        units[label] = _unit_beside(file, label, world.part(label), light, path[-1])
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


def _ports(file: BenchFile, detectors: str, n_detectors: int) -> list[Port]:
    ports = [Port(wire.channel - 1, wire.basis, wire.bit) for wire in file.wiring if wire.unit == detectors]
    if not ports or max(port.detector for port in ports) >= n_detectors:
        raise ConfigurationError(
            f"wiring: {detectors!r} has {n_detectors} detectors, and the bench file does not say well what they see",
            remedy=f'Add [[wiring]] with unit = "{detectors}", channel = 1 to {n_detectors}, detector, basis, bit.',
        )
    return ports


def _unit_beside(file: BenchFile, label: str, world: World, light: BenchLight, detectors: str) -> Any:
    """Make a unit that is not on the path; a tagger gets the pulses of the detectors wired to it."""
    emulator = emulator_class(file.units[label].name)
    wired = {wire.channel: wire.detector for wire in file.wiring if wire.unit == label}
    if not wired:
        return emulator(world)
    names = {wire.channel: wire.detector for wire in file.wiring if wire.unit == detectors}
    if "inputs" not in inspect.signature(emulator).parameters:
        raise ConfigurationError(
            f"wiring: the emulated unit {label!r} takes no pulses from detectors of a bench",
            remedy="Wire another tagger, or leave [optics] out.",
        )
    inputs = BenchInputs(light.history, detectors_at_inputs(wired, names, where=label), world)
    return emulator(world, inputs=inputs)

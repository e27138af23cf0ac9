"""A whole emulated bench from a bench file: every unit is served exactly where the file says that it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qkdhw.bench import Bench, BenchFile, read_bench_file
from qkdhw_emulators.bench_coupling import coupled_units
from qkdhw_emulators.in_process import emulator_class
from qkdhw_emulators.line import Line
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.serve import serve_at
from qkdhw_emulators.world import World

TRANSMITTERS = ("generic-tx",)
FIBRE = "fibre_connected"


@dataclass(frozen=True, slots=True)
class ServedBench:
    """An emulated bench.

    Attributes:
        file: The bench file.
        urls: Where each unit is, by its name in the file.
        lines: The lines to the units, with their faults and conditions.
        world: Clock and seed that they share.
    """

    file: BenchFile
    urls: dict[str, str]
    lines: dict[str, Line]
    world: World

    def open(self, *, timeout_s: float = 5.0) -> Bench:
        """Open all units where they really are: a port that the file leaves open was chosen meanwhile.

        Raises:
            QkdhwError: As `qkdhw.bench.open_bench`.
        """
        units = {label: unit.model_copy(update={"url": self.urls[label]}) for label, unit in self.file.units.items()}
        return Bench(self.file.model_copy(update={"units": units}), timeout_s=timeout_s)


@contextmanager
def serve_bench(path: Path, world: World | None = None) -> Iterator[ServedBench]:
    """Serve all units of a bench file on one clock.

    If the file says what the light passes, that is where it goes: through these units to the detectors, and their
    clicks to the taggers that they are wired to. Else a transmitter and a receiver get one fibre between them, and the
    receiver has the condition `fibre_connected`.

    Args:
        path: The bench file; addresses lead to this machine: a port of 127.0.0.1, a terminal's path that is free.
        world: Clock and seed; in real time, seed 1, if left out.

    Raises:
        ConfigurationError: The file is wrong, an address is not this machine's or is taken, or light cannot take the
            path in the file.
    """
    world = world or World()
    file = read_bench_file(path)
    units = coupled_units(file, file.optics, world) if file.optics else _linked_units(file, world)
    with ExitStack() as stack:
        lines, urls = {}, {}
        for label, unit in file.units.items():
            lines[label] = Line(units[label], world.part(label))
            urls[label] = stack.enter_context(serve_at(unit.url, lines[label]))
        yield ServedBench(file, urls, lines, world)


def _linked_units(file: BenchFile, world: World) -> dict[str, Any]:
    """Make all units; a transmitter and a receiver share light."""
    light = _shared_light(file, world)
    units = {}
    for label, unit in file.units.items():
        part = world.part(label)
        emulator = emulator_class(unit.name)
        if light is None or "light" not in inspect.signature(emulator).parameters:
            units[label] = emulator(part)
            continue
        units[label] = emulator(part, light=light)
        if unit.name not in TRANSMITTERS:
            part.declare({FIBRE: 1.0})
            light.fibre_connected = partial(_is_connected, part)
    return units


def _is_connected(receiver: World) -> bool:
    return receiver.conditions[FIBRE] > 0.5


def _shared_light(file: BenchFile, world: World) -> LinkRun | None:
    """Return one light source if the bench has a transmitter and one receiver to share it."""
    names = [unit.name for unit in file.units.values()]
    transmitters = [name for name in names if name in TRANSMITTERS]
    others = [name for name in names if name not in TRANSMITTERS]
    receivers = [name for name in others if "light" in inspect.signature(emulator_class(name)).parameters]
    if len(transmitters) != 1 or len(receivers) != 1:
        return None
    return LinkRun(LinkParameters(), seed=world.seed)

"""A bench that is open: its units by name, checked and set up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qkdhw.bench.check import mistakes_in
from qkdhw.bench.file import BenchFile, BenchUnit, read_bench_file
from qkdhw.bench.lease import lease
from qkdhw.drivers import open_unit
from qkdhw.errors import ConfigurationError, UnitError
from qkdhw.model import Basis, UnitInfo

NOT_SHARED = ("emu:", "replay:")  # inside this process


class Bench:
    """Open units by name; a context manager that closes all of them.

    Attributes:
        units: The open units by their names in the file.
        identities: Who each unit said it is.
        settings: What each unit said its settings are, as quantised.
        wiring: What is connected to which input.
    """

    def __init__(self, file: BenchFile, *, timeout_s: float = 5.0, lease_wait_s: float = 0.0) -> None:
        self.units: dict[str, Any] = {}
        self.identities: dict[str, UnitInfo] = {}
        self.settings: dict[str, Mapping[str, Any]] = {}
        self.wiring = file.wiring
        for mistake in mistakes_in(file):
            raise mistake
        with ExitStack() as stack:
            for label, wanted in file.units.items():
                opened = _opened(label, wanted, timeout_s=timeout_s, lease_wait_s=lease_wait_s)
                self.units[label], self.identities[label] = stack.enter_context(opened)
            for label, unit in self.units.items():  # not before all are there, and are those that they should be
                self.settings[label] = _configured(label, file.units[label], unit)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        units = ", ".join(f"{label}: {type(unit).__name__}" for label, unit in self.units.items())
        return f"<Bench of {units}>"

    def detectors(self, unit: str) -> dict[int, tuple[Basis, int]]:
        """Return basis and bit value for each wired input of a unit."""
        return {
            wire.channel: (Basis.KEY if wire.basis == "key" else Basis.TEST, wire.bit)
            for wire in self.wiring
            if wire.unit == unit
        }

    def snapshot(self) -> dict[str, Any]:
        """Read identity and all settings of every unit, and the wiring; JSON-able."""
        return {
            "units": {label: unit.snapshot() for label, unit in self.units.items()},
            "wiring": [wire.model_dump() for wire in self.wiring],
        }

    def close(self) -> None:
        """Stop and close all units, the last opened first; closing twice is allowed."""
        self._stack.close()


def open_bench(path: Path | str, *, timeout_s: float = 5.0, lease_wait_s: float = 0.0) -> Bench:
    """Open all units of a bench file, check who they are and apply their settings.

    Args:
        path: The TOML file.
        timeout_s: Longest wait for each connection and answer.
        lease_wait_s: How long to wait for another bench on this machine to let a unit go.

    Raises:
        ConfigurationError: The file cannot be read, or a field of it is wrong; the message names the field. As far as
            the driver classes tell, it is found before any unit is opened.
        TransportError: An address leads nowhere, or another bench has the unit.
        UnitError: A unit is not the one that the file names.
    """
    return Bench(read_bench_file(path), timeout_s=timeout_s, lease_wait_s=lease_wait_s)


@contextmanager
def open_bench_unit(file: BenchFile, label: str, *, timeout_s: float = 5.0) -> Iterator[Any]:
    """Have one unit of a bench open while the body runs: the one that the file names, its settings as they are.

    Raises:
        ConfigurationError: The file has no such unit, or its address or options are wrong.
        TransportError: The address leads nowhere, or another bench has the unit.
        UnitError: It is not the unit that the file names.
    """
    with _opened(label, file.unit(label), timeout_s=timeout_s, lease_wait_s=0.0) as (unit, _):
        yield unit


@contextmanager
def _opened(label: str, wanted: BenchUnit, *, timeout_s: float, lease_wait_s: float) -> Iterator[tuple[Any, UnitInfo]]:
    shared = not wanted.url.startswith(NOT_SHARED)
    with (
        lease(wanted.url, wait_s=lease_wait_s) if shared else nullcontext(),
        open_unit(wanted.name, wanted.url, timeout_s=timeout_s, **wanted.options) as unit,
    ):
        yield unit, _checked_identity(label, wanted, unit.identify())


def _checked_identity(label: str, wanted: BenchUnit, info: UnitInfo) -> UnitInfo:
    for field in ("model", "serial_number", "firmware"):
        want, got = getattr(wanted, field), getattr(info, field)
        if want is not None and want != got:
            raise UnitError(
                f"units.{label}.{field}: {wanted.url} is {got!r}, the bench file says {want!r}",
                remedy="check which unit is at this address",
            )
    return info


def _configured(label: str, wanted: BenchUnit, unit: Any) -> Mapping[str, Any]:
    if not wanted.settings:
        return {}
    try:
        settings: Mapping[str, Any] = unit.configure(wanted.settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"units.{label}.settings: {error}", remedy=error.remedy) from error
    return settings

"""A bench: the units on one table, opened from a file that names them, their settings and their wiring.

[units.receiver]
name = "sfifteen-tdc1"
url = "serial:///dev/ttyACM0"
serial_number = "1234"              # optional: refuse another one; so is model
settings = { input_logic = "nim" }

[[wiring]]
unit = "receiver"
channel = 1
detector = "D0"
basis = "key"
bit = 0
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qkdhw.drivers import open_unit
from qkdhw.errors import ConfigurationError, UnitError
from qkdhw.model import Basis, UnitInfo

_REMEDY = "see docs/how-to/open-a-unit.md for the form of a bench file"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BenchUnit(_Strict):
    """One unit: driver name, address, who it must be, settings."""

    name: str
    url: str
    model: str | None = None
    serial_number: str | None = None
    settings: dict[str, Any] = {}


class Wire(_Strict):
    """What is connected to one input of a unit.

    Attributes:
        unit: Name of the unit in the file.
        channel: Input number, from 1.
        detector: Name of the detector.
        basis: "key" or "test".
        bit: Bit value that a click of this detector means.
    """

    unit: str
    channel: Annotated[int, Field(ge=1, le=255)]
    detector: str
    basis: Literal["key", "test"]
    bit: Annotated[int, Field(ge=0, le=1)]


class BenchFile(_Strict):
    """A bench file."""

    units: Annotated[dict[str, BenchUnit], Field(min_length=1)]
    wiring: tuple[Wire, ...] = ()

    @model_validator(mode="after")
    def _wires_lead_to_units(self) -> Self:
        inputs = [(wire.unit, wire.channel) for wire in self.wiring]
        for number, (unit, channel) in enumerate(inputs):
            if unit not in self.units:
                raise ValueError(f"wiring.{number}.unit: there is no unit {unit!r}")
            if (unit, channel) in inputs[:number]:
                raise ValueError(f"wiring.{number}.channel: {unit} channel {channel} is wired twice")
        return self


class Bench:
    """Open units by name; a context manager that closes all of them.

    Attributes:
        units: The open units by their names in the file.
        identities: Who each unit said it is.
        settings: What each unit said its settings are, as quantised.
        wiring: What is connected to which input.
    """

    def __init__(self, file: BenchFile, *, timeout_s: float = 5.0) -> None:
        self.units: dict[str, Any] = {}
        self.identities: dict[str, UnitInfo] = {}
        self.settings: dict[str, Mapping[str, Any]] = {}
        self.wiring = file.wiring
        with ExitStack() as stack:
            for label, wanted in file.units.items():
                unit = stack.enter_context(open_unit(wanted.name, wanted.url, timeout_s=timeout_s))
                self.identities[label] = _checked_identity(label, wanted, unit.identify())
                self.settings[label] = _configured(label, wanted, unit)
                self.units[label] = unit
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def detectors(self, unit: str) -> dict[int, tuple[Basis, int]]:
        """Return basis and bit value for each wired input of a unit."""
        return {
            wire.channel: (Basis.KEY if wire.basis == "key" else Basis.TEST, wire.bit)
            for wire in self.wiring
            if wire.unit == unit
        }

    def close(self) -> None:
        """Stop and close all units, the last opened first; closing twice is allowed."""
        self._stack.close()


def open_bench(path: Path | str, *, timeout_s: float = 5.0) -> Bench:
    """Open all units of a bench file, check who they are and apply their settings.

    Args:
        path: The TOML file.
        timeout_s: Longest wait for each connection and answer.

    Raises:
        ConfigurationError: The file cannot be read, or a field of it is wrong; the message names the field.
        TransportError: An address leads nowhere.
        UnitError: A unit is not the one that the file names.
    """
    try:
        file = BenchFile.model_validate(tomllib.loads(Path(path).read_text("utf-8")))
    except OSError as error:
        raise ConfigurationError(f"bench file {path}: {error.strerror}", remedy="check the path") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        text = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"bench file {path}: {where + ': ' if where else ''}{text}", remedy=_REMEDY) from error
    except ValueError as error:
        raise ConfigurationError(f"bench file {path} is not TOML: {error}", remedy=_REMEDY) from error
    return Bench(file, timeout_s=timeout_s)


def _checked_identity(label: str, wanted: BenchUnit, info: UnitInfo) -> UnitInfo:
    for field in ("model", "serial_number"):
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

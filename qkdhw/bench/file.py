"""A bench file: the units on one table, their addresses, settings, wiring and the path of the light, in TOML.

[units.receiver]
name = "sfifteen-tdc1"
url = "serial:///dev/ttyACM0"
serial_number = "1234"              # optional: refuse another one; so are model and firmware
settings = { input_logic = "nim" }
options = {}                        # optional: what the driver takes beside its address

[[wiring]]
unit = "receiver"
channel = 1
detector = "D0"
basis = "key"
bit = 0

[optics]                            # optional: what the light passes, in this order
path = ["laser", "attenuator", "detectors"]
fixed_loss_db = 45                  # optional: of all that is no unit
wavelength_nm = 1550                # optional
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from qkdhw.errors import ConfigurationError

_REMEDY = (
    'the form: [units.LABEL] with name = "DRIVER", url = "ADDRESS"; if wanted settings = {..}, options = {..}, model, '
    'serial_number, firmware; [[wiring]] with unit = "LABEL", channel = 1, detector = "D0", basis = "key", bit = 0; '
    '[optics] with path = ["LABEL", ...]'
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BenchUnit(_Strict):
    """One unit: driver name, address, who it must be, what its driver takes, settings."""

    name: str
    url: str
    model: str | None = None
    serial_number: str | None = None
    firmware: str | None = None
    options: dict[str, Any] = {}
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


class Optics(_Strict):
    """What the light passes; opening a bench uses none of it, emulated units are coupled by it.

    Attributes:
        path: Names of units in the file, from the source to the detectors; which tagger's inputs the detectors are
            connected to is in the wiring.
        fixed_loss_db: Loss of what is no unit: fibre, fixed attenuators.
        wavelength_nm: Of the light.
    """

    path: tuple[str, ...]
    fixed_loss_db: Annotated[float, Field(ge=0, le=300)] = 0.0
    wavelength_nm: Annotated[float, Field(gt=100, lt=20_000)] = 1550.0


class BenchFile(_Strict):
    """A bench file."""

    units: Annotated[dict[str, BenchUnit], Field(min_length=1)]
    wiring: tuple[Wire, ...] = ()
    optics: Optics | None = None

    def unit(self, label: str) -> BenchUnit:
        """Return the unit of this name.

        Raises:
            ConfigurationError: There is none.
        """
        if label not in self.units:
            raise ConfigurationError(f"the bench file has no unit {label!r}", remedy=f"units: {', '.join(self.units)}")
        return self.units[label]

    @model_validator(mode="after")
    def _wires_lead_to_units(self) -> Self:
        inputs = [(wire.unit, wire.channel) for wire in self.wiring]
        for number, (unit, channel) in enumerate(inputs):
            if unit not in self.units:
                raise ValueError(f"wiring.{number}.unit: there is no unit {unit!r}")
            if (unit, channel) in inputs[:number]:
                raise ValueError(f"wiring.{number}.channel: {unit} channel {channel} is wired twice")
        return self

    @model_validator(mode="after")
    def _light_passes_units_once(self) -> Self:
        if self.optics is None:
            return self
        path = self.optics.path
        if not path:
            raise ValueError("optics.path: the light must pass at least one unit")
        for number, label in enumerate(path):
            if label not in self.units:
                raise ValueError(f"optics.path.{number}: there is no unit {label!r}")
            if label in path[:number]:
                raise ValueError(f"optics.path.{number}: {label} is on the path twice")
        return self


def read_bench_file(path: Path | str) -> BenchFile:
    """Read and check a bench file; nothing is opened.

    Raises:
        ConfigurationError: It cannot be read, or a field of it is wrong; the message names the field.
    """
    try:
        return BenchFile.model_validate(tomllib.loads(Path(path).read_text("utf-8")))
    except OSError as error:
        raise ConfigurationError(f"bench file {path}: {error.strerror}", remedy="check the path") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        text = _said(first)
        raise ConfigurationError(f"bench file {path}: {where + ': ' if where else ''}{text}", remedy=_REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"bench file {path} is not TOML: {error}", remedy=_REMEDY) from error


def _said(error: ErrorDetails) -> str:
    """Say what is wrong with a field."""
    if error["type"] == "extra_forbidden":
        place = error["loc"]
        models: dict[Any, type[BaseModel]] = {"units": BenchUnit, "wiring": Wire, "optics": Optics}
        model = BenchFile if len(place) == 1 else models[place[0]]
        return f"there is no such field; fields: {', '.join(model.model_fields)}"
    if wanted := _KINDS.get(error["type"]):
        return wanted
    return error["msg"].removeprefix("Value error, ").replace("Input should", "this must")


_KINDS = {
    "missing": "this field is missing",
    "string_type": "this must be a text in quotes",
    "dict_type": "this must be a table",
    "model_type": "this must be a table",
    "int_type": "this must be a whole number",
    "int_parsing": "this must be a whole number",
    "int_from_float": "this must be a whole number",
    "tuple_type": "this must be a list of tables, [[wiring]]",
    "too_short": "at least one [units.LABEL] is needed",
}

"""Optical links by name or from a file: presets of published systems, and the same form for links of one's own."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.nearest_name import did_you_mean
from qkdhw_emulators.optics.setup import (
    Afterpulse,
    AfterpulsePowerLaw,
    Channel,
    Detector,
    Gate,
    Intensity,
    OpticalSetup,
    Receiver,
    Source,
    Tagger,
)

MAX_FILE_BYTES = 65_536

_PRESETS = resources.files("qkdhw_emulators.optics") / "presets"
_REMEDY = "the form: tables [source], [channel], [receiver], [tagger]; fields: docs/reference/optical-presets.md"
TABLES: dict[str, type[BaseModel]] = {
    "source": Source,
    "intensities": Intensity,
    "channel": Channel,
    "receiver": Receiver,
    "sender_receiver": Receiver,
    "detectors": Detector,
    "afterpulses": Afterpulse,
    "afterpulse_power_law": AfterpulsePowerLaw,
    "gate": Gate,
    "tagger": Tagger,
    "sender_tagger": Tagger,
}


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets, sorted."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in _PRESETS.iterdir() if p.name.endswith(".toml")))


def load_setup(name_or_path: str | Path) -> OpticalSetup:
    """Read a link from a preset or from a TOML file of the same form.

    Args:
        name_or_path: Name of a preset, or path of a file. A text with a slash or the ending .toml is a path.

    Returns:
        The checked setup.

    Raises:
        ConfigurationError: There is no such preset or file, the file is above 64 KiB or not TOML, or a field is wrong;
            the message names the file and the field.
    """
    return _parse(*_read(name_or_path))


def setup_head(name_or_path: str | Path) -> str:
    """Return the comment lines at the head of a preset or file, which say what is fitted or chosen, for `dump_setup`.

    Raises:
        ConfigurationError: As `load_setup`.
    """
    data, what = _read(name_or_path)
    _parse(data, what)
    lines = data.decode("utf-8").splitlines()
    return "".join(f"{line}\n" for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def _read(name_or_path: str | Path) -> tuple[bytes, str]:
    """Return what a preset or file holds, and what error messages call it."""
    text = str(name_or_path)
    if isinstance(name_or_path, str) and "/" not in text and not text.endswith(".toml"):
        if text not in preset_names():
            meant, presets = did_you_mean(text, preset_names()), ", ".join(preset_names())
            raise ConfigurationError(
                f"there is no optical preset {text!r}",
                remedy=f"{meant}give the path of a .toml file, or one of: {presets}",
            )
        return (_PRESETS / f"{text}.toml").read_bytes(), f"preset {text}"
    try:
        with Path(name_or_path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"optical setup {text}: {reason}", remedy="check the path") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(
            f"optical setup {text} is above {MAX_FILE_BYTES} bytes",
            remedy="a setup has a few kilobytes; check the path",
        )
    return data, f"optical setup {text}"


def dump_setup(setup: OpticalSetup, head: str = "") -> str:
    """Return a setup as TOML that `load_setup` reads back to an equal one; values at their default are left out.

    Args:
        setup: What to write.
        head: Comment lines to begin with, as `setup_head` returns them.
    """
    values = setup.model_dump(exclude_defaults=True)
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [_line(name, value) for name, value in values.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(_line(field, value) for field, value in table.items())]
    return head + "\n".join(lines).lstrip("\n") + "\n"


def _parse(data: bytes, what: str) -> OpticalSetup:
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{what} is not TOML: {error}", remedy=_REMEDY) from error
    return link_of(values, what, _REMEDY)


def link_of(values: Mapping[str, Any], what: str, remedy: str) -> OpticalSetup:
    """Return the link that somebody wrote.

    Args:
        values: Its fields.
        what: What error messages begin with.
        remedy: What they end with.

    Raises:
        ConfigurationError: A field is wrong; or bits are sent in time bins that the receiver does not tell apart.
    """
    try:
        setup = OpticalSetup.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{what}: {where + ': ' if where else ''}{_said(first)}", remedy=remedy) from error
    for end, receiver in (("receiver", setup.receiver), ("sender_receiver", setup.sender_receiver)):
        if receiver is not None and setup.source.encoding == "time-bin" and not receiver.bin_separation_ps:
            raise ConfigurationError(
                f"{what}: {end}.bin_separation_ps is 0, and time-bin encoding needs two bins",
                remedy=f"give it below the period, such as {setup.source.period_ps // 2}",
            )
    return setup


def _said(error: ErrorDetails) -> str:
    """Say what is wrong with a field."""
    *way, field = error["loc"] or ("",)
    fields = next((TABLES[str(part)] for part in reversed(way) if part in TABLES), OpticalSetup).model_fields
    if error["type"] == "extra_forbidden":
        return f"there is no such field; {did_you_mean(field, fields)}fields: {', '.join(fields)}"
    if error["type"] == "missing":
        return "this field is missing"
    if error["type"] == "tuple_type":
        return f"this must be a list, such as {_list_like(field, fields, error['input'])[:100]}"
    if error["type"] == "model_type":
        table = next(part for part in reversed(error["loc"]) if part in TABLES)
        return f"this must be a table, such as {_table_like(table)}"
    return error["msg"].removeprefix("Value error, ").replace("Input should", "this must")


def _list_like(field: object, fields: Mapping[str, FieldInfo], given: object) -> str:
    """Return how to write a list field for which somebody gave one value."""
    if field in TABLES:
        return f"[{_table_like(field)}]"
    usual = fields[str(field)].default or ()
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    return _inline([given] * max(1, len(usual)) if is_number or not usual else usual)


def _table_like(name: object) -> str:
    """Return how to write a table: its fields that are needed, else its first."""
    fields = TABLES[str(name)].model_fields
    needed = [field for field, about in fields.items() if about.is_required()] or [*fields][:1]
    return "{ " + ", ".join(f"{field} = .." for field in needed) + " }"


def _line(name: str, value: object) -> str:
    """Return one assignment; a list of tables takes a line for each."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, dict | str) for v in value):
        return "\n".join([f"{_key(name)} = [", *(f"    {_inline(v)}," for v in value), "]"])
    return f"{_key(name)} = {_inline(value)}"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_inline(v)}" for name, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return _quoted(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

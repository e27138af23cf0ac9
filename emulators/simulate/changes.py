"""Fields of a link that a command line changes: `channel.length_km=20`, `receiver.detectors.efficiency=0.2`."""

from __future__ import annotations

import tomllib
from typing import Any

from pydantic import BaseModel

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.presets import TABLES, link_of
from qkdhw_emulators.optics.setup import OpticalSetup


def changed_setup(setup: OpticalSetup, changes: list[str]) -> OpticalSetup:
    """Return the setup with fields changed.

    Args:
        setup: The link.
        changes: Each PART.FIELD=VALUE; in a list, a number (from 0) is one member and a field that of all members.

    Raises:
        ConfigurationError: A change is not of this form, there is no such field, or the link does not hold together.
    """
    fields = setup.model_dump()
    for change in changes:
        place, equals, text = change.partition("=")
        names = place.strip().split(".")
        if not equals or not all(names):
            raise ConfigurationError(
                f"--set {change!r} is not PART.FIELD=VALUE", remedy="For example --set channel.length_km=20"
            )
        _put(fields, names, _value(text.strip()), change, OpticalSetup)
    return link_of(fields, f"--set {' '.join(changes)}", "Fields: docs/reference/optical-presets.md")


def _value(text: str) -> Any:
    """Read a value as TOML does; a bare word is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _put(fields: Any, names: list[str], value: Any, change: str, table: type[BaseModel] | None) -> None:
    """Set a field of nested tables and lists; tuples on the way become lists, tables that are not there are begun.

    Args:
        fields: A table, or a list of them.
        names: The way to the field.
        value: What it becomes.
        change: What error messages quote.
        table: What the table is; None: one of any names.
    """
    name, *rest = names
    is_list = isinstance(fields, list)
    if is_list and fields and not name.isdecimal():
        for member in fields:
            _put(member, names, value, change, table)
        return
    if not is_list and not isinstance(fields, dict):
        of = change.partition("=")[0].rpartition(f".{name}")[0].strip()
        raise ConfigurationError(
            f"--set {change!r}: there is no {name!r}, for {of} is one value and no table",
            remedy=f"write --set {of}=VALUE",
        )
    known = range(len(fields)) if is_list else table.model_fields if table else fields
    key: Any = int(name) if is_list and name.isdecimal() and len(name) < 10 else name
    if key not in known:
        there = ", ".join(map(str, known)) or "nothing, it is empty"
        raise ConfigurationError(f"--set {change!r}: there is no {name!r}", remedy=f"There is: {there}")
    if not rest:
        fields[key] = value
        return
    below = fields[key] if is_list else fields.get(key)
    if isinstance(below, tuple):
        below = list(below)
    elif below is None and key in TABLES:
        below = {}
    fields[key] = below
    _put(below, rest, value, change, table if is_list else TABLES.get(key))

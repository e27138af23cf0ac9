"""Fields of a link that a command line changes: `channel.length_km=20`, `receiver.detectors.efficiency=0.2`."""

from __future__ import annotations

import tomllib
from typing import Any

from pydantic import ValidationError

from qkdhw.errors import ConfigurationError
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
        _put(fields, names, _value(text.strip()), change)
    try:
        return OpticalSetup.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the link"
        text = first["msg"].removeprefix("Value error, ").replace("Input should", "this must")
        raise ConfigurationError(
            f"--set {' '.join(changes)}: {where}: {text}", remedy="Fields: docs/reference/optical-presets.md"
        ) from error


def _value(text: str) -> Any:
    """Read a value as TOML does; a bare word is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _put(fields: Any, names: list[str], value: Any, change: str) -> None:
    """Set a field of nested tables and lists; tuples on the way become lists."""
    name, *rest = names
    is_list = isinstance(fields, list)
    if is_list and not name.isdecimal():
        for member in fields:
            _put(member, names, value, change)
        return
    known = range(len(fields)) if is_list else fields if isinstance(fields, dict) else ()
    key: Any = int(name) if is_list else name
    if key not in known:
        there = ", ".join(map(str, known)) or "nothing, as it is no table or list"
        raise ConfigurationError(f"--set {change!r}: there is no {name!r}", remedy=f"There is: {there}")
    if not rest:
        fields[key] = value
        return
    if isinstance(fields[key], tuple):
        fields[key] = list(fields[key])
    _put(fields[key], rest, value, change)

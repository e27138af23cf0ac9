"""Which drivers are installed, and how a unit is opened by name.

Source:
    Python packaging specification "Entry points": a package adds drivers in the group qkdhw.drivers.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qkdhw.errors import ConfigurationError
from qkdhw.transport import open_transport
from qkdhw.transport.session_file import SessionWriter


def installed_drivers() -> dict[str, EntryPoint]:
    """Return the installed drivers by unit name, in order of name; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group="qkdhw.drivers"), key=lambda p: p.name)}


def load_driver(name: str) -> Any:
    """Import the driver class of a unit, by its name or by what only its name ends in ("tdc1").

    Raises:
        ConfigurationError: No driver has this name, or it cannot be imported.
    """
    drivers = installed_drivers()
    named = [each for each in drivers if each == name] or [each for each in drivers if each.endswith(f"-{name}")]
    if len(named) != 1:
        there_are = ", ".join(drivers) or "none: the package qkdhw is not installed, only on the path"
        near = named or difflib.get_close_matches(name, drivers, n=3)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigurationError(f"no driver is called {name!r}", remedy=f"{meant}installed drivers: {there_are}")
    try:
        return drivers[named[0]].load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"driver {name!r} cannot be imported: {error}", remedy="install the package that brings it again"
        ) from error


def check_options(driver: Any, name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a driver does not take.

    Raises:
        ConfigurationError: The message names them, the remedy those that it takes.
    """
    takes = inspect.signature(driver).parameters
    try:
        inspect.signature(driver).bind(None, timeout_s=1.0, **options)
    except TypeError as error:
        there_are = ", ".join([each for each in takes if each != "timeout_s"][1:]) or "none"
        raise ConfigurationError(
            f"driver {name!r} does not take these options: {error}", remedy=f"options: {there_are}"
        ) from error


def open_unit(
    name: str, url: str, *, timeout_s: float = 5.0, recorder: SessionWriter | None = None, **options: Any
) -> Any:
    """Open a unit by driver name and address.

    Args:
        name: Driver name, such as "sfifteen-tdc1"; `qkdhw devices list` shows them.
        url: Address, such as serial:///dev/ttyACM0 or tcp://10.0.0.7:5710.
        timeout_s: Longest wait for the connection and for each answer.
        recorder: Writes down what crosses the link, see `qkdhw.bench.record_unit`.
        options: Passed on to the driver.

    Returns:
        The unit, a context manager. What it can do is in `qkdhw.interfaces`: annotate it with the Protocol you need.

    Raises:
        ConfigurationError: Unknown driver name, malformed address or unknown option.
        TransportError: The address leads nowhere, or the unit does not answer.
        UnitError: Something else than this unit answers.
    """
    driver = load_driver(name)
    check_options(driver, name, options)
    link = open_transport(url, timeout_s=timeout_s, recorder=recorder)
    try:
        return driver(link, timeout_s=timeout_s, **options)
    except BaseException:
        link.close()
        raise

"""What is wrong with a bench file, told by the driver classes alone: nothing is opened, nothing is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qkdhw.bench.file import BenchFile, BenchUnit, Wire
from qkdhw.drivers import load_driver
from qkdhw.drivers.instrument import Instrument
from qkdhw.drivers.registry import check_options
from qkdhw.drivers.setting import ChannelSetting, Setting, settings_of
from qkdhw.errors import ConfigurationError
from qkdhw.transport.open import check_address


def mistakes_in(file: BenchFile) -> list[ConfigurationError]:
    """Return every mistake that can be found without a unit; each message begins with the field.

    Drivers that are no `Instrument` declare no settings: what theirs may be is known once they are open.
    """
    drivers: dict[str, Any] = {}
    found: list[ConfigurationError] = []
    for label, unit in file.units.items():
        try:
            drivers[label] = load_driver(unit.name)
        except ConfigurationError as error:
            found.append(ConfigurationError(f"units.{label}.name: {error}", remedy=error.remedy))
        else:
            found += _unit_mistakes(f"units.{label}", unit, drivers[label])
        found += _mistake(f"units.{label}.url", check_address, unit.url)
    for number, wire in enumerate(file.wiring):
        if wire.unit in drivers:
            found += _mistake(f"wiring.{number}.channel", _check_wire, wire, drivers[wire.unit])
    return found


def _unit_mistakes(where: str, unit: BenchUnit, driver: Any) -> Iterator[ConfigurationError]:
    yield from _mistake(f"{where}.options", check_options, driver, unit.name, unit.options)
    if not _declares(driver):
        return
    declared = settings_of(driver)
    for name, value in unit.settings.items():
        setting = declared.get(name)
        if setting is None:
            yield ConfigurationError(
                f"{where}.settings.{name}: {unit.name} has no such setting",
                remedy=f"settings: {', '.join(declared) or 'none'}",
            )
        else:
            yield from _mistake(f"{where}.settings.{name}", _check_value, driver, setting, value)


def _check_value(driver: type[Instrument], setting: Setting[Any], value: Any) -> None:
    if not isinstance(setting, ChannelSetting):
        setting.checked(value)
    elif driver.channels_vary and isinstance(value, dict):
        for each in value.values():
            setting.checked(each)
    else:
        setting.checked_channels(value)


def _check_wire(wire: Wire, driver: Any) -> None:
    if not _declares(driver) or driver.channels_vary:
        return
    inputs = driver.inputs or sorted({each for setting in settings_of(driver).values() for each in setting.channels})
    if inputs and wire.channel not in inputs:
        raise ConfigurationError(
            f"units.{wire.unit} has no input {wire.channel}", remedy=f"inputs: {', '.join(map(str, inputs))}"
        )


def _declares(driver: Any) -> bool:
    return isinstance(driver, type) and issubclass(driver, Instrument)


def _mistake(where: str, check: Callable[..., None], *arguments: Any) -> Iterator[ConfigurationError]:
    """Yield what a check raises, with the field before it."""
    try:
        check(*arguments)
    except ConfigurationError as error:
        yield ConfigurationError(f"{where}: {error}", remedy=error.remedy)

"""Settings as texts of the command line: SETTING[.CHANNEL]=VALUE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qkdhw.drivers.setting import Setting
from qkdhw.errors import ConfigurationError


def place_of(text: str) -> tuple[str, int | None]:
    """Split SETTING or SETTING.CHANNEL."""
    name, dot, channel = text.partition(".")
    if not dot:
        return name, None
    if not (channel.isascii() and channel.isdigit() and len(channel) < 10):
        raise ConfigurationError(f"{text!r}: {channel!r} is no channel number", remedy="write SETTING or SETTING.2")
    return name, int(channel)


def parsed(settings: dict[str, Setting[Any]], changes: Sequence[str]) -> dict[str, Any]:
    """Turn SETTING[.CHANNEL]=VALUE texts into what `configure` takes."""
    wanted: dict[str, Any] = {}
    for change in changes:
        place, equals, text = change.partition("=")
        if not equals:
            raise ConfigurationError(f"{change!r} is no change", remedy="write SETTING=VALUE or SETTING.2=VALUE")
        name, channel = place_of(place)
        value = _value(settings.get(name), text)
        before = wanted.setdefault(name, {})
        if before != {} and (channel is None or not isinstance(before, dict) or channel in before):
            raise ConfigurationError(
                f"{change!r}: {name} is changed already", remedy="change it once, as a whole or each channel of it"
            )
        if channel is None:
            wanted[name] = value
        else:
            before[channel] = value
    return wanted


def _value(setting: Setting[Any] | None, text: str) -> Any:
    """Read a value as the setting's kind; what is wrong stays a text, which the setting then refuses by name."""
    if setting is not None and setting.kind is str:
        return text
    words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        numbers = [float(part) if set(part) & set(".eE") else int(part) for part in text.split(",")]
    except ValueError:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


def flat(values: Any) -> dict[str, Any]:
    """Return values by SETTING or SETTING.CHANNEL."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{channel}": each for channel, each in value.items()}
        else:
            flat[name] = value
    return flat

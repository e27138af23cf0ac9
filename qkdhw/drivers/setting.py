"""A setting, declared once: from it come the typed property, validation, read-back, `describe()`, snapshots and docs.

class Acme(TextInstrument):
wavelength_nm = Setting(float, unit="nm", minimum=1260, maximum=1650, query=":WAV?", command=":WAV {value:.3f}")
threshold_v = ChannelSetting(float, unit="V", minimum=-3.3, maximum=3.3, step=0.01, channels=(1, 2),
query="THR{channel}?", command="THR{channel} {value:.2f}")

unit.wavelength_nm = 1550.12       # validated, sent, read back, remembered for a reconnect
unit.threshold_v[2] = 0.5
unit.configure({"wavelength_nm": 1550, "threshold_v": {1: 0.5, 2: 0.25}})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, overload

from qkdhw.errors import ConfigurationError
from qkdhw.quantities import number_in

T = TypeVar("T", bool, int, float, str)
Value = bool | int | float | str


@unique
class Reply(StrEnum):
    """What a unit answers to setting a value."""

    NONE = "none"  # silence
    LINE = "line"  # a line of text
    ACK = "ack"  # a word that says done or refused
    BLOCK = "block"  # a counted block of bytes
    FRAME = "frame"  # a packet of the unit's own protocol


class Settable(Protocol):
    """A driver that holds settings."""

    def read_setting(self, name: str, channel: int | None = None) -> Any:
        """Read a setting's value from the unit."""
        ...

    def channels_of(self, name: str) -> tuple[int, ...]:
        """Return the numbers of the channels that this unit has."""
        ...

    def configure(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Set values and return what the unit then has."""
        ...


@dataclass(eq=False)
class Setting(Generic[T]):
    """One value of the whole unit; a descriptor that is read from and written to the unit.

    Attributes:
        kind: bool, int, float or str.
        unit: Physical unit as printed, such as "V"; the setting's name ends in it too.
        minimum: Smallest value.
        maximum: Largest value.
        step: Quantisation: the unit takes the nearest multiple, and read-back is compared within one step.
        relative_step: Quantisation as a fraction of the value, for units whose steps grow with it.
        choices: Allowed words of a str.
        range_depends: Whether the unit narrows range or choices by its model, its state or its other settings.
        access: "rw", "r" (a reading) or "w" (cannot be read back).
        settle_s: How long a value takes to hold after it was set.
        reply: What the unit answers when it is set.
        retry: Whether reading it may be repeated after a lost answer.
        restore: Whether it is set again after a reconnect; False for what must not come back by itself, as light.
        affects: Settings whose values the unit changes with this one: a reconnect restores what they were afterwards.
        query: Text that reads it.
        command: Text that sets it; `{value}` is filled in.
        decode: From the answer's text to the value, raising ValueError; numbers as Python reads them if left out.
        encode: From the value to what `{value}` stands for.
        doc: One sentence.
        name: The attribute's name.
    """

    kind: type[T]
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    relative_step: float = 0.0
    choices: tuple[str, ...] = ()
    range_depends: bool = False
    access: Literal["rw", "r", "w"] = "rw"
    settle_s: float = 0.0
    reply: Reply = Reply.NONE
    retry: bool = True
    restore: bool = True
    affects: tuple[str, ...] = ()
    query: str = ""
    command: str = ""
    decode: Callable[[str], T] | None = None
    encode: Callable[[T], Any] | None = None
    doc: str = ""
    name: str = field(default="", init=False)

    channels: tuple[int, ...] = field(default=(), init=False)
    length: int = field(default=1, init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Settable, owner: type) -> T: ...
    def __get__(self, instance: Settable | None, owner: type) -> Self | T:
        if instance is None:
            return self
        value: T = instance.read_setting(self.name)
        return value

    def __set__(self, instance: Settable, value: T) -> None:
        instance.configure({self.name: value})

    @property
    def readable(self) -> bool:
        """Whether the unit tells the value."""
        return "r" in self.access

    @property
    def writable(self) -> bool:
        """Whether the value can be set."""
        return "w" in self.access

    def checked(self, value: Any) -> Any:
        """Return the value in its kind; a number may also be a text with a unit, such as "500 mV".

        Raises:
            ConfigurationError: Wrong kind, out of range or no such choice; nothing was sent.
        """
        if not self.writable:
            raise ConfigurationError(f"{self.name} is a reading, it cannot be set", remedy="leave it out")
        allowed = self.allowed()
        if isinstance(value, str) and self.kind in {int, float} and self.unit:
            value = self._number(value)
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        plain = value.item() if hasattr(value, "item") else value  # NumPy scalars
        if type(plain) is not self.kind or (isinstance(plain, float) and not math.isfinite(plain)):
            raise ConfigurationError(f"{self.name} {value!r} has the wrong form", remedy=f"use {allowed}")
        low, high = self.minimum, self.maximum
        in_range = isinstance(plain, str) or ((low is None or plain >= low) and (high is None or plain <= high))
        if not in_range or (self.choices and plain not in self.choices):
            raise ConfigurationError(f"{self.name} {value!r} is not allowed", remedy=f"use {allowed}")
        return plain

    def _number(self, text: str) -> int | float:
        """Read a text such as "500 mV" in the setting's own unit."""
        try:
            number = number_in(text, self.unit)
        except ValueError as error:
            raise ConfigurationError(
                f"{self.name} {text!r} has the wrong form: {error}", remedy=f"use {self.allowed()}"
            ) from error
        return int(number) if self.kind is int and number.denominator == 1 else float(number)

    def agrees(self, told: Any, got: Any) -> bool:
        """Say whether a read-back is what was set, but for quantisation."""
        if isinstance(told, bool | str) or not isinstance(got, int | float):
            return bool(told == got)
        rounding = 1e-6 if isinstance(told, float) else 0.0
        slack = (self.step or 0.0) + (self.relative_step + rounding) * max(abs(told), abs(got))
        return bool(abs(told - got) <= slack)

    def holds(self, applied: Any, now: Any) -> bool:
        """Say whether what was applied is still there; of a setting with coarse steps the read-back was kept."""
        return bool(applied == now) if self.relative_step else self.agrees(applied, now)

    def allowed(self) -> str:
        """Say in words what may be set."""
        if self.choices:
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        if self.kind is bool:
            return "true or false"
        what = {int: "a whole number", float: "a number", str: "a text"}[self.kind]
        if self.minimum is None and self.maximum is None:
            return what
        low = "" if self.minimum is None else f"{self.minimum:g}"
        high = "" if self.maximum is None else f"{self.maximum:g}"
        return f"{what} from {low} to {high}{' ' + self.unit if self.unit else ''}"

    def describe(self) -> dict[str, Any]:
        """Return what is declared, JSON-able."""
        return {
            "name": self.name,
            "kind": self.kind.__name__,
            "unit": self.unit,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "step": self.step,
            "relative_step": self.relative_step,
            "length": self.length,
            "choices": list(self.choices),
            "range_depends": self.range_depends,
            "access": self.access,
            "channels": list(self.channels),
            "settle_s": self.settle_s,
            "reply": str(self.reply),
            "retry": self.retry,
            "restore": self.restore,
            "doc": self.doc,
        }


@dataclass(eq=False)
class TupleSetting(Setting[T]):
    """Several values that are set and read together, as a tuple; kind, range and step are those of each.

    Attributes:
        length: How many.
    """

    length: int = 1

    @overload  # type: ignore[override]
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Settable, owner: type) -> tuple[T, ...]: ...
    def __get__(self, instance: Settable | None, owner: type) -> Self | tuple[T, ...]:
        if instance is None:
            return self
        values: tuple[T, ...] = instance.read_setting(self.name)
        return values

    def __set__(self, instance: Settable, value: Any) -> None:
        instance.configure({self.name: value})

    def checked(self, value: Any) -> tuple[T, ...]:
        """Return the values in their kind, as a tuple.

        Raises:
            ConfigurationError: It is no sequence of that length, or one of them is not allowed; nothing was sent.
        """
        values = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(values, list | tuple) or len(values) != self.length:
            raise ConfigurationError(f"{self.name} {value!r} has the wrong form", remedy=f"use {self.allowed()}")
        check = super().checked
        return tuple(check(each) for each in values)

    def agrees(self, told: Any, got: Any) -> bool:
        """Say whether a read-back is what was set, but for quantisation."""
        agree = super().agrees
        return len(told) == len(got) and all(agree(*pair) for pair in zip(told, got, strict=True))

    def allowed(self) -> str:
        """Say in words what may be set."""
        return f"a list of {self.length}, each {super().allowed()}"


@dataclass(eq=False)
class ChannelSetting(Setting[T]):
    """One value for each of several inputs or outputs; `{channel}` in `query` and `command` is the number.

    Attributes:
        channels: Their numbers.
    """

    channels: tuple[int, ...] = ()

    @overload  # type: ignore[override]
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Settable, owner: type) -> ChannelValues[T]: ...
    def __get__(self, instance: Settable | None, owner: type) -> Self | ChannelValues[T]:
        return self if instance is None else ChannelValues(instance, self)

    def __set__(self, instance: Settable, value: Any) -> None:
        instance.configure({self.name: value})

    def checked_channels(self, value: Any) -> dict[int, T]:
        """Return a value for each channel named: one value is for all of them.

        Raises:
            ConfigurationError: There is no such channel, or a value is not allowed.
        """
        if not isinstance(value, Mapping):
            one = self.checked(value)
            return dict.fromkeys(self.channels, one)
        out = {}
        for key, each in value.items():
            channel = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
            if channel not in self.channels or isinstance(channel, bool):
                numbers = ", ".join(map(str, self.channels))
                raise ConfigurationError(f"{self.name} has no channel {key!r}", remedy=f"channels: {numbers}")
            out[channel] = self.checked(each)
        return out


class ChannelValues(MutableMapping[int, T]):
    """The values of a `ChannelSetting` on an open unit: read and set by channel number."""

    def __init__(self, instance: Settable, setting: ChannelSetting[T]) -> None:
        self._instance = instance
        self._setting: ChannelSetting[T] = setting
        self._channels = instance.channels_of(setting.name)

    def __getitem__(self, channel: int) -> T:
        if channel not in self._channels:
            raise KeyError(channel)
        value: T = self._instance.read_setting(self._setting.name, channel)
        return value

    def __setitem__(self, channel: int, value: T) -> None:
        self._instance.configure({self._setting.name: {channel: value}})

    def __delitem__(self, channel: int) -> None:
        raise TypeError(f"a value of {self._setting.name} can be set, not deleted")

    def __iter__(self) -> Iterator[int]:
        return iter(self._channels)

    def __len__(self) -> int:
        return len(self._channels)

    def __repr__(self) -> str:
        return f"<{self._setting.name} of channels {', '.join(map(str, self._channels))}; dict(...) reads them>"


def settings_of(driver: type) -> dict[str, Setting[Any]]:
    """Return the settings that a driver class declares, by name, in order of declaration."""
    found: dict[str, Setting[Any]] = {}
    for cls in reversed(driver.__mro__):
        found.update({name: value for name, value in vars(cls).items() if isinstance(value, Setting)})
    return found

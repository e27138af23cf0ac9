"""What all drivers of instruments share: settings with read-back, one exchange at a time, recovery, snapshots.

A driver gives three things: `_identify` (who is there), `_synchronise` (bring unit and driver back in step on an open
link) and how a setting is read and written. Everything else follows from the declarations in its class.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum, unique
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from qkdhw.drivers.setting import ChannelSetting, Setting, settings_of
from qkdhw.errors import (
    ConfigurationError,
    NotSupportedError,
    TransportClosedError,
    TransportTimeoutError,
    UnitError,
    WireFormatError,
)
from qkdhw.interfaces import Transport
from qkdhw.model import UnitInfo, UnitStatus

R = TypeVar("R")


@unique
class ErrorStyle(StrEnum):
    """How an instrument says that something went wrong."""

    SCPI_QUEUE = "SYST:ERR? queue"
    SRS_QUEUE = "LERR? queue"
    IN_BAND = "error text in place of the answer"
    ACKNOWLEDGE = "a word after each command"
    STATUS_WORD = "bits of a status word"
    FRAME = "error frames at any time"
    COUNTER = "error counters"
    SILENCE = "none: unknown commands are ignored"


class Instrument:
    """Base of the drivers of instruments; a context manager. Safe to use from several threads.

    Args:
        transport: Open link, owned from now on.
        timeout_s: Longest wait for an answer.
    """

    vendor: ClassVar[str] = ""
    model: ClassVar[str] = ""
    unit_kind: ClassVar[str] = ""
    error_style: ClassVar[ErrorStyle] = ErrorStyle.SILENCE
    capabilities: ClassVar[frozenset[str]] = frozenset()
    """What it can do: names of the Protocols of `qkdhw.interfaces` that it fits, such as "Attenuator"."""
    schemes: ClassVar[tuple[str, ...]] = ("serial", "tcp")
    """Kinds of addresses that the real instrument can have."""
    usb_ids: ClassVar[tuple[str, ...]] = ()
    """USB vendor:product IDs by which it is found, such as "04d8:000a"."""
    inputs: ClassVar[tuple[int, ...]] = ()
    """Numbers of its inputs, if no setting of channels tells them."""
    channels_vary: ClassVar[bool] = False
    """Whether one that is open may have other channels than those declared."""

    def __init__(self, transport: Transport, *, timeout_s: float = 2.0) -> None:
        self._link = transport
        self._timeout_s = timeout_s
        self._settings = settings_of(type(self))  # a driver whose unit has fewer or more channels puts its own in
        self._applied: dict[tuple[str, int | None], Any] = {}
        self._info: UnitInfo | None = None
        with self._exchange():
            self._synchronise()
            self._info = self._identify()

    # --- what a driver gives ---------------------------------------------------------------------------------
    def _synchronise(self) -> None:
        """Bring unit and driver in step on an open link: after it, no earlier answer can arrive.

        Called with the link held: when the unit is opened, and after every failed exchange.
        """
        raise NotImplementedError

    def _identify(self) -> UnitInfo:
        """Ask the unit who it is; UnitError if it is another one. Called with the link held."""
        raise NotImplementedError

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        """Read one setting; WireFormatError if the answer is none. Called with the link held."""
        raise NotImplementedError

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> Any:
        """Send one setting; CommandRefusedError if the unit says no. Called with the link held.

        Returns:
            The value that the unit then has, if its answer says so; None: it is read back.
        """
        raise NotImplementedError

    # --- what all have ---------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a setting, or an attribute that the class declares: a misspelt setting is an error."""
        declared = (name in vars(cls).get("__annotations__", ()) for cls in type(self).__mro__)
        if not name.startswith("_") and not hasattr(type(self), name) and not any(declared):
            self._setting(name)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self._link.url}>"

    def identify(self) -> UnitInfo:
        """Ask the unit who it is.

        Raises:
            UnitError: Something else answers.
        """
        return self._retried(self._identify)

    def read_status(self) -> UnitStatus:
        """Read state, counters, monitors and alarms: here, every readable number that is no setting.

        Drivers of instruments with a state of their own say more.
        """
        with self._exchange():
            pass  # a unit that was closed has no state, even if there is nothing to ask
        readings = {n: s for n, s in self._settings.items() if s.access == "r" and s.kind is not str and s.length == 1}
        monitors: dict[str, float] = {}
        for name, setting in readings.items():
            if isinstance(setting, ChannelSetting):
                monitors |= {f"{name}.{c}": float(self.read_setting(name, c)) for c in setting.channels}
            else:
                monitors[name] = float(self.read_setting(name))
        return UnitStatus(state="idle", monitors=monitors)

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """Return what is known of this driver without a unit: identity, capabilities, settings; JSON-able."""
        return {
            "vendor": cls.vendor,
            "model": cls.model,
            "kind": cls.unit_kind,
            "capabilities": sorted(cls.capabilities),
            "schemes": list(cls.schemes),
            "usb_ids": list(cls.usb_ids),
            "error_style": str(cls.error_style),
            "settings": [setting.describe() for setting in settings_of(cls).values()],
        }

    def read_setting(self, name: str, channel: int | None = None) -> Any:
        """Read a setting from the unit.

        Raises:
            ConfigurationError: There is no such setting or channel.
            NotSupportedError: The unit does not tell it.
            UnitError, TransportError: The unit answered badly, or not at all, twice.
        """
        setting = self._setting(name)
        if not setting.readable:
            raise NotSupportedError(f"{name} can be set, but the unit does not tell its value")
        if (channel is None) != (not setting.channels) or (channel is not None and channel not in setting.channels):
            raise ConfigurationError(
                f"{name} has no channel {channel}",
                remedy=f"channels: {', '.join(map(str, setting.channels)) or 'none'}",
            )
        return self._retried(lambda: self._read_value(setting, channel), retry=setting.retry)

    def channels_of(self, name: str) -> tuple[int, ...]:
        """Return the numbers of the channels for which this unit has a setting; none for a value of the whole unit."""
        return self._setting(name).channels

    def configure(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check all settings, then send them in the order given, and return what the unit then has.

        Args:
            settings: Values by name; of a `ChannelSetting` one value for all channels, or a mapping by channel.

        Returns:
            The same names with the values as the unit quantised them; those that it does not tell, as sent.

        Raises:
            ConfigurationError: A name or value is not allowed; nothing was sent.
            CommandRefusedError: The unit refused a value; those before it are set.
            UnitError: The unit has another value after being told this one.
        """
        plan = self._plan(settings)
        got: dict[str, Any] = {}
        with self._exchange():
            for setting, channel, value in plan:
                read_back = self._apply(setting, channel, value)
                if channel is None:
                    got[setting.name] = read_back
                else:
                    got.setdefault(setting.name, {})[channel] = read_back
        return got

    def snapshot(self) -> dict[str, Any]:
        """Read identity and all settings; JSON-able, and `restore` takes it.

        Channel numbers are texts, as JSON has them.
        """
        values: dict[str, Any] = {}
        for name, setting in self._settings.items():
            if not setting.readable:
                continue
            if setting.channels:
                values[name] = {str(channel): self.read_setting(name, channel) for channel in setting.channels}
            else:
                values[name] = self.read_setting(name)
        info = self.identify()
        identity = {"vendor": info.vendor, "model": info.model, "serial_number": info.serial_number}
        return {"url": self._link.url, "identity": identity | {"firmware": info.firmware}, "settings": values}

    def restore(self, snapshot: Mapping[str, Any]) -> Mapping[str, Any]:
        """Set what a snapshot holds, but for readings and what must not come back by itself; return the read-back.

        In the order of declaration: what others depend on is declared first.

        Raises:
            ConfigurationError: It is no snapshot of such a unit.
        """
        declared = self._settings
        values = snapshot.get("settings") if isinstance(snapshot, Mapping) else None
        if not isinstance(values, Mapping):
            raise ConfigurationError("this is no snapshot: it has no settings", remedy="make one with snapshot()")
        kept = {name for name, setting in declared.items() if not (setting.writable and setting.restore)}
        order = [*(name for name in declared if name in values), *(name for name in values if name not in declared)]
        return self.configure({name: values[name] for name in order if name not in kept})

    def close(self) -> None:
        """Close the transport; closing twice is allowed."""
        self._link.close()

    # --- exchanges and recovery ------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _exchange(self, *, timeout_s: float | None = None) -> Iterator[None]:
        """Own the link for one write-and-read; a link that failed before is brought back in step first."""
        with self._link.exchange(self._recover, timeout_s=(timeout_s or 0.0) + 2 * self._timeout_s):
            yield

    def _retried(self, exchange: Callable[[], R], *, retry: bool = True) -> R:
        """Run one exchange, and once more if its answer was lost or spoilt and it may be repeated."""
        try:
            with self._exchange():
                return exchange()
        except (TransportTimeoutError, TransportClosedError, WireFormatError):
            if not retry:
                raise
        with self._exchange():
            return exchange()

    def _recover(self) -> None:
        """Bring unit and driver back in step after a failed exchange, and set again what had been set.

        In the order of declaration, as `restore` does: the order of setting may not be possible any more.
        A link on which an old answer can arrive after being opened again (a serial line) is opened again only when it
        is gone. The unit must be the one that it was.
        """
        if self._link.fresh_when_reopened:
            self._link.reconnect(timeout_s=self._timeout_s)
            self._synchronise()
        else:
            try:
                self._synchronise()
            except TransportClosedError:
                self._link.reconnect(timeout_s=self._timeout_s)
                self._synchronise()
        info = self._identify()
        if self._info is not None and info != self._info:
            raise UnitError(
                f"{self._link.url} now leads to {info.model} {info.serial_number} {info.firmware}, not to "
                f"{self._info.model} {self._info.serial_number} {self._info.firmware}",
                remedy="open the unit again",
            )
        order = list(self._settings)
        for (name, channel), value in sorted(self._applied.items(), key=lambda applied: order.index(applied[0][0])):
            setting = self._setting(name)
            if not setting.restore:
                continue
            if not setting.readable or not setting.holds(value, self._read_value(setting, channel)):
                self._set(setting, channel, value)

    def _set(self, setting: Setting[Any], channel: int | None, value: Any) -> Any:
        """Send a value, wait until it holds, and return what the unit then has; UnitError if that is another one."""
        got = self._write_value(setting, channel, value)
        if setting.settle_s:
            time.sleep(setting.settle_s)
        if got is None:
            got = self._read_value(setting, channel) if setting.readable else value
        if not setting.agrees(value, got):
            where = f"{setting.name} of channel {channel}" if channel is not None else setting.name
            raise UnitError(
                f"{where} is {got!r} after the unit was told {value!r}", remedy="check the unit's state; restart it"
            )
        return got

    def _apply(self, setting: Setting[Any], channel: int | None, value: Any) -> Any:
        got = self._set(setting, channel, value)
        self._applied[setting.name, channel] = got if setting.relative_step else value
        for name in setting.affects:
            if self._applied.pop((name, channel), None) is not None:
                self._applied[name, channel] = self._read_value(self._settings[name], channel)
        return got

    def _plan(self, settings: Mapping[str, Any]) -> list[tuple[Setting[Any], int | None, Any]]:
        plan: list[tuple[Setting[Any], int | None, Any]] = []
        for name, value in settings.items():
            setting = self._setting(name)
            if isinstance(setting, ChannelSetting):
                plan += [(setting, channel, each) for channel, each in setting.checked_channels(value).items()]
            else:
                plan.append((setting, None, setting.checked(value)))
        return plan

    def _setting(self, name: str) -> Setting[Any]:
        declared = self._settings
        if name not in declared:
            near = difflib.get_close_matches(name, declared, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(
                f"a {self.model or type(self).__name__} has no setting {name!r}{meant}",
                remedy=f"settings: {', '.join(declared) or 'none'}",
            )
        return declared[name]

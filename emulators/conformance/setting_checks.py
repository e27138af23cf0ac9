"""Checks of identity and settings: what is declared, what is read back, what is refused, what is restored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import qkdhw.interfaces
from qkdhw.drivers.setting import ChannelSetting, Setting
from qkdhw.errors import CommandRefusedError, ConfigurationError, TransportError, UnitError, UnitStateError
from qkdhw.interfaces import Unit
from qkdhw.model import UnitInfo, UnitStatus
from qkdhw_emulators.conformance.subject import NotApplicableError, Subject, require

SUFFIX_OF_UNIT = {
    "": "", "%": "percent", "°": "deg", "°/s": "deg_per_s", "°/s²": "deg_per_s2", "°C": "c", "µA": "ua",
}  # fmt: skip


def check_identity(subject: Subject) -> None:
    """The unit says who it is, each time the same, also when it is opened again."""
    seen = []
    for _ in range(2):
        with subject.open() as unit:
            seen += [unit.identify(), unit.identify()]
    require(all(isinstance(info, UnitInfo) for info in seen), "identify() returns a UnitInfo")
    require(bool(seen[0].vendor and seen[0].model), "the identity names vendor and model")
    require(all(info == seen[0] for info in seen), "the identity stays the same")


def check_capabilities(subject: Subject) -> None:
    """What the driver says it can do is there: each capability is a Protocol that it fits."""
    names: frozenset[str] = getattr(subject.driver, "capabilities", frozenset())
    require(bool(names), "a driver names at least one capability")
    known = {
        name: each for name, each in sorted(vars(qkdhw.interfaces).items())
        if getattr(each, "_is_protocol", False) and isinstance(each, type) and issubclass(each, Unit)
    }  # fmt: skip
    with subject.open() as unit:
        for name in sorted(names):
            require(
                name in known,
                f"{name!r} is no capability; there are {', '.join(known)}; for a unit of another kind write {{'Unit'}}",
            )
            require(isinstance(unit, known[name]), f"the driver lacks something that {name} asks for")


def check_description(subject: Subject) -> None:
    """What is declared can be told as JSON, names say their units, and limits make sense."""
    described = subject.driver.describe()
    require(json.loads(json.dumps(described)) == described, "describe() is JSON")
    require(bool(described["vendor"] and described["model"] and described["kind"]), "vendor, model and kind are named")
    for name, setting in subject.settings.items():
        require(bool(setting.doc), f"setting {name} says what it is")
        if setting.kind is float and setting.unit:
            suffix = SUFFIX_OF_UNIT.get(setting.unit, setting.unit).lower()
            require(name.endswith(f"_{suffix}"), f"a name ends in its unit: rename {name!r} to '{name}_{suffix}'")
        if setting.writable and setting.kind in {int, float}:
            missing = [each for each in ("minimum", "maximum") if getattr(setting, each) is None]
            require(not missing, f"{name} is a number that can be set: declare its {' and '.join(missing)}")
        if setting.minimum is not None and setting.maximum is not None:
            require(setting.minimum <= setting.maximum, f"setting {name} has a range")


def check_status(subject: Subject) -> None:
    """Status can be read, and a monitor that the unit does not have is absent."""
    with subject.open() as unit:
        status = unit.read_status()
        require(isinstance(status, UnitStatus), "read_status() returns a UnitStatus")
        require(status.state in {"idle", "armed", "running", "fault"}, f"state {status.state!r} is one of the four")
        require(all(value == value for value in status.monitors.values()), "no monitor is not-a-number")  # noqa: PLR0124


def check_settings_round_trip(subject: Subject) -> None:
    """What is set is read back but for quantisation, and setting the read-back changes nothing."""
    accepted = 0
    _require_readings_in_range(subject)
    with as_before(subject) as unit:
        for setting, channel in places(subject):
            values = trial_values(setting)
            taken = 0
            where = f"{setting.name}{'' if channel is None else f' of channel {channel}'}"
            for value in values:
                got = _set(unit, setting, channel, value)
                if got is None:
                    require(subject.served is None or setting.range_depends, _refused(setting, where, value))
                    continue
                taken += 1
                require(setting.agrees(value, got), f"{where}: told {value!r}, read back {got!r}")
                if setting.readable:
                    again = unit.read_setting(setting.name, channel)
                    require(again == got, f"{where}: read {again!r} after a read-back of {got!r}")
                    require(_set(unit, setting, channel, got) == got, f"{where}: a quantised value stays as it is")
            accepted += taken
            require(taken > 0 or not values or subject.served is None, f"{where}: the unit takes none of {values}")
    require(accepted > 0, "the unit takes at least one value of a setting")


def _require_readings_in_range(subject: Subject) -> None:
    """What a unit has before anything was set can be set: else a query reads something else."""
    with subject.open() as unit:
        for setting in subject.settings.values():
            if setting.access != "rw" or setting.kind not in {int, float} or setting.length > 1:
                continue
            low = -math.inf if setting.minimum is None else setting.minimum - (setting.step or 0.0)
            high = math.inf if setting.maximum is None else setting.maximum + (setting.step or 0.0)
            for channel in setting.channels[:4] or (None,):
                got = unit.read_setting(setting.name, channel)
                by = f" by {setting.query.format(channel=channel)!r}" if setting.query else ""
                require(
                    low <= got <= high,
                    f"{setting.name} was read{by} as {got!r}, not as {setting.allowed()}: query or range is wrong",
                )


def _refused(setting: Setting[Any], where: str, value: Any) -> str:
    ends = {setting.minimum: "raise minimum", setting.maximum: "lower maximum"}
    remedy = ends.get(value, "narrow the range") if setting.kind in {int, float} else "mend the choices or the command"
    return (
        f"{where}: {value!r} is allowed by the driver and refused by the unit: {remedy}, or declare range_depends=True "
        "if that depends on the unit's model, state or other settings"
    )


def check_range_errors(subject: Subject) -> None:
    """A wrong name, kind or value is refused with ConfigurationError before anything is sent."""
    with subject.open() as unit:
        line = subject.served.line if subject.served else None
        sent = line.fed_bytes if line else 0
        wrong: list[tuple[str, Any]] = [("no_such_setting", 1)]
        for name, setting in subject.settings.items():
            wrong += [(name, each) for each in wrong_values(setting)]
        for name, value in wrong:
            try:
                unit.configure({name: value})
            except ConfigurationError as error:
                require(
                    name in str(error) and bool(error.remedy), f"the error for {name}={value!r} names it and a remedy"
                )
            else:
                require(False, f"{name}={value!r} raises ConfigurationError")
        require(line is None or line.fed_bytes == sent, "nothing is sent to the unit for a wrong value")


def check_snapshot_and_restore(subject: Subject) -> None:
    """A snapshot goes through JSON, and restoring it brings every setting back."""
    with as_before(subject) as unit:
        before = json.loads(json.dumps(unit.snapshot()))
        require(bool(before["identity"]["model"]), "a snapshot holds the identity")
        changed = 0
        for setting, channel in places(subject):
            for value in trial_values(setting):
                changed += _set(unit, setting, channel, value) is not None
        if not changed:
            raise NotApplicableError("no setting can be changed")
        unit.restore(before)
        after = json.loads(json.dumps(unit.snapshot()))
        for name, setting in subject.settings.items():
            if setting.access == "rw" and setting.restore:
                require(_agree(setting, before["settings"][name], after["settings"][name]), f"{name} is restored")


def check_closes_twice(subject: Subject) -> None:
    """Closing twice is allowed, and every call to a closed unit gives a typed error without a word to the unit."""
    with subject.open() as unit:
        unit.close()
        unit.close()
        line = subject.served.line if subject.served else None
        sent = line.fed_bytes if line else 0
        calls: dict[str, Callable[[], Any]] = {
            "identify()": unit.identify, "read_status()": unit.read_status, "snapshot()": unit.snapshot,
        }  # fmt: skip
        for setting in subject.settings.values():
            channel = setting.channels[0] if setting.channels else None
            if setting.readable:
                calls[f"reading {setting.name}"] = partial(unit.read_setting, setting.name, channel)
            if setting.writable and trial_values(setting):
                value = trial_values(setting)[0]
                calls[f"setting {setting.name}"] = partial(unit.configure, {setting.name: value})
        if subject.has("TimeTagger"):
            calls["start()"] = unit.start
        for what, call in calls.items():
            try:
                call()
            except (TransportError, UnitError):
                continue
            require(False, f"{what} on a closed unit raises a typed error")
        require(line is None or line.fed_bytes == sent, "nothing is sent to a unit that was closed")


def places(subject: Subject) -> list[tuple[Setting[Any], int | None]]:
    """Return each setting that may be changed without harm, for each of its channels (at most four)."""
    found: list[tuple[Setting[Any], int | None]] = []
    for setting in subject.settings.values():
        if not (setting.writable and setting.restore):
            continue
        if isinstance(setting, ChannelSetting):
            found += [(setting, channel) for channel in setting.channels[:4]]
        else:
            found.append((setting, None))
    if not found:
        raise NotApplicableError("the driver declares no setting that may be changed")
    return found


def trial_values(setting: Setting[Any]) -> list[Any]:
    """Return values to try: both ends of the range and something between."""
    if setting.choices:
        return list(setting.choices)
    if setting.kind is bool:
        return [True, False]
    if setting.kind is str or setting.length > 1 or setting.minimum is None or setting.maximum is None:
        return []
    low, high = setting.minimum, setting.maximum
    middle = low + 0.37 * (high - low)
    return [setting.kind(value) for value in (high, low, middle)]


def wrong_values(setting: Setting[Any]) -> list[Any]:
    """Return values that must be refused."""
    if not setting.writable:
        return [1]
    wrong: list[Any] = [None, [[]]]
    if setting.kind in {int, float}:
        wrong += ["much", float("nan")]
        step = setting.step or 1
        wrong += [] if setting.minimum is None else [setting.kind(setting.minimum - max(1, step))]
        wrong += [] if setting.maximum is None else [setting.kind(setting.maximum + max(1, step))]
    if setting.choices:
        wrong.append("no such choice")
    if setting.kind is bool:
        wrong.append("maybe")
    if setting.channels:
        wrong.append({max(setting.channels) + 1: trial_values(setting)[:1]})
    return wrong


@contextmanager
def as_before(subject: Subject) -> Iterator[Any]:
    """Open the unit and leave it with the settings that it had."""
    with subject.open() as unit:
        before = unit.snapshot()
        try:
            yield unit
        finally:
            unit.restore(before)


def _set(unit: Any, setting: Setting[Any], channel: int | None, value: Any) -> Any:
    """Set a value and return the read-back, or None if the unit does not take it as it is now."""
    try:
        got = unit.configure({setting.name: value if channel is None else {channel: value}})[setting.name]
    except (CommandRefusedError, UnitStateError):
        return None
    return got if channel is None else got[channel]


def _agree(setting: Setting[Any], told: Any, got: Any) -> bool:
    if setting.channels:
        return all(setting.agrees(told[c], got[c]) for c in told)
    return setting.agrees(told, got)

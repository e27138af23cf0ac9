"""Checks of what must never happen by itself: light that comes back, another unit in place of ours, endless waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qkdhw.drivers.setting import Setting
from qkdhw.errors import CommandRefusedError, TransportError, UnitError, UnitStateError
from qkdhw_emulators.conformance.setting_checks import as_before, places, trial_values
from qkdhw_emulators.conformance.subject import NotApplicableError, Subject, require, until_right
from qkdhw_emulators.faults import Fault

WAITS_AT_MOST = 20.0  # times the time-out: opening again, recovery and a second try are in it
SPARE_S = 30.0  # a board that boots, asked twice


def check_outputs_stay_off(subject: Subject) -> None:
    """Light and bias are off after a power cut and a restored snapshot, until somebody switches them on."""
    served = subject.emulated
    with subject.open() as unit:
        switches = _switches(subject, unit)
        for name, switch_on, is_on in switches:
            with suppress(UnitStateError, CommandRefusedError):  # an interlock may forbid it
                switch_on()
            if not is_on():
                continue
            snapshot = unit.snapshot()
            served.faults.add(Fault.POWER_CYCLE, count=1)
            with suppress(TransportError, UnitError):
                unit.identify()
            served.faults.discard(Fault.POWER_CYCLE)
            require(not until_right(is_on, f"reading {name} after a power cut"), f"{name} is off after a power cut")
            unit.restore(snapshot)
            require(not is_on(), f"{name} is off after restoring a snapshot in which it was on")
    with subject.open() as unit:
        for name, _, is_on in _switches(subject, unit):
            require(not is_on(), f"{name} is off after the unit was opened again")


def check_lost_settings(subject: Subject) -> None:
    """A unit that lost its settings and does not take them back is reported: never silently another value."""
    served = subject.emulated
    if Fault.STUCK_VALUE not in getattr(served.unit, "unit_faults", frozenset()):
        raise NotApplicableError("the emulated unit cannot get stuck")
    with as_before(subject) as unit:
        setting, channel, told = _changed_setting(subject, unit)
        served.faults.add(Fault.POWER_CYCLE, count=1)
        served.faults.add(Fault.STUCK_VALUE)
        try:
            for _ in range(3):
                with suppress(TransportError):
                    unit.identify()
                    kept = setting.agrees(told, unit.read_setting(setting.name, channel))
                    require(
                        kept or Fault.POWER_CYCLE in served.faults,
                        f"{setting.name}, which could not be set again after a power cut, raises UnitError",
                    )
        except UnitError:
            pass
        finally:
            served.faults.discard(Fault.POWER_CYCLE)
            served.faults.discard(Fault.STUCK_VALUE)
        until_right(unit.identify, "identify() with the unit well again")


def check_another_unit(subject: Subject) -> None:
    """Another unit at the same address after a reconnect is refused, whatever is asked."""
    served = subject.emulated
    if Fault.WRONG_FIRMWARE not in getattr(served.unit, "unit_faults", frozenset()):
        raise NotApplicableError("the emulated unit cannot be another one")
    refused = False
    with subject.open() as unit:
        served.faults.add(Fault.WRONG_FIRMWARE)
        served.faults.add(Fault.DISCONNECT, count=1)
        try:
            for _ in range(3):
                with suppress(TransportError):
                    unit.identify()
        except UnitError:
            refused = True
        if Fault.DISCONNECT in served.faults:
            raise NotApplicableError("the unit gives no answer that could be cut off")
        served.faults.discard(Fault.WRONG_FIRMWARE)
        until_right(unit.identify, "identify() with the unit back")
    require(refused, "another firmware after a reconnect raises UnitError")


def check_waits_end(subject: Subject) -> None:
    """Every wait has an end: a unit that answers nothing costs a few time-outs, not for ever."""
    served = subject.emulated
    if Fault.SILENT not in getattr(served.unit, "unit_faults", frozenset()):
        raise NotApplicableError("the emulated unit cannot fall silent")
    with subject.open() as unit:
        calls: list[Callable[[], Any]] = [unit.identify, unit.read_status, unit.snapshot]
        served.faults.add(Fault.SILENT)
        try:
            for call in calls:
                begun_s = time.monotonic()
                with suppress(TransportError, UnitError):
                    call()
                took_s = time.monotonic() - begun_s
                limit_s = WAITS_AT_MOST * subject.timeout_s + SPARE_S
                require(took_s < limit_s, f"{call.__name__}() of a silent unit ends within {limit_s:.0f} s")
        finally:
            served.faults.discard(Fault.SILENT)
        until_right(unit.identify, "identify() with the unit back")


def _changed_setting(subject: Subject, unit: Any) -> tuple[Setting[Any], int | None, Any]:
    """Give a setting another value than the unit's own, and return which and what."""
    for setting, channel in places(subject):
        before = unit.read_setting(setting.name, channel) if setting.readable else None
        for told in trial_values(setting) if setting.readable else ():
            with suppress(CommandRefusedError, UnitStateError):
                unit.configure({setting.name: told if channel is None else {channel: told}})
                if not setting.agrees(before, told):
                    return setting, channel, told
    raise NotApplicableError("no setting takes another value than that of power-up")


def _switches(subject: Subject, unit: Any) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """Return what lets light out or biases detectors: a name, how to switch it on, and whether it is on."""
    found: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = []
    if subject.has("PhotonSource"):
        found.append(("the light", unit.enable_output, unit.read_output_enabled))
    for name, setting in subject.settings.items():
        if setting.kind is bool and setting.writable and setting.readable and not setting.restore:
            channel = setting.channels[0] if setting.channels else None
            value = True if channel is None else {channel: True}
            found.append((
                name,
                lambda n=name, v=value: unit.configure({n: v}),  # type: ignore[misc]
                lambda n=name, c=channel: unit.read_setting(n, c),  # type: ignore[misc]
            ))  # fmt: skip
    if not found:
        raise NotApplicableError("the driver switches no light and no bias")
    return found

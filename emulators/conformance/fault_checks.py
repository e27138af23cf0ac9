"""Checks of what goes wrong: faults of line and unit, lost connections, late answers, several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from qkdhw.drivers.setting import Value
from qkdhw.errors import QkdhwError, TransportError, UnitError
from qkdhw_emulators.conformance.setting_checks import as_before, places, trial_values
from qkdhw_emulators.conformance.subject import NotApplicableError, Subject, require, until_right
from qkdhw_emulators.faults import LINE_FAULTS, Fault

N_THREADS = 8
DIFFERENT_UNIT = frozenset({Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE})
UNANSWERED = frozenset({Fault.SILENT, Fault.GARBAGE})

Reading = tuple[str, int | None]


def check_line_faults(subject: Subject) -> None:
    """Whatever the line does to one answer: the right value or a typed error, and then it works again."""
    served = subject.emulated
    with as_before(subject) as unit:
        unit.restore(unit.snapshot())  # now the driver has set everything, and has to again after a power cycle
        truth = _readings(subject, unit)
        for _ in range(max(1, subject.rounds // 100)):
            for fault in sorted(LINE_FAULTS):
                for reading, value in list(truth.items())[:3]:
                    _once(subject, fault)
                    _right_or_typed(partial(unit.read_setting, *reading), value, subject, reading, fault)
                    served.faults.discard(fault)
                    _right(partial(unit.read_setting, *reading), value, subject, reading, f"after {fault}")


def check_faults_while_setting(subject: Subject) -> None:
    """A fault while a value is set: a typed error or success; never another value than the old or the new one."""
    served = subject.emulated
    with as_before(subject) as unit:
        setting, channel = _settable_place(subject)
        values = _taken(unit, setting, channel, trial_values(setting))
        if len(values) < 2:
            raise NotApplicableError(f"{setting.name} takes no two values now")
        for fault in sorted(LINE_FAULTS - {Fault.POWER_CYCLE}):
            for told in values[:2]:
                old = unit.read_setting(setting.name, channel)
                _once(subject, fault)
                with suppress(TransportError, UnitError):
                    unit.configure({setting.name: told if channel is None else {channel: told}})
                served.faults.discard(fault)
                got = unit.read_setting(setting.name, channel)
                require(
                    setting.agrees(told, got) or setting.agrees(old, got),
                    f"{setting.name} is {got!r} after {fault} while it went from {old!r} to {told!r}",
                )


def check_unit_faults(subject: Subject) -> None:
    """A unit that does not answer, or answers for another: a typed error; and it works again afterwards."""
    served = subject.emulated
    for fault in sorted(getattr(served.unit, "unit_faults", frozenset()) & (DIFFERENT_UNIT | UNANSWERED)):
        with subject.open() as unit:
            served.faults.add(fault)
            try:
                unit.identify()
                if fault is not Fault.WRONG_FIRMWARE:
                    require(False, f"identify() with {fault} raises a typed error")
            except (TransportError, UnitError):
                pass
            finally:
                served.faults.discard(fault)
            until_right(unit.identify, f"identify() after {fault}")


def check_stuck_value(subject: Subject) -> None:
    """A unit that does not take a value is found out by the read-back."""
    served = subject.emulated
    if Fault.STUCK_VALUE not in getattr(served.unit, "unit_faults", frozenset()):
        raise NotApplicableError("the emulated unit cannot get stuck")
    with as_before(subject) as unit:
        setting, channel = _settable_place(subject)
        values = _taken(unit, setting, channel, trial_values(setting))
        if len(values) < 2 or not setting.readable:
            raise NotApplicableError(f"{setting.name} takes no two values now")
        unit.configure({setting.name: values[0] if channel is None else {channel: values[0]}})
        served.faults.add(Fault.STUCK_VALUE)
        try:
            unit.configure({setting.name: values[1] if channel is None else {channel: values[1]}})
        except UnitError:
            return
        finally:
            served.faults.discard(Fault.STUCK_VALUE)
        require(False, f"{setting.name} raises UnitError when the unit does not take the value")


def check_late_replies(subject: Subject) -> None:
    """A late answer is never taken for the answer to something else."""
    served = subject.emulated
    with as_before(subject) as unit:
        truth = list(_readings(subject, unit).items())
        if len(truth) < 2:
            raise NotApplicableError("there are no two readings to tell apart")
        for turn in range(max(2, subject.rounds // 20)):
            (first, first_value), (second, second_value) = truth[turn % len(truth)], truth[(turn + 1) % len(truth)]
            served.faults.add(Fault.LATE_REPLY, count=2, seconds=1.2 * subject.timeout_s)
            _right_or_typed(partial(unit.read_setting, *first), first_value, subject, first, Fault.LATE_REPLY)
            served.faults.discard(Fault.LATE_REPLY)
            _right(partial(unit.read_setting, *second), second_value, subject, second, "after a late answer")


def check_reconnect(subject: Subject) -> None:
    """A lost connection is made again by itself, and settings that the unit forgot are set again."""
    served = subject.emulated
    with as_before(subject) as unit:
        setting, channel = _settable_place(subject)
        told = _taken(unit, setting, channel, trial_values(setting))[-1]
        for fault in (Fault.DISCONNECT, Fault.POWER_CYCLE):
            served.faults.add(fault, count=1)
            with suppress(TransportError, UnitError):
                unit.identify()
            served.faults.discard(fault)
            got = until_right(lambda: unit.read_setting(setting.name, channel), f"reading after {fault}")
            require(setting.agrees(told, got), f"{setting.name} is {got!r} after {fault}, it was set to {told!r}")


def check_threads(subject: Subject) -> None:
    """Threads that share a unit each get their own answers."""
    with subject.open() as unit:
        truth = list(_readings(subject, unit).items())
        wrong: list[str] = []

        def hammer(number: int) -> None:
            try:
                for turn in range(subject.rounds):
                    reading, value = truth[(number + turn) % len(truth)]
                    got = unit.read_setting(*reading)
                    if got != value:
                        wrong.append(f"{reading} is {value!r}, a thread got {got!r}")
            except QkdhwError as error:
                wrong.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=hammer, args=(number,), daemon=True) for number in range(N_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300.0)
        require(not any(thread.is_alive() for thread in threads), "no thread waits for ever")
        require(not wrong, f"{len(wrong)} of {N_THREADS * subject.rounds} answers were wrong, first: {wrong[:1]}")


def _readings(subject: Subject, unit: Any) -> dict[Reading, Value]:
    """Read every setting that stays as it is while nobody changes it, power cycles included."""
    found: dict[Reading, Value] = {}
    for name, setting in subject.settings.items():
        if setting.access == "rw" and setting.retry and setting.restore:
            for channel in setting.channels[:4] or (None,):
                found[name, channel] = unit.read_setting(name, channel)
    if not found:
        raise NotApplicableError("the driver declares no setting that can be read")
    return found


def _settable_place(subject: Subject) -> tuple[Any, int | None]:
    for setting, channel in places(subject):
        if setting.readable and len(trial_values(setting)) > 1:
            return setting, channel
    raise NotApplicableError("no setting can be both set and read")


def _taken(unit: Any, setting: Any, channel: int | None, values: list[Any]) -> list[Any]:
    """Return those of the values that the unit takes, as it quantises them, each different from the others."""
    taken: list[Any] = []
    for value in values:
        with suppress(TransportError, UnitError):
            got = unit.configure({setting.name: value if channel is None else {channel: value}})[setting.name]
            got = got if channel is None else got[channel]
            if got not in taken:
                taken.append(got)
    return taken


def _once(subject: Subject, fault: Fault) -> None:
    """Let a fault strike once; late is later than the driver waits, delayed is not."""
    late = 1.5 if fault is Fault.LATE_REPLY else 0.1
    subject.emulated.faults.add(fault, count=1, seconds=late * subject.timeout_s)


def _right_or_typed(call: Callable[[], Value], value: Value, subject: Subject, reading: Reading, fault: Fault) -> None:
    try:
        got = call()
    except (TransportError, UnitError):
        return
    require(_equal(subject, reading, value, got), f"{reading} is {value!r}, with {fault} it was read as {got!r}")


def _right(call: Callable[[], Value], value: Value, subject: Subject, reading: Reading, when: str) -> None:
    got = until_right(call, f"reading {reading} {when}")
    require(_equal(subject, reading, value, got), f"{reading} is {value!r}, {when} it was read as {got!r}")


def _equal(subject: Subject, reading: Reading, value: Value, got: Value) -> bool:
    return subject.settings[reading[0]].agrees(value, got)

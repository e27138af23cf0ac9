"""Checks of units that send events or preparation records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from qkdhw.errors import EventError, EventOverflowError, TransportError, UnitError
from qkdhw.model import DetectionBlock, EventKind
from qkdhw_emulators.conformance.subject import NotApplicableError, Subject, require, until_right
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.sent_events import KEPT_EVENTS, KnowsEvents, SentEvents

N_EVENTS = 200
DEADLINE_S = 20.0
STREAM_FAULTS = (Fault.DISCONNECT, Fault.TRUNCATE, Fault.GARBLE)

Times = list[tuple[Fraction, int]]


def check_stream(subject: Subject) -> None:
    """Events come in order, each read once, no more than asked for; a stream can be stopped and started again."""
    if not subject.has("TimeTagger", "ReceiverUnit"):
        raise NotApplicableError("the unit sends no events")
    with subject.open() as unit:
        for _ in range(2):
            _start(subject, unit)
            last, seen = -1, 0
            begun_s = time.monotonic()
            while seen < N_EVENTS:
                block = unit.read_block(1000, timeout_s=2.0)
                require(len(block) <= 1000, "a block holds no more events than asked for")
                require(type(block.tick_ps) is Fraction, f"tick_ps is a Fraction, not {block.tick_ps!r}")
                require(block.time_ticks.dtype == np.int64 and block.kind.dtype == np.uint8, "times int64, kinds uint8")
                require(bool(np.isin(block.kind, list(EventKind)).all()), "each event has a kind")
                ticks = block.time_ticks[block.kind == EventKind.PHOTON]
                if len(ticks):
                    require(int(ticks[0]) >= last and bool((np.diff(ticks) >= 0).all()), "time does not go backwards")
                    last = int(ticks[-1])
                seen += len(block)
                require(time.monotonic() - begun_s < DEADLINE_S, f"{N_EVENTS} events come within {DEADLINE_S} s")
            unit.stop()
            require(unit.read_status().state != "running", "a stopped unit does not run")


def check_event_times(subject: Subject) -> None:
    """Each event has the time and the input with which the emulated unit made it."""
    truth = _truth(subject)
    with subject.open() as unit:
        truth.clear()
        _start(subject, unit)
        got: Times = []
        begun_s = time.monotonic()
        while len(got) < N_EVENTS and time.monotonic() - begun_s < DEADLINE_S:
            got += _photons(unit.read_block(1000, timeout_s=2.0))
        unit.stop()
    require(len(got) >= N_EVENTS, f"{N_EVENTS} events come within {DEADLINE_S} s")
    made = truth.times(Fraction(1))
    if not made:
        raise NotApplicableError("the emulated unit kept none of its events")
    require(len(made) >= min(len(got), KEPT_EVENTS), f"{len(got)} events were read, the unit made {len(made)}")
    for index, (event, wanted) in enumerate(zip(got, made, strict=False)):
        require(event == wanted, f"event {index} is {_shown(event)}, the unit made it {_shown(wanted)}")


def check_faults_in_a_stream(subject: Subject) -> None:
    """A fault while events come: the events that were made, or a typed error; and then the unit works again."""
    truth, served = _truth(subject), subject.emulated
    for fault in STREAM_FAULTS:
        with subject.open() as unit:
            truth.clear()
            _start(subject, unit)
            got = _photons(unit.read_block(100, timeout_s=2.0))
            served.faults.add(fault, count=1)
            try:
                for _ in range(3):
                    got += _photons(unit.read_block(100, timeout_s=subject.timeout_s))
            except (TransportError, UnitError, EventError):
                pass
            finally:
                served.faults.discard(fault)
            made = iter(truth.times(Fraction(1)))
            for event in got:
                require(event in made, f"with {fault}, {_shown(event)} is no event that the unit made, or out of order")
            until_right(unit.stop, f"stop() after {fault}")
            until_right(unit.identify, f"identify() after {fault}")


def check_stream_context(subject: Subject) -> None:
    """`with unit.stream() as s: for block in s` starts the unit, and leaving it stops the unit."""
    if not subject.has("TimeTagger"):
        raise NotApplicableError("the unit has no stream()")
    with subject.open() as unit:
        seen = 0
        with unit.stream() as stream:
            for block in stream:
                seen += len(block)
                if seen >= N_EVENTS:
                    break
        require(seen >= N_EVENTS, "events come")
        require(unit.read_status().state != "running", "leaving the stream stops the unit")


def check_wrong_state(subject: Subject) -> None:
    """What a running unit cannot do raises UnitError and leaves the stream running."""
    if not subject.has("TimeTagger", "ReceiverUnit"):
        raise NotApplicableError("the unit sends no events")
    with subject.open() as unit:
        _start(subject, unit)
        try:
            unit.start()
        except UnitError:
            pass
        else:
            require(False, "start() while running raises UnitError")
        require(len(unit.read_block(1000, timeout_s=2.0)) > 0, "the stream goes on")
        unit.stop()


def check_overflow(subject: Subject) -> None:
    """Events that the unit lost are reported, by an event, a status, or an error: never silence."""
    served = subject.emulated
    if Fault.OVERFLOW not in getattr(served.unit, "unit_faults", frozenset()):
        raise NotApplicableError("the emulated unit cannot overflow")
    told = False
    with subject.open() as unit:
        served.faults.add(Fault.OVERFLOW)
        try:
            _start(subject, unit)
            for _ in range(20):
                block = unit.read_block(1000, timeout_s=1.0)
                told |= bool(np.isin(block.kind, [EventKind.MISSED, EventKind.GAP_BEGIN]).any() or block.missed)
            unit.stop()
        except EventOverflowError:
            told = True
        finally:
            served.faults.discard(Fault.OVERFLOW)
        told |= any("overflow" in alarm for alarm in unit.read_status().alarms)
    require(told, "an overflow is reported")


def check_transmitter_states(subject: Subject) -> None:
    """Idle, armed, running and back; what a state does not allow raises UnitError."""
    if not subject.has("TransmitterUnit"):
        raise NotApplicableError("the unit is no transmitter")
    with subject.open() as unit:
        _require_state(unit, "idle", "a unit that was just opened")
        _require_unit_error(unit.start, "start() while idle")
        unit.arm()
        _require_state(unit, "armed", "arm()")
        _require_unit_error(unit.arm, "arm() while armed")
        unit.start()
        _require_state(unit, "running", "start()")
        first = unit.read_preparation(1000, timeout_s=5.0)
        second = unit.read_preparation(1000, timeout_s=5.0)
        require(len(first) > 0, "records come while the unit runs")
        require(second.first_pulse_index == first.first_pulse_index + len(first), "each pulse is read once, in order")
        require(int(first.record.max()) < 12, "a record is bit, basis and an intensity index below 3")
        unit.stop()
        _require_state(unit, "idle", "stop()")


def _truth(subject: Subject) -> SentEvents:
    """Return what the emulated unit knows of the events that it made."""
    if not subject.has("TimeTagger", "ReceiverUnit"):
        raise NotApplicableError("the unit sends no events")
    unit = subject.emulated.unit
    if not isinstance(unit, KnowsEvents):
        raise NotApplicableError("the emulated unit does not say what events it made: it has no sent_events")
    return unit.sent_events


def _photons(block: DetectionBlock) -> Times:
    """Return time in ps and input of each photon."""
    photon = block.kind == EventKind.PHOTON
    tick_ps = Fraction(block.tick_ps)
    pairs: Sequence[tuple[int, int]] = list(
        zip(block.time_ticks[photon].tolist(), block.channel[photon].tolist(), strict=True)
    )
    return [(ticks * tick_ps, channel) for ticks, channel in pairs]


def _shown(event: tuple[Fraction, int]) -> str:
    return f"at {float(event[0]):.3f} ps of input {event[1]}"


def _start(subject: Subject, unit: Any) -> None:
    if subject.has("ReceiverUnit"):
        unit.arm()
    unit.start()


def _require_state(unit: Any, state: str, what: str) -> None:
    got = unit.read_status().state
    require(got == state, f"{what} leads to {state}, not {got}")


def _require_unit_error(call: Any, what: str) -> None:
    try:
        call()
    except UnitError:
        return
    require(False, f"{what} raises UnitError")

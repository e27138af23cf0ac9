"""Checks that any driver must pass. Each takes opened units and raises AssertionError with what is wrong.

A driver's test opens its unit on the emulator (or, opted in, on the real thing) and calls the checks of its kind:

    for check in TRANSMITTER_CHECKS:
        with open_unit("generic-tx", url) as unit:
            check(unit)
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import QkdhwError, TransportError, UnitError
from qkdhw.interfaces import TimeTagger, TransmitterUnit, Unit
from qkdhw.model import EventKind, PreparationBlock, UnitInfo, UnitStatus

TRANSMITTER_STATES = ("idle", "armed", "running", "fault")


def check_identity(unit: Unit) -> None:
    """The unit says who it is, twice the same."""
    info = unit.identify()
    _require(isinstance(info, UnitInfo), "identify() returns a UnitInfo")
    _require(bool(info.vendor and info.model), "identity names vendor and model")
    _require(unit.identify() == info, "identity stays the same")


def check_status(unit: Unit) -> None:
    """Status can be read at any time."""
    status = unit.read_status()
    _require(isinstance(status, UnitStatus), "read_status() returns a UnitStatus")
    _require(status.state in TRANSMITTER_STATES, f"state {status.state!r} is one of {TRANSMITTER_STATES}")


def check_closes_twice(unit: Unit) -> None:
    """Closing twice is allowed, and a closed unit answers with a typed error."""
    unit.close()
    unit.close()
    _require_typed(unit.identify, "identify() on a closed unit")


def check_transmitter_states(unit: TransmitterUnit) -> None:
    """Idle, armed, running and back; what a state does not allow raises UnitError."""
    _require(unit.read_status().state == "idle", "a unit that was just opened is idle")
    _require_unit_error(unit.start, "start() while idle")
    unit.arm()
    _require(unit.read_status().state == "armed", "arm() leads to armed")
    _require_unit_error(unit.arm, "arm() while armed")
    unit.start()
    _require(unit.read_status().state == "running", "start() leads to running")
    _require_unit_error(lambda: unit.configure({"key_basis_probability": 0.5}), "configure() while running")
    unit.stop()
    _require(unit.read_status().state == "idle", "stop() leads to idle")


def check_transmitter_settings(unit: TransmitterUnit) -> None:
    """Settings come back as the unit quantised them; setting that again changes nothing."""
    asked = {"pulse_rate_hz": 20_000_000, "key_basis_probability": 0.8}
    told = unit.configure(asked)
    _require(set(told) == set(asked), "configure() returns every setting that was asked for")
    _require(abs(float(told["key_basis_probability"]) - 0.8) < 1e-3, "the unit is near to what was asked for")
    _require(dict(unit.configure(told)) == dict(told), "a quantised setting stays as it is")


def check_tagger_starts_again(unit: TimeTagger) -> None:
    """A tagger can be stopped, asked for its status, and started again."""
    for _ in range(2):
        unit.start()
        unit.stop()
        unit.read_status()


def check_preparation_in_pieces(whole: TransmitterUnit, pieces: TransmitterUnit, *, n_pulses: int = 300_000) -> None:
    """Two running units with the same seed: read at once or in odd pieces, the records are the same."""
    a, b = _read_preparation(whole, n_pulses, n_pulses), _read_preparation(pieces, n_pulses, 70_001)
    _require(bool(np.array_equal(a, b)), "records do not depend on how much is read at a time")


def check_events_in_pieces(whole: TimeTagger, pieces: TimeTagger, *, n_events: int = 20_000) -> None:
    """Two streaming taggers with the same seed: read at once or in odd pieces, the events are the same."""
    (times, channels), (piece_times, piece_channels) = (
        _read_events(whole, n_events, n_events),
        _read_events(pieces, n_events, 777),
    )
    _require(bool(np.array_equal(times, piece_times)), "times do not depend on how much is read at a time")
    _require(bool(np.array_equal(channels, piece_channels)), "channels do not depend on how much is read at a time")
    _require(bool((np.diff(times) >= 0).all()), "time does not go backwards")


def check_garbage_is_typed(unit: Unit) -> None:
    """A unit that answers garbage, or nothing, gives a UnitError or TransportError, within a minute."""
    begun_s = time.monotonic()
    _require_typed(unit.identify, "identify() with garbage")
    _require_typed(unit.read_status, "read_status() with garbage")
    _require(time.monotonic() - begun_s < 60, "garbage is refused within a minute")


TRANSMITTER_CHECKS: tuple[Callable[[TransmitterUnit], None], ...] = (
    check_identity,
    check_status,
    check_transmitter_states,
    check_transmitter_settings,
    check_closes_twice,
)
TIME_TAGGER_CHECKS: tuple[Callable[[TimeTagger], None], ...] = (
    check_identity,
    check_status,
    check_tagger_starts_again,
    check_closes_twice,
)


def _read_preparation(unit: TransmitterUnit, n_pulses: int, at_a_time: int) -> NDArray[np.uint8]:
    blocks: list[PreparationBlock] = []
    have = 0
    while have < n_pulses:
        block = unit.read_preparation(min(at_a_time, n_pulses - have), timeout_s=10.0)
        _require(len(block) > 0, "records come while the unit runs")
        _require(block.first_pulse_index == have, "records are in order, each pulse once")
        _require(int(block.record.max()) < 12, "a record is bit, basis and an intensity index below 3")
        blocks.append(block)
        have += len(block)
    return np.concatenate([block.record for block in blocks])


def _read_events(unit: TimeTagger, n_events: int, at_a_time: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read times and channels of the first `n_events` photons."""
    times: list[NDArray[np.int64]] = []
    channels: list[NDArray[np.uint8]] = []
    photons = 0
    while photons < n_events:
        block = unit.read_block(at_a_time, timeout_s=10.0)
        _require(0 < len(block) <= at_a_time, "events come while the unit streams, no more than asked for")
        is_photon = block.kind == EventKind.PHOTON
        times.append(block.time_ticks[is_photon])
        channels.append(block.channel[is_photon])
        photons += int(is_photon.sum())
    return np.concatenate(times)[:n_events], np.concatenate(channels)[:n_events]


def _require(ok: bool, rule: str) -> None:
    if not ok:
        raise AssertionError(f"broken rule: {rule}")


def _require_unit_error(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except UnitError:
        return
    raise AssertionError(f"{what} raises UnitError")


def _require_typed(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except (UnitError, TransportError):
        return
    except QkdhwError as error:
        raise AssertionError(f"{what} raises UnitError or TransportError, not {type(error).__name__}") from error
    raise AssertionError(f"{what} raises UnitError or TransportError")

"""Monitors of a receiver's site: each block is judged before it may give key, and an alarm stands until it is cleared.

Alarms are in a file beside the site's store, so that they outlive the process; who clears one says why, and that stays.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from qkdhw.errors import ConfigurationError
from qkdhw.events.gating import HISTOGRAM_BINS, Gate, GatingStatistics
from qkdhw.events.monitors import Alarm, Calibration, MonitorBank, Observation, Reading
from qkdhw.formats.atomic import write_whole_file
from qkdhw.model import BlockStatistics

SIZE_LIMIT_BYTES = 1 << 20
UNCLEAN_CHECKS = frozenset({"qber", "protocol", "verification", "reconciliation", "monitors"})


class StandingAlarm(BaseModel):
    """An alarm that stands.

    Attributes:
        monitor: Which monitor.
        block_id: Block in which it was raised.
        said: What was seen.
        at: When, UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    monitor: str
    block_id: int
    said: str
    at: str


class Cleared(BaseModel):
    """An alarm that somebody cleared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alarm: StandingAlarm
    reason: str
    at: str


class _Alarms(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["qkdhw-monitor-alarms-1"] = "qkdhw-monitor-alarms-1"
    standing: tuple[StandingAlarm, ...] = ()
    cleared: tuple[Cleared, ...] = ()


class AlarmFile:
    """Alarms of a site on disk; several processes may use it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def standing(self) -> dict[str, StandingAlarm]:
        """Return the alarms that stand, by monitor.

        Raises:
            ConfigurationError: The file is there and cannot be read: then nobody knows what stands.
        """
        return {alarm.monitor: alarm for alarm in self._read().standing}

    def cleared(self) -> tuple[Cleared, ...]:
        """Return the alarms that were cleared, oldest first."""
        return self._read().cleared

    def add(self, alarms: list[StandingAlarm]) -> None:
        """Let alarms stand, unless one of the same monitor does already."""
        with self._locked():
            now = self._read()
            known = {alarm.monitor for alarm in now.standing}
            new = tuple(alarm for alarm in alarms if alarm.monitor not in known)
            self._write(now.model_copy(update={"standing": now.standing + new}))

    def clear(self, monitor: str, reason: str) -> Cleared:
        """Clear an alarm.

        Raises:
            ConfigurationError: No such alarm stands, or no reason is given.
        """
        if not reason.strip():
            raise ConfigurationError("an alarm is cleared with a reason only", remedy="say what was found and mended")
        with self._locked():
            now = self._read()
            found = next((alarm for alarm in now.standing if alarm.monitor == monitor), None)
            if found is None:
                names = ", ".join(alarm.monitor for alarm in now.standing) or "none"
                raise ConfigurationError(f"no alarm of {monitor} stands", remedy=f"those that stand: {names}")
            cleared = Cleared(alarm=found, reason=reason, at=_now())
            rest = tuple(alarm for alarm in now.standing if alarm is not found)
            self._write(now.model_copy(update={"standing": rest, "cleared": (*now.cleared, cleared)}))
        return cleared

    def _read(self) -> _Alarms:
        try:
            return _Alarms.model_validate_json(read_small_file(self._path))
        except FileNotFoundError:
            return _Alarms()
        except (OSError, ValidationError) as error:
            raise ConfigurationError(
                f"the alarms in {self._path} cannot be read: {error}",
                remedy="look at the file; while it cannot be read no key is made",
            ) from error

    def _write(self, alarms: _Alarms) -> None:
        with write_whole_file(self._path) as file:
            file.write(alarms.model_dump_json(indent=2).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_name(f"{self._path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def read_calibration(path: Path) -> tuple[Calibration, str]:
    """Read a calibration record, and its SHA-256.

    Raises:
        ConfigurationError: It cannot be read or is none.
    """
    try:
        text = read_small_file(path)
    except OSError as error:
        raise ConfigurationError(
            f"the calibration {path} cannot be read: {error.strerror}",
            remedy="make one with `qkdhw link calibrate`, or leave [receiver.monitors] out",
        ) from error
    return Calibration.from_json(text), hashlib.sha256(text).hexdigest()


def read_small_file(path: Path) -> bytes:
    """Read a file, at most a megabyte of it."""
    with path.open("rb") as file:
        return file.read(SIZE_LIMIT_BYTES)


Told = Callable[[Mapping[str, Any]], None]


class BlockWatch:
    """Counts what a receiver's gate saw in each block and hands an observation of it on, once the counts are known.

    Args:
        take: Called with each observation and the block's statistics so far.
    """

    def __init__(self, take: Callable[[Observation, BlockStatistics], None]) -> None:
        self._take = take
        self._gate: Gate | None = None
        self._seen: tuple[int, GatingStatistics, Any] | None = None

    def attach(self, gate: Gate) -> None:
        """Begin with a new gate, before it is fed."""
        self._gate, self._seen = gate, None
        self._end_slot = gate.clock.ref_slot
        self._statistics, self._histogram = GatingStatistics(), np.zeros(HISTOGRAM_BINS, np.int64)

    def begin_block(self, last_slot: int) -> None:
        """Take what was counted since the block before, up to this slot."""
        if self._gate is None or last_slot < self._end_slot:
            return
        statistics, histogram = self._gate.statistics, self._gate.residual_histogram
        names = [f.name for f in fields(statistics)]
        counted = GatingStatistics(*(getattr(statistics, n) - getattr(self._statistics, n) for n in names))
        self._seen = last_slot + 1 - self._end_slot, counted, histogram - self._histogram
        self._end_slot, self._statistics, self._histogram = last_slot + 1, statistics, histogram

    def observe(self, block: BlockStatistics) -> None:
        """Hand the block on: when its counts are known, or at its end without them; only once."""
        if self._seen is None:
            return
        n_slots, counted, histogram = self._seen
        self._seen = None
        sifted = errors = None
        if block.counts is not None:
            pairs = zip(block.counts.n_key, block.counts.n_test, strict=True)
            sifted = tuple(key + test for key, test in pairs)
            errors = sum(block.counts.m_test), sum(block.counts.n_test)
        self._take(Observation(n_slots, counted, histogram, sifted, errors), block)


class SiteMonitors:
    """The monitors of a receiver's site.

    Args:
        calibration: What is normal.
        alarms: Where alarms stand.
        emit: Is told each new alarm.

    Attributes:
        watch: To be attached to the gate and told of blocks.
    """

    def __init__(self, calibration: Calibration, alarms: AlarmFile, emit: Told) -> None:
        self._bank = MonitorBank(calibration)
        self._alarms = alarms
        self._emit = emit
        self._readings: dict[str, Reading] = {}
        self.watch = BlockWatch(self._judge)

    def refusal(self) -> str:
        """Say why no key may be made: which alarms stand; "" if none does.

        Raises:
            ConfigurationError: The alarms cannot be read.
        """
        return "; ".join(
            f"{alarm.monitor} since block {alarm.block_id}: {alarm.said}" for alarm in self._alarms.standing().values()
        )

    def report(self) -> dict[str, Any]:
        """Return the readings of the last block and the alarms that stand, JSON-able."""
        standing = {name: alarm.model_dump(mode="json") for name, alarm in self._alarms.standing().items()}
        readings = {name: _finite(asdict(reading)) for name, reading in self._readings.items()}
        return {"alarms": standing, "readings": readings}

    def _judge(self, observation: Observation, block: BlockStatistics) -> None:
        before = self._alarms.standing()
        number = self._bank.n_blocks
        self._bank.alarms = {name: Alarm(name, number, alarm.said) for name, alarm in before.items()}
        self._readings = self._bank.judge(observation)
        raised = [
            StandingAlarm(monitor=name, block_id=block.block_id, said=alarm.said, at=_now())
            for name, alarm in self._bank.alarms.items()
            if name not in before
        ]
        if raised:
            self._alarms.add(raised)
        for alarm in raised:
            self._emit({"event": "alarm", **alarm.model_dump(mode="json")})


def _finite(reading: dict[str, Any]) -> dict[str, Any]:
    """Put None where there is no number: JSON has no nan."""
    return {name: None if value != value else value for name, value in reading.items()}  # noqa: PLR0124 - nan only


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

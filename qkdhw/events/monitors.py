"""Monitors of a receiver: what each block's counts should be, as found in a stretch of trusted operation.

An attack on detectors leaves the error rate as it is and shows in other counts: blinded detectors never click together,
a detector that is worth less to the receiver clicks less, light at another time moves the profile of the slot.
docs/reference/attacks.md says which attack shows where.

Every monitor is a count of a number of trials (a share), or of a number of slots (a rate), or the profile of clicks in
the slot. A calibration keeps what it found and how much of a change is honest. A block raises an alarm if its count
would be less likely than the stated risk at each value between the limits. Tails are exact; the profile's is a bound.
Clicks are taken as independent: allow for afterpulses and for light that flickers in the tolerances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qkdhw.errors import ConfigurationError
from qkdhw.events.gating import HISTOGRAM_BINS, GatingStatistics
from qkdhw.events.tails import (
    binomial_limits,
    chi_square_limit,
    log_lower_binomial,
    log_lower_poisson,
    log_upper_binomial,
    log_upper_poisson,
    poisson_limits,
)

PROFILE = "profile"
RATES = frozenset({"count_rate"})
_MIN_EXPECTED = 50.0  # clicks in each group of bins, for chi-square to hold far out
State = Literal["fine", "alarm", "unmonitored"]
Count = Annotated[int, Field(strict=True, ge=0)]
Tolerance = Annotated[float, Field(ge=0.0, le=10.0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Observation:
    """What was counted in one block.

    Attributes:
        n_slots: Slots that the block spans, lit or not.
        statistics: Of the gate, for this block alone.
        histogram: int64 (256,), clicks of this block by their place in the slot.
        sifted: Sifted detections of each intensity, brightest first, or None if not known.
        errors: (wrong, compared) bits of the test basis, or None if not known.
    """

    n_slots: int
    statistics: GatingStatistics
    histogram: NDArray[np.int64]
    sifted: tuple[int, ...] | None = None
    errors: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.n_slots <= 0:
            raise ValueError(f"a block of {self.n_slots} slots cannot be observed")
        if self.histogram.shape != (HISTOGRAM_BINS,) or int(self.histogram.min()) < 0:
            raise ValueError(f"a histogram has {HISTOGRAM_BINS} counts")
        if self.errors is not None and not 0 <= self.errors[0] <= self.errors[1]:
            raise ValueError(f"{self.errors[0]} of {self.errors[1]} bits cannot be wrong")

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (count, trials) of every monitor that has data."""
        s = self.statistics
        key, test = s.n_click_key_0 + s.n_click_key_1, s.n_click_test_0 + s.n_click_test_1
        wired = s.n_photons - s.n_unwired - s.n_before_start
        found = {
            "count_rate": (key + test, self.n_slots),
            "balance_key": (s.n_click_key_1, key),
            "balance_test": (s.n_click_test_1, test),
            "balance_basis": (test, key + test),
            "doubles": (s.n_double_key + s.n_double_test + s.n_cross_basis, s.n_slots),
            "doubles_key": (s.n_double_key, s.n_slots),
            "doubles_test": (s.n_double_test, s.n_slots),
            "doubles_across": (s.n_cross_basis, s.n_slots),
            "outside_window": (s.n_outside_window, wired),
            "dead_time": (min(s.n_dead_time, key + test), key + test),  # a slot of the block before may end here
        }
        if self.sifted is not None:
            found |= {f"gain_{k}": (n, sum(self.sifted)) for k, n in enumerate(self.sifted)}
        if self.errors is not None:
            found["errors"] = self.errors
        return found


class Tolerances(BaseModel):
    """Relative changes that are honest: of a rate, and of a share's odds; of the profile, its chi-square distance.

    The profile's is sqrt(sum (p - q)^2 / q) over bins: a shift by a tenth of the profile's standard deviation is 0.1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count_rate: Tolerance = 0.2
    balance: Tolerance = 0.05
    doubles: Tolerance = 0.3
    outside_window: Tolerance = 0.2
    dead_time: Tolerance = 0.3
    gain: Tolerance = 0.05
    errors: Tolerance = 0.3
    profile: Tolerance = 0.05

    def of(self, monitor: str) -> float:
        """Return the tolerance of a monitor: `balance` for balance_key, and so on."""
        name = monitor if monitor in type(self).model_fields else monitor.split("_", 1)[0]
        return float(getattr(self, name))


def read_tolerances(said: Sequence[str]) -> Tolerances:
    """Read tolerances from texts such as "profile=0.3"; the others are the usual ones.

    Raises:
        ConfigurationError: One is not of that form, or unknown, or out of range.
    """
    values = dict(text.split("=", 1) for text in said if "=" in text)
    problem = "" if len(values) == len(said) else "not of the form NAME=VALUE, or given twice"
    try:
        tolerances = Tolerances.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if problem:
        raise ConfigurationError(
            f"tolerances {', '.join(said)}: {problem}",
            remedy=f"give NAME=VALUE, value 0 to 10, of {', '.join(Tolerances.model_fields)}",
        )
    return tolerances


class Limit(BaseModel):
    """What a monitor found in calibration, and between what it is fine: a share 0 to 1, or a rate in clicks a slot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Count
    trials: Annotated[int, Field(strict=True, gt=0)]
    low: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    high: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.count / self.trials <= self.high:
            raise ValueError(f"{self.count} of {self.trials} does not lie between {self.low:g} and {self.high:g}")
        return self


class Calibration(BaseModel):
    """Limits of all monitors that had data in a stretch of trusted operation.

    Attributes:
        false_alarm_rate: Probability that an honest block raises any alarm, at most.
        n_blocks: Blocks of the stretch.
        n_slots: Slots of the stretch.
        note: Who trusted it and why, in words.
        limits: By name of the monitor; shares without unit, rates in clicks a slot.
        profile: Clicks in each of 256 equal bins of the slot.
        profile_tolerance: Chi-square distance that is honest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["qkdhw-monitor-calibration-1"] = "qkdhw-monitor-calibration-1"
    false_alarm_rate: Annotated[float, Field(gt=1e-300, lt=0.1)]
    n_blocks: Annotated[int, Field(strict=True, gt=0)]
    n_slots: Annotated[int, Field(strict=True, gt=0)]
    note: Annotated[str, Field(min_length=1)]
    limits: Mapping[str, Limit]
    profile: Annotated[tuple[Count, ...], Field(min_length=HISTOGRAM_BINS, max_length=HISTOGRAM_BINS)]
    profile_tolerance: Tolerance

    @model_validator(mode="after")
    def _can_be_true(self) -> Self:
        for name, limit in self.limits.items():
            if name not in RATES and not (limit.count <= limit.trials and limit.high <= 1.0):
                raise ValueError(f"limits of {name} are no share")
        if not any(self.profile):
            raise ValueError("the profile holds no clicks")
        return self

    @property
    def log_risk(self) -> float:
        """Logarithm of the risk that each side of each monitor may take."""
        return math.log(self.false_alarm_rate / (2 * (len(self.limits) + 1)))

    def to_json(self) -> str:
        """Write the record as JSON."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a record.

        Raises:
            ConfigurationError: It is no calibration, or its numbers contradict each other.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "record"
            raise ConfigurationError(
                f"calibration of monitors, {place}: {first['msg']}", remedy="Calibrate the monitors anew."
            ) from error


def calibrate(
    blocks: Sequence[Observation],
    *,
    false_alarm_rate: float,
    note: str,
    tolerances: Tolerances | None = None,
) -> Calibration:
    """Find the limits of all monitors from a stretch of trusted operation.

    Args:
        blocks: Of the stretch, at least 2, as large as those to be judged; ten times as many clicks as one block.
        false_alarm_rate: Probability that an honest block raises any alarm, such as 1e-9.
        note: Who trusted the stretch and why.
        tolerances: Changes that are honest.

    Returns:
        A record whose limits hold the true values but for the same risk.

    Raises:
        ConfigurationError: The stretch is too short, without clicks, or not steady: one of its own blocks would raise
            an alarm; or an argument is out of range.
    """
    tolerances = tolerances or Tolerances()
    if len(blocks) < 2 or not any(int(block.histogram.sum()) for block in blocks):
        raise ConfigurationError(
            f"{len(blocks)} blocks are too few to calibrate monitors, or they hold no clicks",
            remedy="Let the link run undisturbed for at least ten blocks.",
        )
    if not 1e-300 < false_alarm_rate < 0.1 or not note:
        raise ConfigurationError("a calibration needs a false-alarm rate between 0 and 0.1 and a note on its source")
    totals: dict[str, tuple[int, int]] = {}
    for block in blocks:
        for name, (k, n) in block.counts().items():
            before = totals.get(name, (0, 0))
            totals[name] = (before[0] + k, before[1] + n)
    log_risk = math.log(false_alarm_rate / (2 * (len(totals) + 1)))
    found = Calibration(
        false_alarm_rate=false_alarm_rate,
        n_blocks=len(blocks),
        n_slots=sum(block.n_slots for block in blocks),
        note=note,
        limits={name: _limit(name, k, n, log_risk, tolerances) for name, (k, n) in totals.items() if n > 0},
        profile=tuple(np.sum([block.histogram for block in blocks], axis=0).tolist()),
        profile_tolerance=tolerances.profile,
    )
    bank = MonitorBank(found)
    for block in blocks:
        bank.judge(block)
    if bank.alarms:
        name, alarm = next(iter(bank.alarms.items()))
        raise ConfigurationError(
            f"the stretch is not steady: block {alarm.block} of it would raise an alarm of {name} ({alarm.said})",
            remedy="Find what changed and calibrate anew, or allow for it in the tolerances.",
        )
    return found


@dataclass(frozen=True, slots=True)
class Reading:
    """One monitor in one block.

    Attributes:
        name: The monitor.
        state: "fine", "alarm" or "unmonitored": without data or calibration, or with so few that no count could alarm.
        value: Share, clicks a slot, or chi-square; nan if unmonitored.
        low: Least value that is fine in the long run.
        high: Greatest; of the profile, greatest in this block.
        log10_p: Logarithm of the probability of a count so far out, at most; 0 within the limits.
        sees: Which change would raise an alarm in a block of this size: "low", "high", "both" or "none".
    """

    name: str
    state: State
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    log10_p: float = 0.0
    sees: Literal["low", "high", "both", "none"] = "none"


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that stays until it is cleared: first block (from 0) that raised it, and what was seen."""

    name: str
    block: int
    said: str


@dataclass(frozen=True, slots=True)
class ClearedAlarm:
    """An alarm that somebody cleared, before which block, and why."""

    alarm: Alarm
    block: int
    reason: str


@dataclass(slots=True)
class MonitorBank:
    """Judges blocks; an alarm stays until it is cleared with a reason.

    Attributes:
        calibration: What is normal.
        alarms: Alarms that stand, by monitor.
        cleared: Alarms that were cleared, oldest first.
        n_blocks: Blocks judged.
    """

    calibration: Calibration
    alarms: dict[str, Alarm] = field(default_factory=dict)
    cleared: list[ClearedAlarm] = field(default_factory=list)
    n_blocks: int = 0

    def judge(self, block: Observation) -> dict[str, Reading]:
        """Judge the next block.

        Args:
            block: Counts of this block alone.

        Returns:
            A reading of every monitor that is calibrated or has data.
        """
        counts, limits, log_risk = block.counts(), self.calibration.limits, self.calibration.log_risk
        readings = {
            name: _judge_count(name, counts[name], limits[name], log_risk)
            if name in counts and name in limits
            else Reading(name, "unmonitored")
            for name in [*counts, *(other for other in limits if other not in counts)]
        }
        readings[PROFILE] = _judge_profile(block.histogram, self.calibration)
        for name, reading in readings.items():
            if reading.state == "alarm" and name not in self.alarms:
                said = f"{reading.value:.4g} is not within {reading.low:.4g} to {reading.high:.4g}"
                self.alarms[name] = Alarm(name, self.n_blocks, f"{said}, p < 1e{math.floor(reading.log10_p) + 1}")
        self.n_blocks += 1
        return readings

    def clear(self, name: str, reason: str) -> None:
        """Clear a standing alarm.

        Raises:
            ValueError: No such alarm stands, or no reason is given.
        """
        if name not in self.alarms:
            raise ValueError(f"no alarm of {name} stands")
        if not reason.strip():
            raise ValueError("an alarm is cleared with a reason only")
        self.cleared.append(ClearedAlarm(self.alarms.pop(name), self.n_blocks, reason))


def _limit(name: str, k: int, n: int, log_risk: float, tolerances: Tolerances) -> Limit:
    factor = 1.0 + tolerances.of(name)
    if name in RATES:
        low, high = (mean / n for mean in poisson_limits(k, log_risk))
        return Limit(count=k, trials=n, low=low / factor, high=high * factor)
    low, high = binomial_limits(k, n, log_risk)
    # Odds p / (1 - p) divided or multiplied by the factor.
    return Limit(
        count=k, trials=n, low=low / (low + (1.0 - low) * factor), high=high * factor / (high * factor + 1.0 - high)
    )


def _judge_count(name: str, counted: tuple[int, int], limit: Limit, log_risk: float) -> Reading:
    k, n = counted
    if n == 0:
        return Reading(name, "unmonitored")
    log_low: Callable[[int], float]
    log_high: Callable[[int], float]
    if name in RATES:
        log_low, log_high = (
            (lambda c: log_lower_poisson(c, n * limit.low)),
            (lambda c: log_upper_poisson(c, n * limit.high)),
        )
        sees_high = True
    else:
        log_low, log_high = (
            (lambda c: log_lower_binomial(c, n, limit.low)),
            (lambda c: log_upper_binomial(c, n, limit.high)),
        )
        sees_high = log_high(n) < log_risk
    sees_low = log_low(0) < log_risk
    log_p = min(log_low(k), log_high(k))
    state: State = "alarm" if log_p < log_risk else "fine" if sees_low or sees_high else "unmonitored"
    sees: Literal["low", "high", "both", "none"] = (
        "both" if sees_low and sees_high else "low" if sees_low else "high" if sees_high else "none"
    )
    return Reading(name, state, k / n, limit.low, limit.high, max(log_p / math.log(10.0), -999.0), sees)


def _judge_profile(histogram: NDArray[np.int64], calibration: Calibration) -> Reading:
    """Compare two histograms by the chi-square of homogeneity, over groups of bins with enough clicks expected."""
    trusted = np.array(calibration.profile, np.float64)
    n, n_trusted = float(histogram.sum()), float(trusted.sum())
    expected = np.cumsum(trusted) * (n / n_trusted)
    # A group ends where the running sum passes a multiple; what is left belongs to the last group.
    edges, reached = [0], 0.0
    for index, total in enumerate(expected):
        if total - reached >= _MIN_EXPECTED and n - total >= _MIN_EXPECTED:
            edges.append(index + 1)
            reached = float(total)
    if len(edges) < 2:
        return Reading(PROFILE, "unmonitored")
    here = np.add.reduceat(histogram.astype(np.float64), edges)
    there = np.add.reduceat(trusted, edges)
    scale = math.sqrt(n_trusted / n)
    chi_square = float(np.sum((here * scale - there / scale) ** 2 / (here + there)))
    allowed = n * n_trusted / (n + n_trusted) * calibration.profile_tolerance**2
    degrees, x = len(edges) - 1, -calibration.log_risk
    limit = chi_square_limit(degrees, allowed, -x)
    log_p = 0.0 if chi_square <= limit else -x
    state: State = "alarm" if chi_square > limit else "fine"
    return Reading(PROFILE, state, chi_square, 0.0, limit, log_p / math.log(10.0), "high")

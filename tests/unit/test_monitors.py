"""Monitors: false alarms at the rate that was stated, alarms that latch, records that refuse nonsense."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from qkdhw.errors import ConfigurationError
from qkdhw.events.gating import GatingStatistics
from qkdhw.events.monitors import (
    Calibration,
    Limit,
    MonitorBank,
    Observation,
    Tolerances,
    calibrate,
    read_tolerances,
)

EXACT = Tolerances(**dict.fromkeys(Tolerances.model_fields, 0.0))


def block(rng, n_slots=1_000_000, rate=0.02, share=0.5, doubles=0.01, late=0.0, **known):
    clicks = rng.poisson(rate * n_slots)
    key = rng.binomial(clicks, 0.5)
    key_1, test_1 = rng.binomial(key, share), rng.binomial(clicks - key, 0.5)
    outside, dead = rng.poisson(0.001 * n_slots), rng.binomial(clicks, 0.02)
    several = rng.binomial(clicks - dead, doubles)
    statistics = GatingStatistics(
        n_photons=clicks + outside, n_outside_window=outside, n_dead_time=dead, n_slots=clicks - dead,
        n_cross_basis=several, n_double_key=several // 2, n_double_test=several // 2,
        n_click_key_0=key - key_1, n_click_key_1=key_1, n_click_test_0=clicks - key - test_1, n_click_test_1=test_1,
    )  # fmt: skip
    place = np.concatenate((rng.normal(128 + late, 9, clicks), rng.uniform(0, 256, outside)))
    histogram = np.histogram(place, 256, (0, 256))[0].astype(np.int64)
    return Observation(n_slots, statistics, histogram, **known)


def calibration(rng, n=20, false_alarm_rate=1e-9, tolerances=None, **known):
    blocks = [block(rng, **known) for _ in range(n)]
    return calibrate(blocks, false_alarm_rate=false_alarm_rate, note="a test", tolerances=tolerances)


@pytest.fixture
def rng():
    return np.random.default_rng(4)


@pytest.fixture
def bank(rng):
    return MonitorBank(calibration(rng))


def states(readings):
    return {name: reading.state for name, reading in readings.items()}


def test_false_alarms_are_rarer_than_stated_without_any_tolerance():
    """At 1 % a block, 2000 blocks: 20 at most expected."""
    rng = np.random.default_rng(9)
    blocks = [block(rng, 20_000) for _ in range(3000)]
    found = calibrate(blocks[:1000], false_alarm_rate=1e-4, note="a test", tolerances=EXACT)
    bank = MonitorBank(found.model_copy(update={"false_alarm_rate": 0.01}))
    alarmed = sum(any(r.state == "alarm" for r in bank.judge(b).values()) for b in blocks[1000:])
    assert alarmed <= 40


@pytest.mark.parametrize(
    ("change", "monitor"),
    [
        ({"rate": 0.01}, "count_rate"),
        ({"rate": 0.04}, "count_rate"),
        ({"share": 0.4}, "balance_key"),
        ({"doubles": 0.0}, "doubles"),
        ({"doubles": 0.03}, "doubles_across"),
        ({"late": 3.0}, "profile"),
    ],
)
def test_a_change_is_seen_and_named(bank, rng, change, monitor):
    assert set(states(bank.judge(block(rng))).values()) == {"fine"}
    assert bank.judge(block(rng, **change))[monitor].state == "alarm"
    assert monitor in bank.alarms
    assert bank.alarms[monitor].block == 1


def test_what_the_tolerance_allows_raises_no_alarm(bank, rng):
    for _ in range(5):
        bank.judge(block(rng, rate=0.023, share=0.51, doubles=0.012, late=0.3))
    assert bank.alarms == {}


def test_an_alarm_stands_until_it_is_cleared_with_a_reason(bank, rng):
    bank.judge(block(rng, doubles=0.0))
    for _ in range(3):
        assert bank.judge(block(rng))["doubles"].state == "fine"
    first = bank.alarms["doubles"]
    assert first.block == 0
    assert "is not within" in first.said
    for reason in ("", "  "):
        with pytest.raises(ValueError, match="reason"):
            bank.clear("doubles", reason)
    with pytest.raises(ValueError, match="stands"):
        bank.clear("profile", "nothing to see")
    bank.clear("doubles", "a detector was warm")
    assert "doubles" not in bank.alarms
    assert (bank.cleared[0].alarm, bank.cleared[0].block, bank.cleared[0].reason) == (first, 4, "a detector was warm")
    bank.judge(block(rng, doubles=0.0))
    assert bank.alarms["doubles"].block == 4


def test_a_monitor_without_data_is_unmonitored_never_fine(rng):
    found = calibration(rng, sifted=(900, 100, 10), errors=(20, 1000))
    bank = MonitorBank(found)
    blind = states(bank.judge(block(rng)))
    assert {name for name, state in blind.items() if state == "unmonitored"} == {"gain_0", "gain_1", "gain_2", "errors"}
    dark = states(bank.judge(Observation(10_000, GatingStatistics(), np.zeros(256, np.int64))))
    assert {name for name, state in dark.items() if state != "unmonitored"} == {"count_rate"}
    assert dark["count_rate"] == "alarm"
    not_calibrated = MonitorBank(calibration(rng)).judge(block(rng, errors=(1, 50)))
    assert not_calibrated["errors"].state == "unmonitored"


def test_a_block_too_small_to_tell_is_unmonitored(bank, rng):
    readings = bank.judge(block(rng, n_slots=200))
    assert readings["balance_key"].state == "unmonitored"
    assert readings["profile"].state == "unmonitored"
    assert readings["balance_key"].sees == "none"


def test_a_reading_says_which_side_it_can_see(bank, rng):
    few = bank.judge(block(rng, n_slots=20_000))["doubles"]
    assert (few.state, few.sees) == ("fine", "high")
    assert bank.judge(block(rng))["doubles"].sees == "both"


def test_a_record_survives_json_and_refuses_nonsense(rng):
    found = calibration(rng, errors=(20, 1000))
    assert Calibration.from_json(found.to_json()) == found
    for place, value in (
        (("false_alarm_rate",), 0.5),
        (("false_alarm_rate",), math.nan),
        (("note",), ""),
        (("format",), "another"),
        (("n_slots",), 0),
        (("profile",), [1] * 255),
        (("profile",), [0] * 256),
        (("profile", 3), -1),
        (("profile_tolerance",), -0.1),
        (("limits", "errors", "low"), 0.9),
        (("limits", "errors", "high"), 1.5),
        (("limits", "errors", "count"), 10**9),
        (("limits", "errors", "trials"), 0),
        (("surprise",), 1),
    ):
        record = json.loads(found.to_json())
        at = record
        for step in place[:-1]:
            at = at[step]
        at[place[-1]] = value
        with pytest.raises(ConfigurationError, match="calibration of monitors"):
            Calibration.from_json(json.dumps(record))
    with pytest.raises(ConfigurationError):
        Calibration.from_json("{")


def test_a_stretch_that_is_no_reference_is_refused(rng):
    good = [block(rng) for _ in range(10)]
    dark = Observation(1000, GatingStatistics(), np.zeros(256, np.int64))
    for blocks in ([], good[:1], [dark] * 10):
        with pytest.raises(ConfigurationError, match="too few"):
            calibrate(blocks, false_alarm_rate=1e-9, note="a test")
    for rate, note in ((0.0, "a test"), (0.2, "a test"), (math.nan, "a test"), (1e-9, "")):
        with pytest.raises(ConfigurationError, match="needs"):
            calibrate(good, false_alarm_rate=rate, note=note)
    with pytest.raises(ConfigurationError, match="not steady"):
        calibrate([*good, block(rng, rate=0.03)], false_alarm_rate=1e-9, note="a test")


def test_observations_that_cannot_be_are_refused(rng):
    good = block(rng)
    for change in (
        {"n_slots": 0},
        {"histogram": np.zeros(255, np.int64)},
        {"histogram": np.full(256, -1)},
        {"errors": (2, 1)},
    ):
        with pytest.raises(ValueError, match=r"slots|histogram|wrong"):
            replace(good, **change)


def test_tolerances_are_relative_and_bounded():
    for value in (-0.1, math.nan, math.inf, 11.0):
        with pytest.raises(ValueError, match="count_rate"):
            Tolerances(count_rate=value)
    assert Tolerances(balance=0.3).of("balance_test") == 0.3
    assert Tolerances(doubles=0.1).of("doubles") == Tolerances(doubles=0.1).of("doubles_across") == 0.1


def test_limits_must_hold_what_they_were_made_of():
    with pytest.raises(ValueError, match="does not lie"):
        Limit(count=5, trials=10, low=0.6, high=0.7)


def test_tolerances_are_read_and_mistakes_named():
    assert read_tolerances([]) == Tolerances()
    assert read_tolerances(["profile=0.3", "gain=0"]) == Tolerances(profile=0.3, gain=0.0)
    for wrong in (["profile"], ["profile=x"], ["profile=11"], ["colour=1"], ["gain=1", "gain=2"]):
        with pytest.raises(ConfigurationError, match="tolerances") as raised:
            read_tolerances(wrong)
        assert "profile" in raised.value.remedy

"""The emulated ITC4001: light above threshold, key and interlock, a TEC in bench time, splits, faults."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators.units.thorlabs_itc4000 import EmulatedThorlabsItc4000
from qkdhw_emulators.world import VirtualClock, World

SCRIPT = b"SOUR:CURR 0.1;CURR?\r\nOUTP 1\n:OUTP?;:MEAS:CURR?\nSOUR:CURR:LIM 99\nSYST:ERR?;ERR?\n*IDN?\n"


@pytest.fixture
def world():
    return World(clock=VirtualClock(pace=None))


@pytest.fixture
def unit(world):
    return EmulatedThorlabsItc4000(world)


def ask(unit, query):
    return float(unit.receive(query + b"\n"))


@given(cuts=st.lists(st.integers(0, len(SCRIPT)), max_size=8))
def test_answers_do_not_depend_on_how_commands_are_split(cuts) -> None:
    whole = EmulatedThorlabsItc4000().receive(SCRIPT)
    unit, ends = EmulatedThorlabsItc4000(), [0, *sorted(cuts), len(SCRIPT)]
    assert b"".join(unit.receive(SCRIPT[a:b]) for a, b in itertools.pairwise(ends)) == whole


def test_light_begins_at_the_threshold_and_falls_when_it_gets_warm(unit, world) -> None:
    unit.receive(b"SOUR:TEMP 25;:OUTP2 1\n")
    world.clock.advance(60.0)
    unit.receive(b"SOUR:CURR 0.04;:OUTP 1\n")
    assert ask(unit, b"MEAS:CURR?") == pytest.approx(0.04)
    assert ask(unit, b"MEAS:POW2?") == 0.0
    unit.receive(b"SOUR:CURR 0.15\n")
    assert ask(unit, b"MEAS:POW2?") == pytest.approx(0.025, rel=1e-4)
    assert ask(unit, b"MEAS:CURR2?") == pytest.approx(0.00025, rel=1e-4)
    unit.receive(b"SOUR:TEMP 40\n")
    world.clock.advance(60.0)
    assert ask(unit, b"MEAS:POW2?") < 0.0225
    world.set_condition("diode_threshold_a", 0.2)  # the diode is old
    assert ask(unit, b"MEAS:POW2?") == 0.0


def test_the_tec_takes_its_time(unit, world) -> None:
    unit.receive(b"SOUR:TEMP 15;:OUTP2 1\n")
    assert ask(unit, b"STAT:MEAS:COND?") == 512
    world.clock.advance(2.0)
    assert ask(unit, b"MEAS:TEMP?") == pytest.approx(15 + 8 / 2.71828, abs=0.01)
    world.clock.advance(30.0)
    assert ask(unit, b"MEAS:TEMP?") == pytest.approx(15, abs=0.01)
    assert ask(unit, b"STAT:MEAS:COND?") == 0
    assert ask(unit, b"MEAS:CURR3?") == pytest.approx(0.4)
    unit.receive(b"OUTP2 0\n")
    world.clock.advance(600.0)
    assert ask(unit, b"MEAS:TEMP?") == pytest.approx(23, abs=0.01)


@pytest.mark.parametrize(
    ("condition", "bit", "query"),
    [
        ("key_on", 1, b"OUTP:PROT:KEYL:TRIP?"),
        ("interlock_closed", 4, b"OUTP:PROT:INTL:TRIP?"),
        ("sensor_connected", 1024, None),
    ],
)
def test_light_goes_and_does_not_come_back_by_itself(unit, world, condition, bit, query) -> None:
    unit.receive(b"SOUR:CURR 0.1;:OUTP 1\n")
    world.set_condition(condition, 0)
    assert unit.optical_power_w() == 0.0  # at once, before anybody asks
    assert ask(unit, b"STAT:MEAS:COND?") == bit
    if query:
        assert ask(unit, query) == 1
    assert unit.receive(b"OUTP 1;:SYST:ERR?\n") == b'-221,"Settings conflict"\n'
    world.set_condition(condition, 1)
    assert ask(unit, b"OUTP?") == 0
    unit.receive(b"OUTP 1\n")
    assert ask(unit, b"OUTP?") == 1


def test_the_limit_takes_the_current_with_it(unit) -> None:
    unit.receive(b"SOUR:CURR:LIM 0.5;:SOUR:CURR 0.4;:SOUR:CURR:LIM 0.3;:OUTP 1\n")
    assert ask(unit, b"SOUR:CURR?") == 0.3
    assert ask(unit, b"STAT:MEAS:COND?") == 8


def test_a_power_cycle_is_dark(unit) -> None:
    unit.receive(b"SOUR:CURR 0.1;:OUTP 1;:OUTP2 1\n")
    unit.power_cycle()
    assert unit.receive(b"OUTP?;:OUTP2?;:SOUR:CURR?\n") == b"0;0;0.000000000E+00\n"


@pytest.mark.parametrize(
    "command", [b"OUTP maybe\n", b"SOUR2:TEMP 200C\n", b"UNIT:TEMP X\n", b"SOUR:CURR? LOW\n", b"OUTP\n"]
)
def test_bad_commands_go_into_the_queue(unit, command) -> None:
    assert unit.receive(command) == b""
    assert unit.status_byte() == 4


@pytest.mark.parametrize(("fault", "answer"), [("silent", b""), ("wrong-identity", b"ACME,TOASTER,1,1.0\n")])
def test_identity_faults(fault, answer) -> None:
    assert EmulatedThorlabsItc4000(faults=[fault]).receive(b"*IDN?\n") == answer
    assert EmulatedThorlabsItc4000(faults=["stuck-value"]).receive(b"OUTP 1;:OUTP?\n") == b"0\n"

"""The emulated DG645: links between edges, quantisation, triggers in bench time, the error queue, splits, faults."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.srs_dg645 import QUEUE_LENGTH, EmulatedSrsDg645
from qkdhw_emulators.world import VirtualClock, World

SCRIPT = b"DLAY 2,0,1e-6;DLAY 3,2,2e-6\r\nDLAY?3\nLAMP 1,9;BOGUS\nLERR?;LERR?\n*IDN?\r\nTSRC 0;TSRC?\n"


@given(cuts=st.lists(st.integers(0, len(SCRIPT)), max_size=8))
def test_answers_do_not_depend_on_how_commands_are_split(cuts) -> None:
    whole = EmulatedSrsDg645().receive(SCRIPT)
    unit, ends = EmulatedSrsDg645(), [0, *sorted(cuts), len(SCRIPT)]
    assert b"".join(unit.receive(SCRIPT[a:b]) for a, b in itertools.pairwise(ends)) == whole


@given(st.lists(st.tuples(st.integers(2, 9), st.integers(0, 9), st.integers(-10, 10**9)), max_size=12))
def test_edges_never_refer_to_each_other_in_a_circle_nor_come_before_t0(changes) -> None:
    unit = EmulatedSrsDg645()
    for edge, reference, delay_us in changes:
        unit.receive(b"DLAY %d,%d,%de-6\n" % (edge, reference, delay_us))
    for edge in range(2, 10):
        assert 0 <= unit.delay_after_t0_s(edge) < 2000


def test_a_reference_moves_the_edges_that_count_from_it() -> None:
    unit = EmulatedSrsDg645()
    unit.receive(b"DLAY 2,0,1e-6;DLAY 3,2,2e-6;DLAY 2,0,5e-6\n")
    assert unit.delay_after_t0_s(3) == pytest.approx(7e-6)
    unit.receive(b"DLAY 3,2,-4e-6\n")
    assert unit.delay_after_t0_s(3) == pytest.approx(1e-6)
    assert unit.receive(b"DLAY 3,2,-6e-6;LERR?;DLAY?3\n") == b"12;2,-0.000004000000\r\n"


def test_triggers_come_in_bench_time() -> None:
    world = World(clock=VirtualClock(pace=None))
    unit = EmulatedSrsDg645(world)
    unit.receive(b"TRAT 1000;TSRC 0;INSR?\n")
    assert unit.receive(b"INSR?\n") == b"0\r\n"
    world.clock.advance(0.002)
    assert unit.receive(b"INSR?\n") == b"5\r\n"
    unit.receive(b"DLAY 2,0,5e-3\n")
    world.clock.advance(0.002)
    assert unit.receive(b"INSR?\n") == b"7\r\n"


def test_the_error_queue_is_bounded() -> None:
    unit = EmulatedSrsDg645()
    unit.receive(b"BOGUS\n" * 50)
    codes = [unit.receive(b"LERR?\n") for _ in range(QUEUE_LENGTH + 1)]
    assert codes == [b"111\r\n"] * (QUEUE_LENGTH - 1) + [b"254\r\n", b"0\r\n"]


def test_clock_unlock_and_status_byte() -> None:
    unit = EmulatedSrsDg645(faults=[Fault.CLOCK_UNLOCK])
    assert unit.receive(b"INSR?\n") == b"64\r\n"
    unit.receive(b"BOGUS;*TRG\n")
    assert unit.status_byte() == 0x21
    unit.power_cycle()
    assert unit.status_byte() == 0


@pytest.mark.parametrize(("fault", "answer"), [("silent", b""), ("wrong-identity", b"ACME,TOASTER,1,1.0\r\n")])
def test_identity_faults(fault, answer) -> None:
    assert EmulatedSrsDg645(faults=[fault]).receive(b"*IDN?\n") == answer
    assert EmulatedSrsDg645(faults=["wrong-firmware"]).receive(b"*IDN?\n").endswith(b"ver99.99\r\n")


def test_a_stuck_unit_keeps_its_values() -> None:
    unit = EmulatedSrsDg645(faults=["stuck-value"])
    assert unit.receive(b"TSRC 0;DLAY 2,0,1;TSRC?;DLAY?2\n") == b"5;0,+0.000000000000\r\n"

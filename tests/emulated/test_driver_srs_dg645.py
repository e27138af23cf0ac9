"""The DG645 driver against the emulated DG645, over its raw port and VXI-11."""

from __future__ import annotations

import threading

import pytest

from qkdhw.drivers.srs_dg645 import SrsDg645
from qkdhw.errors import CommandRefusedError, UnitStateError
from qkdhw.interfaces import DelayGenerator
from qkdhw.transport import open_transport
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Verdict, run_suite
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.srs_dg645 import EmulatedSrsDg645


@pytest.fixture(params=["tcp", "vxi11"])
def served(request):
    with serve_unit(EmulatedSrsDg645(), transport=request.param) as served:
        yield served


@pytest.fixture
def unit(served):
    with SrsDg645(open_transport(served.url), timeout_s=0.5) as unit:
        yield unit


def test_conformance() -> None:
    with serve_unit(EmulatedSrsDg645(), transport="emu") as served:
        subject = Subject("srs-dg645", served.url, SrsDg645, timeout_s=0.15, served=served, rounds=10)
        assert [o for o in run_suite(subject) if o.verdict is Verdict.FAILED] == []


def test_delays(served, unit) -> None:
    assert isinstance(unit, DelayGenerator)
    assert unit.set_delay_s("A", 10e-9) == pytest.approx(10e-9)
    assert unit.set_delay_s("B", 3.3e-12, reference="A") == pytest.approx(5e-12)  # steps of 5 ps
    assert unit.read_delay_s("B") == ("A", pytest.approx(5e-12))
    assert served.unit.delay_after_t0_s(3) == pytest.approx(10.005e-9)
    assert unit.delay_reference[3] == "A"
    unit.delay_s[3] = 1e-6
    assert unit.read_delay_s("B") == ("A", pytest.approx(1e-6))
    with pytest.raises(CommandRefusedError, match="illegal link"):
        unit.set_delay_s("A", 0.0, reference="B")
    assert unit.read_delay_s("A") == ("T0", pytest.approx(10e-9))


def test_quantisation_and_trigger(served, unit) -> None:
    got = unit.configure({"amplitude_v": {1: 3.333}, "trigger_rate_hz": 12.3456789, "burst_period_s": 123.4e-9})
    assert got["amplitude_v"][1] == pytest.approx(3.33)
    assert got["trigger_rate_hz"] == pytest.approx(12.345679)
    assert got["burst_period_s"] == pytest.approx(120e-9)
    unit.read_status()
    unit.trigger()
    assert unit.read_status().state == "running"
    assert unit.read_status().state == "idle"
    unit.trigger_source = "line"
    with pytest.raises(UnitStateError):
        unit.trigger()
    served.faults.add(Fault.CLOCK_UNLOCK)
    assert unit.read_status().alarms == ("pll_unlocked",)


def test_a_lost_status_is_not_asked_again(served, unit) -> None:
    unit.trigger()
    served.faults.add(Fault.DROP, count=1)
    with pytest.raises(Exception, match="within"):
        unit.read_status()
    assert unit.read_status().state == "idle"  # the unit forgot it when it told


@pytest.mark.parametrize("fault", [Fault.DISCONNECT, Fault.POWER_CYCLE])
def test_edges_come_back_after_a_reconnect(served, unit, fault) -> None:
    unit.set_delay_s("C", 1e-6, reference="B")
    unit.set_delay_s("A", 2e-6)
    unit.amplitude_v = 4.0
    served.faults.add(fault, count=1)
    assert unit.identify().model == "DG645"
    assert unit.read_delay_s("C") == ("B", pytest.approx(1e-6))
    assert served.unit.delay_after_t0_s(4) == pytest.approx(3e-6)
    assert dict(unit.amplitude_v) == dict.fromkeys(range(5), 4.0)


def test_eight_threads_get_their_own_answers(unit) -> None:
    for place, edge in enumerate("ABCDEFGH"):
        unit.set_delay_s(edge, (place + 1) * 1e-6)
    wrong = []

    def read(place, edge):
        wrong.extend(got for _ in range(15) if (got := unit.read_delay_s(edge)[1]) != pytest.approx((place + 1) * 1e-6))

    threads = [threading.Thread(target=read, args=each) for each in enumerate("ABCDEFGH")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_after_a_late_answer_comes_the_right_one(served, unit) -> None:
    unit.set_delay_s("A", 1e-6)
    unit.set_delay_s("B", 2e-6)
    served.faults.add(Fault.LATE_REPLY, count=2, seconds=0.7)
    with pytest.raises(Exception, match="within"):
        unit.read_delay_s("A")
    served.faults.clear()
    assert unit.read_delay_s("B")[1] == pytest.approx(2e-6)

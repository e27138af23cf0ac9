"""The ITC4000 driver against the emulated ITC4001, over USBTMC as the real one."""

from __future__ import annotations

import threading

import pytest

from qkdhw.drivers.thorlabs_itc4000 import ThorlabsItc4000
from qkdhw.errors import CommandRefusedError, ConfigurationError, UnitStateError
from qkdhw.interfaces import OpticalPowerMeter, PhotonSource
from qkdhw.transport import open_transport
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Verdict, run_suite
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.thorlabs_itc4000 import EmulatedThorlabsItc4000


@pytest.fixture
def served():
    unit = EmulatedThorlabsItc4000()
    with serve_unit(unit, unit.world, transport="usbtmc") as served:
        yield served


@pytest.fixture
def unit(served):
    with ThorlabsItc4000(open_transport(served.url), timeout_s=0.5) as unit:
        yield unit


def test_conformance() -> None:
    with serve_unit(EmulatedThorlabsItc4000(), transport="emu") as served:
        subject = Subject("thorlabs-itc4000", served.url, ThorlabsItc4000, timeout_s=0.15, served=served, rounds=10)
        assert [o for o in run_suite(subject) if o.verdict is Verdict.FAILED] == []


def test_the_address_is_the_real_ones() -> None:
    with serve_unit(EmulatedThorlabsItc4000(), transport="usbtmc") as served:
        assert served.url == "visa://USB0::4883::32842::M00123456::0::INSTR"
        with open_transport("visa://USB0::0x1313::0x804A::M00123456::INSTR") as link:
            link.write(b"*IDN?\n")
            assert link.read_until(b"\n").startswith(b"THORLABS,ITC4001,")


def test_light(unit) -> None:
    assert isinstance(unit, PhotonSource)
    assert isinstance(unit, OpticalPowerMeter)
    got = unit.configure({"laser_current_limit_a": 0.3, "laser_current_a": 0.1234567})
    assert got == {"laser_current_limit_a": pytest.approx(0.3), "laser_current_a": pytest.approx(0.12346)}
    assert unit.read_power_w() == 0.0
    unit.enable_output()
    assert unit.read_output_enabled()
    assert unit.read_power_w() > 0.01
    assert unit.read_status().state == "running"
    assert unit.read_status().monitors["measured_laser_current_a"] == pytest.approx(0.12346)
    unit.disable_output()
    assert unit.read_power_w() == 0.0


@pytest.mark.parametrize(("condition", "alarm"), [("interlock_closed", "interlock_open"), ("key_on", "key_locked")])
def test_interlock_and_key(served, unit, condition, alarm) -> None:
    unit.configure({"laser_current_a": 0.1, "laser_on": True})
    served.world.set_condition(condition, 0)
    status = unit.read_status()
    assert (status.state, status.alarms) == ("idle", (alarm,))
    with pytest.raises(UnitStateError, match=alarm):
        unit.enable_output()
    served.world.set_condition(condition, 1)
    assert not unit.read_output_enabled()  # it does not come back by itself
    unit.enable_output()
    assert unit.read_output_enabled()


def test_limits(served, unit) -> None:
    unit.configure({"laser_current_limit_a": 0.5, "laser_current_a": 0.4})
    with pytest.raises(CommandRefusedError, match="-222"):
        unit.laser_current_a = 0.6
    with pytest.raises(CommandRefusedError, match="-222"):
        unit.laser_current_limit_a = 2.0  # an ITC4001 has 1 A
    sent = served.line.fed_bytes
    for wrong in ({"laser_current_a": -1}, {"laser_current_a": 21}, {"tec_temperature_c": 200}, {"laser_on": 1}):
        with pytest.raises(ConfigurationError):
            unit.configure(wrong)
    assert served.line.fed_bytes == sent
    unit.laser_current_limit_a = 0.3  # takes the current with it
    served.faults.add(Fault.DISCONNECT, count=1)
    assert unit.laser_current_a == pytest.approx(0.3)


@pytest.mark.parametrize("fault", [Fault.DISCONNECT, Fault.POWER_CYCLE])
def test_after_a_reconnect_everything_is_back_but_the_light(served, unit, fault) -> None:
    unit.configure({"tec_temperature_c": 21.5, "tec_on": True, "laser_current_a": 0.1, "laser_on": True})
    served.faults.add(fault, count=1)
    assert unit.tec_temperature_c == pytest.approx(21.5)
    assert unit.tec_on
    assert unit.laser_current_a == pytest.approx(0.1)
    assert unit.laser_on is (fault is Fault.DISCONNECT)


def test_temperatures_are_in_celsius_whatever_the_front_panel_shows(served) -> None:
    served.unit.receive(b"UNIT:TEMP K\n")
    with ThorlabsItc4000(open_transport(served.url)) as unit:
        unit.tec_temperature_c = 21.0
        assert unit.measured_temperature_c == pytest.approx(23.0)
        assert served.unit.set_point_c == pytest.approx(21.0)


def test_eight_threads_get_their_own_answers(unit) -> None:
    unit.configure({"tec_temperature_c": 21.5, "laser_current_limit_a": 0.4, "laser_current_a": 0.1})
    want = {"tec_temperature_c": 21.5, "laser_current_limit_a": 0.4, "laser_current_a": 0.1, "tec_current_limit_a": 2.0}
    wrong = []

    def read(name):
        wrong.extend(got for _ in range(15) if (got := unit.read_setting(name)) != pytest.approx(want[name]))

    threads = [threading.Thread(target=read, args=(name,)) for name in list(want) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_after_a_late_answer_comes_the_right_one(served, unit) -> None:
    unit.configure({"laser_current_a": 0.1, "tec_temperature_c": 21.5})
    served.faults.add(Fault.LATE_REPLY, count=1, seconds=0.7)
    assert unit.laser_current_a == pytest.approx(0.1)  # asked again on a cleared instrument
    assert unit.tec_temperature_c == pytest.approx(21.5)

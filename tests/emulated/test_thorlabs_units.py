"""APT drivers against the emulated units over a real pseudo-terminal."""

import threading
import time
from contextlib import contextmanager, suppress

import pytest

from qkdhw.drivers.thorlabs_apt import ThorlabsK10Cr1, ThorlabsMpc320
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    TransportError,
    TransportTimeoutError,
    UnitError,
    UnitStateError,
)
from qkdhw.interfaces import PolarizationController, PositionerStage
from qkdhw.transport import open_transport
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.thorlabs_apt import EmulatedThorlabsK10Cr1, EmulatedThorlabsMpc320
from qkdhw_emulators.world import VirtualClock, World

TIMEOUT_S = 0.4
COUNT_DEG = 170 / 1370


@contextmanager
def paddles(*, pace=None, **faults):
    world = World(seed=5, clock=VirtualClock(pace=pace))
    with (
        serve_unit(EmulatedThorlabsMpc320(world), world, **faults) as served,
        ThorlabsMpc320(open_transport(served.url), timeout_s=TIMEOUT_S) as unit,
    ):
        yield served, unit


@contextmanager
def mount(*, pace=None, **faults):
    world = World(seed=5, clock=VirtualClock(pace=pace))
    with (
        serve_unit(EmulatedThorlabsK10Cr1(world), world, **faults) as served,
        ThorlabsK10Cr1(open_transport(served.url), timeout_s=TIMEOUT_S) as unit,
    ):
        yield served, unit


def test_paddles_turn():
    with paddles() as (_, unit):
        assert isinstance(unit, PolarizationController)
        assert unit.retarders == (1, 2, 3)
        assert unit.identify().serial_number == "38000007"
        for channel, angle in [(1, 170.0), (2, 33.3), (3, 0.05)]:
            got = unit.set_retarder(channel, angle)
            assert abs(got - angle) <= COUNT_DEG / 2
            assert unit.read_retarder(channel) == got
            assert unit.enabled[channel]
        unit.configure({"jog_step_deg": {2: 10.0}, "home_position_deg": 20.0})
        assert unit.jog(2) - unit.jog(2, forward=False) == pytest.approx(10.0, abs=COUNT_DEG)
        assert unit.home_retarder(1) == pytest.approx(20.0, abs=COUNT_DEG)
        with pytest.raises(ConfigurationError):
            unit.jog(4)


def test_a_paddle_takes_as_long_as_its_speed_says():
    with paddles(pace=10.0) as (served, unit):
        unit.velocity_percent = 10
        begun_s = served.world.now_s()
        unit.set_retarder(1, 160.0)
        assert served.world.now_s() - begun_s >= 4.0


def test_switching_one_paddle_leaves_the_others():
    with paddles() as (_, unit):
        unit.enabled = True
        unit.enabled[2] = False
        assert dict(unit.enabled) == {1: True, 2: False, 3: True}
        unit.set_retarder(2, 5.0)
        assert dict(unit.enabled) == {1: True, 2: True, 3: True}


def test_settings_come_back_quantised():
    with paddles() as (_, unit):
        got = unit.configure({"velocity_percent": 35, "jog_step_deg": 12.0, "home_position_deg": 90.0})
        assert got["velocity_percent"] == 35
        assert got["jog_step_deg"] == {1: got["jog_step_deg"][1]} | {
            2: got["jog_step_deg"][1],
            3: got["jog_step_deg"][1],
        }
        assert abs(got["jog_step_deg"][1] - 12.0) <= COUNT_DEG / 2
        assert unit.configure(got) == got
    with mount() as (_, unit):
        got = unit.configure({"velocity_deg_per_s": 3.3, "acceleration_deg_per_s2": 1.7, "backlash_deg": 0.4})
        assert got["velocity_deg_per_s"] == 3.3
        assert got["acceleration_deg_per_s2"] == round(round(1.7 * 1502) / 1502, 6)
        assert unit.configure(got) == got


def test_what_is_out_of_range_is_not_sent():
    with paddles() as (served, unit):
        sent = served.line.fed_bytes
        for wrong in (
            {"velocity_percent": 9},
            {"position_deg": {1: 170.2}},
            {"position_deg": {4: 1.0}},
            {"enabled": 1},
        ):
            with pytest.raises(ConfigurationError):
                unit.configure(wrong)
        assert served.line.fed_bytes == sent
    with mount() as (served, unit):
        sent = served.line.fed_bytes
        for wrong in (15_481.0, float("nan"), float("-inf")):
            with pytest.raises(ConfigurationError):
                unit.move_to(wrong)
        assert served.line.fed_bytes == sent


def test_a_report_about_nothing_is_an_alarm():
    with paddles() as (served, unit):
        served.faults.add(Fault.NAK, count=1)
        # a report that names no message is an alarm, and the answer that it replaces is missed
        assert unit.velocity_percent == 20
        assert unit.read_status().alarms == ("unit_error_3",)
        unit.clear_alarms()
        assert unit.read_status().alarms == ()


def test_a_motor_that_a_move_switched_on_stays_on():
    with paddles() as (served, unit):
        for move in (lambda: unit.set_retarder(2, 100.0), lambda: unit.jog(2)):
            unit.enabled[2] = False
            move()
            assert unit.enabled[2]
            served.faults.add(Fault.TRUNCATE, count=1)
            with suppress(UnitError, TransportError):
                unit.identify()
            served.faults.discard(Fault.TRUNCATE)
            assert unit.enabled[2]


def test_a_command_that_the_unit_refuses():
    with mount() as (served, unit):
        served.unit.velocity = -1  # the unit's own memory is wrong: it refuses what it told before
        with pytest.raises(CommandRefusedError, match="MOT_SET_VELPARAMS") as caught:
            unit.acceleration_deg_per_s2 = 5.0
        assert caught.value.code == "1"
        served.unit.velocity = 7_329_109
        unit.acceleration_deg_per_s2 = 5.0


def test_the_mount_turns():
    with mount() as (served, unit):
        assert isinstance(unit, PositionerStage)
        assert unit.read_status().monitors == {"position_deg": 0.0, "homed": 0.0}
        unit.home()
        assert unit.read_status().monitors == {"position_deg": 0.0, "homed": 1.0}
        for angle in (45.0, 359.999, 800.0, -0.001):
            assert unit.move_to(angle) == pytest.approx(angle, abs=1e-5)
            assert served.unit.angle_deg == pytest.approx(angle % 360, abs=1e-4)
        unit.home()
        unit.enabled = False
        with pytest.raises(UnitStateError, match="off"):
            unit.move_to(1.0)
        with pytest.raises(UnitStateError, match="off"):
            unit.home()


@pytest.mark.parametrize("abrupt", [False, True])
def test_a_move_is_stopped_by_another_thread(abrupt):
    with mount(pace=1.0) as (_, unit):
        problems = []

        def move():
            try:
                unit.move_to(180.0)
            except UnitStateError as error:
                problems.append(error)

        thread = threading.Thread(target=move)
        thread.start()
        while unit.read_position() < 5.0:
            time.sleep(0.02)
        assert unit.read_status().state == "running"
        stopped_at = unit.stop(abrupt=abrupt)
        thread.join(10)
        assert 5.0 < stopped_at < 170.0
        assert "stopped" in str(problems[0])
        assert unit.read_position() == stopped_at


def test_a_move_that_takes_too_long():
    with mount(pace=1.0) as (_, unit):
        with pytest.raises(UnitStateError, match=r"after 0\.2 s"):
            unit.move_to(90.0, timeout_s=0.2)
        unit.stop()
        with pytest.raises(UnitStateError, match="zero"):
            unit.home(timeout_s=0.1)


def test_something_in_the_way_is_told_and_the_unit_can_be_used_again():
    with paddles() as (served, unit):
        unit.set_retarder(1, 50.0)
        served.world.set_condition("blocked", 1)
        with pytest.raises(UnitError, match="position_deg of channel 1"):
            unit.set_retarder(1, 100.0)
        assert set(unit.read_status().alarms) == {"motion_error", "motor_current_limit"}
        assert unit.set_retarder(2, 30.0) == pytest.approx(30.0, abs=COUNT_DEG)
        served.world.set_condition("blocked", 0)
        assert unit.set_retarder(1, 100.0) == pytest.approx(100.0, abs=COUNT_DEG)
    with mount() as (served, unit):
        served.world.set_condition("blocked", 1)
        with pytest.raises(UnitStateError, match="stopped"):
            unit.move_to(100.0)
        assert "motion_error" in unit.read_status().alarms


def test_a_full_turn_beyond_the_counter_is_told_as_the_unit_counts():
    with mount() as (served, unit):
        served.faults.add(Fault.COUNTER_WRAP)
        served.unit.power_cycle()
        assert unit.read_position() == pytest.approx((2**31 - 1000) * 3 / 409_600, abs=1e-5)
        assert unit.move_to(15_480.0) == pytest.approx(15_480.0, abs=1e-5)


def test_reports_between_answers_do_not_disturb():
    """The unit sends 60 status messages a second unasked; that it goes on shows that they are acknowledged."""
    with paddles(pace=2.0) as (served, unit):
        truth = unit.configure({"velocity_percent": 44, "position_deg": {1: 10.0, 2: 20.0, 3: 30.0}})
        begun_s = served.world.now_s()
        served.unit._next_update_s = begun_s
        while served.world.now_s() < begun_s + 4.0:
            assert {c: unit.read_retarder(c) for c in (1, 2, 3)} == truth["position_deg"]
            assert unit.velocity_percent == 44
            time.sleep(0.02)
        assert served.unit._next_update_s is not None  # a recovery would have stopped them


def test_eight_threads_each_get_their_own_answers():
    with paddles() as (_, unit):
        unit.configure({"velocity_percent": 44, "home_position_deg": 7.0, "jog_step_deg": {1: 1.0, 2: 2.0, 3: 3.0}})
        calls = [lambda: unit.velocity_percent, lambda: unit.home_position_deg, lambda: unit.identify().serial_number]
        calls += [lambda c=c: unit.jog_step_deg[c] for c in (1, 2, 3)]
        calls += [lambda: unit.enabled[1], lambda: unit.read_retarder(2)]
        truth, wrong = [call() for call in calls], []

        def hammer(number):
            for _ in range(60):
                try:
                    got = calls[number]()
                except (TransportError, UnitError) as error:
                    got = error
                if got != truth[number]:
                    wrong.append(got)

        threads = [threading.Thread(target=hammer, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong


@pytest.mark.parametrize("fault", sorted(LINE_FAULTS - {Fault.POWER_CYCLE}))
def test_what_the_line_does_to_an_answer(fault):
    with paddles() as (served, unit):
        unit.configure({"velocity_percent": 55, "home_position_deg": 7.0})
        home = unit.home_position_deg
        for read, want in ((lambda: unit.velocity_percent, 55), (lambda: unit.home_position_deg, home)):
            served.faults.add(fault, count=1, seconds=1.5 * TIMEOUT_S if fault is Fault.LATE_REPLY else None)
            with suppress(TransportError, UnitError):
                assert read() == want
            served.faults.clear()
            assert read() == want


def test_a_late_answer_is_not_taken_for_another():
    with mount() as (served, unit):
        unit.configure({"velocity_deg_per_s": 2.0, "acceleration_deg_per_s2": 3.0})
        served.faults.add(Fault.LATE_REPLY, count=2, seconds=1.2 * TIMEOUT_S)
        with pytest.raises(TransportTimeoutError):
            unit.configure({"velocity_deg_per_s": 2.5})
        served.faults.clear()
        assert unit.acceleration_deg_per_s2 == round(round(3.0 * 1502) / 1502, 6)
        assert unit.velocity_deg_per_s == 2.0


def test_an_answer_that_came_twice_does_not_disturb_what_follows():
    with mount() as (served, unit):
        served.faults.add(Fault.DUPLICATE, count=1)
        assert unit.enabled
        assert unit.configure({"velocity_deg_per_s": 6.0, "backlash_deg": 0.0}) == {
            "velocity_deg_per_s": 6.0,
            "backlash_deg": 0.0,
        }


def test_settings_come_back_after_a_loss_of_power_but_no_turned_mount():
    with paddles() as (served, unit):
        unit.configure({"velocity_percent": 66, "position_deg": {1: 80.0}})
        served.faults.add(Fault.POWER_CYCLE, count=1)
        assert unit.velocity_percent == 66
        assert unit.read_retarder(1) == pytest.approx(80.0, abs=COUNT_DEG)
    with mount() as (served, unit):
        unit.home()
        unit.move_to(90.0)
        unit.velocity_deg_per_s = 4.0
        served.faults.add(Fault.POWER_CYCLE, count=1)
        assert unit.velocity_deg_per_s == 4.0
        assert served.unit.angle_deg == pytest.approx(90.0, abs=1e-4)
        assert unit.read_status().monitors == {"position_deg": 0.0, "homed": 0.0}


def test_faults_of_the_unit():
    with paddles() as (served, unit):
        for fault in (Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE):
            served.faults.add(fault)
            try:
                assert unit.identify().firmware == "99.9.9"
                assert fault is Fault.WRONG_FIRMWARE
            except (TransportError, UnitError):
                pass
            served.faults.clear()
            with suppress(TransportError, UnitError):  # the first recovery may meet what the fault left behind
                unit.identify()
            assert unit.identify().model == "MPC320"
        served.faults.add(Fault.STUCK_VALUE)
        with pytest.raises(UnitError, match="velocity_percent is 20 after"):
            unit.velocity_percent = 30
        with pytest.raises(UnitError, match="position_deg of channel 3"):
            unit.set_retarder(3, 30.0)


def test_another_apt_unit_is_named():
    world = World(seed=5)
    with (
        serve_unit(EmulatedThorlabsMpc320(world), world) as served,
        open_transport(served.url) as link,
        pytest.raises(UnitError, match="is a MPC320, not a K10CR1"),
    ):
        ThorlabsK10Cr1(link)

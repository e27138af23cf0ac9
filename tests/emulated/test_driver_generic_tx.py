"""The GTX/1 driver and emulator over TCP, with what can go wrong while a transmitter runs."""

import threading
from contextlib import contextmanager, suppress

import pytest

from qkdhw import interfaces, open_unit
from qkdhw.drivers.generic_tx import GenericTx
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    TransportClosedError,
    TransportError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.transport import open_transport
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.generic_tx import EmulatedGenericTx
from qkdhw_emulators.world import World

SETTINGS = {"pulse_rate_hz": 25_000_000, "mean_photon_number": (0.5, 0.1, 0.002), "key_basis_probability": 0.75}


@contextmanager
def transmitter(*, timeout_s=5.0, running=False):
    world = World(seed=3)
    with (
        serve_unit(EmulatedGenericTx(world), world, transport="tcp") as served,
        GenericTx(open_transport(served.url), timeout_s=timeout_s) as unit,
    ):
        if running:
            unit.arm()
            unit.start()
        yield served, unit


def test_contract_and_settings():
    with transmitter() as (_, unit):
        assert isinstance(unit, interfaces.TransmitterUnit)
        assert unit.configure(SETTINGS) == SETTINGS
        assert unit.mean_photon_number == (0.5, 0.1, 0.002)
        unit.key_basis_probability = 0.9
        assert unit.key_basis_probability == round(0.9 * 65536) / 65536
        snapshot = unit.snapshot()
        unit.configure({"mean_photon_number": [1.0, 0.5, 0.1], "pulse_rate_hz": 5_000_000})
        unit.restore(snapshot)
        assert unit.snapshot() == snapshot


def test_only_connections_are_spoken_over():
    with serve_unit(EmulatedGenericTx(), transport="pty") as served, pytest.raises(ConfigurationError, match="TCP"):
        open_unit("generic-tx", served.url)


@pytest.mark.parametrize("fault", sorted(LINE_FAULTS - {Fault.POWER_CYCLE, Fault.LATE_REPLY, Fault.NAK}))
def test_records_survive_every_fault_of_the_line(fault):
    with transmitter(running=True) as (_, unit):
        want = unit.read_preparation(20_000).record.tolist()
    with transmitter(running=True) as (served, unit):
        unit._timeout_s = 0.3  # an answer that is lost is waited for in vain
        got = []
        for turn in range(100):
            if turn % 2 == 0:
                served.faults.add(fault, count=1, seconds=0.1)
            with suppress(TransportError, WireFormatError):
                got += unit.read_preparation(4_000).record.tolist()
            served.faults.discard(fault)
            if len(got) >= 20_000:
                break
        assert got == want


def test_a_power_cycle_in_a_run_is_no_silence():
    with transmitter(running=True) as (served, unit):
        unit.read_preparation(1000)
        served.faults.add(Fault.POWER_CYCLE, count=1)
        with pytest.raises(TransportClosedError):
            unit.read_preparation(1000)
        for _ in range(2):
            with pytest.raises(UnitStateError, match="restarted"):
                unit.read_preparation(1000)
        unit.arm()
        unit.start()
        assert unit.read_preparation(1000).first_pulse_index == 0


def test_settings_come_back_after_a_power_cycle():
    with transmitter() as (served, unit):
        unit.configure(SETTINGS)
        served.faults.add(Fault.POWER_CYCLE, count=1)
        with pytest.raises(TransportClosedError):
            unit.read_status()
        assert unit.read_setting("mean_photon_number") == (0.5, 0.1, 0.002)
        assert unit.pulse_rate_hz == 25_000_000


def test_a_value_that_was_refused_and_taken_stays():
    with transmitter() as (served, unit):
        unit.configure(SETTINGS)
        served.faults.add(Fault.NAK, count=1)
        with pytest.raises(CommandRefusedError):
            unit.pulse_rate_hz = 5_000_000_000
        assert unit.pulse_rate_hz == 5_000_000_000
        served.faults.add(Fault.GARBLE, count=1)
        with suppress(UnitError):
            unit.identify()
        assert unit.pulse_rate_hz == 5_000_000_000


def test_an_answer_that_comes_twice_is_not_taken_for_the_next_one():
    with transmitter() as (served, unit):
        served.faults.add(Fault.DUPLICATE)
        for _ in range(3):
            assert unit.read_status().state == "idle"
            assert unit.identify().model == "GTX-EMU"


def test_a_full_buffer_gives_nothing_until_the_next_start():
    with transmitter(running=True) as (served, unit):
        served.faults.add(Fault.FULL_BUFFER, count=1)
        assert len(unit.read_preparation(1000, timeout_s=0.1)) == 0
        served.faults.clear()
        assert len(unit.read_preparation(1000, timeout_s=0.1)) == 0
        assert unit.read_status().counters["buffered"] == 1 << 24
        unit.stop()
        unit.arm()
        unit.start()
        assert len(unit.read_preparation(1000)) == 1000


def test_a_stuck_value_is_found_out():
    with transmitter() as (served, unit):
        served.faults.add(Fault.STUCK_VALUE)
        for name, value in (SETTINGS | {"pulse_rate_hz": 5_000_000}).items():
            with pytest.raises(UnitError, match=name):
                unit.configure({name: value})


def test_conditions_drive_monitors_and_latch_alarms():
    with transmitter() as (served, unit):
        served.world.set_condition("back_reflection_dbm", -40.0)
        served.world.set_condition("reference_clock_locked", 0.0)
        status = unit.read_status()
        assert status.monitors["back_reflection_nw"] == 100.0
        assert status.monitors["clock_locked"] == 0.0
        assert status.alarms == ("clock_unlocked", "back_reflection")
        served.world.set_condition("back_reflection_dbm", -60.0)
        served.world.set_condition("reference_clock_locked", 1.0)
        assert unit.read_status().alarms == ("clock_unlocked", "back_reflection")
        unit.clear_alarms()
        assert unit.read_status().alarms == ()


def test_a_laser_that_gets_hot_ends_the_run():
    with transmitter(running=True) as (served, unit):
        unit.read_preparation(1000)
        served.world.set_condition("laser_temperature_c", 50.0)
        status = unit.read_status()
        assert (status.state, status.alarms) == ("fault", ("laser_temperature",))
        assert status.monitors["laser_temperature_c"] == 50.0
        unit.clear_alarms()
        assert unit.read_status().state == "fault"
        served.world.set_condition("laser_temperature_c", 25.0)
        unit.clear_alarms()
        assert unit.read_status().state == "idle"


def test_another_unit_in_mid_session_is_noticed():
    with transmitter() as (served, unit):
        served.faults.add(Fault.WRONG_IDENTITY)
        with pytest.raises(UnitError, match="TOASTER"):
            unit.identify()
        served.faults.clear()
        served.faults.add(Fault.WRONG_FIRMWARE)
        with pytest.raises(UnitError, match=r"99\.99"):
            unit.read_status()
        served.faults.clear()
        assert unit.read_status().state == "idle"


def test_eight_threads_get_their_own_answers():
    wrong = []
    with transmitter() as (_, unit):
        unit.configure(SETTINGS)
        unit.arm()
        calls = {
            "identity": (lambda: unit.identify().model, "GTX-EMU"),
            "state": (lambda: unit.read_status().state, "armed"),
            "rate": (lambda: unit.pulse_rate_hz, 25_000_000),
            "means": (lambda: unit.mean_photon_number, (0.5, 0.1, 0.002)),
        }

        def ask(call, want):
            wrong.extend(got for got in (call() for _ in range(60)) if got != want)

        threads = [threading.Thread(target=ask, args=pair) for pair in [*calls.values()] * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not wrong

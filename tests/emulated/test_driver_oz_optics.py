"""OZ Optics drivers against the emulated units over pseudo-terminals and inside the process."""

import contextlib
import threading
import time

import pytest

from qkdhw import interfaces
from qkdhw.drivers import open_unit
from qkdhw.errors import CommandRefusedError, ConfigurationError, TransportError, UnitError
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.oz_optics import EmulatedOzDd100, EmulatedOzEpc400
from qkdhw_emulators.world import VirtualClock, World

PATIENT_S, HASTY_S = 5.0, 0.25  # hasty where answers are lost: such a test goes on until it works
hasty_epc = pytest.mark.parametrize("epc", [HASTY_S], indirect=True)
hasty_dd100 = pytest.mark.parametrize("dd100", [HASTY_S], indirect=True)


@pytest.fixture
def epc(request):
    timeout_s = getattr(request, "param", PATIENT_S)
    with serve_unit(EmulatedOzEpc400()) as served, open_unit("oz-epc400", served.url, timeout_s=timeout_s) as unit:
        yield served, unit


@pytest.fixture
def dd100(request):
    timeout_s = getattr(request, "param", PATIENT_S)
    world = World(clock=VirtualClock(pace=None))
    with (
        serve_unit(EmulatedOzDd100(world), world) as served,
        open_unit("oz-dd100", served.url, timeout_s=timeout_s, move_timeout_s=timeout_s) as unit,
    ):
        yield served, unit


def until_it_works(call):
    deadline_s = time.monotonic() + 5.0
    while True:
        try:
            return call()
        except (TransportError, UnitError):
            if time.monotonic() > deadline_s:
                raise


def test_contracts(epc, dd100):
    assert isinstance(epc[1], interfaces.PolarizationController)
    assert isinstance(dd100[1], interfaces.Attenuator)
    assert epc[1].identify().model == "EPC-400"
    assert dd100[1].identify().model == "DD-100"


def test_retarders(epc):
    served, unit = epc
    for channel, value in zip(unit.retarders, (500.4, -5000, 5000, 0), strict=True):
        assert unit.set_retarder(channel, value) == round(value)
        assert unit.read_retarder(channel) == round(value)
    assert served.unit.voltages_mv == [500, -5000, 5000, 0]


def test_scrambling(epc):
    served, unit = epc
    unit.configure(
        {"dc_in_ac_enabled": True, "scrambling": {3: False}, "frequency_hz": {1: 12}, "operating_mode": "ac"}
    )
    assert served.unit.output_mv == (None, None, 0, None)
    snapshot = unit.snapshot()
    served.unit.power_cycle()
    unit.restore(snapshot)
    assert served.unit.output_mv == (None, None, 0, None)
    assert served.unit.frequencies_hz[0] == 12


def test_attenuation_is_what_the_motor_reached(dd100):
    served, unit = dd100
    for asked_db in (1.2, 60.0, 33.33, 3.0):
        got = unit.set_attenuation_db(asked_db)
        assert abs(got - asked_db) < 0.02
        assert got == pytest.approx(served.unit.attenuation_db, abs=0.005)
        assert unit.position_steps == served.unit.position_steps
    unit.home()
    assert unit.read_attenuation_db() == unit.insertion_loss_db == 1.2
    assert unit.read_status().monitors["maximum_attenuation_db"] == 60.0


def test_a_move_takes_time_and_is_waited_for():
    with (
        serve_unit(EmulatedOzDd100()) as served,
        open_unit("oz-dd100", served.url, timeout_s=PATIENT_S) as unit,
    ):
        begun_s = time.monotonic()
        assert abs(unit.set_attenuation_db(4.0) - 4.0) < 0.02
        assert time.monotonic() - begun_s > 0.4


def test_the_unit_refuses_what_its_filter_cannot(dd100):
    _, unit = dd100
    unit.set_attenuation_db(10.0)
    with pytest.raises(CommandRefusedError):
        unit.set_attenuation_db(0.5)
    assert abs(unit.read_attenuation_db() - 10.0) < 0.02


def test_range_errors_send_nothing(epc, dd100):
    for served, unit, settings in (
        (*epc, {"voltage_mv": {1: 5001}}),
        (*epc, {"voltage_mv": {5: 0}}),
        (*epc, {"frequency_hz": -1}),
        (*epc, {"operating_mode": "AC"}),
        (*dd100, {"attenuation_db": 81}),
        (*dd100, {"position_steps": 3}),
    ):
        sent = served.line.fed_bytes
        with pytest.raises(ConfigurationError):
            unit.configure(settings)
        assert served.line.fed_bytes == sent


@hasty_epc
@hasty_dd100
@pytest.mark.parametrize("fault", sorted(LINE_FAULTS))
def test_line_faults_give_right_data_or_typed_errors(epc, dd100, fault):
    for served, unit, name, channel in ((*epc, "voltage_mv", 2), (*dd100, "attenuation_db", None)):
        settings = {name: {channel: 1234.0} if channel else 12.0}
        until_it_works(lambda unit=unit, settings=settings: unit.configure(settings))
        right = until_it_works(lambda unit=unit, name=name, channel=channel: unit.read_setting(name, channel))
        served.faults.add(fault, count=1, seconds=1.5 * HASTY_S if fault is Fault.LATE_REPLY else 0.05)
        with contextlib.suppress(TransportError, UnitError):
            assert unit.read_setting(name, channel) == right
        served.faults.discard(fault)
        assert until_it_works(lambda unit=unit, name=name, channel=channel: unit.read_setting(name, channel)) == right


@hasty_epc
@hasty_dd100
@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY])
def test_unit_faults_are_typed(epc, dd100, fault):
    for served, unit in (epc, dd100):
        served.faults.add(fault)
        with pytest.raises((TransportError, UnitError)):
            unit.identify()
        served.faults.clear()
        until_it_works(unit.identify)


def test_a_stuck_value_is_found_out(epc, dd100):
    for served, unit, settings in ((*epc, {"waveform": "triangle"}), (*dd100, {"attenuation_db": 30.0})):
        served.faults.add(Fault.STUCK_VALUE)
        with pytest.raises(UnitError, match="after the unit was told"):
            unit.configure(settings)


@hasty_epc
def test_a_late_answer_is_never_taken_for_another(epc):
    served, unit = epc
    until_it_works(lambda: unit.configure({"voltage_mv": {1: 1111, 2: 2222}}))
    for channel, value in ((1, 1111), (2, 2222), (1, 1111)):
        served.faults.add(Fault.LATE_REPLY, count=1, seconds=1.3 * HASTY_S)
        assert until_it_works(lambda channel=channel: unit.read_retarder(channel)) == value
        assert until_it_works(lambda channel=channel: unit.frequency_hz[channel]) == {1: 7, 2: 17}[channel]


def test_a_lost_terminal_comes_back_with_the_settings(epc):
    served, unit = epc
    unit.configure({"voltage_mv": {4: -321}, "waveform": "triangle"})
    served.faults.add(Fault.POWER_CYCLE, count=1)
    assert until_it_works(lambda: unit.read_retarder(4)) == -321
    assert served.unit.waveform == "Triangle"


@pytest.mark.parametrize("name", ["epc", "dd100"])
def test_eight_threads_get_their_own_answers(name, request):
    _, unit = request.getfixturevalue(name)
    if name == "epc":
        unit.configure({"voltage_mv": {c: 1000 * c for c in unit.retarders}})
        truth = {("voltage_mv", c): 1000 * c for c in unit.retarders} | {("waveform", None): "sine"}
    else:
        truth = {("insertion_loss_db", None): 1.2, ("maximum_attenuation_db", None): 60.0, ("position_steps", None): 0}
    wrong = []

    def hammer(offset):
        places = list(truth)
        for turn in range(12):
            place = places[(offset + turn) % len(places)]
            if unit.read_setting(*place) != truth[place]:
                wrong.append(place)

    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["oz-epc400", "oz-dd100"])
def test_inside_the_process(name):
    with open_unit(name, f"emu://{name}?pace=none", timeout_s=PATIENT_S) as unit:
        before = unit.snapshot()
        unit.restore(before)
        assert unit.snapshot() == before


def test_echo_is_skipped():
    with (
        serve_unit(EmulatedOzEpc400(echo=True)) as served,
        open_unit("oz-epc400", served.url, timeout_s=PATIENT_S) as unit,
    ):
        assert unit.set_retarder(1, 42) == 42

"""The WebSQ driver against the emulated electronics over two TCP ports and inside the process."""

import contextlib
import threading
import time

import numpy as np
import pytest

from qkdhw import interfaces
from qkdhw.drivers import open_unit
from qkdhw.errors import CommandRefusedError, ConfigurationError, TransportError, UnitError
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.single_quantum_websq import EmulatedSingleQuantumWebSq
from qkdhw_emulators.world import World

NAME = "single-quantum-websq"
PATIENT_S, HASTY_S = 5.0, 0.25  # hasty where answers are lost: such a test goes on until it works
hasty = pytest.mark.parametrize("websq", [HASTY_S], indirect=True)


@pytest.fixture
def websq(request):
    world = World(seed=3)
    with (
        serve_unit(EmulatedSingleQuantumWebSq(world), world, transport="tcp") as served,
        open_unit(NAME, served.url, timeout_s=getattr(request, "param", PATIENT_S)) as unit,
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


def test_contracts(websq):
    _, unit = websq
    assert isinstance(unit, interfaces.PhotonDetector)
    assert isinstance(unit, interfaces.Counter)
    assert (unit.identify().vendor, unit.identify().model) == ("Single Quantum", "WebSQ")


def test_counts_come_over_the_second_port(websq):
    served, unit = websq
    unit.configure({"measurement_period_ms": 20, "bias_current_ua": 20.0, "trigger_level_mv": 50.0})
    assert unit.read_counts() == (0, 0, 0, 0)
    unit.enable_detectors()
    total = np.sum([unit.read_counts() for _ in range(8)], axis=0)
    expected = 8 * 0.02 * served.unit.rates_hz()
    assert (np.abs(total - expected) < 5 * np.sqrt(expected)).all()
    assert min(unit.read_count_rates_hz()) > 5e4
    served.world.set_condition("light_rate_hz", 0.0)
    assert max(unit.read_count_rates_hz()) < 1e4
    unit.disable_detectors()
    assert unit.read_count_rates_hz() == (0.0,) * 4


def test_settings_come_back_as_quantised(websq):
    served, unit = websq
    got = unit.configure({"bias_current_ua": {1: 12.34, 3: -7.7}, "trigger_level_mv": {4: 33.3}})
    assert got["bias_current_ua"][1] == pytest.approx(12.34, abs=0.03)
    assert got["bias_current_ua"] == {n: served.unit.bias_ua[n - 1].round(4) for n in (1, 3)}
    assert unit.bias_current_ua[2] == 0.0
    assert unit.trigger_level_mv[4] == pytest.approx(33.3, abs=0.25)
    before = unit.snapshot()
    unit.configure({"bias_current_ua": 5.0})
    unit.restore(before)
    assert unit.snapshot() == before


def test_a_latched_detector_shows_in_its_voltage(websq):
    _, unit = websq
    unit.configure({"bias_current_ua": {1: 20.0, 2: 50.0}})
    unit.enable_detectors()
    status = unit.read_status()
    assert status.state == "running"
    assert status.monitors["bias_voltage_mv.1"] < 2.0
    assert status.monitors["bias_voltage_mv.2"] > 1000.0
    assert status.monitors["temperature_k"] == 2.5
    assert status.alarms == ()


def test_an_error_label_is_an_alarm_that_latches(websq):
    served, unit = websq
    served.faults.add(Fault.NAK, count=1)
    with pytest.raises(CommandRefusedError):
        unit.enable_detectors()
    assert unit.read_status().alarms == ("ErrorMessage: 'Unknown command'",)
    assert unit.read_status().alarms == ("ErrorMessage: 'Unknown command'",)
    unit.clear_alarms()
    assert unit.read_status().alarms == ()


def test_range_errors_send_nothing(websq):
    served, unit = websq
    sent = served.line.fed_bytes
    for settings in (
        {"bias_current_ua": 91.0},
        {"bias_current_ua": {5: 1.0}},
        {"measurement_period_ms": 9},
        {"measurement_period_ms": 10.5},
        {"temperature_k": 4.0},
    ):
        with pytest.raises(ConfigurationError):
            unit.configure(settings)
    assert served.line.fed_bytes == sent


@pytest.mark.parametrize("n_detectors", [1, 24])
def test_as_many_channels_as_there_are_detectors(n_detectors):
    unit = EmulatedSingleQuantumWebSq(n_detectors=n_detectors)
    with (
        serve_unit(unit, unit.world, transport="tcp") as served,
        open_unit(NAME, served.url, timeout_s=PATIENT_S) as driver,
    ):
        driver.configure({"bias_current_ua": {n_detectors: 3.0}, "measurement_period_ms": 10})
        assert len(driver.bias_current_ua) == n_detectors
        assert len(driver.snapshot()["settings"]["bias_voltage_mv"]) == n_detectors
        assert len(driver.read_counts()) == n_detectors
        with pytest.raises(ConfigurationError):
            driver.configure({"bias_current_ua": {n_detectors + 1: 1.0}})


@hasty
@pytest.mark.parametrize("fault", sorted(LINE_FAULTS))
def test_line_faults_give_right_data_or_typed_errors(websq, fault):
    served, unit = websq
    got = until_it_works(lambda: unit.configure({"measurement_period_ms": 30, "bias_current_ua": {2: 9.0}}))
    late_s = 1.5 * HASTY_S if fault is Fault.LATE_REPLY else 0.05
    readings = {("measurement_period_ms", None): 30, ("bias_current_ua", 2): got["bias_current_ua"][2]}
    for place, right in readings.items():
        served.faults.add(fault, count=1, seconds=late_s)
        with contextlib.suppress(TransportError, UnitError):
            assert unit.read_setting(*place) == right
        served.faults.discard(fault)
        assert until_it_works(lambda place=place: unit.read_setting(*place)) == right


@hasty
@pytest.mark.parametrize("fault", sorted(LINE_FAULTS - {Fault.POWER_CYCLE, Fault.NAK}))
def test_line_faults_of_the_counts_port(websq, fault):
    served, unit = websq
    until_it_works(lambda: unit.configure({"measurement_period_ms": 10, "bias_current_ua": 20.0}))
    until_it_works(unit.enable_detectors)
    expected = served.unit.rates_hz()
    counts_line, _ = served.line.further["counts"]
    assert counts_line.faults is served.faults
    until_it_works(unit.read_counts)
    served.faults.add(fault, rate=0.3, seconds=1.5 * HASTY_S if fault is Fault.LATE_REPLY else 0.02)
    for _ in range(4):
        with contextlib.suppress(TransportError, UnitError):
            counts = np.array(unit.read_counts())
            assert (np.abs(counts - 0.01 * expected) < 6 * np.sqrt(0.01 * expected)).all()
    served.faults.clear()
    assert min(until_it_works(unit.read_counts)) > 0


@hasty
@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY])
def test_unit_faults_are_typed(websq, fault):
    served, unit = websq
    served.faults.add(fault)
    with pytest.raises((TransportError, UnitError)):
        unit.identify()
    served.faults.clear()
    until_it_works(unit.identify)


def test_a_stuck_value_is_found_out(websq):
    served, unit = websq
    served.faults.add(Fault.STUCK_VALUE)
    for settings in ({"bias_current_ua": {1: 5.0}}, {"detectors_enabled": True}):
        with pytest.raises(UnitError, match="after the unit was told"):
            unit.configure(settings)


@hasty
def test_a_late_answer_is_never_taken_for_another(websq):
    served, unit = websq
    until_it_works(lambda: unit.configure({"bias_current_ua": {1: 3.0, 2: 6.0}}))
    for channel, value in ((1, 3.0), (2, 6.0), (1, 3.0)):
        served.faults.add(Fault.LATE_REPLY, count=1, seconds=1.3 * HASTY_S)
        assert until_it_works(lambda channel=channel: unit.bias_current_ua[channel]) == pytest.approx(value, abs=0.03)
        assert until_it_works(lambda: unit.measurement_period_ms) == 100


def test_after_a_power_cut_the_settings_come_back_but_not_the_bias(websq):
    served, unit = websq
    unit.configure({"bias_current_ua": 20.0, "measurement_period_ms": 10})
    unit.enable_detectors()
    served.faults.add(Fault.POWER_CYCLE, count=1)
    assert until_it_works(lambda: unit.bias_current_ua[3]) == pytest.approx(20.0, abs=0.03)
    assert not unit.detectors_enabled
    assert unit.read_counts() == (0, 0, 0, 0)


def test_another_client_s_settings_are_kept(websq):
    served, unit = websq
    with served.world:
        served.unit.receive(b'{"command": "SetAllBiasCurrents", "value": [1, 2, 3, 4]}')
    unit.configure({"bias_current_ua": {4: 9.0}})
    assert served.unit.bias_ua == pytest.approx([1, 2, 3, 9], abs=0.03)


def test_eight_threads_get_their_own_answers(websq):
    _, unit = websq
    unit.configure({"bias_current_ua": {n: 3.0 * n for n in range(1, 5)}})
    truth = {n: unit.bias_current_ua[n] for n in range(1, 5)}
    wrong = []

    def hammer(number):
        for turn in range(15):
            n = 1 + (number + turn) % 4
            if unit.bias_current_ua[n] != truth[n]:
                wrong.append(n)

    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(truth.values())) == 4
    assert not wrong


@pytest.mark.parametrize("url", [f"emu://{NAME}?seed=9&pace=none", None])
def test_both_ports_inside_the_process(url):
    with contextlib.ExitStack() as stack:
        if url is None:
            emulated = EmulatedSingleQuantumWebSq()
            url = stack.enter_context(serve_unit(emulated, emulated.world, transport="emu")).url
        unit = stack.enter_context(open_unit(NAME, url, timeout_s=PATIENT_S))
        unit.configure({"measurement_period_ms": 20, "bias_current_ua": 20.0, "detectors_enabled": True})
        assert min(unit.read_count_rates_hz()) > 5e4

"""The emulated WebSQ: splits, quantisation, detectors that count, latch and warm up, the counts port's clock."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.single_quantum_websq import EmulatedSingleQuantumWebSq
from qkdhw_emulators.world import VirtualClock, World

REQUESTS = (
    b'{"request": "labelProps", "value": "None"}'
    b'{"command": "SetAllBiasCurrents", "label": "BiasCurrent", "value": [12.0, 8.0, 30.0, -8.0]}'
    b'{"command": "DetectorEnable", "label": "DetectorEnable", "value": true}'
    b'{"request": "BiasVoltage"}{"what": {"is": ["this", "}"]}}'
    b'{"command": "SetMeasurementPeriod", "label": "InptMeasurementPeriod", "value": 9}'
    b'{"request": "TemperatureHistory"}'
)


def detectors(*, bias_ua=20.0, enabled=True, **conditions):
    unit = EmulatedSingleQuantumWebSq(World(seed=5, clock=VirtualClock(pace=None)))
    for name, value in conditions.items():
        unit.world.set_condition(name, value)
    tell(unit, "SetAllBiasCurrents", [bias_ua] * 4)
    tell(unit, "DetectorEnable", enabled)
    return unit


def tell(unit, command, value):
    reply = unit.receive(json.dumps({"command": command, "value": value}).encode())
    return json.loads(reply.removesuffix(b"\x17"))


@given(cuts=st.lists(st.integers(0, len(REQUESTS)), max_size=6))
def test_answers_the_same_in_any_pieces(cuts):
    edges = [0, *sorted(cuts), len(REQUESTS)]
    unit = EmulatedSingleQuantumWebSq(World(clock=VirtualClock(pace=None)))
    pieces = [unit.receive(REQUESTS[a:b]) for a, b in itertools.pairwise(edges)]
    whole = EmulatedSingleQuantumWebSq(World(clock=VirtualClock(pace=None))).receive(REQUESTS)
    assert b"".join(pieces) == whole
    assert whole.count(b"Error") == 2


def test_answers_end_with_0x17_but_two_labels_run_together():
    answer = EmulatedSingleQuantumWebSq().receive(b'{"request": "labelProps", "value": "None"}')
    assert answer.count(b"}{") == 1
    assert answer.count(b"\x17") == 6
    assert answer.endswith(b"}\x17")


def test_currents_and_levels_are_quantised():
    unit = detectors()
    told = tell(unit, "SetAllBiasCurrents", [12.345, 0.01, -90.9, 90.9])["value"]
    assert told == pytest.approx([12.345, 0.01, -90.9, 90.9], abs=0.023)
    assert told != [12.345, 0.01, -90.9, 90.9]
    assert "Error" in tell(unit, "SetAllBiasCurrents", [91.0] * 4)["label"]
    assert "Error" in tell(unit, "SetAllBiasCurrents", [1.0] * 3)["label"]
    assert "Error" in tell(unit, "DetectorEnable", 1)["label"]
    assert "Error" in tell(unit, "SetMeasurementPeriod", "long")["label"]


def test_efficiency_saturates_and_dark_counts_grow_with_bias():
    rates = [detectors(bias_ua=i, light_rate_hz=1e5).rates_hz().mean() for i in (0, 10, 14, 18, 20, 22)]
    assert rates[0] == 0.0
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.9e5, rel=0.03)
    dark = [detectors(bias_ua=i, light_rate_hz=0.0).rates_hz().mean() for i in (18, 20, 22)]
    assert dark[0] * 3 < dark[1]
    assert dark[1] * 3 < dark[2] < 2000


def test_above_the_switching_current_a_detector_latches_until_the_bias_goes_far_down():
    unit = detectors(bias_ua=20)
    assert unit.bias_voltage_mv().max() < 2.0
    tell(unit, "SetAllBiasCurrents", [20, 40, 20, 20])
    assert unit.latched().tolist() == [False, True, False, False]
    assert unit.bias_voltage_mv()[1] > 1000.0
    assert unit.rates_hz()[1] == 0.0
    tell(unit, "SetAllBiasCurrents", [20] * 4)
    assert unit.rates_hz()[1] == 0.0
    tell(unit, "SetAllBiasCurrents", [20, 1, 20, 20])
    assert not unit.latched().any()
    tell(unit, "SetAllBiasCurrents", [20] * 4)
    assert (unit.rates_hz() > 0).all()


def test_a_warm_detector_is_normal_conducting():
    unit = detectors(bias_ua=5, temperature_k=10.0)
    assert unit.latched().all()
    assert unit.bias_voltage_mv().tolist() == [3000.0] * 4
    assert not unit.rates_hz().any()
    assert detectors(temperature_k=4.0).switching_ua().mean() < detectors(temperature_k=2.5).switching_ua().mean()


def test_trigger_levels_in_the_noise_and_above_the_pulses():
    unit = detectors(bias_ua=20)
    tell(unit, "SetAllTriggerLevels", [50, 1, 300, 150])
    rates = unit.rates_hz()
    assert rates[1] > 1e6
    assert rates[2] == 0.0
    assert rates[0] > 0
    assert rates[3] > 0


def test_disabled_detectors_count_nothing_and_have_no_voltage():
    unit = detectors(enabled=False)
    assert not unit.rates_hz().any()
    assert not unit.bias_voltage_mv().any()


def test_the_counts_port_sends_a_line_a_period_to_whoever_listens():
    unit = detectors(bias_ua=20, light_rate_hz=1e4)
    port, above = unit.further_ports["counts"]
    assert above == 12345 - 12000
    clock = unit.world.clock
    assert port.wait_s() is None
    clock.advance(5.03)
    assert port.poll() == b""
    port.opened()
    assert port.wait_s() == pytest.approx(0.07)
    clock.advance(20.0)
    rows = [[float(x) for x in line.split(b",")] for line in port.poll().splitlines()]
    table = np.array(rows)
    assert table.shape == (200, 5)
    assert np.allclose(np.diff(table[:, 0]), 0.1)
    expected = unit.rates_hz() * 0.1
    assert (np.abs(table[:, 1:].mean(axis=0) - expected) < 4 * np.sqrt(expected / 200)).all()
    assert (np.abs(table[:, 1:].var(axis=0) / expected - 1) < 0.5).all()
    port.reset_input()
    clock.advance(1.0)
    assert port.poll() == b""


def test_a_listener_that_sleeps_gets_no_more_than_a_backlog():
    unit = detectors()
    port, _ = unit.further_ports["counts"]
    port.opened()
    unit.world.clock.advance(1e6)
    assert port.poll().count(b"\n") == 1000


def test_power_cycle_forgets_everything():
    unit = detectors()
    port, _ = unit.further_ports["counts"]
    unit.receive(b'{"half')
    port.power_cycle()
    assert not unit.enabled
    assert not unit.bias_ua.any()
    assert unit.receive(b'{"request": "BiasVoltage"}').startswith(b'{"label": "BiasVoltage"')


def test_faults_of_the_unit():
    ask = b'{"request": "labelProps", "value": "None"}'
    assert EmulatedSingleQuantumWebSq(faults=[Fault.SILENT]).receive(ask) == b""
    garbage = EmulatedSingleQuantumWebSq(faults=[Fault.GARBAGE]).receive(ask)
    assert garbage.endswith(b"\x17")
    assert b"Bias" not in garbage
    assert b"NumberOf" not in EmulatedSingleQuantumWebSq(faults=[Fault.WRONG_IDENTITY]).receive(ask)
    unit = detectors()
    unit.faults.add(Fault.STUCK_VALUE)
    assert tell(unit, "SetMeasurementPeriod", 50)["value"] == 100
    assert tell(unit, "DetectorEnable", False)["value"] is True
    assert tell(unit, "SetAllTriggerLevels", [1] * 4)["value"][0] == pytest.approx(48.8, abs=0.1)

"""The emulated OZ Optics units: splits, steps, moving times, faults, power."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.oz_optics import EmulatedOzDd100, EmulatedOzEpc400
from qkdhw_emulators.world import VirtualClock, World

EPC_COMMANDS = b"V1,-250\r\nV?\r\nbad\r\nMAC\r\nVF3\r\nENVF1\r\nVF?\r\n\r\nWF2\r\nM?\r\nF4,99\r\nF?\r\n"
DD_COMMANDS = b"CD\rD\rA2.00\r\nD\rA99\r\rH\rD\r"


def still_world():
    return World(clock=VirtualClock(pace=None))


def ask_all(unit, pieces):
    """Feed pieces; whenever the unit is busy, let the clock jump as the line does."""
    out = b""
    for piece in pieces:
        out += unit.receive(piece)
    while (wait_s := getattr(unit, "wait_s", lambda: None)()) is not None:
        unit.world.clock.advance(wait_s)
        out += unit.poll()
    return out


@given(cuts=st.lists(st.integers(0, len(EPC_COMMANDS)), max_size=6))
def test_epc_answers_the_same_in_any_pieces(cuts):
    edges = [0, *sorted(cuts), len(EPC_COMMANDS)]
    pieces = [EPC_COMMANDS[a:b] for a, b in itertools.pairwise(edges)]
    assert ask_all(EmulatedOzEpc400(still_world()), pieces) == EmulatedOzEpc400().receive(EPC_COMMANDS)


@given(cuts=st.lists(st.integers(0, len(DD_COMMANDS)), max_size=6))
def test_dd100_answers_the_same_in_any_pieces(cuts):
    edges = [0, *sorted(cuts), len(DD_COMMANDS)]
    pieces = [DD_COMMANDS[a:b] for a, b in itertools.pairwise(edges)]
    whole = ask_all(EmulatedOzDd100(still_world()), [DD_COMMANDS])
    assert ask_all(EmulatedOzDd100(still_world()), pieces) == whole
    assert whole.count(b"Done\r\n\r\n") == 6
    assert whole.count(b"Error!\r\n\r\n") == 1


def test_dd100_answers_when_the_motor_has_arrived_and_what_comes_meanwhile_waits():
    unit = EmulatedOzDd100(still_world())
    assert unit.receive(b"A60\rD\r") == b""
    assert unit.wait_s() == pytest.approx(2.0)
    unit.world.clock.advance(1.9)
    assert unit.poll() == b""
    unit.world.clock.advance(0.1)
    assert unit.poll() == b"Pos:8000\r\nDone\r\n\r\nDPos:8000\r\nATTEN:60.00\r\nDone\r\n\r\n"
    assert unit.wait_s() is None


def test_dd100_attenuation_comes_in_steps_of_the_motor():
    unit = EmulatedOzDd100(still_world())
    seen = set()
    for hundredths in range(5990, 6001):
        unit.receive(f"A{hundredths / 100:.2f}\r".encode())
        unit.world.clock.advance(10.0)
        unit.poll()
        seen.add(unit.attenuation_db)
        assert abs(unit.attenuation_db - hundredths / 100) < 0.02
    assert 5 < len(seen) < 11
    assert unit.transmittance == pytest.approx(1e-6)


def test_dd100_loses_its_move_with_its_power():
    unit = EmulatedOzDd100(still_world())
    unit.receive(b"A60\rD\r")
    unit.power_cycle()
    unit.world.clock.advance(60.0)
    assert unit.poll() == b""
    assert unit.position_steps == 0


def test_epc_goes_back_to_what_was_saved():
    unit = EmulatedOzEpc400()
    unit.receive(b"V1,100\r\nSAVE\r\nV1,200\r\nF1,5\r\nMAC\r\n")
    unit.power_cycle()
    assert (unit.voltages_mv, unit.frequencies_hz[0], unit.scrambling) == ([100, 0, 0, 0], 7, False)


def test_epc_output_is_steady_only_where_it_may_be():
    unit = EmulatedOzEpc400()
    unit.receive(b"V1,100\r\n")
    assert unit.output_mv == (100, 0, 0, 0)
    unit.receive(b"MAC\r\nVF1\r\n")
    assert unit.output_mv == (None, None, None, None)
    unit.receive(b"ENVF1\r\n")
    assert unit.output_mv == (100, None, None, None)


def test_echo():
    unit = EmulatedOzEpc400(echo=True)
    assert unit.receive(b"m?\r\n") == b"m?\r\nWork Mode: DC\r\nDone\r\n"
    attenuator = EmulatedOzDd100(still_world(), echo=True)
    assert ask_all(attenuator, [b"A1.2\r"]) == b"A1.2\r\nPos:0\r\nDone\r\n\r\n"


@pytest.mark.parametrize("emulator", [EmulatedOzEpc400, EmulatedOzDd100])
def test_faults_of_the_unit(emulator):
    assert emulator(faults=[Fault.SILENT]).receive(b"M?\r\nCD\r\n") == b""
    garbage = emulator(faults=[Fault.GARBAGE]).receive(b"CD\r\n")
    assert garbage.endswith(b"\n")
    assert b"Done" not in garbage
    assert b"Work" not in emulator(faults=[Fault.WRONG_IDENTITY]).receive(b"M?\r\nCD\r\n")


def test_stuck_values():
    unit = EmulatedOzEpc400(faults=[Fault.STUCK_VALUE])
    unit.receive(b"V1,100\r\nF1,5\r\nMAC\r\nENVF1\r\nWF2\r\nVF1\r\n")
    assert (unit.voltages_mv[0], unit.frequencies_hz[0], unit.scrambling) == (0, 7, False)
    assert (unit.dc_in_ac, unit.waveform, unit.scrambled[0]) == (False, "Sine", True)
    attenuator = EmulatedOzDd100(still_world(), faults=[Fault.STUCK_VALUE])
    assert ask_all(attenuator, [b"A30\r"]) == b"Pos:0\r\nDone\r\n\r\n"

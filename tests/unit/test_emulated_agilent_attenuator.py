"""Emulated attenuators: filter and offset, splits, faults, power cycles."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.agilent_attenuator import EmulatedAgilent816x, EmulatedAgilent8156A

SCRIPT = b":INP:OFFS 5;ATT 20.1234;ATT?\r\n:INP:WAV 1550nm;WAV?\n:outp on;:OUTP?\n:INP:ATT 99\nSYST:ERR?;ERR?\n*IDN?\n"


@given(cuts=st.lists(st.integers(0, len(SCRIPT)), max_size=8))
@pytest.mark.parametrize("emulator", [EmulatedAgilent8156A, EmulatedAgilent816x])
def test_answers_do_not_depend_on_how_commands_are_split(emulator, cuts) -> None:
    whole = emulator().receive(SCRIPT)
    unit, ends = emulator(), [0, *sorted(cuts), len(SCRIPT)]
    assert b"".join(unit.receive(SCRIPT[a:b]) for a, b in itertools.pairwise(ends)) == whole


def test_the_offset_changes_what_is_shown_and_not_the_light() -> None:
    unit = EmulatedAgilent8156A()
    unit.receive(b":OUTP 1;:INP:ATT 10.0006\n")
    assert unit.transmittance == pytest.approx(10**-1.0001)
    unit.receive(b":INP:OFFS 3\n")
    assert unit.transmittance == pytest.approx(10**-1.0001)
    assert unit.receive(b":INP:ATT?\n") == b"13.001\n"
    unit.receive(b":OUTP 0\n")
    assert unit.transmittance == 0.0


def test_modules_are_independent_and_a_power_cycle_darkens_them() -> None:
    unit = EmulatedAgilent816x()
    unit.receive(b":INP2:ATT 20;:OUTP2 1\n")
    assert [each.filter_db for each in unit.filters.values()] == [0.0, 20.0]
    assert unit.transmittance == 0.0
    assert unit.filters[2].transmittance == pytest.approx(0.01)
    unit.power_cycle()
    assert unit.filters[2].transmittance == 0.0
    assert unit.receive(b":INP2:ATT?\n") == b"+0.00000000E+00\n"


@pytest.mark.parametrize(
    ("fault", "answer"),
    [(Fault.SILENT, b""), (Fault.WRONG_IDENTITY, b"ACME,TOASTER,1,1.0\n"), (Fault.WRONG_FIRMWARE, b",99.99\n")],
)
def test_faults_of_identity(fault, answer) -> None:
    unit = EmulatedAgilent8156A(faults=[fault])
    assert unit.receive(b"*IDN?\n").endswith(answer)
    unit.faults.clear()
    assert unit.receive(b"*IDN?\n").endswith(b",1.02\n")


def test_stuck_and_garbage() -> None:
    unit = EmulatedAgilent8156A(faults=["stuck-value"])
    assert unit.receive(b":INP:ATT 10;ATT?\n") == b"0.000\n"
    unit.faults.clear()
    unit.faults.add(Fault.GARBAGE)
    assert unit.receive(b":INP:ATT?\n") != b"0.000\n"


@pytest.mark.parametrize(
    "command", [b":INP:ATT\n", b":INP:ATT x\n", b":INP:ATT? LOW\n", b":OUTP maybe\n", b":INP:ATT 1,2\n"]
)
def test_bad_commands_go_into_the_queue(command) -> None:
    unit = EmulatedAgilent8156A()
    assert unit.receive(command) == b""
    assert unit.status_byte() == 4
    assert unit.receive(b"SYST:ERR?\n").startswith(b"-10")
    assert unit.receive(b"SYST:ERR?\n") == b'+0,"No error"\n'

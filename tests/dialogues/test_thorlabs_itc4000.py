"""The ITC4000's dialogues as its manual and the vendor's example have them, byte for byte."""

from __future__ import annotations

import pytest
from dialogue import expect_dialogue

from qkdhw.drivers.thorlabs_itc4000 import ThorlabsItc4000
from qkdhw.errors import CommandRefusedError, UnitError, UnitStateError, WireFormatError
from qkdhw.transport import open_transport
from qkdhw_emulators.units.thorlabs_itc4000 import EmulatedThorlabsItc4000

OPENING = (b"*CLS\nUNIT:TEMP C\n*IDN?\n", b"THORLABS,ITC4020,E12345678,1.4.0/2.0.3/1.6.0\n")
NO_ERROR = (b"SYST:ERR?\n", b'+0,"No error"\n')


def opened(url):
    return ThorlabsItc4000(open_transport(url), timeout_s=1.0)


def test_light() -> None:
    turns = [
        OPENING,
        (b"SOUR:CURR 0.065000\n", b""),
        NO_ERROR,
        (b"SOUR:CURR?\n", b"6.500000000E-02\n"),
        (b"STAT:MEAS:COND?\n", b"0\n"),
        (b"OUTP 1\n", b""),
        NO_ERROR,
        (b"OUTP?\n", b"1\n"),
        (b"MEAS:POW2?\n", b"3.75E-03\n"),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        assert unit._info.serial_number == "E12345678"
        assert unit._info.firmware == "1.4.0/2.0.3/1.6.0"
        unit.laser_current_a = 0.065
        unit.enable_output()
        assert unit.read_power_w() == 3.75e-3


@pytest.mark.parametrize(
    ("bits", "why"),
    [
        (b"1\n", "key_locked"),
        (b"4\n", "interlock_open"),
        (b"16\n", "output_inhibited"),
        (b"1280\n", "temperature_sensor"),
    ],
)
def test_light_is_not_asked_for_while_something_forbids_it(bits, why) -> None:
    with expect_dialogue("tcp", [OPENING, (b"STAT:MEAS:COND?\n", bits)]) as url, opened(url) as unit:
        with pytest.raises(UnitStateError, match=why) as caught:
            unit.enable_output()
        assert caught.value.remedy


def test_a_protection_that_acts_at_once_is_noticed() -> None:
    turns = [OPENING, (b"STAT:MEAS:COND?\n", b"0\n"), (b"OUTP 1\n", b""), NO_ERROR, (b"OUTP?\n", b"0\n")]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit, pytest.raises(UnitError, match="laser_on"):
        unit.enable_output()


def test_temperature_and_refusal() -> None:
    turns = [
        OPENING,
        (b"SOUR2:TEMP 20.500C\n", b""),
        NO_ERROR,
        (b"SOUR2:TEMP?\n", b"2.050000000E+01\n"),
        (b"OUTP2 1\n", b""),
        NO_ERROR,
        (b"OUTP2?\n", b"1\n"),
        (b"SOUR:CURR:LIM 20.000000\n", b""),
        (b"SYST:ERR?\n", b'-222,"Data out of range"\n'),
        NO_ERROR,
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.tec_temperature_c = 20.5
        unit.tec_on = True
        with pytest.raises(CommandRefusedError, match="-222"):
            unit.laser_current_limit_a = 20


@pytest.mark.parametrize("answer", [b"9.91E+37 A\n", b"--\n", b"nan\n", b"1,0\n"])
def test_what_is_no_number_is_never_a_reading(answer) -> None:
    with (
        expect_dialogue("tcp", [OPENING, (b"MEAS:CURR?\n", answer)]) as url,
        opened(url) as unit,
        unit._exchange(),
        pytest.raises(WireFormatError),
    ):
        unit._read_value(unit._settings["measured_laser_current_a"], None)


@pytest.mark.parametrize(
    ("commands", "answer"),
    [
        (b"*IDN?\n", b"THORLABS,ITC4001,M00123456,1.4.0/2.0.3/1.6.0\n"),
        (b"source:current:level:amplitude 0.065\nsource:current:level:amplitude?\n", b"6.500000000E-02\n"),
        (b"SOUR:CURR 65MA;CURR?\n", b"6.500000000E-02\n"),
        (b"SOUR:CURR:LIM 0.5;:SOUR:CURR? MAX;:SOUR:CURR? MINimum\n", b"5.000000000E-01;0.000000000E+00\n"),
        (b"SOUR:TEMP 25C;:SOUR2:TEMP?\n", b"2.500000000E+01\n"),
        (b"UNIT:TEMP K;:SOUR2:TEMP 300;:SOUR2:TEMP?\n", b"3.000000000E+02\n"),
        (b"OUTP ON;:OUTP?;:OUTP1:STAT?\n", b"1;1\n"),
        (b"OUTP2 1;:OUTP2?\n", b"1\n"),
        (b"OUTP1:PROT:INTL:TRIP?;:OUTP1:PROT:KEYL:TRIP?\n", b"0;0\n"),
        (b"STAT:MEAS:COND?\n", b"0\n"),
        (b"SOUR:CURR 0.3;:SYST:ERR?\n", b'-222,"Data out of range"\n'),
    ],
)
def test_emulated(commands, answer) -> None:
    assert EmulatedThorlabsItc4000().receive(commands) == answer

"""The attenuators' dialogues as their manuals have them, byte for byte."""

from __future__ import annotations

import pytest
from dialogue import expect_dialogue

from qkdhw.drivers.agilent_attenuator import Agilent816x, Agilent8156A
from qkdhw.errors import CommandRefusedError, ConfigurationError, UnitError, WireFormatError
from qkdhw.transport import open_transport
from qkdhw_emulators.units.agilent_attenuator import EmulatedAgilent816x, EmulatedAgilent8156A

NO_ERROR = (b"SYST:ERR?\n", b'+0,"No error"\n')
IDENTITY = (b"*CLS\n*IDN?\n", b"HEWLETT-PACKARD,HP8156A,0,1.02\n")
MAINFRAME = (b"*CLS\n*IDN?\n", b"Agilent Technologies,8163A,DE39900000,V3.50(50315)\n")


def test_attenuation_offset_and_range() -> None:
    turns = [
        IDENTITY,
        (b":INP:OFFS 10.000\n", b""),
        NO_ERROR,
        (b":INP:OFFS?\n", b"10.000\n"),
        (b":INP:ATT 32.150\n", b""),
        NO_ERROR,
        (b":INP:ATT?\n", b"32.150\n"),
        (b":INP:ATT? MIN\n", b"10.000\n"),
        (b":INP:ATT? MAX\n", b"70.000\n"),
        (b":INP:WAV 1313.000E-9\n", b""),
        NO_ERROR,
        (b":INP:WAV?\n", b"1.3130000E-06\n"),
        (b":OUTP:STAT 1\n", b""),
        NO_ERROR,
        (b":OUTP:STAT?\n", b"1\n"),
    ]
    with expect_dialogue("tcp", turns) as url, Agilent8156A(open_transport(url), timeout_s=1.0) as unit:
        assert unit.configure({"offset_db": 10, "attenuation_db": 32.15}) == {
            "offset_db": 10.0,
            "attenuation_db": 32.15,
        }
        assert (unit.attenuation_min_db, unit.attenuation_max_db) == (10.0, 70.0)
        unit.wavelength_nm = 1313
        unit.shutter_open = True


def test_a_refusal_empties_the_queue_and_says_what_may_be_set() -> None:
    turns = [
        IDENTITY,
        (b":INP:ATT 70.000\n", b""),
        (b"SYST:ERR?\n", b'-222,"Data out of range"\n'),
        (b"SYST:ERR?\n", b'-222,"Data out of range"\n'),
        NO_ERROR,
        (b":INP:ATT? MIN\n", b"0.000\n"),
        (b":INP:ATT? MAX\n", b"60.000\n"),
    ]
    with expect_dialogue("tcp", turns) as url, Agilent8156A(open_transport(url), timeout_s=1.0) as unit:
        with pytest.raises(CommandRefusedError, match="refused 70 dB") as caught:
            unit.set_attenuation_db(70)
        assert caught.value.code == "-222"
        assert "0 to 60 dB" in caught.value.remedy


@pytest.mark.parametrize("answer", [b"32,15\n", b"ON\n", b"32.15dB\n", b"nan\n", b"\n", b"1e5000\n"])
def test_what_is_no_number_is_never_a_value(answer) -> None:
    turns = [IDENTITY, (b":INP:ATT?\n", answer)]
    with (
        expect_dialogue("tcp", turns) as url,
        Agilent8156A(open_transport(url), timeout_s=1.0) as unit,
        unit._exchange(),
        pytest.raises(WireFormatError),
    ):
        unit._read_value(unit._settings["attenuation_db"], None)


def test_modules_are_found_by_slot() -> None:
    turns = [
        MAINFRAME,
        (b":SLOT1:EMPT?\n", b"0\n"),
        (b":SLOT1:IDN?\n", b"HEWLETT-PACKARD, 81533B,3411G06054,07-Aug-98\n"),
        (b":SLOT2:EMPT?\n", b"0\n"),
        (b":SLOT2:IDN?\n", b"Agilent Technologies,81571A,DE43600101,09-Nov-04\n"),
        (b":INP2:CHAN1:ATT 14.000\n", b""),
        NO_ERROR,
        (b":INP2:CHAN1:ATT?\n", b"14\n"),
        (b":OUTP2:CHAN1:STAT?\n", b"0\n"),
    ]
    with expect_dialogue("tcp", turns) as url, Agilent816x(open_transport(url), timeout_s=1.0) as unit:
        assert unit.modules == {2: "81571A"}
        assert unit.set_attenuation_db(14) == 14.0
        assert dict(unit.shutter_open) == {2: False}
        with pytest.raises(ConfigurationError, match="no channel 1"):
            unit.configure({"attenuation_db": {1: 14}})


def test_a_mainframe_without_attenuators() -> None:
    turns = [MAINFRAME, (b":SLOT1:EMPT?\n", b"1\n"), (b":SLOT2:EMPT?\n", b"1\n")]
    no_attenuator = pytest.raises(UnitError, match="no attenuator")
    with expect_dialogue("tcp", turns) as url, open_transport(url) as link, no_attenuator:
        Agilent816x(link, timeout_s=1.0)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b":INP:ATT 32.15;ATT?\n", b"32.150\n"),
        (b"INP:ATT 32.15DB\n:INPUT:ATTENUATION?\n", b"32.150\n"),
        (b":INP:ATT MAX;ATT?\n", b"60.000\n"),
        (b":INP:OFFS 10;ATT? MIN;ATT? MAX;ATT? DEF\n", b"10.000;70.000;10.000\n"),
        (b":INP:WAV 1500nm;WAV?\n", b"1.5000000E-06\n"),
        (b":INP:WAV 1.5um;WAV?\n", b"1.5000000E-06\n"),
        (b":INP:WAV 1.5e-6m;WAV?\n", b"1.5000000E-06\n"),
        (b":OUTP ON;:OUTP:STAT?\n", b"1\n"),
        (b"*IDN?\n", b"HEWLETT-PACKARD,HP8156A,3328G00123,1.02\n"),
        (b":INP:ATT 61;:SYST:ERR?\n", b'-222,"Data out of range"\n'),
        (b":INP:LEVEL 1;:SYST:ERR?\n", b'-113,"Undefined header"\n'),
    ],
)
def test_emulated_8156a(command, answer) -> None:
    assert EmulatedAgilent8156A().receive(command) == answer


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"slot1:empt?\n", b"0\n"),
        (b"slot1:idn?\n", b"Agilent Technologies,81570A,DE43600101,09-Nov-04\n"),
        (b"SLOT3:EMPT?\n", b"1\n"),
        (b"INP1:ATT 14dB\nINP1:ATT?\n", b"+1.40000000E+01\n"),
        (b":INP2:CHAN1:ATT 14;ATT?;:INP1:CHAN1:ATT?\n", b"+1.40000000E+01;+0.00000000E+00\n"),
        (b"INP:ATT 3;:INP1:CHAN1:ATT?\n", b"+3.00000000E+00\n"),  # without a number it is slot 1
        (b"INP1:OFFS 2dB;OFFS?\n", b"+2.00000000E+00\n"),
        (b":OUTP2:STAT 1;:OUTP1?;:OUTP2?\n", b"0;1\n"),
        (b":INP3:ATT 3;:SYST:ERR?\n", b'-114,"Header suffix out of range"\n'),
        (b":INP1:CHAN2:ATT 3;:SYST:ERR?\n", b'-114,"Header suffix out of range"\n'),
    ],
)
def test_emulated_816x(command, answer) -> None:
    assert EmulatedAgilent816x().receive(command) == answer

"""The DG645's dialogues as its manual has them, byte for byte."""

from __future__ import annotations

import pytest
from dialogue import expect_dialogue

from qkdhw.drivers.srs_dg645 import SrsDg645
from qkdhw.errors import CommandRefusedError, ConfigurationError, UnitStateError, WireFormatError
from qkdhw.transport import open_transport
from qkdhw_emulators.units.srs_dg645 import EmulatedSrsDg645

OPENING = (b"*CLS\n*IDN?\n", b"Stanford Research Systems,DG645,s/n001776,ver1.14.10E\r\n")
NO_ERROR = (b"LERR?\n", b"0\r\n")


def opened(url):
    return SrsDg645(open_transport(url), timeout_s=1.0)


def test_an_edge_in_one_command() -> None:
    turns = [
        OPENING,
        (b"DLAY 3,2,0.000001200000\n", b""),
        NO_ERROR,
        (b"DLAY?3\n", b"2,+0.000001200000\r\n"),
        (b"DLAY?2\n", b"0,+0.000010000000\r\n"),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        assert unit.set_delay_s("B", 1.2e-6, reference="A") == 1.2e-6
        assert unit.read_delay_s("A") == ("T0", 10e-6)


def test_levels_and_triggers() -> None:
    turns = [
        OPENING,
        (b"LAMP 1,3.50\n", b""),
        NO_ERROR,
        (b"LAMP?1\n", b"+3.50\r\n"),
        (b"LPOL 2,0\n", b""),
        NO_ERROR,
        (b"LPOL?2\n", b"0\r\n"),
        (b"TSRC 1\n", b""),
        NO_ERROR,
        (b"TSRC?\n", b"1\r\n"),
        (b"BURC 20\n", b""),
        NO_ERROR,
        (b"BURC?\n", b"20\r\n"),
        (b"TSRC?\n", b"5\r\n"),
        (b"*TRG\n", b""),
        NO_ERROR,
        (b"TSRC?\n", b"0\r\n"),
        (b"INSR?\n", b"67\r\n"),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.amplitude_v[1] = 3.5
        unit.positive[2] = False
        unit.trigger_source = "external rising"
        unit.burst_count = 20
        unit.trigger()
        with pytest.raises(UnitStateError, match="single"):
            unit.trigger()
        status = unit.read_status()
    assert status.alarms == ("trigger_while_busy", "pll_unlocked")
    assert status.state == "running"


def test_a_refusal_says_its_code_and_empties_the_queue() -> None:
    turns = [
        OPENING,
        (b"DLAY 2,3,0.000000000000\n", b""),
        (b"LERR?\n", b"13\r\n"),
        (b"LERR?\n", b"12\r\n"),
        NO_ERROR,
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        with pytest.raises(CommandRefusedError, match="illegal link") as caught:
            unit.set_delay_s("A", 0.0, reference="B")
        assert caught.value.code == "13"
        for edge, delay_s, reference in (("T0", 0.0, "T0"), ("A", 3000.0, "T0"), ("A", -1.0, "T0"), ("A", 0.0, "Z")):
            with pytest.raises(ConfigurationError):
                unit.set_delay_s(edge, delay_s, reference=reference)


@pytest.mark.parametrize("answer", [b"A,1\r\n", b"10,1e-6\r\n", b"1e-6\r\n", b"2,\r\n", b"2,1,1\r\n", b"\r\n"])
def test_what_is_no_delay_is_never_one(answer) -> None:
    with (
        expect_dialogue("tcp", [OPENING, (b"DLAY?2\n", answer)]) as url,
        opened(url) as unit,
        unit._exchange(),
        pytest.raises(WireFormatError),
    ):
        unit._ask_delay(2)


@pytest.mark.parametrize(
    ("commands", "answer"),
    [
        (b"DLAY 2,0,10e-6\nDLAY?2\n", b"0,+0.000010000000\r\n"),
        (b"DLAY 3,2,1.2e-6;DLAY?3\r\n", b"2,+0.000001200000\r\n"),
        (b"dlay 2,0,7e-12;dlay? 2\n", b"0,+0.000000000005\r\n"),  # steps of 5 ps
        (b"LAMP 1,3.504\nLAMP?1\n", b"+3.50\r\n"),
        (b"LOFF 2,-1;LOFF?2;LPOL?2\n", b"-1.00;1\r\n"),
        (b"TRAT 5e6;TRAT?\n", b"+5000000.000000\r\n"),
        (b"TSRC?;BURM?;ADVT?\n", b"5;0;0\r\n"),
        (b"*IDN?\r", b"Stanford Research Systems,DG645,s/n001776,ver1.14.10E\r\n"),
        (b"DLAY 2,0,2001\nLERR?\nLERR?\n", b"12\r\n0\r\n"),
        (b"DLAY 2,3,0;LERR?\n", b"13\r\n"),
        (b"DLAY 2,2,0;LERR?\n", b"13\r\n"),
        (b"DLAY 2,0;LERR?\n", b"116\r\n"),
        (b"TSRC 7;LERR?\n", b"10\r\n"),
        (b"TSRC 1,2;LERR?\n", b"115\r\n"),
        (b"TSRC x;LERR?\n", b"120\r\n"),
        (b"LAMP 1,high;LERR?\n", b"118\r\n"),
        (b"TSRC 0;*TRG;LERR?\n", b"11\r\n"),
        (b"ABCD;LERR?\n", b"111\r\n"),
        (b"*TRG?;LERR?\n", b"112\r\n"),
        (b"LERR;LERR?\n", b"113\r\n"),
        (b"12;LERR?\n", b"110\r\n"),
        (b"*TRG;INSR?;INSR?\n", b"5;0\r\n"),
        (b"*CLS;LERR?\n", b"0\r\n"),
    ],
)
def test_emulated(commands, answer) -> None:
    assert EmulatedSrsDg645().receive(commands) == answer

"""OZ Optics dialogues, byte for byte as QuTech QMI's and pyLabLib's drivers and tests quote them."""

import pytest
from dialogue import expect_dialogue

from qkdhw.drivers.oz_optics import OzDd100, OzEpc400
from qkdhw.errors import CommandRefusedError, UnitError, UnitStateError, WireFormatError
from qkdhw.transport import open_transport
from qkdhw_emulators.units.oz_optics import EmulatedOzDd100, EmulatedOzEpc400

MODE_DC = (b"M?\r\n", b"Work Mode: DC\r\nDone\r\n")
MODE_AC = (b"M?\r\n", b"Work Mode: AC(Sine)\r\nDone\r\n")
EPC_OPENING = [MODE_DC, MODE_DC]
CD = (b"CD\r", b"IL:1.20\r\nMAX ATTEN:60.00\r\nDone\r\n\r\n")
DD_OPENING = [CD, CD]


def epc(url):
    return OzEpc400(open_transport(url), timeout_s=1.0)


def dd100(url):
    return OzDd100(open_transport(url), timeout_s=1.0)


def test_epc_voltages():
    told = (b"V?\r\n", b"Voltage(mV): CH1 +2200 CH2 +5000 CH3 -1000 CH4 -4000\r\nDone\r\n")
    set_back = (b"V?\r\n", b"Voltage(mV): CH1 +2200 CH2 +5000 CH3 +2500 CH4 -4000\r\nDone\r\n")
    turns = [
        *EPC_OPENING,
        *[told] * 4,
        MODE_DC,
        (b"V3,2500\r\n", b"Set CH3 DC Voltage at: 2500mV\r\nDone\r\n"),
        set_back,
    ]
    with expect_dialogue("serial", turns) as url, epc(url) as unit:
        assert dict(unit.voltage_mv) == {1: 2200.0, 2: 5000.0, 3: -1000.0, 4: -4000.0}
        assert unit.set_retarder(3, 2500.0) == 2500.0


def test_epc_frequencies_waveform_and_mode():
    turns = [
        *EPC_OPENING,
        *[(b"F?\r\n", b"Frequency(Hz): CH1 007  CH2 017  CH3 037  CH4 071\r\nDone\r\n")] * 4,
        (b"F2,47\r\n", b"Set CH2 AC Frequency at: 47Hz\r\nDone\r\n"),
        (b"F?\r\n", b"Frequency(Hz): CH1 007  CH2 047  CH3 037  CH4 071\r\nDone\r\n"),
        (b"WF2\r\n", b"Set AC Waveform at: Triangle\r\nDone\r\n"),
        (b"WF?\r\n", b"AC Waveform: Triangle\r\nDone\r\n"),
        (b"MAC\r\n", b"Set To AC Mode\r\nDone\r\n"),
        (b"M?\r\n", b"Work Mode: AC(Triangle)\r\nDone\r\n"),
        (b"SAVE\r\n", b"Write Setting to Flash memory\r\nDone\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, epc(url) as unit:
        assert list(unit.frequency_hz.values()) == [7.0, 17.0, 37.0, 71.0]
        unit.frequency_hz[2] = 47
        unit.waveform = "triangle"
        unit.operating_mode = "ac"
        unit.save()


def test_epc_kinds_are_toggled_only_if_they_differ():
    kinds = b"Hz<->Volt at AC Mode is enabled: CH1-V,CH2-%c,CH3-F,CH4-F\r\nDone\r\n"
    turns = [
        *EPC_OPENING,
        (b"ENVF1\r\n", b"Enable DC Voltage Output at AC Mode\r\nDone\r\n"),
        (b"VF?\r\n", kinds % b"F"),
        (b"VF?\r\n", kinds % b"F"),
        (b"VF2\r\n", b"Set CH2 output to: Volt (if possible)\r\nDone\r\n"),
        (b"VF?\r\n", kinds % b"V"),
        (b"VF?\r\n", kinds % b"V"),
        (b"VF?\r\n", kinds % b"V"),
    ]
    with expect_dialogue("serial", turns) as url, epc(url) as unit:
        unit.dc_in_ac_enabled = True
        unit.scrambling[2] = False
        unit.scrambling[2] = False


def test_epc_echo_refusal_and_scrambling():
    turns = [
        (b"M?\r\n", b"M?\r\nWork Mode: AC(Sine)\r\nDone\r\n"),
        (b"M?\r\n", b"M?\r\nWork Mode: AC(Sine)\r\nDone\r\n"),
        (b"M?\r\n", b"M?\r\nWork Mode: AC(Sine)\r\nDone\r\n"),
        (b"V1,5\r\n", b"V1,5\r\nError!\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, epc(url) as unit:
        with pytest.raises(UnitStateError, match="scrambles"):
            unit.set_retarder(1, 5)
        with pytest.raises(CommandRefusedError) as caught:
            unit.configure({"voltage_mv": {1: 5}})
    assert caught.value.command == "V1,5"


@pytest.mark.parametrize(
    "answer",
    [
        b"Voltage(mV): CH1 +2200 CH2 +5000 CH3 -1000\r\nDone\r\n",
        b"Voltage(mV): CH2 +2200 CH1 +5000 CH3 -1000 CH4 -4000\r\nDone\r\n",
        b"Voltage(mV): CH1 +2200 CH2 +5000 CH3 -1000 CH4 -4000 CH5 +1\r\nDone\r\n",
        b"Done\r\n",
        b"a\r\nb\r\nDone\r\n",
        b"\xff\xfe\r\nDone\r\n",
        b"x\r\n" * 40,
    ],
)
def test_epc_voltages_that_are_none(answer):
    turns = [*EPC_OPENING, (b"V?\r\n", answer), MODE_DC, MODE_DC, (b"V?\r\n", answer)]
    with expect_dialogue("serial", turns) as url, epc(url) as unit, pytest.raises(WireFormatError):
        unit.read_retarder(1)


def test_dd100_attenuation():
    turns = [
        *DD_OPENING,
        (b"A12.34\r", b"Pos:3484\r\nDone\r\n\r\n"),
        (b"D\r", b"DPos:3484\r\nATTEN:12.35\r\nDone\r\n\r\n"),
        (b"D\r", b"DPos:3484\r\nATTEN:12.35\r\nDone\r\n\r\n"),
        (b"D\r", b"DPos:3484\r\nATTEN:12.35\r\nDone\r\n\r\n"),
        CD,
        CD,
        (b"H\r", b"Pos:0\r\nDone\r\n\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, dd100(url) as unit:
        assert unit.set_attenuation_db(12.34) == 12.35
        assert unit.read_attenuation_db() == 12.35
        assert unit.position_steps == 3484
        assert (unit.insertion_loss_db, unit.maximum_attenuation_db) == (1.2, 60.0)
        unit.home()


def test_dd100_without_the_empty_line():
    bare = (b"CD\r", b"IL:0.90\r\nMAX ATTEN:45\r\nDone\r\n")
    turns = [bare, bare, (b"D\r", b"DPos:1\r\nATTEN:0.90\r\nDone\r\n")]
    with expect_dialogue("serial", turns) as url, dd100(url) as unit:
        assert unit.read_attenuation_db() == 0.9


def test_dd100_refusal_and_an_unknown_position():
    turns = [
        *DD_OPENING,
        (b"A70.00\r", b"Error!\r\n\r\n"),
        CD,
        CD,
        (b"D\r", b"DPos:0\r\nATTEN:Unknown\r\nDone\r\n\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, dd100(url) as unit:
        with pytest.raises(CommandRefusedError, match=r"A70\.00"):
            unit.set_attenuation_db(70)
        with pytest.raises(UnitStateError) as caught:
            unit.read_attenuation_db()
    assert "home" in caught.value.remedy


@pytest.mark.parametrize("answer", [b"Done\r\n\r\n", b"Pos:x\r\nDone\r\n\r\n", b"Pos:1\r\nIDLE\r\nDone\r\n\r\n"])
def test_dd100_moves_that_say_no_position(answer):
    turns = [*DD_OPENING, (b"A12.34\r", answer)]
    with expect_dialogue("serial", turns) as url, dd100(url) as unit, pytest.raises(WireFormatError):
        unit.set_attenuation_db(12.34)


def test_another_unit_is_named():
    turns = [(b"M?\r\n", b"Work Mode: DC\r\nDone\r\n"), (b"M?\r\n", b"TF-100\r\nDone\r\n")]
    with (
        expect_dialogue("serial", turns) as url,
        open_transport(url) as link,
        pytest.raises(UnitError, match="TF-100"),
    ):
        OzEpc400(link, timeout_s=1.0)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"V3,2500", b"Set CH3 DC Voltage at: 2500mV\r\nDone\r\n"),
        (b"VH4", b"Set CH4 DC Voltage at: 5000mV\r\nDone\r\n"),
        (b"VL4", b"Set CH4 DC Voltage at: -5000mV\r\nDone\r\n"),
        (b"VZ4", b"Set CH4 DC Voltage at: 0mV\r\nDone\r\n"),
        (b"F2,47", b"Set CH2 AC Frequency at: 47Hz\r\nDone\r\n"),
        (b"F?", b"Frequency(Hz): CH1 007  CH2 017  CH3 037  CH4 071\r\nDone\r\n"),
        (b"M?", b"Work Mode: DC\r\nDone\r\n"),
        (b"MAC", b"Set To AC Mode\r\nDone\r\n"),
        (b"WF?", b"AC Waveform: Sine\r\nDone\r\n"),
        (b"WF2", b"Set AC Waveform at: Triangle\r\nDone\r\n"),
        (b"ENVF1", b"Enable DC Voltage Output at AC Mode\r\nDone\r\n"),
        (b"ENVF0", b"Disable DC Voltage Output at AC Mode\r\nDone\r\n"),
        (b"VF2", b"Set CH2 output to: Volt (if possible)\r\nDone\r\n"),
        (b"VF?", b"Hz<->Volt at AC Mode is disabled: CH1-F,CH2-F,CH3-F,CH4-F\r\nDone\r\n"),
        (b"SAVE", b"Write Setting to Flash memory\r\nDone\r\n"),
        (b"V5,1", b"Error!\r\n"),
        (b"V1,5001", b"Error!\r\n"),
        (b"F1,101", b"Error!\r\n"),
        (b"HELLO", b"Error!\r\n"),
    ],
)
def test_the_emulated_epc_says_the_same(command, answer):
    assert EmulatedOzEpc400().receive(command + b"\r\n") == answer


def test_the_emulated_epc_lists_voltages_in_the_same_form():
    unit = EmulatedOzEpc400()
    unit.receive(b"V1,2200\r\nV2,5000\r\nV3,-1000\r\nV4,-4000\r\nMAC\r\n")
    assert unit.receive(b"V?\r\n") == b"Voltage(mV): CH1 +2200 CH2 +5000 CH3 -1000 CH4 -4000\r\nDone\r\n"
    assert unit.receive(b"M?\r\n") == b"Work Mode: AC(Sine)\r\nDone\r\n"


def test_the_emulated_dd100_says_the_same():
    unit = EmulatedOzDd100()
    assert unit.receive(b"CD\r") == CD[1]
    assert unit.receive(b"D\r") == b"DPos:0\r\nATTEN:1.20\r\nDone\r\n\r\n"
    assert unit.receive(b"A70.00\r") == b"Error!\r\n\r\n"

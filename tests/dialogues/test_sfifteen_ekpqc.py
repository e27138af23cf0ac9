"""EKPQC dialogues, byte for byte as the kit's firmware (ArduinoQuantum.ino) reads and writes them."""

import pytest
from dialogue import expect_dialogue

from qkdhw.drivers.sfifteen_ekpqc import EkpqcReceiver, EkpqcSender, decide_bits
from qkdhw.errors import CommandRefusedError, ConfigurationError, UnitError, UnitStateError, WireFormatError
from qkdhw.transport import open_transport
from qkdhw_emulators.units.sfifteen_ekpqc import EmulatedEkpqcReceiver, EmulatedEkpqcSender
from qkdhw_emulators.world import VirtualClock, World

WHO = (b"*IDN? ", b"Quantum\r\n")
DARK = (b"LASOFF ", b"LASER OFF!\r\n")
SENDER = [WHO, DARK, WHO]
RECEIVER = [WHO, WHO]
DIGITS = b"0123012301230123"
PATTERN = tuple(int(chr(digit)) for digit in DIGITS)
BASES = b"0101100101100110"
READINGS = b"401 3 202 398 5 201 400 2 7 199 404 403 1 0 204 400 \n"


def sender(url):
    return EkpqcSender(open_transport(url), timeout_s=1.0)


def receiver(url):
    return EkpqcReceiver(open_transport(url), timeout_s=1.0)


def test_sending_a_pattern():
    turns = [
        *SENDER,
        (b"POLSEQ " + DIGITS, b"OK\r\n"),  # no space after 16 digits: it would be one more, unknown, command
        (b"SEQ? ", DIGITS + b"\n"),
        (b"SEQ? ", DIGITS + b"\n"),
        (b"TXSEQ ", b"OK\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, sender(url) as unit:
        unit.load_pattern(PATTERN)
        unit.run_pattern()


def test_a_drawn_pattern_and_the_laser():
    turns = [
        *SENDER,
        (b"RNDSEQ ", b"OK\r\n"),
        (b"SEQ? ", DIGITS + b"\n"),
        (b"LASON ", b"LASER ON!\r\n"),
        DARK,
    ]
    with expect_dialogue("serial", turns) as url, sender(url) as unit:
        assert unit.randomise_pattern() == PATTERN
        assert not unit.read_output_enabled()
        unit.enable_output()
        assert unit.read_output_enabled()
        unit.disable_output()
        assert not unit.read_output_enabled()


def test_settings():
    turns = [
        *SENDER,
        (b"SETHOF -12 ", b"OK\r\n"),
        (b"HOF? ", b"-12\r\n"),
        (b"SETPOL 3 ", b"OK\r\n"),
        (b"POL? ", b"3.00\r\n"),
        (b"POL? ", b"4.67\r\n"),
        (b"SETANG 300 ", b"OK\r\n"),
        (b"ANG? ", b"297.81\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, sender(url) as unit:
        assert unit.configure({"h_offset_deg": -12, "polarization": 3}) == {"h_offset_deg": -12, "polarization": 3}
        assert unit.polarization == 1
        assert unit.move_to(300) == 297.81


@pytest.mark.parametrize(
    "chatter", [b"", b"Listen for sync pulse.\r\nsensorVal: 403\r\ncatchTh: 200\r\n"], ids=["new", "early"]
)
def test_a_measurement(chatter):
    turns = [
        *RECEIVER,
        (b"RNDBAS ", b"OK\r\n"),
        (b"SEQ? ", BASES + b"\n"),
        (b"SEQ? ", BASES + b"\n"),
        (b"RXSEQ ", chatter + READINGS),
        (b"VOLT? ", b"17\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, receiver(url) as unit:
        assert "".join(map(str, unit.randomise_bases())).encode() == BASES
        unit.arm()
        readings = unit.read_measurement(timeout_s=1.0)
        assert unit.sensor_level == 17
    assert readings == tuple(map(int, READINGS.split()))
    assert decide_bits(readings, 202.5) == (0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0)


def test_catching_light_and_its_threshold():
    turns = [
        *RECEIVER,
        (b"SETTH 250 ", b"OK\r\n"),
        (b"TH? ", b"250\r\n"),
        (b"CATCH ", b"sensorVal: 403\r\ncatchTh: 250\r\n12345 ms is when the light triggers.\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, receiver(url) as unit:
        unit.sensor_threshold = 250
        assert unit.wait_for_light(timeout_s=1.0) == 12345


def test_while_armed_nothing_else_is_asked():
    turns = [*RECEIVER, (b"RNDBAS ", b"OK\r\n"), (b"SEQ? ", BASES + b"\n"), (b"SEQ? ", BASES + b"\n"), (b"RXSEQ ", b"")]
    with expect_dialogue("serial", turns) as url, receiver(url) as unit:
        unit.randomise_bases()
        unit.arm()
        assert unit.read_status().state == "armed"
        for call in (unit.identify, unit.arm, lambda: unit.sensor_level, unit.randomise_bases):
            with pytest.raises(UnitStateError):
                call()


def test_a_board_that_lost_its_sequence_is_not_run():
    turns = [
        *SENDER,
        (b"POLSEQ " + DIGITS, b"OK\r\n"),
        (b"SEQ? ", DIGITS + b"\n"),
        (b"SEQ? ", b"0" * 16 + b"\n"),
    ]
    with expect_dialogue("serial", turns) as url, sender(url) as unit:
        unit.load_pattern(PATTERN)
        with pytest.raises(UnitStateError, match="lost"):
            unit.run_pattern()
    with expect_dialogue("serial", SENDER) as url, sender(url) as unit, pytest.raises(UnitStateError):
        unit.run_pattern()


def test_another_sequence_than_told_is_found_out_and_not_shown():
    turns = [*SENDER, (b"POLSEQ " + DIGITS, b"OK\r\n"), (b"SEQ? ", b"3" * 16 + b"\n")]
    with expect_dialogue("serial", turns) as url, sender(url) as unit, pytest.raises(UnitError) as caught:
        unit.load_pattern(PATTERN)
    assert "3333" not in str(caught.value)
    assert "0123" not in str(caught.value)


@pytest.mark.parametrize("sequence", [PATTERN[:15], (*PATTERN, 0), (*PATTERN[:15], 4), (*PATTERN[:15], 1.0), ()])
def test_sequences_of_the_wrong_form_send_nothing(sequence):
    with expect_dialogue("serial", SENDER) as url, sender(url) as unit, pytest.raises(ConfigurationError):
        unit.load_pattern(sequence)
    with expect_dialogue("serial", RECEIVER) as url, receiver(url) as unit, pytest.raises(ConfigurationError):
        unit.load_bases((*sequence[:15], 2))


def test_angles_of_the_wrong_form_send_nothing():
    with expect_dialogue("serial", SENDER) as url, sender(url) as unit:
        for angle in (-1, 361, 20.5, True):
            with pytest.raises(ConfigurationError):
                unit.move_to(angle)


@pytest.mark.parametrize("answer", [b"Unknown command\r\n", b"Input error detected.\r\nOK\r\n"])
def test_refusals_show_no_symbols(answer):
    turns = [*SENDER, (b"POLSEQ " + DIGITS, answer)]
    with expect_dialogue("serial", turns) as url, sender(url) as unit, pytest.raises(CommandRefusedError) as caught:
        unit.load_pattern(PATTERN)
    assert caught.value.command == "POLSEQ"
    assert "0123" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [b"1 2 3\n", READINGS[:-2] + b"x\n", READINGS.replace(b"401", b"1024"), b"\xff\n", b"OK\r\n", b"catchTh: 1\n" * 9],
)
def test_readings_that_are_none(answer):
    turns = [
        *RECEIVER,
        (b"RNDBAS ", b"OK\r\n"),
        (b"SEQ? ", BASES + b"\n"),
        (b"SEQ? ", BASES + b"\n"),
        (b"RXSEQ ", answer),
    ]
    with expect_dialogue("serial", turns) as url, receiver(url) as unit:
        unit.randomise_bases()
        unit.arm()
        with pytest.raises(WireFormatError) as caught:
            unit.read_measurement(timeout_s=1.0)
    assert "202" not in str(caught.value)


def test_a_board_that_starts_is_asked_until_it_answers():
    turns = [(b"*IDN? ", b"\x00\xff"), (b"*IDN? ", b""), WHO, WHO, WHO]  # the first line has garbage before it
    with expect_dialogue("serial", turns) as url, receiver(url):
        pass


@pytest.mark.parametrize("name", [b"Classical", b"QuantumEve"])
def test_other_boards_of_the_kit_are_named(name):
    turns = [(b"*IDN? ", name + b"\r\n"), (b"*IDN? ", name + b"\r\n")]
    with (
        expect_dialogue("serial", turns) as url,
        open_transport(url) as link,
        pytest.raises(UnitError, match=name.decode()),
    ):
        EkpqcReceiver(link, timeout_s=1.0)


def booted(emulator=EmulatedEkpqcSender):
    unit = emulator(World(clock=VirtualClock(pace=None)))
    unit.world.clock.advance(2.0)
    return unit


def said(unit, data):
    """Send bytes and let the clock jump until nothing more is due."""
    out = unit.receive(data)
    while (wait_s := unit.wait_s()) is not None and wait_s < 100.0:
        unit.world.clock.advance(wait_s)
        out += unit.poll()
    return out


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"*IDN? ", b"Quantum\r\n"),
        (b"*idn? ", b"Quantum\r\n"),
        (b"*IDN?", b"Quantum\r\n"),  # ended by 0.1 s of silence
        (b"*IDN?\r\n", b"Unknown command\r\n"),
        (b" ", b"Unknown command\r\n"),
        (b"ABCDEFGHIJKLMNOPQRS ", b"Unknown command\r\nUnknown command\r\n"),  # a token has 15 bytes at most
        (b"HOF? ", b"0\r\n"),
        (b"SETHOF -12 HOF? ", b"OK\r\n-12\r\n"),
        (b"SETHOF  7 HOF? ", b"OK\r\nUnknown command\r\n0\r\n"),
        (b"TH? SETTH 321 TH? ", b"200\r\nOK\r\n321\r\n"),
        (b"POL? ", b"1.00\r\n"),
        (b"SETPOL 2 POL? ", b"OK\r\n2.00\r\n"),
        (b"SETPOL 7 POL? ", b"Input error detected.\r\nOK\r\n0.00\r\n"),
        (b"SETANG 30 POL? ", b"OK\r\n0.67\r\n"),
        (b"POLSEQ 0123012301230123SEQ? ", b"OK\r\n0123012301230123\n"),
        (b"POLSEQ 0123012301230123 SEQ? ", b"OK\r\nUnknown command\r\n0123012301230123\n"),
        (b"POLSEQ 12 SEQ? ", b"OK\r\n1200000000000000\n"),
        (b"POLSEQ 19x SEQ? ", b"Input error detected.\r\nInput error detected.\r\nOK\r\n1000000000000000\n"),
        (b"LASON LASOFF ", b"LASER ON!\r\nLASER OFF!\r\n"),
        (b"RUNSEQ ", b"OK\r\n"),
        (b"TXSEQ ", b"OK\r\n"),
    ],
)
def test_the_emulated_board_says_the_same(sent, answer):
    assert said(booted(), sent) == answer


def test_the_emulated_receiver_s_lines_have_the_same_form():
    unit = booted(EmulatedEkpqcReceiver)
    unit.world.set_condition("ambient_level", 300.0)  # the sync pulse is seen at once
    line = said(unit, b"RXSEQ ")
    assert line.endswith(b" \n")
    assert len(line.split()) == 16
    assert said(unit, b"CATCH ").endswith(b" ms is when the light triggers.\r\n")
    assert said(unit, b"RNDBAS ") == b"OK\r\n"
    assert set(said(unit, b"SEQ? ").strip()) == set(b"01")

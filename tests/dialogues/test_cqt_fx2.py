"""FX2 timestamp card dialogues, packet by packet, over stock pyusb.

Commands are those of usbtimetagio.h and their order that of readevents3.c (qcrypto); times were worked out by hand from
the layout that readevents3.c takes apart: in ticks of 125 ps, second word * 2^17 + bits 31..24 of the first * 2^9 +
fast counter (bits 13..9) * 2^4 + phase of the code (bits 8..0), and 2^9 more if the fast counter is below 17.
"""

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from qkdhw.drivers.cqt_fx2 import CqtFx2
from qkdhw.errors import (
    ConfigurationError,
    EventOverflowError,
    TransportClosedError,
    TransportTimeoutError,
    UnitError,
    WireFormatError,
)
from qkdhw.model import EventKind
from qkdhw.transport import open_transport
from qkdhw_emulators.servers.usb import UsbBus
from qkdhw_emulators.servers.usb_unit import Endpoint, UsbDescriptor, UsbGoneError
from qkdhw_emulators.units.cqt_fx2 import EmulatedCqtFx2, event_words

PIPES = (Endpoint(0x01), Endpoint(0x81), Endpoint(0x82))
DESCRIPTOR = UsbDescriptor(
    0x04B4, 0x1234, "Centre for Quantum Technologies", "Timestamp Card Rev 2 / 4k FIFO (3.3V)", "xx",
    alternate_settings=(PIPES,), device_class=(0xFF, 0xFF, 0xFF), bcd_device=0x0201,
)  # fmt: skip
DEVICE_DESCRIPTOR = bytes.fromhex("12 01 00 02 ff ff ff 40 b404 3412 0102 01 02 03 01")  # tp8.c

SHUT, OPEN, PORT_BITS = (b"\x02\x07", b""), (b"\x02\x08", b""), b"\x03\x10\x00"
NONCE = 0b1011_0001_1110_0010  # the lowest bit is asked first
CHALLENGE = [
    turn
    for bit in "0100011110001101"
    for turn in ([SHUT, (PORT_BITS, b"\x80")] if bit == "1" else [OPEN, (PORT_BITS, b"\x00")])
]
STOPPED = [SHUT, (b"\x02\x0c", b""), (b"\x02\x0b", b"")]
CALM, RUNNING_OVER = (b"\x03\x10\x08", b"\x00"), (b"\x03\x10\x08", b"\x01")
IN_STEP = [*STOPPED, *CHALLENGE, SHUT, (b"\x02\x13", b""), CALM]
INITIALISE = [
    (b"\x02\x0f", b""), (b"\x02\x01", b""), (b"\x02\x03", b""), (b"\x02\x04", b""),
    (b"\x04\x02\x0a\x00", b""), (b"\x04\x02\x02\x1e", b""), (b"\x04\x02\x0a\x20", b""), (b"\x04\x02\xd0\x37", b""),
    (b"\x03\x05\x01", b""), (b"\x02\x09", b""), SHUT,
]  # fmt: skip
OPENING = [*IN_STEP, *INITIALISE]
STOP = [CALM, SHUT, (b"\x02\x0c", b"")]

FIRST = bytes.fromhex("77290112 03000000")  # 3, 0x12, input 1, fast 20, code 375: phase 0
SECOND = bytes.fromhex("d8a102ff 03000000")  # 3, 0xff, inputs 2 and 4, fast 16, code 472: phase 9; carries into the 3
THIRD = bytes.fromhex("73630000 05000000")  # 5, 0, input 3, fast 17, code 371: phase 14
FIRST_TICKS, SECOND_TICKS, THIRD_TICKS = 402_752, 524_553, 655_646


def start(*packets):
    commands = [(b"\x02\x01", b""), (b"\x02\x13", b""), (b"\x02\x0b", b""), (b"\x03\x0d\x0a", b""), (b"\x02\x0e", b"")]
    return [*commands, (*OPEN, *packets)]


class ScriptedCard:
    """Takes exactly these packets in this order; each gives its answer to pipe 0x81, and the rest of it to 0x82.

    Without an answer the card drops off the bus, and comes back.
    """

    def __init__(self, turns, descriptor):
        self.descriptor = descriptor
        self.turns, self.wrong, self.answers, self.events = list(turns), [], bytearray(), []

    def bulk_out(self, endpoint, data):
        expected, answer, *events = self.turns.pop(0) if self.turns else (None, b"")
        if (endpoint, data) != (0x01, expected):
            self.wrong.append((endpoint, data, expected))
        if answer is None:
            raise UsbGoneError
        self.answers += answer
        self.events += events

    def bulk_in(self, endpoint, size):
        if endpoint == 0x82:
            return self.events.pop(0) if self.events else b""
        answer = bytes(self.answers[:size])
        del self.answers[:size]
        return answer


@contextmanager
def opened(turns, *, before=b"", descriptor=DESCRIPTOR):
    card, bus = ScriptedCard(turns, descriptor), UsbBus()
    card.answers += before
    bus.plug(card, threading.RLock())
    try:
        with bus.install(), open_transport("usb://04b4:1234") as link:
            link.draw_nonce = lambda: NONCE
            unit = CqtFx2(link, timeout_s=0.5)
            yield unit
            unit.close()
    finally:
        assert not card.wrong
        assert not card.turns


@pytest.fixture
def poll_overflow(monkeypatch):
    """Let the driver ask for the overflow never, or before each block."""
    monkeypatch.setattr("qkdhw.drivers.cqt_fx2.OVERFLOW_POLL_S", 3600.0)
    return lambda: monkeypatch.setattr("qkdhw.drivers.cqt_fx2.OVERFLOW_POLL_S", -1.0)


def test_opening_and_identity():
    with opened(OPENING) as unit:
        info = unit._info
    assert (info.vendor, info.model) == ("Centre for Quantum Technologies", "Timestamp Card Rev 2 / 4k FIFO (3.3V)")
    assert (info.serial_number, info.firmware) == ("xx", "2.01")


def test_answers_to_an_earlier_program_are_skipped():
    with opened([*OPENING, CALM], before=b"\x01\x80\x80") as unit:
        assert unit.read_status().alarms == ()


def test_an_answer_behind_those_that_are_right_and_events_of_an_earlier_stream_are_skipped(poll_overflow):
    last = max(i for i, (packet, *_) in enumerate(IN_STEP) if packet == PORT_BITS)
    packet, answer = IN_STEP[last]
    turns = [
        *IN_STEP[:last],
        (packet, answer + b"\x01", FIRST),
        *IN_STEP[last + 1 :],
        *INITIALISE,
        CALM,
        *start(SECOND),
    ]
    with opened([*turns, *STOP]) as unit:
        assert unit.read_status().alarms == ()
        unit.start()
        assert unit.read_block(100).time_ticks.tolist() == [SECOND_TICKS, SECOND_TICKS]


def test_another_fx2_is_named():
    other = UsbDescriptor(0x04B4, 0x1234, "Acme", "Logic Sniffer", "7", alternate_settings=(PIPES,))
    with pytest.raises(UnitError, match="'Logic Sniffer' of 'Acme'"), opened(IN_STEP, descriptor=other):
        pass


def test_a_card_that_says_nothing():
    silent = [(command, b"") for command, _ in [*STOPPED, *CHALLENGE[:2]]]
    with pytest.raises(TransportTimeoutError), opened(silent):
        pass


def test_a_card_that_never_stops_answering_is_named():
    last = max(i for i, (packet, *_) in enumerate(IN_STEP) if packet == b"\x03\x10\x00")
    packet, answer = IN_STEP[last]
    turns = [*IN_STEP[:last], (packet, answer + bytes(10_000_000))]
    with pytest.raises(WireFormatError, match="keeps sending"), opened(turns):
        pass


def test_port_bits_that_cannot_be():
    odd = [*STOPPED, OPEN, (PORT_BITS, b"\x20")]
    with pytest.raises(WireFormatError, match="0x20"), opened(odd):
        pass


@pytest.mark.parametrize(
    ("setting", "value", "packet"),
    [
        ("threshold_dac", 2950, "04 02 86 1b"), ("coincidence_dac", 4095, "04 02 ff 0f"),
        ("calibration_dac", 0, "04 02 00 20"), ("skew_dac", 2000, "04 02 d0 37"),
        ("reference_clock", "external", "03 05 00"), ("reference_clock", "internal", "03 05 01"),
        ("calibration_pulses", True, "02 0a"), ("calibration_pulses", False, "02 09"),
    ],
)  # fmt: skip
def test_settings(setting, value, packet):
    with opened([*OPENING, (bytes.fromhex(packet), b"")]) as unit:
        setattr(unit, setting, value)


def test_values_out_of_range_send_nothing():
    with opened(OPENING) as unit, pytest.raises(ConfigurationError, match="4095"):
        unit.configure({"skew_dac": 2000, "threshold_dac": 4096})


def test_events_cut_anywhere_have_exact_times(poll_overflow):
    data = FIRST + SECOND + THIRD
    with opened([*OPENING, *start(data[:12], data[12:]), *STOP]) as unit:
        unit.start()
        block = unit.read_block(100)
        unit.stop()
    assert block.time_ticks.tolist() == [FIRST_TICKS, SECOND_TICKS, SECOND_TICKS, THIRD_TICKS]
    assert block.channel.tolist() == [1, 2, 4, 3]
    assert not block.kind.any()
    assert block.tick_ps == 125
    assert FIRST_TICKS * block.tick_ps == 50_344_000


def test_odd_words_are_counted(poll_overflow):
    void, no_input = bytes(8), bytes.fromhex("77290012 03000000")
    unknown_code = bytes.fromhex("01290112 04000000")  # one like the first, 2^17 ticks later; code 1 counts as phase 0
    with opened([*OPENING, *start(void + no_input + unknown_code), CALM, *STOP]) as unit:
        unit.start()
        block = unit.read_block(100)
        status = unit.read_status()
        unit.stop()
    assert block.time_ticks.tolist() == [FIRST_TICKS + (1 << 17)]
    assert status.state == "running"
    assert status.counters == {"photons": 1, "voids": 1, "without_input": 1, "unknown_phase": 1}


def test_the_counter_wraps_after_49_bits(poll_overflow):
    last = bytes.fromhex("773f01ff ffffffff")  # fast 31: 2^49 - 16 ticks
    with opened([*OPENING, *start(last, FIRST), *STOP]) as unit:
        unit.start()
        block = unit.read_block(100)
        unit.stop()
    assert block.time_ticks.tolist() == [2**49 - 16, 2**49 + FIRST_TICKS]


def test_events_from_the_cards_memory_come_after_stop(poll_overflow):
    asked, shut, stopped = STOP
    with opened([*OPENING, *start(FIRST), asked, (*shut, SECOND), (*stopped, THIRD)]) as unit:
        unit.start()
        assert unit.read_block(100).time_ticks.tolist() == [FIRST_TICKS]
        unit.stop()
        assert unit.read_block(100, timeout_s=0.0).time_ticks.tolist() == [SECOND_TICKS, SECOND_TICKS, THIRD_TICKS]


def test_a_lost_byte_stops_the_card(poll_overflow):
    data = (FIRST + SECOND + THIRD)[:9] + (SECOND + THIRD)[2:]
    with opened([*OPENING, *start(data), *IN_STEP[:-1]]) as unit:
        unit.start()
        with pytest.raises(WireFormatError, match="byte was lost"):
            unit.read_block(100)


def test_an_overflow_is_asked_for_and_told_in_the_stream(poll_overflow):
    turns = [*OPENING, *start(FIRST), CALM, (*RUNNING_OVER, SECOND), (*CALM, THIRD), *STOP]
    with opened(turns) as unit:
        unit.start()
        poll_overflow()
        blocks = [unit.read_block(100) for _ in range(3)]
        with pytest.raises(EventOverflowError):
            unit.stop()
    photon, begin, end = EventKind.PHOTON, EventKind.GAP_BEGIN, EventKind.GAP_END
    assert [block.kind.tolist() for block in blocks] == [[photon], [begin, photon, photon], [end, photon]]
    assert [block.time_ticks.tolist()[0] for block in blocks] == [FIRST_TICKS, FIRST_TICKS, SECOND_TICKS]


def test_an_answer_that_is_no_overflow_flag():
    odd = (b"\x03\x10\x08", b"\x02")
    with opened([*OPENING, odd, *IN_STEP, CALM]) as unit:
        with pytest.raises(WireFormatError, match="answered 2"):
            unit.read_status()
        assert unit.read_status().alarms == ()


def test_a_card_that_lost_its_power_is_initialised_and_has_its_settings_again():
    threshold, gone = (b"\x04\x02\x34\x18", b""), (b"\x03\x10\x08", None)
    turns = [*OPENING, threshold, gone, *IN_STEP, threshold, *INITIALISE, threshold, CALM]
    with opened(turns) as unit:
        unit.threshold_dac = 0x834
        with pytest.raises(TransportClosedError):
            unit.read_status()
        assert unit.read_status().state == "idle"


@pytest.mark.parametrize("turns", [OPENING, [*OPENING, *start(), *STOP], [*OPENING, (b"\x03\x10\x01", b"\x80")]])
def test_the_emulator_answers_so(turns):
    card = EmulatedCqtFx2()
    card.receive(b"\x02\x0f")
    for command, answer, *_ in turns:
        assert card.receive(command) == answer


def test_the_emulator_has_these_descriptors():
    card = EmulatedCqtFx2()
    assert card.control_in(0x80, 6, 0x0100, 0, 255) == DEVICE_DESCRIPTOR
    texts = [card.control_in(0x80, 6, 0x0300 | index, 0x0409, 255) for index in (1, 2, 3)]
    wanted = (DESCRIPTOR.manufacturer, DESCRIPTOR.product, DESCRIPTOR.serial_number)
    assert texts == [bytes([2 + 2 * len(text), 3]) + text.encode("utf-16-le") for text in wanted]
    assert card.usb_descriptor.settings == ((), PIPES)


@pytest.mark.parametrize(
    ("ticks", "pattern", "data"),
    [(FIRST_TICKS, 0b0001, FIRST), (SECOND_TICKS, 0b1010, SECOND), (THIRD_TICKS, 0b0100, THIRD)],
)
def test_the_emulator_writes_events_so(ticks, pattern, data):
    assert event_words(np.array([ticks]), np.array([pattern])).tobytes() == data

"""GRX/1 dialogues, byte for byte: the specification's own example, and answers that cannot be true."""

import re
import zlib
from fractions import Fraction
from pathlib import Path

import pytest
from dialogue import expect_dialogue

from qkdhw.drivers.generic_rx import GenericRx
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    NonMonotonicTimeError,
    NotSupportedError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.model import EventKind
from qkdhw.transport import open_transport
from qkdhw_emulators.units.event_log import EventLog, Kind

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "generic-receiver-protocol.md"
OPENING = [(b"IDN?\n", b"OK Acme,RX-4,0042,1.2.0,GRX/1\n")]
COUNTS = b"events=0 buffered=0 lost=0 photons_1=0 photons_2=0 photons_3=0 photons_4=0"
IDLE = b"OK state=idle " + COUNTS + b" clock=locked alarms=0\n"
START = [(b"STAT?\n", IDLE), (b"ARM\n", b"OK\n"), (b"START\n", b"OK 77\n"), (b"CONF? tick_ps\n", b"OK 125/32\n")]
STOP = [(b"STOP\n", b"OK\n")]


def example():
    """Return the turns of the specification's example."""
    turns = []
    for line in re.findall(r"^    ([<>] .*)$", DOCUMENT.read_text().partition("### Example")[2], re.MULTILINE):
        sign, text = line[0], line[2:]
        if sign == ">":
            turns.append([text.encode() + b"\n", b""])
        elif re.fullmatch(r"[0-9a-f]{2}( [0-9a-f]{2})+", text):
            turns[-1][1] += bytes.fromhex(text)
        else:
            turns[-1][1] += text.encode() + b"\n"
    return [tuple(turn) for turn in turns]


def opened(url):
    return GenericRx(open_transport(url), timeout_s=1.0)


def record(ticks, value, kind=0):
    return (ticks | value << 44 | kind << 60).to_bytes(8, "little")


def events(first, base, *records, n=None, crc=None):
    line = b"OK %d %d %d\n" % (first, len(records) if n is None else n, base)
    data = line + b"".join(records)
    return data + (zlib.crc32(data) if crc is None else crc).to_bytes(4, "little")


def test_the_driver_against_the_example_of_the_specification():
    turns = example()
    assert len(turns) == 9
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.start()
        first, second, third = unit.read_block(3), unit.read_block(1000), unit.read_block(1000, timeout_s=0.0)
    assert first.tick_ps == Fraction(125, 32)
    assert first.time_ticks.tolist() == [5_000_000_000, 5_000_001_000]
    assert first.channel.tolist() == [1, 4]
    assert first.kind.tolist() == [EventKind.PHOTON] * 2
    assert second.time_ticks.tolist() == [30_600_001_000]
    assert second.kind.tolist() == [EventKind.DUMMY]
    assert len(third) == 0


def test_the_emulators_frames_against_the_example_of_the_specification():
    answers = [answer for command, answer in example() if command.startswith(b"EVT?")]
    log = EventLog()
    log.add(5_000_000_000, Kind.PHOTON, 1)
    log.add(5_000_001_000, Kind.PHOTON, 4)
    frames = [log.frame(3)]
    log.add(30_600_001_000, Kind.DUMMY)
    log.release(2)
    frames.append(log.frame(1000))
    log.release(3)
    frames.append(log.frame(1000))
    assert frames == answers


def test_every_kind_of_event():
    records = [
        record(0, 2), record(5, 0x81, 1), record(5, 0, 2), record(9, 65535, 4), record(9, 7, 4), record(9, 0, 3),
        record(9, 0, 5), record(10, 0, 6),
    ]  # fmt: skip
    base = (1 << 53) + 1
    turns = [*OPENING, *START, (b"EVT? 77 0 100\n", events(0, base, *records)), *STOP]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.start()
        block = unit.read_block(100)
    assert block.kind.tolist() == [
        EventKind.PHOTON, EventKind.MARKER, EventKind.GAP_BEGIN, EventKind.MISSED, EventKind.MISSED, EventKind.GAP_END,
        EventKind.CLOCK_ERROR, EventKind.DUMMY,
    ]  # fmt: skip
    assert block.channel.tolist() == [2, 0x81, 0, 0, 0, 0, 0, 0]
    assert block.time_ticks.tolist() == [base + t for t in (0, 5, 5, 9, 9, 9, 9, 10)]
    assert block.missed == 65542


@pytest.mark.parametrize(
    "wrong",
    [events(0, 10, record(0, 1), crc=1), events(0, 10, record(0, 1)).replace(b" 10\n", b" 11\n")],
    ids=["CRC", "base"],
)
def test_events_with_a_wrong_crc_are_asked_for_again(wrong):
    ask = b"EVT? 77 0 5\n"
    turns = [*OPENING, *START, (ask, wrong), (ask, events(0, 10, record(0, 1))), *STOP]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.start()
        assert unit.read_block(5).time_ticks.tolist() == [10]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (events(1, 0, record(0, 1)), WireFormatError),
        (events(0, 0, *[record(0, 1)] * 6), WireFormatError),
        (events(0, (1 << 63) - (1 << 44), record(0, 1)), WireFormatError),
        (b"OK 0 1\n", WireFormatError),
        (b"OK\n", WireFormatError),
        (events(0, 0, record(0, 5)), WireFormatError),
        (events(0, 0, record(0, 1, 9)), WireFormatError),
        (events(0, 0, record(9, 1), record(8, 1)), NonMonotonicTimeError),
    ],
    ids=["other event", "too many", "base", "no base", "nothing", "detector 5", "kind 9", "backwards"],
)
def test_events_that_cannot_be_true(answer, error):
    turns = [*OPENING, *START, (b"EVT? 77 0 5\n", answer)]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.start()
        with pytest.raises(error):
            unit.read_block(5)
        unit._link.close()


def test_time_does_not_go_back_from_frame_to_frame():
    turns = [
        *OPENING,
        *START,
        (b"EVT? 77 0 1\n", events(0, 50, record(0, 1))),
        (b"EVT? 77 1 1\n", events(1, 49, record(0, 1))),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.start()
        unit.read_block(1)
        with pytest.raises(NonMonotonicTimeError, match="event 1") as caught:
            unit.read_block(1)
        assert caught.value.index == 0
        unit._link.close()


def test_events_that_are_gone():
    turns = [*OPENING, *START, *[(b"EVT? 77 0 5\n", b"ERR 5 gone\n")] * 2, *STOP]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.start()
        for _ in range(2):
            with pytest.raises(UnitStateError, match="run 77") as caught:
                unit.read_block(5)
            assert caught.value.remedy


def test_what_was_not_started_has_no_events_and_sends_nothing():
    with expect_dialogue("tcp", OPENING) as url, opened(url) as unit:
        with pytest.raises(UnitStateError, match="not started"):
            unit.read_block(5)
        with pytest.raises(ValueError, match="at least 1"):
            unit.read_block(0)


def test_settings_of_each_detector():
    turns = [
        *OPENING,
        (b"CONF detector_efficiency.1 0.2\n", b"OK 0.21\n"),
        (b"CONF detector_efficiency.4 0.1\n", b"OK 0.1\n"),
        (b"CONF detector_enabled.2 0\n", b"OK 0\n"),
        (b"CONF dead_time_ns 20000\n", b"OK 20480\n"),
        (b"CONF? threshold_v.3\n", b"OK -0.25\n"),
        (b"CONF? basis_choice\n", b"OK active\n"),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        got = unit.configure({
            "detector_efficiency": {1: 0.2, "4": 0.1}, "detector_enabled": {2: False}, "dead_time_ns": 20_000,
        })  # fmt: skip
        assert got == {
            "detector_efficiency": {1: 0.21, 4: 0.1}, "detector_enabled": {2: False}, "dead_time_ns": 20480.0,
        }  # fmt: skip
        assert unit.threshold_v[3] == -0.25
        assert unit.basis_choice == "active"


def test_refusals():
    turns = [
        *OPENING,
        (b"ARM\n", b"ERR 3 fault\n"),
        (b"CONF gate_width_ns 5\n", b"ERR 7 free running\n"),
        (b"CONF gate_width_ns 6\n", b"ERR 2 range\n"),
        (b"CONF gate_width_ns 7\n", b"OK 99\n"),
    ]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        with pytest.raises(UnitStateError, match="fault"):
            unit.arm()
        with pytest.raises(NotSupportedError, match="free running"):
            unit.configure({"gate_width_ns": 5})
        with pytest.raises(CommandRefusedError) as caught:
            unit.configure({"gate_width_ns": 6})
        assert caught.value.code == "2"
        with pytest.raises(UnitError, match="gate_width_ns is 99"):
            unit.configure({"gate_width_ns": 7})


@pytest.mark.parametrize(
    "settings",
    [
        {"power": 1},
        {"basis_choice": "active"},
        {"tick_ps": "1"},
        {"detector_efficiency": 1.01},
        {"detector_efficiency": {5: 0.1}},
        {"detector_enabled": 1},
        {"key_basis_probability": 0.96},
    ],
)
def test_settings_that_are_not_allowed_send_nothing(settings):
    with expect_dialogue("tcp", OPENING) as url, opened(url) as unit, pytest.raises(ConfigurationError):
        unit.configure(settings)


def test_status():
    status = b"OK state=fault " + COUNTS.replace(b"_3=0", b"_3=12") + b" clock=free alarms=2e\n"
    turns = [*OPENING, (b"STAT?\n", status), (b"MON?\n", b"OK detector_temperature_k=260.5 count_rate_hz_1=1200\n")]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        got = unit.read_status()
    assert (got.state, got.counters["photons_3"]) == ("fault", 12)
    assert got.alarms == ("clock_unlocked", "detector_temperature", "bright_light", "alarm_bit_5")
    assert got.monitors == {"detector_temperature_k": 260.5, "count_rate_hz_1": 1200.0, "clock_locked": 0.0}


@pytest.mark.parametrize("answer", [b"OK\n", b"OK 0\n", b"OK x\n", b"OK -1\n"])
def test_a_start_without_a_run_number(answer):
    turns = [*OPENING, *START[:2], (b"START\n", answer)]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        with pytest.raises(WireFormatError, match="run number"):
            unit.start()
        unit._link.close()


@pytest.mark.parametrize("answer", [b"OK 0\n", b"OK 1/0\n", b"OK 3.9\n", b"OK 1e3\n", b"OK 5/\n"])
def test_a_tick_that_is_none(answer):
    turns = [*OPENING, *START[:3], (b"CONF? tick_ps\n", answer)]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        with pytest.raises(WireFormatError, match="tick_ps"):
            unit.start()
        unit._link.close()


def test_a_transmitter_is_no_receiver():
    with (
        expect_dialogue("tcp", [(b"IDN?\n", b"OK Acme,TX-1,0042,1.2.0,GTX/1\n")]) as url,
        open_transport(url) as link,
        pytest.raises(UnitError, match="GTX/1"),
    ):
        GenericRx(link)


def test_no_event_bytes_in_the_error_of_an_answer_out_of_step():
    turns = [*OPENING, *START, (b"EVT? 77 0 5\n", b"abcdefgh12345678\n")]
    with expect_dialogue("tcp", turns) as url, opened(url) as unit:
        unit.start()
        with pytest.raises(WireFormatError) as caught:
            unit.read_block(5)
        assert "abcd" not in str(caught.value)
        unit._link.close()

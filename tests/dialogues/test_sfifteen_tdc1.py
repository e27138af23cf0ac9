"""The TDC1's dialogues as its documentation and the vendor's software have them."""

import numpy as np
import pytest
from dialogue import CHALLENGE, expect_dialogue

from qkdhw.drivers.sfifteen_tdc1 import SFifteenTdc1
from qkdhw.errors import ConfigurationError, EventOverflowError, UnitError, UnitStateError, WireFormatError
from qkdhw.model import EventKind
from qkdhw.transport import open_transport

IDENTITY = (b"*idn?\r\n", b"TDC1 timestamp/counter, svn-16\r\n")
ABORT = (b"\r\nabort\r\n", b"")
GATE = (b"time 1000\r\n", b"")
CLOCK = (b"eclock?\r\n", b"0\r\n")
START = b"inpkt;time 0;timestamp;counts?\r\n"
OPENING = [ABORT, IDENTITY, CHALLENGE, GATE, IDENTITY]
RESYNCHRONISING = [ABORT, CHALLENGE, GATE]
STARTING = [(b"status?\r\n", b"0000 \r\n"), CLOCK, (START, b"")]
ENDLESS = (b"time?\r\n", b"0\r\n")
STOPPING = [(b"abort\r\n", b""), (b"status?\r\n", b"0000 \r\n"), ENDLESS, GATE]


def opened(url):
    return SFifteenTdc1(open_transport(url), timeout_s=1.0)


def word(ticks, low):
    return (ticks % 2**27 << 5 | low).to_bytes(4, "little")


def test_opening_and_identity():
    with expect_dialogue("serial", OPENING) as url, opened(url):
        pass


def test_opening_in_the_middle_of_a_stream():
    turns = [(b"\r\nabort\r\n", b"".join(word(1000 * i, 1) for i in range(500)) + b"\x0a\x0d"), *OPENING[1:]]
    turns.append((b"status?\r\n", b"0000 \r\n"))
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        assert tagger.read_status().state == "idle"


def test_settings_are_read_back_and_the_old_firmware_answers_negative():
    turns = [
        *OPENING,
        (b"neg -0.500\r\n", b""),
        (b"level?\r\n", b"-0.4987 V\r\n"),
        (b"time 40000\r\n", b""),
        (b"time?\r\n", b"-25536\r\n"),
        (b"refclk 1\r\n", b""),
        (b"refclk?\r\n", b"1\r\n"),
        (b"refclk?\r\n", b"1\r\n"),
        (b"eclock?\r\n", b"1\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        got = tagger.configure({"threshold_v": -0.5, "gate_time_ms": 40000, "reference_clock": "external"})
        assert tagger.read_clock_locked()
    assert got == {"threshold_v": -0.4987, "gate_time_ms": 40000, "reference_clock": "external"}


@pytest.mark.parametrize("logic", ["nim", "ttl"])
def test_input_logic(logic):
    turns = [
        *OPENING,
        (logic.encode() + b"\r\n", b""),
        (b"level?\r\n", b"1.2 V\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        assert tagger.configure({"input_logic": logic}) == {"input_logic": logic}
        assert tagger.threshold_v == 1.2


def test_settings_that_are_not_allowed_send_nothing():
    refused = [
        {"gain": 1},
        {"gate_time_ms": 0},
        {"gate_time_ms": 65536},
        {"gate_time_ms": True},
        {"threshold_v": 3.4},
        {"threshold_v": float("nan")},
        {"input_logic": "ecl"},
        {"input_logic": "nim", "threshold_v": 0.1},
    ]
    with expect_dialogue("serial", OPENING) as url, opened(url) as tagger:
        for settings in refused:
            with pytest.raises(ConfigurationError) as caught:
                tagger.configure(settings)
            assert caught.value.remedy


def test_counts():
    turns = [*OPENING, (b"time 1000;singles;counts?\r\n", b"17 0 4294967295 3\r\n")]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        assert tagger.read_counts() == (17, 0, 4294967295, 3)


def test_pair_counts():
    turns = [*OPENING, (b"time 1000;pairs;counts?\r\n", b"9 8 7 6 5 4 3 2\r\n")]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        got = tagger.read_pair_counts()
    assert got.singles == (9, 8, 7, 6)
    assert got.pairs == {(1, 3): 5, (1, 4): 4, (2, 3): 3, (2, 4): 2}


@pytest.mark.parametrize("answer", [b"1 2 3\r\n", b"1 2 3 x\r\n", b"1 2 3 -4\r\n", b"\xff\xfe 3 4\r\n", b"\r\n"])
def test_counts_that_are_none(answer):
    turns = [*OPENING, (b"time 1000;singles;counts?\r\n", answer)]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger, pytest.raises(UnitError):
        tagger.read_counts()


def test_stream_stop_and_tail():
    stream = word(5, 1) + word(2**27 - 1, 0b1010) + word(3, 16)
    # bit 31 falls between the second and the third: one wrap; 200 ms are not passed as dummies come
    dummies = b"".join(word(5 + i * 65_000_000, 16) for i in (1, 2))
    stream = stream[:4] + dummies + stream[4:]
    turns = [
        *OPENING,
        *STARTING[:2],
        (START, stream),
        (b"abort\r\n", word(9, 4)),
        *STOPPING[1:],
    ]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        tagger.start()
        with pytest.raises(UnitStateError):
            tagger.read_counts()
        assert tagger.read_status().state == "running"
        assert tagger.identify().model == "TDC1"
        parts = []
        while sum(len(p) for p in parts) < 6:
            parts.append(tagger.read_block(64, timeout_s=2.0))
        tagger.stop()
        tail = tagger.read_block(64, timeout_s=0.1)
    ticks = np.concatenate([p.time_ticks for p in parts])
    assert ticks.tolist() == [5, 65_000_005, 130_000_005, 2**27 - 1, 2**27 - 1, 2**27 + 3]
    assert np.concatenate([p.channel for p in parts]).tolist() == [1, 0, 0, 2, 4, 0]
    assert tail.time_ticks.tolist() == [2**27 + 9]
    assert tail.channel.tolist() == [3]
    assert tail.kind.tolist() == [EventKind.PHOTON]
    assert tail.tick_ps == 2000


def test_words_that_come_byte_by_byte_are_kept_until_whole():
    data = word(77, 2)
    turns = [*OPENING, *STARTING, (b"inpkt\r\n", data[:3]), (b"inpkt\r\n", data[3:]), *STOPPING]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        tagger.start()
        block = tagger.read_block(4, timeout_s=2.0)
        assert block.time_ticks.tolist() == [77]


def test_a_unit_that_is_silent_for_a_second_is_asked_and_its_answer_taken_out_of_a_stream_that_goes_on():
    asked = [(b"inpkt\r\n", b"")] * 4
    late = (b"time?\r\n", word(5, 1) + b"0\r\n" + word(7, 2))
    with (
        expect_dialogue("serial", [*OPENING, *STARTING, *asked, ENDLESS, *asked, late, *STOPPING]) as url,
        opened(url) as tagger,
    ):
        tagger.start()
        for _ in range(15):  # no call waits for as long as a silence is
            assert len(tagger.read_block(4, timeout_s=0.08)) == 0
        assert tagger.read_block(64).time_ticks.tolist() == [5, 7]


@pytest.mark.parametrize("gate", [b"1000", b"-25536"])
def test_a_unit_that_was_reset_in_a_stream_is_found_out_and_its_stream_is_over(gate):
    turns = [*OPENING, *STARTING, *[(b"inpkt\r\n", b"")] * 4, (b"time?\r\n", gate + b"\r\n")]
    turns += [*RESYNCHRONISING[:2], GATE, IDENTITY, *STARTING, *STOPPING[:2], (b"time?\r\n", gate + b"\r\n")]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        tagger.start()
        with pytest.raises(UnitStateError, match="lost its power"):
            tagger.read_block(4)
        tagger.start()
        with pytest.raises(UnitStateError, match="lost its power"):
            tagger.stop()


def test_overflow_is_told_once_the_stream_is_stopped_and_latches():
    turns = [
        *OPENING,
        *STARTING,
        (b"abort\r\n", b""),
        (b"status?\r\n", b"0010 \r\n"),
        ENDLESS,
        GATE,
        (b"status?\r\n", b"0000 \r\n"),
        # the next start resets the flag and keeps the settings
        (b"status?\r\n", b"0010 \r\n"),
        (b"level?\r\n", b"-0.5 V\r\n"),
        (b"refclk?\r\n", b"2\r\n"),
        (b"*rst\r\nneg -0.500\r\nrefclk 2\r\n", b""),
        *STARTING[1:],
        *STOPPING,
    ]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        tagger.start()
        with pytest.raises(EventOverflowError):
            tagger.stop()
        assert tagger.read_status().alarms == ("event_overflow",)
        tagger.start()
        assert tagger.read_status().alarms == ()


def test_a_lost_byte_ends_the_stream_and_the_unit_can_be_started_again():
    turns = [
        *OPENING,
        *STARTING[:2],
        (START, word(10, 1) + word(11, 0)),
        *RESYNCHRONISING,
        *STARTING,
        *STOPPING,
    ]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        tagger.start()
        with pytest.raises(WireFormatError, match="byte was lost"):
            tagger.read_block(64)
        with pytest.raises(UnitStateError):
            tagger.read_block(64)
        tagger.start()


def test_a_reference_clock_that_is_lost_while_the_stream_runs_is_told():
    turns = [*OPENING, STARTING[0], (b"eclock?\r\n", b"1\r\n"), STARTING[2], *STOPPING[:3], CLOCK, GATE]
    turns.append((b"status?\r\n", b"0000 \r\n"))
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        tagger.start()
        tagger.stop()
        assert tagger.read_status().alarms == ("clock_unlocked",)


def test_what_a_running_unit_cannot_do_sends_nothing_and_leaves_the_stream_running():
    with expect_dialogue("serial", [*OPENING, *STARTING, *STOPPING]) as url, opened(url) as tagger:
        tagger.start()
        for call in (tagger.start, tagger.read_counts, tagger.snapshot, lambda: tagger.configure({"gate_time_ms": 5})):
            with pytest.raises(UnitStateError) as caught:
                call()
            assert caught.value.remedy


def test_another_unit_is_named():
    turns = [OPENING[0], (b"*idn?\r\n", b"ACME,VOA-7,123,1.0\r\n")]
    with (
        expect_dialogue("serial", turns) as url,
        open_transport(url) as link,
        pytest.raises(UnitError, match="VOA-7,123"),
    ):
        SFifteenTdc1(link)

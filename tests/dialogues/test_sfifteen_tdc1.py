"""The TDC1's dialogues as its documentation and the vendor's software have them."""

import numpy as np
import pytest
from dialogue import CHALLENGE, expect_dialogue

from qkdhw.drivers.sfifteen_tdc1 import SFifteenTdc1
from qkdhw.errors import ConfigurationError, EventOverflowError, UnitError, UnitStateError, WireFormatError
from qkdhw.model import EventKind
from qkdhw.transport import open_transport

OPENING = [
    (b"\r\nabort\r\n", b""),
    (b"*idn?\r\n", b"TDC1 timestamp/counter, svn-16\r\n"),
    CHALLENGE,
    (b"time 1000\r\n", b""),
]
RESYNCHRONISING = [OPENING[0], *OPENING[2:]]
STARTING = [(b"status?\r\n", b"0000 \r\n"), (b"inpkt;time 0;timestamp;counts?\r\n", b"")]


def opened(url):
    return SFifteenTdc1(open_transport(url), timeout_s=1.0)


def word(ticks, low):
    return (ticks % 2**27 << 5 | low).to_bytes(4, "little")


def test_opening_and_identity():
    with expect_dialogue("serial", OPENING) as url, opened(url):
        pass


def test_opening_in_the_middle_of_a_stream():
    turns = [(b"\r\nabort\r\n", b"".join(word(1000 * i, 1) for i in range(500)) + b"\x0a\x0d"), *OPENING[1:]]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        assert tagger._info.model == "TDC1"


def test_settings_are_read_back_and_the_old_firmware_answers_negative():
    turns = [
        *OPENING,
        (b"neg -0.500\r\n", b""),
        (b"time 40000\r\n", b""),
        (b"time?\r\n", b"-25536\r\n"),
        (b"level?\r\n", b"-0.4987 V\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        got = tagger.configure({"threshold_v": -0.5, "gate_time_ms": 40000})
    assert got == {"threshold_v": -0.4987, "gate_time_ms": 40000}


@pytest.mark.parametrize("logic", ["nim", "ttl"])
def test_input_logic(logic):
    turns = [
        *OPENING,
        (logic.encode() + b"\r\n", b""),
        (b"time 1000\r\n", b""),
        (b"time?\r\n", b"1000\r\n"),
        (b"level?\r\n", b"1.2 V\r\n"),
    ]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        assert tagger.configure({"input_logic": logic})["threshold_v"] == 1.2


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
        *STARTING[:1],
        (STARTING[1][0], stream),
        (b"abort\r\n", word(9, 4)),
        (b"status?\r\n", b"0000 \r\n"),
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
    turns = [*OPENING, *STARTING, (b"inpkt\r\n", data[:3]), (b"inpkt\r\n", data[3:]), (b"abort\r\n", b"")]
    turns.append((b"status?\r\n", b"0000 \r\n"))
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        tagger.start()
        block = tagger.read_block(4, timeout_s=2.0)
        assert block.time_ticks.tolist() == [77]


def test_overflow_is_told_once_the_stream_is_stopped_and_latches():
    turns = [
        *OPENING,
        *STARTING,
        (b"abort\r\n", b""),
        (b"status?\r\n", b"0010 \r\n"),
        (b"status?\r\n", b"0000 \r\n"),
        # the next start resets the flag and keeps the threshold
        (b"status?\r\n", b"0010 \r\n"),
        (b"level?\r\n", b"-0.5 V\r\n"),
        (b"*rst;neg -0.500\r\n", b""),
        (b"inpkt;time 0;timestamp;counts?\r\n", b""),
        (b"abort\r\n", b""),
        (b"status?\r\n", b"0000 \r\n"),
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
        STARTING[0],
        (STARTING[1][0], word(10, 1) + word(11, 0)),
        *RESYNCHRONISING,
        *STARTING,
        (b"abort\r\n", b""),
        (b"status?\r\n", b"0000 \r\n"),
    ]
    with expect_dialogue("serial", turns) as url, opened(url) as tagger:
        tagger.start()
        with pytest.raises(WireFormatError, match="byte was lost"):
            tagger.read_block(64)
        with pytest.raises(UnitStateError):
            tagger.read_block(64)
        tagger.start()


def test_another_unit_is_named():
    turns = [OPENING[0], (b"*idn?\r\n", b"ACME,VOA-7,123,1.0\r\n")]
    with (
        expect_dialogue("serial", turns) as url,
        open_transport(url) as link,
        pytest.raises(UnitError, match="VOA-7,123"),
    ):
        SFifteenTdc1(link)

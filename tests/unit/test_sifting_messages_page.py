"""docs/reference/sifting-messages.md: its examples are what is sent and taken, byte for byte, and its rules hold."""

import re
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qkdhw._core import rice
from qkdhw.bench.pipeline.pairs import parse_first_times
from qkdhw.errors import PeerProtocolError
from qkdhw.postprocessing.announced_times import announced_times, parse_unplaced_reply, unplaced_answer
from qkdhw.postprocessing.pair_sifting import AnnouncedClock, PairAnnouncer, PairSifter
from qkdhw.postprocessing.sifting import announce, parse_announcement, sift_at_transmitter

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sifting-messages.md"
EXAMPLES = {
    name: bytes.fromhex(digits)
    for name, digits in re.findall(r"<!-- example: (.*?) -->\n\n    ([0-9a-f ]+)\n", PAGE.read_text())
}
# Lines of bits, each above a line that begins with its k.
BIT_LINES = re.findall(r"^    ([01 ]+)\n    k = ", PAGE.read_text(), re.MULTILINE)
UNITS, DETECTORS = np.array([1000, 1003, 1003, 1040]), np.array([0, 2, 3, 1], np.uint8)


def stream(text):
    """Return bytes whose lowest bits come first."""
    bits = text.replace(" ", "")
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


def announced(number):
    announcer = PairAnnouncer()
    for _ in range(number):
        announcer.forget(struct.unpack_from("<I", announcer.announce(UNITS[:0], DETECTORS[:0]), 4)[0])
    return announcer, announcer.announce(UNITS, DETECTORS)


def test_the_page_has_its_examples():
    assert list(EXAMPLES) == [
        "announcement of pairs", "reply to pairs", "announcement of slots", "reply to slots",
    ]  # fmt: skip
    assert len(BIT_LINES) == 2


def test_pairs_are_announced_and_answered_as_on_the_page():
    announcer, message = announced(7)
    assert message == EXAMPLES["announcement of pairs"]
    assert message.endswith(stream(BIT_LINES[0]))
    assert announced_times(message)[1].tolist() == UNITS.tolist()
    # The peer's events lie at the units 1003, in the test basis, and 1040, in the key basis.
    sifter = PairSifter(AnnouncedClock(50, Fraction(1)), window_ticks=1, tracking_ticks=2, servo_pairs=0)
    sifter.add_announcement(message)
    sifter.add_events(np.array([1053, 1090]), np.array([3, 0], np.uint8))
    sifter.close()
    (answer,) = sifter.answers()
    assert answer.reply == EXAMPLES["reply to pairs"]
    assert answer.reply.endswith(stream(BIT_LINES[1]))
    assert announcer.accept(answer.reply).kept.tolist() == [1, 3]


def test_slots_are_announced_and_answered_as_on_the_page():
    slot, basis = np.array([1000, 1001, 1300]), np.array([0, 1, 1], np.uint8)
    assert announce(slot, basis) == EXAMPLES["announcement of slots"]
    heard = parse_announcement(EXAMPLES["announcement of slots"])
    assert [column.tolist() for column in heard] == [slot.tolist(), basis.tolist()]
    record = np.zeros(301, np.uint8)
    record[300] = 0b1010
    assert sift_at_transmitter(*heard, record, 1000).reply.tobytes() == EXAMPLES["reply to slots"]


@pytest.mark.parametrize(
    ("bits", "taken"),
    [
        ("00000 01 01", True),
        ("10000 1 1 1 1", True),  # another k: 1
        ("11111 1 1000000000000000000000000000000 1 1000000000000000000000000000000", True),  # k = 31
        ("00000 01 01 0000001", False),  # padding
        ("00000 01 01 0000000 00000000", False),  # a byte too many
        ("00000 01", False),  # ends early
        ("00000 01 001", False),  # index 4 of 4 detections
        ("00000 01 " + 24 * "0" + "1" + 61 * "0", False),  # a long form of 1
    ],
)
def test_replies_follow_the_rules_of_the_page(bits, taken):
    announcer, _ = announced(0)
    reply = struct.pack("<4sII", b"QPR\x01", 0, 2) + stream(bits)
    if taken:
        assert announcer.accept(reply).kept.tolist() == [1, 3]
        return
    with pytest.raises(PeerProtocolError, match="byte"):
        announcer.accept(reply)
    assert announcer.accept(struct.pack("<4sII", b"QPR\x01", 0, 2) + stream("00000 01 01")).n_key == 1  # it still waits


def test_the_long_form_begins_at_a_quotient_of_24():
    # Twenty gaps of 0 and one of 23 or 24: s / n is 1, so k is 0.
    for gap, form in ((23, 23 * "0" + "1"), (24, 24 * "0" + f"{24:062b}"[::-1])):
        numbers = np.array([0] * 20 + [gap])
        data = np.empty(12 * 21 + 9, np.uint8)
        size = rice.encode_gaps(numbers, np.empty(0, np.uint8), 0, 0, data)
        assert data[:size].tobytes() == stream("00000" + 20 * "1" + form)


@pytest.mark.parametrize("name", list(EXAMPLES)[:3])
def test_another_version_is_refused(name):
    message = bytearray(EXAMPLES[name])
    message[2 if name.endswith("slots") else 3] += 1
    announcer, _ = announced(7)
    read = {"announcement of pairs": announced_times, "reply to pairs": announcer.accept}.get(name, parse_announcement)
    with pytest.raises(PeerProtocolError, match="magic"):
        read(bytes(message))


def test_the_short_messages():
    times = struct.pack("<4sIqqq", b"QPT\x01", 4, 1000, 125, 32) + stream("11000 1 000 1 110 1 000 00001 101")
    units, unit_ps = parse_first_times(times)
    assert (units.tolist(), unit_ps) == (UNITS.tolist(), Fraction(125, 32))
    assert unplaced_answer(7, 4).reply == b"QPL\x01" + bytes([7, 0, 0, 0])
    assert parse_unplaced_reply(b"QPL\x01" + bytes([7, 0, 0, 0])) == 7

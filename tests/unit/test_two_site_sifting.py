"""Sifting between two sites: equal positions, strict messages, nothing secret printed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.errors import PeerProtocolError
from qkdhw.postprocessing.sifting import (
    announce,
    count_cells,
    parse_announcement,
    sift_at_receiver,
    sift_at_transmitter,
)


def detections(seed=1, n=2000, pulses=50_000):
    rng = np.random.default_rng(seed)
    record = rng.integers(0, 12, pulses, dtype=np.uint8)
    slot = np.sort(rng.choice(pulses, n, replace=False)).astype(np.int64)
    basis = rng.integers(0, 2, n, dtype=np.uint8)
    bit = np.where(record[slot] >> 1 & 1 == basis, record[slot] & 1, rng.integers(0, 2, n)).astype(np.uint8)
    return record, slot, basis, bit


def test_both_sites_hold_the_same_bits_and_cells():
    record, slot, basis, bit = detections()
    heard_slot, heard_basis = parse_announcement(announce(slot, basis))
    assert heard_slot.tolist() == slot.tolist()
    assert heard_basis.tolist() == basis.tolist()
    sent = sift_at_transmitter(heard_slot, heard_basis, record, 0)
    got = sift_at_receiver(basis, bit, np.frombuffer(sent.reply.tobytes(), np.uint8))
    assert sent.key_bits.tolist() == got.key_bits.tolist()
    assert sent.test_bits.tolist() == got.test_bits.tolist()
    cells = count_cells(got)
    assert cells.tolist() == count_cells(sent).tolist()
    matched = record[slot] >> 1 & 1 == basis
    want = [[np.sum(matched & (basis == b) & (record[slot] >> 2 == k)) for k in range(3)] for b in range(2)]
    assert cells.tolist() == want


def test_slots_outside_the_record_are_not_kept():
    record, slot, basis, _ = detections()
    sifted = sift_at_transmitter(slot, basis, record[10_000:20_000], 10_000)
    kept = slot[sifted.reply > 0]
    assert kept.min() >= 10_000
    assert kept.max() < 20_000


@given(
    st.sets(st.integers(-(1 << 62) + 1, (1 << 62) - 1) | st.integers(0, 500), max_size=40).map(sorted),
    st.integers(0, (1 << 40) - 1),
)
def test_announcements_round_trip(slots, bases):
    slot = np.array(slots, np.int64)
    basis = np.array([bases >> i & 1 for i in range(len(slots))], np.uint8)
    message = announce(slot, basis)
    heard_slot, heard_basis = parse_announcement(message)
    assert heard_slot.tolist() == slots
    assert heard_basis.tolist() == basis.tolist()


@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["set", "cut", "insert"]))
def test_a_damaged_announcement_is_refused_or_still_the_one_valid_form(place, byte, damage):
    _, slot, basis, _ = detections(n=37)
    message = bytearray(announce(slot, basis))
    place %= len(message)
    if damage == "set":
        message[place] = byte
    elif damage == "cut":
        del message[place:]
    else:
        message.insert(place, byte)
    try:
        heard = parse_announcement(bytes(message))
    except PeerProtocolError:
        return
    assert announce(*heard) == bytes(message)


def test_a_count_that_was_not_sent_is_refused_before_memory_is_taken():
    message = bytearray(announce(*detections(n=5)[1:3]))
    message[4:8] = (1 << 24).to_bytes(4, "little")
    with pytest.raises(PeerProtocolError, match="do not hold"):
        parse_announcement(bytes(message))


def test_what_cannot_be_announced_is_the_caller_s_mistake():
    one = np.ones(2, np.uint8)
    for slot, basis in (([1, 1], one), ([1, 2], one * 2), ([1], one)):
        with pytest.raises(ValueError, match=r"slot|basis|bases"):
            announce(np.array(slot, np.int64), basis)


def test_a_hostile_reply_is_named_by_its_place_only():
    record, slot, basis, bit = detections()
    reply = sift_at_transmitter(slot, basis, record, 0).reply
    reply[7] = 5 - 4 * basis[7]  # the other basis
    with pytest.raises(PeerProtocolError, match="byte 7 "):
        sift_at_receiver(basis, bit, reply)
    with pytest.raises(PeerProtocolError, match="1999 bytes for 2000"):
        sift_at_receiver(basis, bit, reply[:-1])


def test_an_impossible_record_is_refused():
    record, slot, basis, _ = detections()
    record[slot[3]] = 12
    with pytest.raises(ValueError, match="detection 3"):
        sift_at_transmitter(slot, basis, record, 0)


def test_bits_are_never_printed_and_wiping_erases_them():
    record, slot, basis, _ = detections()
    sifted = sift_at_transmitter(slot, basis, record, 0)
    assert "key_bits" not in repr(sifted)
    assert "test_bits" not in repr(sifted)
    sifted.wipe()
    assert not sifted.key_bits.any()
    assert not sifted.test_bits.any()


def test_empty_blocks():
    nothing = np.empty(0, np.int64), np.empty(0, np.uint8)
    slot, basis = parse_announcement(announce(*nothing))
    sifted = sift_at_transmitter(slot, basis, np.zeros(4, np.uint8), 0)
    assert count_cells(sift_at_receiver(basis, nothing[1], sifted.reply)).sum() == 0

"""Sifting kernels equal their oracle, refuse a hostile reply, and slot coding has one valid form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle_sifting import encode_slots as encode_oracle
from oracle_sifting import sift_receiver as receiver_oracle
from oracle_sifting import sift_transmitter as transmitter_oracle

from qkdhw._core.sifting import decode_slots, encode_slots, sift_receiver, sift_transmitter

records = hnp.arrays(np.uint8, st.integers(0, 60), elements=st.integers(0, 11))
slot_sets = st.sets(st.integers(-20, 90), max_size=60).map(sorted)


def transmitter(slot, rx_basis, record, first_slot):
    """Sift with the widest instructions and with the plain loop; both must say the same."""
    fast, plain = (once(sift_transmitter, 5, slot, rx_basis, record, first_slot, portable=p) for p in (False, True))
    assert fast[0] == plain[0]
    if fast[0] == len(slot):
        assert fast[1].tolist() == plain[1].tolist()
        assert fast[2] == plain[2]
    return fast


def receiver(rx_basis, rx_bit, reply):
    fast, plain = (once(sift_receiver, 4, rx_basis, rx_bit, reply, portable=p) for p in (False, True))
    assert fast[0] == plain[0]
    if fast[0] == len(reply):
        assert fast[2] == plain[2]
    return fast[0], fast[2]


def once(kernel, n_outs, *inputs, portable):
    """Call a kernel; its outputs end where their own memory does, so that a write beyond what is kept is seen."""
    n = len(inputs[0])
    memory = np.full((n_outs, n + 64), 77, np.uint8)
    counts = np.full(2, -1, np.int64)
    done = kernel(*inputs, *memory[:, :n], counts, portable)
    assert (memory[:, n:] == 77).all()
    return done, memory[0, :n], cut(memory[-4:, :n], counts)


def cut(outs, counts):
    return tuple(out[: counts[i % 2]].tolist() for i, out in enumerate(outs))


def lists(arrays):
    return tuple(a.tolist() for a in arrays)


@given(slot_sets, records, st.integers(-30, 60), st.randoms(use_true_random=False))
def test_sifting_equals_the_oracle_at_both_sites(slots, record, first_slot, random):
    slot = np.array(slots, np.int64)
    rx_basis = np.array([random.randrange(2) for _ in slots], np.uint8)
    rx_bit = np.array([random.randrange(2) for _ in slots], np.uint8)
    done, reply, sifted = transmitter(slot, rx_basis, record, first_slot)
    want_reply, want = transmitter_oracle(slot, rx_basis, record, first_slot)
    assert done == len(slots)
    assert reply.tolist() == want_reply.tolist()
    assert sifted == lists(want)
    done, other = receiver(rx_basis, rx_bit, reply)
    assert done == len(slots)
    assert other == lists(receiver_oracle(rx_bit, reply))
    assert [len(a) for a in other] == [len(a) for a in sifted]
    assert other[2:] == sifted[2:]


@pytest.mark.parametrize("n", [1023, 1024, 1025, 5000])
def test_whole_blocks_equal_the_oracle(n):
    rng = np.random.default_rng(n)
    record = rng.integers(0, 12, 20_000, dtype=np.uint8)
    slot = np.sort(rng.choice(24_000, n, replace=False)) - 2000
    rx_basis, rx_bit = rng.integers(0, 2, n, dtype=np.uint8), rng.integers(0, 2, n, dtype=np.uint8)
    done, reply, sifted = transmitter(slot, rx_basis, record, 0)
    want_reply, want = transmitter_oracle(slot, rx_basis, record, 0)
    assert done == n
    assert reply.tolist() == want_reply.tolist()
    assert sifted == lists(want)
    assert receiver(rx_basis, rx_bit, reply) == (n, lists(receiver_oracle(rx_bit, reply)))
    for bad in (0, n // 3, n - 1):
        hostile = reply.copy()
        hostile[bad] = 4
        assert receiver(rx_basis, rx_bit, hostile)[0] == bad
        late, foreign = slot.copy(), rx_basis.copy()
        foreign[bad] = 2
        assert transmitter(slot, foreign, record, 0)[0] == bad
        late[bad] = late[bad - 1] if bad else late[bad]
        assert transmitter(late, rx_basis, record, 0)[0] == (bad or n)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 255)), max_size=30))
def test_a_hostile_reply_is_refused_at_its_first_bad_byte(pairs):
    allowed = {0: {0, 1, 2, 3}, 1: {0, 5, 6, 7}}
    bad = next((i for i, (basis, byte) in enumerate(pairs) if byte not in allowed[basis]), len(pairs))
    basis, reply = (np.array([p[i] for p in pairs], np.uint8) for i in (0, 1))
    done, _ = receiver(basis, np.zeros(len(pairs), np.uint8), reply)
    assert done == bad


@pytest.mark.parametrize(
    ("slots", "basis", "record", "bad"),
    [
        ([3, 3], [0, 0], [0] * 5, 1),
        ([3, 2], [0, 0], [0] * 5, 1),
        ([1, 2], [0, 2], [0] * 5, 1),
        ([2], [0], [0, 0, 12], 0),
    ],
)
def test_the_transmitter_refuses_what_cannot_be(slots, basis, record, bad):
    done, *_ = transmitter(np.array(slots), np.array(basis, np.uint8), np.array(record, np.uint8), 0)
    assert done == bad


def test_slots_at_the_ends_of_64_bits_lie_outside_the_record():
    slot = np.array([-(1 << 63), -1, 0, 4, 5, (1 << 63) - 1], np.int64)
    done, reply, _ = transmitter(slot, np.zeros(6, np.uint8), np.zeros(5, np.uint8), 0)
    assert (done, reply.tolist()) == (6, [0, 0, 1, 1, 0, 0])


def encode(slots, base):
    data = np.empty(9 * len(slots), np.uint8)
    size = encode_slots(np.array(slots, np.int64), base, data)
    return size if size < 0 else data[:size].tobytes()


def decode(data, base, n):
    slot = np.empty(n, np.int64)
    read = decode_slots(np.frombuffer(data, np.uint8), base, slot)
    return read if read < 0 else slot.tolist()


wide = st.integers(-(1 << 62) + 1, (1 << 62) - 1)


@given(st.sets(wide | st.integers(0, 1000), max_size=30).map(sorted), st.integers(0, 300))
def test_slot_coding_is_the_oracle_s_and_round_trips(slots, below):
    base = max(slots[0] - below, -(1 << 62) + 1) if slots else 0
    data = encode(slots, base)
    assert data == encode_oracle(slots, base)
    assert decode(data, base, len(slots)) == slots


@given(st.binary(max_size=25), st.integers(0, 12))
def test_only_the_one_valid_form_decodes(data, n):
    slots = decode(data, 0, n)
    if isinstance(slots, list):
        assert encode(slots, 0) == data
    else:
        assert 0 <= -1 - slots <= len(data)


@pytest.mark.parametrize(
    ("data", "n", "offset"),
    [
        (b"", 1, 0),
        (b"\x05\x80", 2, 2),  # stops in mid-number
        (b"\x05\x80\x00", 2, 2),  # not the shortest form
        (b"\x05\x06", 1, 1),  # a byte too many
        (b"\xff" * 9, 1, 9),  # longer than any slot
        (b"\xff" * 8 + b"\x7f", 1, 8),  # beyond 2^62
    ],
)
def test_the_first_bad_byte_is_named(data, n, offset):
    assert decode(data, 0, n) == -1 - offset


@pytest.mark.parametrize(("slots", "base", "index"), [([5, 5], 0, 1), ([5, 4], 0, 1), ([5], 6, 0), ([1 << 62], 0, 0)])
def test_slots_that_do_not_increase_are_not_encoded(slots, base, index):
    assert encode(slots, base) == -1 - index


def test_arrays_that_do_not_fit_are_refused():
    b, s = np.zeros(2, np.uint8), np.zeros(2, np.int64)
    one, counts = np.zeros(1, np.uint8), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="length"):
        sift_transmitter(s, one, b, 0, b, b, b, b, b, counts)
    with pytest.raises(ValueError, match="as long as"):
        sift_transmitter(s, b, b, 0, b, b, one, b, b, counts)
    with pytest.raises(ValueError, match="length"):
        sift_receiver(b, one, b, b, b, b, b, counts)
    with pytest.raises(ValueError, match="counts"):
        sift_receiver(b, b, b, b, b, b, b, np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="9 bytes"):
        encode_slots(s, 0, np.zeros(17, np.uint8))

import numpy as np
import oracle_epoch as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw._core import epoch

PATIENT = settings(deadline=None, max_examples=150)  # the machine may be busy
ORDER, BASES, OFFSET = st.integers(4, 27), st.integers(0, 4), st.sampled_from([0, 2])
STEPS = st.lists(
    st.tuples(st.integers(0, 3) | st.integers(0, 2**18) | st.integers(0, 2**30), st.integers(0, 15)), max_size=40
)
LIMIT = 2**40


def entries_of(steps, base_bits):
    times = np.cumsum([step for step, _ in steps], dtype=np.int64).tolist()
    return [(time, base % 2**base_bits) for time, (_, base) in zip(times, steps, strict=True)]


def encode(entries, order, base_bits, offset, as_chopper=False):
    value, base = np.array([v for v, _ in entries], np.int64), np.array([b for _, b in entries], np.uint8)
    word = np.empty((len(entries) + 1) * (order + base_bits + 32) // 32 + 2, np.uint32)
    written = np.empty(len(entries), np.uint8)
    count = epoch.encode_differences(value, base, order, base_bits, offset, as_chopper, word, written)
    return word[: max(count, 0)].tolist(), written.astype(bool).tolist(), count


def decode(words, order, base_bits, offset, pieces):
    """Decode words that come in pieces; return entries and the last status."""
    state, bit, rest, entries, status = np.zeros(1, np.int64), 0, np.empty(0, np.uint32), [], 0
    for piece in np.array_split(np.array(words, np.uint32), pieces):
        rest = np.concatenate((rest, piece))
        room = 32 * len(rest) // (order + base_bits) + 1
        value, base = np.empty(room, np.int64), np.empty(room, np.uint8)
        count, bit, status = epoch.decode_differences(rest, bit, order, base_bits, offset, LIMIT, value, base, state)
        entries += zip(value[:count].tolist(), base[:count].tolist(), strict=True)
        rest, bit = rest[bit // 32 :], bit % 32
        if status:
            break
    return entries, status


@PATIENT
@given(STEPS, ORDER, BASES, OFFSET, st.booleans())
def test_encoding_equals_the_oracle(steps, order, base_bits, offset, as_chopper):
    entries = entries_of(steps, base_bits)
    as_chopper &= offset == 0
    words, written, _ = encode(entries, order, base_bits, offset, as_chopper)
    assert (words, written) == oracle.encode(entries, order, base_bits, offset, as_chopper=as_chopper)


@PATIENT
@given(STEPS, ORDER, BASES, OFFSET, st.integers(1, 9))
def test_every_entry_comes_back_however_the_words_are_cut(steps, order, base_bits, offset, pieces):
    entries = entries_of(steps, base_bits)
    words, _, _ = encode(entries, order, base_bits, offset)
    assert decode(words, order, base_bits, offset, pieces) == (entries, 1)
    assert oracle.decode(words, order, base_bits, offset) == (entries, True)


@PATIENT
@given(st.lists(st.integers(0, 2**32 - 1), max_size=20), ORDER, BASES, st.integers(1, 5))
def test_random_words_equal_the_oracle(words, order, base_bits, pieces):
    entries, status = decode(words, order, base_bits, 0, pieces)
    wanted, ended = oracle.decode(words, order, base_bits, 0)
    assert entries == wanted
    assert (status == 1) == ended


def test_the_choppers_small_differences_make_what_follows_late():
    words, written, _ = encode([(10, 0), (11, 1), (11, 0), (50, 1)], 17, 1, 0, as_chopper=True)
    assert written == [True, True, False, True]
    assert decode(words, 17, 1, 0, 1) == ([(10, 0), (13, 1), (52, 1)], 1)


def test_what_is_wrong_is_told():
    assert encode([(5, 0), (4, 0)], 17, 1, 0)[2] == -2
    assert encode([(5, 2)], 17, 1, 0)[2] == -1
    assert encode([(2**32, 0)], 17, 1, 0)[2] == -1
    assert decode(oracle.words_of(oracle.bits_of(1, 17) + "1"), 17, 1, 0, 1) == ([], 2)
    below_0 = oracle.words_of(oracle.bits_of(0, 17) + oracle.bits_of(1, 32) + "1")
    assert decode(below_0, 17, 1, 2, 1) == ([], 2)


@PATIENT
@given(
    st.integers(1, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), max_size=50)))
)
def test_values_come_back(drawn):
    bits, values = drawn
    word, found = np.empty((len(values) * bits + 31) // 32, np.uint32), np.empty(len(values), np.uint8)
    assert epoch.pack_values(np.array(values, np.uint8), bits, word) == len(word)
    assert word.tolist() == oracle.words_of("".join(oracle.bits_of(value, bits) for value in values))
    epoch.unpack_values(word, bits, found)
    assert found.tolist() == values


def test_wrong_arguments_are_refused():
    word, time, byte, state = (
        np.zeros(9, np.uint32),
        np.zeros(1, np.int64),
        np.zeros(1, np.uint8),
        np.zeros(1, np.int64),
    )
    for order, bases, bit in ((1, 0, 0), (33, 0, 0), (4, 9, 0), (4, 0, 32)):
        with pytest.raises(ValueError, match="outside"):
            epoch.decode_differences(word, bit, order, bases, 0, LIMIT, time, byte, state)
    with pytest.raises(ValueError, match="same length"):
        epoch.decode_differences(word, 0, 4, 0, 0, LIMIT, time, byte[:0], state)
    with pytest.raises(ValueError, match="too short"):
        epoch.encode_differences(time, byte, 4, 0, 0, False, word[:2], byte)
    with pytest.raises(ValueError, match="offset"):
        epoch.encode_differences(time, byte, 4, 0, 1, False, word, byte)
    with pytest.raises(ValueError, match="more bits"):
        epoch.pack_values(np.full(1, 2, np.uint8), 1, word)
    with pytest.raises(ValueError, match="too short"):
        epoch.unpack_values(word[:0], 8, byte)

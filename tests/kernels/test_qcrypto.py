import numpy as np
import oracle_qcrypto as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw._core import qcrypto

PATIENT = settings(deadline=None, max_examples=200)  # the machine may be busy

WORDS = st.lists(
    st.one_of(
        st.integers(0, 2**64 - 1),
        # Times near both ends of the counter, so that it wraps and steps back over the wrap.
        st.tuples(st.sampled_from([0, 2**64 - 2**20]), st.integers(0, 2**20 - 1)).map(sum),
    ),
    max_size=40,
)


# Rising times of single inputs and dummies, so that whole blocks of words are alike.
CALM = st.lists(
    st.tuples(st.integers(0, 2**30), st.sampled_from([1, 2, 4, 8, 16, 1, 2, 4, 8, 3, 0])), min_size=8, max_size=60
).map(
    lambda rows: [
        int(t) << 15 | low for t, low in zip(np.cumsum([s for s, _ in rows]), [p for _, p in rows], strict=True)
    ]
)


def swapped(word):
    return (word & 0xFFFFFFFF) << 32 | word >> 32


def run(words, cuts, time_bits, high_word_first, portable=False):
    word = np.array(words, np.uint64)
    word.flags.writeable = False
    state, patterns, events = np.array([-1, 0, 0, 0, -1], np.int64), np.zeros(16, np.int64), []
    for part in np.split(word, sorted(min(cut, len(word)) for cut in cuts)):
        n = 4 * len(part)
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        count = qcrypto.decode_words(part, time_bits, high_word_first, time, channel, kind, patterns, state, portable)
        events += zip(time[:count].tolist(), channel[:count].tolist(), kind[:count].tolist(), strict=True)
    return events, patterns.tolist(), int(state[2]), int(state[3]), int(state[4])


@PATIENT
@given(WORDS | CALM, st.lists(st.integers(0, 40), max_size=2), st.sampled_from([49, 54]), st.booleans(), st.booleans())
def test_equals_the_oracle_for_any_split(words, cuts, time_bits, high_word_first, portable):
    words = [swapped(word) for word in words] if high_word_first else words
    events, patterns, dummies, invalid, _ = run(words, cuts, time_bits, high_word_first, portable)
    assert (events, patterns, dummies) == oracle.decode(words, time_bits, high_word_first)
    assert invalid == 0


FAST_WORDS = st.lists(
    st.integers(0, 2**32 - 1)
    | st.just(0)
    | st.tuples(st.sampled_from([0, 2**32 - 2**14]), st.integers(0, 2**14 - 1)).map(sum),
    max_size=40,
)


@PATIENT
@given(FAST_WORDS, st.lists(st.integers(0, 40), max_size=3))
def test_fast_mode_equals_the_oracle_for_any_split(words, cuts):
    word = np.array(words, np.uint32)
    state, patterns, events = np.array([-1, 0, 0, 0, -1, 0], np.int64), np.zeros(16, np.int64), []
    for part in np.split(word, sorted(min(cut, len(word)) for cut in cuts)):
        n = 4 * len(part)
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        count = qcrypto.decode_fast_words(part, time, channel, kind, patterns, state)
        events += zip(time[:count].tolist(), channel[:count].tolist(), kind[:count].tolist(), strict=True)
    assert (events, patterns.tolist(), int(state[2]), int(state[5])) == oracle.decode_fast(words)


def test_dummies_half_a_round_apart_carry_fast_mode_over_a_silence():
    # As a TDC2 sends them: not quite half a round apart, either way.
    words = [(time % 2**26) << 6 | 0x38 for time in (2**25 - 5, 2**26, 2**26 + 2**25 - 3, 2**27 - 8)]
    time, channel, kind = np.empty(16, np.int64), np.empty(16, np.uint8), np.empty(16, np.uint8)
    state = np.array([-1, 0, 0, 0, -1, 0], np.int64)
    count = qcrypto.decode_fast_words(np.array(words, np.uint32), time, channel, kind, np.zeros(16, np.int64), state)
    assert time[:count].tolist() == [2**25 - 5, 2**26, 2**26 + 2**25 - 3, 2**27 - 8]


def test_several_inputs_of_one_word_are_events_of_the_same_time():
    events, patterns, _, _, _ = run([1000 << 10 | 0b1011], [], 54, False)
    assert events == [(1000, 1, 0), (1000, 2, 0), (1000, 4, 0)]
    assert patterns[0b1011] == 1


def test_the_counter_is_unwrapped_but_small_steps_back_stay():
    top = 2**54 - 1
    events, _, _, _, _ = run([t << 10 | 1 for t in (top - 5, top, 3, top - 1, 4, 2)], [], 54, False)
    assert [time for time, _, _ in events] == [top - 5, top, top + 4, top - 1, top + 5, top + 3]


def test_endless_wrapping_is_refused_before_time_leaves_int64():
    words = [t << 10 | 1 for t in (0, 2**52, 2**53, 2**54 - 1)] * 400
    events, _, _, invalid, first_invalid = run(words, [], 54, False)
    assert invalid > 0
    assert first_invalid == 4 * 257  # 256 wraps are 2^62 ticks
    assert max(time for time, _, _ in events) < 2**63
    assert sum(kind == 255 for _, _, kind in events) == invalid


def test_wrong_arguments_are_refused():
    word, time, byte = np.zeros(2, np.uint64), np.zeros(8, np.int64), np.zeros(8, np.uint8)
    patterns, state = np.zeros(16, np.int64), np.zeros(5, np.int64)
    with pytest.raises(ValueError, match="four times"):
        qcrypto.decode_words(word, 54, False, time[:7], byte, byte, patterns, state)
    with pytest.raises(ValueError, match="time_bits"):
        qcrypto.decode_words(word, 53, False, time, byte, byte, patterns, state)
    with pytest.raises(ValueError, match="pattern_count"):
        qcrypto.decode_words(word, 54, False, time, byte, byte, patterns[:15], state)
    fast = np.zeros(2, np.uint32)
    with pytest.raises(ValueError, match="four times"):
        qcrypto.decode_fast_words(fast, time[:7], byte, byte, patterns, np.zeros(6, np.int64))
    with pytest.raises(ValueError, match="state 6"):
        qcrypto.decode_fast_words(fast, time, byte, byte, patterns, state)

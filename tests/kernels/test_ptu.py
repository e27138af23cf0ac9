import numpy as np
import oracle_ptu as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw._core import ptu

PATIENT = settings(deadline=None, max_examples=200)  # the machine may be busy

ANY_WORD = st.integers(0, 2**32 - 1)


def special_word(source_bits, source):
    return st.integers(0, 2 ** (32 - source_bits) - 1).map(lambda low: source << (32 - source_bits) | low)


# Random words are almost never overflows, markers or syncs of the rarer sorts: ask for them.
PICOHARP = st.lists(
    st.one_of(
        ANY_WORD, special_word(4, 15), st.integers(0, 15).map(lambda m: 15 << 28 | m << 16 | 3), st.just(15 << 28)
    ),
    max_size=90,
)
HYDRAHARP = st.lists(
    st.one_of(
        ANY_WORD,
        *(special_word(7, 64 | source) for source in (63, 63, 0, 1, 15, 16, 62)),
        st.integers(0, 300).map(lambda count: 0x7F << 25 | count),
    ),
    max_size=90,
)
CUTS = st.lists(st.integers(0, 90), max_size=2)
# Mostly inputs, so that whole blocks of records are valid.
CALM = st.lists(
    st.one_of(
        *[st.integers(0, 2**31 - 1)] * 12,
        st.integers(0, 300).map(lambda count: 0x7F << 25 | count),
        special_word(7, 65),
    ),
    min_size=16,
    max_size=90,
)


def run(decode, words, cuts, *, fine=False):
    """Decode words cut anywhere into chunks; return what the oracles return."""
    record = np.array(words, np.uint32)
    record.flags.writeable = False
    state = np.zeros(4, np.int64)
    events, invalid, start = [], [], 0
    for part in np.split(record, sorted(min(cut, len(record)) for cut in cuts)):
        n = len(part)
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        delay = np.empty(n, np.uint16)
        before = int(state[2])
        count = decode(part, (time, delay) if fine else (time,), channel, kind, state)
        columns = [time, channel, kind, delay] if fine else [time, channel, kind]
        events += zip(*(column[:count].tolist() for column in columns), strict=True)
        if state[2] > before:
            assert state[3] >= 0
            invalid.append((start + int(state[3]), int(state[2]) - before))
        else:
            assert state[3] == -1
        start += n
    return events, int(state[1]), invalid


def check(answer, wanted):
    events, overflows, invalid = answer
    wanted_events, wanted_overflows, wanted_invalid = wanted
    assert events == wanted_events
    assert overflows == wanted_overflows
    assert sum(count for _, count in invalid) == len(wanted_invalid)
    if invalid:
        assert invalid[0][0] == wanted_invalid[0]


@PATIENT
@given(PICOHARP, CUTS)
def test_picoharp_t2_equals_the_oracle_for_any_split(words, cuts):
    check(run(lambda r, t, c, k, s: ptu.decode_picoharp_t2(r, *t, c, k, s), words, cuts), oracle.picoharp_t2(words))


@PATIENT
@given(PICOHARP, CUTS)
def test_picoharp_t3_equals_the_oracle_for_any_split(words, cuts):
    answer = run(lambda r, t, c, k, s: ptu.decode_picoharp_t3(r, *t, c, k, s), words, cuts, fine=True)
    check(answer, oracle.picoharp_t3(words))


@PATIENT
@given(HYDRAHARP | CALM, CUTS, st.sampled_from([(33554432, True), (33552000, False)]), st.booleans())
def test_hydraharp_t2_equals_the_oracle_for_any_split(words, cuts, version, portable):
    answer = run(lambda r, t, c, k, s: ptu.decode_hydraharp_t2(r, *version, *t, c, k, s, portable), words, cuts)
    check(answer, oracle.hydraharp_t2(words, *version))


@PATIENT
@given(HYDRAHARP | CALM, CUTS, st.booleans(), st.booleans())
def test_hydraharp_t3_equals_the_oracle_for_any_split(words, cuts, counted, portable):
    answer = run(
        lambda r, t, c, k, s: ptu.decode_hydraharp_t3(r, counted, *t, c, k, s, portable), words, cuts, fine=True
    )
    check(answer, oracle.hydraharp_t3(words, counted))


def decode_t2(words):
    return run(lambda r, t, c, k, s: ptu.decode_hydraharp_t2(r, 33554432, True, *t, c, k, s), words, [])


def test_an_overflow_record_of_298_counts_needs_64_bits():
    events, overflows, _ = decode_t2([5, 0x7F << 25 | 298 | 1 << 31, 7])
    assert events == [(5, 1, 0), (298 * 33554432 + 7, 1, 0)]
    assert overflows == 1


def test_the_largest_overflow_count_is_exact_and_endless_overflow_is_refused():
    full = 0xFFFFFFFF
    events, overflows, invalid = decode_t2([full] * 3000 + [1])
    assert overflows == 2**61 // (33554431 * 33554432)
    base = overflows * 33554431 * 33554432
    assert events == [(base, 0, 255)] * (3000 - overflows) + [(base + 1, 1, 0)]
    assert invalid == [(overflows, 3000 - overflows)]


@pytest.mark.parametrize("n", [0, 1])
def test_shortest_inputs(n):
    events, _, _ = decode_t2([7] * n)
    assert events == [(7, 1, 0)] * n


def test_wrong_lengths_are_refused():
    record, time, byte, state = (
        np.zeros(2, np.uint32),
        np.zeros(2, np.int64),
        np.zeros(2, np.uint8),
        np.zeros(4, np.int64),
    )
    fine = np.zeros(2, np.uint16)
    with pytest.raises(ValueError, match="shorter"):
        ptu.decode_hydraharp_t2(record, 33554432, True, time[:1], byte, byte, state)
    with pytest.raises(ValueError, match="state"):
        ptu.decode_hydraharp_t2(record, 33554432, True, time, byte, byte, state[:3])
    with pytest.raises(ValueError, match="wrap_ticks"):
        ptu.decode_hydraharp_t2(record, 0, True, time, byte, byte, state)
    with pytest.raises(ValueError, match="fine"):
        ptu.decode_hydraharp_t3(record, True, time, fine[:1], byte, byte, state)
    with pytest.raises(ValueError, match="fine"):
        ptu.decode_picoharp_t3(record, time, fine[:1], byte, byte, state)
    with pytest.raises(ValueError, match="shorter"):
        ptu.decode_picoharp_t2(record, time, byte[:1], byte, state)


@pytest.mark.parametrize("between", [0, 1, 15, 700])
def test_overflows_up_to_the_largest_time_are_added_alike(between):
    """Each of these adds 2^50 ticks: at 2^61 the rest is invalid, wherever blocks of the fast loop begin."""
    record = np.zeros(2200 * (between + 1), np.uint32)
    record[:: between + 1] = 0xFE000000 | 0x1FFFFFF
    found = []
    for portable in (False, True):
        columns = np.empty(len(record), np.int64), np.empty(len(record), np.uint8), np.empty(len(record), np.uint8)
        state = np.zeros(4, np.int64)
        n = ptu.decode_hydraharp_t2(record, 1 << 25, True, *columns, state, portable)
        found.append(([column[:n].tolist() for column in columns], state.tolist()))
    assert found[0] == found[1]
    assert (1 << 61) - (1 << 51) < found[0][1][0] <= 1 << 61
    assert found[0][1][2] > 100

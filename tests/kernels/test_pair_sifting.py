"""Sifting of pairs equals its oracle however events are cut, both sites hold the same positions, hostile bytes do no harm."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_pair_sifting import PairOracle, encode_gaps

from pair_source import entangled_source, error_rate
from qkdhw._core.pair_sifting import check_events, read_times, sift_announced
from qkdhw.errors import PeerProtocolError
from qkdhw.postprocessing.announced_times import announced_times
from qkdhw.postprocessing.pair_sifting import AnnouncedClock, PairAnnouncer, PairSifter

CLOCK = AnnouncedClock(1_234_567, Fraction(1))
WIDTHS = {"window_ticks": 10, "tracking_ticks": 40}


def events(gaps, detectors):
    n = min(len(gaps), len(detectors))
    return np.cumsum(np.array(gaps[:n], np.int64)), np.array(detectors[:n], np.uint8)


def feed(sifter, ticks, detectors, cuts):
    """Add own events cut at these places, and collect the answers in between."""
    answers = []
    for begin, end in zip([0, *cuts], [*cuts, len(ticks)], strict=True):
        sifter.add_events(ticks[begin:end], detectors[begin:end])
        answers += sifter.answers()
    sifter.close()
    return [*answers, *sifter.answers()]


def facts(answer):
    sifted = answer.sifted
    return answer.reply, sifted.kept.tolist(), sifted.key_bits.tolist(), sifted.test_bits.tolist(), answer.counts


def equals_oracle(answer, want):
    counts, sifted = answer.counts, answer.sifted
    assert sifted.kept.tolist() == want.kept
    assert np.unpackbits(sifted.key_bits, count=sifted.n_key).tolist() == want.key
    assert np.unpackbits(sifted.test_bits, count=sifted.n_test).tolist() == want.test
    assert [counts.matched, counts.several, counts.contested, counts.edge] == want.counts
    assert answer.reply[12:] == encode_gaps(want.kept, [], 0, 1)


detector_lists = st.lists(st.integers(0, 3), max_size=50)
gap_lists = st.lists(st.integers(0, 12) | st.integers(0, 400), min_size=50, max_size=50)


@given(
    gap_lists, detector_lists, gap_lists, detector_lists, st.fractions(Fraction(1, 7), 9), st.integers(-60, 60),
    st.sampled_from([(0, 1), (3, 4), (10, 40)]), st.sampled_from([0, 1024]), st.data(),
)  # fmt: skip
def test_sifting_equals_the_oracle_and_both_sites_agree(
    own_gaps, own_detectors, gaps, detectors, rate, offset, widths, servo_pairs, data
):
    own, theirs = events(own_gaps, own_detectors), events(gaps, detectors)
    own = (own[0] * int(rate + 1), own[1])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(own[0])), max_size=6)))
    cut = data.draw(st.integers(0, len(theirs[0])))
    announcer = PairAnnouncer()
    sifter = PairSifter(
        AnnouncedClock(offset, rate), window_ticks=widths[0], tracking_ticks=widths[1], servo_pairs=servo_pairs
    )
    oracle = PairOracle(own[0].tolist(), own[1].tolist(), round(rate * 2**48), offset, *widths, servo_pairs)
    parts = [(theirs[0][:cut], theirs[1][:cut]), (theirs[0][cut:], theirs[1][cut:])]
    messages = [announcer.announce(*part) for part in parts]
    for message in messages:
        sifter.add_announcement(message)
    answers = feed(sifter, *own, cuts)
    for message, part, answer in zip(messages, parts, answers, strict=True):
        first = struct.unpack_from("<q", message, 12)[0]
        equals_oracle(answer, oracle.sift(first, part[0].tolist(), (part[1] >> 1).tolist()))
        there = announcer.accept(answer.reply)
        assert there.kept.tolist() == answer.sifted.kept.tolist()
        chosen = part[1][there.kept]
        assert np.unpackbits(there.key_bits, count=there.n_key).tolist() == (chosen[chosen < 2] & 1).tolist()
        assert np.unpackbits(there.test_bits, count=there.n_test).tolist() == (chosen[chosen > 1] & 1).tolist()
    assert sifter.servo_ticks == Fraction(oracle.servo_q32, 2**32)


@pytest.fixture(scope="module")
def source():
    own, theirs = entangled_source(duration_s=0.05)
    announcer = PairAnnouncer()
    size = len(theirs[0]) // 3 + 1
    messages = [announcer.announce(theirs[0][i : i + size], theirs[1][i : i + size]) for i in range(0, 3 * size, size)]
    return own, theirs, size, messages


def sift_whole(source, **options):
    own, _, _, messages = source
    sifter = PairSifter(CLOCK, **WIDTHS, **options)
    for message in messages:
        sifter.add_announcement(message)
    return feed(sifter, *own, [])


def test_a_source_s_pairs_equal_the_oracle(source):
    own, theirs, size, _ = source
    oracle = PairOracle(own[0].tolist(), own[1].tolist(), 1 << 48, CLOCK.offset_ticks, 10, 40, 1024)
    for answer, i in zip(sift_whole(source), range(0, 3 * size, size), strict=True):
        units, bases = theirs[0][i : i + size].tolist(), (theirs[1][i : i + size] >> 1).tolist()
        equals_oracle(answer, oracle.sift(units[0], units, bases))
    assert oracle.drift_q48 != 0


@pytest.mark.parametrize(
    "cuts",
    [range(0, 50_000, 9), [1, 2, 20_000, 20_001, 26_000, 40_000], [10_000, 14_096, 14_097, 30_000]],
    ids=["small", "mixed", "bridged"],
)
@pytest.mark.parametrize("announced", ["before", "between", "after"])
def test_any_cut_of_own_events_gives_the_same(source, cuts, announced):
    own, _, _, messages = source
    sifter = PairSifter(CLOCK, **WIDTHS)
    cuts = [cut for cut in cuts if cut <= len(own[0])]
    waiting, answers = list(messages), []
    for i, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(own[0])], strict=True)):
        while waiting and (announced == "before" or (announced == "between" and i % 3 == 1)):
            sifter.add_announcement(waiting.pop(0))
            if announced == "between":
                break
        sifter.add_events(own[0][begin:end], own[1][begin:end])
        answers += sifter.answers()
    sifter.close()
    for message in waiting:
        sifter.add_announcement(message)
    answers += sifter.answers()
    assert [facts(a) for a in answers] == [facts(a) for a in sift_whole(source)]


@pytest.mark.parametrize("cuts", [[5, 6000], [3000], range(0, 12_000, 700)])
@pytest.mark.parametrize(("window", "tracking"), [(3, 4), (10, 40)])
def test_crowded_windows_are_cut_alike(cuts, window, tracking):
    rng = np.random.default_rng(4)
    own = np.sort(rng.integers(0, 60, 12_000)), rng.integers(0, 4, 12_000, dtype=np.uint8)
    message = PairAnnouncer().announce(np.sort(rng.integers(0, 60, 3000)), rng.integers(0, 4, 3000, dtype=np.uint8))
    found = []
    for cut in ([], list(cuts)):
        sifter = PairSifter(AnnouncedClock(0, Fraction(1)), window_ticks=window, tracking_ticks=tracking)
        sifter.add_announcement(message)
        found.append([facts(answer) for answer in feed(sifter, *own, cut)])
    assert found[0] == found[1]
    assert found[0][0][-1].several > 1000


@pytest.mark.parametrize("cuts", [[], [1], [1, 2], [2]])
@pytest.mark.parametrize("next_ticks", [15, 16, 17, 18, 30])  # the stream is cut before, between and after the two
def test_an_event_is_taken_once_wherever_the_stream_is_cut(cuts, next_ticks):
    one = np.zeros(2, np.uint8)
    sifter = PairSifter(AnnouncedClock(0, Fraction(1)), window_ticks=3, tracking_ticks=6)
    sifter.add_announcement(PairAnnouncer().announce(np.array([10, 11]), one))
    own = np.array([12, next_ticks, 500])
    (answer,) = feed(sifter, own, np.zeros(3, np.uint8), cuts)
    assert (answer.counts.matched, answer.sifted.kept.tolist()) == (1, [0])


def test_error_rate_and_sizes_are_as_expected():
    own, theirs = entangled_source(duration_s=1.0, seed=3)
    announcer, sifter = PairAnnouncer(), PairSifter(CLOCK, **WIDTHS)
    message = announcer.announce(*theirs)
    sifter.add_announcement(message)
    (answer,) = feed(sifter, *own, [])
    there = announcer.accept(answer.reply)
    kept, counts = len(there.kept), answer.counts
    expected = 0.02 + 0.48 * counts.accidentals / counts.matched
    assert abs(error_rate([answer.sifted], [there]) - expected) < 5 * (expected / kept) ** 0.5
    assert 8 * len(message) < 17.4 * len(theirs[0])
    assert 8 * len(answer.reply) < 4.2 * kept
    assert 49_000 < kept < 51_500


def test_bits_choose_nothing(source):
    own, theirs, size, messages = source
    announcer = PairAnnouncer()
    flipped = [
        announcer.announce(theirs[0][i : i + size], theirs[1][i : i + size] ^ 1) for i in range(0, 3 * size, size)
    ]
    assert flipped == messages
    other = sift_whole(((own[0], own[1] ^ 1), theirs, size, messages))
    assert [a.reply for a in other] == [a.reply for a in sift_whole(source)]


@pytest.mark.parametrize(("servo_pairs", "least", "most"), [(0, -0.01, 0.1), (1024, 0.97, 1.02)])
def test_the_servo_follows_a_drift_without_lag(servo_pairs, least, most):
    drift = 2e-7  # 1,600 ticks in this second, 160 windows
    own, theirs = entangled_source(duration_s=1.0, singles=(3e5, 2e5), rate=1 + drift)
    announcer, sifter = PairAnnouncer(), PairSifter(CLOCK, **WIDTHS, servo_pairs=servo_pairs)
    quarter = len(theirs[0]) // 4
    for i in range(0, 4 * quarter, quarter):
        sifter.add_announcement(announcer.announce(theirs[0][i : i + quarter], theirs[1][i : i + quarter]))
    for answer in feed(sifter, *own, [])[1:]:  # the first quarter is to catch up
        assert least <= (answer.counts.matched - answer.counts.accidentals) / 25_000 <= most
    if servo_pairs:
        assert abs(float(sifter.servo_ticks) - drift * theirs[0][4 * quarter - 1]) < 1


def test_accidentals_are_counted_right():
    own, theirs = entangled_source(duration_s=1.0, singles=(1e6, 3e5), pairs=1.0)
    sifter = PairSifter(CLOCK, **WIDTHS)
    sifter.add_announcement(PairAnnouncer().announce(*theirs))
    (answer,) = feed(sifter, *own, [])
    assert abs(answer.counts.accidentals - answer.counts.matched) < 5 * (2 * answer.counts.matched) ** 0.5


def test_accidentals_of_many_small_announcements_add_up_right():
    own, theirs = entangled_source(duration_s=1.0, singles=(1e6, 3e5), pairs=1.0)
    announcer, sifter = PairAnnouncer(max_waiting=10_000), PairSifter(CLOCK, **WIDTHS, max_waiting=10_000)
    for i in range(0, len(theirs[0]), 600):  # about one accidental in each
        sifter.add_announcement(announcer.announce(theirs[0][i : i + 600], theirs[1][i : i + 600]))
    counts = [answer.counts for answer in feed(sifter, *own, [])]
    matched = sum(each.matched for each in counts)
    assert 0.3 < matched / len(counts) < 3
    assert abs(sum(each.accidentals for each in counts) - matched) < 5 * (2 * matched) ** 0.5


@given(st.data())
def test_hostile_announcements_are_refused_and_forgotten(source, data):
    own, _, _, messages = source
    good = messages[0][:300]
    header = data.draw(st.sampled_from([good[:20], good[:8] + struct.pack("<Iq", 40, 5), bytes(20)]))
    body = data.draw(st.binary(max_size=60) | st.integers(0, 280).map(lambda n: good[20 : 20 + n]))
    message = bytearray(header + body)
    for place in data.draw(st.lists(st.integers(0, len(message) - 1), max_size=3)):
        message[place] = data.draw(st.integers(0, 255))
    sifter = PairSifter(CLOCK, **WIDTHS)
    sifter.add_events(own[0][:2000], own[1][:2000])
    sifter.close()
    try:
        sifter.add_announcement(bytes(message))
        (answer,) = sifter.answers()
    except PeerProtocolError as error:
        refusal = str(error)
    else:
        assert all(0 <= i < answer.counts.announced for i in answer.sifted.kept)
        assert len(announced_times(bytes(message))[1]) == answer.counts.announced
        return
    assert "byte " in refusal
    with pytest.raises(PeerProtocolError) as read:
        announced_times(bytes(message))
    assert str(read.value) == refusal
    assert sifter.servo_ticks == 0
    assert list(sifter.answers()) == []


def test_after_a_bad_announcement_the_next_is_answered(source):
    own, _, _, messages = source
    sifter = PairSifter(CLOCK, **WIDTHS)
    sifter.add_events(*own)
    sifter.close()
    for message in (messages[0][:-1], messages[1], messages[2]):
        sifter.add_announcement(message)
    with pytest.raises(PeerProtocolError, match=f"byte {len(messages[0]) - 3}|byte {len(messages[0]) - 4}"):
        list(sifter.answers())
    assert sifter.servo_ticks == 0
    kept = [len(a.sifted.kept) for a in sifter.answers()]
    want = [len(a.sifted.kept) for a in sift_whole(source)]
    assert np.abs(np.subtract(kept, want[1:])).max() < 10  # the servo did not see the first


@given(st.data())
def test_hostile_replies_are_refused_or_within_range(data):
    announcer = PairAnnouncer()
    announcer.announce(np.arange(50), np.zeros(50, np.uint8))
    reply = bytearray(
        struct.pack("<4sII", b"QPR\x01", 0, data.draw(st.integers(0, 60))) + data.draw(st.binary(max_size=30))
    )
    for place in data.draw(st.lists(st.integers(0, len(reply) - 1), max_size=1)):
        reply[place] = data.draw(st.integers(0, 255))
    try:
        kept = announcer.accept(bytes(reply)).kept
    except PeerProtocolError as error:
        refusal = str(error)
    else:
        assert ((kept >= 0) & (kept < 50)).all()
        assert (np.diff(kept) > 0).all()
        return
    assert "byte " in refusal
    assert announcer.accept(struct.pack("<4sII", b"QPR\x01", 0, 0)).n_key == 0


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (b"", 0),
        (struct.pack("<4sIIq", b"QPA\x02", 0, 0, 0), 0),
        (struct.pack("<4sIIq", b"QPA\x01", 0, 5, 0) + bytes(1), 8),
        (struct.pack("<4sIIq", b"QPA\x01", 0, 0, 1 << 62), 12),
    ],
)
def test_bad_headers_are_refused_at_once(message, place):
    with pytest.raises(PeerProtocolError, match=f"byte {place}:"):
        PairSifter(CLOCK, **WIDTHS).add_announcement(message)


@pytest.mark.parametrize(
    ("n", "first", "body", "place"),
    [
        (1, 0, b"\xa0", 20),  # padding
        (1, 0, b"\x20\x00", 21),  # a byte too many
        (2, 0, b"\x20", 20),  # stops before the second detection
        (1, 1 << 60, b"\x40", 20),  # 2^60 + 1 is above the limit
        (1, 0, b"\x00\x00\x00\xe0" + bytes(8), 20),  # 7 in the long form
        (1, 0, b"\x00\x00\x00\xe0" + bytes(7), 20),  # the long form stops early
        (0, 0, b"\x00", 20),
    ],
)
def test_the_first_wrong_byte_of_an_announcement_is_named(n, first, body, place):
    sifter = PairSifter(CLOCK, **WIDTHS)
    sifter.close()
    message = struct.pack("<4sIIq", b"QPA\x01", 0, n, first) + body
    sifter.add_announcement(message)
    with pytest.raises(PeerProtocolError, match=f"byte {place}:"):
        list(sifter.answers())
    with pytest.raises(PeerProtocolError, match=f"byte {place}:"):
        announced_times(message)


@given(st.integers(0, 7).map(lambda n: 341 * n), st.integers(0, 40), st.integers(-(2**59), 2**59))
def test_the_times_of_an_announcement_are_those_that_were_announced(n, bits, first):
    rng = np.random.default_rng(n + bits)
    times = first + np.cumsum(rng.integers(0, 1 << bits, n))
    message = PairAnnouncer().announce(times, rng.integers(0, 4, n, dtype=np.uint8))
    assert announced_times(message)[1].tolist() == times.tolist()


def test_a_place_outside_a_message_is_refused():
    for size, bit in ((7, 0), (8, 1), (9, 9), (9, -1)):
        with pytest.raises(ValueError, match="8 bytes more"):
            read_times(np.zeros(size, np.uint8), bit, 0, 100, np.zeros(1, np.int64))


def test_announcements_may_be_lost_but_not_repeated_nor_flood(source):
    _, _, _, messages = source
    sifter = PairSifter(CLOCK, **WIDTHS, max_waiting=2)
    sifter.add_announcement(messages[1])
    assert sifter.lost_announcements == 1
    for message in messages[:2]:
        with pytest.raises(PeerProtocolError, match="byte 4: its number"):
            sifter.add_announcement(message)
    sifter.add_announcement(messages[2])
    with pytest.raises(PeerProtocolError, match="byte 4: 2 others wait"):
        sifter.add_announcement(struct.pack("<4sIIq", b"QPA\x01", 9, 0, 0))


def test_time_may_not_go_back_between_announcements(source):
    own, _, _, messages = source
    sifter = PairSifter(CLOCK, **WIDTHS)
    sifter.add_events(*own)
    sifter.close()
    sifter.add_announcement(messages[0])
    sifter.add_announcement(struct.pack("<4sIIq", b"QPA\x01", 1, 0, 5))
    answers = sifter.answers()
    next(answers)
    with pytest.raises(PeerProtocolError, match="byte 12: its first time 5"):
        next(answers)


def test_own_events_beyond_the_limit_are_dropped_and_counted(source):
    own, *_ = source
    sifter = PairSifter(CLOCK, **WIDTHS, max_events=1000)
    sifter.add_events(own[0][:900], own[1][:900])
    sifter.add_events(own[0][900:1100], own[1][900:1100])
    sifter.add_events(own[0][1100:1200], own[1][1100:1200])
    assert sifter.dropped_events == 200


def test_events_that_are_done_make_room():
    own, theirs = entangled_source(duration_s=0.5)
    sifter = PairSifter(CLOCK, **WIDTHS, max_events=4230)
    sifter.add_announcement(PairAnnouncer().announce(*theirs))
    (answer,) = feed(sifter, *own, list(range(0, len(own[0]), 4200)))
    assert sifter.dropped_events == 0
    assert len(answer.sifted.kept) > 24_000


def test_replies_to_nothing_are_refused():
    announcer = PairAnnouncer(max_waiting=1)
    announcer.announce(np.arange(3), np.arange(3, dtype=np.uint8))
    with pytest.raises(ValueError, match="wait"):
        announcer.announce(np.arange(3, 5), np.zeros(2, np.uint8))
    with pytest.raises(PeerProtocolError, match="byte 4"):
        announcer.accept(struct.pack("<4sII", b"QPR\x01", 7, 0))
    announcer.forget(0)
    with pytest.raises(PeerProtocolError, match="byte 4"):
        announcer.accept(struct.pack("<4sII", b"QPR\x01", 0, 0))


def test_what_cannot_be_is_refused():
    one, none = np.zeros(1, np.int64), np.empty(0, np.uint8)
    with pytest.raises(ValueError, match="order of time"):
        PairAnnouncer().announce(np.array([2, 1]), np.zeros(2, np.uint8))
    announcer = PairAnnouncer(unit_ticks=4)
    announcer.announce(np.array([-9, 9]), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="begin before"):
        announcer.announce(np.array([7]), np.zeros(1, np.uint8))
    sifter = PairSifter(CLOCK, **WIDTHS)
    with pytest.raises(ValueError, match="above 3"):
        sifter.add_events(one, np.array([4], np.uint8))
    with pytest.raises(ValueError, match="one length"):
        check_events(one, none, 0)
    sifter.add_events(one, np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="order of time"):
        sifter.add_events(one - 1, np.zeros(1, np.uint8))
    sifter.close()
    with pytest.raises(ValueError, match="close"):
        sifter.add_events(one, np.zeros(1, np.uint8))
    for options in (
        {"window_ticks": 4, "tracking_ticks": 4},
        {**WIDTHS, "servo_pairs": 1000},
        {**WIDTHS, "max_events": 0},
    ):
        with pytest.raises(ValueError, match=r"window_ticks|servo_pairs|max_"):
            PairSifter(CLOCK, **options)
    with pytest.raises(ValueError, match="range"):
        PairSifter(AnnouncedClock(0, Fraction(0)), **WIDTHS)


def test_the_kernel_refuses_arrays_that_do_not_fit():
    def call(message=8, n=1, limit=100, events=2, detectors=2, widths=(1, 3, 2), state=15, block=1024, out=1, counts=4):
        return sift_announced(
            np.zeros(message, np.uint8), n, limit, np.arange(events), np.zeros(detectors, np.uint8), 1 << 48, 0, *widths,
            1 << 20, np.zeros(state, np.int64), np.zeros(block, np.int64), np.zeros(block, np.uint8),
            np.zeros(out, np.int64), np.zeros(out, np.uint8), np.zeros(out, np.uint8), np.zeros(counts, np.int64),
        )  # fmt: skip

    assert call() == -1
    for wrong in (
        {"message": 7},
        {"limit": 1 << 61},
        {"detectors": 1},
        {"widths": (2, 1, 2)},
        {"state": 14},
        {"block": 9},
        {"out": 0},
        {"counts": 3},
    ):
        with pytest.raises(ValueError, match=r"needs|range|places"):
            call(**wrong)


def test_no_bit_is_printed_and_wiping_leaves_none(source):
    answer = sift_whole(source)[0]
    assert "bits=" not in repr(answer)
    answer.sifted.wipe()
    assert not answer.sifted.key_bits.any()
    assert not answer.sifted.test_bits.any()

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1, EventEncoder
from qkdhw_emulators.world import VirtualClock, World, serial_number

DUMMY_TICKS = 70_000_000


def decode(data):
    """Unwrapped times and patterns, dummies too; written from the manual, not from the emulator."""
    ticks, patterns, high, last = [], [], 0, 0
    for at in range(0, len(data), 4):
        word = int.from_bytes(data[at : at + 4], "little")
        if word >> 5 < last:
            high += 1 << 27
        last = word >> 5
        ticks.append(high + last)
        patterns.append(word & 31)
    return ticks, patterns


def read(unit, n_bytes, at_a_time=4096):
    out = b""
    while len(out) < n_bytes:
        piece = unit.read_stream(at_a_time)
        if not piece:
            break
        out += piece
    return out[:n_bytes]


def test_identity_and_help():
    unit = EmulatedSFifteenTdc1(World(seed=12))
    assert unit.receive(b"*idn?\r\n") == f"S-Fifteen Instruments TDC1 emulator {serial_number(12)}\r\n".encode()
    assert b"TIMESTAMP" in unit.receive(b"Help;")


@pytest.mark.parametrize(
    ("commands", "answers"),
    [
        (b"TIME?\r\n", b"1000\r\n"),
        (b"time 0;time?;", b"0\r\n"),
        (b"time 65535;time?\r", b"65535\r\n"),
        (b"time 65536;time -1;time x;time;time?\n", b"1000\r\n"),
        (b"mode?;pairs;mode?;timestamp;mode?;singles;mode?;", b"0\r\n1\r\n3\r\n0\r\n"),
        (b"level?;ttl;level?;nim;level?;", b"-0.50 V\r\n1.40 V\r\n-0.50 V\r\n"),
        (
            b"pos 1.25;level?;neg 2;level?;neg -0.3;level?;pos 9;pos x;level?;",
            b"1.25 V\r\n-2.00 V\r\n-0.30 V\r\n-0.30 V\r\n",
        ),
        (b"refclk?;refclk 2;refclk 5;refclk?;eclock?;", b"0\r\n2\r\n1\r\n"),
        (b"status?\r\n", b"0000 \r\n"),
        (b"time 5;pairs;*rst;time?;mode?;", b"1000\r\n0\r\n"),
        (b"inpkt\r\n;;\r\nnonsense 1 2;abort;", b""),
        (b"x" * 500 + b";time?;", b"1000\r\n"),
    ],
)
def test_commands(commands, answers):
    assert EmulatedSFifteenTdc1().receive(commands) == answers


def test_old_firmware_says_the_gate_as_a_negative_number():
    unit = EmulatedSFifteenTdc1(faults=[Fault.NEGATIVE_TIME])
    assert unit.receive(b"time 40000;time?;time 32767;time?;") == b"-25536\r\n32767\r\n"


def counts(unit, commands):
    """Open a gate and jump over it; nothing comes before its end."""
    assert unit.receive(commands) == b""
    wait_s = unit.wait_s()
    unit.world.clock.advance(0.999 * wait_s)
    assert unit.poll() == b""
    unit.world.clock.advance(unit.wait_s())
    assert unit.wait_s() == 0
    answer = unit.poll()
    assert answer.endswith(b"\r\n")
    assert unit.wait_s() is None
    return [int(n) for n in answer.split()]


def jumping(**options):
    return EmulatedSFifteenTdc1(World(clock=VirtualClock(pace=None)), **options)


def test_plain_counters_answer_after_the_gate():
    unit = jumping()
    singles = counts(unit, b"time 1000;singles;counts?\r\n")
    assert len(singles) == 4
    assert all(abs(n - 100) < 50 for n in singles)
    assert len(counts(unit, b"pairs;counts?\r\n")) == 8
    assert unit.receive(b"time 0;counts?\r\n") == b""
    assert unit.wait_s() is None


def test_abort_closes_the_gate():
    unit = jumping()
    unit.receive(b"counts?;abort;")
    unit.world.clock.advance(2)
    assert unit.poll() == b""


def test_counters_see_the_light():
    run = LinkRun(LinkParameters(), seed=1)
    run.start_transmitter(LinkParameters())
    bright = counts(jumping(light=run), b"singles;counts?;")
    run.stop_transmitter()
    dark = counts(jumping(light=run), b"singles;counts?;")
    assert min(bright[:2]) > 100 * max(dark)


def test_counters_see_the_signal():
    unit = jumping()
    unit.world.set_condition("signal_rate_hz", 4e6)
    assert counts(unit, b"time 500;singles;counts?;") == [500_000] * 4
    pairs = counts(unit, b"pairs;counts?;")
    assert all(abs(n - 1000) < 200 for n in pairs[4:])


@pytest.mark.parametrize(("rate_hz", "gate_ms"), [(1e6, 700), (1.0, 2000), (3_000_017, 269)])
def test_signal_is_even_and_ends_with_the_gate(rate_hz, gate_ms):
    unit = jumping()
    unit.world.set_condition("signal_rate_hz", rate_hz)
    unit.receive(b"time %d;timestamp;counts?;" % gate_ms)
    words = np.frombuffer(read(unit, 1 << 26, at_a_time=1 << 20), "<u4").astype(np.int64)
    ticks = words >> 5
    ticks += (1 << 27) * np.cumsum(np.concatenate([[0], np.diff(ticks) < 0]))
    per_wrap = max(4, round(rate_hz * 2**27 * 2e-9))
    step = 2**27 / per_wrap
    assert len(ticks) == pytest.approx(gate_ms * 500_000 / step, abs=1)
    assert np.abs(ticks - np.floor(np.arange(len(ticks)) * step)).max() <= 1
    assert ticks[-1] < gate_ms * 500_000
    assert set((words & 31).tolist()) == {1, 2, 4, 8}


def test_answers_of_a_burst_that_come_as_one_line():
    unit = EmulatedSFifteenTdc1()
    unit.world.set_condition("joined_answers", 1)
    assert unit.receive(b"time?;mode?;level?\r\n") == b"10000-0.50 V\r\n"


def test_external_clock():
    unit = EmulatedSFifteenTdc1()
    unit.faults.add(Fault.CLOCK_UNLOCK)
    assert unit.receive(b"eclock?;") == b"0\r\n"
    unit.faults.clear()
    unit.world.set_condition("reference_clock_connected", 0)
    assert unit.receive(b"eclock?;") == b"0\r\n"


def test_another_unit_and_another_firmware():
    unit = EmulatedSFifteenTdc1(World(seed=12), faults=[Fault.WRONG_IDENTITY])
    assert b"TDC1" not in unit.receive(b"*idn?;")
    unit.faults.clear()
    usual = unit.receive(b"*idn?;")
    unit.faults.add(Fault.WRONG_FIRMWARE)
    assert unit.receive(b"*idn?;") not in {usual, b""}


def test_stuck_values():
    unit = EmulatedSFifteenTdc1(faults=[Fault.STUCK_VALUE])
    assert unit.receive(b"time 5;time?;pos 1;level?;refclk 2;refclk?;") == b"1000\r\n-0.50 V\r\n0\r\n"


def test_a_power_cycle_forgets_everything():
    unit = jumping()
    unit.receive(b"time 5;pairs;ttl;refclk 1;counts?;sta")
    unit.reset_input()
    unit.power_cycle()
    assert unit.wait_s() is None
    assert unit.receive(b"time?;mode?;level?;refclk?;") == b"1000\r\n0\r\n-0.50 V\r\n0\r\n"


def test_a_full_buffer_stays_full_until_a_reset():
    unit = EmulatedSFifteenTdc1(faults=[Fault.FULL_BUFFER])
    unit.receive(b"timestamp;time 0;counts?;")
    assert unit.read_stream(4096) == b""
    unit.faults.clear()
    assert unit.read_stream(4096) == b""
    assert unit.receive(b"abort;status?;*rst;status?;timestamp;counts?;") == b"0010 \r\n0000 \r\n"
    assert unit.read_stream(4096)


def test_time_that_begins_below_its_wrap():
    plain, wrapped = EmulatedSFifteenTdc1(), EmulatedSFifteenTdc1(faults=[Fault.COUNTER_WRAP])
    for unit in (plain, wrapped):
        unit.receive(b"timestamp;time 0;counts?;")
    (ticks, kinds), (late, late_kinds) = decode(read(plain, 4000)), decode(read(wrapped, 4000))
    assert {b - a for a, b in zip(ticks, late, strict=True)} == {2**27 - 2**23}
    assert kinds == late_kinds


def test_steps_back():
    unit = EmulatedSFifteenTdc1(faults=[Fault.NON_MONOTONE])
    unit.receive(b"timestamp;time 0;counts?;")
    step = np.diff(np.frombuffer(read(unit, 4000), "<u4").astype(np.int64) >> 5)
    assert 60 < (step == -50).sum() < 130


def test_storm_of_dummies():
    unit = EmulatedSFifteenTdc1(faults=[Fault.DUMMY_STORM])
    unit.receive(b"timestamp;time 0;counts?;")
    _, kinds = decode(read(unit, 400_000))
    assert kinds.count(16) > 1000 * sum(kind != 16 for kind in kinds)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 300_000_000), max_size=12).map(lambda gaps: np.cumsum([0, *gaps])[1:]),
    st.lists(st.integers(0, 3_000_000_000), max_size=6).map(sorted),
)
def test_encoder_keeps_times_and_never_leaves_a_gap_above_140_ms(ticks, cuts):
    """However the events come in, the words are the same, and a reader can count every wrap."""
    patterns = (np.arange(ticks.shape[0]) % 15 + 1).astype(np.uint8)
    end = int(max([*cuts, *ticks, 0])) + 1
    whole = EventEncoder(0).encode(ticks, patterns, end)
    encoder, begun, pieces = EventEncoder(0), 0, b""
    for cut in [*cuts, end]:
        stop = int(np.searchsorted(ticks, cut))
        pieces += encoder.encode(ticks[begun:stop], patterns[begun:stop], cut)
        begun = stop
    assert pieces == whole
    got, kinds = decode(whole)
    photons = [i for i, kind in enumerate(kinds) if kind != 16]
    assert [got[i] for i in photons] == ticks.tolist()
    assert [kinds[i] for i in photons] == patterns.tolist()
    assert (np.diff([0, *got, end]) <= DUMMY_TICKS + 1).all()


def test_no_dummy_in_the_tick_of_an_event():
    words = EventEncoder(0).encode(np.array([DUMMY_TICKS]), np.array([3], np.uint8), DUMMY_TICKS + 1)
    assert decode(words) == ([DUMMY_TICKS], [3])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 200_000_000), max_size=5).map(sorted), st.integers(1, 400))
def test_encoder_ends_with_the_gate(ticks, gate_ms):
    gate = gate_ms * 500_000
    unique = np.unique(np.array(ticks, np.int64))
    encoder = EventEncoder(gate)
    got, _ = decode(encoder.encode(unique, np.ones(unique.shape[0], np.uint8), 200_000_001))
    assert encoder.ended == (gate <= 200_000_001)
    assert all(t < gate for t in got)
    assert set(unique[unique < gate].tolist()) <= set(got)


def test_stream_of_a_dark_unit_is_dark_counts_and_dummies_and_ends_with_the_gate():
    run = LinkRun(LinkParameters(dark_count_rate_hz=1.0), seed=4, transmitter=False)
    unit = EmulatedSFifteenTdc1(light=run)
    assert unit.receive(b"time 5000;timestamp;counts?\r\n") == b""
    ticks, patterns = decode(read(unit, 1 << 20))
    assert unit.read_stream(4096) == b""
    assert patterns.count(16) >= 20
    assert 5 <= sum(p != 16 for p in patterns) <= 45
    assert ticks[-1] < 2_500_000_000
    assert max(np.diff(ticks)) <= DUMMY_TICKS


def test_abort_ends_the_stream_and_what_follows_is_text():
    unit = EmulatedSFifteenTdc1()
    unit.receive(b"time 0;timestamp;counts?;")
    assert len(unit.read_stream(7)) == 4
    assert unit.receive(b"abort;status?;") == b"0000 \r\n"
    assert unit.read_stream(4096) == b""
    unit.receive(b"counts?;")
    assert read(unit, 64)
    unit.receive(b"*RST;")
    assert unit.read_stream(4096) == b""


def test_overflow_loses_events_and_sets_the_bit():
    good, bad = EmulatedSFifteenTdc1(), EmulatedSFifteenTdc1(faults=[Fault.OVERFLOW])
    for unit in (good, bad):
        unit.receive(b"time 2000;timestamp;counts?;")
    lost = len(read(good, 1 << 20)) - len(read(bad, 1 << 20))
    assert lost > 400
    assert bad.receive(b"abort;status?;") == b"0010 \r\n"
    assert good.receive(b"abort;status?;") == b"0000 \r\n"


@pytest.mark.parametrize("at_a_time", [4, 1000, 1 << 20])
def test_byte_slip_leaves_out_one_byte_in_65536(at_a_time):
    parameters = LinkParameters(dark_count_rate_hz=20_000.0)
    good = EmulatedSFifteenTdc1(light=LinkRun(parameters, seed=2, transmitter=False))
    bad = EmulatedSFifteenTdc1(light=LinkRun(parameters, seed=2, transmitter=False), faults=[Fault.BYTE_SLIP])
    for unit in (good, bad):
        unit.receive(b"time 0;timestamp;counts?;")
    whole, slipped = read(good, 140_000), read(bad, 139_000, at_a_time)
    expected = bytearray(whole)
    del expected[65535::65536]
    assert slipped == expected[:139_000]


COMMANDS = st.sampled_from([
    b"*IDN?\r\n", b"time 7;", b"time?\n", b"mode?;", b"pairs;counts?\r\n", b"singles;", b"counts?;", b"status?;",
    b"level?\r", b"neg 1;", b"abort;", b"timestamp;counts?;", b"*rst;", b"\xff\x00;", b"z" * 200, b"help;", b"hal",
])  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(COMMANDS, max_size=12).map(b"".join), st.integers(1, 30))
def test_any_split_gives_the_same_answers(data, size):
    whole = EmulatedSFifteenTdc1(World(seed=5)).receive(data)
    for step in (1, size):
        unit = EmulatedSFifteenTdc1(World(seed=5))
        assert b"".join(unit.receive(data[i : i + step]) for i in range(0, len(data), step)) == whole

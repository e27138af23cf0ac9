"""The emulated GRX/1 receiver: settings, states, events by index, faults, conditions."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.units.event_log import EventLog, Kind
from qkdhw_emulators.units.generic_rx import EmulatedGenericRx
from qkdhw_emulators.world import World, serial_number

LIT = LinkParameters(loss_db=10.0)


def ask(unit, line):
    reply = unit.receive(line.encode() + b"\n")
    assert reply.endswith(b"\n")
    assert reply.count(b"\n") == 1
    return reply[:-1].decode()


def running(*, lit=False, seed=1, **kwargs):
    """Return a running unit and its run number; lit: a transmitter sends light without end."""
    world = World(seed=seed)
    light = LinkRun(LIT, seed=seed) if lit else None
    unit = EmulatedGenericRx(world, light=light, **kwargs)
    if lit:
        light.hold_for_transmitter = False
        light.start_transmitter(LIT)
    assert ask(unit, "ARM") == "OK"
    return unit, int(ask(unit, "START").removeprefix("OK "))


def events_of(reply):
    """Return index, times, values and kinds of an answer to EVT?."""
    line, rest = reply.split(b"\n", 1)
    ok, first, n, base = line.split(b" ")
    assert ok == b"OK"
    records, crc = rest[:-4], rest[-4:]
    assert zlib.crc32(line + b"\n" + records).to_bytes(4, "little") == crc
    assert len(records) == 8 * int(n)
    words = np.frombuffer(records, "<u8")
    times = (words & np.uint64((1 << 44) - 1)).astype(np.int64) + int(base)
    assert int(n) == 0 or times[0] == int(base)
    value, kind = (words >> np.uint64(44) & np.uint64(0xFFFF)).astype(int), (words >> np.uint64(60)).astype(int)
    return int(first), times, value, kind


def take(unit, run, first, limit=100_000):
    return events_of(unit.receive(f"EVT? {run} {first} {limit}\n".encode()))


def status(unit):
    return dict(pair.split("=") for pair in ask(unit, "STAT?").removeprefix("OK ").split(" "))


def test_identity():
    assert ask(EmulatedGenericRx(World(seed=7)), "IDN?") == f"OK qkdhw,GRX-EMU,{serial_number(7)},1.0,GRX/1"


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("CONF detector_enabled.2 0", "OK 0"),
        ("CONF detector_efficiency.1 0.123", "OK 0.12"),
        ("CONF threshold_v.4 -1", "OK -1"),
        ("CONF threshold_v.4 0.1", "OK 0.099609375"),
        ("CONF dead_time_ns 48", "OK 50"),
        ("CONF gate_delay_ns 1.234", "OK 1.23"),
        ("CONF gate_width_ns 1000000", "OK 1000000"),
        ("CONF key_basis_probability 0.95", "OK 0.9499969482421875"),
        ("CONF key_basis_probability 0.05", "OK 0.0500030517578125"),
        ("CONF? basis_choice", "OK passive"),
        ("CONF? tick_ps", "OK 1000/3"),
    ],
)
def test_settings_are_quantised(line, reply):
    unit = EmulatedGenericRx()
    assert ask(unit, line) == reply
    assert ask(unit, "CONF? " + line.split(" ")[1]) == reply


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("FOO", 1), ("CONF? detector_enabled", 2), ("CONF detector_enabled.5 1", 2), ("CONF detector_enabled.1 0.5", 2),
        ("CONF detector_efficiency.1 1.01", 2), ("CONF threshold_v.1 -5.1", 2), ("CONF threshold_v.1 nan", 2),
        ("CONF dead_time_ns -1", 2), ("CONF dead_time_ns 1,2", 2), ("CONF basis_choice active", 7), ("CONF tick_ps 1", 7),
        ("START", 3), ("STOP", 3), ("EVT? 1 0", 2), ("EVT? 0 0 0", 2), ("EVT? 0 0 1048577", 2), ("EVT? 0 0 1", 5),
        ("X" * 256, 4),
    ],
)  # fmt: skip
def test_errors(line, code):
    assert ask(EmulatedGenericRx(), line).startswith(f"ERR {code} ")


def test_events_repeat_and_are_forgotten_when_a_later_one_is_asked_for():
    unit, run = running()
    first = unit.receive(f"EVT? {run} 0 20\n".encode())
    assert unit.receive(f"EVT? {run} 0 20\n".encode()) == first
    _, times, value, kind = events_of(first)
    index, *rest = take(unit, run, 5, 15)
    assert index == 5
    for whole, part in zip((times, value, kind), rest, strict=True):
        assert whole[5:].tolist() == part.tolist()
    assert ask(unit, f"EVT? {run} 4 1").startswith("ERR 5 ")
    assert ask(unit, f"EVT? {run} {int(status(unit)['events']) + 1} 1").startswith("ERR 5 ")
    assert ask(unit, f"EVT? {run + 1} 5 1").startswith("ERR 5 ")


def test_a_frame_ends_before_its_time_field_does():
    log = EventLog()
    for ticks in (7, 7 + (1 << 44) - 1, 7 + (1 << 44)):
        log.add(ticks, Kind.PHOTON, 1)
    first = events_of(log.frame(10))
    assert first[1].tolist() == [7, 6 + (1 << 44)]
    log.release(2)
    assert events_of(log.frame(10))[1].tolist() == [7 + (1 << 44)]


def test_events_stay_after_stop_and_the_next_run_has_another_number():
    unit, run = running()
    before = take(unit, run, 0, 10)
    assert ask(unit, "STOP") == "OK"
    assert take(unit, run, 0, 10)[1].tolist() == before[1].tolist()
    end = int(status(unit)["events"])
    assert len(take(unit, run, end)[1]) == 0
    ask(unit, "ARM")
    assert int(ask(unit, "START").removeprefix("OK ")) != run
    assert status(unit)["events"] == "0"


def test_dark_counts_come_from_all_detectors_with_dummies_in_long_pauses():
    unit = EmulatedGenericRx(light=LinkRun(LinkParameters(dark_count_rate_hz=0.2), seed=1, transmitter=False))
    ask(unit, "ARM")
    run = int(ask(unit, "START").removeprefix("OK "))
    first, all_times, kinds = 0, [], []
    while first < 300:
        _, times, _, kind = take(unit, run, first)
        first += len(times)
        all_times += times.tolist()
        kinds += kind.tolist()
    assert {Kind.PHOTON, Kind.DUMMY} == set(kinds)
    gaps = np.diff(all_times)
    assert gaps.min() >= 0
    assert gaps.max() <= 300_000_000


def test_a_dark_receiver_and_its_counters():
    unit, run = running()
    _, times, value, kind = take(unit, run, 0)
    assert set(value[kind == Kind.PHOTON]) == {1, 2, 3, 4}
    got = status(unit)
    assert [int(got[f"photons_{d}"]) for d in (1, 2, 3, 4)] == [int((value == d).sum()) for d in (1, 2, 3, 4)]
    assert int(got["events"]) == len(times)


def test_efficiencies_and_disabled_detectors():
    unit = EmulatedGenericRx(World(seed=2), light=(light := LinkRun(LIT, seed=2)))
    light.hold_for_transmitter = False
    light.start_transmitter(LIT)
    for line in ("CONF detector_efficiency.2 0.25", "CONF detector_enabled.3 0", "ARM"):
        ask(unit, line)
    run = int(ask(unit, "START").removeprefix("OK "))
    value = take(unit, run, 0)[2]
    counts = [int((value == d).sum()) for d in (1, 2, 3, 4)]
    assert counts[2] == 0
    assert 0.4 < counts[1] / counts[0] < 0.6
    assert "detector_bias_v_3=0 " in ask(unit, "MON?")


def test_overflow_is_told_in_the_stream():
    unit, run = running(lit=True, faults=[Fault.OVERFLOW])
    _, times, value, kind = take(unit, run, 0)
    missed = int(value[kind == Kind.MISSED].sum())
    assert missed == int(status(unit)["lost"]) > 0
    assert (kind == Kind.GAP_BEGIN).sum() == (kind == Kind.GAP_END).sum() > 0
    assert (np.diff(times) >= 0).all()
    assert status(unit)["alarms"] == "01"


def test_a_full_buffer_gives_nothing_more_until_the_next_start():
    unit, run = running()
    first = len(take(unit, run, 0)[1])
    unit.faults.add(Fault.FULL_BUFFER)
    assert take(unit, run, first)[3].tolist() == [Kind.GAP_BEGIN]
    unit.faults.clear()
    assert len(take(unit, run, first + 1)[1]) == 0
    assert (status(unit)["buffered"], status(unit)["alarms"]) == (str(1 << 22), "01")
    for line in ("STOP", "ARM"):
        ask(unit, line)
    run = int(ask(unit, "START").removeprefix("OK "))
    assert len(take(unit, run, 0)[1]) > 0


def test_a_lost_clock_is_an_event_and_an_alarm():
    unit, run = running()
    first = len(take(unit, run, 0)[1])
    unit.world.set_condition("reference_clock_locked", 0.0)
    kind = take(unit, run, first)[3]
    assert (kind[0], (kind == Kind.CLOCK_ERROR).sum()) == (Kind.CLOCK_ERROR, 1)
    assert (status(unit)["clock"], status(unit)["alarms"]) == ("free", "02")
    unit.world.set_condition("reference_clock_locked", 1.0)
    assert (status(unit)["clock"], status(unit)["alarms"]) == ("locked", "02")
    ask(unit, "CLR")
    assert status(unit)["alarms"] == "00"


def test_times_that_begin_just_below_the_end_of_the_field():
    plain, plain_run = running(lit=True)
    wrapped, run = running(lit=True, faults=[Fault.COUNTER_WRAP])
    _, times, *_ = take(plain, plain_run, 0, 1 << 20)
    _, shifted, *_ = take(wrapped, run, 0, 1 << 20)
    assert shifted[0] < 1 << 44
    assert (shifted - times[: len(shifted)] == (1 << 44) - 150_000_000).all()
    assert shifted[-1] > 1 << 44


def test_storms_and_steps_back():
    unit, run = running(faults=[Fault.DUMMY_STORM])
    kind = take(unit, run, 0, 50_000)[3]
    assert (kind == Kind.DUMMY).sum() > 1000 * (kind == Kind.PHOTON).sum() > 0
    unit, run = running(lit=True, faults=[Fault.NON_MONOTONE])
    first, times = 0, []
    while first < 5000:
        piece = take(unit, run, first)[1]
        times += piece.tolist()
        first += len(piece)
    assert 0 < (np.diff(times) < 0).sum() < len(times) / 400


def test_bright_light_blinds_and_alarms():
    unit, run = running(lit=True)
    first = len(take(unit, run, 0)[1])
    unit.world.set_condition("received_power_nw", 5000.0)
    assert Kind.PHOTON not in take(unit, run, first)[3]
    assert status(unit)["alarms"] == "08"
    assert "received_power_nw=5000" in ask(unit, "MON?")


def test_a_warm_detector_ends_the_run():
    unit, run = running()
    unit.world.set_condition("detector_temperature_k", 290.0)
    assert (status(unit)["state"], status(unit)["alarms"]) == ("fault", "04")
    assert len(take(unit, run, 0)[1]) == 0
    assert ask(unit, "ARM").startswith("ERR 3 ")
    unit.world.set_condition("detector_temperature_k", 230.0)
    ask(unit, "CLR")
    assert status(unit)["state"] == "idle"


def test_power_cycle():
    unit, run = running()
    take(unit, run, 0)
    ask(unit, "STOP")
    ask(unit, "CONF dead_time_ns 100")
    unit.power_cycle()
    assert ask(unit, "CONF? dead_time_ns") == "OK 50"
    assert status(unit)["events"] == "0"
    assert ask(unit, f"EVT? {run} 0 1").startswith("ERR 5 ")


COMMANDS = st.sampled_from([
    b"IDN?\n", b"ARM\n", b"START\n", b"STOP\r\n", b"STAT?\n", b"MON?\n", b"CLR\n", b"EVT? 1 0 64\n", b"Y" * 300 + b"\n",
    b"CONF detector_efficiency.2 0.6\n", b"\n", b"\x00\xff\n", b"half",
])  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(COMMANDS, max_size=12).map(b"".join), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_split_gives_the_same_answers(data, sizes):
    unit = EmulatedGenericRx(World(seed=5))
    events = f"EVT? {unit._run + 1} 0 500\n".encode()
    data += b"STOP\nARM\nSTART\n" + events
    whole = unit.receive(data)
    unit, out, at = EmulatedGenericRx(World(seed=5)), b"", 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        out += unit.receive(data[at : at + size])
        at += size
    assert out == whole

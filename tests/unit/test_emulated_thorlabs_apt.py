import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.apt_motor import Motor
from qkdhw_emulators.units.thorlabs_apt import EmulatedThorlabsK10Cr1, EmulatedThorlabsMpc320
from qkdhw_emulators.world import VirtualClock, World

MOUNT_PER_DEG = 409_600 / 3


def standing(unit_class, **options):
    """A unit whose time goes on when the test says so."""
    return unit_class(World(seed=3, clock=VirtualClock(pace=None)), **options)


def short(ident, param1=0, param2=0):
    return struct.pack("<HBBBB", ident, param1, param2, 0x50, 0x01)


def long(ident, layout, *values):
    data = struct.pack(layout, *values)
    return struct.pack("<HHBB", ident, len(data), 0xD0, 0x01) + data


def move_to(channel, counts):
    return long(0x0453, "<Hl", channel, counts)


def mount_position(unit):
    return struct.unpack("<l", unit.receive(short(0x0411, 1))[8:])[0]


def paddle_status(unit, channel):
    return struct.unpack("<lHhL", unit.receive(short(0x0490, channel))[-12:])


def arrive(unit):
    """Let time pass until nothing moves, and return what was reported."""
    told = b""
    while (wait_s := unit.wait_s()) is not None:
        unit.world.clock.advance(wait_s)
        told += unit.poll()
    return told


@given(
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.floats(1, 1e6),
    st.floats(1, 1e7),
    st.lists(st.floats(0, 1), max_size=5),
)
def test_a_motor_goes_steadily_from_here_to_there(start, target, speed, acceleration, moments):
    motor = Motor(start)
    motor.start("move", target, 10.0, speed=speed, acceleration=acceleration)
    length_s = motor.end_s() - 10.0
    way = [motor.position(10.0 + moment * length_s) for moment in sorted(moments)]
    slack = 1e-6 * (abs(start) + abs(target) + 1)
    assert all((b - a) * (1 if target >= start else -1) >= -slack for a, b in pairwise(way))
    assert all(abs(motor.speed(10.0 + moment * length_s)) <= speed * 1.000001 for moment in moments)
    assert motor.position(10.0) == start
    assert motor.position(motor.end_s()) == pytest.approx(target, abs=slack)
    assert motor.settle(motor.end_s(), blocked=False)


def test_a_paddle_takes_its_time_and_reports_its_end_with_a_header_alone():
    unit = standing(EmulatedThorlabsMpc320)
    unit.receive(short(0x0210, 0b101, 1) + move_to(1, 1370))
    end_s = unit.wait_s()
    assert 170 / 80 < end_s < 170 / 80 + 0.1  # 20 % of 400 degrees a second
    unit.world.clock.advance(end_s / 2)
    position, speed, current_ma, bits = paddle_status(unit, 1)
    assert 640 < position < 730
    assert speed
    assert current_ma
    assert bits & 0x10
    assert not bits & 0x20
    assert arrive(unit) == short(0x0464, 1)[:4] + b"\x01\x50"
    assert paddle_status(unit, 1)[0] == 1370
    assert paddle_status(unit, 1)[3] == 0x8000_0101  # forward limit, connected, enabled


def test_the_enable_mask_switches_all_paddles():
    unit = standing(EmulatedThorlabsMpc320)
    unit.receive(short(0x0210, 0b011, 1))
    assert [unit.receive(short(0x0211, bit))[3] for bit in (1, 2, 4)] == [1, 1, 2]
    unit.receive(short(0x0210, 0b100, 1))
    assert [unit.receive(short(0x0211, bit))[3] for bit in (1, 2, 4)] == [2, 2, 1]
    unit.receive(short(0x0210, 0, 1))
    assert unit.receive(move_to(4, 100)) == b""
    assert unit.wait_s() is None


def test_home_and_jog_of_a_paddle():
    unit = standing(EmulatedThorlabsMpc320)
    unit.receive(short(0x0210, 7, 1) + long(0x0530, "<6H", 0, 100, 400, 10, 20, 30))
    unit.receive(short(0x0443, 2))
    assert paddle_status(unit, 2)[3] & 0x200
    assert arrive(unit) == b"\x44\x04\x02\x00\x01\x50"
    assert paddle_status(unit, 2)[0] == 400
    assert paddle_status(unit, 2)[3] & 0x600 == 0x400
    unit.receive(short(0x046A, 2, 2))
    assert paddle_status(unit, 2)[3] & 0x80
    arrive(unit)
    assert paddle_status(unit, 2)[0] == 380


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        (move_to(1, 1371), 0x0453),
        (move_to(1, -1), 0x0453),
        (move_to(3, 1), 0x0453),
        (long(0x0530, "<6H", 0, 9, 0, 0, 0, 0), 0x0530),
        (long(0x0530, "<6H", 0, 50, 1371, 0, 0, 0), 0x0530),
        (long(0x0530, "<H", 0), 0x0530),
        (short(0x0210, 8, 1), 0x0210),
        (short(0x046A, 1, 3), 0x046A),
        (short(0x0490, 3), 0x0490),
    ],
)
def test_what_is_out_of_range_is_reported(message, refused):
    report = standing(EmulatedThorlabsMpc320).receive(message)
    assert report[:6] == bytes.fromhex("8100 4400 81 50")
    assert struct.unpack_from("<H", report, 6)[0] == refused
    assert len(report) == 74


def test_the_mount_knows_no_zero_until_it_is_homed():
    unit = standing(EmulatedThorlabsK10Cr1)
    angle = unit.angle_deg
    assert 0 < angle < 360
    assert mount_position(unit) == 0
    unit.receive(short(0x0443, 1))
    assert arrive(unit) == b"\x44\x04\x01\x00\x01\x50"
    assert (unit.angle_deg + 180) % 360 == pytest.approx(180, abs=1e-4)
    assert mount_position(unit) == 0
    unit.receive(move_to(1, round(400 * MOUNT_PER_DEG)))
    told = arrive(unit)
    assert unit.angle_deg == pytest.approx(40, abs=1e-4)
    # as recorded from a real one: the moving bits are on in the report of the end
    assert told[:6] == bytes.fromhex("6404 0e00 81 50")
    assert struct.unpack("<L", told[16:])[0] & 0x30 == 0x30
    unit.power_cycle()
    assert mount_position(unit) == 0
    assert unit.angle_deg == pytest.approx(40, abs=1e-4)


@pytest.mark.parametrize(("mode", "way_deg"), [(1, 0.0), (2, 2.5)])
def test_stops(mode, way_deg):
    unit = standing(EmulatedThorlabsK10Cr1)
    unit.receive(move_to(1, round(100 * MOUNT_PER_DEG)))
    unit.world.clock.advance(4.0)
    at = mount_position(unit)
    unit.receive(short(0x0465, 1, mode))
    told = arrive(unit)
    assert told[:2] == b"\x66\x04"
    assert (mount_position(unit) - at) / MOUNT_PER_DEG == pytest.approx(way_deg, abs=0.01)


def test_something_in_the_way():
    unit = standing(EmulatedThorlabsK10Cr1)
    unit.receive(move_to(1, round(100 * MOUNT_PER_DEG)))
    unit.world.clock.advance(2.0)
    at = mount_position(unit)
    unit.world.set_condition("blocked", 1)
    unit.poll()
    assert arrive(unit) == b""
    assert mount_position(unit) == at
    bits = struct.unpack("<L", unit.receive(short(0x0429, 1))[8:])[0]
    assert bits & 0x0100_4000 == 0x0100_4000
    assert not bits & 0x30
    unit.world.set_condition("blocked", 0)
    unit.receive(move_to(1, 0))
    arrive(unit)
    assert mount_position(unit) == 0


def test_the_counter_wraps():
    unit = standing(EmulatedThorlabsK10Cr1, faults=[Fault.COUNTER_WRAP])
    assert mount_position(unit) == 2**31 - 1000
    unit.receive(long(0x0448, "<Hl", 1, 3000))
    arrive(unit)
    assert mount_position(unit) == -(2**31) + 2000
    unit.receive(move_to(1, 2**31 - 1))
    arrive(unit)
    assert mount_position(unit) == 2**31 - 1


def test_updates_come_until_nobody_acknowledges_them():
    unit = standing(EmulatedThorlabsMpc320)
    unit.receive(short(0x0011))
    told = arrive(unit)
    assert len(told) == 50 * 20
    assert unit.receive(short(0x0005)) == b""
    assert len(unit.receive(short(0x0492) + short(0x0005))) == 90
    unit.receive(short(0x0012))
    assert unit.wait_s() is None


@pytest.mark.parametrize("unit_class", [EmulatedThorlabsMpc320, EmulatedThorlabsK10Cr1])
def test_faults(unit_class):
    unit = standing(unit_class)
    right = unit.receive(short(0x0005))
    unit.faults.add(Fault.WRONG_IDENTITY)
    assert unit.receive(short(0x0005))[10:16] == b"TDC001"
    unit.faults.clear()
    unit.faults.add(Fault.WRONG_FIRMWARE)
    assert unit.receive(short(0x0005)) != right
    unit.faults.clear()
    unit.faults.add(Fault.STUCK_VALUE)
    unit.receive(short(0x0210, 1, 2) + move_to(1, 100))
    assert unit.wait_s() is None
    unit.faults.clear()
    unit.faults.add(Fault.GARBAGE)
    assert unit.receive(short(0x0005)) != right
    unit.faults.clear()
    unit.faults.add(Fault.SILENT)
    assert unit.receive(short(0x0005)) == b""
    unit.faults.clear()
    assert unit.receive(b"\x05\x00") + unit.receive(b"\x00\x00\x50\x01") == right
    unit.receive(b"\x05\x00\x00")
    unit.reset_input()
    assert unit.receive(short(0x0005)) == right


MESSAGES = st.sampled_from([
    short(0x0005), short(0x0012), short(0x0492), short(0x0210, 7, 1), short(0x0211, 1), short(0x0411, 1), short(0x0429, 1),
    short(0x0480, 1), short(0x0490, 2), short(0x0531), short(0x0414, 1), short(0x043B, 1), short(0x0443, 1), move_to(1, 10),
    long(0x0530, "<6H", 0, 50, 1, 2, 3, 4), long(0x0413, "<H3l", 1, 0, 15020, 7329109), short(0x9999), b"\n", b"\xff\x50\x01",
    long(0x0448, "<Hl", 1, -5), short(0x0465, 1, 2), b"\x00" * 9,
])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([EmulatedThorlabsMpc320, EmulatedThorlabsK10Cr1]),
    st.lists(MESSAGES, max_size=14),
    st.integers(1, 30),
)
def test_any_split_gives_the_same_answers(unit_class, messages, size):
    data = b"".join(messages)
    whole = standing(unit_class).receive(data)
    for step in (1, size):
        unit = standing(unit_class)
        assert b"".join(unit.receive(data[i : i + step]) for i in range(0, len(data), step)) == whole

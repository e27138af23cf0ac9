"""The emulated FX2 card against its firmware's source and the maker's reader."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.servers.usb_unit import UsbStallError
from qkdhw_emulators.units.cqt_fx2 import MAX_RATE_HZ, EmulatedCqtFx2, event_words
from qkdhw_emulators.world import World

RUN = b"\x02\x01\x02\x0e\x02\x08"  # reset, start transfer, open the inputs
STATUS = b"\x03\x10"
WRAP = 1 << 49
PHASES = {375: 0, 359: 1, 295: 2, 39: 3, 7: 4, 6: 5, 12: 6, 152: 7, 216: 8, 472: 9, 504: 11, 505: 12, 497: 13, 371: 14}


def decode(data):
    """Times in 125 ps and patterns, after what the maker's reader does; unwrapped by nobody."""
    found = []
    for at in range(0, len(data), 8):
        low, high = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4))
        pattern = (low & 0xC000) >> 12 | (low & 0x30000) >> 16
        fast = low >> 9 & 31
        ticks = high << 17 | low >> 24 << 9 | fast << 4 | PHASES[low & 511]
        found.append(((ticks + 512 * (fast < 17)) % WRAP, pattern))
    return found


def events(card, n):
    return decode(card.next_events(n))


def running(faults=(), **conditions):
    card = EmulatedCqtFx2(World(seed=1), faults=faults)
    for name, value in conditions.items():
        card.world.set_condition(name, value)
    card.receive(RUN)
    return card


def test_descriptors_are_those_of_the_firmware():
    card = EmulatedCqtFx2()
    assert card.control_in(0x80, 6, 0x0100, 0, 255)[8:14] == bytes.fromhex("b40434120102")
    assert card.control_in(0x80, 6, 0x0302, 0x0409, 255)[2:].decode("utf-16-le").startswith("Timestamp Card Rev 2")
    nothing, pipes = card.usb_descriptor.settings
    assert nothing == ()
    assert [pipe.address for pipe in pipes] == [0x01, 0x81, 0x82]
    for vendor_request in (lambda: card.control_in(0xC0, 1, 0, 0, 8), lambda: card.control_out(0x40, 1, 0, 0, b"")):
        with pytest.raises(UsbStallError):
            vendor_request()


def test_commands():
    card = EmulatedCqtFx2()
    assert card.receive(STATUS + b"\x00") == b"\x80"
    card.receive(b"\x04\x02\x86\x1b" + b"\x03\x05\x00" + b"\x02\x0a" + b"\x02\x08")
    assert card.dac == [10, 0xB86, 10, 2000, 0, 0, 0, 0]
    assert (card.internal_clock, card.calibration_pulses, card.inhibited) == (False, True, False)
    assert card.receive(STATUS + b"\x00" + STATUS + b"\x08" + STATUS + b"\x63") == b"\x00\x00"
    card.power_cycle()
    assert (card.dac[1], card.internal_clock, card.calibration_pulses, card.inhibited) == (3586, True, False, True)


def test_events_come_while_inputs_are_open_and_the_transfer_runs():
    card = EmulatedCqtFx2()
    assert events(card, 5) == []
    card.receive(b"\x02\x0e")
    assert events(card, 5) == []
    card.receive(b"\x02\x08")
    assert len(events(card, 5)) == 5
    card.receive(b"\x02\x07")
    assert events(card, 5) == []
    card.receive(b"\x02\x08\x02\x0c")
    assert events(card, 5) == []
    card.receive(b"\x02\x0e\x02\x0f")
    assert events(card, 5) == []


def test_the_signal_is_even_but_for_the_phases_that_the_card_does_not_have():
    found = events(running(signal_rate_hz=1e6), 1000)
    times = np.array([t for t, _ in found])
    off = times - 8000 * np.arange(1, 1001)
    assert set(off.tolist()) <= {0, -1}
    assert {p for _, p in found} == {1, 2, 4, 8}


def test_the_signal_goes_on_evenly_from_period_to_period():
    card = running(signal_rate_hz=1.7e6)
    times = np.array([t for size in (100, 8000, 5000, 9000) for t, _ in events(card, size)])
    assert len(times) == 100 + 8000 + 92 + 8192
    step = round(8e9 / 1.7e6 * 16) / 16
    assert np.abs(times - step * np.arange(1, len(times) + 1)).max() <= 2


@settings(max_examples=200, deadline=None)
@given(st.integers(0, WRAP - 1), st.integers(1, 15))
def test_any_time_goes_through_the_counters(ticks, pattern):
    ((shown, shown_pattern),) = decode(event_words(np.array([ticks]), np.array([pattern])).tobytes())
    assert shown_pattern == pattern
    assert shown == ticks - (ticks % 16 in (10, 15))


def test_faults_of_the_stream():
    wrapped = [t for t, _ in events(running([Fault.COUNTER_WRAP], signal_rate_hz=2e6), 8192)]
    assert wrapped[0] > WRAP - (1 << 24)
    assert wrapped[-1] < 1 << 25
    back = np.diff([t for t, _ in events(running([Fault.NON_MONOTONE], signal_rate_hz=2e6), 640)])
    assert (back < 0).sum() == 10
    assert len(events(running([Fault.OVERFLOW]), 100)) == 50
    slipped = running([Fault.BYTE_SLIP])
    assert len(b"".join(slipped.next_events(512) for _ in range(16))) == 65535
    card = running([Fault.FULL_BUFFER])
    assert events(card, 5) == []
    card.faults.clear()
    assert events(card, 5) == []
    card.receive(b"\x02\x13")
    assert len(events(card, 5)) == 5


def test_too_many_pulses_shut_the_inputs_and_the_card_says_so():
    card = running(signal_rate_hz=2 * MAX_RATE_HZ)
    assert card.receive(STATUS + b"\x08" + STATUS + b"\x00") == b"\x01\x10"
    times = [t for t, _ in events(card, 100)]
    assert np.diff(times).mean() == pytest.approx(8e9 / MAX_RATE_HZ, rel=1e-3)
    card.world.set_condition("signal_rate_hz", 1e5)
    assert card.receive(STATUS + b"\x08") == b"\x00"
    later = [t for t, _ in events(card, 100)]
    assert np.diff(later).mean() == pytest.approx(80_000, rel=1e-3)
    assert times[-1] < later[0] < times[-1] + 81_000


def test_another_unit_silence_and_garbage():
    card = EmulatedCqtFx2(World(seed=1))
    usual = card.usb_descriptor
    for fault in (Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE):
        card.faults.add(fault)
        assert card.usb_descriptor != usual
        card.faults.clear()
    card.faults.add(Fault.SILENT)
    assert card.receive(STATUS + b"\x00") == b""
    with pytest.raises(UsbStallError):
        card.control_in(0x80, 6, 0x0100, 0, 255)
    card.faults.clear()
    card.faults.add(Fault.GARBAGE)
    assert len(set(card.receive((STATUS + b"\x08") * 50))) > 10


PACKETS = st.sampled_from([
    b"\x02\x01", b"\x04\x02\x34\x52", b"\x02\x03", b"\x03\x05\x01", b"\x02\x07", b"\x02\x08", b"\x02\x0e", b"\x03\x10\x00",
    b"\x03\x10\x08", b"\x03\x0d\x0a", b"\x02\xff", b"\x00\x00", b"\x0a" + bytes(9),
])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(PACKETS, max_size=12).map(b"".join), st.integers(1, 7))
def test_any_split_gives_the_same_answers(data, size):
    whole = EmulatedCqtFx2(World(seed=5)).receive(data)
    card = EmulatedCqtFx2(World(seed=5))
    assert b"".join(card.receive(data[i : i + size]) for i in range(0, len(data), size)) == whole

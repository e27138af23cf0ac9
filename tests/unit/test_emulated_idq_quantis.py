import numpy as np
import pytest

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.servers.usb_unit import UsbNotReadyError, UsbStallError
from qkdhw_emulators.units.idq_quantis import EmulatedIdqQuantis
from qkdhw_emulators.world import VirtualClock, World


def standing(seed=3, **options):
    return EmulatedIdqQuantis(World(seed=seed, clock=VirtualClock(pace=None)), **options)


def ask(unit, request, size):
    return unit.control_in(0xC1, request, 0, 0, size)


def read(unit, size):
    out = b""
    while len(out) < size:
        unit.world.clock.advance(unit.wait_s())
        out += unit.read_stream(4096)
    return out[:size]


def share_of_ones(data):
    return np.unpackbits(np.frombuffer(data, np.uint8)).mean()


def test_requests():
    unit = standing()
    assert [ask(unit, request, 1) for request in (0x13, 0x14, 0x15, 0x17)] == [b"\1"] * 4
    assert ask(unit, 0x16, 4) == (4000).to_bytes(4, "little")
    assert len(ask(unit, 0x10, 4)) == 4
    unit.control_out(0x41, 0x18, 0, 0, b"")
    assert ask(unit, 0x17, 1) == b"\0"
    unit.control_out(0x41, 0x11, 0, 0, b"")
    assert [ask(unit, request, 1) for request in (0x13, 0x14, 0x15)] == [b"\0", b"\1", b"\0"]
    assert unit.wait_s() is None
    unit.control_out(0x41, 0x12, 0, 0, b"")
    assert ask(unit, 0x13, 1) == b"\1"
    assert unit.control_in(0x80, 6, 0x0100, 0, 18)[8:12] == bytes.fromhex("ba0a0201")
    unit.power_cycle()
    assert ask(unit, 0x17, 1) == b"\1"
    assert unit.receive(b"anything") == b""


@pytest.mark.parametrize(("request_type", "request_code"), [(0xC1, 0x19), (0xC0, 0x10), (0xC1, 0x12)])
def test_other_requests_stall(request_type, request_code):
    with pytest.raises(UsbStallError):
        standing().control_in(request_type, request_code, 0, 0, 4)
    with pytest.raises(UsbStallError):
        standing().control_out(0x41, 0x10, 0, 0, b"")


def test_four_megabits_a_second_in_whole_packets():
    unit = standing()
    assert unit.read_stream(4096) == b""
    unit.world.clock.advance(0.003)  # 1500 bytes
    assert len(unit.read_stream(10_000)) == 1024
    assert unit.wait_s() == pytest.approx((512 - 476) / 500_000)
    unit.world.clock.advance(10.0)
    assert len(unit.read_stream(1 << 20)) == 64 * 512
    unit.world.clock.advance(0.01)
    assert len(unit.read_stream(1)) == 512


def test_output_is_fair_and_the_seeds():
    data = read(standing(), 200_000)
    assert data == read(standing(), 200_000)
    assert data != read(standing(seed=4), 200_000)
    assert share_of_ones(data) == pytest.approx(0.5, abs=0.002)


def test_conditions():
    unit = standing()
    unit.world.set_condition("bias", 0.7)
    assert share_of_ones(read(unit, 50_000)) == pytest.approx(0.7, abs=0.005)
    unit.world.set_condition("bias", 0.5)
    unit.world.set_condition("stay", 0.9)
    ones = np.unpackbits(np.frombuffer(read(unit, 50_000), np.uint8))
    assert (ones[1:] == ones[:-1]).mean() == pytest.approx(0.9, abs=0.005)
    unit.world.set_condition("stay", 0.5)
    unit.world.set_condition("repeat_bytes", 777)
    data = read(unit, 10_000)
    assert data[777:] == data[:-777]
    assert len(set(data[:777])) > 200
    unit.world.set_condition("module_ok", 0)
    assert ask(unit, 0x13, 1) == b"\0"
    unit.world.set_condition("powered", 0)
    assert ask(unit, 0x14, 1) == b"\0"


def test_faults():
    version = ask(standing(), 0x10, 4)
    assert ask(standing(faults=[Fault.WRONG_FIRMWARE]), 0x10, 4) != version
    assert set(read(standing(faults=[Fault.STUCK_VALUE]), 2048)) == {0}
    silent = standing(faults=[Fault.SILENT])
    silent.world.clock.advance(1.0)
    assert silent.read_stream(512) == b""
    with pytest.raises(UsbNotReadyError):
        ask(silent, 0x13, 1)
    with pytest.raises(UsbNotReadyError):
        silent.control_out(0x41, 0x18, 0, 0, b"")

"""Quantis USB dialogues, request by request, over stock pyusb; the requests are those of ID Quantique's header."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from qkdhw.drivers.idq_quantis import IdqQuantis
from qkdhw.errors import ConfigurationError, UnitError, UnitStateError, WireFormatError
from qkdhw.transport import open_transport
from qkdhw_emulators.servers.usb import UsbBus
from qkdhw_emulators.servers.usb_unit import Endpoint, UsbDescriptor, UsbStallError
from qkdhw_emulators.units.idq_quantis import EmulatedIdqQuantis

DESCRIPTOR = UsbDescriptor(
    0x0ABA, 0x0102, "id Quantique", "Quantis USB", "0912057A410", endpoints=(Endpoint(0x86),), interface_subclass=0,
    interface_protocol=0, bcd_device=0x0200,
)  # fmt: skip
VERSION, WORKING, POWERED, FLAG_OFF, FLAG_ON = (
    ((0xC1, 0x10, 4), b"\x0f\x05\x07\x20"), ((0xC1, 0x13, 1), b"\1"), ((0xC1, 0x14, 1), b"\1"), ((0xC1, 0x17, 1), b"\0"),
    ((0xC1, 0x17, 1), b"\1"),
)  # fmt: skip
OPENING = [VERSION, VERSION]
CLEAR_FLAG = ((0x41, 0x18, 0), b"")
WORKS = [WORKING, POWERED]


class ScriptedUnit:
    """Answers exactly these requests in this order; the pipe gives these packets."""

    descriptor = DESCRIPTOR

    def __init__(self, turns, packets):
        self.turns, self.packets, self.wrong = list(turns), list(packets), []

    def control_in(self, request_type, request, value, index, length):
        expected, answer = self.turns.pop(0) if self.turns else (None, None)
        if (request_type, request, length) != expected or value or index:
            self.wrong.append((request_type, request, value, index, length, expected))
        if answer is None:
            raise UsbStallError
        return answer

    def control_out(self, request_type, request, value, index, data):
        self.control_in(request_type, request, value, index, len(data))

    def bulk_in(self, endpoint, size):
        assert endpoint == 0x86
        return self.packets.pop(0) if self.packets else b""


@contextmanager
def expect_requests(turns, packets=(), *, descriptor=DESCRIPTOR):
    unit, bus = ScriptedUnit(turns, packets), UsbBus()
    unit.descriptor = descriptor
    bus.plug(unit, threading.RLock())
    with bus.install():
        yield f"usb://{descriptor.vid:04x}:{descriptor.pid:04x}"
    assert not unit.wrong
    assert not unit.turns


def opened(url):
    return IdqQuantis(open_transport(url), timeout_s=0.5)


def noise(packets):
    rng = np.random.default_rng(77)
    return [rng.bytes(512) for _ in range(packets)]


def test_opening_and_identity():
    with expect_requests(OPENING) as url, opened(url) as unit:
        info = unit._info
    assert (info.vendor, info.model) == ("ID Quantique", "Quantis USB")
    assert (info.serial_number, info.firmware) == ("0912057A410", "0x2007050f")


def test_the_first_bytes_are_tested_and_thrown_away():
    packets = noise(5)
    start = [*WORKS, FLAG_ON, CLEAR_FLAG, *WORKS]
    with (
        expect_requests([*OPENING, *start, *WORKS, FLAG_OFF, *WORKS], packets) as url,
        opened(url) as unit,
        unit.read_random(700) as first,
        unit.read_random(16) as second,
    ):
        assert bytes(first) == (packets[2] + packets[3])[:700]
        assert bytes(second) == packets[4][:16]


def test_old_boards_have_no_flag():
    stalled = ((0xC1, 0x17, 1), None)
    turns = [*OPENING, *WORKS, stalled, *WORKS, *WORKS, stalled, *WORKS]
    with expect_requests(turns, noise(4)) as url, opened(url) as unit:
        unit.read_random(1).close()
        unit.read_random(1).close()


@pytest.mark.parametrize("failed", [[((0xC1, 0x13, 1), b"\0")], [WORKING, ((0xC1, 0x14, 1), b"\0")]])
def test_no_bytes_from_a_module_that_does_not_work(failed):
    with expect_requests([*OPENING, *failed, *OPENING]) as url, opened(url) as unit:
        for _ in range(2):
            with pytest.raises(UnitStateError, match="module_failed"):
                unit.read_random(1)


def test_no_bytes_if_the_module_fails_while_they_are_read():
    turns = [*OPENING, *WORKS, FLAG_OFF, ((0xC1, 0x13, 1), b"\0")]
    with (
        expect_requests(turns, noise(3)) as url,
        opened(url) as unit,
        pytest.raises(UnitStateError, match="module_failed"),
    ):
        unit.read_random(1)


def test_a_module_that_failed_is_switched_off_and_on(monkeypatch):
    monkeypatch.setattr("qkdhw.drivers.idq_quantis.RESTART_S", 0.0)
    off_and_on = [((0x41, 0x11, 0), b""), ((0x41, 0x12, 0), b"")]
    turns = [*OPENING, ((0xC1, 0x13, 1), b"\0"), *off_and_on, *WORKS]
    with expect_requests(turns) as url, opened(url) as unit:
        unit.reset_health()


def test_rate_and_mask():
    turns = [*OPENING, ((0xC1, 0x16, 4), b"\xa0\x0f\0\0"), ((0xC1, 0x15, 1), b"\1")]
    with expect_requests(turns) as url, opened(url) as unit:
        assert unit.rate_kbit_per_s == 4000
        assert unit.modules_mask == 1


@pytest.mark.parametrize("answer", [b"", b"\2", b"\xff"])
def test_answers_that_are_none(answer):
    odd = ((0xC1, 0x15, 1), answer)
    with expect_requests([*OPENING, odd, *OPENING, odd]) as url, opened(url) as unit, pytest.raises(WireFormatError):
        unit.modules_mask  # noqa: B018


def test_another_unit_is_named():
    other = UsbDescriptor(0x1234, 0x5678, "Acme", "RNG", "1", endpoints=(Endpoint(0x86),))
    with (
        expect_requests([VERSION], descriptor=other) as url,
        open_transport(url) as link,
        pytest.raises(UnitError, match="1234:5678"),
    ):
        IdqQuantis(link)


def test_sizes_that_are_not_allowed():
    with expect_requests(OPENING) as url, opened(url) as unit:
        for size in (0, -1, (16 << 20) + 1):
            with pytest.raises(ConfigurationError):
                unit.read_random(size)


@pytest.mark.parametrize(
    ("request_code", "size", "answer"),
    [(0x13, 1, b"\1"), (0x14, 1, b"\1"), (0x15, 1, b"\1"), (0x16, 4, b"\xa0\x0f\0\0"), (0x17, 1, b"\1")],
)
def test_the_emulator_answers_so(request_code, size, answer):
    assert EmulatedIdqQuantis().control_in(0xC1, request_code, 0, 0, size) == answer

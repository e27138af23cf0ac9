"""Discovery: what is taken for an instrument, by what driver, and what is said when a way cannot be tried."""

import sys
import threading
from contextlib import contextmanager

import pytest

from qkdhw.bench.discovery import discover
from qkdhw_emulators.servers.usb import UsbBus
from qkdhw_emulators.servers.usb_unit import Endpoint, UsbDescriptor, UsbStallError
from qkdhw_emulators.servers.usbtmc import usbtmc_descriptor

PIPES = (Endpoint(0x01), Endpoint(0x81))
CARD = UsbDescriptor(0x04B4, 0x1234, "CQT", "Timestamp Card", "xx", alternate_settings=(PIPES,))
LASER = usbtmc_descriptor(0x1313, 0x804A, "Thorlabs", "ITC4001", "M00123456")
METER = usbtmc_descriptor(0x0957, 0x1234, "Acme", "Meter", "7")
PADDLES = UsbDescriptor(0x0403, 0xFAF0, "Thorlabs", "Polarizer", "38000001", endpoints=PIPES)
KEYBOARD = UsbDescriptor(0x046D, 0xC31C, "Logitech", "Keyboard", "1", endpoints=PIPES, interface_class=3)


class Listening:
    """A USB device that must not be sent anything."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def control_in(self, *_):
        raise UsbStallError

    control_out = bulk_in = bulk_out = control_in


class Locked(UsbBus):
    """A bus whose devices may be listed, but not opened."""

    def open_device(self, dev):
        import usb.core

        raise usb.core.USBError("Access denied", -3, 13)


@contextmanager
def plugged_in(*descriptors, bus=None):
    bus = bus or UsbBus()
    for descriptor in descriptors:
        bus.plug(Listening(descriptor), threading.RLock())
    with bus.install():
        yield


def found_by(way):
    return [each for each in discover().found if each.way == way]


def test_usb_units_are_known_by_their_ids_and_usbtmc_instruments_by_their_class():
    with plugged_in(CARD, LASER, METER, KEYBOARD, PADDLES):  # the paddles are a serial port
        found = found_by("usb")
    assert [(each.url, each.usb_id, each.serial_number, each.description, each.drivers) for each in found] == [
        ("usb://04b4:1234/xx", "04b4:1234", "xx", "Timestamp Card", ("cqt-fx2",)),
        (
            "visa://USB0::0x1313::0x804a::M00123456::0::INSTR",
            "1313:804a",
            "M00123456",
            "ITC4001",
            ("thorlabs-itc4000",),
        ),
        ("visa://USB0::0x0957::0x1234::7::0::INSTR", "0957:1234", "7", "Meter", ()),
    ]


def test_a_unit_that_may_not_be_opened_is_listed_without_its_texts():
    with plugged_in(CARD, KEYBOARD, bus=Locked()):
        found = found_by("usb")
    assert [(each.url, each.serial_number, each.description) for each in found] == [("usb://04b4:1234", "", "")]


@pytest.mark.parametrize(("module", "way", "extra"), [("serial.tools", "serial", "serial"), ("usb.core", "usb", "usb")])
def test_a_way_whose_package_is_missing_is_named_with_what_to_install(monkeypatch, module, way, extra):
    monkeypatch.setitem(sys.modules, module, None)
    assert discover().not_looked[way] == f"pip install 'qkdhw[{extra}]'"


def test_a_missing_libusb_is_named(monkeypatch):
    monkeypatch.setattr("usb.backend.libusb1.get_backend", lambda find_library=None: None)
    monkeypatch.setattr("usb.backend.libusb0.get_backend", lambda find_library=None: None)
    monkeypatch.setattr("usb.backend.openusb.get_backend", lambda find_library=None: None)
    assert "libusb-1.0-0" in discover().not_looked["usb"]


def test_a_broken_driver_of_somebody_else_hides_nothing(tmp_path, monkeypatch):
    info = tmp_path / "acme_gone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-gone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qkdhw.drivers]\nacme-gone = acme_gone:Driver\n")
    monkeypatch.syspath_prepend(tmp_path)
    with plugged_in(CARD):
        assert [each.drivers for each in found_by("usb")] == [("cqt-fx2",)]


def test_serial_ports_are_known_by_the_ids_of_their_adapters(monkeypatch):
    from serial.tools import list_ports
    from serial.tools.list_ports_common import ListPortInfo

    plain, paddles = (ListPortInfo(f"/dev/tty{name}", skip_link_detection=True) for name in ("S9", "USB7"))
    paddles.vid, paddles.pid, paddles.serial_number, paddles.description = 0x0403, 0xFAF0, "38000001", "Polarizer"
    monkeypatch.setattr(list_ports, "comports", lambda: [paddles, plain])
    found = {each.url: each for each in found_by("serial")}
    assert (found["serial:///dev/ttyS9"].usb_id, found["serial:///dev/ttyS9"].drivers) == ("", ())
    known = found["serial:///dev/ttyUSB7"]
    assert (known.usb_id, known.serial_number, known.description) == ("0403:faf0", "38000001", "Polarizer")
    assert known.drivers == ("thorlabs-k10cr1", "thorlabs-mpc320")

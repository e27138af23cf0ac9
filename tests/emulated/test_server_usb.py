"""Emulated USB devices under stock pyusb and stock pyvisa-py."""

from __future__ import annotations

import errno
import gc
import struct
import subprocess
import sys
import threading

import pytest
import pyvisa
import usb.control
import usb.core
import usb.util
from server_line import IDENTITY, SmallLine, block

from qkdhw_emulators.servers.usb import UsbBus
from qkdhw_emulators.servers.usb_unit import INTERRUPT, Endpoint, UsbDescriptor, UsbGoneError, UsbStallError
from qkdhw_emulators.servers.usbtmc import UsbTmc, usbtmc_descriptor

TIMED_OUT = pyvisa.constants.StatusCode.error_timeout
VENDOR_IN, VENDOR_OUT, CLASS_IN, CLASS_ENDPOINT_IN = 0xC0, 0x40, 0xA1, 0xA2


class Card:
    """A raw device: control requests with a register, a pipe that gives back what it got, one with full packets."""

    descriptor = UsbDescriptor(
        0x1234,
        0xABCD,
        "qkdhw",
        "Card µ",
        "C-7",
        endpoints=(Endpoint(0x02), Endpoint(0x86)),
        alternate_settings=((Endpoint(0x02), Endpoint(0x86, max_packet=64), Endpoint(0x81, INTERRUPT, 8)),),
        bcd_device=0x0123,
    )

    def __init__(self):
        self.register = b""
        self.pipe = bytearray()
        self.ends_empty = False

    def control_in(self, request_type, request, value, index, length):
        if request == 0x99:
            raise UsbStallError
        return (struct.pack("<BBHH", request_type, request, value, index) + self.register)[:length]

    def control_out(self, request_type, request, value, index, data):
        if request == 0x99:
            raise UsbGoneError
        self.register = data

    def bulk_in(self, endpoint, size):
        if endpoint == 0x81:
            return b"\x05"
        data = bytes(self.pipe[:size])
        if not data and self.ends_empty:
            self.ends_empty = False
            return None
        del self.pipe[:size]
        return data

    def bulk_out(self, endpoint, data):
        if data == b"stall":
            raise UsbStallError
        self.pipe += data


@pytest.fixture
def line():
    return SmallLine(messages=True)


@pytest.fixture
def instrument_unit(line):
    return UsbTmc(line, usbtmc_descriptor(0x0957, 0x1755, "qkdhw", "Line", "SN1"))


@pytest.fixture
def card_unit():
    return Card()


@pytest.fixture
def bus(instrument_unit, card_unit):
    bus = UsbBus()
    bus.plug(instrument_unit, threading.RLock())
    bus.plug(card_unit, threading.RLock())
    with bus.install():
        yield bus
    gc.collect()


@pytest.fixture
def card(bus):
    card = usb.core.find(idVendor=0x1234)
    yield card
    usb.util.dispose_resources(card)


@pytest.fixture
def tmc(bus):
    """The instrument below VISA."""
    tmc = usb.core.find(idVendor=0x0957)
    yield tmc
    usb.util.dispose_resources(tmc)


@pytest.fixture
def manager(bus):
    manager = pyvisa.ResourceManager("@py")
    yield manager
    manager.close()


@pytest.fixture
def instrument(instrument_unit, manager):
    with manager.open_resource(instrument_unit.resource, timeout=5000) as instrument:
        yield instrument


# --- pyusb ----------------------------------------------------------------------------------------------------------
def test_devices_are_found_with_their_descriptors(bus) -> None:
    assert {(d.idVendor, d.idProduct) for d in usb.core.find(find_all=True)} == {(0x0957, 0x1755), (0x1234, 0xABCD)}
    assert usb.core.find(idVendor=1) is None
    card = usb.core.find(idVendor=0x1234, idProduct=0xABCD)
    assert (card.manufacturer, card.product, card.serial_number) == ("qkdhw", "Card µ", "C-7")
    assert (card.bcdDevice, card.bus, card.address, card.speed) == (0x0123, 1, 2, 3)
    settings = [
        (i.bInterfaceNumber, i.bAlternateSetting, i.bInterfaceClass, [e.bEndpointAddress for e in i]) for i in card[0]
    ]
    assert settings == [(0, 0, 0xFF, [2, 0x86]), (0, 1, 0xFF, [2, 0x86, 0x81])]
    assert "Bulk IN" in str(card)


def test_standard_requests(card) -> None:
    assert usb.control.get_descriptor(card, 18, 1, 0).tobytes() == bytes.fromhex("12010002000000403412cdab230101020301")
    configuration = usb.control.get_descriptor(card, 255, 2, 0).tobytes()
    assert len(configuration) == int.from_bytes(configuration[2:4], "little") == 9 + 2 * 9 + 5 * 7
    assert configuration[9 + 9 : 9 + 9 + 7] == bytes.fromhex("07050202000201")
    card.set_interface_altsetting(0, 1)
    assert (usb.control.get_interface(card, 0), usb.control.get_configuration(card)) == (1, 1)
    assert usb.control.get_status(card) == 1
    for request in ({"wValue": 0x0309}, {"wValue": 0x0700}):
        with pytest.raises(usb.core.USBError) as caught:
            card.ctrl_transfer(0x80, 6, data_or_wLength=10, **request)
        assert caught.value.errno == errno.EPIPE
    with pytest.raises(usb.core.USBError, match="Entity not found"):
        card._ctx.backend.set_configuration(card._ctx.managed_open(), 3)


def test_control_transfers_both_ways(card) -> None:
    assert card.ctrl_transfer(VENDOR_OUT, 1, 0, 0, b"hello") == 5
    assert card.ctrl_transfer(VENDOR_IN, 7, 0x1122, 0x3344, 64).tobytes() == b"\xc0\x07\x22\x11\x44\x33hello"
    assert card.ctrl_transfer(VENDOR_IN, 7, 0, 0, 3).tobytes() == b"\xc0\x07\x00"
    with pytest.raises(usb.core.USBError) as caught:
        card.ctrl_transfer(VENDOR_IN, 0x99, 0, 0, 3)
    assert caught.value.errno == errno.EPIPE


@pytest.mark.parametrize("size", [1, 511, 300_001])
def test_bulk_transfers_both_ways(card, size) -> None:
    data = block(size)[8:-1]
    assert card.write(2, data) == size
    assert card.read(0x86, 512 * 1024).tobytes() == data


def test_a_transfer_ends_with_a_short_packet_or_its_size_or_the_timeout(card, card_unit) -> None:
    card.write(2, bytes(1024))
    assert len(card.read(0x86, 1000)) == 1000
    card.write(2, bytes(1024 - 24))
    card_unit.ends_empty = True
    assert len(card.read(0x86, 4096)) == 1024
    card.write(2, bytes(1024))
    assert len(card.read(0x86, 4096, timeout=20)) == 1024
    with pytest.raises(usb.core.USBTimeoutError) as caught:
        card.read(0x86, 4096, timeout=20)
    assert (caught.value.errno, caught.value.backend_error_code) == (errno.ETIMEDOUT, -7)


def test_an_interrupt_pipe_in_another_setting(card) -> None:
    with pytest.raises(ValueError, match="Invalid endpoint"):
        card.read(0x81, 8)
    card.set_interface_altsetting(0, 1)
    assert card.read(0x81, 8).tobytes() == b"\x05"


def test_a_stalled_pipe_stays_halted_until_it_is_cleared(card) -> None:
    for data in (b"stall", b"other"):
        with pytest.raises(usb.core.USBError) as caught:
            card.write(2, data)
        assert caught.value.errno == errno.EPIPE
    card.clear_halt(2)
    assert card.write(2, b"other") == 5
    with pytest.raises(usb.core.USBError):
        card.write(2, b"stall")
    card.ctrl_transfer(0x02, 1, 0, 2)
    assert card.write(2, b"other") == 5


def test_two_programs_cannot_claim_one_interface(card) -> None:
    card.write(2, b"x")
    other = usb.core.find(idVendor=0x1234)
    with pytest.raises(usb.core.USBError) as caught:
        other.write(2, b"x")
    assert caught.value.errno == errno.EBUSY
    usb.util.dispose_resources(card)
    assert other.write(2, b"x") == 1
    usb.util.dispose_resources(other)


def test_unplugging_fails_what_goes_on_and_replugging_is_a_new_device(bus, card, card_unit) -> None:
    errors = []

    def read() -> None:
        try:
            card.read(0x86, 512, timeout=60_000)
        except usb.core.USBError as error:
            errors.append(error.errno)

    card.write(2, b"")
    reader = threading.Thread(target=read)
    reader.start()
    bus.unplug(card_unit)
    reader.join()
    assert errors == [errno.ENODEV]
    assert usb.core.find(idVendor=0x1234) is None
    bus.plug(card_unit, threading.RLock())
    with pytest.raises(usb.core.USBError) as caught:
        card.write(2, b"x")
    assert caught.value.errno == errno.ENODEV
    again = usb.core.find(idVendor=0x1234)
    assert again.address == 3
    assert again.write(2, b"x") == 1
    usb.util.dispose_resources(again)


def test_a_unit_that_drops_off_comes_back_as_a_new_device(card) -> None:
    with pytest.raises(usb.core.USBError) as caught:
        card.ctrl_transfer(VENDOR_OUT, 0x99)
    assert caught.value.errno == errno.ENODEV
    assert usb.core.find(idVendor=0x1234).address == 3


def test_reset_forgets_the_setting(card) -> None:
    card.set_interface_altsetting(0, 1)
    card.reset()
    assert usb.control.get_interface(card, 0) == 0


# --- pyvisa-py ------------------------------------------------------------------------------------------------------
def test_visa_lists_both_kinds(manager) -> None:
    """Asked of each kind: pyvisa-py's list of all resources broadcasts on the network first."""
    from pyvisa_py.usb import USBInstrSession, USBRawSession

    assert USBInstrSession.list_resources() == ["USB0::2391::5973::SN1::0::INSTR"]
    assert USBRawSession.list_resources() == ["USB0::4660::43981::C-7::0::RAW"]


def test_visa_reaches_a_raw_device(manager) -> None:
    with manager.open_resource("USB0::4660::43981::C-7::0::RAW", timeout=5000) as raw:
        raw.write_raw(b"any bytes")
        assert raw.read_bytes(9) == b"any bytes"


def test_query_and_any_number_of_them(instrument) -> None:
    assert [instrument.query("*IDN?").strip().encode() for _ in range(300)] == [IDENTITY] * 300


@pytest.mark.parametrize("size", [0, 1, 512 - 12 - 9, 1024 - 12 - 9, 300_000])
def test_blocks_come_whole(instrument, size) -> None:
    instrument.write(f"BLOCK? {size}")
    assert instrument.read_bytes(size + 9) == block(size)
    assert instrument.query("*IDN?").strip().encode() == IDENTITY


def test_a_block_goes_out_in_many_transfers(instrument, line) -> None:
    data = block(300_000)[8:-1]
    instrument.write_raw(b"LOAD #6300000" + data + b"\n")
    assert instrument.query("SIZE?") == "300000\n"
    assert line.loaded == data


def test_an_answer_in_pieces_is_one_answer(instrument) -> None:
    assert instrument.query("SPLIT?") == "ABCDEF\n"


def test_after_a_timeout_the_late_answer_comes_first(instrument, line) -> None:
    instrument.timeout = 50
    with pytest.raises(pyvisa.VisaIOError) as caught:
        instrument.query("LATE?")
    assert caught.value.error_code == TIMED_OUT
    instrument.timeout = 5000
    line.let_go()
    assert instrument.query("*IDN?") == "late\n"
    assert instrument.read().strip().encode() == IDENTITY


def test_disconnect_in_the_middle_of_an_answer(instrument_unit, manager) -> None:
    with (
        manager.open_resource(instrument_unit.resource, timeout=5000) as instrument,
        pytest.raises((ValueError, usb.core.USBError), match="No such device"),
    ):
        instrument.query("CUT?")
    with manager.open_resource(instrument_unit.resource, timeout=5000) as instrument:
        assert instrument.query("*IDN?").strip().encode() == IDENTITY


@pytest.mark.parametrize("before", [True, False])
def test_visa_finds_the_bus_whenever_it_was_imported(before) -> None:
    """In a process of its own, in which nothing has been imported yet; there may be no libusb on the machine."""
    program = """
import sys, threading
sys.path.insert(0, sys.argv[2])
import pyvisa
if sys.argv[1] == "True":
    pyvisa.ResourceManager("@py").close()
from server_line import SmallLine
from qkdhw_emulators.servers.usb import UsbBus
from qkdhw_emulators.servers.usbtmc import UsbTmc, usbtmc_descriptor
bus, unit = UsbBus(), UsbTmc(SmallLine(messages=True), usbtmc_descriptor(1, 2, "a", "b", "c"))
bus.plug(unit, threading.RLock())
for _ in range(2):
    with bus.install():
        manager = pyvisa.ResourceManager("@py")
        with manager.open_resource(unit.resource) as instrument:
            print(instrument.query("*IDN?").strip())
        manager.close()
"""
    command = [sys.executable, "-c", program, str(before), __file__.rpartition("/")[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [IDENTITY.decode()] * 2


# --- USBTMC below VISA ----------------------------------------------------------------------------------------------
def out(tag, data, *, end=True, kind=1, attributes=None):
    """One transfer to the instrument."""
    attributes = int(end) if attributes is None else attributes
    return struct.pack("<BBBxIBxxx", kind, tag, tag ^ 0xFF, len(data), attributes) + data + bytes(-len(data) % 4)


def ask(tag, size, char=None):
    """A request for a transfer from the instrument."""
    return struct.pack("<BBBxIBBxx", 2, tag, tag ^ 0xFF, size, 0 if char is None else 2, char or 0)


def fetch(tmc, tag, size, char=None):
    """Return data and attributes of one transfer from the instrument."""
    tmc.write(1, ask(tag, size, char))
    data = tmc.read(0x82, size + 524).tobytes()
    kind, back, inverse, length, attributes = struct.unpack_from("<BBBxIB", data)
    assert (kind, back, inverse, length) == (2, tag, tag ^ 0xFF, len(data) - 12)
    return data[12:], attributes


def class_in(tmc, request, size, value=0, *, request_type=CLASS_IN):
    return tmc.ctrl_transfer(request_type, request, value, 0, size).tobytes()


def test_capabilities(tmc) -> None:
    answer = class_in(tmc, 7, 24)
    assert len(answer) == 24
    assert (answer[0], answer[2:4], answer[5], answer[12:14], answer[14]) == (1, b"\0\1", 1, b"\0\1", 7)


def test_status_byte_trigger_and_clear(tmc, line) -> None:
    assert class_in(tmc, 128, 3, 5) == b"\x01\x05\x04"
    tmc.write(1, out(1, b"*IDN?"))
    assert class_in(tmc, 128, 3, 6) == b"\x01\x06\x14"
    tmc.write(1, out(2, b"", kind=128))
    assert line.triggers == 1
    tmc.write(1, out(3, b"LATE?"))
    tmc.write(1, out(4, b"*ID", end=False))
    assert class_in(tmc, 5, 1) == b"\x01"
    assert class_in(tmc, 6, 2) == b"\x01\x00"
    tmc.clear_halt(1)
    assert class_in(tmc, 128, 3, 7) == b"\x01\x07\x04"
    tmc.write(1, out(5, b"COUNTS?"))
    assert fetch(tmc, 6, 100) == (b"1,1,1\n", 1)
    assert [class_in(tmc, r, 1) for r in (160, 161, 162)] == [b"\x01"] * 3


def test_a_message_in_several_transfers_and_a_transfer_in_several_writes(tmc, line) -> None:
    tmc.write(1, out(1, b"LOAD #6002", end=False))
    transfer = out(2, b"000" + bytes(2000))
    for start in range(0, len(transfer), 512):
        tmc.write(1, transfer[start : start + 512])
    tmc.write(1, out(3, b"SIZE?"))
    assert fetch(tmc, 4, 100) == (b"2000\n", 1)
    assert line.loaded == bytes(2000)


def test_an_answer_in_several_transfers(tmc) -> None:
    tmc.write(1, out(1, b"*IDN?"))
    assert fetch(tmc, 2, 5) == (b"QKDHW", 0)
    assert fetch(tmc, 3, 100, ord(",")) == (b",", 2)
    assert fetch(tmc, 4, 100, ord("\n")) == (b"LINE,1,0\n", 3)


def test_a_packet_of_no_bytes_ends_a_transfer_of_full_packets(instrument_unit) -> None:
    instrument_unit.bulk_out(1, out(1, b"BLOCK? 1003"))
    instrument_unit.bulk_out(1, ask(2, 4096))
    assert [len(instrument_unit.bulk_in(0x82, size)) for size in (1000, 4096)] == [1000, 24]
    assert instrument_unit.bulk_in(0x82, 4096) is None
    assert instrument_unit.bulk_in(0x82, 4096) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01",
        out(0, b"*IDN?"),
        struct.pack("<BBBxIBxxx", 1, 7, 7, 4, 1) + b"ABCD",
        out(1, b"", kind=126),
        out(1, b"*IDN?")[:13],
        struct.pack("<BBBxIBxxx", 1, 7, 248, 1 << 31, 1) + bytes(500),
    ],
)
def test_a_broken_message_stalls_and_the_next_one_works(tmc, data) -> None:
    with pytest.raises(usb.core.USBError) as caught:
        tmc.write(1, data)
    assert caught.value.errno == errno.EPIPE
    tmc.clear_halt(1)
    tmc.write(1, out(1, b"*IDN?"))
    assert fetch(tmc, 2, 100) == (IDENTITY + b"\n", 1)


def test_requests_of_no_such_kind_stall(tmc) -> None:
    for transfer in (lambda: class_in(tmc, 99, 1), lambda: tmc.ctrl_transfer(0x21, 1, 0, 0, b"x")):
        with pytest.raises(usb.core.USBError) as caught:
            transfer()
        assert caught.value.errno == errno.EPIPE


def test_transfers_can_be_aborted(tmc) -> None:
    abort = {"request_type": CLASS_ENDPOINT_IN}
    assert class_in(tmc, 3, 2, 9, **abort) == b"\x80\x00"
    tmc.write(1, ask(9, 100))
    assert class_in(tmc, 3, 2, 8, **abort) == b"\x81\x09"
    assert class_in(tmc, 3, 2, 9, **abort) == b"\x01\x09"
    assert len(tmc.read(0x82, 512)) == 0
    assert class_in(tmc, 4, 8, **abort) == b"\x01" + bytes(7)
    assert class_in(tmc, 1, 2, 9, **abort) == b"\x80\x09"
    tmc.write(1, out(10, bytes(2000))[:512])
    assert class_in(tmc, 1, 2, 9, **abort) == b"\x81\x0a"
    assert class_in(tmc, 1, 2, 10, **abort) == b"\x01\x0a"
    assert class_in(tmc, 2, 8, **abort) == b"\x01" + bytes(7)
    tmc.write(1, out(11, b"*IDN?"))
    assert fetch(tmc, 12, 100) == (IDENTITY + b"\n", 1)


def test_an_instrument_whose_answers_nobody_fetches_takes_no_more(tmc, line) -> None:
    for tag in range(1, 100):
        try:
            tmc.write(1, out(tag, b"BLOCK? 500000"), timeout=20)
        except usb.core.USBTimeoutError:
            break
        class_in(tmc, 128, 3, 5)
    assert tag < 10
    assert class_in(tmc, 5, 1) == b"\x01"
    tmc.write(1, out(100, b"*IDN?"))
    assert fetch(tmc, 101, 100) == (IDENTITY + b"\n", 1)

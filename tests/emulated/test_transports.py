"""VISA, USB and RFC 2217 links against emulated instruments: messages, faults of the wire, loss and return of the unit."""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
import threading
import time

import pytest
from usb.core import USBError

from qkdhw.drivers.agilent_attenuator import Agilent8156A
from qkdhw.errors import (
    ConfigurationError,
    NotSupportedError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
)
from qkdhw.transport import open_transport
from qkdhw.transport.bounded import bounded
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.line import Line
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.servers.usb import UsbBus
from qkdhw_emulators.servers.usb_bulk import UsbBulk
from qkdhw_emulators.servers.usb_unit import Endpoint, UsbDescriptor
from qkdhw_emulators.servers.usbtmc import usbtmc_descriptor
from qkdhw_emulators.units.agilent_attenuator import EmulatedAgilent8156A
from qkdhw_emulators.units.scpi_unit import Handler

# pyserial 3.5 names its RFC 2217 thread in an old way, and leaves a socket open that the server has shut
pytestmark = [
    pytest.mark.filterwarnings("ignore:set(Daemon|Name).. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MESSAGES = ["hislip", "vxi11", "usbtmc"]
STREAMS = ["rfc2217", "usb"]
BLOCK = bytes(i * 7 % 256 for i in range(100_000))
IDENTITY = b"HEWLETT-PACKARD,HP8156A,3328G00123,1.02\n"
RAW = UsbDescriptor(0x1313, 0x8156, "qkdhw", "raw", "R1", endpoints=(Endpoint(0x02), Endpoint(0x86)))


class Instrument(EmulatedAgilent8156A):
    """An attenuator with a long answer and a USB plug."""

    usb_descriptor = usbtmc_descriptor(0x1313, 0x8156, "qkdhw", "instrument", "T1")

    def command_table(self) -> dict[str, Handler]:
        return super().command_table() | {"BLOCk?": lambda: b"#6%06d" % len(BLOCK) + BLOCK}


class RawInstrument(Instrument):
    """The same on bulk pipes, with control transfers."""

    usb_descriptor = RAW

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.told: list[tuple[int, int, bytes]] = []

    def control_in(self, request_type: int, request: int, value: int, index: int, length: int) -> bytes:
        assert request_type == 0xC1
        return bytes([request, value, index])[:length]

    def control_out(self, request_type: int, request: int, value: int, index: int, data: bytes) -> None:
        assert request_type == 0x41
        self.told.append((request, value, data))


@pytest.fixture
def served(request):
    transport = request.param
    with serve_unit(RawInstrument() if transport == "usb" else Instrument(), transport=transport) as served:
        yield served


@pytest.fixture
def link(served):
    with open_transport(served.url) as link:
        yield link


on_messages = pytest.mark.parametrize("served", MESSAGES, indirect=True)
on_streams = pytest.mark.parametrize("served", STREAMS, indirect=True)
on_all = pytest.mark.parametrize("served", MESSAGES + STREAMS, indirect=True)


def ask(link, query, timeout_s=5.0):
    link.write(query, timeout_s=timeout_s)
    return link.read_until(b"\n", timeout_s=timeout_s)


@on_all
def test_many_queries_and_a_long_answer(link) -> None:
    assert [ask(link, b"*IDN?\n") for _ in range(20)] == [IDENTITY] * 20
    link.write(b"BLOCK?\n")
    assert link.read_exactly(len(BLOCK) + 9) == b"#6100000" + BLOCK + b"\n"
    assert ask(link, b"*IDN?\n") == IDENTITY


@on_all
def test_looking_for_input_asks_nothing_of_the_instrument(link) -> None:
    for _ in range(3):
        assert link.discard_input() == 0
        assert link.read_available(10, timeout_s=0.0) == b""
    assert ask(link, b"*IDN?\n") == IDENTITY
    link.write(b"*IDN?\n")
    assert link.read_exactly(8) == IDENTITY[:8]
    assert link.discard_input() == len(IDENTITY) - 8  # all of it was fetched already
    assert ask(link, b"SYST:ERR?\n") == b'+0,"No error"\n'


@on_messages
def test_a_reply_that_is_not_owed_does_not_block(link) -> None:
    with pytest.raises(TransportTimeoutError):
        link.read_until(b"\n", timeout_s=0.1)
    assert ask(link, b"*IDN?\n") == IDENTITY


@on_messages
def test_after_a_late_answer_a_reopened_link_is_fresh(served, link) -> None:
    served.faults.add(Fault.LATE_REPLY, count=1, seconds=0.3)
    with pytest.raises(TransportTimeoutError):
        ask(link, b":INP:ATT?\n", timeout_s=0.1)
    assert link.fresh_when_reopened
    link.reconnect()
    time.sleep(0.4)
    assert ask(link, b"*IDN?\n") == IDENTITY


@on_messages
def test_an_answer_that_is_left_in_the_unit_is_not_the_next_ones(served, link) -> None:
    link.write(b":INP:ATT?\n")
    time.sleep(0.1)
    link.close()
    with open_transport(served.url) as other:
        assert ask(other, b"*IDN?\n") == IDENTITY


@on_streams
def test_a_late_answer_comes_late_on_a_stream(served, link) -> None:
    served.faults.add(Fault.LATE_REPLY, count=1, seconds=0.2)
    with pytest.raises(TransportTimeoutError):
        ask(link, b"*IDN?\n", timeout_s=0.05)
    assert not link.fresh_when_reopened
    assert link.read_until(b"\n") == IDENTITY


@on_all
def test_a_unit_that_goes_in_the_middle_of_an_answer_comes_back(served, link) -> None:
    served.faults.add(Fault.DISCONNECT, count=1)
    link.write(b"BLOCK?\n")
    with pytest.raises(TransportError):
        link.read_exactly(len(BLOCK) + 9, timeout_s=0.5)
    link.reconnect()
    assert link.generation == 2
    assert ask(link, b"*IDN?\n") == IDENTITY


@on_all
@pytest.mark.parametrize("fault", sorted(LINE_FAULTS))
def test_a_driver_gets_the_right_value_or_an_error_and_goes_on(served, fault) -> None:
    served.faults.clear()
    with Agilent8156A(open_transport(served.url), timeout_s=0.5) as unit:
        unit.attenuation_db = 12.345
        served.faults.parse(f"{fault}:count=1" + (":seconds=0.7" if fault is Fault.LATE_REPLY else ""))
        with contextlib.suppress(TransportError):
            assert unit.attenuation_db == pytest.approx(12.345)
        served.faults.clear()
        for _ in range(3):
            assert unit.identify().model == "HP8156A"
            assert unit.attenuation_db == pytest.approx(12.345)


@on_all
def test_threads_get_their_own_answers(served) -> None:
    wrong = []
    with Agilent8156A(open_transport(served.url)) as unit:
        unit.configure({"attenuation_db": 12.345, "wavelength_nm": 1550.0})
        want = {"attenuation_db": 12.345, "wavelength_nm": 1550.0, "offset_db": 0.0}

        def read(name):
            wrong.extend(got for _ in range(15) if (got := unit.read_setting(name)) != pytest.approx(want[name]))

        threads = [threading.Thread(target=read, args=(name,)) for name in list(want) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


# --- VISA -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "url",
    [
        "visa://",
        "visa://TCPIP",
        "visa://TCPIP::127.0.0.1::hislip0,many::INSTR",
        "visa://TCPIP::127.0.0.1,many::inst0::INSTR",
        "visa://ASRL1::INSTR",
        "visa://TCPIP::127.0.0.1::hislip0::INSTR?colour=red",
        "visa://TCPIP::127.0.0.1::hislip0::INSTR?backend=no-such",
        "usb://",
        "usb://1313",
        "usb://1313:xyz",
        "usb://1313:804a?in=many",
        "usb://1313:804a?interface=x",
        "usb://1313:804a?colour=red",
        "rfc2217://host",
        "rfc2217://host:1?baud=0",
        "rfc2217://host:1/path",
    ],
)
def test_malformed_addresses(url) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_transport(url)
    assert caught.value.remedy


def test_socket_and_serial_resources_are_plain_streams() -> None:
    with serve_unit(Instrument(), transport="tcp") as served:
        port = served.url.rsplit(":", 1)[1]
        with open_transport(f"visa://TCPIP::127.0.0.1::{port}::SOCKET") as link:
            assert ask(link, b"*IDN?\n") == IDENTITY
    with (
        serve_unit(Instrument(), transport="pty") as served,
        open_transport(f"visa://ASRL{served.url.removeprefix('serial://')}::INSTR") as link,
    ):
        assert ask(link, b"*IDN?\n") == IDENTITY


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("resource", ["TCPIP::127.0.0.1::hislip0,{}::INSTR", "TCPIP::127.0.0.1,{}::inst0::INSTR"])
def test_opening_is_bounded_and_says_why_it_failed(resource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = "visa://" + resource.format(silent.getsockname()[1])
        with pytest.raises(TransportTimeoutError) as caught:
            open_transport(url, timeout_s=0.3)
        assert caught.value.remedy
    with pytest.raises(TransportError, match="refused"):
        open_transport(url, timeout_s=1.0)
    for thread in threading.enumerate():  # pyvisa-py leaves the socket of a session that it could not open
        if thread.name.startswith("bounded: opening"):
            thread.join()
    gc.collect()


@pytest.mark.parametrize("transport", ["hislip", "vxi11"])
def test_a_unit_that_was_switched_off_and_on(transport) -> None:
    unit = Instrument()
    with serve_unit(unit, transport=transport) as served:
        port = int(
            "".join(c if c.isdigit() else " " for c in served.url.split("127.0.0.1")[1]).split()[
                -1 if transport == "hislip" else 0
            ]
        )
        link = open_transport(served.url)
        assert ask(link, b"*IDN?\n") == IDENTITY
    with link:
        with pytest.raises(TransportClosedError):  # gone, not late
            ask(link, b"*IDN?\n", timeout_s=0.3)
        with pytest.raises(TransportError):
            link.reconnect(timeout_s=0.2)
        with serve_unit(unit, transport=transport, port=port):
            link.reconnect()
            assert ask(link, b"*IDN?\n") == IDENTITY


def test_a_call_that_comes_back_too_late_is_cleaned_up() -> None:
    let_go, closed = threading.Event(), []

    def late(result):
        closed.append(result)
        let_go.clear()

    def hang():
        let_go.wait()
        return "session"

    with pytest.raises(TransportTimeoutError, match="opening"):
        bounded(hang, 0.05, what="opening", late=late)
    let_go.set()
    while not closed:
        time.sleep(0.001)
    assert closed == ["session"]
    assert bounded(lambda: 7, 5.0, what="counting") == 7


# --- USB ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("served", ["usb"], indirect=True)
def test_control_transfers(served, link) -> None:
    assert link.control_in(0xC1, 0x10, 2, 3, 8) == b"\x10\x02\x03"
    link.control_out(0x41, 7, 1, 0, b"abc")
    link.control_out(0x41, 8, 2, 0)
    assert served.unit.told == [(7, 1, b"abc"), (8, 2, b"")]


@pytest.mark.parametrize("served", ["usbtmc"], indirect=True)
def test_a_refused_control_transfer_and_a_link_without_any(served, link) -> None:
    with pytest.raises(NotSupportedError):
        link.control_in(0xC1, 0x10, 0, 0, 8)
    link.close()
    with open_transport("usb://1313:8156") as raw, pytest.raises(TransportError, match="refused"):
        raw.control_in(0xC1, 0x77, 0, 0, 8)


@pytest.mark.parametrize("served", ["usb"], indirect=True)
def test_which_unit_and_which_pipes(served) -> None:
    for url in ("usb://1313:8156", "usb://1313:8156/R1?in=0x86&out=0x02&interface=0", served.url):
        with open_transport(url) as link:
            assert ask(link, b"*IDN?\n") == IDENTITY
    for url, why in (
        ("usb://1313:8156/R2", "there is no USB unit 1313:8156 R2"),
        ("usb://1313:8157", "there is no"),
        ("usb://1313:8156?in=0x81", "no bulk pipe 0x81"),
        ("usb://1313:8156?interface=1", "no interface 1"),
    ):
        with pytest.raises(TransportError, match=why) as caught:
            open_transport(url)
        assert caught.value.remedy


@pytest.mark.parametrize("served", ["usb"], indirect=True)
def test_one_program_at_a_time(served, link) -> None:
    assert ask(link, b"*IDN?\n") == IDENTITY
    with pytest.raises(TransportError, match="another program") as caught:
        open_transport(served.url)
    assert caught.value.remedy


def test_several_units_of_a_kind_need_a_serial_number_and_permission() -> None:
    class GuardedBus(UsbBus):
        def open_device(self, dev):
            raise USBError("Access denied (insufficient permissions)", -3, errno.EACCES)

    bus = UsbBus()
    with bus.install():
        for _ in range(2):
            unit = RawInstrument()
            bus.plug(UsbBulk(Line(unit), RAW), unit.world)
        with pytest.raises(TransportError, match="there are 2"):
            open_transport("usb://1313:8156")
    guarded = GuardedBus()
    with guarded.install():
        unit = RawInstrument()
        guarded.plug(UsbBulk(Line(unit), RAW), unit.world)
        for url in ("usb://1313:8156", "usb://1313:8156/R1"):
            with pytest.raises(TransportError, match="may not open") as caught:
                open_transport(url)
            assert "udev" in caught.value.remedy


@pytest.mark.parametrize("served", ["usb"], indirect=True)
def test_a_unit_that_was_pulled_out(served, link) -> None:
    assert ask(link, b"*IDN?\n") == IDENTITY
    served.faults.add(Fault.POWER_CYCLE, count=1)
    with pytest.raises(TransportClosedError):
        ask(link, b"*IDN?\n")
    link.reconnect()
    assert ask(link, b"*IDN?\n") == IDENTITY


# --- RFC 2217 -------------------------------------------------------------------------------------------------------
def test_the_baud_rate_reaches_the_terminal_server() -> None:
    from qkdhw_emulators.servers.rfc2217 import Rfc2217Server

    unit = Instrument()
    server = Rfc2217Server(Line(unit, unit.world), unit.world)
    with server, open_transport(f"{server.url}?baud=9600") as link:
        assert ask(link, b"*IDN?\n") == IDENTITY
        assert server.settings.baud_rate == 9600
    with pytest.raises(TransportError, match="refused") as caught:
        open_transport(server.url)
    assert caught.value.remedy

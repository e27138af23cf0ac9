"""RFC 2217 server against stock pyserial, and against clients that break the protocol."""

from __future__ import annotations

import socket
import threading

import pytest
import serial
from server_line import IDENTITY, SmallLine, block, read_exactly

from qkdhw_emulators.servers.rfc2217 import PortSettings, Rfc2217Server

# pyserial 3.5 names its reader thread in a way that Python 3.10 deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:set(Daemon|Name).. is deprecated:DeprecationWarning")


@pytest.fixture
def line():
    return SmallLine(messages=False)


@pytest.fixture
def server(line):
    with Rfc2217Server(line, threading.RLock()) as server:
        yield server


@pytest.fixture
def port(server):
    with serial.serial_for_url(server.url, baudrate=115_200, timeout=5) as port:
        yield port


@pytest.fixture
def raw(server):
    with socket.create_connection((server.host, server.port), timeout=5) as raw:
        yield raw


def query(port, command):
    port.write(command + b"\n")
    return port.read_until(b"\n")


def read_for_ever(port):
    """pyserial returns what it had before it says that the connection is gone."""
    while True:
        assert b"half of a rep".startswith(port.read(100))


def test_query_and_any_number_of_them(port) -> None:
    assert [query(port, b"*IDN?") for _ in range(20)] == [IDENTITY + b"\n"] * 20


@pytest.mark.parametrize("size", [0, 1, 50_000])
def test_blocks_of_all_byte_values_come_whole(port, size) -> None:
    port.write(b"BLOCK? %d\n" % size)
    assert port.read(size + 9) == block(size)
    assert query(port, b"*IDN?") == IDENTITY + b"\n"


def test_a_block_of_all_byte_values_goes_out_whole(port, line) -> None:
    data = block(300_000)[8:-1]
    port.write(b"LOAD #6300000" + data + b"\n")
    assert query(port, b"SIZE?") == b"300000\n"
    assert line.loaded == data
    assert b"\n" in data
    assert b"\xff" in data


def test_a_large_block_comes_whole(server, raw) -> None:
    """pyserial's reader takes its time over each byte; a plain client does not."""
    raw.sendall(b"BLOCK? 300000\n")
    wanted = bytes([255, 251, 0, 255, 251, 3, 255, 253, 0]) + block(300_000).replace(b"\xff", b"\xff\xff")
    assert read_exactly(raw, len(wanted)) == wanted


def test_an_answer_in_pieces(port) -> None:
    assert query(port, b"SPLIT?") == b"ABCDEF\n"


def test_after_a_timeout_the_late_answer_comes_first(port, line) -> None:
    port.timeout = 0.05
    assert query(port, b"LATE?") == b""
    port.timeout = 5
    line.let_go()
    assert query(port, b"*IDN?") == b"late\n"
    assert port.read_until(b"\n") == IDENTITY + b"\n"


def test_settings_and_lines_arrive(server) -> None:
    with serial.serial_for_url(
        server.url, baudrate=0xFF00FF, bytesize=7, parity="E", stopbits=2, xonxoff=True, timeout=5
    ) as port:
        assert server.settings == PortSettings(0xFF00FF, 7, 3, 2, 2, 6, 8, 11)
        port.dtr, port.rts, port.break_condition = False, False, True
        assert server.settings == PortSettings(0xFF00FF, 7, 3, 2, 2, 5, 9, 12)
        assert [port.cts, port.dsr, port.ri, port.cd] == [True, True, False, True]


def test_purge_throws_away_what_has_come(port) -> None:
    port.write(b"*IDN?\n")
    port.reset_input_buffer()
    port.reset_output_buffer()
    port.timeout = 5
    assert query(port, b"SIZE?") == b"0\n"


def test_disconnect_in_the_middle_of_an_answer(server) -> None:
    with serial.serial_for_url(server.url, timeout=5) as port:
        port.write(b"CUT?\n")
        with pytest.raises(serial.SerialException, match="reader thread died"):
            read_for_ever(port)
    with serial.serial_for_url(server.url, timeout=5) as port:
        assert query(port, b"COUNTS?") == b"2,0,0\n"


def test_a_second_client_is_turned_away_and_later_welcome(server, port, raw) -> None:
    assert raw.recv(1) == b""
    assert query(port, b"*IDN?") == IDENTITY + b"\n"
    port.close()
    with serial.serial_for_url(server.url, timeout=5) as another:
        assert query(another, b"*IDN?") == IDENTITY + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xf0\xff\xfa\xff\xf0",
        b"\xff\xfa\x2c\x01\x00\xff\xf0",
        b"\xff\xfa\x2c\x03\x63\xff\xf0\xff\xfa\x2c\x05\xff\xf0\xff\xfa\x2c\x63\x63\xff\xf0",
        b"\xff\xfa" + b"A" * 100_000,
        b"\xff\xfb",
        b"\xff\xf3\xff\xf6\xff",
    ],
)
def test_a_broken_client_does_no_harm_and_the_next_one_works(server, raw, data) -> None:
    raw.sendall(data)
    raw.shutdown(socket.SHUT_WR)
    while raw.recv(4096):
        pass
    with serial.serial_for_url(server.url, timeout=5) as port:
        assert query(port, b"*IDN?") == IDENTITY + b"\n"


def test_options_that_a_serial_port_does_not_have_are_declined_once(raw) -> None:
    raw.sendall(b"\xff\xfd\x18\xff\xfb\x1f\xff\xfe\x18\xff\xfd\x00\xff\xfe\x00\xff\xfe\x00*IDN?\n")
    wanted = b"\xff\xfb\x00\xff\xfb\x03\xff\xfd\x00" + b"\xff\xfc\x18\xff\xfe\x1f\xff\xfc\x00" + IDENTITY + b"\n"
    assert read_exactly(raw, len(wanted)) == wanted


def test_half_a_command_is_forgotten_with_its_client(server, raw) -> None:
    raw.sendall(b"*ID")
    raw.shutdown(socket.SHUT_WR)
    while raw.recv(4096):
        pass
    with serial.serial_for_url(server.url, timeout=5) as port:
        assert query(port, b"*IDN?") == IDENTITY + b"\n"

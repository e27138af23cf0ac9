"""HiSLIP server against stock pyvisa-py, and against clients that break the protocol."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
import pyvisa
from server_line import IDENTITY, SmallLine, block, read_exactly

from qkdhw_emulators.servers.hislip import PAYLOAD_BYTES, HislipServer

HEADER = struct.Struct("!2sBBIQ")
INITIALIZE = HEADER.pack(b"HS", 0, 0, 0x0100_7878, 7) + b"hislip0"


@pytest.fixture
def line():
    return SmallLine(messages=True)


@pytest.fixture
def server(line):
    with HislipServer(line, threading.RLock()) as server:
        yield server


@pytest.fixture
def manager():
    manager = pyvisa.ResourceManager("@py")
    yield manager
    manager.close()


@pytest.fixture
def instrument(server, manager):
    with manager.open_resource(server.resource, timeout=5000) as instrument:
        yield instrument


@pytest.fixture
def raw(server):
    with socket.create_connection((server.host, server.port), timeout=5) as client:
        yield client


def receive(client):
    """Return type, control code, parameter and payload of one message."""
    head = read_exactly(client, HEADER.size)
    prologue, kind, control, parameter, length = HEADER.unpack(head)
    assert prologue == b"HS"
    return kind, control, parameter, read_exactly(client, length) if length else b""


def initialize(server, client):
    """Open both channels as a client does; return the asynchronous one."""
    client.sendall(INITIALIZE)
    kind, control, parameter, _ = receive(client)
    assert (kind, control, parameter >> 16) == (1, 0, 0x0100)
    other = socket.create_connection((server.host, server.port), timeout=5)
    other.sendall(HEADER.pack(b"HS", 17, 0, parameter & 0xFFFF, 0))
    assert receive(other)[0] == 18
    return other


def test_query_and_any_number_of_them(instrument) -> None:
    assert [instrument.query("*IDN?").strip().encode() for _ in range(20)] == [IDENTITY] * 20


@pytest.mark.parametrize("size", [0, 1, 300_000, 999_999])
def test_blocks_come_whole(instrument, size) -> None:
    instrument.write(f"BLOCK? {size}")
    assert instrument.read_bytes(size + 9) == block(size)
    assert instrument.query("*IDN?").strip().encode() == IDENTITY


def test_a_block_goes_out_in_several_messages(instrument, line) -> None:
    instrument.set_visa_attribute(pyvisa.constants.ResourceAttribute.tcpip_hislip_max_message_kb, 16)
    data = block(300_000)[8:-1]
    instrument.write_raw(b"LOAD #6300000" + data + b"\n")
    assert instrument.query("SIZE?") == "300000\n"
    assert line.loaded == data
    assert b"\n" in data


def test_answers_keep_to_the_clients_message_size(instrument) -> None:
    instrument.set_visa_attribute(pyvisa.constants.ResourceAttribute.tcpip_hislip_max_message_kb, 1)
    instrument.write("BLOCK? 5000")
    assert instrument.read_bytes(5009) == block(5000)


def test_an_answer_in_pieces_is_one_answer(instrument) -> None:
    assert instrument.query("SPLIT?") == "ABCDEF\n"


def test_status_byte_says_that_an_answer_waits(instrument) -> None:
    assert instrument.read_stb() == 0x04
    instrument.write("*IDN?")
    assert instrument.read_stb() == 0x14
    instrument.read()
    assert instrument.read_stb() == 0x04
    assert instrument.read_stb() == 0x04


def test_clear_drops_what_waits(instrument, line) -> None:
    instrument.write("LATE?")
    instrument.clear()
    assert line.clears == 1
    assert instrument.query("*IDN?").strip().encode() == IDENTITY


@pytest.mark.parametrize("late", [False, True])
def test_after_a_timeout_the_next_answer_is_the_right_one(instrument, line, late) -> None:
    instrument.timeout = 50
    with pytest.raises(pyvisa.VisaIOError) as caught:
        instrument.query("LATE?")
    assert caught.value.error_code == pyvisa.constants.StatusCode.error_timeout
    instrument.timeout = 5000
    if late:
        line.let_go()
        assert instrument.read_stb() == 0x14
    assert instrument.query("*IDN?").strip().encode() == IDENTITY
    line.let_go()
    assert instrument.query("*IDN?").strip().encode() == IDENTITY


def test_disconnect_in_the_middle_of_an_answer(server, manager, line) -> None:
    with (
        manager.open_resource(server.resource, timeout=5000) as instrument,
        pytest.raises(RuntimeError, match="dropped"),
    ):
        instrument.query("CUT?")
    with manager.open_resource(server.resource, timeout=5000) as instrument:
        assert instrument.query("COUNTS?") == "2,0,0\n"


def test_a_second_client_is_refused_and_later_welcome(server, manager, instrument, raw) -> None:
    raw.sendall(INITIALIZE)
    assert receive(raw)[:2] == (2, 4)
    assert raw.recv(1) == b""
    assert instrument.query("*IDN?").strip().encode() == IDENTITY
    instrument.close()
    with manager.open_resource(server.resource, timeout=5000) as another:
        assert another.query("*IDN?").strip().encode() == IDENTITY


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 1),
        (HEADER.pack(b"HS", 7, 0, 0, 0), 3),
        (HEADER.pack(b"HS", 17, 0, 77, 0), 3),
        (INITIALIZE + INITIALIZE, 3),
        (INITIALIZE + HEADER.pack(b"HS", 7, 0, 0, 6) + b"*IDN?\n", 2),
    ],
)
def test_a_broken_client_is_told_why_and_the_next_one_works(server, manager, raw, data, code) -> None:
    raw.sendall(data)
    answers = [receive(raw)]
    while answers[-1][0] != 2:
        answers.append(receive(raw))
    assert answers[-1][1] == code
    assert raw.recv(1) == b""
    with manager.open_resource(server.resource, timeout=5000) as instrument:
        assert instrument.query("*IDN?").strip().encode() == IDENTITY


def test_a_client_that_gives_up_in_the_middle_of_a_message_is_forgotten(server, manager, raw) -> None:
    with initialize(server, raw):
        raw.sendall(HEADER.pack(b"HS", 6, 0, 2, 4) + b"*ID")
        raw.close()
    with manager.open_resource(server.resource, timeout=5000) as instrument:
        assert instrument.query("*IDN?").strip().encode() == IDENTITY


def test_errors_after_which_the_session_goes_on(server, raw) -> None:
    with initialize(server, raw):
        raw.sendall(HEADER.pack(b"HS", 99, 0, 0, 3) + b"abc")
        assert receive(raw)[:2] == (3, 1)
        raw.sendall(HEADER.pack(b"HS", 7, 0, 0, PAYLOAD_BYTES + 1))
        assert receive(raw)[:2] == (3, 4)
        raw.sendall(bytes(PAYLOAD_BYTES + 1))
        for _ in range(17):
            raw.sendall(HEADER.pack(b"HS", 6, 0, 2, PAYLOAD_BYTES) + bytes(PAYLOAD_BYTES))
        raw.sendall(HEADER.pack(b"HS", 7, 0, 2, 0))
        assert receive(raw)[:2] == (3, 4)
        raw.sendall(HEADER.pack(b"HS", 7, 0, 4, 6) + b"*IDN?\n")
        assert receive(raw) == (7, 0, 4, IDENTITY + b"\n")


def test_trigger_lock_and_remote_control(server, line, raw) -> None:
    with initialize(server, raw) as other:
        raw.sendall(HEADER.pack(b"HS", 12, 0, 2, 0) + HEADER.pack(b"HS", 7, 0, 4, 8) + b"COUNTS?\n")
        assert receive(raw) == (7, 0, 4, b"1,0,1\n")
        for kind, control, answer in [
            (24, 0, (25, 0, 0)),
            (4, 1, (5, 1, 0)),
            (4, 1, (5, 3, 0)),
            (24, 0, (25, 1, 1)),
            (4, 0, (5, 1, 0)),
            (4, 0, (5, 3, 0)),
            (10, 1, (11, 0, 0)),
        ]:
            other.sendall(HEADER.pack(b"HS", kind, control, 0, 0))
            assert receive(other)[:3] == answer
    assert line.triggers == 1


def test_during_a_device_clear_commands_are_thrown_away(server, line, raw) -> None:
    with initialize(server, raw) as other:
        other.sendall(HEADER.pack(b"HS", 19, 0, 0, 0))
        assert receive(other)[:2] == (23, 0)
        raw.sendall(HEADER.pack(b"HS", 7, 0, 2, 6) + b"*IDN?\n" + HEADER.pack(b"HS", 8, 0, 0, 0))
        assert receive(raw)[:2] == (9, 0)
        raw.sendall(HEADER.pack(b"HS", 7, 0, 4, 8) + b"COUNTS?\n")
        assert receive(raw) == (7, 0, 4, b"1,1,0\n")


def test_a_client_that_asks_and_never_reads_does_not_fill_the_memory(server, raw) -> None:
    with initialize(server, raw):
        raw.settimeout(0.5)
        question = HEADER.pack(b"HS", 7, 0, 2, 500_000) + b"BLOCK? 900000".ljust(500_000)
        with pytest.raises(TimeoutError):
            raw.sendall(question * 200)
        assert sum(len(connection._outbox) for connection in server._conversations) < 4_000_000

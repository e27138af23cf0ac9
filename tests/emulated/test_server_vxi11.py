"""VXI-11 server against stock pyvisa-py, and against clients that break the protocol."""

from __future__ import annotations

import itertools
import socket
import struct
import threading

import pytest
import pyvisa
from pyvisa_py.protocols import rpc
from pyvisa_py.tcpip import Vxi11CoreClient
from server_line import IDENTITY, SmallLine, block, read_exactly

from qkdhw_emulators.servers.vxi11 import Vxi11Server

TIMED_OUT = pyvisa.constants.StatusCode.error_timeout


@pytest.fixture
def line():
    return SmallLine(messages=True)


@pytest.fixture
def server(line):
    with Vxi11Server(line, threading.RLock()) as server:
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
def client(server):
    client = Vxi11CoreClient(server.host, server.port)
    yield client
    client.close()


@pytest.fixture
def raw(server):
    with socket.create_connection((server.host, server.port), timeout=5) as raw:
        yield raw


def call(*values, data=b"", fragments=1):
    """One record: six words of header, empty authentication, then words and bytes."""
    body = struct.pack(f"!{len(values)}I", *values) + data
    cuts = [len(body) * i // fragments for i in range(fragments + 1)]
    pieces = [body[a:b] for a, b in itertools.pairwise(cuts)]
    marks = [len(piece) | (0x8000_0000 if i == fragments - 1 else 0) for i, piece in enumerate(pieces)]
    return b"".join(struct.pack("!I", mark) + piece for mark, piece in zip(marks, pieces, strict=True))


def receive(client):
    """Return the words of one reply."""
    (mark,) = struct.unpack("!I", read_exactly(client, 4))
    assert mark & 0x8000_0000
    data = read_exactly(client, mark & 0x7FFF_FFFF)
    return struct.unpack(f"!{len(data) // 4}I", data)


def test_query_and_any_number_of_them(instrument) -> None:
    assert [instrument.query("*IDN?").strip().encode() for _ in range(20)] == [IDENTITY] * 20


@pytest.mark.parametrize("size", [0, 1, 300_000, 999_999])
def test_blocks_come_whole(instrument, size) -> None:
    instrument.write(f"BLOCK? {size}")
    assert instrument.read_bytes(size + 9) == block(size)
    assert instrument.query("*IDN?").strip().encode() == IDENTITY


def test_a_block_goes_out_in_several_calls(instrument, line) -> None:
    data = block(300_000)[8:-1]
    instrument.write_raw(b"LOAD #6300000" + data + b"\n")
    assert instrument.query("SIZE?") == "300000\n"
    assert line.loaded == data
    assert b"\n" in data


def test_an_answer_in_pieces_is_one_answer(instrument) -> None:
    assert instrument.query("SPLIT?") == "ABCDEF\n"


def test_a_read_stops_at_the_termination_character(instrument) -> None:
    instrument.write("BLOCK? 20")
    first = block(20).index(7) + 1
    instrument.read_termination = "\x07"
    assert instrument.read_raw() == block(20)[:first]
    instrument.read_termination = None
    assert instrument.read_raw() == block(20)[first:]


def test_status_byte_says_that_an_answer_waits(instrument) -> None:
    assert instrument.read_stb() == 0x04
    instrument.write("*IDN?")
    assert instrument.read_stb() == 0x14
    instrument.read()
    assert instrument.read_stb() == 0x04


def test_clear_and_trigger(instrument, line) -> None:
    instrument.assert_trigger()
    instrument.write("*IDN?")
    instrument.write("LATE?")
    instrument.clear()
    assert instrument.query("COUNTS?") == "1,1,1\n"


def test_after_a_timeout_the_late_answer_stays_until_the_device_is_cleared(instrument, line) -> None:
    instrument.timeout = 50
    with pytest.raises(pyvisa.VisaIOError) as caught:
        instrument.query("LATE?")
    assert caught.value.error_code == TIMED_OUT
    instrument.timeout = 5000
    line.let_go()
    assert instrument.query("*IDN?") == "late\n"
    instrument.clear()
    assert instrument.query("*IDN?").strip().encode() == IDENTITY


def test_disconnect_in_the_middle_of_an_answer(server, manager, line, client) -> None:
    error, link, _, _ = client.create_link(1, 0, 0, "inst0")
    assert error == 0
    assert client.device_write(link, 1000, 0, 8, b"CUT?") == (0, 4)
    assert client.device_read(link, 100, 1000, 0, 0, 0) == (0, 0, b"half of a rep")
    assert client.sock.recv(1) == b""
    with manager.open_resource(server.resource, timeout=5000) as instrument:
        assert instrument.query("COUNTS?") == "2,0,0\n"


def test_a_second_link_is_refused_and_later_welcome(server, manager, instrument, client) -> None:
    assert client.create_link(1, 0, 0, "inst0")[0] == 9
    assert instrument.query("*IDN?").strip().encode() == IDENTITY
    instrument.close()
    with manager.open_resource(server.resource, timeout=5000) as another:
        assert another.query("*IDN?").strip().encode() == IDENTITY


def test_error_codes(client) -> None:
    assert client.device_write(7, 0, 0, 8, b"*IDN?") == (4, 0)
    assert client.device_read(7, 10, 0, 0, 0, 0) == (4, 0, b"")
    assert client.device_read_stb(7, 0, 0, 0) == (4, 0)
    assert client.destroy_link(7) == 4
    error, link, _, most = client.create_link(1, 0, 0, "inst0")
    assert error == 0
    assert client.device_read(link, 10, 0, 0, 0, 0) == (15, 0, b"")
    assert [client.device_lock(link, 0, 0), client.device_lock(link, 0, 0)] == [0, 11]
    assert [client.device_unlock(link), client.device_unlock(link)] == [0, 12]
    assert [client.device_remote(link, 0, 0, 0), client.device_local(link, 0, 0, 0)] == [0, 0]
    assert client.device_enable_srq(link, True, b"") == 8
    assert client.device_docmd(link, 0, 0, 0, 1, True, 1, b"") == (8, b"")
    with pytest.raises(rpc.RPCGarbageArgs):
        client.device_write(link, 0, 0, 8, bytes(most + 1))
    assert client.device_write(link, 0, 0, 0, bytes(most)) == (0, most)
    assert client.destroy_link(link) == 0
    assert client.create_link(1, 0, 0, "inst0")[0] == 0


def test_reasons_of_a_read(client) -> None:
    _, link, _, _ = client.create_link(1, 0, 0, "inst0")
    client.device_write(link, 1000, 0, 8, b"*IDN?")
    assert client.device_read(link, 5, 1000, 0, 0, 0) == (0, 1, b"QKDHW")
    assert client.device_read(link, 99, 1000, 0, 0x80, ord(",")) == (0, 2, b",")
    assert client.device_read(link, 99, 1000, 0, 0, 0) == (0, 4, b"LINE,1,0\n")


def test_a_read_waits_for_the_end_of_an_answer_in_pieces(client) -> None:
    _, link, _, _ = client.create_link(1, 0, 0, "inst0")
    client.device_write(link, 1000, 0, 8, b"SPLIT?")
    assert client.device_read(link, 100, 5000, 0, 0, 0) == (0, 4, b"ABCDEF\n")


def test_abort_ends_a_read(server, client, raw) -> None:
    _, link, abort_port, _ = client.create_link(1, 0, 0, "inst0")
    assert abort_port == server.port
    answers = []
    reader = threading.Thread(target=lambda: answers.append(client.device_read(link, 10, 60_000, 0, 0, 0)))
    reader.start()
    while reader.is_alive():
        raw.sendall(call(5, 0, 2, 0x0607B0, 1, 1, 0, 0, 0, 0, link))
        assert receive(raw)[5:] == (0, 0)
        reader.join(0.01)
    assert answers == [(23, 0, b"")]


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        (call(5, 0, 3, 0x0607AF, 1, 0, 0, 0, 0, 0), (5, 1, 1, 0, 2, 2)),
        (call(5, 0, 2, 100_000, 1, 0, 0, 0, 0, 0), (5, 1, 0, 0, 0, 1)),
        (call(5, 0, 2, 0x0607AF, 9, 0, 0, 0, 0, 0), (5, 1, 0, 0, 0, 2, 1, 1)),
        (call(5, 0, 2, 0x0607AF, 1, 99, 0, 0, 0, 0), (5, 1, 0, 0, 0, 3)),
        (call(5, 0, 2, 0x0607AF, 1, 10, 0, 0, 0, 0, 1, 0), (5, 1, 0, 0, 0, 4)),
        (call(5, 0, 2, 0x0607AF, 1, 0, 0, 0, 0, 0, fragments=7), (5, 1, 0, 0, 0, 0)),
    ],
)
def test_calls_that_are_not_for_this_server(raw, record, answer) -> None:
    for _ in range(2):
        raw.sendall(record)
        assert receive(raw) == answer


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", call(1, 2, 3), call(5, 1, 2, 0x0607AF, 1, 0, 0, 0, 0, 0), b"\x7f\xff\xff\xff", b""],
)
def test_a_broken_client_is_left_and_the_next_one_works(server, manager, raw, data) -> None:
    raw.sendall(data)
    raw.shutdown(socket.SHUT_WR)
    assert raw.recv(1) == b""
    with manager.open_resource(server.resource, timeout=5000) as instrument:
        assert instrument.query("*IDN?").strip().encode() == IDENTITY


def test_a_client_that_dies_in_the_middle_of_a_command_is_forgotten(server, manager, client, line) -> None:
    _, link, _, _ = client.create_link(1, 0, 0, "inst0")
    client.device_write(link, 1000, 0, 0, b"*ID")
    client.close()
    with manager.open_resource(server.resource, timeout=5000) as instrument:
        assert instrument.query("*IDN?").strip().encode() == IDENTITY


def test_answers_that_nobody_fetches_do_not_fill_the_memory(client) -> None:
    _, link, _, _ = client.create_link(1, 0, 0, "inst0")
    outcomes = []
    while 15 not in outcomes:
        outcomes.append(client.device_write(link, 0, 0, 8, b"BLOCK? 500000")[0])
        client.device_read_stb(link, 0, 0, 0)
    assert len(outcomes) < 10
    assert client.device_clear(link, 0, 0, 0) == 0
    assert client.device_write(link, 0, 0, 8, b"*IDN?") == (0, 5)

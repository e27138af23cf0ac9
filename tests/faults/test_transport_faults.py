"""Links that go nowhere, fall silent, break off or answer late."""

import os
import socket
import threading
import time
import tty
from contextlib import contextmanager

import pytest

from qkdhw.drivers.generic_tx import GenericTx
from qkdhw.drivers.sfifteen_tdc1 import SFifteenTdc1
from qkdhw.errors import (
    ConfigurationError,
    NotSupportedError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
    UnitError,
    WireFormatError,
)
from qkdhw.transport import open_transport
from qkdhw.transport.byte_link import ByteLink
from qkdhw.transport.tcp_link import TcpWire

IDENTITY = b"OK Acme,TX-1,0042,1.2.0,GTX/1\n"
STATUS = b"OK state=idle pulses=12 buffered=0 lost=0 clock=locked alarms=0\n"


@contextmanager
def server(*conversations):
    """Yield the URL of a server that has one conversation a connection: callables that are given the socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(3.0)

    def run():
        for conversation in conversations:
            try:
                connection, _ = listener.accept()
                connection.settimeout(3.0)
                with connection:
                    conversation(connection)
            except OSError:
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    thread.join(5)


def answering(*answers):
    """One answer a line heard: bytes, or seconds to wait and bytes."""

    def conversation(connection):
        stream = connection.makefile("rb")
        for answer in answers:
            if not stream.readline():
                return
            wait_s, data = answer if isinstance(answer, tuple) else (0.0, answer)
            time.sleep(wait_s)
            connection.sendall(data)
        stream.read()

    return conversation


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:5710",
        "tcp://",
        "tcp://host",
        "tcp://host:0",
        "tcp://host:99999",
        "tcp://host:x",
        "tcp://host:1/path",
        "tcp://user:word@host:1",
        "tcp://[::1:1",
        "usb://1234",
        "serial://",
        "serial://ttyUSB0",
        "serial:///dev/ttyUSB0?baud=fast",
        "serial:///dev/ttyUSB0?baud=0",
        "serial:///dev/ttyUSB0?parity=even",
    ],
)
def test_malformed_addresses(url):
    with pytest.raises(ConfigurationError) as caught:
        open_transport(url)
    assert caught.value.remedy


def test_a_refused_port_and_an_unknown_host():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransportError, match="refused") as caught:
        open_transport(f"tcp://127.0.0.1:{port}")
    assert caught.value.remedy
    with pytest.raises(TransportError):
        open_transport("tcp://no-such-host.invalid:1", timeout_s=1.0)


def test_serial_ports_that_are_none(tmp_path):
    with pytest.raises(TransportError, match="no such port"):
        open_transport("serial:///dev/no-such-port")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransportError, match="cannot be opened"):
        open_transport(f"serial://{tmp_path}/file")


def test_silence_ends_at_the_deadline():
    with server(answering()) as url, open_transport(url) as link:
        began_s = time.monotonic()
        with pytest.raises(TransportTimeoutError) as caught:
            GenericTx(link, timeout_s=0.3)
        assert time.monotonic() - began_s < 1.0
        assert caught.value.remedy
        assert link.read_available(10, timeout_s=0.0) == b""


def test_a_peer_that_hangs_up_in_mid_answer_is_noticed_at_once():
    def half_an_answer(connection):
        connection.recv(100)
        connection.sendall(IDENTITY[:9])

    with server(half_an_answer) as url, open_transport(url) as link:
        began_s = time.monotonic()
        with pytest.raises(TransportClosedError):
            GenericTx(link, timeout_s=5.0)
        assert time.monotonic() - began_s < 1.0
        assert link.read_exactly(9) == IDENTITY[:9]  # what came stays readable


@pytest.mark.parametrize("driver", [GenericTx, SFifteenTdc1])
@pytest.mark.parametrize("garbage", [b"\x00\xff\x80garbage\n", b"ERR nonsense \xc3\n", b"\n", b"A" * 5000], ids=repr)
def test_garbage(driver, garbage):
    with server(answering(garbage, garbage, garbage, garbage)) as url, open_transport(url) as link:
        with pytest.raises(UnitError) as caught:
            driver(link, timeout_s=0.4)
        assert caught.value.remedy


def test_what_never_stops_sending_is_no_tagger():
    def flood(connection):
        while True:
            connection.sendall(b"\x55" * 4096)

    with server(flood) as url, open_transport(url) as link, pytest.raises(WireFormatError, match="keeps sending"):
        SFifteenTdc1(link, timeout_s=0.3)


def test_a_late_answer_is_not_handed_to_the_next_query_of_a_transmitter():
    late = answering(IDENTITY, (0.5, STATUS.replace(b"=12", b"=99")), b"OK\n", b"OK\n")
    in_time = answering(IDENTITY, STATUS, b"OK\n")
    with server(late, in_time) as url, GenericTx(open_transport(url), timeout_s=0.3) as unit:
        with pytest.raises(TransportTimeoutError):
            unit.read_status()
        time.sleep(0.4)  # the late answer is there now
        unit._timeout_s = 2.0
        assert unit.read_status().counters["pulses"] == 12


def test_another_unit_behind_the_same_address_is_noticed():
    other = answering(IDENTITY.replace(b"0042", b"0043"))
    with server(answering(IDENTITY), other) as url, GenericTx(open_transport(url), timeout_s=0.3) as unit:
        with pytest.raises(TransportTimeoutError):
            unit.read_status()
        with pytest.raises(UnitError, match="0043"):
            unit.read_status()


def test_a_late_answer_is_not_handed_to_the_next_query_of_a_tagger():
    delay_s = [0.0]

    def tagger(connection):
        gate = b"0"
        for line in connection.makefile("rb"):
            for command in line.strip().split(b";"):
                if command.startswith(b"time "):
                    gate = command[5:]
                answer = {b"*idn?": b"TDC1\r\n", b"time?": gate + b"\r\n", b"status?": b"0000 \r\n"}.get(command)
                if command == b"counts?":
                    answer = b"1 2 3 4\r\n"
                if answer:
                    wait_s, delay_s[0] = delay_s[0], 0.0
                    time.sleep(wait_s)
                    connection.sendall(answer)

    with server(tagger, tagger) as url, SFifteenTdc1(open_transport(url), timeout_s=0.6) as unit:
        delay_s[0] = 0.9
        with pytest.raises(TransportTimeoutError):
            unit.read_status()
        assert unit.identify().firmware == "TDC1"
        assert unit.read_status().alarms == ()


def test_two_threads_on_one_link_never_mix_answers():
    def echo(connection):
        for line in connection.makefile("rb"):
            connection.sendall(line)

    wrong = []
    with server(echo) as url, open_transport(url) as link:

        def ask(name):
            for number in range(300):
                query = b"%s%d\n" % (name, number)
                with link.exchange(lambda: None):
                    link.write(query)
                    if link.read_until(b"\n") != query:
                        wrong.append(query)

        threads = [threading.Thread(target=ask, args=(name,)) for name in (b"a", b"b", b"c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert not wrong


def test_an_exchange_waits_for_another_threads_no_longer_than_it_may():
    with server(answering()) as url, open_transport(url) as link:
        inside, leave = threading.Event(), threading.Event()

        def hold():
            with link.exchange(lambda: None):
                inside.set()
                leave.wait(3)

        thread = threading.Thread(target=hold)
        thread.start()
        inside.wait(3)
        with pytest.raises(TransportTimeoutError, match="another thread"), link.exchange(lambda: None, timeout_s=0.1):
            pass
        leave.set()
        thread.join(3)


def test_a_link_stays_dirty_until_it_is_resynchronised():
    calls = []

    def fails():
        calls.append("fails")
        raise TransportTimeoutError("still silent")

    with server(answering()) as url, open_transport(url) as link:
        with pytest.raises(KeyboardInterrupt), link.exchange(fails):
            raise KeyboardInterrupt
        with pytest.raises(TransportTimeoutError), link.exchange(fails):
            calls.append("never")
        with link.exchange(lambda: calls.append("works")):
            pass
        with link.exchange(fails):
            calls.append("body")
    assert calls == ["fails", "works", "body"]


def test_limits_and_the_end():
    def talk(connection):
        connection.sendall(b"0123456789" * 10 + b"\nrest")
        connection.recv(1)

    with server(talk) as url:
        link = open_transport(url)
        with pytest.raises(WireFormatError, match="without an end of line"):
            link.read_until(b"\n", limit=50)
        assert link.read_available(3) == b"012"
        assert len(link.read_until(b"\n")) == 98
        with pytest.raises(TransportTimeoutError):
            link.read_exactly(5, timeout_s=0.05)
        assert link.discard_input() == 4
        link.close()
        link.close()
        for use in (lambda: link.write(b"x"), lambda: link.read_exactly(1), link.reconnect):
            with pytest.raises(TransportClosedError):
                use()


@contextmanager
def lines(kind, data):
    """A link to something that sends `data` and hangs up once it hears a byte."""

    def talk(connection):
        connection.sendall(data)
        connection.recv(1)

    if kind == "tcp":
        with server(talk) as url, open_transport(url) as link:
            yield link, lambda: link.write(b"x")
        return
    master, slave = os.openpty()
    tty.setraw(slave)
    with open_transport(f"serial://{os.ttyname(slave)}") as link:
        os.close(slave)
        os.write(master, data)
        yield link, lambda: os.close(master)


@pytest.mark.parametrize("kind", ["tcp", "serial"])
def test_reading_into_a_buffer(kind):
    with lines(kind, b"0123456789") as (link, hang_up):
        assert link.read_exactly(2) == b"01"  # what is left in the link comes first
        room = bytearray(b"." * 12)
        filled = 0
        while filled < 8:
            filled += link.read_into(memoryview(room)[filled : filled + 3], timeout_s=2.0)
        assert room == b"23456789...."
        began_s = time.monotonic()
        assert link.read_into(memoryview(room), timeout_s=0.1) == 0
        assert 0.05 < time.monotonic() - began_s < 1.0
        hang_up()
        with pytest.raises(TransportClosedError):
            link.read_into(memoryview(room), timeout_s=2.0)
        link.close()
        with pytest.raises(TransportClosedError):
            link.read_into(memoryview(room), timeout_s=2.0)


def test_pipes_are_those_of_usb():
    with lines("tcp", b"") as (link, _), pytest.raises(NotSupportedError, match="USB"):
        link.read_pipe(0x82, 10)


def test_a_reader_that_waits_is_woken_by_close():
    with server(answering()) as url, open_transport(url) as link:
        threading.Timer(0.1, link.close).start()
        began_s = time.monotonic()
        with pytest.raises(TransportClosedError):
            link.read_exactly(1, timeout_s=5.0)
        assert time.monotonic() - began_s < 1.0


def test_a_link_that_is_closed_while_it_is_dialled_again_stays_closed():
    dialled, go_on, wires = threading.Event(), threading.Event(), []
    go_on.set()

    def dial(timeout_s):
        dialled.set()
        go_on.wait()
        wires.append(TcpWire("127.0.0.1", int(url.rpartition(":")[2]), timeout_s=timeout_s))
        return wires[-1]

    def dial_again():
        with pytest.raises(TransportClosedError):
            link.reconnect(timeout_s=60.0)

    with server(answering(), answering()) as url:
        link = ByteLink(url, dial)
        dialled.clear()
        go_on.clear()
        thread = threading.Thread(target=dial_again)
        thread.start()
        dialled.wait()
        link.close()
        go_on.set()
        thread.join()
        assert len(wires) == 2
        for wire in wires:
            with pytest.raises(TransportClosedError):
                wire.receive(1, timeout_s=60.0)
        with pytest.raises(TransportClosedError):
            link.write(b"x")


def test_writing_to_a_peer_that_does_not_read_ends_at_the_deadline():
    late = pytest.raises(TransportTimeoutError, match="did not take")
    with server(lambda connection: time.sleep(0.6)) as url, open_transport(url) as link, late:
        link.write(b"x" * 50_000_000, timeout_s=0.3)

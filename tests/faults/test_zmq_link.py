"""ZeroMQ links that go nowhere, meet something else, fall silent, lose answers, or lose their peer."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import zmq

from qkdhw.errors import (
    ConfigurationError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
    WireFormatError,
)
from qkdhw.transport import open_transport

TIMEOUT_S = 5.0


@contextmanager
def peer(kind=zmq.ROUTER):
    """Yield a bound socket and its port."""
    context = zmq.Context()
    bound = context.socket(kind)
    bound.linger, bound.sndhwm = 0, 2 if kind == zmq.PAIR else 1000
    bound.rcvtimeo = 5000
    port = bound.bind_to_random_port("tcp://127.0.0.1")
    try:
        yield bound, port
    finally:
        context.destroy(linger=0)


def answer(router, *data):
    """Take a question and give these answers to it."""
    *envelope, question = router.recv_multipart()
    for each in data:
        router.send_multipart([*envelope, each])
    return question


@pytest.mark.parametrize(
    "url",
    ["zmq://", "zmq://host", "zmq://host:0", "zmq://host:99999", "zmq://host:1/path", "zmq://user@host:1",
     "zmq://host:1?heartbeat=maybe", "zmq://host:1?heartbeat=on&heartbeat=off", "zmq://host:1?baud=9600", "zmq+pub://host:1"],
)  # fmt: skip
def test_malformed_addresses(url):
    with pytest.raises(ConfigurationError) as caught:
        open_transport(url)
    assert caught.value.remedy


def test_a_refused_port_and_an_unknown_host():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransportError, match="refused") as caught:
        open_transport(f"zmq://127.0.0.1:{port}")
    assert caught.value.remedy
    with pytest.raises(TransportError, match="no host"):
        open_transport("zmq://no-such-host.invalid:1", timeout_s=1.0)


def test_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(TransportTimeoutError, match="no ZeroMQ server") as caught:
            open_transport(f"zmq://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.2)
        assert "tcp://" in caught.value.remedy


def test_a_server_that_says_something_else():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 this is a mail server, not a Time Controller, and it talks first\r\n" * 2)
                connection.recv(100)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        with pytest.raises(TransportError, match="no ZeroMQ server"):
            open_transport(f"zmq://127.0.0.1:{listener.getsockname()[1]}", timeout_s=2.0)
        thread.join(5)


def test_a_zeromq_socket_of_another_kind():
    with peer(zmq.PAIR) as (_, port), pytest.raises(TransportError, match="REQ socket"):
        open_transport(f"zmq://127.0.0.1:{port}", timeout_s=2.0)
    with peer(zmq.ROUTER) as (_, port), pytest.raises(TransportError, match="PAIR socket"):
        open_transport(f"zmq+pair://127.0.0.1:{port}", timeout_s=2.0)


def test_plain_tcp_to_a_zeromq_port_is_told_the_right_address():
    with peer() as (_, port), open_transport(f"tcp://127.0.0.1:{port}") as link:
        with pytest.raises(TransportError, match="speaks ZeroMQ") as caught:
            link.read_until(b"\n", timeout_s=2.0)
        assert f"zmq://127.0.0.1:{port}" in caught.value.remedy


def test_questions_and_answers_whole_empty_and_binary():
    with peer() as (router, port), open_transport(f"zmq://127.0.0.1:{port}") as link:
        for data in (b"ON", b"", b"\x00\xff" * 100_000):
            link.write(b"X?")
            assert answer(router, data) == b"X?"
            assert link.read_message(timeout_s=2.0) == data


def test_a_lost_answer_needs_a_new_socket_and_then_no_old_answer_comes():
    with peer() as (router, port), open_transport(f"zmq://127.0.0.1:{port}") as link:
        link.write(b"first?")
        with pytest.raises(TransportTimeoutError):
            link.read_message(timeout_s=0.05)
        with pytest.raises(TransportTimeoutError):
            link.write(b"second?", timeout_s=0.05)
        assert link.fresh_when_reopened
        link.reconnect()
        link.write(b"second?")
        answer(router, b"old")
        answer(router, b"new")
        assert link.read_message(timeout_s=2.0) == b"new"
        assert link.generation == 2


def test_messages_that_are_too_long_or_of_several_parts():
    with peer() as (router, port), open_transport(f"zmq://127.0.0.1:{port}") as link:
        link.write(b"X?")
        answer(router, b"x" * 11)
        with pytest.raises(WireFormatError, match="11 bytes"):
            link.read_message(10, timeout_s=2.0)
        link.write(b"X?")
        *envelope, _ = router.recv_multipart()
        router.send_multipart([*envelope, b"a", b"b"])
        with pytest.raises(WireFormatError, match="2 parts"):
            link.read_message(timeout_s=2.0)
        link.write(b"X?")
        answer(router, b"fine")
        assert link.read_message(timeout_s=2.0) == b"fine"


def test_a_stream_as_messages_and_as_bytes():
    with peer(zmq.PAIR) as (pair, port), open_transport(f"zmq+pair://127.0.0.1:{port}") as link:
        for message in (b"abc", b"", b"defgh", b"rest"):
            pair.send(message)
        assert link.read_message(timeout_s=2.0) == b"abc"
        assert link.read_message(timeout_s=2.0) == b""
        assert link.read_exactly(7, timeout_s=2.0) == b"defghre"
        assert link.read_available(10, timeout_s=2.0) == b"st"
        assert link.read_available(10, timeout_s=0.0) == b""


def test_everything_that_was_sent_comes_before_the_end_of_the_stream():
    with peer(zmq.PAIR) as (pair, port), open_transport(f"zmq+pair://127.0.0.1:{port}") as link:
        for number in range(5):
            pair.send(bytes([number]) * 100_000)
        link.write(b"ready?")
        assert pair.recv() == b"ready?"
        time.sleep(0.2)  # they are on this side now
        pair.close(0)
        for number in range(5):
            assert link.read_message(timeout_s=2.0) == bytes([number]) * 100_000
        with pytest.raises(TransportClosedError, match="hung up"):
            link.read_message(timeout_s=TIMEOUT_S)
        with pytest.raises(TransportClosedError):
            link.write(b"x", timeout_s=1.0)


def test_a_reader_that_makes_a_stream_wait_loses_nothing():
    with peer(zmq.PAIR) as (pair, port), open_transport(f"zmq+pair://127.0.0.1:{port}") as link:
        pair.sndtimeo = 100
        sent = 0
        try:
            while True:
                pair.send(b"%06d" % sent + bytes(1 << 20))
                sent += 1
        except zmq.Again:
            time.sleep(1.2)  # longer than a peer may be silent that is asked by heartbeats
        for number in range(sent):
            assert link.read_message(timeout_s=2.0)[:6] == b"%06d" % number


def test_a_peer_that_vanished_without_a_word_is_noticed():
    """A stopped process neither answers heartbeats nor closes its socket, like a unit that lost its network."""
    serve = "import zmq, time; s = zmq.Context().socket(zmq.ROUTER); print(s.bind_to_random_port('tcp://127.0.0.1'), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline())
            with open_transport(f"zmq://127.0.0.1:{port}") as link:
                os.kill(process.pid, signal.SIGSTOP)
                link.write(b"X?")
                with pytest.raises(TransportClosedError):
                    link.read_message(timeout_s=30.0)
        finally:
            process.kill()


def test_closing_wakes_who_waits():
    with peer() as (_, port), open_transport(f"zmq://127.0.0.1:{port}") as link:
        link.write(b"X?")
        failures = []

        def wait():
            try:
                link.read_message(timeout_s=30.0)
            except TransportClosedError as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        link.close()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
        assert failures
        link.close()
        with pytest.raises(TransportClosedError):
            link.write(b"X?")


def test_nothing_stays_open():
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    with peer() as (_, port):
        open_transport(f"zmq://127.0.0.1:{port}").close()
        before = open_files()
        for _ in range(20):
            open_transport(f"zmq://127.0.0.1:{port}").close()
            with pytest.raises(TransportError):
                open_transport(f"zmq+pair://127.0.0.1:{port}")
        assert open_files() <= before + 5


DROPPED = """
import gc, os, sys
from qkdhw.transport import open_transport

def drop():
    link = open_transport(sys.argv[1])
    link.write(b"X?")
    link.itself = link

drop(), gc.collect()
before = len(os.listdir("/proc/self/fd"))
for _ in range(5):
    drop(), gc.collect()
print(len(os.listdir("/proc/self/fd")) - before)
"""


def test_a_link_dropped_without_close_is_closed_by_the_collector():
    with peer() as (_, port):
        command = [sys.executable, "-c", DROPPED, f"zmq://127.0.0.1:{port}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout.strip(), ended.stderr) == ("0", "")

"""Emulated units on ZeroMQ, with nothing but pyzmq on the other side."""

import time
from contextlib import contextmanager

import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.faults import Fault, FaultSwitches
from qkdhw_emulators.line import Line
from qkdhw_emulators.serve import serve_at, serve_unit
from qkdhw_emulators.units.generic_tx import EmulatedGenericTx
from qkdhw_emulators.world import World

DEADLINE_MS = 5000


class Stream:
    """Sends what a test lays out."""

    keeps_messages = True

    def __init__(self):
        self.acquisition = 0
        self.messages = []

    def receive(self, data):
        return b""

    def next_message(self):
        return self.messages[0] if self.messages else None

    def sent(self):
        del self.messages[0]

    def wait_s(self):
        return None


class Echo:
    """Answers each message by itself and its number; with a stream beside."""

    keeps_messages = True

    def __init__(self):
        self.faults = FaultSwitches()
        self.stream = Stream()
        self.further_ports = {"stream": (self.stream, 7)}
        self.count = 0

    def receive(self, data):
        self.count += 1
        if data == b"again":
            self.stream.acquisition += 1
        return b"%d:%s" % (self.count, data)


@contextmanager
def clients(url, *kinds):
    """Yield sockets: "req" to the unit, "pair" to its stream."""
    context = zmq.Context()
    port = int(url.rpartition(":")[2])
    out = []
    for kind in kinds:
        each = context.socket(zmq.REQ if kind == "req" else zmq.PAIR)
        each.linger = 0
        each.rcvtimeo, each.rcvhwm = DEADLINE_MS, 2
        each.connect(f"tcp://127.0.0.1:{port + (0 if kind == 'req' else 7)}")
        out.append(each)
    try:
        yield out
    finally:
        context.destroy(linger=0)


def ask(req, question):
    req.send(question)
    return req.recv()


@contextmanager
def served(**options):
    unit = Echo()
    with serve_unit(unit, transport="zmq", **options) as place:
        yield unit, place


def test_questions_are_answered_one_by_one():
    with served() as (_, place), clients(place.url, "req") as (req,):
        assert [ask(req, b"a"), ask(req, b""), ask(req, b"c" * 100_000)] == [b"1:a", b"2:", b"3:" + b"c" * 100_000]


def test_two_clients_in_turn():
    with served() as (_, place), clients(place.url, "req", "req") as (first, second):
        assert [ask(first, b"a"), ask(second, b"b"), ask(first, b"c")] == [b"1:a", b"2:b", b"3:c"]


def test_an_envelope_of_several_frames_comes_back():
    with served() as (_, place), clients(place.url, "req") as (req,):
        req.setsockopt(zmq.REQ_CORRELATE, 1)
        assert ask(req, b"a") == b"1:a"


def test_a_dropped_answer_never_comes_and_a_new_client_is_answered():
    with served(faults=["drop:count=1"]) as (_, place):
        with clients(place.url, "req") as (req,):
            req.send(b"a")
            assert not req.poll(100)
        with clients(place.url, "req") as (req,):
            assert ask(req, b"b") == b"2:b"


def test_a_late_answer_goes_nowhere_when_its_client_has_gone():
    with served(faults=["late-reply:count=1:seconds=0.2"]) as (_, place):
        with clients(place.url, "req") as (req,):
            req.send(b"late")
            assert not req.poll(50)
        with clients(place.url, "req") as (req,):
            assert ask(req, b"b") == b"2:b"
            assert not req.poll(400)
            assert ask(req, b"c") == b"3:c"


def test_a_late_answer_comes_late_to_a_client_that_waits():
    with served(faults=["late-reply:count=1:seconds=0.2"]) as (_, place), clients(place.url, "req") as (req,):
        begun_s = time.monotonic()
        assert ask(req, b"late") == b"1:late"
        assert time.monotonic() - begun_s >= 0.2


@pytest.mark.parametrize("fault", ["split", "truncate", "duplicate"])
def test_messages_stay_whole(fault):
    with served(faults=[fault]) as (_, place), clients(place.url, "req") as (req,):
        assert [ask(req, b"abc") for _ in range(3)] == [b"1:abc", b"2:abc", b"3:abc"]


def test_a_connection_that_drops_is_a_connection_that_drops():
    with served() as (unit, place), clients(place.url, "req") as (req,):
        monitor = req.get_monitor_socket()
        assert ask(req, b"a") == b"1:a"
        unit.faults.add(Fault.DISCONNECT, count=1)
        req.send(b"b")
        events = []
        while zmq.Event.DISCONNECTED not in events:
            assert monitor.poll(DEADLINE_MS)
            events.append(parse_monitor_message(monitor.recv_multipart())["event"])
        req.disable_monitor()
        monitor.close(0)
        with clients(place.url, "req") as (other,):
            assert ask(other, b"c") == b"3:c"


def test_streams_keep_empty_messages_and_their_order():
    with served() as (unit, place), clients(place.url, "req", "pair") as (req, pair):
        unit.stream.messages += [b"one", b"", b"three"]
        assert ask(req, b"a") == b"1:a"
        assert [pair.recv() for _ in range(3)] == [b"one", b"", b"three"]


def test_a_slow_client_does_not_fill_the_memory():
    with served() as (unit, place), clients(place.url, "req", "pair") as (req, pair):
        unit.stream.messages += [bytes(4 << 20) for _ in range(30)]
        ask(req, b"a")
        time.sleep(0.5)
        assert len(unit.stream.messages) > 20
        for _ in range(30):
            assert len(pair.recv()) == 4 << 20


def test_a_new_acquisition_drops_the_client_of_the_one_before():
    with served() as (unit, place), clients(place.url, "req", "pair") as (req, pair):
        unit.stream.messages.append(b"old")
        ask(req, b"a")
        assert pair.recv() == b"old"
        assert ask(req, b"again") == b"2:again"
        pair.close(0)
        with clients(place.url, "pair") as (new,):
            unit.stream.messages.append(b"new")
            ask(req, b"a")
            assert new.recv() == b"new"


def test_what_is_no_question_is_ignored():
    with served() as (_, place), clients(place.url, "req") as (req,):
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.connect(place.url.replace("zmq", "tcp"))
        dealer.send_multipart([b"no delimiter", b"at all"])
        dealer.send_multipart([b"", b"two", b"frames"])
        assert ask(req, b"a") == b"1:a"
        context.destroy(linger=0)


def test_a_port_that_is_taken_and_a_unit_that_takes_bytes():
    with served() as (_, place):
        port = int(place.url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match="cannot listen"), served(port=port):
            pass
        with pytest.raises(ConfigurationError, match="cannot listen"), served(port=port + 7):
            pass
    with pytest.raises(ConfigurationError, match="stream of bytes"), serve_unit(EmulatedGenericTx(), transport="zmq"):
        pass


def test_served_at_an_address():
    with served() as (_, place):
        url = place.url
    with serve_at(url, Line(Echo(), World())) as where, clients(where, "req") as (req,):
        assert where == url
        assert ask(req, b"a") == b"1:a"

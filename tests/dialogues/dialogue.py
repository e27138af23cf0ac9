"""Play the other end of a dialogue, byte for byte, over a real pseudo-terminal, TCP connection or ZeroMQ socket."""

import os
import re
import select
import socket
import threading
import time
import tty
from contextlib import contextmanager

import zmq

DEADLINE_S = 3.0


class _Pty:
    def __init__(self):
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.url = f"serial://{os.ttyname(self.slave)}"

    def accept(self):
        pass

    def receive(self, timeout_s):
        return os.read(self.master, 65536) if select.select([self.master], [], [], timeout_s)[0] else b""

    def send(self, data):
        while data:
            data = data[os.write(self.master, data) :]

    def close(self):
        os.close(self.slave)
        os.close(self.master)


class _Tcp:
    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE_S)
        self.url = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.peer = None

    def accept(self):
        self.peer, _ = self.listener.accept()

    def receive(self, timeout_s):
        self.peer.settimeout(max(timeout_s, 0.001))
        try:
            return self.peer.recv(65536)
        except TimeoutError:
            return b""

    def send(self, data):
        self.peer.sendall(data)

    def close(self):
        if self.peer:
            self.peer.close()
        self.listener.close()


class _Zmq:
    """A ROUTER in the place of a unit's REP socket: each question is a message, and so is each answer."""

    def __init__(self):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.url = f"zmq://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.envelope = []

    def accept(self):
        pass

    def receive(self, timeout_s):
        if not self.socket.poll(1000 * timeout_s):
            return b""
        *self.envelope, question = self.socket.recv_multipart()
        return question

    def send(self, data):
        self.socket.send_multipart([*self.envelope, data])

    def close(self):
        self.context.destroy(linger=0)


def _play(end, turns):
    end.accept()
    heard = b""
    for number, (expected, answer) in enumerate(turns):
        deadline_s = time.monotonic() + DEADLINE_S
        match = None
        while not match:
            if isinstance(expected, bytes):
                assert expected.startswith(heard) or heard.startswith(expected), f"turn {number}: {heard!r}"
                match = heard.startswith(expected)
                size = len(expected)
            else:
                match = expected.match(heard)
                size = match.end() if match else 0
            if not match:
                heard += end.receive(0.05)
                assert time.monotonic() < deadline_s, f"turn {number}: wanted {expected!r}, heard {heard!r}"
        heard = heard[size:]
        end.send(answer(match) if callable(answer) else answer)
    heard += end.receive(0.05)
    assert not heard, f"after the last turn: {heard!r}"


@contextmanager
def expect_dialogue(kind, turns):
    """Yield a URL ("serial", "tcp" or "zmq") behind which `turns` are played; what does not fit or is left over fails.

    A turn is (what must be heard, what is then said): bytes, or a compiled pattern and a function of its match.
    """
    end = {"serial": _Pty, "tcp": _Tcp, "zmq": _Zmq}[kind]()
    failures = []

    def run():
        try:
            _play(end, turns)
        except (AssertionError, OSError) as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield end.url
    finally:
        thread.join(2 * DEADLINE_S)
        end.close()
    assert not failures, failures[0]


CHALLENGE = (re.compile(rb"time (\d+);time\?\r\n"), lambda match: match[1] + b"\r\n")

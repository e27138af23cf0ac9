"""ZeroMQ server: an emulated unit that answers whole messages (REP), and what it streams (PAIR).

A REP socket must answer every question, so the server is a ROUTER: an answer can be lost, or come when its client has
given up and dialled again; then it goes nowhere, as ZeroMQ has it. A unit's further ports have addresses of their own;
those that stream are PAIR sockets, opened anew for every acquisition.

Source: ZeroMQ request-reply pattern (rfc.zeromq.org/spec/28), exclusive pair (spec/31); libzmq 4.3 manual.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Any, Self

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.line import Line, MessageStream

HOST = "127.0.0.1"
STREAM_MESSAGES = 2  # on their way to a client; the unit keeps the rest
MESSAGE_BYTES = 1 << 20
REBIND_S, STOP_TIMEOUT_S = 2.0, 5.0
PORT_TRIES = 100


class _Port:
    """A bound socket that can be opened anew at its address."""

    def __init__(self, zmq: Any, context: Any, kind: int, port: int) -> None:
        self.zmq = zmq
        self._context = context
        self._kind = kind
        self.port = port
        self.socket: Any = self._bound()

    def reopen(self) -> None:
        """Drop all clients."""
        self.socket.close(0)
        deadline_s = time.monotonic() + REBIND_S
        while True:
            try:
                self.socket = self._bound()
            except self.zmq.ZMQError:  # the old socket's listener goes a moment later
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.001)
            else:
                return

    def _bound(self) -> Any:
        bound = self._context.socket(self._kind)
        bound.setsockopt(self.zmq.LINGER, 0)
        bound.setsockopt(self.zmq.MAXMSGSIZE, MESSAGE_BYTES)
        if self._kind == self.zmq.PAIR:
            bound.setsockopt(self.zmq.SNDHWM, STREAM_MESSAGES)
        try:
            bound.bind(f"tcp://{HOST}:{self.port or '*'}")
        except self.zmq.ZMQError:
            bound.close(0)
            raise
        self.port = self.port or int(bound.getsockopt_string(self.zmq.LAST_ENDPOINT).rpartition(":")[2])
        return bound


class _Replies:
    """Answers the questions of one client at a time."""

    def __init__(self, port: _Port, line: Line) -> None:
        self.port = port
        self._line = line
        self._envelope: list[bytes] = []

    @property
    def wanted(self) -> int:
        return 0 if self._line.busy else int(self.port.zmq.POLLIN)

    def receive(self) -> None:
        """Take a question; one of another client means that the one before has gone."""
        frames = self.port.socket.recv_multipart()
        if b"" not in frames or frames.index(b"") != len(frames) - 2:
            return  # no question of a REQ socket
        *envelope, question = frames
        with self._line.world:
            if envelope[:1] != self._envelope[:1]:
                self._line.disconnected()
                self._line.connected()
            self._envelope = envelope
            self._line.feed(question)

    def work(self) -> float | None:
        """Send the answers that are due; return in how many seconds there will be more."""
        with self._line.world:
            deliveries = self._line.take()
            wait_s = self._line.wait_s()
        for delivery in deliveries:
            if delivery.hang_up:
                self.port.reopen()
                self._envelope = []
            elif self._envelope:
                self.port.socket.send_multipart([*self._envelope, delivery.data])
        return wait_s


class _Messages:
    """Sends what a unit streams, as fast as its client takes it."""

    def __init__(self, port: _Port, line: Line, unit: MessageStream) -> None:
        self.port = port
        self._line = line
        self._unit = unit
        self._acquisition = unit.acquisition
        self._blocked = False

    @property
    def wanted(self) -> int:
        return int(self.port.zmq.POLLOUT) if self._blocked else 0

    def receive(self) -> None:
        """Nobody talks to a stream."""

    def work(self) -> float | None:
        """Send the message that is due; return in how many seconds there will be another."""
        if self._acquisition != self._unit.acquisition:
            self._acquisition = self._unit.acquisition
            self.port.reopen()
        with self._line.world:
            message = self._unit.next_message()
            wait_s = None if message is not None else self._unit.wait_s()
        self._blocked = message is not None and not self.port.socket.poll(0, self.port.zmq.POLLOUT)
        if message is not None and not self._blocked:
            self.port.socket.send(message)
            with self._line.world:
                self._unit.sent()
            return 0.0
        return None if wait_s is None else self._line.world.clock.real_wait_s(wait_s)


class ZmqServer:
    """Serves a unit and its further ports in one daemon thread; a context manager.

    Args:
        line: The line to the unit.
        port: TCP port on 127.0.0.1, 0 for a free one from which those of the further ports are free too.

    Raises:
        ConfigurationError: pyzmq is missing, the unit takes no whole messages, or a port is taken.
    """

    def __init__(self, line: Line, *, port: int = 0) -> None:
        try:
            import zmq
        except ImportError as error:
            raise ConfigurationError(
                "serving on ZeroMQ needs pyzmq, which is not installed", remedy="pip install 'qkdhw[zmq]'"
            ) from error
        if not line.keeps_messages:
            raise ConfigurationError(
                f"{type(line.unit).__name__} takes a stream of bytes, not messages", remedy="Serve it on tcp or pty."
            )
        self._zmq: Any = zmq
        self._context = zmq.Context()
        self._services: list[_Replies | _Messages] = []
        self._wake_read, self._wake_write = os.pipe()
        self._stopping = False
        try:
            self._bind(line, port)
        except zmq.ZMQError as error:
            self._release()
            raise ConfigurationError(
                f"cannot listen on {HOST}:{port}: {error.strerror}", remedy="Choose another port, or 0 for a free one."
            ) from error
        self.url = f"zmq://{HOST}:{self._services[0].port.port}"
        self._thread = threading.Thread(target=self._run, name="emulated-zeromq", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving."""
        self._stopping = True
        os.write(self._wake_write, b"x")
        self._thread.join(STOP_TIMEOUT_S)
        self._release()

    def _bind(self, line: Line, port: int) -> None:
        """Bind all ports; if any will do, try until those above and below it are free as well."""
        for left in reversed(range(1 if port else PORT_TRIES)):
            try:
                return self._bind_all(line, port)
            except self._zmq.ZMQError:
                if not left:
                    raise
            for service in self._services:
                service.port.socket.close(0)
            self._services.clear()
        return None

    def _bind_all(self, line: Line, port: int) -> None:
        first = _Port(self._zmq, self._context, self._zmq.ROUTER, port)
        self._services.append(_Replies(first, line))
        for further, above in line.further.values():
            number = first.port + above
            if isinstance(further.unit, MessageStream):
                bound = _Port(self._zmq, self._context, self._zmq.PAIR, number)
                self._services.append(_Messages(bound, further, further.unit))
            else:
                self._services.append(_Replies(_Port(self._zmq, self._context, self._zmq.ROUTER, number), further))

    def _run(self) -> None:
        while not self._stopping:
            # Streams come last in the list and work first: their sockets are open when an answer says so.
            waits_s = [wait_s for service in reversed(self._services) if (wait_s := service.work()) is not None]
            wanted = [(service.port.socket, service.wanted) for service in self._services if service.wanted]
            timeout_ms = math.ceil(1000 * min(waits_s)) if waits_s else -1
            ready = dict(self._zmq.zmq_poll([*wanted, (self._wake_read, self._zmq.POLLIN)], timeout_ms))
            for service in self._services:
                if ready.get(service.port.socket, 0) & self._zmq.POLLIN:
                    service.receive()

    def _release(self) -> None:
        self._context.destroy(linger=0)
        os.close(self._wake_read)
        os.close(self._wake_write)

"""A ZeroMQ socket as the wire under a byte link: REQ for commands, PAIR for a stream of messages.

A REQ socket that lost an answer takes no further question, so after a failed exchange the link is dialled anew with a
new socket; then no earlier answer can reach it.

Source:
    ZMTP 3.1 (rfc.zeromq.org/spec/37); libzmq 4.3 manual, zmq_setsockopt(3) and zmq_socket_monitor(3).
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
import weakref
from typing import Any, Literal

from qkdhw.errors import (
    ConfigurationError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
    WireFormatError,
)
from qkdhw.transport.byte_link import MESSAGE_LIMIT_BYTES

# A peer that vanished is noticed within 0.9 s. Not on PAIR: while a slow reader keeps the stream waiting, libzmq reads
# no heartbeats either and would take the peer for dead; there TCP's own keep-alive notices it after 1 + 3 x 1 s.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 300, 600
REDIAL_BY_ITSELF_MS = 3_600_000  # never: dialling is up to the link; -1 would throw away what has arrived
HIGH_WATER_MESSAGES = 8
_REMEDY = "check that the unit is on, then open it again"


class ZmqWire:
    """A connected ZeroMQ socket.

    Args:
        host: Name or address.
        port: Port number.
        kind: "req" or "pair".
        heartbeat: Whether a REQ socket asks every 0.3 s if the peer is there; libzmq older than 4.2 does not answer.
        timeout_s: Longest wait for the connection.
    """

    keeps_messages = True
    fresh_when_reopened = True

    def __init__(
        self, host: str, port: int, *, kind: Literal["req", "pair"], heartbeat: bool, timeout_s: float
    ) -> None:
        try:
            import zmq
            from zmq.utils.monitor import parse_monitor_message
        except ImportError as error:
            raise ConfigurationError(
                "zmq:// addresses need pyzmq, which is not installed", remedy="pip install 'qkdhw[zmq]'"
            ) from error
        self._zmq: Any = zmq
        self._parse_event = parse_monitor_message
        self._peer = f"{host}:{port}"
        self._lock = threading.Lock()
        self._rest = memoryview(b"")
        self._gone = ""
        self._closing = False
        context = zmq.Context()
        self._wake_read, self._wake_write = os.pipe()
        sockets: list[Any] = []
        # also when dropped without close(): pyzmq may then end the context before its sockets, which never returns
        self._release = weakref.finalize(self, _release, context, sockets, (self._wake_read, self._wake_write))
        self._release.atexit = False  # a thread may still wait on it, and the system takes it all
        try:
            self._socket: Any = context.socket(zmq.REQ if kind == "req" else zmq.PAIR)
            sockets.append(self._socket)
            self._set_options(heartbeat and kind == "req")
            self._monitor: Any = self._socket.get_monitor_socket()
            sockets.append(self._monitor)
            self._socket.connect(f"tcp://{_resolved(host, port)}")
            self._wait_for_handshake(kind, timeout_s)
        except BaseException:
            self._release()
            raise

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes of the messages' stream, b"" at the deadline; TransportClosedError at the end."""
        deadline_s = time.monotonic() + timeout_s
        while not self._rest:
            message = self.receive_message(MESSAGE_LIMIT_BYTES, timeout_s=max(0.0, deadline_s - time.monotonic()))
            if message is None:
                return b""
            self._rest = memoryview(message)
        piece, self._rest = bytes(self._rest[:limit]), self._rest[limit:]
        return piece

    def receive_message(self, limit: int, *, timeout_s: float) -> bytes | None:
        """Return the next message, which may be empty, or None at the deadline.

        Raises:
            WireFormatError: It is longer than `limit` bytes or has several parts; it is dropped.
            TransportClosedError: The peer is gone and every message of it was returned.
        """
        with self._lock:
            if not self._wait(self._zmq.POLLIN, timeout_s):
                return None
            parts: list[bytes] = self._socket.recv_multipart(self._zmq.NOBLOCK)
        if len(parts) != 1 or len(parts[0]) > limit:
            size = sum(map(len, parts))
            raise WireFormatError(
                f"{self._peer} sent {size} bytes in a message of {len(parts)} parts, not one part of at most {limit}",
                remedy="check that the address leads to the right unit",
            )
        return parts[0]

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Send all bytes as one message, or nothing, and return how many that was."""
        with self._lock:
            if not self._wait(self._zmq.POLLOUT, timeout_s):
                return 0
            self._socket.send(data, self._zmq.NOBLOCK)
        return len(data)

    def close(self) -> None:
        """Close it; a thread that waits on it is woken."""
        if self._closing:
            return
        self._closing = True
        os.write(self._wake_write, b"x")
        with self._lock:
            self._release()

    def _set_options(self, heartbeat: bool) -> None:
        zmq = self._zmq
        options = {
            zmq.LINGER: 0, zmq.IPV6: 1, zmq.RECONNECT_IVL: REDIAL_BY_ITSELF_MS,
            zmq.SNDHWM: HIGH_WATER_MESSAGES, zmq.RCVHWM: HIGH_WATER_MESSAGES, zmq.MAXMSGSIZE: MESSAGE_LIMIT_BYTES,
            zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: 1, zmq.TCP_KEEPALIVE_INTVL: 1, zmq.TCP_KEEPALIVE_CNT: 3,
        }  # fmt: skip
        if heartbeat:
            options |= {zmq.HEARTBEAT_IVL: HEARTBEAT_MS, zmq.HEARTBEAT_TIMEOUT: HEARTBEAT_TIMEOUT_MS}
        for option, value in options.items():
            self._socket.setsockopt(option, value)

    def _wait_for_handshake(self, kind: str, timeout_s: float) -> None:
        event, deadline_s, connected = self._zmq.Event, time.monotonic() + timeout_s, False
        not_zeromq = (
            f"{self._peer} takes connections, but is no ZeroMQ server for a {kind.upper()} socket",
            "check the port; a unit that speaks plain text is opened by tcp://",
        )
        while self._monitor.poll(_milliseconds(deadline_s - time.monotonic())):
            happened = self._parse_event(self._monitor.recv_multipart())["event"]
            if happened == event.HANDSHAKE_SUCCEEDED:
                return
            if happened == event.CONNECTED:
                connected = True
            elif happened in {event.CLOSED, event.CONNECT_RETRIED}:
                raise TransportError(
                    f"{self._peer} cannot be reached: connection refused",
                    remedy="check the address and port, and that the unit is on and listens",
                )
            elif happened != event.CONNECT_DELAYED:
                raise TransportError(not_zeromq[0], remedy=not_zeromq[1])
        if connected:
            raise TransportTimeoutError(f"{not_zeromq[0]}: no handshake within {timeout_s} s", remedy=not_zeromq[1])
        raise TransportTimeoutError(
            f"{self._peer} did not accept a connection within {timeout_s} s",
            remedy="check the address and that the unit is on",
        )

    def _wait(self, events: int, timeout_s: float) -> bool:
        """Wait until the socket is ready; what the peer had sent before it went is still received."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            if self._closing:
                raise self._closed("closed here")
            if self._gone and events == self._zmq.POLLOUT:  # the socket would keep it for a connection to come
                raise self._closed(self._gone)
            waiting = [(self._socket, events), (self._monitor, self._zmq.POLLIN), (self._wake_read, self._zmq.POLLIN)]
            timeout_ms = 0 if self._gone else _milliseconds(deadline_s - time.monotonic())
            ready = dict(self._zmq.zmq_poll(waiting, timeout_ms))
            if self._monitor in ready:
                happened = self._parse_event(self._monitor.recv_multipart())["event"]
                if happened in {self._zmq.Event.DISCONNECTED, self._zmq.Event.CLOSED}:
                    self._gone = "the other end hung up"
            elif self._socket in ready:
                return True
            elif self._gone:
                raise self._closed(self._gone)
            elif not ready:
                return False

    def _closed(self, why: str) -> TransportClosedError:
        return TransportClosedError(f"the ZeroMQ connection to {self._peer} is gone: {why}", remedy=_REMEDY)


def _release(context: Any, sockets: list[Any], pipe: tuple[int, int]) -> None:
    """Close a socket and its monitor, then what they live in."""
    if len(sockets) > 1:
        sockets[0].disable_monitor()
    for each in reversed(sockets):
        each.close(0)
    context.term()
    for end in pipe:
        os.close(end)


def _resolved(host: str, port: int) -> str:
    """Return the first address of a host, as libzmq, which says nothing of unknown names, writes it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise TransportError(
            f"no host is called {host!r}: {error.strerror}", remedy="check the host name in the address"
        ) from error
    return f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}"


def _milliseconds(wait_s: float) -> int:
    return max(0, math.ceil(wait_s * 1000.0))

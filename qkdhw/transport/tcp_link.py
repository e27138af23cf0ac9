"""A TCP connection as the wire under a byte link."""

from __future__ import annotations

import contextlib
import select
import socket
import time

from qkdhw.errors import TransportClosedError, TransportError, TransportTimeoutError

# A peer that vanished without closing (power, cable) is noticed 0.9 s after something was sent to it, and 2 s after its
# last sign of life while nothing is.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 900),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
# TCP repeats an unanswered call after 1, 3, 7, 15 s ...: a new one each second finds a unit sooner that is back.
_CALL_S = 1.0
DRAIN_BYTES = 65536
_ZMTP_SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"  # a ZeroMQ server says this first (ZMTP 3.1, 3.2)


class TcpWire:
    """A connected TCP socket.

    Args:
        host: Name or address.
        port: Port number.
        timeout_s: Longest wait for the connection.
    """

    keeps_messages = False
    fresh_when_reopened = True

    def __init__(self, host: str, port: int, *, timeout_s: float) -> None:
        self._peer = f"{host}:{port}"
        try:
            self._socket = _connected(host, port, timeout_s)
        except socket.gaierror as error:
            raise TransportError(
                f"no host is called {host!r}: {error.strerror}", remedy="check the host name in the address"
            ) from error
        except TimeoutError as error:
            raise TransportTimeoutError(
                f"{self._peer} did not accept a connection within {timeout_s} s",
                remedy="check the address and that the unit is on",
            ) from error
        except OSError as error:
            raise TransportError(
                f"{self._peer} cannot be reached: {error.strerror}",
                remedy="check the address and port, and that the unit is on and listens",
            ) from error
        for level, option, value in _KEEPALIVE:
            self._socket.setsockopt(level, option, value)
        self._socket.setblocking(False)

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes as soon as there are any, b"" at the deadline; TransportClosedError at the end."""
        try:
            if not self._wait(select.POLLIN, timeout_s):
                return b""
            data = self._socket.recv(limit)
        except BlockingIOError:
            return b""
        except (OSError, ValueError) as error:
            raise self._closed(str(error)) from error
        if not data:
            raise self._closed("the other end hung up")
        if data.startswith(_ZMTP_SIGNATURE):
            raise TransportError(
                f"{self._peer} speaks ZeroMQ, not plain bytes", remedy=f"open the unit by zmq://{self._peer}"
            )
        return data

    def receive_into(self, buffer: memoryview, *, timeout_s: float) -> int:
        """Fill the buffer from its front as soon as there is anything; 0 at the deadline."""
        try:
            if not self._wait(select.POLLIN, timeout_s):
                return 0
            size = self._socket.recv_into(buffer)
        except BlockingIOError:
            return 0
        except (OSError, ValueError) as error:
            raise self._closed(str(error)) from error
        if size == 0:
            raise self._closed("the other end hung up")
        return size

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Send what fits before the deadline and return how many bytes that was."""
        try:
            return self._socket.send(data) if self._wait(select.POLLOUT, timeout_s) else 0
        except BlockingIOError:
            return 0
        except (OSError, ValueError) as error:
            raise self._closed(str(error)) from error

    def close(self) -> None:
        """Close it; a thread that waits on it is woken."""
        with contextlib.suppress(OSError):  # not connected any more: nobody to tell
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def finish(self, *, timeout_s: float) -> None:
        """Say that nothing more comes and wait until the other end has hung up too, or the deadline."""
        deadline_s = time.monotonic() + timeout_s
        with contextlib.suppress(OSError, TransportError):  # it is closed
            self._socket.shutdown(socket.SHUT_WR)
            while (left_s := deadline_s - time.monotonic()) > 0 and self.receive(DRAIN_BYTES, timeout_s=left_s):
                pass

    def _wait(self, events: int, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, events)
        return bool(poll.poll(timeout_s * 1000.0))

    def _closed(self, why: str) -> TransportClosedError:
        return TransportClosedError(
            f"the connection to {self._peer} is gone: {why}", remedy="check that the unit is on, then open it again"
        )


def _connected(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect, calling anew each second until the deadline; TimeoutError then."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            return socket.create_connection((host, port), timeout=max(0.001, min(left_s, _CALL_S)))
        except TimeoutError:
            if left_s <= _CALL_S:
                raise

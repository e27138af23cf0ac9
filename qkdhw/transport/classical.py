"""The classical channel between two sites: whole messages over one TCP connection.

A message is a 4-byte big-endian length and that many bytes. Nothing is authenticated here: whoever uses the channel
seals what goes in and opens what comes out.
"""

from __future__ import annotations

import socket
import struct
import time
from types import TracebackType
from typing import Self

from qkdhw.errors import ConfigurationError, TransportClosedError, TransportError, TransportTimeoutError

LIMIT_BYTES = 64 * 1024 * 1024
# A peer whose machine lost power is noticed after 10 s of silence and three unanswered probes.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


def parse_endpoint(text: str) -> tuple[str, int]:
    """Split "host:port"; the host may be an IPv6 address in brackets.

    Raises:
        ConfigurationError: The text is not of this form.
    """
    host, colon, port = text.rpartition(":")
    is_number = port.isascii() and port.isdigit()
    if not colon or not is_host(host) or not is_number or int(port) > 65535:
        raise ConfigurationError(f"channel endpoint {text!r} is not host:port", remedy="write it like 127.0.0.1:5711")
    return host.strip("[]"), int(port)


def is_host(host: str) -> bool:
    """Say whether name resolution can be asked for it: an empty or overlong label would be a ValueError there."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return bool(host) and host.isprintable()


class TcpClassicalChannel:
    """A message channel over one connected TCP socket; a context manager.

    Args:
        connection: A connected stream socket, owned from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
        self.sent_bytes = 0
        self.received_bytes = 0

    @classmethod
    def connect(cls, endpoint: str, *, timeout_s: float = 10.0) -> Self:
        """Connect to a listening peer, trying again until the deadline.

        Raises:
            TransportError: Nobody listens there.
        """
        host, port = parse_endpoint(endpoint)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return cls(socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())))
            except OSError as error:
                if time.monotonic() + 0.1 >= deadline:
                    raise TransportError(
                        f"no peer site at {endpoint}: {error.strerror or error}",
                        remedy="start the other site, or correct channel.connect",
                    ) from error
                time.sleep(0.1)

    def send(self, message: bytes, *, timeout_s: float = 30.0) -> None:
        """Send one message whole."""
        if len(message) > LIMIT_BYTES:
            raise ValueError(f"message of {len(message)} bytes; at most {LIMIT_BYTES} are allowed")
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(struct.pack(">I", len(message)) + message)
        except TimeoutError as error:
            raise TransportTimeoutError(f"the peer site took no message within {timeout_s} s") from error
        except OSError as error:
            raise TransportClosedError(f"the peer site is gone: {error.strerror or error}") from error
        self.sent_bytes += 4 + len(message)

    def receive(self, *, timeout_s: float = 30.0, limit_bytes: int = LIMIT_BYTES) -> bytes:
        """Return the next whole message.

        Args:
            timeout_s: Longest wait for all of it.
            limit_bytes: Largest message that is taken.

        Raises:
            TransportTimeoutError: It did not come in time; the channel cannot be used any more.
            TransportClosedError: The peer closed the channel.
            TransportError: The peer announced a message above the size limit.
        """
        deadline = time.monotonic() + timeout_s
        (size,) = struct.unpack(">I", self._read(4, deadline, timeout_s))
        if size > limit_bytes:
            raise TransportError(f"the peer announced a message of {size} bytes; at most {limit_bytes} are allowed")
        message = self._read(size, deadline, timeout_s)
        self.received_bytes += 4 + size
        return message

    def _read(self, size: int, deadline: float, timeout_s: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                # A peer that sends a byte now and then must not hold this site beyond the deadline.
                self._socket.settimeout(_seconds_left(deadline))
                piece = self._socket.recv(min(size - len(data), 1 << 20))
            except TimeoutError as error:
                raise TransportTimeoutError(f"the peer site sent no whole message within {timeout_s} s") from error
            except OSError as error:
                raise TransportClosedError(f"the peer site is gone: {error.strerror or error}") from error
            if not piece:
                raise TransportClosedError("the peer site closed the classical channel")
            data += piece
        return bytes(data)

    def close(self) -> None:
        """Close the channel; closing twice is allowed."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _seconds_left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


class ChannelListener:
    """A listening socket that hands out one channel at a time; a context manager.

    Args:
        endpoint: "host:port"; port 0 takes a free one.
    """

    def __init__(self, endpoint: str) -> None:
        host, port = parse_endpoint(endpoint)
        try:
            self._socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise TransportError(
                f"cannot listen on {endpoint}: {error.strerror or error}",
                remedy="choose another channel.listen",
            ) from error

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._socket.getsockname()[1])

    def accept_socket(self, *, timeout_s: float) -> socket.socket:
        """Wait for a peer and return its connected socket."""
        self._socket.settimeout(timeout_s)
        try:
            connection, _ = self._socket.accept()
        except TimeoutError as error:
            raise TransportTimeoutError(f"no peer site connected within {timeout_s} s") from error
        return connection

    def accept(self, *, timeout_s: float) -> TcpClassicalChannel:
        """Wait for the peer site."""
        return TcpClassicalChannel(self.accept_socket(timeout_s=timeout_s))

    def close(self) -> None:
        """Stop listening; closing twice is allowed."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

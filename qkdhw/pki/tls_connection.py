"""A TLS 1.3 connection over a socket in which every wait has a deadline, and OpenSSL's errors in words."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from qkdhw.pki.openssl_psk import set_groups

from OpenSSL import SSL  # isort: skip  (after openssl_psk, which says what to install if it is missing)

GROUPS = b"X25519MLKEM768:X25519"
SUITE = b"TLS_AES_256_GCM_SHA384"
RECORD_BYTES = 16384
_T = TypeVar("_T")


def make_context() -> Any:
    """Return a pyOpenSSL context for TLS 1.3 with one suite and our groups, without certificates, that must verify."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(SUITE)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    set_groups(context, GROUPS)
    return context


class TlsConnection:
    """A pyOpenSSL connection and its socket, which it owns.

    Attributes:
        ssl: The pyOpenSSL connection.
    """

    def __init__(self, context: Any, sock: socket.socket, *, server_side: bool) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.ssl = SSL.Connection(context, sock)
        if server_side:
            self.ssl.set_accept_state()
        else:
            self.ssl.set_connect_state()

    def handshake(self, *, timeout_s: float) -> None:
        """Do the handshake; raises SSL.Error, OSError, or TimeoutError at the deadline."""
        self._run(self.ssl.do_handshake, timeout_s=timeout_s)

    def send(self, data: bytes, *, timeout_s: float) -> None:
        """Send all of `data`; raises as `handshake` does."""
        deadline = time.monotonic() + timeout_s
        for start in range(0, len(data), RECORD_BYTES):
            piece = memoryview(data)[start : start + RECORD_BYTES]
            while piece:
                sent = self._run(self.ssl.send, piece, timeout_s=deadline - time.monotonic())
                piece = piece[sent:]

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes, or b"" when the peer has closed in order; raises as `handshake` does."""
        try:
            return bytes(self._run(self.ssl.recv, limit, timeout_s=timeout_s))
        except SSL.ZeroReturnError:
            return b""

    def close(self, *, timeout_s: float = 1.0) -> None:
        """Say good-bye, wait for the peer's end of stream, and close the socket.

        A socket that is closed with unread data in it is reset, and the peer would lose the alert that tells it why.
        """
        deadline = time.monotonic() + timeout_s
        with self._socket, contextlib.suppress(SSL.Error, OSError):
            with contextlib.suppress(SSL.Error):
                self._run(self.ssl.shutdown, timeout_s=timeout_s)
            self._socket.shutdown(socket.SHUT_WR)
            while self._wait(select.POLLIN, deadline) and self._socket.recv(65536):
                pass

    def _run(self, operation: Callable[..., _T], *arguments: Any, timeout_s: float) -> _T:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return operation(*arguments)
            except SSL.WantReadError:
                ready = self._wait(select.POLLIN, deadline)
            except SSL.WantWriteError:
                ready = self._wait(select.POLLOUT, deadline)
            if not ready:
                message = f"no answer from the peer within {timeout_s:g} s"
                raise TimeoutError(message)

    def _wait(self, events: int, deadline: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, events)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def describe(error: Exception) -> str:
    """Return OpenSSL's reasons, or the operating system's, in words."""
    if isinstance(error, SSL.SysCallError):
        return "the peer closed the connection"
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return "; ".join(entry[2] for entry in error.args[0]) or "no reason given"
    return str(error) or type(error).__name__

"""What the instrument servers over TCP share: one thread that keeps conversations with a line's clients.

The protocols themselves do no I/O: a conversation takes bytes, and sends through its connection.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from qkdhw.errors import ConfigurationError

if TYPE_CHECKING:
    from qkdhw_emulators.line import Line

READ_BYTES = 65_536
OUTBOX_BYTES = 1 << 20
MOST_CONNECTIONS = 16
POLL_S = 0.01
SHORTEST_WAIT_S = 0.001
STOP_TIMEOUT_S = 5.0


class Conversation(Protocol):
    """One connection's side of a protocol, without I/O."""

    def receive(self, data: bytes) -> None:
        """Take bytes from the client in any split."""
        ...

    def work(self) -> None:
        """Send what is due by now."""
        ...

    def closed(self) -> None:
        """The connection has gone."""
        ...


class Connection:
    """One client's socket, with what has to go out.

    Args:
        client: Its socket; it is made non-blocking.
    """

    def __init__(self, client: socket.socket) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = client
        self._outbox = bytearray()
        self._hanging_up = False

    @property
    def full(self) -> bool:
        """Whether the client does not fetch what it is sent: give it no more, and take nothing from it."""
        return len(self._outbox) >= OUTBOX_BYTES

    @property
    def hanging_up(self) -> bool:
        """Whether this side has ended the connection."""
        return self._hanging_up

    @property
    def finished(self) -> bool:
        """Whether this side has ended the connection and everything before that is sent."""
        return self._hanging_up and not self._outbox

    def send(self, data: bytes) -> None:
        """Send bytes as soon as the client takes them."""
        if not self._hanging_up:
            self._outbox += data

    def hang_up(self) -> None:
        """Close the connection after what was sent; nothing more is taken from the client."""
        self._hanging_up = True

    def wanted_events(self) -> int:
        """Return the selector events to wait for."""
        reading = 0 if self.full or self._hanging_up else selectors.EVENT_READ
        return reading | (selectors.EVENT_WRITE if self._outbox else 0)

    def transfer(self, ready: int) -> bytes | None:
        """Write and read what the socket allows; return what came, None if the client has gone."""
        try:
            if ready & selectors.EVENT_WRITE:
                with memoryview(self._outbox) as waiting:
                    sent = self.socket.send(waiting)
                del self._outbox[:sent]
            if ready & selectors.EVENT_READ:
                return self.socket.recv(READ_BYTES) or None
        except BlockingIOError:
            pass
        except OSError:
            return None
        return b""

    def close(self) -> None:
        """Close the socket. Bytes that nobody reads would make it a reset, which takes back what was sent."""
        with suppress(OSError):
            for _ in range(MOST_CONNECTIONS):
                if not self.socket.recv(READ_BYTES):
                    break
        self.socket.close()


class TcpServer:
    """Serves one line to clients in one daemon thread.

    Not to be closed by who holds the lock.

    Args:
        line: The line to the unit.
        lock: Held during every call to the line.
        welcome: Makes the conversation of a new connection.
        host: Address to listen on.
        port: TCP port, 0 for a free one.

    Raises:
        ConfigurationError: The port is taken.
    """

    def __init__(
        self,
        line: Line,
        lock: AbstractContextManager[object],
        welcome: Callable[[Connection], Conversation],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        try:
            self._listener = socket.create_server((host, port), backlog=MOST_CONNECTIONS)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {error.strerror}", remedy="Choose another port, or 0 for a free one."
            ) from error
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._line = line
        self._lock = lock
        self._welcome = welcome
        self._conversations: dict[Connection, Conversation] = {}
        self._stopping = False
        self._listener.setblocking(False)
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"emulated-unit-{self.port}", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving and close everything."""
        self._stopping = True
        self._wake.send(b"x")
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        with self._lock:
            for connection in list(self._conversations):
                self._drop(connection)
        self._selector.close()
        for each in (self._listener, self._wake, self._woken):
            each.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stopping:
            with self._lock:
                wait_s = self._work()
            ready = {key.fileobj: events for key, events in self._selector.select(wait_s)}
            with self._lock:
                # In the order in which the clients came: what a client sent first on its first channel is taken first.
                for connection in list(self._conversations):
                    if connection.socket in ready:
                        self._serve(connection, ready[connection.socket])
                if self._listener in ready:
                    self._accept()

    def _work(self) -> float | None:
        """Let the conversations work; return how long to wait at most."""
        for connection, conversation in list(self._conversations.items()):
            if not connection.full and not connection.hanging_up:
                conversation.work()
        for connection in list(self._conversations):
            if connection.finished:
                self._drop(connection)
            else:
                self._watch(connection)
        if not self._conversations:
            return None
        line_s = self._line.wait_s()
        return POLL_S if line_s is None else min(max(line_s, SHORTEST_WAIT_S), POLL_S)

    def _watch(self, connection: Connection) -> None:
        wanted = connection.wanted_events()
        watched = connection.socket in self._selector.get_map()
        if wanted and watched:
            self._selector.modify(connection.socket, wanted)
        elif wanted:
            self._selector.register(connection.socket, wanted)
        elif watched:
            self._selector.unregister(connection.socket)

    def _serve(self, connection: Connection, ready: int) -> None:
        data = connection.transfer(ready)
        if data is None:
            self._drop(connection)
        elif data and not connection.hanging_up:
            self._conversations[connection].receive(data)

    def _accept(self) -> None:
        with suppress(OSError):  # the client may have gone again
            client, _ = self._listener.accept()
            connection = Connection(client)
            if len(self._conversations) >= MOST_CONNECTIONS:
                connection.close()
            else:
                self._conversations[connection] = self._welcome(connection)

    def _drop(self, connection: Connection) -> None:
        with suppress(KeyError):
            self._selector.unregister(connection.socket)
        connection.close()
        self._conversations.pop(connection).closed()

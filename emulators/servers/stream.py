"""Serve emulated units as streams of bytes: on a pseudo-terminal or a TCP port. One thread serves all of them."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import tty
from contextlib import suppress
from pathlib import Path

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.line import Line

READ_BYTES = 65_536
STREAM_LOW_BYTES = 65_536
STOP_TIMEOUT_S = 5.0


class Port:
    """One line on one file descriptor, with what has to go out.

    Args:
        line: The line to the unit.
        fd: Non-blocking file descriptor to its client, or -1 while there is none.
    """

    def __init__(self, line: Line, fd: int = -1) -> None:
        self.line = line
        self.fd = fd
        self.client: socket.socket | None = None
        self._outbox = bytearray()
        self._hang_up = False

    def connect(self, client: socket.socket) -> None:
        """Serve a new client in place of the old one; the unit keeps its state."""
        self.disconnect()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client, self.fd = client, client.fileno()
        self.line.connected()

    def disconnect(self) -> None:
        """Let the TCP client go, if there is one."""
        if self.client is not None:
            self.client.close()
            self.client, self.fd = None, -1
            self.forget()

    def forget(self) -> None:
        """Drop what was on its way in either direction."""
        self._outbox.clear()
        self._hang_up = False
        self.line.disconnected()

    @property
    def wants_to_hang_up(self) -> bool:
        """Whether a fault drops the connection and everything before it is sent."""
        return self._hang_up and not self._outbox

    def work(self) -> int:
        """Collect what is due while there is room; return the selector events to wait for."""
        if self.fd >= 0 and not self._hang_up and len(self._outbox) < STREAM_LOW_BYTES:
            for delivery in self.line.take():
                self._outbox += delivery.data
                if delivery.hang_up:
                    self._hang_up = True
                    break
        reading = 0 if self.line.busy else selectors.EVENT_READ
        return reading | (selectors.EVENT_WRITE if self._outbox else 0)

    def transfer(self, ready: int) -> bool:
        """Read and write what the file descriptor allows; False if the client has gone."""
        try:
            if ready & selectors.EVENT_WRITE and self._outbox:
                with memoryview(self._outbox) as waiting:
                    written = os.write(self.fd, waiting[: 1 << 20])
                del self._outbox[:written]
            if ready & selectors.EVENT_READ:
                data = os.read(self.fd, READ_BYTES)
                self.line.feed(data)
                return bool(data)
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


class StreamServer:
    """Serves lines in one daemon thread until it is closed.

    Args:
        poll_s: Look at the units this often even if nothing comes in, or None; needed for streams in real time.
    """

    def __init__(self, *, poll_s: float | None = None) -> None:
        self._poll_s = poll_s
        self._selector = selectors.DefaultSelector()
        self._ports: list[Port] = []
        self._listeners: dict[int, tuple[socket.socket, Port]] = {}
        self._terminals: dict[Port, tuple[int, Path | None]] = {}
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="emulated-units", daemon=True)

    def add_tcp(self, line: Line, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """Put a unit on a TCP port, 0 for a free one, and return its URL; to be called before `start`.

        Raises:
            ConfigurationError: The port is taken.
        """
        try:
            listener = socket.create_server((host, port), backlog=8)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {error.strerror}", remedy="Choose another port, or 0 for a free one."
            ) from error
        listener.setblocking(False)
        self._ports.append(Port(line))
        self._listeners[listener.fileno()] = (listener, self._ports[-1])
        self._selector.register(listener, selectors.EVENT_READ)
        return f"tcp://{host}:{listener.getsockname()[1]}"

    def add_pty(self, line: Line, *, symlink: Path | None = None) -> str:
        """Put a unit on a new pseudo-terminal and return its URL; to be called before `start`.

        The server keeps the far end open too, so the terminal outlives its clients. A unit that drops the connection
        is unplugged: its terminal goes, and a new one comes.

        Args:
            line: The line to the unit.
            symlink: Symbolic link to keep to the terminal: its address stays the same when the terminal changes. One
                left over from before is replaced, a file is not.

        Raises:
            ConfigurationError: The symbolic link cannot be made.
        """
        port = Port(line)
        self._ports.append(port)
        self._plug(port, symlink)
        slave, _ = self._terminals[port]
        return f"serial://{symlink or os.ttyname(slave)}"

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving and close everything."""
        self._stopping = True
        os.write(self._wake_write, b"x")
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        for port in self._ports:
            port.disconnect()
        for port in list(self._terminals):
            self._unplug(port, keep_link=False)
        for listener, _ in self._listeners.values():
            listener.close()
        self._selector.close()
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)

    def _run(self) -> None:
        while not self._stopping:
            waits_s = [] if self._poll_s is None else [self._poll_s]
            for port in self._ports:
                with port.line.world:
                    self._watch(port)
                    if (wait_s := port.line.wait_s()) is not None and port.fd >= 0:
                        waits_s.append(wait_s)
            for key, ready in self._selector.select(min(waits_s, default=None)):
                if key.fd in self._listeners:
                    self._accept(*self._listeners[key.fd])
                elif isinstance(key.data, Port) and key.data.fd == key.fd:
                    with key.data.line.world:
                        if not key.data.transfer(ready):
                            self._drop(key.data)

    def _watch(self, port: Port) -> None:
        """Let the port work and wait for what it then needs."""
        wanted = port.work()
        if port.wants_to_hang_up:
            self._drop(port)
            wanted = selectors.EVENT_READ
        if port.fd < 0:
            return
        if port.fd in self._selector.get_map():
            if wanted:
                self._selector.modify(port.fd, wanted, port)
            else:
                self._selector.unregister(port.fd)
        elif wanted:
            self._selector.register(port.fd, wanted, port)

    def _accept(self, listener: socket.socket, port: Port) -> None:
        with suppress(OSError):  # the client may have gone again
            client, _ = listener.accept()
            with port.line.world:
                self._drop(port)
                port.connect(client)

    def _drop(self, port: Port) -> None:
        if port.fd >= 0:
            with suppress(KeyError):
                self._selector.unregister(port.fd)
        if port.client is not None:
            port.disconnect()
        elif port in self._terminals:
            symlink = self._unplug(port)
            port.forget()
            self._plug(port, symlink)

    def _plug(self, port: Port, symlink: Path | None) -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        port.fd = master
        self._terminals[port] = (slave, symlink)
        if symlink is None:
            return
        try:
            if symlink.is_symlink():
                symlink.unlink()
            symlink.symlink_to(os.ttyname(slave))
        except OSError as error:
            raise ConfigurationError(
                f"cannot make the symbolic link {symlink}: {error.strerror}", remedy="Choose a path that is free."
            ) from error

    def _unplug(self, port: Port, *, keep_link: bool = True) -> Path | None:
        slave, symlink = self._terminals.pop(port)
        if symlink is not None and not keep_link:
            with suppress(OSError):
                if symlink.readlink() == Path(os.ttyname(slave)):
                    symlink.unlink()
        os.close(port.fd)
        os.close(slave)
        port.fd = -1
        return symlink

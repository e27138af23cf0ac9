"""Put emulated units on a pseudo-terminal or a TCP port, where drivers find them like real ones.

One thread serves all units of a link: the units themselves do no I/O, and nothing random depends on timing.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import threading
import time
import tty
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.units.generic_tx import EmulatedGenericTx
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1

READ_BYTES = 4096
STREAM_LOW_BYTES = 16_384
REPLIES_HIGH_BYTES = 4 << 20
PACE_CHECK_S = 0.01
STOP_TIMEOUT_S = 5.0


@runtime_checkable
class EmulatedUnit(Protocol):
    """A unit without I/O: bytes in, bytes out."""

    def receive(self, data: bytes) -> bytes:
        """Take command bytes in any split and return the answers."""
        ...

    def reset_input(self) -> None:
        """Forget a half-received command."""
        ...


@runtime_checkable
class StreamingUnit(EmulatedUnit, Protocol):
    """A unit that also sends on its own."""

    def read_stream(self, limit_bytes: int) -> bytes:
        """Return what the stream has next, or b""."""
        ...


class Port:
    """One unit on one file descriptor, with what has come in and what has to go out.

    Args:
        unit: The unit.
        fd: Non-blocking file descriptor to its client, or -1 while there is none.
    """

    def __init__(self, unit: EmulatedUnit, fd: int = -1) -> None:
        self.unit = unit
        self.fd = fd
        self.client: socket.socket | None = None
        self._inbox = bytearray()
        self._outbox = bytearray()

    def connect(self, client: socket.socket) -> None:
        """Serve a new client in place of the old one; the unit keeps its state."""
        self.disconnect()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client, self.fd = client, client.fileno()

    def disconnect(self) -> None:
        """Let the TCP client go, if there is one."""
        if self.client is not None:
            self.client.close()
            self.client, self.fd = None, -1
            self._inbox.clear()
            self._outbox.clear()
            self.unit.reset_input()

    def work(self) -> int:
        """Answer commands and take from the stream while there is room; return the selector events to wait for.

        Commands are taken one by one, so that a client that asks and never reads cannot fill the memory.
        """
        while self._inbox and len(self._outbox) < REPLIES_HIGH_BYTES:
            end = self._inbox.find(b"\n") + 1 or len(self._inbox)
            self._outbox += self.unit.receive(bytes(self._inbox[:end]))
            del self._inbox[:end]
        if isinstance(self.unit, StreamingUnit) and self.fd >= 0 and len(self._outbox) < STREAM_LOW_BYTES:
            self._outbox += self.unit.read_stream(STREAM_LOW_BYTES)
        reading = 0 if self._inbox else selectors.EVENT_READ
        return reading | (selectors.EVENT_WRITE if self._outbox else 0)

    def transfer(self, ready: int) -> bool:
        """Read and write what the file descriptor allows; False if the client has gone."""
        try:
            if ready & selectors.EVENT_WRITE and self._outbox:
                del self._outbox[: os.write(self.fd, self._outbox[: 1 << 20])]
            if ready & selectors.EVENT_READ:
                data = os.read(self.fd, READ_BYTES)
                self._inbox += data
                return bool(data)
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


class Server:
    """Serves units in one daemon thread until it is closed.

    Args:
        poll_s: Look at the units this often even if nothing comes in, or None; needed with a pace.
    """

    def __init__(self, *, poll_s: float | None = None) -> None:
        self._poll_s = poll_s
        self._selector = selectors.DefaultSelector()
        self._ports: list[Port] = []
        self._listeners: dict[int, tuple[socket.socket, Port]] = {}
        self._close_fds: list[int] = []
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="emulated-units", daemon=True)

    def add_tcp(self, unit: EmulatedUnit, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """Put a unit on a TCP port, 0 for a free one, and return its URL; to be called before `start`."""
        try:
            listener = socket.create_server((host, port), backlog=8)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {error.strerror}", remedy="Choose another port, or 0 for a free one."
            ) from error
        listener.setblocking(False)
        self._ports.append(Port(unit))
        self._listeners[listener.fileno()] = (listener, self._ports[-1])
        self._selector.register(listener, selectors.EVENT_READ)
        return f"tcp://{host}:{listener.getsockname()[1]}"

    def add_pty(self, unit: EmulatedUnit) -> str:
        """Put a unit on a new pseudo-terminal and return its URL; to be called before `start`.

        The server keeps the far end open too, so the terminal outlives its clients.
        """
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        self._close_fds += [master, slave]
        self._ports.append(Port(unit, master))
        return f"serial://{os.ttyname(slave)}"

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
        for listener, _ in self._listeners.values():
            listener.close()
        self._selector.close()
        for fd in (*self._close_fds, self._wake_read, self._wake_write):
            os.close(fd)

    def _run(self) -> None:
        while not self._stopping:
            for port in self._ports:
                self._watch(port)
            for key, ready in self._selector.select(self._poll_s):
                if key.fd in self._listeners:
                    self._accept(*self._listeners[key.fd])
                elif isinstance(key.data, Port) and key.data.fd == key.fd and not key.data.transfer(ready):
                    self._drop(key.data)

    def _watch(self, port: Port) -> None:
        """Let the port work and wait for what it then needs."""
        wanted = port.work()
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
            self._drop(port)
            port.connect(client)

    def _drop(self, port: Port) -> None:
        if port.client is not None:
            with suppress(KeyError):
                self._selector.unregister(port.fd)
            port.disconnect()


@dataclass(frozen=True, slots=True)
class ServedLink:
    """Where the two units of an emulated link are.

    Attributes:
        transmitter_url: GTX/1 over TCP.
        receiver_url: TDC1 over a pseudo-terminal.
        transmitter: The emulated unit, to switch faults on and off.
        receiver: The emulated unit, to switch faults on and off.
    """

    transmitter_url: str
    receiver_url: str
    transmitter: EmulatedGenericTx
    receiver: EmulatedSFifteenTdc1


@dataclass(frozen=True, slots=True)
class ServedUnit:
    """Where an emulated unit is."""

    url: str


@contextmanager
def serve_link(
    parameters: LinkParameters | None = None,
    *,
    seed: int,
    transmitter_port: int = 0,
    receiver_link: Path | None = None,
    pace: float | None = None,
    transmitter_faults: Iterable[Fault] = (),
    receiver_faults: Iterable[Fault] = (),
) -> Iterator[ServedLink]:
    """Serve a transmitter on TCP and a receiver on a pseudo-terminal, fed by one optical link.

    Args:
        parameters: The link, or None for the defaults.
        seed: Seed of everything random, 0 or more.
        transmitter_port: TCP port on 127.0.0.1, 0 for a free one.
        receiver_link: Symbolic link to make to the pseudo-terminal, removed at the end.
        pace: Seconds of the link per second at most, or None for as fast as both ends read.
        transmitter_faults: Faults of the transmitter.
        receiver_faults: Faults of the receiver.

    Yields:
        Where the units are.

    Raises:
        ConfigurationError: The port is taken, or the symbolic link cannot be made.
    """
    run = LinkRun(parameters or LinkParameters(), seed=seed, pace=pace, now_s=time.monotonic)
    transmitter = EmulatedGenericTx(run, faults=transmitter_faults)
    receiver = EmulatedSFifteenTdc1(run, faults=receiver_faults)
    server = Server(poll_s=None if pace is None else PACE_CHECK_S)
    try:
        transmitter_url = server.add_tcp(transmitter, port=transmitter_port)
        receiver_url = server.add_pty(receiver)
        with _symbolic_link(receiver_link, receiver_url.removeprefix("serial://")):
            server.start()
            yield ServedLink(transmitter_url, receiver_url, transmitter, receiver)
    finally:
        server.close()


@contextmanager
def serve_unit(unit: EmulatedUnit, *, transport: Literal["pty", "tcp"] = "pty", port: int = 0) -> Iterator[ServedUnit]:
    """Serve one emulated unit on a pseudo-terminal or on a TCP port of 127.0.0.1."""
    server = Server()
    try:
        url = server.add_pty(unit) if transport == "pty" else server.add_tcp(unit, port=port)
        server.start()
        yield ServedUnit(url)
    finally:
        server.close()


@contextmanager
def _symbolic_link(link: Path | None, target: str) -> Iterator[None]:
    """Keep a symbolic link while the body runs; one left over from before is replaced, a file is not."""
    if link is None:
        yield
        return
    try:
        if link.is_symlink():
            link.unlink()
        link.symlink_to(target)
    except OSError as error:
        raise ConfigurationError(
            f"cannot make the symbolic link {link}: {error.strerror}", remedy="Choose a path that is free."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            if link.readlink() == Path(target):
                link.unlink()


if __name__ == "__main__":
    from qkdhw_emulators.serve_command import run_link_command

    sys.exit(run_link_command())

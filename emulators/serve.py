"""Put emulated units where drivers find them like real ones: terminals, sockets, or inside the process."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum, unique
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.faults import Fault, FaultSwitches
from qkdhw_emulators.in_process import registered
from qkdhw_emulators.line import EmulatedUnit, Line
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.servers.stream import StreamServer
from qkdhw_emulators.units.generic_tx import EmulatedGenericTx
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1
from qkdhw_emulators.world import World

PACE_CHECK_S = 0.01


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
    transmitter = EmulatedGenericTx(light=run, faults=transmitter_faults)
    receiver = EmulatedSFifteenTdc1(light=run, faults=receiver_faults)
    server = StreamServer(poll_s=None if pace is None else PACE_CHECK_S)
    world = World(seed=seed)
    try:
        transmitter_url = server.add_tcp(Line(transmitter, world), port=transmitter_port)
        receiver_url = server.add_pty(Line(receiver, world), symlink=receiver_link)
        server.start()
        yield ServedLink(transmitter_url, receiver_url, transmitter, receiver)
    finally:
        server.close()


@unique
class ServedOn(StrEnum):
    """What an emulated unit can be put on."""

    EMU = "emu"
    PTY = "pty"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class ServedUnit:
    """An emulated unit that can be opened.

    Attributes:
        url: Its address, for `qkdhw.open_unit`.
        unit: The emulated unit itself.
        line: The line to it.
        world: Its surroundings: clock and physical conditions.
        faults: Faults of unit and line; may be changed at any time.
    """

    url: str
    unit: Any
    line: Line
    world: World
    faults: FaultSwitches


@contextmanager
def serve_unit(
    unit: EmulatedUnit,
    world: World | None = None,
    *,
    transport: str = ServedOn.PTY,
    port: int = 0,
    path: Path | None = None,
    faults: Iterable[Fault | str] = (),
) -> Iterator[ServedUnit]:
    """Serve one emulated unit.

    Args:
        unit: The unit.
        world: Its surroundings, the same that it was made with; new ones if left out.
        transport: What to put it on, a `ServedOn`.
        port: TCP port on 127.0.0.1, 0 for a free one.
        path: With "pty": where the symbolic link to the terminal is; in a new temporary folder if left out.
        faults: Faults to switch on.

    Raises:
        ConfigurationError: The port is taken, or the symbolic link cannot be made.
    """
    line = Line(unit, world, faults=faults)
    with ExitStack() as stack:
        url = _put_on(stack, ServedOn(transport), line, port, path)
        yield ServedUnit(url, unit, line, line.world, line.faults)


@contextmanager
def serve_at(url: str, line: Line) -> Iterator[str]:
    """Serve a unit at exactly this address, which must be this machine's and free.

    Args:
        url: tcp://127.0.0.1:PORT, serial:///PATH (a symbolic link to a terminal is made there) or emu://.
        line: The line to the unit.

    Yields:
        The address; of emu:// the one that it was given.

    Raises:
        ConfigurationError: The address is not of this machine, or is taken, or cannot be served.
    """
    parts = urlsplit(url)
    if parts.hostname not in {None, "127.0.0.1", "localhost"} and parts.scheme != "emu":
        raise ConfigurationError(f"{url} is not on this machine", remedy="Write 127.0.0.1 to have the unit emulated.")
    transport = {"serial": ServedOn.PTY, "tcp": ServedOn.TCP, "emu": ServedOn.EMU}.get(parts.scheme)
    if transport is None:
        raise ConfigurationError(f"{url} cannot be served", remedy="Use a tcp://, serial:// or emu:// address.")
    port = parts.port if parts.scheme != "emu" else None
    with ExitStack() as stack:
        yield _put_on(stack, transport, line, port or 0, Path(parts.path) if parts.scheme == "serial" else None)


def _put_on(stack: ExitStack, transport: ServedOn, line: Line, port: int, path: Path | None) -> str:
    if transport is ServedOn.EMU:
        return stack.enter_context(registered(line))
    server = StreamServer()
    stack.callback(server.close)
    if transport is ServedOn.TCP:
        url = server.add_tcp(line, port=port)
    else:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qkdhw-"))) if path is None else None
        url = server.add_pty(line, symlink=path or (folder / "unit" if folder else None))
    server.start()
    return url


if __name__ == "__main__":
    from qkdhw_emulators.serve_command import run_link_command

    sys.exit(run_link_command())

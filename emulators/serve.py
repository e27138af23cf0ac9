"""Put emulated units where drivers find them like real ones: terminals, sockets, or inside the process."""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.address import ServedOn, place_of, served_on
from qkdhw_emulators.faults import Fault, FaultSwitches
from qkdhw_emulators.in_process import registered
from qkdhw_emulators.line import EmulatedUnit, Line
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.servers.hislip import HislipServer
from qkdhw_emulators.servers.rfc2217 import Rfc2217Server
from qkdhw_emulators.servers.stream import StreamServer
from qkdhw_emulators.servers.vxi11 import Vxi11Server
from qkdhw_emulators.servers.zeromq import ZmqServer
from qkdhw_emulators.units.generic_tx import EmulatedGenericTx
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1
from qkdhw_emulators.world import World

if TYPE_CHECKING:
    from qkdhw_emulators.servers.usb import UsbBus

PACE_CHECK_S = 0.01
MAX_PORT = 65535


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
        ConfigurationError: There is no such transport or fault, the port is taken, or the symbolic link cannot be made.
    """
    line = Line(unit, world, faults=faults)
    with ExitStack() as stack:
        url = _put_on(stack, served_on(transport), line, port, path)
        yield ServedUnit(url, unit, line, line.world, line.faults)


@contextmanager
def serve_at(url: str, line: Line) -> Iterator[str]:
    """Serve a unit at exactly this address, which must be this machine's and free.

    Args:
        url: As the product takes it; of serial:// a symbolic link to a terminal is made at its path.
        line: The line to the unit.

    Yields:
        The address where it is: with the port if it named none, of emu:// and usb:// the one that it was given.

    Raises:
        ConfigurationError: The address is not of this machine, or is taken, or cannot be served.
    """
    place = place_of(url)
    with ExitStack() as stack:
        yield _put_on(stack, place.on, line, place.port, place.path)


def _put_on(stack: ExitStack, transport: ServedOn, line: Line, port: int, path: Path | None) -> str:
    if transport is ServedOn.EMU:
        return stack.enter_context(registered(line))
    if port and (wrong := [port + above for _, above in line.further.values() if not 0 < port + above <= MAX_PORT]):
        raise ConfigurationError(
            f"the unit on port {port} would need port {wrong[0]} too",
            remedy="Choose another port, or 0 for a free one.",
        )
    if transport in {ServedOn.HISLIP, ServedOn.VXI11, ServedOn.USBTMC}:
        line.message_end = b"\n"
    if transport in {ServedOn.USB, ServedOn.USBTMC}:
        return stack.enter_context(_plugged_in(line, transport))
    if transport in {ServedOn.HISLIP, ServedOn.VXI11, ServedOn.RFC2217, ServedOn.ZMQ}:
        return _put_on_network(stack, transport, line, port)
    server = StreamServer()
    stack.callback(server.close)
    if transport is ServedOn.TCP:
        first = port or _free_port([above for _, above in line.further.values()])
        url = server.add_tcp(line, port=first)
        for further, above in line.further.values():
            server.add_tcp(further, port=first + above)
    else:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qkdhw-"))) if path is None else None
        url = server.add_pty(line, symlink=path or (folder / "unit" if folder else None))
    server.start()
    return url


def _free_port(aboves: list[int]) -> int:
    """Return a port from which those of a unit's further ports are free as well; 0, any, if it has none."""
    while aboves:
        with ExitStack() as stack, suppress(OSError, OverflowError):
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for above in aboves:
                stack.enter_context(socket.create_server(("127.0.0.1", first + above)))
            return int(first)
    return 0


def _put_on_network(stack: ExitStack, transport: ServedOn, line: Line, port: int) -> str:
    if transport is ServedOn.RFC2217:
        return stack.enter_context(Rfc2217Server(line, line.world, port=port)).url
    if transport is ServedOn.ZMQ:
        return stack.enter_context(ZmqServer(line, port=port)).url
    if transport is ServedOn.HISLIP:
        return f"visa://{stack.enter_context(HislipServer(line, line.world, port=port)).resource}"
    return f"visa://{stack.enter_context(Vxi11Server(line, line.world, port=port)).resource}"


@cache
def _process_bus() -> UsbBus:
    from qkdhw_emulators.servers.usb import UsbBus

    return UsbBus()


@contextmanager
def _plugged_in(line: Line, transport: ServedOn) -> Iterator[str]:
    """Plug a unit into this process's emulated USB, which is there instead of the real one as long as any unit is."""
    from qkdhw_emulators.servers.usb_bulk import UsbBulk
    from qkdhw_emulators.servers.usb_unit import UsbDescriptor
    from qkdhw_emulators.servers.usbtmc import UsbTmc

    descriptor = getattr(line.unit, "usb_descriptor", None)
    if not isinstance(descriptor, UsbDescriptor):
        raise ConfigurationError(
            f"{type(line.unit).__name__} is no USB unit", remedy="Serve it on something else, such as tcp."
        )
    unit = UsbTmc(line, descriptor) if transport is ServedOn.USBTMC else UsbBulk(line, descriptor)
    address = f"usb://{descriptor.vid:04x}:{descriptor.pid:04x}/{descriptor.serial_number}"
    bus = _process_bus()
    with bus.install():
        bus.plug(unit, line.world)
        try:
            yield f"visa://{unit.resource}" if isinstance(unit, UsbTmc) else address
        finally:
            bus.unplug(unit)


if __name__ == "__main__":
    from qkdhw_emulators.serve_command import run_link_command

    sys.exit(run_link_command())

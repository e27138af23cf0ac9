"""emu:// addresses: emulated units inside the process, without a socket or terminal between.

`emu://NAME?seed=1&pace=none&fault=drop:rate=0.1` makes a new unit of an installed emulator; `emu://#LABEL` leads to one
that this process serves. `port=NAME` leads to a further port of a unit: of the one served, or of the one made last by
this address without it. Found by the product through the entry-point group qkdhw.transports.
"""

from __future__ import annotations

import inspect
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from qkdhw.errors import (
    ConfigurationError,
    NotSupportedError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
)
from qkdhw_emulators.line import Line
from qkdhw_emulators.servers.usb_unit import UsbGoneError, UsbNotReadyError, UsbStallError
from qkdhw_emulators.world import VirtualClock, World

FORM = "Write emu://NAME?seed=1&pace=none&fault=drop, or emu://#LABEL for a unit that is served in this process."
LONGEST_NAP_S = 0.01

_registered: dict[str, Line] = {}
_made: weakref.WeakValueDictionary[tuple[str, tuple[tuple[str, str], ...]], Line] = weakref.WeakValueDictionary()
_labels = itertools.count(1)


def emulator_class(name: str) -> Any:
    """Return the class of an installed emulator, by its name or by what only its name ends in ("tdc1").

    Raises:
        ConfigurationError: No emulator has this name.
    """
    found = {point.name: point for point in entry_points(group="qkdhw.emulators")}
    named = [each for each in found if each == name] or [each for each in found if each.endswith(f"-{name}")]
    if len(named) != 1:
        raise ConfigurationError(f"no emulator is called {name!r}", remedy=f"Known are: {', '.join(sorted(found))}.")
    try:
        return found[named[0]].load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"emulator {name!r} cannot be imported: {error}", remedy="Install the package that brings it again."
        ) from error


def make_unit(name: str, world: World) -> Any:
    """Make an emulated unit by name.

    Args:
        name: Name in the entry-point group qkdhw.emulators.
        world: Its surroundings, the only argument of its class; a class without arguments is fine too.
    """
    emulator = emulator_class(name)
    return emulator(world) if inspect.signature(emulator).parameters else emulator()


@contextmanager
def registered(line: Line) -> Iterator[str]:
    """Give a unit an address inside this process while the body runs."""
    label = f"{line.world.label or type(line.unit).__name__}-{next(_labels)}"
    _registered[label] = line
    try:
        yield f"emu://#{label}"
    finally:
        del _registered[label]


def dialler(url: str) -> Callable[[float], EmulatedWire]:
    """Return what opens the wire to an emu:// address; each dial reaches the same unit.

    Raises:
        ConfigurationError: The address is malformed, or there is no such unit.
    """
    parts = urlsplit(url)
    if parts.path not in {"", "/"} or bool(parts.netloc) == bool(parts.fragment):
        raise ConfigurationError(f"address {url!r} is not understood", remedy=FORM)
    options = parse_qsl(parts.query, keep_blank_values=True)
    ports = [value for key, value in options if key == "port"]
    others = tuple(option for option in options if option[0] != "port")
    if parts.fragment:
        line = _registered.get(parts.fragment)
    elif ports:
        line = _made.get((parts.netloc, others))
    else:
        line = _made[parts.netloc, others] = _line_of(url, parts.netloc, others)
    if line is None or (parts.fragment and others):
        raise ConfigurationError(f"no emulated unit is served as {url!r}", remedy=FORM)
    for port in ports:
        if port not in line.further:
            raise ConfigurationError(f"the unit at {url!r} has no port {port!r}", remedy=FORM)
        line = line.further[port][0]
    return lambda _timeout_s: EmulatedWire(line)


def _line_of(url: str, name: str, options: tuple[tuple[str, str], ...]) -> Line:
    """Make a new unit in a world of its own."""
    values = {"seed": "1", "pace": "1"} | {key: value for key, value in options if key != "fault"}
    try:
        seed, pace = int(values.pop("seed")), values.pop("pace")
        world = World(seed=seed, clock=VirtualClock(pace=None if pace == "none" else float(pace)))
    except ValueError as error:
        raise ConfigurationError(f"address {url!r} is not understood: {error}", remedy=FORM) from error
    if values:
        raise ConfigurationError(f"address {url!r} has an unknown option {min(values)!r}", remedy=FORM)
    return Line(make_unit(name, world), world, faults=[value for key, value in options if key == "fault"])


class EmulatedWire:
    """The wire to a unit inside the process (`qkdhw.transport.byte_link.Wire`).

    Args:
        line: The line to the unit.
    """

    fresh_when_reopened = True

    def __init__(self, line: Line) -> None:
        self.keeps_messages = line.keeps_messages
        self._line = line
        self._pieces: deque[bytes] = deque()
        self._pipes: dict[int, EmulatedWire] = {}
        self._open = True
        with line.world:
            line.disconnected()
            line.connected()

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes as soon as there are any, b"" at the deadline; TransportClosedError at the end."""
        while self._wait_for_piece(limit, timeout_s):
            if piece := self._next_piece(limit):
                return piece
        return b""

    def receive_message(self, limit: int, *, timeout_s: float) -> bytes | None:
        """Return the next message, which may be empty, or None at the deadline."""
        return self._pieces.popleft() if self._wait_for_piece(limit, timeout_s) else None

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Hand over everything."""
        if not self._open:
            raise self._closed()
        with self._line.world:
            self._line.feed(bytes(data))
        return len(data)

    def control_in(self, request_type: int, request: int, value: int, index: int, size: int, timeout_s: float) -> bytes:
        """USB control transfer to the host, of a unit that has one."""
        with self._line.world, _as_usb_link():
            return bytes(self._usb().control_in(request_type, request, value, index, size))

    def control_out(
        self, request_type: int, request: int, value: int, index: int, data: bytes, timeout_s: float
    ) -> None:
        """USB control transfer to the unit, if it has one."""
        with self._line.world, _as_usb_link():
            self._usb().control_out(request_type, request, value, index, data)

    def read_pipe(self, pipe: int, limit: int, timeout_s: float) -> bytes:
        """Read from the pipe with this address: the unit's further port of that name, such as "0x82"."""
        if not self._open:
            raise self._closed()
        if pipe not in self._pipes:
            name = f"{pipe:#04x}"
            if name not in self._line.further:
                raise NotSupportedError(f"this emulated unit has no pipe {name}")
            self._pipes[pipe] = EmulatedWire(self._line.further[name][0])
        return self._pipes[pipe].receive(limit, timeout_s=timeout_s)

    def close(self) -> None:
        """Close it."""
        self._open = False

    def _wait_for_piece(self, limit: int, timeout_s: float) -> bool:
        """Fetch until there is something; False at the deadline."""
        deadline_s = time.monotonic() + timeout_s
        while not self._pieces:
            if not self._open:
                raise self._closed()
            with self._line.world:
                self._fetch(limit)
                wait_s = None if self._pieces else self._line.wait_s()
            left_s = deadline_s - time.monotonic()
            if not self._pieces and self._open:
                if left_s <= 0:
                    return False
                time.sleep(min(left_s, LONGEST_NAP_S if wait_s is None else min(wait_s, LONGEST_NAP_S)))
        return True

    def _usb(self) -> Any:
        if not self._open:
            raise self._closed()
        if not hasattr(self._line.unit, "control_in"):
            raise NotSupportedError("this emulated unit has no USB control transfers")
        return self._line.unit

    def _fetch(self, limit: int) -> None:
        for delivery in self._line.take(limit):
            if delivery.data or (self.keeps_messages and not delivery.hang_up):
                self._pieces.append(delivery.data)
            if delivery.hang_up:
                self._open = False
                self._line.disconnected()

    def _next_piece(self, limit: int) -> bytes:
        piece = self._pieces.popleft()
        if len(piece) > limit:
            self._pieces.appendleft(piece[limit:])
        return piece[:limit]

    def _closed(self) -> TransportClosedError:
        return TransportClosedError("the emulated unit hung up", remedy="open it again")


@contextmanager
def _as_usb_link() -> Iterator[None]:
    """Turn what a unit does to a control transfer into the errors of a usb:// link."""
    try:
        yield
    except UsbStallError as error:
        raise TransportError(
            "the emulated unit refused a transfer", remedy="check that it is the right unit"
        ) from error
    except UsbNotReadyError as error:
        raise TransportTimeoutError("the emulated unit took no transfer", remedy="check its faults") from error
    except UsbGoneError as error:
        raise TransportClosedError("the emulated unit is gone", remedy="open it again") from error

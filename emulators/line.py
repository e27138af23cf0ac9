"""The line between an emulated unit and whoever serves it: commands in, due answers out, faults of the wire. No I/O."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from qkdhw_emulators.faults import LINE_FAULTS, Fault, FaultSwitches
from qkdhw_emulators.world import World

STREAM_BYTES = 65_536
BACKLOG_BYTES = 4 << 20
LOOK_AGAIN_S = 0.01


@runtime_checkable
class EmulatedUnit(Protocol):
    """A unit without I/O: bytes in, bytes out. It may have any of the methods of the Protocols below as well."""

    def receive(self, data: bytes) -> bytes:
        """Take command bytes in any split and return the answers; a unit that keeps messages gets one whole message."""
        ...


@runtime_checkable
class StreamingUnit(EmulatedUnit, Protocol):
    """A unit that sends on its own as fast as it is read."""

    def read_stream(self, limit_bytes: int) -> bytes:
        """Return what the stream has next, or b""."""
        ...


@runtime_checkable
class MessageStream(EmulatedUnit, Protocol):
    """A port that sends messages on its own.

    Attributes:
        acquisition: Which stream of messages this is; a new one begins on a new socket.
    """

    acquisition: int

    def next_message(self) -> bytes | None:
        """Return what is to be sent next, until it is `sent`; it may be empty. None: nothing is due."""
        ...

    def sent(self) -> None:
        """The message has gone out."""
        ...

    def wait_s(self) -> float | None:
        """Bench seconds until a message will be due, or None."""
        ...


@runtime_checkable
class TimedUnit(EmulatedUnit, Protocol):
    """A unit that answers or reports later: after a gate time, when a motor has arrived."""

    def poll(self) -> bytes:
        """Return what is due by the bench's clock."""
        ...

    def wait_s(self) -> float | None:
        """Bench seconds until something will be due, or None; infinite: when another unit does something."""
        ...


@runtime_checkable
class ForgetfulUnit(Protocol):
    """A unit that keeps half a command."""

    def reset_input(self) -> None:
        """Forget a half-received command: its client has gone."""
        ...


@runtime_checkable
class OpenedUnit(Protocol):
    """A unit that notices when its port is opened: a board that restarts then."""

    def opened(self) -> None:
        """A client has opened the port."""
        ...


@runtime_checkable
class ManyPortUnit(Protocol):
    """A unit with further ports beside its first.

    Attributes:
        further_ports: What is behind each, by name, and how far its TCP port number is above the first one's.
    """

    further_ports: Mapping[str, tuple[EmulatedUnit, int]]


@runtime_checkable
class PoweredUnit(Protocol):
    """A unit that can lose power."""

    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        ...


@runtime_checkable
class RefusingUnit(Protocol):
    """A unit with an answer of its own to what it does not understand."""

    def nak(self) -> bytes:
        """Return the answer that says so."""
        ...


@runtime_checkable
class Ieee488Unit(Protocol):
    """A unit with a status byte, device clear and trigger (IEEE 488.2)."""

    def status_byte(self) -> int:
        """Return the status byte without the bit for a waiting answer."""
        ...

    def clear(self) -> None:
        """Device clear: forget input and output."""
        ...

    def trigger(self) -> None:
        """Group execute trigger."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """Bytes for the client.

    Attributes:
        data: The bytes, in order.
        end: Whether they end an answer; one may come in pieces.
        hang_up: Whether the connection drops after them.
    """

    data: bytes
    end: bool = True
    hang_up: bool = False


class Line:
    """Carries commands to a unit and its answers back, with the faults that are on.

    A unit that keeps messages gives each answer whole, once or not at all: what ZeroMQ carries is never split, cut off
    or doubled, so these faults do not touch it, and a connection that drops takes the whole answer with it.

    Args:
        unit: The unit. If it has `faults` (a `FaultSwitches`), the line's faults are switched there too.
        world: The unit's surroundings.
        faults: Faults to switch on.
        keeps_messages: Each `feed` is one whole message for the unit, not a piece of a stream.
        monotonic_s: Real time: late answers are late for the client, whatever the bench's clock does.

    Attributes:
        unit: The unit.
        world: Its surroundings.
        faults: Faults of unit and line; may be changed at any time.
        fed_bytes: Bytes that clients sent so far.
        message_end: What a message ends with at the unit, whether the client sends it or not: a line feed on transports
            that mark the end of a message themselves (IEEE 488.2, 7.5), nothing on others.
        further: The lines of the unit's further ports by name, and how far their TCP ports are above the first one.
    """

    def __init__(
        self,
        unit: EmulatedUnit,
        world: World | None = None,
        *,
        faults: Iterable[Fault | str] = (),
        keeps_messages: bool | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unit = unit
        self.world = world or World()
        own = getattr(unit, "faults", None)
        self.faults: FaultSwitches = own if isinstance(own, FaultSwitches) else FaultSwitches()
        self.faults.offer(LINE_FAULTS | frozenset(getattr(unit, "unit_faults", ())))
        for fault in faults:
            self.faults.parse(fault)
        self.keeps_messages = bool(getattr(unit, "keeps_messages", False)) if keeps_messages is None else keeps_messages
        self._checksummed = bool(getattr(unit, "checksummed", False))
        self._rng = self.world.rng("line")
        self._monotonic_s = monotonic_s
        self.fed_bytes = 0
        self.message_end = b""
        further = unit.further_ports if isinstance(unit, ManyPortUnit) else {}
        self.further = {name: (Line(port, self.world), above) for name, (port, above) in further.items()}
        self._messages: deque[bytes] = deque()
        self._inbox = bytearray()
        self._due: deque[tuple[float, Delivery]] = deque()
        self._backlog_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether commands wait because nobody fetches the answers: take no more from the client now."""
        return bool(self._inbox or self._messages)

    def feed(self, data: bytes) -> None:
        """Take bytes from the client: any piece of a stream, or one whole message."""
        self.world.come_to_now()
        self.fed_bytes += len(data)
        if not data.endswith(self.message_end):
            data += self.message_end
        if self.keeps_messages:
            self._messages.append(data)
        else:
            self._inbox += data
        self._work()

    def take(self, limit_bytes: int = STREAM_BYTES) -> list[Delivery]:
        """Return what is due for the client now, and about `limit_bytes` of the unit's stream."""
        self.world.come_to_now()
        self._work()
        if isinstance(self.unit, TimedUnit) and (reply := self.unit.poll()):
            self._send(reply)
        now_s = self._monotonic_s()
        taken = []
        while self._due and self._due[0][0] <= now_s:
            taken.append(self._due.popleft()[1])
            self._backlog_bytes -= len(taken[-1].data)
        if self._due:
            return taken
        if isinstance(self.unit, StreamingUnit) and (data := self.unit.read_stream(limit_bytes)):
            taken.append(Delivery(data, end=False))
        elif isinstance(self.unit, MessageStream) and (message := self.unit.next_message()) is not None:
            self.unit.sent()
            taken.append(Delivery(message))
        return taken

    def wait_s(self) -> float | None:
        """Real seconds until something will be due, or None: nothing is on its way.

        A bench whose clock jumps is moved on here: its waits take no time.
        """
        waits_s = [max(0.0, self._due[0][0] - self._monotonic_s())] if self._due else []
        if isinstance(self.unit, TimedUnit) and (unit_s := self.unit.wait_s()) is not None:
            if unit_s == math.inf:
                return min(waits_s, default=LOOK_AGAIN_S)
            if self.world.clock.pace is None and not waits_s:
                self.world.clock.advance(unit_s)
            waits_s.append(self.world.clock.real_wait_s(unit_s))
        return min(waits_s, default=None)

    def connected(self) -> None:
        """A client has come."""
        if isinstance(self.unit, OpenedUnit):
            self.unit.opened()

    def disconnected(self) -> None:
        """The client has gone: nothing half-received or not yet sent remains."""
        self._inbox.clear()
        self._messages.clear()
        self._forget_replies()
        if isinstance(self.unit, ForgetfulUnit):
            self.unit.reset_input()

    def clear(self) -> None:
        """Device clear."""
        self.disconnected()
        if isinstance(self.unit, Ieee488Unit):
            self.unit.clear()

    def status_byte(self) -> int:
        """Return the unit's IEEE 488.2 status byte, 0 if it has none."""
        return self.unit.status_byte() if isinstance(self.unit, Ieee488Unit) else 0

    def trigger(self) -> None:
        """Hand on a trigger, if the unit takes one."""
        if isinstance(self.unit, Ieee488Unit):
            self.unit.trigger()

    def _work(self) -> None:
        """Answer commands one by one, so that a client that asks and never reads cannot fill the memory."""
        while self._messages and self._backlog_bytes < BACKLOG_BYTES:
            self._send(self.unit.receive(self._messages.popleft()))
        while self._inbox and self._backlog_bytes < BACKLOG_BYTES:
            end = self._inbox.find(b"\n") + 1 or len(self._inbox)
            command = bytes(self._inbox[:end])
            del self._inbox[:end]
            self._send(self.unit.receive(command))

    def _send(self, reply: bytes) -> None:
        """Queue an answer as the line's faults let it through."""
        if not reply:
            return
        if self.faults.strikes(Fault.POWER_CYCLE):
            self._lose_power()
            return
        reply = self._spoil(reply)
        due_s = self._due[-1][0] if self._due else self._monotonic_s()
        for fault in (Fault.DELAY, Fault.LATE_REPLY):
            late_s = self.faults.seconds(fault)
            if self.faults.strikes(fault):
                due_s = max(due_s, self._monotonic_s() + late_s)
        if not reply:
            return
        if self.faults.strikes(Fault.DISCONNECT):
            cut = 0 if self.keeps_messages else int(self._rng.integers(len(reply) + 1))
            self._queue(due_s, Delivery(reply[:cut], end=False, hang_up=True))
        elif not self.keeps_messages and self.faults.strikes(Fault.SPLIT):
            for at in range(len(reply)):
                self._queue(due_s, Delivery(reply[at : at + 1], end=at == len(reply) - 1))
        else:
            self._queue(due_s, Delivery(reply))

    def _spoil(self, reply: bytes) -> bytes:
        """Return what the faults leave of an answer."""
        strikes = self.faults.strikes
        if strikes(Fault.DROP):
            return b""
        if isinstance(self.unit, RefusingUnit) and strikes(Fault.NAK):
            reply = self.unit.nak()
        if not reply:
            return b""
        if (reply.isascii() or self._checksummed) and strikes(Fault.GARBLE):
            at = int(self._rng.integers(len(reply)))
            reply = reply[:at] + b"\xff" + reply[at + 1 :]
        if self.keeps_messages:
            return reply
        if strikes(Fault.TRUNCATE):
            reply = reply[: int(self._rng.integers(len(reply)))]
        if strikes(Fault.DUPLICATE):
            reply += reply
        return reply

    def _queue(self, due_s: float, delivery: Delivery) -> None:
        self._due.append((due_s, delivery))
        self._backlog_bytes += len(delivery.data)

    def _forget_replies(self) -> None:
        self._due.clear()
        self._backlog_bytes = 0

    def _lose_power(self) -> None:
        self._inbox.clear()
        self._messages.clear()
        self._forget_replies()
        if isinstance(self.unit, PoweredUnit):
            self.unit.power_cycle()
        self._queue(self._monotonic_s(), Delivery(b"", end=False, hang_up=True))

"""What emulated Thorlabs APT controllers share: messages in and out, motors that take their time, reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from qkdhw_emulators.faults import Fault, FaultSwitches, spoil_reply
from qkdhw_emulators.units.apt_frames import Command, CommandReader, long_message, number_at, short_message
from qkdhw_emulators.units.apt_motor import Motor
from qkdhw_emulators.world import World

REPORTS_UNACKNOWLEDGED = 50
UPDATE_S = 0.1
ON, OFF = 1, 2
FORWARD, BACKWARD = 1, 2
ABRUPT = 1
REFUSED_VALUE, REFUSED_CHANNEL, NOT_UNDERSTOOD = 1, 2, 3  # the manual keeps the codes to itself: these are made up
CONNECTED, HOMING, HOMED, MOTION_ERROR = 0x100, 0x200, 0x400, 0x4000
CURRENT_LIMIT, ENABLED = 0x0100_0000, 0x8000_0000


class RefusedError(Exception):
    """The controller refuses a message; carries the code of its report and a text."""


class AptUnit:
    """Base of emulated APT controllers. Settings are set in silence; what is refused is reported (HW_RICHRESPONSE).

    Args:
        world: Surroundings: time, randomness, physical conditions.
        faults: Faults that are on.

    Attributes:
        faults: Faults that are on; may be changed while the unit runs.
        motors: Motors by channel, as on the wire.
        flashes: How often its light was made to flash.
    """

    model: ClassVar[bytes]
    serial_number: ClassVar[int]
    hardware_type: ClassVar[int]
    firmware: ClassVar[tuple[int, int, int]]
    conditions: ClassVar[dict[str, float]] = {"blocked": 0.0}
    """`blocked`: channel, as on the wire, of a motor that cannot turn; 0 for none."""
    unit_faults: ClassVar[frozenset[Fault]] = frozenset({
        Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE, Fault.STUCK_VALUE, Fault.SILENT, Fault.GARBAGE,
    })  # fmt: skip

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = ()) -> None:
        self.world = world or World()
        self.world.declare(self.conditions)
        self.faults = FaultSwitches(faults, rng=self.world.rng("faults"))
        self.motors: dict[int, Motor] = {}
        self.flashes = 0
        self._rng = self.world.rng("unit")
        self._reader = CommandReader()
        self.power_cycle()

    # --- what a controller gives ----------------------------------------------------------------------------------
    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        self._reader.clear()
        self._homed: set[int] = set()
        self._enabled: set[int] = set()
        self._stopping: set[int] = set()
        self._reports = 0
        self._next_update_s: float | None = None

    def setters(self) -> dict[int, Callable[[Command], None]]:
        """Return what it does with messages that set or start something; all are without an answer."""
        raise NotImplementedError

    def answers(self) -> dict[int, Callable[[Command], bytes]]:
        """Return what it answers to messages that ask."""
        raise NotImplementedError

    def counter(self, channel: int) -> int:
        """What the position counter of a motor shows."""
        raise NotImplementedError

    def moving_bits(self, motor: Motor) -> int:
        """Status bits of a motor that moves."""
        raise NotImplementedError

    def ended(self, channel: int, motor: Motor, kind: str) -> None:
        """A movement has ended."""

    def end_report(self, ident: int, channel: int, bits: int) -> bytes:
        """Return what tells that a movement has ended."""
        raise NotImplementedError

    # --- messages -------------------------------------------------------------------------------------------------
    def receive(self, data: bytes) -> bytes:
        """Take bytes in any split; return what movements have to report by now, and answers."""
        return b"".join(
            self._settle() + spoil_reply(self._answer(command), self.faults, self._rng)
            for command in self._reader.feed(data)
        )

    def reset_input(self) -> None:
        """Forget a half-received message: its host has gone."""
        self._reader.clear()

    def nak(self) -> bytes:
        """Report that a message was not understood."""
        return self._refusal(0, NOT_UNDERSTOOD, "not understood")

    def poll(self) -> bytes:
        """Return what movements have to report, and regular updates."""
        out = self._settle()
        now_s = self.world.now_s()
        if self._next_update_s is not None and now_s >= self._next_update_s:
            self._next_update_s = now_s + UPDATE_S
            out += b"".join(self.report(0x0491, channel) for channel in self.motors)
        return b"" if Fault.SILENT in self.faults else out

    def wait_s(self) -> float | None:
        """Seconds until a movement ends or an update is due."""
        now_s = self.world.now_s()
        due_s = [motor.end_s() for motor in self.motors.values() if motor.kind]
        if self._next_update_s is not None and self._reports < REPORTS_UNACKNOWLEDGED:
            due_s.append(self._next_update_s)
        return max(0.0, min(due_s) - now_s) if due_s else None

    def _answer(self, command: Command) -> bytes:
        if command.ident == 0x0492:
            self._reports = 0
        if self._reports >= REPORTS_UNACKNOWLEDGED:
            return b""
        try:
            if command.ident in self.answers():
                return self.answers()[command.ident](command)
            if command.ident in self.setters() and Fault.STUCK_VALUE not in self.faults:
                self.setters()[command.ident](command)
        except RefusedError as error:
            return self._refusal(command.ident, *error.args)
        return b""

    def _refusal(self, ident: int, code: int, text: str) -> bytes:
        return long_message(0x0081, (ident, 2), (code, 2), text.encode("ascii").ljust(64, b"\0"))

    def common_setters(self) -> dict[int, Callable[[Command], None]]:
        """Messages that every controller takes."""
        return {
            0x0011: lambda _: self._update(on=True), 0x0012: lambda _: self._update(on=False),
            0x0223: self._flash, 0x0443: self._home, 0x0448: self._move_by, 0x0453: self._move_to,
            0x0465: self._stop, 0x046A: self._jog,
        }  # fmt: skip

    def common_answers(self) -> dict[int, Callable[[Command], bytes]]:
        """Questions that every controller answers."""
        return {
            0x0005: lambda _: self._identity(),
            0x0211: lambda c: short_message(0x0212, self.channel(c), ON if c.param1 in self._enabled else OFF),
            0x0411: lambda c: long_message(0x0412, (self.channel(c), 2), (self.counter(c.param1), 4)),
            0x0429: lambda c: long_message(0x042A, (self.channel(c), 2), (self.bits(c.param1), 4)),
            0x0480: lambda c: self._count(
                long_message(
                    0x0481, (self.channel(c), 2), (self.counter(c.param1), 4), (0, 4), (self.bits(c.param1), 4)
                )
            ),
            0x0490: lambda c: self.report(0x0491, self.channel(c)),
        }

    def channel(self, command: Command) -> int:
        """Return the channel that a message is about."""
        channel = number_at(command.data, 0, 2) if command.data else command.param1
        if channel not in self.motors:
            raise RefusedError(REFUSED_CHANNEL, f"no channel {channel}")
        return channel

    def bits(self, channel: int) -> int:
        """Return the status bits of a motor."""
        motor = self.motors[channel]
        bits = CONNECTED | (self.moving_bits(motor) if motor.kind else 0)
        bits |= HOMING if motor.kind == "home" else 0
        bits |= HOMED if channel in self._homed else 0
        bits |= ENABLED if channel in self._enabled else 0
        return bits | (MOTION_ERROR | CURRENT_LIMIT if motor.stalled else 0)

    def report(self, ident: int, channel: int, *, bits: int | None = None) -> bytes:
        """Return position, speed, motor current in mA and status bits of a motor."""
        speed = round(self.motors[channel].speed(self.world.now_s())) % (1 << 16)
        current_ma = 120 if self.motors[channel].kind else 0
        return self._count(
            long_message(
                ident, (channel, 2), (self.counter(channel), 4), (speed, 2), (current_ma, 2),
                (self.bits(channel) if bits is None else bits, 4),
            )
        )  # fmt: skip

    def _status(self, channel: int) -> bytes:
        return long_message(0x0481, (channel, 2), (self.counter(channel), 4), (0, 4), (self.bits(channel), 4))

    def _count(self, report: bytes) -> bytes:
        """Let a report out, if the host has acknowledged the last ones."""
        if self._reports >= REPORTS_UNACKNOWLEDGED:
            return b""
        self._reports += 1
        return report

    def _identity(self) -> bytes:
        model = b"TDC001" if Fault.WRONG_IDENTITY in self.faults else self.model
        major, interim, minor = (99, 9, 9) if Fault.WRONG_FIRMWARE in self.faults else self.firmware
        return long_message(
            0x0006, (self.serial_number, 4), model.ljust(8, b"\0"), (self.hardware_type, 2),
            bytes([minor, interim, major, 0]), bytes(60), (1, 2), (3, 2), (len(self.motors), 2),
        )  # fmt: skip

    def _update(self, *, on: bool) -> None:
        self._next_update_s = self.world.now_s() + UPDATE_S if on else None

    def _flash(self, _: Command) -> None:
        self.flashes += 1

    @property
    def moving(self) -> bool:
        """Whether a motor is on its way."""
        return any(motor.kind for motor in self.motors.values())

    # --- motion ---------------------------------------------------------------------------------------------------
    def speed_of(self, kind: str) -> tuple[float, float]:
        """Return speed and acceleration of a kind of movement, in counts and seconds."""
        raise NotImplementedError

    def target_of_home(self, channel: int) -> float:
        """Return where homing leads a motor."""
        raise NotImplementedError

    def target_at(self, channel: int, counts: int) -> float:
        """Return where a position counter of so much is; RefusedError if the motor cannot go there."""
        raise NotImplementedError

    def jog_step(self, channel: int) -> int:
        """Return how far a jog goes, counts."""
        raise NotImplementedError

    def go(self, kind: str, channel: int, target: float) -> None:
        """Set a motor going; one that is off stays where it is."""
        if channel in self._enabled:
            speed, acceleration = self.speed_of(kind)
            self._stopping.discard(channel)
            self.motors[channel].start(kind, target, self.world.now_s(), speed=speed, acceleration=acceleration)

    def _home(self, command: Command) -> None:
        channel = self.channel(command)
        self._homed.discard(channel)
        self.go("home", channel, self.target_of_home(channel))

    def _move_to(self, command: Command) -> None:
        channel = self.channel(command)
        self.go("move", channel, self.target_at(channel, number_at(command.data, 2, 4)))

    def _move_by(self, command: Command) -> None:
        channel = self.channel(command)
        self.go("move", channel, self.target_at(channel, self.counter(channel) + number_at(command.data, 2, 4)))

    def _jog(self, command: Command) -> None:
        channel = self.channel(command)
        if command.param2 not in {FORWARD, BACKWARD}:
            raise RefusedError(REFUSED_VALUE, "no such direction")
        step = self.jog_step(channel) if command.param2 == FORWARD else -self.jog_step(channel)
        self.go("jog", channel, self.target_at(channel, self.counter(channel) + step))

    def _stop(self, command: Command) -> None:
        channel = self.channel(command)
        motor = self.motors[channel]
        if motor.kind:
            self._stopping.add(channel)
            motor.stop(self.world.now_s(), acceleration=None if command.param2 == ABRUPT else self.speed_of("move")[1])

    def _settle(self) -> bytes:
        """Let movements go on to now, and report those that have ended."""
        out = b""
        for channel, motor in self.motors.items():
            kind, bits = motor.kind, self.bits(channel)
            if not motor.settle(self.world.now_s(), blocked=self.world.conditions["blocked"] == channel):
                continue
            if channel in self._stopping:
                self._stopping.discard(channel)
                out += self.end_report(0x0466, channel, bits)
            elif not motor.stalled:
                self.ended(channel, motor, kind)
                out += short_message(0x0444, channel) if kind == "home" else self.end_report(0x0464, channel, bits)
        return out

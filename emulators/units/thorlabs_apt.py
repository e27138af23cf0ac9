"""A Thorlabs MPC320 fibre polarisation controller and a K10CR1 rotation mount."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.apt_frames import Command, long_message, number_at, short_message
from qkdhw_emulators.units.apt_motor import Motor
from qkdhw_emulators.units.apt_unit import BACKWARD, FORWARD, ON, REFUSED_VALUE, AptUnit, RefusedError

PADDLES = (1, 2, 4)
PADDLE_COUNTS = 1370
PADDLE_FULL_SPEED = 400 * PADDLE_COUNTS / 170
PADDLE_ACCELERATION = 20 * PADDLE_FULL_SPEED
PADDLE_WAVES, PADDLE_TOLERANCE = np.array([0.25, 0.5, 0.25]), 0.04

MOUNT_PER_DEG = 409_600 / 3
MOUNT_PER_SPEED, MOUNT_PER_ACCELERATION = 7_329_109 / MOUNT_PER_DEG, 1_502 / MOUNT_PER_DEG
MOUNT_FASTEST, MOUNT_HARDEST = 10 * 7_329_109, 20 * 1_502
TURN = round(360 * MOUNT_PER_DEG)
WRAP = 1 << 32
JOG_SIZES = (2, 4, 4, 4, 4, 2)


class EmulatedThorlabsMpc320(AptUnit):
    """Three paddles, 170 degrees in 1370 counts. A paddle stays where it is without power and knows where that is.

    Fibre is wound on them to a quarter, half and quarter wave plate, as well as loops allow.

    Source:
        Thorlabs Motion Controllers Host-Controller Communications Protocol, issue 37, "MPC220 and MPC320"; that it
        reports the end of a move without data is from recordings.
    """

    model: ClassVar[bytes] = b"MPC320"
    serial_number: ClassVar[int] = 38_000_007
    hardware_type: ClassVar[int] = 16
    firmware: ClassVar[tuple[int, int, int]] = (1, 0, 4)
    in_fibre: ClassVar[bool] = True

    def power_cycle(self) -> None:
        """Settings and motors as at power-up: motors off, 20 % speed, jog steps of 10 counts."""
        super().power_cycle()
        at = {channel: self.motors[channel].position(self.world.now_s()) for channel in self.motors}
        self.motors = {channel: Motor(round(at.get(channel, 0))) for channel in PADDLES}
        self.velocity, self.home_position, self.jog_steps = 20, 0, [10, 10, 10]
        spread = self.world.rng("fibre on the paddles").standard_normal(len(PADDLES))
        self._waves = PADDLE_WAVES * (1 + PADDLE_TOLERANCE * spread)

    def retarders(self, at_s: float) -> list[tuple[float, float]]:
        """Return angle and retardance of each paddle's loops in radians."""
        to_rad = math.radians(170 / PADDLE_COUNTS)
        angles = [self.motors[channel].position(at_s) * to_rad for channel in PADDLES]
        return [(angle, 2 * math.pi * float(waves)) for angle, waves in zip(angles, self._waves, strict=True)]

    def setters(self) -> dict[int, Callable[[Command], None]]:
        """Return what it does with messages that set or start something."""
        return self.common_setters() | {0x0210: self._enable, 0x0530: self._set_parameters}

    def answers(self) -> dict[int, Callable[[Command], bytes]]:
        """Return what it answers to messages that ask."""
        return self.common_answers() | {0x0531: lambda _: self._parameters()}

    def counter(self, channel: int) -> int:
        """What the position counter of a paddle shows."""
        return round(self.motors[channel].position(self.world.now_s()))

    def moving_bits(self, motor: Motor) -> int:
        """Status bits of a paddle that moves."""
        return (0x40 if motor.forward else 0x80) if motor.kind == "jog" else (0x10 if motor.forward else 0x20)

    def bits(self, channel: int) -> int:
        """Return the status bits, limit switches too."""
        at_end = {0: 0x02, PADDLE_COUNTS: 0x01}
        return super().bits(channel) | at_end.get(self.counter(channel), 0)

    def ended(self, channel: int, motor: Motor, kind: str) -> None:
        """A movement has ended."""
        if kind == "home":
            self._homed.add(channel)

    def end_report(self, ident: int, channel: int, bits: int) -> bytes:
        """Return what tells that a movement has ended: a header alone, whatever the manual says."""
        return self._count(short_message(ident, channel))

    def speed_of(self, kind: str) -> tuple[float, float]:
        """Return speed and acceleration, in counts and seconds."""
        return PADDLE_FULL_SPEED * self.velocity / 100, PADDLE_ACCELERATION

    def target_of_home(self, channel: int) -> float:
        """Return the home position, one for all paddles."""
        return self.home_position

    def target_at(self, channel: int, counts: int) -> float:
        """Return the position; a paddle goes from 0 to 1370."""
        if not 0 <= counts <= PADDLE_COUNTS:
            raise RefusedError(REFUSED_VALUE, "position out of range")
        return counts

    def jog_step(self, channel: int) -> int:
        """Return how far a jog goes."""
        return self.jog_steps[PADDLES.index(channel)]

    def _enable(self, command: Command) -> None:
        """Switch motors: the channel is a mask, and says of all of them whether they are on."""
        if command.param1 > 7 or command.param2 not in {1, 2}:
            raise RefusedError(REFUSED_VALUE, "no such channel or state")
        self._enabled = {bit for bit in PADDLES if command.param1 & bit and command.param2 == ON}

    def _set_parameters(self, command: Command) -> None:
        velocity, home, *steps = (number_at(command.data, at, 2, signed=False) for at in range(2, 12, 2))
        if not 10 <= velocity <= 100 or max(home, *steps) > PADDLE_COUNTS:
            raise RefusedError(REFUSED_VALUE, "parameter out of range")
        self.velocity, self.home_position, self.jog_steps = velocity, home, steps

    def _parameters(self) -> bytes:
        values = (0, self.velocity, self.home_position, *self.jog_steps)
        return long_message(0x0532, *((value, 2) for value in values))


class EmulatedThorlabsK10Cr1(AptUnit):
    """A rotation mount, 136533.3 counts a degree. Its counter begins at 0 where it stands, until it is homed.

    On a bench with light there is a half-wave plate in it.

    Source:
        Thorlabs Motion Controllers Host-Controller Communications Protocol, issue 37; that both moving bits are on
        whichever way it turns, and still on in the report of the end, is from recordings.
    """

    model: ClassVar[bytes] = b"K10CR1"
    serial_number: ClassVar[int] = 55_000_011
    hardware_type: ClassVar[int] = 50
    firmware: ClassVar[tuple[int, int, int]] = (1, 0, 3)
    in_fibre: ClassVar[bool] = False
    unit_faults: ClassVar[frozenset[Fault]] = AptUnit.unit_faults | {Fault.COUNTER_WRAP}

    def power_cycle(self) -> None:
        """Settings and motor as at power-up: motor on, 10 degrees a second, where it is becomes 0."""
        super().power_cycle()
        now_s = self.world.now_s()
        at = self.motors[1].position(now_s) if self.motors else self.world.rng("angle").integers(TURN)
        self.motors = {1: Motor(round(at))}
        self._zero = round(at) - (WRAP // 2 - 1000 if Fault.COUNTER_WRAP in self.faults else 0)
        self._enabled = {1}
        self.velocity, self.acceleration, self.backlash = MOUNT_FASTEST, MOUNT_HARDEST, round(MOUNT_PER_DEG)
        self.jog = (2, round(5 * MOUNT_PER_DEG), 0, MOUNT_HARDEST, MOUNT_FASTEST, 2)
        self.homing = (2, 1, MOUNT_FASTEST, 0)

    @property
    def angle_deg(self) -> float:
        """Where the mount really stands, 0 to 360 degrees."""
        return self.motors[1].position(self.world.now_s()) / MOUNT_PER_DEG % 360.0

    def retarders(self, at_s: float) -> list[tuple[float, float]]:
        """Return angle and retardance of the plate in it in radians."""
        return [(math.radians(self.motors[1].position(at_s) / MOUNT_PER_DEG), math.pi)]

    def setters(self) -> dict[int, Callable[[Command], None]]:
        """Return what it does with messages that set or start something."""
        return self.common_setters() | {
            0x0210: self._enable, 0x0410: self._set_counter, 0x0413: self._set_velocity, 0x0416: self._set_jog,
            0x043A: self._set_backlash, 0x0440: self._set_homing,
        }  # fmt: skip

    def answers(self) -> dict[int, Callable[[Command], bytes]]:
        """Return what it answers to messages that ask."""
        return self.common_answers() | {
            0x0414: lambda c: long_message(
                0x0415, (self.channel(c), 2), (0, 4), (self.acceleration, 4), (self.velocity, 4)
            ),
            0x0417: lambda c: long_message(
                0x0418, (self.channel(c), 2), *zip(self.jog, (2, 4, 4, 4, 4, 2), strict=True)
            ),
            0x043B: lambda c: long_message(0x043C, (self.channel(c), 2), (self.backlash, 4)),
            0x0441: lambda c: long_message(0x0442, (self.channel(c), 2), *zip(self.homing, (2, 2, 4, 4), strict=True)),
        }

    def counter(self, channel: int) -> int:
        """What the position counter shows, a signed number of 32 bits that wraps."""
        return _wrapped(round(self.motors[1].position(self.world.now_s())) - self._zero)

    def moving_bits(self, motor: Motor) -> int:
        """Status bits of a mount that moves: both directions, and jogging is always backwards."""
        return 0x80 if motor.kind == "jog" else 0x30

    def ended(self, channel: int, motor: Motor, kind: str) -> None:
        """A movement has ended; the zero was found if it was for that."""
        if kind == "home":
            self._zero = round(motor.position(self.world.now_s()))
            self._homed.add(channel)

    def end_report(self, ident: int, channel: int, bits: int) -> bytes:
        """Return what tells that a movement has ended, with status bits from just before."""
        return self.report(ident, channel, bits=bits)

    def speed_of(self, kind: str) -> tuple[float, float]:
        """Return speed and acceleration of a kind of movement, in counts and seconds."""
        acceleration, speed = {"jog": (self.jog[3], self.jog[4]), "home": (self.acceleration, self.homing[2])}.get(
            kind, (self.acceleration, self.velocity)
        )
        return max(1.0, speed / MOUNT_PER_SPEED), max(1.0, acceleration / MOUNT_PER_ACCELERATION)

    def target_of_home(self, channel: int) -> float:
        """Return where the switch is, backwards or forwards, and the offset from it."""
        at = round(self.motors[1].position(self.world.now_s()))
        way = -(at % TURN) if self.homing[0] == BACKWARD else -at % TURN
        return at + way + self.homing[3]

    def target_at(self, channel: int, counts: int) -> float:
        """Return where the counter shows so much; it calculates with 32 bits."""
        return self.motors[1].position(self.world.now_s()) + _wrapped(counts - self.counter(1))

    def jog_step(self, channel: int) -> int:
        """Return how far a jog goes."""
        return self.jog[1]

    def _enable(self, command: Command) -> None:
        if command.param1 != 1 or command.param2 not in {1, 2}:
            raise RefusedError(REFUSED_VALUE, "no such channel or state")
        self._enabled = {1} if command.param2 == ON else set()

    def _set_counter(self, command: Command) -> None:
        self._zero += self.counter(self.channel(command)) - number_at(command.data, 2, 4)

    def _set_velocity(self, command: Command) -> None:
        self.channel(command)
        acceleration, velocity = number_at(command.data, 6, 4), number_at(command.data, 10, 4)
        if not 0 < acceleration <= MOUNT_HARDEST or not 0 < velocity <= MOUNT_FASTEST:
            raise RefusedError(REFUSED_VALUE, "speed or acceleration out of range")
        self.velocity, self.acceleration = velocity, acceleration

    def _set_jog(self, command: Command) -> None:
        self.channel(command)
        places = zip((2, 4, 8, 12, 16, 20), JOG_SIZES, strict=True)
        mode, step, slowest, acceleration, speed, stop = (number_at(command.data, at, size) for at, size in places)
        self.jog = (mode, step, slowest, acceleration, speed, stop)

    def _set_backlash(self, command: Command) -> None:
        self.channel(command)
        self.backlash = number_at(command.data, 2, 4)

    def _set_homing(self, command: Command) -> None:
        self.channel(command)
        direction, switch = number_at(command.data, 2, 2), number_at(command.data, 4, 2)
        if direction not in {FORWARD, BACKWARD}:
            raise RefusedError(REFUSED_VALUE, "no such direction")
        self.homing = (direction, switch, number_at(command.data, 6, 4), number_at(command.data, 10, 4))


def _wrapped(number: float) -> int:
    """Return a whole number as 32 signed bits hold it."""
    return (round(number) + WRAP // 2) % WRAP - WRAP // 2

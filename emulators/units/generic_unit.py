"""What emulated GTX/1 and GRX/1 units share: lines of at most 256 bytes, OK or ERR, settings, states, alarms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum, unique
from typing import ClassVar

from qkdhw_emulators.faults import Fault, FaultSwitches, spoil_reply
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.world import World, serial_number

MAX_LINE_BYTES = 256
_INTEGER = re.compile(r"[0-9]{1,19}")
_DECIMAL = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,40})?")


@unique
class State(StrEnum):
    """States of the unit."""

    IDLE = "idle"
    ARMED = "armed"
    RUNNING = "running"
    FAULT = "fault"


class RefusedError(Exception):
    """A command is answered with ERR; the arguments are code and text."""


class GenericUnit:
    """Base of emulated GTX/1 and GRX/1 units; no I/O, no clock of its own.

    Args:
        world: Surroundings: randomness, physical conditions.
        light: Light source that it has a part in.
        faults: Faults that are on.

    Attributes:
        faults: Faults that are on; may be changed while the unit runs.
    """

    model: ClassVar[str] = ""
    protocol: ClassVar[str] = ""
    checksummed: ClassVar[bool] = True
    conditions: ClassVar[dict[str, float]] = {}
    unit_faults: ClassVar[frozenset[Fault]] = frozenset(
        {
            Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE, Fault.STUCK_VALUE,
            Fault.CLOCK_UNLOCK, Fault.FULL_BUFFER,
        }
    )  # fmt: skip
    setting_names: frozenset[str] = frozenset()

    def __init__(self, world: World | None, light: LinkRun, faults: Iterable[Fault | str]) -> None:
        self.world = world or World(seed=light.seed)
        self.world.declare(self.conditions)
        self.faults = FaultSwitches(faults, rng=self.world.rng("faults"))
        self._rng = self.world.rng("unit")
        self._link = light
        self._line = bytearray()
        self._too_long = False
        self._commands: dict[str, Callable[[list[str]], bytes]] = {
            "IDN?": self._identify, "CONF": self._configure, "CONF?": self._read_setting, "ARM": self._arm,
            "START": self._start, "STOP": self._stop, "STAT?": self._read_status, "MON?": self._read_monitors,
            "CLR": self._clear_alarms,
        }  # fmt: skip
        self.power_cycle()

    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        self.reset_input()
        self._state = State.IDLE
        self._alarms = 0

    def reset_input(self) -> None:
        """Forget a half-received command: its client has gone."""
        self._line.clear()
        self._too_long = False

    def nak(self) -> bytes:
        """Return the answer to what it does not understand."""
        return b"ERR 1 unknown command\n"

    def receive(self, data: bytes) -> bytes:
        """Take bytes of commands in any split and return the answers to those that are complete."""
        replies = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._take(piece)
            replies.append(spoil_reply(self._answer(), self.faults, self._rng))
            self.reset_input()
        self._take(rest)
        return b"".join(replies)

    # --- what a unit gives -----------------------------------------------------------------------------------
    def _set(self, name: str, text: str) -> None:
        """Set a value, quantised; the name is known."""
        raise NotImplementedError

    def _get(self, name: str) -> str:
        """Return a value as text; the name is known."""
        raise NotImplementedError

    def _causes(self) -> int:
        """Return the alarm bits whose cause is there now."""
        raise NotImplementedError

    def _fatal_causes(self) -> int:
        """Return those of them that end a run."""
        raise NotImplementedError

    def _started(self) -> bytes:
        """Begin a run and return the answer."""
        raise NotImplementedError

    def _stopped(self) -> None:
        """End a run."""
        raise NotImplementedError

    def _counts(self) -> dict[str, int]:
        """Return the counts of STAT?."""
        raise NotImplementedError

    def _monitors(self) -> dict[str, float]:
        """Return the readings of MON?."""
        raise NotImplementedError

    # --- commands --------------------------------------------------------------------------------------------
    def _take(self, piece: bytes) -> None:
        if self._too_long or len(self._line) + len(piece) > MAX_LINE_BYTES - 1:
            self._too_long = True
            self._line.clear()
        else:
            self._line += piece

    def _answer(self) -> bytes:
        if self._too_long:
            return b"ERR 4 line longer than 256 bytes\n"
        name, *arguments = self._line.removesuffix(b"\r").decode("latin-1").split(" ")
        command = self._commands.get(name)
        if command is None:
            return self.nak()
        self._look_around()
        try:
            return command(arguments)
        except RefusedError as refused:
            code, text = refused.args
            return f"ERR {code} {text}\n".encode("ascii")

    def _look_around(self) -> None:
        """Latch alarms; a run that cannot go on ends in a fault."""
        self._alarms |= self._causes()
        if self._state is State.RUNNING and self._fatal_causes():
            self._stopped()
            self._state = State.FAULT

    def _clock_is_free(self) -> bool:
        return Fault.CLOCK_UNLOCK in self.faults or self.world.conditions["reference_clock_locked"] < 0.5

    def _identify(self, arguments: list[str]) -> bytes:
        expect(arguments, 0)
        if Fault.WRONG_IDENTITY in self.faults:
            return ok("ACME,TOASTER,1,1.0,TOAST/1")
        firmware = "99.99" if Fault.WRONG_FIRMWARE in self.faults else "1.0"
        return ok(f"qkdhw,{self.model},{serial_number(self._link.seed)},{firmware},{self.protocol}")

    def _configure(self, arguments: list[str]) -> bytes:
        self._expect_state(State.IDLE)
        expect(arguments, 2)
        name, text = arguments
        if name not in self.setting_names:
            raise RefusedError(2, "no such setting")
        if Fault.STUCK_VALUE not in self.faults:
            self._set(name, text)
        return ok(self._get(name))

    def _read_setting(self, arguments: list[str]) -> bytes:
        expect(arguments, 1)
        if arguments[0] not in self.setting_names:
            raise RefusedError(2, "no such setting")
        return ok(self._get(arguments[0]))

    def _arm(self, arguments: list[str]) -> bytes:
        self._expect_state(State.IDLE)
        expect(arguments, 0)
        self._state = State.ARMED
        return ok()

    def _start(self, arguments: list[str]) -> bytes:
        self._expect_state(State.ARMED)
        expect(arguments, 0)
        if self._fatal_causes():
            self._state = State.FAULT
            raise RefusedError(6, "hardware fault, see the alarms")
        self._state = State.RUNNING
        return self._started()

    def _stop(self, arguments: list[str]) -> bytes:
        self._expect_state(State.ARMED, State.RUNNING)
        expect(arguments, 0)
        self._state = State.IDLE
        self._stopped()
        return ok()

    def _read_status(self, arguments: list[str]) -> bytes:
        expect(arguments, 0)
        counts = " ".join(f"{name}={n}" for name, n in self._counts().items())
        clock = "free" if self._clock_is_free() else "locked"
        return ok(f"state={self._state} {counts} clock={clock} alarms={self._alarms:02x}")

    def _read_monitors(self, arguments: list[str]) -> bytes:
        expect(arguments, 0)
        return ok(" ".join(f"{name}={decimal(value)}" for name, value in self._monitors().items()))

    def _clear_alarms(self, arguments: list[str]) -> bytes:
        expect(arguments, 0)
        self._alarms = self._causes()
        if self._state is State.FAULT and not self._fatal_causes():
            self._state = State.IDLE
        return ok()

    def _expect_state(self, *states: State) -> None:
        if self._state not in states:
            raise RefusedError(3, f"not possible while {self._state}")


def ok(payload: str = "") -> bytes:
    """Return an answer that says done."""
    return f"OK {payload}\n".encode("ascii") if payload else b"OK\n"


def expect(arguments: list[str], n: int) -> None:
    """Refuse another number of parameters."""
    if len(arguments) != n:
        raise RefusedError(2, f"takes {n} parameters")


def integer(text: str) -> int:
    """Read a whole number, or refuse."""
    if not _INTEGER.fullmatch(text):
        raise RefusedError(2, "not an integer")
    return int(text)


def decimals(text: str, n: int = 1) -> tuple[float, ...]:
    """Read `n` numbers separated by commas, or refuse."""
    parts = text.split(",")
    if len(parts) != n or not all(_DECIMAL.fullmatch(part) for part in parts):
        raise RefusedError(2, f"takes {n} decimals")
    return tuple(float(part) for part in parts)


def decimal(value: float) -> str:
    """Write a number without an exponent; exact for 65536ths."""
    return str(value) if isinstance(value, int) else (f"{value:.16f}".rstrip("0").rstrip("."))

"""The sender and receiver boxes of S-Fifteen's teaching kit for quantum cryptography (EKPQC)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import ClassVar

from qkdhw_emulators.faults import Fault, FaultSwitches, spoil_reply
from qkdhw_emulators.units.ekpqc_beam import EkpqcBeam, Pulse, passed
from qkdhw_emulators.world import World

N_SLOTS = 16
BOOT_S, TOKEN_TIMEOUT_S = 2.0, 0.1
SERIAL_BUFFER_BYTES, TOKEN_BYTES = 64, 15
USUAL_THRESHOLD = 200

APPROACH_S = 0.6  # 30 turns of a control loop of 20 ms: the firmware's own number of steps never reaches it
STEP_S, READ_S, SYNC_S = 0.3, 0.15, 0.3
SLOT_S = APPROACH_S + STEP_S
GOTO_S, DEGREES_PER_S = 0.1, 250.0
GOTO_ERROR_DEG, APPROACH_ERROR_DEG, ENCODER_NOISE_DEG = 4.0, 1.0, 0.3

FULL_LEVEL, LEVEL_NOISE, MAX_LEVEL = 400.0, 6.0, 1023

OK, UNKNOWN, INPUT_ERROR = b"OK\r\n", b"Unknown command\r\n", b"Input error detected.\r\n"
TAKES_VALUE = {
    "SETANG": TOKEN_BYTES, "SETPOL": TOKEN_BYTES, "SETHOF": TOKEN_BYTES, "SETTH": TOKEN_BYTES, "POLSEQ": N_SLOTS,
}  # fmt: skip


class EkpqcBoard:
    """The board in both boxes: an Arduino with a polariser on a servo motor, a laser's pin and a sensor's pin.

    Commands are tokens that end with a space, or after 15 bytes, or after 0.1 s without a byte; while one is carried
    out the next 64 bytes wait. Opening the port restarts it: it is deaf for two seconds and forgets all but the offset.

    Args:
        world: Surroundings; both boxes of one bench are in parts of one world, and the beam is between them.
        faults: Faults that are on.
        talkative: Whether the firmware is an early one, which says more while it waits for light.

    Source:
        s-fifteen-instruments/Quantum_Cryptography_Educational_Kit_EKPQC, ArduinoQuantum.ino and PolarizerMotor.cpp.
    """

    conditions: ClassVar[dict[str, float]] = {}
    unit_faults: ClassVar[frozenset[Fault]] = frozenset(
        {Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE, Fault.STUCK_VALUE}
    )

    def __init__(
        self, world: World | None = None, *, faults: Iterable[Fault | str] = (), talkative: bool = False
    ) -> None:
        self.world = world or World()
        self.world.declare(self.conditions)
        self.faults = FaultSwitches(faults, rng=self.world.rng("faults"))
        self.talkative = talkative
        beam = self.world.between.setdefault("EKPQC beam", EkpqcBeam(self.world.rng("EKPQC beam")))
        if not isinstance(beam, EkpqcBeam):
            raise TypeError("what is between the boxes is no beam")
        self.beam = beam
        self._rng = self.world.rng("unit")
        self._h_offset_deg, self._target_deg, self.angle_deg = 0, 45, 45.0  # what the EEPROM and the motor keep
        self.power_cycle()

    # --- the board's life --------------------------------------------------------------------------------------
    def power_cycle(self) -> None:
        """Restart: the offset and the motor's place stay, all else is forgotten."""
        now_s = self.world.now_s()
        self._booted_s = now_s + BOOT_S
        self.threshold = USUAL_THRESHOLD
        self.sequence = [0] * N_SLOTS
        self._job: tuple[float, Callable[[], bytes]] | None = None
        self._catch: tuple[float, Callable[[float], None]] | None = None
        self.reset_input()
        self._laser(now_s, on=False)

    def opened(self) -> None:
        """The serial line's DTR restarts the board."""
        self.power_cycle()

    def reset_input(self) -> None:
        """Forget what was not yet carried out."""
        self._waiting = bytearray()
        self._token = bytearray()
        self._command = ""
        self._last_byte_s = 0.0

    def nak(self) -> bytes:
        """Return the answer to what it does not understand."""
        return UNKNOWN

    def receive(self, data: bytes) -> bytes:
        """Take bytes in any split and return the answers that are due."""
        if self.world.now_s() < self._booted_s:
            return b""
        replies = [self.poll()]
        for byte in data:
            if len(self._waiting) < SERIAL_BUFFER_BYTES:
                self._waiting.append(byte)
            replies.append(self._carry_on())
        return b"".join(replies)

    def poll(self) -> bytes:
        """Return the answers that are due by the bench's clock."""
        reply = self._carry_on()
        if self._token and not self._busy and self.world.now_s() >= self._last_byte_s + TOKEN_TIMEOUT_S:
            reply += self._end_token() + self._carry_on()
        return reply

    def wait_s(self) -> float | None:
        """Bench seconds until something will be due, or None; infinite while it waits for light."""
        now_s = self.world.now_s()
        if now_s < self._booted_s:
            return self._booted_s - now_s
        self._look_for_light()
        if self._job is not None:
            return max(0.0, self._job[0] - now_s)
        if self._catch is not None:
            return math.inf
        return max(0.0, self._last_byte_s + TOKEN_TIMEOUT_S - now_s) if self._token else None

    # --- what the boxes differ in ------------------------------------------------------------------------------
    def _laser(self, at_s: float, *, on: bool) -> None:
        """Set the laser's pin."""

    def _level(self, time_s: float) -> float:
        """Return the mean of what the sensor's pin reads, with the polariser as it stands."""
        return 0.0

    # --- firmware ----------------------------------------------------------------------------------------------
    @property
    def _busy(self) -> bool:
        return self._job is not None or self._catch is not None

    def _carry_on(self) -> bytes:
        replies = []
        while True:
            self._look_for_light()
            if self._job is not None and self.world.now_s() >= self._job[0]:
                _, finish = self._job
                self._job = None
                replies.append(self._spoilt(finish()))
            elif self._busy or not self._waiting:
                return b"".join(replies)
            else:
                replies.append(self._take(self._waiting.pop(0)))

    def _take(self, byte: int) -> bytes:
        self._last_byte_s = self.world.now_s()
        if byte == ord(" "):
            return self._end_token()
        self._token.append(byte)
        full = TAKES_VALUE.get(self._command, TOKEN_BYTES)
        return self._end_token() if len(self._token) == full else b""

    def _end_token(self) -> bytes:
        """Carry out a command, or note it and wait for its value."""
        token = self._token.decode("latin-1")
        self._token.clear()
        if not self._command and token.upper() in TAKES_VALUE:
            self._command = token.upper()
            return b""
        command, value = (self._command, token) if self._command else (token.upper(), "")
        self._command = ""
        return self._spoilt(self._carry_out(command, value))

    def _spoilt(self, reply: bytes) -> bytes:
        return spoil_reply(reply, self.faults, self._rng)

    def _carry_out(self, command: str, value: str) -> bytes:
        """Return the answer, or b"" and a job or a wait for light that will give it."""
        tell = {
            "*IDN?": self._identity, "ANG?": self._read_angle, "HOF?": lambda: _line(self._h_offset_deg),
            "POL?": self._read_polarization,
            "SEQ?": lambda: "".join(map(str, self.sequence)).encode() + b"\n",
            "VOLT?": lambda: _line(self._read_sensor(self.world.now_s())), "TH?": lambda: _line(self.threshold),
            "HELP": lambda: b"Quantum Key Construction\nHELP        \t    Print help statement\n",
            "LASON": lambda: self._switch_laser(on=True), "LASOFF": lambda: self._switch_laser(on=False),
            "RNDSEQ": lambda: self._draw(4), "RNDBAS": lambda: self._draw(2),
            "RUNSEQ": lambda: self._run(shine=False), "TXSEQ": lambda: self._run(shine=True),
            "RXSEQ": self._listen, "CATCH": self._catch_light,
        }  # fmt: skip
        take: dict[str, Callable[[str], bytes]] = {
            "SETANG": lambda text: self._go_to(_atoi(text)), "SETPOL": self._set_polarization,
            "SETHOF": self._set_offset, "SETTH": self._set_threshold, "POLSEQ": self._set_sequence,
        }  # fmt: skip
        if command in take:
            return take[command](value)
        return tell[command]() if command in tell else UNKNOWN

    def _identity(self) -> bytes:
        if Fault.WRONG_IDENTITY in self.faults:
            return b"Classical\r\n"
        return b"Quantum2\r\n" if Fault.WRONG_FIRMWARE in self.faults else b"Quantum\r\n"

    def _read_polarization(self) -> bytes:
        return f"{(self._target_deg - self._h_offset_deg) / 45:.2f}\r\n".encode()

    def _read_angle(self) -> bytes:
        read_deg = self.angle_deg % 360 + ENCODER_NOISE_DEG * float(self._rng.standard_normal())
        return f"{min(max(read_deg, 0.0), 360.0):.2f}\r\n".encode()

    def _read_sensor(self, time_s: float) -> int:
        level = self._level(time_s) + LEVEL_NOISE * float(self._rng.standard_normal())
        return int(min(max(level, 0.0), MAX_LEVEL))

    def _switch_laser(self, *, on: bool) -> bytes:
        self._laser(self.world.now_s(), on=on)
        return b"LASER ON!\r\n" if on else b"LASER OFF!\r\n"

    def _set_polarization(self, text: str) -> bytes:
        digit = ord(text[:1] or "\0") - ord("0")
        wrong = not 0 <= digit <= 3
        return (INPUT_ERROR if wrong else b"") + self._go_to((0 if wrong else digit) * 45 + self._h_offset_deg)

    def _set_offset(self, text: str) -> bytes:
        if Fault.STUCK_VALUE not in self.faults:
            self._h_offset_deg = _atoi(text)
        return OK

    def _set_threshold(self, text: str) -> bytes:
        if Fault.STUCK_VALUE not in self.faults:
            self.threshold = _atoi(text)
        return OK

    def _set_sequence(self, text: str) -> bytes:
        """Take up to 16 digits: what is missing or wrong becomes 0."""
        digits = [ord(char) - ord("0") for char in text.ljust(N_SLOTS, "0")]
        wrong = [not 0 <= digit <= 3 for digit in digits]
        if Fault.STUCK_VALUE not in self.faults:
            self.sequence = [0 if bad else digit for digit, bad in zip(digits, wrong, strict=True)]
        return INPUT_ERROR * sum(wrong) + OK

    def _draw(self, n_symbols: int) -> bytes:
        self.sequence = self._rng.integers(n_symbols, size=N_SLOTS).tolist()
        return OK

    # --- motor and sequences -----------------------------------------------------------------------------------
    def _go_to(self, target_deg: int) -> bytes:
        if Fault.STUCK_VALUE in self.faults:
            return OK
        way_deg = abs((target_deg - self.angle_deg + 180) % 360 - 180)
        error_deg = float(self._rng.uniform(-GOTO_ERROR_DEG, GOTO_ERROR_DEG))

        def arrived() -> bytes:
            self._target_deg, self.angle_deg = target_deg, target_deg + error_deg
            return OK

        self._job = (self.world.now_s() + GOTO_S + way_deg / DEGREES_PER_S, arrived)
        return b""

    def _approach(self, symbol: int) -> float:
        """Turn the polariser to a symbol's angle, more exactly than `_go_to`, and return where it then stands."""
        self._target_deg = symbol * 45 + self._h_offset_deg
        self.angle_deg = self._target_deg + APPROACH_ERROR_DEG * float(self._rng.standard_normal())
        return self.angle_deg

    def _run(self, *, shine: bool) -> bytes:
        """Plan a whole sequence: a pulse to synchronise, then one for each symbol."""
        start_s = self.world.now_s() + APPROACH_S
        self._laser(self.world.now_s(), on=False)
        angle_deg = self._approach(1)
        if shine:
            self._flash(Pulse(start_s, start_s + SYNC_S, angle_deg))
            start_s += 2 * SYNC_S
        for number, symbol in enumerate(self.sequence):
            lit_s = start_s + number * SLOT_S + APPROACH_S
            angle_deg = self._approach(symbol)
            if shine:
                self._flash(Pulse(lit_s, lit_s + STEP_S, angle_deg, carries_symbol=True))
        self._approach(1)
        self._job = (start_s + N_SLOTS * SLOT_S + APPROACH_S, lambda: OK)
        return b""

    def _flash(self, pulse: Pulse) -> None:
        """Let the laser shine for a time."""

    def _listen(self) -> bytes:
        """Turn to D, wait for the pulse that synchronises, then read the sensor in each slot."""
        self._approach(1)

        def caught(time_s: float) -> None:
            start_s = time_s + 2 * SYNC_S
            end_s = start_s + (N_SLOTS - 1) * SLOT_S + APPROACH_S + READ_S + APPROACH_S
            self._job = (end_s, lambda: self._measure(start_s, time_s))

        self._catch = (self.world.now_s() + APPROACH_S, caught)
        return b"Listen for sync pulse.\r\n" if self.talkative else b""

    def _measure(self, start_s: float, caught_s: float) -> bytes:
        said = self._chatter(caught_s)
        readings = []
        for number, symbol in enumerate(self.sequence):
            self._approach(symbol)
            readings.append(self._read_sensor(start_s + number * SLOT_S + APPROACH_S + READ_S))
        self._approach(1)
        return said + "".join(f"{reading} " for reading in readings).encode() + b"\n"

    def _catch_light(self) -> bytes:
        def caught(time_s: float) -> None:
            millis = round((time_s - self._booted_s + BOOT_S) * 1000)
            said = self._chatter(time_s) + f"{millis} ms is when the light triggers.\r\n".encode()
            self._job = (time_s, lambda: said)

        self._catch = (self.world.now_s(), caught)
        return b""

    def _chatter(self, caught_s: float) -> bytes:
        if not self.talkative:
            return b""
        return f"sensorVal: {int(self._level(caught_s))}\r\ncatchTh: {self.threshold}\r\n".encode()

    def _look_for_light(self) -> None:
        """If the board waits for light and some comes, now or by the sender's plan, go on."""
        if self._catch is None:
            return
        from_s, caught = self._catch
        times_s = [max(from_s, pulse.start_s) for pulse in self.beam.after(from_s)]
        for time_s in sorted([*times_s, max(from_s, self.world.now_s())]):
            if self._level(time_s) >= self.threshold:
                self._catch = None
                caught(time_s)
                return


class EmulatedEkpqcSender(EkpqcBoard):
    """The sender's box: its laser shines through the polariser into the beam."""

    def _laser(self, at_s: float, *, on: bool) -> None:
        self.beam.stop(at_s)
        if on:
            self.beam.shine(Pulse(at_s, float("inf"), self.angle_deg))

    def _flash(self, pulse: Pulse) -> None:
        self.beam.shine(pulse)


class EmulatedEkpqcReceiver(EkpqcBoard):
    """The receiver's box: its sensor sees what the polariser lets pass of the beam, and some light of the room."""

    conditions: ClassVar[dict[str, float]] = {"ambient_level": 4.0, "beam_transmission": 1.0, "eve_intercepts": 0.0}

    def _level(self, time_s: float) -> float:
        there = self.world.conditions
        light = self.beam.at(time_s, intercepted=there["eve_intercepts"] > 0)
        share = passed(light.angle_deg - self.angle_deg) if light else 0.0
        return there["ambient_level"] + FULL_LEVEL * there["beam_transmission"] * share


def _line(value: int) -> bytes:
    return f"{value}\r\n".encode()


def _atoi(text: str) -> int:
    match = re.match(r"\s*([+-]?[0-9]+)", text)
    return int(match[1]) if match else 0

"""Drivers for the sender and receiver boxes of S-Fifteen's teaching kit for quantum cryptography (EKPQC).

Both boxes have the same Arduino with the same firmware; which is which only the wiring knows. Light is classical: the
protocol's messages are those of BB84, its security is not.

Source:
    s-fifteen-instruments/Quantum_Cryptography_Educational_Kit_EKPQC: programs/2_QuantumKey/ArduinoQuantum,
    programs/Arduino_Libraries/PolarizerMotor, programs/2_QuantumKey/*.py.
"""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from qkdhw.drivers.instrument import ErrorStyle
from qkdhw.drivers.setting import Reply, Setting
from qkdhw.drivers.text_instrument import QUIET_S, TextInstrument, number_of
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    TransportTimeoutError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.interfaces import Transport
from qkdhw.model import UnitInfo, UnitStatus

N_SLOTS = 16
BOOT_TIMEOUT_S, ASK_EVERY_S = 4.0, 0.25
MOVE_TIMEOUT_S = 5.0
MAX_LEVEL = 1023
REFUSALS = ("Unknown command", "Input error detected.")
CHATTER = re.compile(r"Listen for sync pulse\.|sensorVal: [0-9]{1,4}|catchTh: -?[0-9]{1,5}")
CHATTER_LINES = 8

OTHER_BOARDS = frozenset({"Classical", "QuantumEve"})


class EkpqcBoard(TextInstrument):
    """What both boxes have: a polariser on a motor, and a sequence of 16 polarisations.

    Args:
        transport: Open link, owned from now on. Opening a serial port restarts the board; the driver waits for it.
        timeout_s: Longest wait for an answer.
    """

    vendor: ClassVar[str] = "S-Fifteen Instruments"
    model: ClassVar[str] = "EKPQC"
    error_style: ClassVar[ErrorStyle] = ErrorStyle.IN_BAND
    schemes: ClassVar[tuple[str, ...]] = ("serial",)
    command_end: ClassVar[bytes] = b" "
    sequence_name: ClassVar[str]
    n_symbols: ClassVar[int]

    h_offset_deg = Setting(
        int, unit="deg", minimum=-180, maximum=180, query="HOF?", command="SETHOF {value}", reply=Reply.ACK,
        doc="Motor angle at which the polariser passes H; kept in the board's EEPROM, which wears.",
    )  # fmt: skip
    polarization = Setting(
        int, minimum=0, maximum=3, query="POL?", command="SETPOL {value}", reply=Reply.ACK, restore=False,
        decode=lambda text: round(number_of(text)) % 4,
        doc="Symbol at which the polariser stands, or is nearest to: 0 H, 1 D, 2 V, 3 A.",
    )  # fmt: skip
    angle_deg = Setting(float, unit="deg", access="r", query="ANG?", doc="Angle that the motor's encoder reads.")

    def __init__(self, transport: Transport, *, timeout_s: float = 2.0) -> None:
        self._sequence: tuple[int, ...] | None = None
        super().__init__(transport, timeout_s=timeout_s)

    def move_to(self, angle_deg: int) -> float:
        """Turn the polariser, wait for it, and return the angle that it then reads: within 5 degrees.

        Args:
            angle_deg: 0 to 360.

        Raises:
            ConfigurationError: Another angle, or not a whole number; nothing was sent.
        """
        if isinstance(angle_deg, bool) or not isinstance(angle_deg, int) or not 0 <= angle_deg <= 360:
            raise ConfigurationError(f"angle_deg {angle_deg!r} is not allowed", remedy="use a whole number, 0 to 360")
        with self._exchange(timeout_s=MOVE_TIMEOUT_S):
            self._acknowledged(f"SETANG {angle_deg}")
        return self.angle_deg

    def _load(self, sequence: Sequence[int]) -> None:
        """Hand over 16 symbols and read them back."""
        allowed = range(self.n_symbols)
        symbols = tuple(operator.index(symbol) if hasattr(symbol, "__index__") else -1 for symbol in sequence)
        if len(symbols) != N_SLOTS or not all(symbol in allowed for symbol in symbols):
            raise ConfigurationError(
                f"a {self.sequence_name} is {N_SLOTS} whole numbers from 0 to {allowed[-1]}, not these {len(symbols)}",
                remedy="fill a shorter one up",
            )
        with self._exchange():
            self._acknowledged("POLSEQ " + "".join(map(str, symbols)))
            if self._read_sequence() != symbols:
                raise UnitError(f"the board has another {self.sequence_name} than it was told", remedy="restart it")
            self._sequence = symbols

    def _draw(self, command: str) -> tuple[int, ...]:
        """Let the board draw a sequence and return it."""
        with self._exchange():
            self._acknowledged(command)
            self._sequence = self._read_sequence()
            return self._sequence

    def _check_sequence(self) -> None:
        """Make sure that the board has the sequence that was given to it: after a restart it has 16 zeros."""
        if self._sequence is None or self._read_sequence() != self._sequence:
            self._sequence = None
            raise UnitStateError(f"the board has no {self.sequence_name}, or lost it", remedy="load it")

    def _read_sequence(self) -> tuple[int, ...]:
        line = self._answer("SEQ?")
        if not re.fullmatch(r"[0-3]{16}", line):
            raise WireFormatError(f"SEQ? was answered by {len(line)} characters, not by 16 symbols")
        return tuple(map(int, line))

    # --- the line ----------------------------------------------------------------------------------------------
    def _is_challenge_answer(self, line: str) -> bool:
        return bool(re.fullmatch(r"(Quantum|Classical)\w*", line))

    def _synchronise(self) -> None:
        """Ask who is there until it answers; a board that waits for light is restarted by opening the port again."""
        try:
            self._ask_until_answered()
        except TransportTimeoutError:
            self._link.reconnect(timeout_s=self._timeout_s)
            self._ask_until_answered()

    def _ask_until_answered(self) -> None:
        """Ask again and again: a board that starts hears nothing for about two seconds."""
        deadline_s = time.monotonic() + BOOT_TIMEOUT_S
        self._link.discard_input()
        while not self._challenge_answered():
            if time.monotonic() > deadline_s:
                raise TransportTimeoutError(
                    f"{self._link.url} did not answer {self.challenge} within {BOOT_TIMEOUT_S} s",
                    remedy="check the address, the baud rate (38400) and the cable",
                )
        self._link.read_until_quiet(QUIET_S, timeout_s=self._timeout_s)

    def _challenge_answered(self) -> bool:
        self._write_line(self.challenge)
        deadline_s = time.monotonic() + ASK_EVERY_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                if self._is_challenge_answer(self._read_line(left_s)):
                    return True
            except TransportTimeoutError:
                return False
            except WireFormatError:  # what the line or the boot loader left
                continue
        return False

    def _identify(self) -> UnitInfo:
        name = self._answer(self.challenge)
        if name != "Quantum":
            # Only the kit's own names are quoted: another answer may be the loaded pattern, and that is raw key.
            shown = repr(name) if name in OTHER_BOARDS else f"{len(name)} other characters"
            raise UnitError(
                f"this is not a box of the EKPQC kit with its quantum firmware: {shown} answered",
                remedy="check the address: the kit has a board for the classical channel too",
            )
        return UnitInfo(self.vendor, self.model, "", firmware=name)

    def _write_line(self, command: str) -> None:
        """Send a command; 16 digits end it by their number, and a space after them would be one more command."""
        end = b"" if command.startswith("POLSEQ ") else self.command_end
        self._link.write(command.encode("ascii") + end, timeout_s=self._timeout_s)

    def _answer(self, command: str, *, timeout_s: float | None = None) -> str:
        """Send a command and return its answer's line. The link must be held."""
        line = self._ask(command, timeout_s=timeout_s)
        name = command.partition(" ")[0]  # its value may be key
        if line in REFUSALS:
            raise CommandRefusedError(f"the board answered {name}: {line}", command=name, remedy="check the firmware")
        return line

    def _acknowledged(self, command: str, *, timeout_s: float = MOVE_TIMEOUT_S) -> None:
        self._expect(command, "OK", timeout_s=timeout_s)

    def _expect(self, command: str, wanted: str, *, timeout_s: float) -> None:
        line = self._answer(command, timeout_s=max(timeout_s, self._timeout_s))
        if line != wanted:
            raise WireFormatError(
                f"{command.partition(' ')[0]} was answered by {len(line)} other characters than {wanted}",
                remedy="check the driver name",
            )

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        line = self._answer(setting.query)
        try:
            value = setting.decode(line) if setting.decode else setting.kind(number_of(line))
        except ValueError:
            raise WireFormatError(f"{setting.query} was answered by {len(line)} characters, not a number") from None
        if setting.kind is int and setting.decode is None and value != number_of(line):
            raise WireFormatError(f"{setting.query} was answered by a fraction, not a whole number")
        return value

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> None:
        moves = setting.name == "polarization"
        command = setting.command.format(value=value)
        self._acknowledged(command, timeout_s=MOVE_TIMEOUT_S if moves else self._timeout_s)


class EkpqcSender(EkpqcBoard):
    """The sender's box as `interfaces.PatternGenerator` and `interfaces.PhotonSource`.

    A symbol is a polarisation: 0 H, 1 D, 2 V, 3 A; its basis is symbol % 2, its bit symbol // 2. After opening, and
    after any trouble on the line, the laser is off.
    """

    model: ClassVar[str] = "EKPQC sender"
    unit_kind: ClassVar[str] = "transmitter"
    capabilities: ClassVar[frozenset[str]] = frozenset({"PatternGenerator", "PhotonSource"})
    sequence_name: ClassVar[str] = "pattern"
    n_symbols: ClassVar[int] = 4

    def load_pattern(self, symbols: Sequence[int]) -> None:
        """Hand over 16 symbols to be sent, in order, and read them back.

        Raises:
            ConfigurationError: Not 16 symbols from 0 to 3; nothing was sent.
            UnitError: The board has others.
        """
        self._load(symbols)

    def randomise_pattern(self) -> tuple[int, ...]:
        """Let the board draw 16 symbols from its own noise and return them: they are raw key."""
        return self._draw("RNDSEQ")

    def run_pattern(self, *, timeout_s: float = 30.0) -> None:
        """Send a pulse to synchronise and then the pattern, and wait for its end: about 16 s.

        Raises:
            UnitStateError: No pattern was loaded, or the board lost it.
        """
        with self._exchange(timeout_s=timeout_s):
            self._check_sequence()
            self._laser_on = False
            self._acknowledged("TXSEQ", timeout_s=timeout_s)

    def enable_output(self) -> None:
        """Switch the laser on, for adjusting."""
        with self._exchange():
            self._expect("LASON", "LASER ON!", timeout_s=self._timeout_s)
            self._laser_on = True

    def disable_output(self) -> None:
        """Switch the laser off."""
        with self._exchange():
            self._darken()

    def read_output_enabled(self) -> bool:
        """Say whether light is on: what was last confirmed, for the board does not tell."""
        with self._exchange():
            return self._laser_on

    def _synchronise(self) -> None:
        super()._synchronise()
        self._darken()

    def _darken(self) -> None:
        self._expect("LASOFF", "LASER OFF!", timeout_s=self._timeout_s)
        self._laser_on = False


class EkpqcReceiver(EkpqcBoard):
    """The receiver's box: one polariser and one sensor, read 16 times after a pulse that synchronises.

    It is no `interfaces.ReceiverUnit`: it detects no events in time, it reads a voltage in each slot, and only with a
    threshold does that become a bit. Choose bases, `arm`, let the sender run, `read_measurement`, `decide_bits`.
    """

    model: ClassVar[str] = "EKPQC receiver"
    unit_kind: ClassVar[str] = "receiver"
    capabilities: ClassVar[frozenset[str]] = frozenset({"Unit"})
    sequence_name: ClassVar[str] = "choice of bases"
    n_symbols: ClassVar[int] = 2

    sensor_threshold = Setting(
        int, minimum=0, maximum=MAX_LEVEL, query="TH?", command="SETTH {value}", reply=Reply.ACK,
        doc="Sensor reading above which the board takes light for the pulse that synchronises; 200 is about 1 V.",
    )  # fmt: skip
    sensor_level = Setting(int, access="r", query="VOLT?", doc="Sensor reading, 0 to 1023 for 0 to 5 V.")

    def __init__(self, transport: Transport, *, timeout_s: float = 2.0) -> None:
        self._armed = False
        super().__init__(transport, timeout_s=timeout_s)

    def load_bases(self, bases: Sequence[int]) -> None:
        """Hand over the bases of 16 slots, 0 for H/V and 1 for D/A, and read them back.

        Raises:
            ConfigurationError: Not 16 bases; nothing was sent.
            UnitError: The board has others.
        """
        self._load(bases)

    def randomise_bases(self) -> tuple[int, ...]:
        """Let the board draw 16 bases from its own noise and return them."""
        return self._draw("RNDBAS")

    def arm(self) -> None:
        """Let the board wait for the pulse that synchronises; until the measurement is read it hears nothing else.

        Raises:
            UnitStateError: No bases were loaded, the board lost them, or it is armed already.
        """
        with self._exchange():
            self._check_sequence()
            self._write_line("RXSEQ")
            self._armed = True

    def read_measurement(self, *, timeout_s: float = 30.0) -> tuple[int, ...]:
        """Wait for the 16 sensor readings of an armed board, 0 to 1023 each: they are raw key.

        Raises:
            UnitStateError: It is not armed.
            TransportTimeoutError: No light came; the board is restarted before it is used again.
        """
        if not self._armed:
            raise UnitStateError("the receiver is not armed", remedy="call arm() before the sender runs")
        self._armed = False
        with self._exchange(timeout_s=timeout_s):
            line = self._read_past_chatter(timeout_s)
            if not re.fullmatch(r"(?:[0-9]{1,4} ){15}[0-9]{1,4}", line):
                raise WireFormatError(f"RXSEQ was answered by {len(line)} characters, not by 16 readings")
            readings = tuple(map(int, line.split()))
            if max(readings) > MAX_LEVEL:
                raise WireFormatError(f"RXSEQ was answered by a reading above {MAX_LEVEL}")
            return readings

    def disarm(self) -> None:
        """Give up waiting: the board is restarted, and forgets its bases."""
        self._armed = False
        with self._exchange():
            self._link.reconnect(timeout_s=self._timeout_s)
            self._recover()

    def wait_for_light(self, *, timeout_s: float = 30.0) -> int:
        """Wait until the sensor reads more than its threshold and return the board's clock then, in milliseconds.

        Raises:
            TransportTimeoutError: No light came; the board is restarted before it is used again.
        """
        with self._exchange(timeout_s=timeout_s):
            self._write_line("CATCH")
            match = re.fullmatch(r"([0-9]{1,10}) ms is when the light triggers\.", self._read_past_chatter(timeout_s))
            if match is None:
                raise WireFormatError("CATCH was answered by no time")
            return int(match[1])

    def read_status(self) -> UnitStatus:
        """Read angle and sensor; "armed" while it waits for light, and then it tells nothing else."""
        return UnitStatus(state="armed") if self._armed else replace(super().read_status(), state="idle")

    @contextmanager
    def _exchange(self, *, timeout_s: float | None = None) -> Iterator[None]:
        if self._armed:
            raise UnitStateError("the receiver waits for light and hears nothing", remedy="read_measurement or disarm")
        exchange: AbstractContextManager[None] = super()._exchange(timeout_s=timeout_s)
        with exchange:
            yield

    def _read_past_chatter(self, timeout_s: float) -> str:
        """Return the next line that an early firmware does not say by the way."""
        deadline_s = time.monotonic() + timeout_s
        for _ in range(CHATTER_LINES):
            line = self._read_line(max(0.0, deadline_s - time.monotonic()))
            if not CHATTER.fullmatch(line):
                return line
        raise WireFormatError("the board says too much", remedy="check its firmware")


def decide_bits(readings: Sequence[int], threshold: float) -> tuple[int, ...]:
    """Return the bit that each sensor reading stands for: 0 above the threshold, as H in H/V and D in D/A, else 1.

    Args:
        readings: Sensor readings, 0 to 1023.
        threshold: Half way between the readings of parallel and of crossed polarisers.
    """
    return tuple(0 if reading > threshold else 1 for reading in readings)

"""A time tagger that speaks the S-Fifteen TDC1's protocol: serial text and a stream of 32-bit events.

Channel 1 is the key-basis detector of bit 0, 2 key basis bit 1, 3 test basis bit 0, 4 test basis bit 1. Sets are
silent, as are commands that the unit does not know.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from enum import IntEnum, unique
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.faults import Fault, FaultSwitches, slip_bytes, spoil_reply
from qkdhw_emulators.optics.bench_clicks import BenchInputs
from qkdhw_emulators.optics.link_model import TICK_PS
from qkdhw_emulators.optics.link_run import LinkRun
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.optics.periodic_signal import PeriodicSignal
from qkdhw_emulators.sent_events import SentEvents
from qkdhw_emulators.world import World, serial_number

MAX_COMMAND_BYTES = 128
TICKS_PER_MS = 10**9 // TICK_PS
DUMMY_AFTER_TICKS = 140 * TICKS_PER_MS
STORM_AFTER_TICKS = 500
TIME_BITS = 27
TIME_MASK = (1 << TIME_BITS) - 1
JUST_BELOW_WRAP = (1 << TIME_BITS) - (1 << 23)  # 17 ms
STEP_BACK_EVERY, STEP_BACK_TICKS = 8, 50
DUMMY = 0x10
STATUS_OVERFLOW = 0x10
COINCIDENCE_PAIRS = ((0, 2), (0, 3), (1, 2), (1, 3))
HELP = (
    "*IDN? HELP *RST TIME <ms> TIME? SINGLES PAIRS TIMESTAMP MODE? COUNTS? ABORT INPKT STATUS? TTL NIM POS <V> "
    "NEG <V> LEVEL? REFCLK <0|1|2> REFCLK? ECLOCK?"
)


@unique
class Mode(IntEnum):
    """Answers of MODE?."""

    SINGLES = 0
    PAIRS = 1
    TIMESTAMP = 3


class EventEncoder:
    """Writes events as 32-bit words and a dummy wherever nothing happened for 140 ms.

    Args:
        gate_ticks: Length of the stream, or 0 for endless.
        first_ticks: What the time field shows at the beginning of the stream.
        dummy_after_ticks: How long nothing may happen.
    """

    def __init__(self, gate_ticks: int, first_ticks: int = 0, dummy_after_ticks: int = DUMMY_AFTER_TICKS) -> None:
        self._gate_ticks = gate_ticks
        self._first_ticks = first_ticks
        self._dummy_after_ticks = dummy_after_ticks
        self._last = 0
        self.ended = False

    def encode(self, ticks: NDArray[np.int64], pattern: NDArray[np.uint8], horizon_ticks: int) -> bytes:
        """Encode events that end before `horizon_ticks`, which is as far as the time is known."""
        if self._gate_ticks and horizon_ticks >= self._gate_ticks:
            self.ended = True
            horizon_ticks = self._gate_ticks
            inside = int(np.searchsorted(ticks, horizon_ticks))
            ticks, pattern = ticks[:inside], pattern[:inside]
        before = np.concatenate(([self._last], ticks))
        after = np.append(ticks, max(horizon_ticks, int(before[-1])))
        idle = np.maximum(after - before - 1, 0) // self._dummy_after_ticks
        if idle.any():
            gap = np.repeat(np.arange(idle.shape[0]), idle)
            nth = np.arange(gap.shape[0]) - np.repeat(np.cumsum(idle) - idle, idle) + 1
            ticks = np.insert(ticks, gap, before[gap] + nth * self._dummy_after_ticks)
            pattern = np.insert(pattern, gap, DUMMY)
        if ticks.shape[0]:
            self._last = int(ticks[-1])
        words: NDArray[np.uint32] = (((ticks + self._first_ticks) & TIME_MASK) << 5 | pattern).astype("<u4")
        return words.tobytes()


class EmulatedSFifteenTdc1:
    """Answers TDC1 commands byte for byte; no I/O, no clock of its own.

    Events come from an optical link, or, if `signal_rate_hz` is not 0 when a stream is started, from a signal generator
    at all four inputs in turn. They come as fast as they are read; those of detectors on its bench once they happened.

    Args:
        world: Surroundings; their seed is that of its own light source.
        light: Light source; without one the unit has its own, which is dark.
        inputs: What its inputs are connected to, in place of a light source.
        faults: Faults that are on.

    Attributes:
        faults: Faults that are on; may be changed while the unit runs.
        sent_events: What it generated from a link.

    Source:
        S-Fifteen Instruments TDC1 documentation; the vendor's pyS15 library and readevents4 reader.
    """

    conditions: ClassVar[dict[str, float]] = {
        "reference_clock_connected": 1.0,  # 10 MHz at the clock input
        "signal_rate_hz": 0.0,  # pulses at all inputs together
        "joined_answers": 0.0,  # 1: answers to queries that end in a semicolon come without an end of line
    }
    unit_faults: ClassVar[frozenset[Fault]] = frozenset({
        Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE, Fault.STUCK_VALUE, Fault.OVERFLOW,
        Fault.FULL_BUFFER, Fault.CLOCK_UNLOCK, Fault.COUNTER_WRAP, Fault.NON_MONOTONE, Fault.DUMMY_STORM,
        Fault.BYTE_SLIP, Fault.NEGATIVE_TIME,
    })  # fmt: skip

    def __init__(
        self,
        world: World | None = None,
        *,
        light: LinkRun | None = None,
        inputs: BenchInputs | None = None,
        faults: Iterable[Fault | str] = (),
    ) -> None:
        self.world = world or World()
        self.world.declare(self.conditions)
        self.faults = FaultSwitches(faults, rng=self.world.rng("faults"))
        self._link: LinkRun | BenchInputs = (
            inputs or light or LinkRun(LinkParameters(), seed=self.world.seed, transmitter=False)
        )
        self._serial_number = serial_number(self._link.seed)
        self._rng = np.random.default_rng([self._link.seed, 0x544443])
        self.sent_events = SentEvents(Fraction(TICK_PS))
        self._command = bytearray()
        self._stream = bytearray()
        self._gates: deque[tuple[float, float, Mode]] = deque()  # when they end, how long they are, what is counted
        self._encoder: EventEncoder | None = None
        self._signal: PeriodicSignal | None = None
        self._sent = 0
        self._queries: dict[str, Callable[[], str]] = {
            "*IDN?": self._identity,
            "HELP": lambda: HELP,
            "TIME?": self._read_time,
            "MODE?": lambda: str(int(self._mode)),
            "LEVEL?": lambda: f"{self._level_v:.2f} V",
            "REFCLK?": lambda: str(self._reference_clock),
            "ECLOCK?": lambda: str(int(self._has_external_clock())),
            "STATUS?": lambda: f"{STATUS_OVERFLOW if self._overflow else 0:04x} ",
        }
        self._sets: dict[str, Callable[[list[str]], None]] = {
            "TIME": self._set_time,
            "SINGLES": lambda _: self._set_mode(Mode.SINGLES),
            "PAIRS": lambda _: self._set_mode(Mode.PAIRS),
            "TIMESTAMP": lambda _: self._set_mode(Mode.TIMESTAMP),
            "TTL": lambda _: self._set_level(["1.4"], sign=1),
            "NIM": lambda _: self._set_level(["0.5"], sign=-1),
            "POS": lambda a: self._set_level(a, sign=1),
            "NEG": lambda a: self._set_level(a, sign=-1),
            "REFCLK": self._set_reference_clock,
            "INPKT": lambda _: None,
            "ABORT": lambda _: self._abort(),
            "*RST": lambda _: self.power_cycle(),
        }
        self.power_cycle()

    def power_cycle(self) -> None:
        """Go back to the state of power-up, as *RST does too."""
        self._abort()
        self._mode = Mode.SINGLES
        self._time_ms = 1000
        self._level_v = -0.5
        self._reference_clock = 0
        self._overflow = False
        self._full = False

    def reset_input(self) -> None:
        """Forget a half-received command: its client has gone."""
        self._command.clear()

    def receive(self, data: bytes) -> bytes:
        """Take bytes of commands in any split and return the text answers to those that are complete."""
        replies = []
        for byte in data:
            if byte in b";\r\n":
                reply = self._execute()
                if byte == ord(";") and self.world.conditions["joined_answers"]:
                    reply = reply.removesuffix(b"\r\n")
                replies.append(spoil_reply(reply, self.faults, self._rng))
                self._command.clear()
            elif len(self._command) <= MAX_COMMAND_BYTES:
                self._command.append(byte)
        return b"".join(replies)

    def poll(self) -> bytes:
        """Return the counts whose gate has ended."""
        replies = []
        while self._gates and self._gates[0][0] <= self.world.now_s():
            replies.append(spoil_reply(self._counts(*self._gates.popleft()), self.faults, self._rng))
        return b"".join(replies)

    def wait_s(self) -> float | None:
        """Bench seconds until the gate ends, None if none is open; infinite if events wait for the bench's time."""
        if self._gates:
            return max(0.0, self._gates[0][0] - self.world.now_s())
        return math.inf if self._encoder and isinstance(self._link, BenchInputs) else None

    def read_stream(self, limit_bytes: int) -> bytes:
        """Return what the event stream has next: whole events, empty while the clock stands still."""
        if Fault.FULL_BUFFER in self.faults and (self._encoder or self._signal):
            self._full = self._overflow = True
        if self._full:
            return b""
        if self._signal is not None:
            data = self._signal.read(limit_bytes & ~3)
        else:
            self._fill_stream()
            data = bytes(self._stream[: limit_bytes & ~3])
            del self._stream[: len(data)]
        position, self._sent = self._sent, self._sent + len(data)
        return slip_bytes(data, position) if Fault.BYTE_SLIP in self.faults else data

    def _fill_stream(self) -> None:
        while not self._stream and self._encoder is not None:
            chunk = self._link.next_events()
            if chunk is None:
                break
            ticks, pattern = chunk.ticks, chunk.pattern
            if Fault.OVERFLOW in self.faults:
                self._overflow = True
                ticks, pattern = ticks[: len(ticks) // 2], pattern[: len(pattern) // 2]
            if Fault.NON_MONOTONE in self.faults:
                ticks = ticks.copy()
                late = ticks[STEP_BACK_EVERY - 1 :: STEP_BACK_EVERY]
                late[:] = ticks[STEP_BACK_EVERY - 2 :: STEP_BACK_EVERY][: late.shape[0]] - STEP_BACK_TICKS
            row, detector = np.nonzero(pattern[:, None] >> np.arange(4, dtype=np.uint8) & 1)
            self.sent_events.add(ticks[row], detector + 1)
            self._stream += self._encoder.encode(ticks, pattern, chunk.horizon_ticks)
            if self._encoder.ended:
                self._encoder = None
                self._link.stop_receiver()

    def _execute(self) -> bytes:
        if len(self._command) > MAX_COMMAND_BYTES:
            return b""
        name, *arguments = self._command.decode("latin-1").upper().split() or [""]
        if name == "COUNTS?":
            self._count()
        elif name in self._queries:
            return f"{self._queries[name]()}\r\n".encode("ascii")
        elif name in self._sets:
            self._sets[name](arguments)
        return b""

    def _count(self) -> None:
        """Start the event stream, or open the gate of the plain counters: they answer when it ends."""
        self._abort()
        if self._mode is Mode.TIMESTAMP:
            self._overflow = False
            self._sent = 0
            self._start_stream()
        elif self._time_ms:
            gate_s = self._time_ms / 1000
            self._gates.append((self.world.now_s() + gate_s, gate_s, self._mode))

    def _counts(self, end_s: float, gate_s: float, mode: Mode) -> bytes:
        """Return what the plain counters show at the end of a gate."""
        if rate_hz := self.world.conditions["signal_rate_hz"]:
            counts = [int(rate_hz * gate_s / 4)] * 4
        elif isinstance(self._link, BenchInputs):
            counts = self._link.counts(end_s - gate_s, end_s)
        else:
            counts = self._link.expected_counts(gate_s)
        if mode is Mode.PAIRS:
            accidental = [counts[a] * counts[b] * TICK_PS * 1e-12 / gate_s for a, b in COINCIDENCE_PAIRS]
            counts += [int(n) for n in self._rng.poisson(accidental)]
        return (" ".join(map(str, counts)) + "\r\n").encode()

    def _start_stream(self) -> None:
        rate_hz = self.world.conditions["signal_rate_hz"]
        gate_ticks = self._time_ms * TICKS_PER_MS
        if rate_hz:
            self._signal = PeriodicSignal.words_32(rate_hz, gate_ticks)
            return
        first_ticks = JUST_BELOW_WRAP if Fault.COUNTER_WRAP in self.faults else 0
        idle_ticks = STORM_AFTER_TICKS if Fault.DUMMY_STORM in self.faults else DUMMY_AFTER_TICKS
        self._encoder = EventEncoder(gate_ticks, first_ticks, idle_ticks)
        self._link.start_receiver()

    def _abort(self) -> None:
        self._encoder = self._signal = None
        self._stream.clear()
        self._gates.clear()
        self._link.stop_receiver()

    def _identity(self) -> str:
        model = "TDC2" if Fault.WRONG_IDENTITY in self.faults else "TDC1"
        firmware = " svn-0" if Fault.WRONG_FIRMWARE in self.faults else ""
        return f"S-Fifteen Instruments {model} emulator {self._serial_number}{firmware}"

    def _has_external_clock(self) -> bool:
        return bool(self.world.conditions["reference_clock_connected"]) and Fault.CLOCK_UNLOCK not in self.faults

    def _read_time(self) -> str:
        negative = Fault.NEGATIVE_TIME in self.faults and self._time_ms > 32767
        return str(self._time_ms - 65536 if negative else self._time_ms)

    def _set_time(self, arguments: list[str]) -> None:
        if len(arguments) == 1 and arguments[0].isdecimal() and int(arguments[0][:6]) <= 65535 and self._settable():
            self._time_ms = int(arguments[0][:6])

    def _set_mode(self, mode: Mode) -> None:
        self._mode = mode

    def _set_level(self, arguments: list[str], *, sign: int) -> None:
        try:
            volt = abs(float(arguments[0]))
        except (IndexError, ValueError):
            return
        if volt <= 3.3 and self._settable():
            self._level_v = sign * round(volt, 2)

    def _set_reference_clock(self, arguments: list[str]) -> None:
        if arguments in (["0"], ["1"], ["2"]) and self._settable():
            self._reference_clock = int(arguments[0])

    def _settable(self) -> bool:
        return Fault.STUCK_VALUE not in self.faults

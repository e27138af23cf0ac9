"""Driver for the S-Fifteen TDC1: a four-input time tagger and counter, 2 ns, on USB-CDC serial.

Sets are answered by silence, queries by one line, timestamp mode by raw words without an end mark. A query sent into
a running stream would put its answer between two words, so while words come nothing is asked. A unit that streams sends
a dummy every 140 ms: one that says nothing for a second, though it was told to hand over what it has, streams no more,
and is asked what became of it.

Source:
    S-Fifteen TDC1 documentation (commands, timestamp mode) and the vendor's published host software.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from qkdhw._core import tdc1 as kernels
from qkdhw.drivers.event_stream import EventBuffer, EventStream
from qkdhw.drivers.instrument import ErrorStyle, Instrument
from qkdhw.drivers.receive_buffer import ReceiveBuffer
from qkdhw.drivers.setting import Setting
from qkdhw.drivers.text_instrument import QUIET_S, TextInstrument, number_of, shown, text_of, whole_number_of
from qkdhw.errors import (
    ConfigurationError,
    EventOverflowError,
    QkdhwError,
    TransportTimeoutError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.interfaces import Transport
from qkdhw.model import DetectionBlock, EventKind, UnitInfo, UnitStatus

TICK_PS = Fraction(2000)
LINE_LIMIT_BYTES = 1024
RECEIVE_BYTES = 1 << 18
FIFO_OVERFLOW = 0x10  # STATUS? bit
SILENCE_S = 0.2  # after this long without data the host software sends INPKT: the unit hands over a part-filled packet
SILENCES = 5  # after so many of them in a row the unit is asked whether it still streams
GATHER_S = 0.005  # a unit that never pauses does not keep its reader waiting
IDLE_S = 0.15  # an idle unit is silent; a streaming one sends a dummy at least every 140 ms
PAIRS = ((1, 3), (1, 4), (2, 3), (2, 4))
CLOCKS = ("auto", "external", "internal")  # by the numbers of REFCLK

_GATE = re.compile(rb"(\A-?[0-9]+|0) ?\r\n")  # alone, or, if the stream goes on just then, behind words of it
_STATUS = re.compile(rb"([0-9A-Fa-f]{4}) ?\r?\n\Z")


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Counts over one gate.

    Attributes:
        singles: Pulses at inputs 1 to 4.
        pairs: Coincidences by pair of inputs: (1, 3), (1, 4), (2, 3), (2, 4).
    """

    singles: tuple[int, ...]
    pairs: Mapping[tuple[int, int], int]


class SFifteenTdc1(TextInstrument):
    """An S-Fifteen TDC1 as an `interfaces.TimeTagger`, `Counter` and `ClockReference`; a context manager.

    Opening takes over a unit in any state, also in the middle of a stream that a dead program left running.
    """

    vendor: ClassVar[str] = "S-Fifteen Instruments"
    model: ClassVar[str] = "TDC1"
    unit_kind: ClassVar[str] = "time tagger"
    error_style: ClassVar[ErrorStyle] = ErrorStyle.STATUS_WORD
    capabilities: ClassVar[frozenset[str]] = frozenset({"TimeTagger", "Counter", "ClockReference"})
    schemes: ClassVar[tuple[str, ...]] = ("serial", "tcp")
    inputs: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)
    command_end: ClassVar[bytes] = b"\r\n"

    tick_ps: ClassVar[Fraction] = TICK_PS
    events_at_once: ClassVar[int] = 4  # one word is up to four events

    threshold_v = Setting(
        float, unit="V", minimum=-3.3, maximum=3.3, step=0.01, query="level?", command="{value}",
        decode=lambda text: number_of(text.removesuffix("V").strip()),
        encode=lambda volt: f"{'neg' if volt < 0 else 'pos'} {volt:.3f}",
        doc="Where a pulse counts; its sign is the polarity of the pulses.",
    )  # fmt: skip
    input_logic = Setting(
        str, choices=("nim", "ttl"), access="w", command="{value}",
        doc="The usual threshold of a kind of pulses, in place of `threshold_v`.",
    )  # fmt: skip
    gate_time_ms = Setting(
        int, unit="ms", minimum=1, maximum=65535, query="time?", command="time {value}",
        decode=lambda text: whole_number_of(text) % 65536,  # old firmware answers as a signed 16-bit number
        doc="Gate of `read_counts` and `read_pair_counts`; 1000 when the unit is opened.",
    )  # fmt: skip
    reference_clock = Setting(
        str, choices=CLOCKS, query="refclk?", command="refclk {value}",
        decode=lambda text: dict(zip("012", CLOCKS, strict=True))[text], encode=CLOCKS.index,
        doc='Which 10 MHz to use; "auto" takes the external one if it is there.',
    )  # fmt: skip
    external_clock_present = Setting(
        bool, access="r", query="eclock?", doc="Whether there is a signal at the clock input.",
    )  # fmt: skip

    def __init__(self, transport: Transport, *, timeout_s: float = 2.0) -> None:
        self._state = "idle"  # idle, running, broken: a stream ended by an error
        self._received = ReceiveBuffer(RECEIVE_BYTES)
        self._clock = np.array([0, -1], np.int64)
        self._had_external_clock = False
        self._silences, self._silence_until_s = 0, 0.0
        self._alarms: set[str] = set()
        self._counters = {"photons": 0, "dummies": 0, "flushes": 0}
        self._challenge = transport.draw_nonce()
        super().__init__(transport, timeout_s=timeout_s)

    # --- settings, counters, state ---------------------------------------------------------------------------
    def identify(self) -> UnitInfo:
        """Ask the unit who it is; while the stream runs, tell what it said when it was opened."""
        if self._state == "running" and self._info is not None:
            return self._info
        return super().identify()

    def read_counts(self) -> tuple[int, ...]:
        """Count the pulses at the four inputs over one gate.

        Raises:
            UnitStateError: The stream runs.
            WireFormatError: The answer is not four counts.
        """
        return self._count("singles", 4)

    def read_pair_counts(self) -> PairCounts:
        """Count the pulses at the inputs and their coincidences over one gate.

        Raises:
            UnitStateError: The stream runs.
            WireFormatError: The answer is not eight counts.
        """
        counts = self._count("pairs", 8)
        return PairCounts(counts[:4], dict(zip(PAIRS, counts[4:], strict=True)))

    def read_clock_locked(self) -> bool:
        """Say whether the unit runs from a clock at its input: there is one, and it may use it."""
        return self.reference_clock != "internal" and self.external_clock_present

    def read_status(self) -> UnitStatus:
        """Read state, counters and alarms.

        While the stream runs the unit is not asked, as its answer would land between two events: an overflow is then
        known only after `stop`. Alarms latch until the next `start`.
        """
        if self._state != "running":
            with self._exchange():
                self._note_status(self._ask("status?"))
        state = "running" if self._state == "running" else "idle"
        return UnitStatus(state=state, counters=dict(self._counters), alarms=self.stream_alarms)

    # --- the stream ------------------------------------------------------------------------------------------
    @property
    def stream_alarms(self) -> tuple[str, ...]:
        """Alarms of the last stream: event_overflow, clock_unlocked."""
        return tuple(sorted(self._alarms))

    def stream(self, *, max_events: int = 1 << 16, buffer_events: int = 1 << 21, timeout_s: float = 0.5) -> EventStream:
        """Return the events as a context manager that starts and stops the unit, and an iterator of blocks."""
        return EventStream(self, max_events=max_events, buffer_events=buffer_events, timeout_s=timeout_s)

    def start(self) -> None:
        """Start an endless stream of events.

        Raises:
            UnitStateError: It runs already.
        """
        with self._exchange():
            self._note_status(self._ask("status?"))
            if "event_overflow" in self._alarms:
                self._reset_unit()
            self._had_external_clock = self._sees_external_clock()
            self._tell("inpkt;time 0;timestamp;counts?")
            self._alarms.clear()
            self._received.clear()
            self._clock[:] = 0, -1
            self._counters = dict.fromkeys(self._counters, 0)
            self._silences, self._silence_until_s = 0, time.monotonic() + SILENCE_S
            self._state = "running"

    def stop(self) -> None:
        """Stop the stream; events that were on their way stay readable by `read_block`.

        Raises:
            EventOverflowError: The unit's buffer ran over since `start`. The unit is stopped.
            UnitStateError: The unit lost its power since `start`.
        """
        if self._state != "running":
            return
        with self._stream_exchange():
            self._tell("abort")
            tail = self._read_until_quiet()
            self._tell("status?")
            deadline_s = time.monotonic() + self._timeout_s
            answer = None
            while answer is None:  # what the quiet time missed of the stream comes before the answer
                tail += self._read_raw_line(max(0.0, deadline_s - time.monotonic()))
                answer = _STATUS.search(tail, max(0, len(tail) - 8))
            self._received.append(tail[: answer.start()])
            self._state = "idle"
            self._note_status(answer[1].decode())
            self._check_gate(self._ask("time?"))
            if self._had_external_clock and not self._sees_external_clock():
                self._alarms.add("clock_unlocked")
            self._tell(f"time {self._gate_ms}")
        if "event_overflow" in self._alarms:
            raise EventOverflowError(
                "the TDC1's buffer ran over: events were lost", remedy="lower the count rate or read faster"
            )

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        """Read the next events, in the order sent, each once; empty at the deadline.

        Args:
            max_events: At least 4: one word of the unit is up to four events.
            timeout_s: Longest wait for the first event.

        Raises:
            ValueError: `max_events` is below 4.
            WireFormatError: A word cannot be true: a byte was lost. The stream is over; what came in the last
                34 ms before may be wrong too, and the events of this call are dropped.
            UnitStateError: The unit lost its power, or an earlier error ended the stream.
            TransportTimeoutError: The unit was silent for 1 s and does not answer either. The stream is over.
        """
        if max_events < self.events_at_once:
            raise ValueError(f"max_events must be at least {self.events_at_once}, not {max_events}")
        buffer = EventBuffer.of_size(max_events)  # untouched pages of it take no memory
        self.fill_events(buffer, timeout_s=timeout_s)
        return buffer.block(TICK_PS)

    def fill_events(self, buffer: EventBuffer, *, timeout_s: float) -> None:
        """Write the next events behind those in the buffer, as `read_block` returns them."""
        if self._state != "running":
            self._decode(buffer)
            return
        with self._stream_exchange(timeout_s=timeout_s):
            if self._state == "running":  # not if the exchange had to bring unit and driver back in step
                self._receive(time.monotonic() + timeout_s)
            bad = self._decode(buffer)
            if bad >= 0:
                self._synchronise()
        if bad >= 0:
            raise WireFormatError(
                f"TDC1 word {bad} of those read last cannot be true: a byte was lost on the way",
                remedy="start the stream again; drop events from 34 ms before this on; check the USB cable",
            )

    def close(self) -> None:
        """Stop what runs and close the transport; an overflow is no reason not to."""
        try:
            with contextlib.suppress(QkdhwError):  # the link may be gone; opening again takes over in any state
                self.stop()
        finally:
            super().close()

    def _receive(self, deadline_s: float) -> None:
        """Wait for a word and take with it what is there already, or comes in the next moment."""
        while len(self._received) < 4:
            left_s = max(0.0, deadline_s - time.monotonic())
            silence_s = max(0.0, self._silence_until_s - time.monotonic())
            if self._received.fill(self._link, timeout_s=min(left_s, silence_s)):
                self._silences = 0
            elif silence_s > left_s:
                return
            else:
                self._break_silence()
            self._silence_until_s = time.monotonic() + SILENCE_S
        until_s = time.monotonic() + GATHER_S
        while self._received.fill(self._link, timeout_s=0.0) and time.monotonic() < until_s:
            pass

    def _break_silence(self) -> None:
        """Have the unit hand over a part-filled packet; if that was in vain for long, ask whether it still streams.

        Its gate is 0 as long as it does. One that says so is let be: its buffer is full, or an emulated clock stands.
        """
        self._silences += 1
        if self._silences < SILENCES:
            self._tell("inpkt")
            self._counters["flushes"] += 1
            return
        self._silences = 0
        self._tell("time?")
        deadline_s = time.monotonic() + self._timeout_s
        came, answer = b"", None
        while answer is None:
            data = self._link.read_available(65536, timeout_s=max(0.0, deadline_s - time.monotonic()))
            if not data or time.monotonic() > deadline_s:
                self._state = "broken"
                raise TransportTimeoutError(
                    f"TDC1 at {self._link.url} was silent for {SILENCES * SILENCE_S:g} s of its stream and does not "
                    "answer either",
                    remedy="check the unit's power and the cable, then start the stream again",
                )
            came += data
            answer = _GATE.search(came)
        self._check_gate(answer[1].decode())
        self._received.append(came[: answer.start()] + came[answer.end() :])

    def _check_gate(self, gate_ms: str) -> None:
        """Raise UnitStateError if the gate is not that of a stream: the unit was not told so by this driver."""
        if whole_number_of(gate_ms) == 0:
            return
        if self._state == "running":
            self._state = "broken"
        raise UnitStateError(
            "the TDC1 lost its power, or was reset, while its stream ran, and with it its settings",
            remedy="check the unit's power; what was set here is set again before the next command",
        )

    def _decode(self, buffer: EventBuffer) -> int:
        """Decode what was received and fits; return the index of an impossible word or -1."""
        if self._state == "broken":
            raise UnitStateError("the TDC1's stream was ended by an earlier error", remedy="start it again")
        time_ticks, channel, kind = buffer.free
        n_events, n_words, bad = kernels.decode_tdc1(self._received.unread, self._clock, time_ticks, channel, kind)
        if bad >= 0:
            return bad
        self._received.consume(4 * n_words)
        buffer.filled += n_events
        dummies = int(np.count_nonzero(kind[:n_events] == EventKind.DUMMY))
        self._counters["dummies"] += dummies
        self._counters["photons"] += n_events - dummies
        return -1

    # --- the protocol ----------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _exchange(self, *, timeout_s: float | None = None) -> Iterator[None]:
        with super()._exchange(timeout_s=timeout_s):
            if self._state != "running":
                yield
                return
        raise UnitStateError("a TDC1 cannot be asked or set while its stream runs", remedy="stop it first")

    def _stream_exchange(self, *, timeout_s: float | None = None) -> contextlib.AbstractContextManager[None]:
        return Instrument._exchange(self, timeout_s=timeout_s)

    def _synchronise(self) -> None:
        if self._state == "running":
            self._state = "broken"
            self._received.clear()
        self._tell("\r\nabort")  # ends a half-typed command, then a stream
        self._read_until_quiet()
        if self._info is None:
            self._identify()  # another instrument is named before it is told anything
        self._challenge_unit()

    def _challenge_unit(self) -> None:
        """Set a gate time not used before and read it back: answers to earlier queries come before, none is this."""
        self._challenge += 1
        challenge = str(20000 + self._challenge % 10000)
        self._tell(f"time {challenge};time?")
        deadline_s = time.monotonic() + self._timeout_s
        while self._read_raw_line(max(0.0, deadline_s - time.monotonic())).split()[-1:] != [challenge.encode()]:
            pass
        self._read_until_quiet(QUIET_S)
        self._tell(f"time {self._gate_ms}")

    def _identify(self) -> UnitInfo:
        line = self._ask("*idn?")
        if "TDC1" not in line.upper():
            raise UnitError(
                f"this is not a TDC1: *IDN? was answered by {shown(line)}",
                remedy="check the address and the driver name",
            )
        fields = [part.strip() for part in line.split(",")]
        if len(fields) == 4:
            return UnitInfo(*fields)
        return UnitInfo(vendor=self.vendor, model=self.model, serial_number="", firmware=line)

    def _read_line(self, timeout_s: float) -> str:
        return text_of(self._read_raw_line(timeout_s))

    def _read_raw_line(self, timeout_s: float) -> bytes:
        if timeout_s <= 0.0:
            raise TransportTimeoutError(
                f"TDC1 at {self._link.url} gave no right answer within {self._timeout_s} s",
                remedy="check the cable and the unit's power",
            )
        return self._link.read_until(b"\n", limit=LINE_LIMIT_BYTES, timeout_s=timeout_s)

    def _read_until_quiet(self, quiet_s: float = IDLE_S) -> bytes:
        deadline_s = time.monotonic() + self._timeout_s
        received = bytearray()
        while data := self._link.read_available(65536, timeout_s=quiet_s):
            received += data
            if time.monotonic() > deadline_s:
                raise WireFormatError(
                    f"what answers keeps sending after ABORT, beginning with {shown(received[:60])}",
                    remedy="check that the address leads to a TDC1",
                )
        return bytes(received)

    def _plan(self, settings: Mapping[str, Any]) -> list[tuple[Setting[Any], int | None, Any]]:
        if "input_logic" in settings and "threshold_v" in settings:
            raise ConfigurationError("input_logic and threshold_v exclude each other", remedy="give one of them")
        return super()._plan(settings)

    def _apply(self, setting: Setting[Any], channel: int | None, value: Any) -> Any:
        got = super()._apply(setting, channel, value)
        overruled = {"input_logic": "threshold_v", "threshold_v": "input_logic"}.get(setting.name, "")
        self._applied.pop((overruled, None), None)  # after a reconnect the one set last holds
        return got

    def _reset_unit(self) -> None:
        """Clear the overflow flag: only a reset does, and it resets all settings too."""
        kept = [self._settings[name] for name in ("threshold_v", "reference_clock")]
        values = [self._read_value(setting, None) for setting in kept]
        self._tell("*rst")
        for setting, value in zip(kept, values, strict=True):
            self._write_value(setting, None, value)

    def _sees_external_clock(self) -> bool:
        return bool(self._read_value(self._settings["external_clock_present"], None))

    @property
    def _gate_ms(self) -> int:
        gate_ms: int = self._applied.get(("gate_time_ms", None), 1000)
        return gate_ms

    def _count(self, mode: str, n_counts: int) -> tuple[int, ...]:
        gate_s = self._gate_ms / 1000.0
        with self._exchange(timeout_s=gate_s):
            line = self._ask(f"time {self._gate_ms};{mode};counts?", timeout_s=gate_s + self._timeout_s)
        counts = line.split()
        if len(counts) != n_counts or not all(c.isascii() and c.isdigit() for c in counts):
            raise WireFormatError(f"TDC1 answered {shown(line)} to COUNTS?, not {n_counts} counts")
        return tuple(int(c) for c in counts)

    def _note_status(self, line: str) -> None:
        match = re.fullmatch(r"([0-9A-Fa-f]{4})\s*", line)
        if not match:
            raise WireFormatError(f"TDC1 answered {shown(line)} to STATUS?, not four hexadecimal digits")
        if int(match[1], 16) & FIFO_OVERFLOW:
            self._alarms.add("event_overflow")

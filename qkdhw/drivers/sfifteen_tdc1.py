"""Driver for the S-Fifteen TDC1: a four-input time tagger and counter, 2 ns, on USB-CDC serial.

Sets are answered by silence, queries by one line, timestamp mode by raw words without an end mark. A query sent into
a running stream would put its answer between two words, so while the stream runs nothing is asked.

Source:
    S-Fifteen TDC1 documentation (commands, timestamp mode) and the vendor's published host software.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from fractions import Fraction
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np

from qkdhw._core import tdc1 as kernels
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
FIFO_OVERFLOW = 0x10  # STATUS? bit
SILENCE_S = 0.2  # after this long without data the host software sends INPKT: the unit hands over a part-filled packet
QUIET_S = 0.15  # an idle unit is silent; a streaming one sends a dummy at least every 140 ms
MAX_GATE_MS = 65535
MAX_THRESHOLD_V = 3.3

_STATUS = re.compile(rb"([0-9A-Fa-f]{4}) ?\r?\n\Z")


class SFifteenTdc1:
    """An S-Fifteen TDC1 as an `interfaces.TimeTagger`; a context manager.

    Opening takes over a unit in any state, also in the middle of a stream that a dead program left running.

    Args:
        transport: Open link, owned from now on.
        timeout_s: Longest wait for an answer.
    """

    vendor: ClassVar[str] = "S-Fifteen Instruments"
    unit_kind: ClassVar[str] = "time tagger"

    def __init__(self, transport: Transport, *, timeout_s: float = 2.0) -> None:
        self._link = transport
        self._timeout_s = timeout_s
        self._gate_time_ms = 1000
        self._state = "idle"  # idle, running, broken: a stream ended by an error
        self._words = bytearray()  # received, not yet decoded
        self._clock = np.array([0, -1], np.int64)
        self._overflow = False
        self._counters = {"photons": 0, "dummies": 0, "flushes": 0}
        self._challenge = time.monotonic_ns() // 1_000_000
        self._info = self._take_over()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def identify(self) -> UnitInfo:
        """Ask the unit who it is; while the stream runs, tell what it said when it was opened.

        Raises:
            UnitError: Something other than a TDC1 answers.
        """
        if self._state != "running":
            self._info = _parse_identity(self._query("*idn?"))
        return self._info

    def configure(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Apply settings and return what the unit says it now has.

        Args:
            settings: `input_logic` "nim" or "ttl"; or `threshold_v`, -3.3 to 3.3 V, whose sign is the polarity of the
                pulses; `gate_time_ms`, 1 to 65535, the gate of `read_counts`.

        Returns:
            `threshold_v` and `gate_time_ms` as read back.

        Raises:
            ConfigurationError: A name or value is not allowed; nothing was sent.
            UnitStateError: The stream runs.
            UnitError: The unit did not take the gate time.
        """
        unknown = set(settings) - {"input_logic", "threshold_v", "gate_time_ms"}
        if unknown:
            raise ConfigurationError(
                f"a TDC1 has no setting {min(unknown)!r}",
                remedy="settings: input_logic or threshold_v, gate_time_ms",
            )
        gate_time_ms = _checked_gate_time(settings.get("gate_time_ms", self._gate_time_ms))
        level = _level_command(settings)
        if level:
            self._send(level)
        self._send(f"time {gate_time_ms}")
        got_ms = self._read_gate_time()
        if got_ms != gate_time_ms:
            raise UnitError(
                f"TDC1 has a gate of {got_ms} ms after being told {gate_time_ms} ms", remedy="restart the unit"
            )
        self._gate_time_ms = gate_time_ms
        return {"threshold_v": self._read_threshold(), "gate_time_ms": gate_time_ms}

    def read_counts(self) -> tuple[int, int, int, int]:
        """Count the pulses at the four inputs over one gate.

        Raises:
            UnitStateError: The stream runs.
            WireFormatError: The answer is not four counts.
        """
        gate_s = self._gate_time_ms / 1000.0
        line = self._query(f"time {self._gate_time_ms};singles;counts?", timeout_s=gate_s + self._timeout_s)
        counts = line.split()
        if len(counts) != 4 or not all(c.isascii() and c.isdigit() for c in counts):
            raise WireFormatError(f"TDC1 answered {_shown(line)} to COUNTS?, not four counts")
        first, second, third, fourth = (int(c) for c in counts)
        return first, second, third, fourth

    def read_status(self) -> UnitStatus:
        """Read state, counters and alarms.

        While the stream runs the unit is not asked, as its answer would land between two events: an overflow is then
        known only after `stop`. The alarm latches until the next `start`.
        """
        if self._state != "running":
            self._note_status(self._query("status?"))
        alarms = ("event_overflow",) if self._overflow else ()
        state = "running" if self._state == "running" else "idle"
        return UnitStatus(state=state, counters=dict(self._counters), alarms=alarms)

    def start(self) -> None:
        """Start an endless stream of events.

        Raises:
            UnitStateError: It runs already.
        """
        self._note_status(self._query("status?"))
        if self._overflow:
            # Only a reset clears the flag; it also resets the threshold.
            threshold_v = self._read_threshold()
            self._send(f"*rst;{'neg' if threshold_v < 0 else 'pos'} {threshold_v:.3f}")
        self._send("inpkt;time 0;timestamp;counts?")
        self._overflow = False
        self._words.clear()
        self._clock[:] = 0, -1
        self._counters = dict.fromkeys(self._counters, 0)
        self._state = "running"

    def stop(self) -> None:
        """Stop the stream; events that were on their way stay readable by `read_block`.

        Raises:
            EventOverflowError: The unit's buffer ran over since `start`. The unit is stopped.
        """
        if self._state != "running":
            return
        with self._link.exchange(self._resynchronise):
            self._link.write(b"abort\r\n", timeout_s=self._timeout_s)
            tail = self._read_until_quiet()
            self._link.write(b"status?\r\n", timeout_s=self._timeout_s)
            deadline_s = time.monotonic() + self._timeout_s
            answer = None
            while answer is None:  # what the quiet time missed of the stream comes before the answer
                tail += self._read_line(deadline_s)
                answer = _STATUS.search(tail, max(0, len(tail) - 8))
            self._words += tail[: answer.start()]
            self._state = "idle"
        self._note_status(answer[0].decode())
        if self._overflow:
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
            UnitStateError: An earlier error ended the stream.
        """
        if max_events < 4:
            raise ValueError(f"max_events must be at least 4, not {max_events}")
        if self._state == "running":
            with self._link.exchange(self._resynchronise, timeout_s=timeout_s + self._timeout_s):
                if self._state == "running":  # not if the exchange had to resynchronise
                    self._receive(4 * max_events, time.monotonic() + timeout_s)
        if self._state == "broken":
            raise UnitStateError("the TDC1's stream was ended by an earlier error", remedy="start it again")
        return self._decode(max_events)

    def close(self) -> None:
        """Stop what runs and close the transport; an overflow is no reason not to."""
        try:
            with contextlib.suppress(QkdhwError):  # the link may be gone; opening again takes over in any state
                self.stop()
        finally:
            self._link.close()

    def _receive(self, limit: int, deadline_s: float) -> None:
        while len(self._words) < 4:
            left_s = max(0.0, deadline_s - time.monotonic())
            data = self._link.read_available(limit, timeout_s=min(left_s, SILENCE_S))
            self._words += data
            if not data and left_s <= SILENCE_S:
                return
            if not data:
                self._link.write(b"inpkt\r\n", timeout_s=self._timeout_s)
                self._counters["flushes"] += 1
        while len(self._words) < limit and (data := self._link.read_available(limit, timeout_s=0.0)):
            self._words += data

    def _decode(self, max_events: int) -> DetectionBlock:
        capacity = min(max_events, len(self._words))  # four bytes are a word, a word is up to four events
        time_ticks = np.empty(capacity, np.int64)
        channel = np.empty(capacity, np.uint8)
        kind = np.empty(capacity, np.uint8)
        n_events, n_words, bad = kernels.decode_tdc1(self._words, self._clock, time_ticks, channel, kind)
        if bad >= 0:
            self._words.clear()
            self._break_stream()
            raise WireFormatError(
                f"TDC1 word {bad} of {n_words + 1} read cannot be true: a byte was lost on the way",
                remedy="start the stream again; drop events from 34 ms before this on; check the USB cable",
            )
        del self._words[: 4 * n_words]
        dummies = int(np.count_nonzero(kind[:n_events] == EventKind.DUMMY))
        self._counters["dummies"] += dummies
        self._counters["photons"] += n_events - dummies
        return DetectionBlock(time_ticks[:n_events], channel[:n_events], kind[:n_events], TICK_PS)

    def _break_stream(self) -> None:
        if self._state == "running":
            with self._link.exchange(self._resynchronise):
                self._resynchronise()

    def _take_over(self) -> UnitInfo:
        with self._link.exchange(lambda: None):
            self._link.write(b"\r\nabort\r\n", timeout_s=self._timeout_s)  # ends a half-typed command, then a stream
            self._read_until_quiet()
            self._link.write(b"*idn?\r\n", timeout_s=self._timeout_s)
            info = _parse_identity(_text(self._read_line(time.monotonic() + self._timeout_s)))
            self._challenge_unit()
        return info

    def _resynchronise(self) -> None:
        if self._state == "running":
            self._state = "broken"
            self._words.clear()
        self._link.write(b"\r\nabort\r\n", timeout_s=self._timeout_s)
        self._read_until_quiet()
        self._challenge_unit()

    def _challenge_unit(self) -> None:
        """Bring unit and driver in step: a gate time not used before is set and must be read back.

        Answers to earlier queries may come at any time before it; none of them is this number.
        """
        self._challenge += 1
        challenge = str(20000 + self._challenge % 10000)
        self._link.write(f"time {challenge};time?\r\n".encode(), timeout_s=self._timeout_s)
        deadline_s = time.monotonic() + self._timeout_s
        while self._read_line(deadline_s).split()[-1:] != [challenge.encode()]:
            pass
        self._link.write(f"time {self._gate_time_ms}\r\n".encode(), timeout_s=self._timeout_s)

    def _read_until_quiet(self) -> bytes:
        deadline_s = time.monotonic() + self._timeout_s
        received = bytearray()
        while data := self._link.read_available(65536, timeout_s=QUIET_S):
            received += data
            if time.monotonic() > deadline_s:
                raise WireFormatError(
                    f"what answers keeps sending after ABORT, beginning with {_shown(received[:60])}",
                    remedy="check that the address leads to a TDC1",
                )
        return bytes(received)

    def _read_line(self, deadline_s: float) -> bytes:
        left_s = max(0.0, deadline_s - time.monotonic())
        if left_s == 0.0:
            raise TransportTimeoutError(
                f"TDC1 at {self._link.url} gave no right answer within {self._timeout_s} s",
                remedy="check the cable and the unit's power",
            )
        return self._link.read_until(b"\n", limit=LINE_LIMIT_BYTES, timeout_s=left_s)

    def _send(self, command: str) -> None:
        self._check_not_running(command)
        with self._link.exchange(self._resynchronise):
            self._link.write(f"{command}\r\n".encode(), timeout_s=self._timeout_s)

    def _query(self, command: str, *, timeout_s: float | None = None) -> str:
        self._check_not_running(command)
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        with self._link.exchange(self._resynchronise, timeout_s=wait_s + self._timeout_s):
            self._link.write(f"{command}\r\n".encode(), timeout_s=self._timeout_s)
            return _text(self._link.read_until(b"\n", limit=LINE_LIMIT_BYTES, timeout_s=wait_s))

    def _check_not_running(self, command: str) -> None:
        if self._state == "running":
            raise UnitStateError(f"TDC1 cannot be sent {command!r} while its stream runs", remedy="stop it first")

    def _read_gate_time(self) -> int:
        line = self._query("time?")
        if not re.fullmatch(r"-?[0-9]{1,5}", line):
            raise WireFormatError(f"TDC1 answered {_shown(line)} to TIME?, not a gate time")
        value = int(line)
        return value + 65536 if value < 0 else value  # old firmware answers as a signed 16-bit number

    def _read_threshold(self) -> float:
        line = self._query("level?")
        match = re.match(r"[+-]?[0-9]+(?:\.[0-9]+)?", line)
        if not match:
            raise WireFormatError(f"TDC1 answered {_shown(line)} to LEVEL?, not a voltage")
        return float(match[0])

    def _note_status(self, line: str) -> None:
        match = re.fullmatch(r"([0-9A-Fa-f]{4})\s*", line)
        if not match:
            raise WireFormatError(f"TDC1 answered {_shown(line)} to STATUS?, not four hexadecimal digits")
        self._overflow |= bool(int(match[1], 16) & FIFO_OVERFLOW)


def _text(line: bytes) -> str:
    if not line.isascii():
        raise WireFormatError(f"the answer {_shown(line)} is no text", remedy="check that the address leads to a TDC1")
    return line.decode().strip()


def _shown(answer: str | bytes | bytearray) -> str:
    """Quote an answer for an error message, but never binary: it may be detection events, and they are secret."""
    text = answer if isinstance(answer, str) else answer.decode("latin-1").strip()
    if not text.isascii() or not text.isprintable():
        return f"{len(answer)} bytes that are no text"
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _parse_identity(line: str) -> UnitInfo:
    if "TDC1" not in line.upper():
        raise UnitError(
            f"this is not a TDC1: *IDN? was answered by {_shown(line)}", remedy="check the address and the driver name"
        )
    fields = [field.strip() for field in line.split(",")]
    if len(fields) == 4:
        return UnitInfo(*fields)
    return UnitInfo(vendor=SFifteenTdc1.vendor, model="TDC1", serial_number="", firmware=line)


def _level_command(settings: Mapping[str, Any]) -> str:
    logic, threshold_v = settings.get("input_logic"), settings.get("threshold_v")
    if logic is not None and threshold_v is not None:
        raise ConfigurationError("input_logic and threshold_v exclude each other", remedy="give one of them")
    if logic is not None:
        if logic not in {"nim", "ttl"}:
            raise ConfigurationError(f"input_logic {logic!r} is not known", remedy='use "nim" or "ttl"')
        return str(logic)
    if threshold_v is None:
        return ""
    if (
        isinstance(threshold_v, bool)
        or not isinstance(threshold_v, int | float)
        or not abs(threshold_v) <= MAX_THRESHOLD_V
    ):
        raise ConfigurationError(f"threshold_v {threshold_v!r} is not allowed", remedy="use -3.3 to 3.3")
    return f"{'neg' if threshold_v < 0 else 'pos'} {threshold_v:.3f}"


def _checked_gate_time(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_GATE_MS:
        raise ConfigurationError(f"gate_time_ms {value!r} is not allowed", remedy=f"use 1 to {MAX_GATE_MS}")
    return value

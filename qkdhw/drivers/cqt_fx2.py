"""Driver for the CQT/qcrypto timestamp card with a Cypress FX2: a four-input time tagger, 125 ps, on raw USB.

Commands go to pipe 0x01 as a packet: its length, the command's number, arguments. One of them asks for a byte of state,
which comes from pipe 0x81; events come from pipe 0x82. So the card can be asked while it streams.

Source:
    qcrypto: the card's firmware tp8.c with usbtimetagio.h (commands, pipes, overflow), the vendor's reader
    readevents3.c with timetag_io2.c (order of commands, raw words, phase table).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from enum import IntEnum, unique
from fractions import Fraction
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from qkdhw._core import fx2 as kernels
from qkdhw.drivers.event_stream import EventBuffer, EventStream
from qkdhw.drivers.instrument import ErrorStyle, Instrument
from qkdhw.drivers.receive_buffer import ReceiveBuffer
from qkdhw.drivers.setting import Setting
from qkdhw.errors import (
    EventOverflowError,
    QkdhwError,
    TransportTimeoutError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.interfaces import Transport
from qkdhw.model import DetectionBlock, EventKind, UnitInfo, UnitStatus

TICK_PS = Fraction(125)
EVENTS_PIPE = 0x82
TRANSFER_BYTES = 1 << 16
RECEIVE_BYTES = 1 << 18
QUIET_S = 0.05
ANSWER_S = 0.005  # an answer that waits in its pipe comes at once
OVERFLOW_POLL_S = 0.2
AUTOFLUSH = 10  # in 10 ms: events of a slow source are handed over after 0.1 to 0.3 s
GET_DESCRIPTOR, TO_HOST, DEVICE, STRING, ENGLISH = 6, 0x80, 0x0100, 0x0300, 0x0409
PORT_BITS, OVERFLOW = 0, 8  # what can be asked for
INHIBITED, NEVER = 0x80, 0x60  # of the port bits
CHALLENGE_BITS = 16

# Phase in 125 ps of each code of the interpolator, as the maker calibrated it; others do not occur on a good card.
PHASE_CODES = MappingProxyType({
    6: 5, 7: 4, 12: 6, 14: 5, 39: 3, 136: 6, 140: 6, 142: 6, 152: 7, 156: 7, 216: 8, 295: 2, 359: 1, 371: 14, 375: 0,
    472: 9, 497: 13, 499: 13, 504: 11, 505: 12, 507: 13,
})  # fmt: skip


@unique
class Command(IntEnum):
    """Numbers of the commands."""

    RESET = 1
    SEND_DAC = 2
    INIT_DAC = 3
    INIT_CLOCK = 4
    CLOCK_REFERENCE = 5
    INHIBIT = 7
    RELEASE = 8
    CALIBRATION_OFF = 9
    CALIBRATION_ON = 10
    INIT_FIFO = 11
    STOP_TRANSFER = 12
    AUTOFLUSH = 13
    START_TRANSFER = 14
    FRESH_RESTART = 15
    REQUEST_STATUS = 16
    RESET_FIFO = 19


def _dac(channel: int, name: str, doc: str) -> Setting[int]:
    return Setting(int, unit="DAC", minimum=0, maximum=4095, access="w", command=str(channel), doc=f"{name}; {doc}")


class CqtFx2(Instrument):
    """An FX2 timestamp card as an `interfaces.TimeTagger`; a context manager.

    Opening resets the card. Its settings cannot be read: those not set since are as the maker's reader has them.

    Attributes:
        phase_codes: Phase in 125 ps of each code of the interpolator; may be replaced by a card's own calibration
            before `start`.
    """

    vendor: ClassVar[str] = "Centre for Quantum Technologies"
    model: ClassVar[str] = "FX2 timestamp card"
    unit_kind: ClassVar[str] = "time tagger"
    error_style: ClassVar[ErrorStyle] = ErrorStyle.STATUS_WORD
    capabilities: ClassVar[frozenset[str]] = frozenset({"TimeTagger"})
    schemes: ClassVar[tuple[str, ...]] = ("usb",)
    inputs: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)
    usb_ids: ClassVar[tuple[str, ...]] = ("04b4:1234",)

    tick_ps: ClassVar[Fraction] = TICK_PS
    events_at_once: ClassVar[int] = 5  # four inputs, and a gap that begins or ends

    coincidence_dac = _dac(0, "Delay of the coincidence stage", "10 when opened.")
    threshold_dac = _dac(1, "Threshold of all inputs", "3586 when opened: about -0.5 V, depending on the card.")
    calibration_dac = _dac(2, "Delay of the calibration stage", "10 when opened.")
    skew_dac = _dac(3, "Skew of the fast counter", "2000 when opened.")
    reference_clock = Setting(
        str, choices=("external", "internal"), access="w",
        doc="Which 10 MHz to use; internal when opened. The card does not tell whether it has locked.",
    )  # fmt: skip
    calibration_pulses = Setting(bool, access="w", doc="Whether the card makes pulses of its own; off when opened.")
    phase_codes: Mapping[int, int]

    def __init__(self, transport: Transport, *, timeout_s: float = 2.0) -> None:
        self.phase_codes = PHASE_CODES
        self._state = "idle"  # idle, running, broken: a stream ended by an error
        self._received = ReceiveBuffer(RECEIVE_BYTES)
        self._clock = np.array([0, -1], np.int64)
        self._oddities = np.zeros(3, np.int64)  # void words, words without an input, unknown phase codes
        self._phase_of = np.empty(512, np.int16)
        self._overflowing = self._overflowed = False
        self._looked_s = 0.0
        self._photons = 0
        super().__init__(transport, timeout_s=timeout_s)
        with self._exchange():
            self._initialise()

    # --- state -----------------------------------------------------------------------------------------------
    @property
    def stream_alarms(self) -> tuple[str, ...]:
        """Alarms of the last stream: event_overflow."""
        return ("event_overflow",) if self._overflowed else ()

    def read_status(self) -> UnitStatus:
        """Read state, counters and alarms; also while the stream runs. Alarms latch until the next `start`."""
        with self._exchange():
            self._look_for_overflow()
        voids, no_input, no_phase = (int(n) for n in self._oddities)
        return UnitStatus(
            state="running" if self._state == "running" else "idle",
            counters={
                "photons": self._photons, "voids": voids, "without_input": no_input, "unknown_phase": no_phase,
            },
            alarms=self.stream_alarms,
        )  # fmt: skip

    # --- the stream ------------------------------------------------------------------------------------------
    def stream(self, *, max_events: int = 1 << 16, buffer_events: int = 1 << 21, timeout_s: float = 0.5) -> EventStream:
        """Return the events as a context manager that starts and stops the unit, and an iterator of blocks."""
        return EventStream(self, max_events=max_events, buffer_events=buffer_events, timeout_s=timeout_s)

    def start(self) -> None:
        """Start a stream of events; its time begins at about 0.

        Raises:
            UnitStateError: It runs already.
        """
        with self._exchange():  # the state is looked at with the link held: another thread may start too
            runs = self._state == "running"
            if not runs:
                self._start()
        if runs:
            raise UnitStateError("the card's stream runs already", remedy="stop it first")

    def _start(self) -> None:
        for command in (Command.RESET, Command.RESET_FIFO, Command.INIT_FIFO):
            self._tell(command)
        self._drain_events()
        self._tell(Command.AUTOFLUSH, AUTOFLUSH)
        self._tell(Command.START_TRANSFER)
        self._tell(Command.RELEASE)
        self._received.clear()
        self._clock[:] = 0, -1
        self._oddities[:] = 0
        self._phase_of[:] = -1
        self._phase_of[list(self.phase_codes)] = list(self.phase_codes.values())
        self._photons = 0
        self._overflowing = self._overflowed = False
        self._state = "running"

    def stop(self) -> None:
        """Stop the stream; events that were on their way stay readable by `read_block`.

        Raises:
            EventOverflowError: The card's buffer ran over since `start`. The card is stopped.
        """
        if self._state != "running":
            return
        with self._exchange():
            if self._state == "running":  # not if the exchange had to bring unit and driver back in step
                self._look_for_overflow()
                self._tell(Command.INHIBIT)
                self._received.append(self._drain_events())  # as long as the card empties its memory
                self._tell(Command.STOP_TRANSFER)
                self._received.append(self._drain_events())
            self._state = "idle"
        if self._overflowed:
            raise EventOverflowError(
                "the card's buffer ran over: it shut its inputs and events were lost",
                remedy="lower the count rate below 2.2 million events per second, or read faster",
            )

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        """Read the next events, in the order sent, each once; empty at the deadline.

        While the card's buffer runs over its inputs are shut: a GAP_BEGIN and a GAP_END tell when that was found.

        Args:
            max_events: At least 5.
            timeout_s: Longest wait for the first event.

        Raises:
            ValueError: `max_events` is below 5.
            WireFormatError: An event cannot be true: a byte was lost. The stream is over.
            UnitStateError: An earlier error ended the stream.
        """
        if max_events < self.events_at_once:
            raise ValueError(f"max_events must be at least {self.events_at_once}, not {max_events}")
        buffer = EventBuffer.of_size(max_events)
        self.fill_events(buffer, timeout_s=timeout_s)
        return buffer.block(TICK_PS)

    def fill_events(self, buffer: EventBuffer, *, timeout_s: float) -> None:
        """Write the next events behind those in the buffer, as `read_block` returns them."""
        if self._state != "running":
            self._decode(buffer)
            return
        bad = -1
        with self._exchange(timeout_s=timeout_s):
            if self._state == "running":
                if time.monotonic() > self._looked_s + OVERFLOW_POLL_S:
                    self._note_overflow(buffer)
                self._receive(timeout_s)
            bad = self._decode(buffer)
            if bad >= 0:
                self._synchronise()
        if bad >= 0:
            raise WireFormatError(
                f"event {bad} of those read last cannot be true: a byte was lost on the way",
                remedy="start the stream again; check the USB cable",
            )

    def close(self) -> None:
        """Stop what runs and close the transport; an overflow is no reason not to."""
        try:
            with contextlib.suppress(QkdhwError):  # the card may be gone
                self.stop()
        finally:
            super().close()

    def _receive(self, timeout_s: float) -> None:
        """Take what there is, as soon as there is a whole event."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline_s - time.monotonic()) if len(self._received) < 8 else 0.0
            data = self._link.read_pipe(EVENTS_PIPE, TRANSFER_BYTES, timeout_s=left_s)
            self._received.append(data)
            if not data or len(self._received) >= TRANSFER_BYTES:
                return

    def _decode(self, buffer: EventBuffer) -> int:
        """Decode what was received and fits; return the index of an impossible event or -1."""
        if self._state == "broken":
            raise UnitStateError("the card's stream was ended by an earlier error", remedy="start it again")
        n_events, n_words, bad = kernels.decode_fx2(
            self._received.unread, self._phase_of, self._clock, self._oddities, *buffer.free
        )
        if bad < 0:
            self._received.consume(8 * n_words)
            buffer.filled += n_events
            self._photons += n_events
        return bad

    def _note_overflow(self, buffer: EventBuffer) -> None:
        """Look whether the card's buffer runs over, and tell in the stream when that begins and ends."""
        before = self._overflowing
        self._look_for_overflow()
        if self._overflowing != before:
            time_ticks, channel, kind = buffer.free
            time_ticks[0] = max(0, int(self._clock[0] << 49) + int(self._clock[1]))
            channel[0] = 0
            kind[0] = EventKind.GAP_BEGIN if self._overflowing else EventKind.GAP_END
            buffer.filled += 1

    def _look_for_overflow(self) -> None:
        answer = self._ask(OVERFLOW)
        if answer > 1:
            raise WireFormatError(f"the card answered {answer} to the question for its overflow, not 0 or 1")
        self._looked_s = time.monotonic()
        self._overflowing = answer == 1
        self._overflowed |= self._overflowing and self._state == "running"

    # --- the protocol ----------------------------------------------------------------------------------------
    def _initialise(self) -> None:
        """Bring the card to the state in which the maker's reader starts."""
        for command in (Command.FRESH_RESTART, Command.RESET, Command.INIT_DAC, Command.INIT_CLOCK):
            self._tell(command)
        for name, value in _USUAL.items():
            self._write_value(self._settings[name], None, value)
        self._tell(Command.INHIBIT)

    def _synchronise(self) -> None:
        """Stop what runs and ask for random port bits until the answers are those: no earlier answer can follow."""
        if self._state == "running":
            self._state = "broken"
            self._received.clear()
        for command in (Command.INHIBIT, Command.STOP_TRANSFER, Command.INIT_FIFO):
            self._tell(command)
        nonce = self._link.draw_nonce() % (1 << CHALLENGE_BITS)
        wanted = [bool(nonce >> bit & 1) for bit in range(CHALLENGE_BITS)]
        answers: list[bool] = []
        for inhibited in wanted:
            self._tell(Command.INHIBIT if inhibited else Command.RELEASE)
            answers.append(bool(self._ask(PORT_BITS) & INHIBITED))
        deadline_s = time.monotonic() + self._timeout_s
        while answers[-CHALLENGE_BITS:] != wanted:
            answers.append(bool(self._read_answer(max(0.0, deadline_s - time.monotonic())) & INHIBITED))
        self._drain_events()  # meanwhile surplus answers wait in their own pipe
        while self._link.read_available(TRANSFER_BYTES, timeout_s=ANSWER_S):
            if time.monotonic() > deadline_s:
                raise WireFormatError("the card keeps sending answers to no question", remedy="restart the card")
            self._drain_events()
        self._tell(Command.INHIBIT)
        self._tell(Command.RESET_FIFO)

    def _recover(self) -> None:
        generation = self._link.generation
        super()._recover()
        if self._link.generation != generation:  # it may have lost its power
            self._initialise()
            for (name, _), value in self._applied.items():
                self._write_value(self._settings[name], None, value)

    def _identify(self) -> UnitInfo:
        self._look_for_overflow()  # the descriptors come from the USB interface, this from the firmware behind it
        device = self._descriptor(DEVICE, 0)
        if len(device) != 18:
            raise WireFormatError(f"the device descriptor has {len(device)} bytes, not 18")
        maker, product, serial_number = (self._text(device[at]) for at in (14, 15, 16))
        if "Timestamp Card" not in product:
            raise UnitError(
                f"this is no timestamp card but a {product[:60]!r} of {maker[:60]!r}", remedy="check the address"
            )
        return UnitInfo(maker, product, serial_number, f"{device[13]:x}.{device[12]:02x}")

    def _text(self, index: int) -> str:
        return self._descriptor(STRING | index, ENGLISH)[2:].decode("utf-16-le", "replace")

    def _descriptor(self, value: int, language: int) -> bytes:
        return self._link.control_in(TO_HOST, GET_DESCRIPTOR, value, language, 255, timeout_s=self._timeout_s)

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> None:
        if setting is self._settings["reference_clock"]:
            self._tell(Command.CLOCK_REFERENCE, int(value == "internal"))
        elif setting is self._settings["calibration_pulses"]:
            self._tell(Command.CALIBRATION_ON if value else Command.CALIBRATION_OFF)
        else:
            word = int(setting.command) << 12 | value
            self._tell(Command.SEND_DAC, word & 0xFF, word >> 8)

    def _tell(self, command: Command, *arguments: int) -> None:
        self._link.write(bytes([2 + len(arguments), command, *arguments]), timeout_s=self._timeout_s)

    def _ask(self, index: int) -> int:
        self._tell(Command.REQUEST_STATUS, index)
        answer = self._read_answer(self._timeout_s)
        if index == PORT_BITS and answer & NEVER:
            raise WireFormatError(f"the card's port bits are {answer:#04x}, which cannot be")
        return answer

    def _read_answer(self, timeout_s: float) -> int:
        if timeout_s <= 0.0:
            raise TransportTimeoutError(
                f"the card at {self._link.url} gave no right answer within {self._timeout_s} s",
                remedy="check the cable and the card's power",
            )
        return self._link.read_exactly(1, timeout_s=timeout_s)[0]

    def _drain_events(self) -> bytes:
        deadline_s = time.monotonic() + self._timeout_s
        drained = bytearray()
        while data := self._link.read_pipe(EVENTS_PIPE, TRANSFER_BYTES, timeout_s=QUIET_S):
            drained += data
            if time.monotonic() > deadline_s:
                raise WireFormatError("the card keeps sending though it was stopped", remedy="restart the card")
        return bytes(drained)


_USUAL: dict[str, Any] = {
    "coincidence_dac": 10, "threshold_dac": 3586, "calibration_dac": 10, "skew_dac": 2000,
    "reference_clock": "internal", "calibration_pulses": False,
}  # fmt: skip

"""The CQT/qcrypto timestamp card with a Cypress FX2: commands, one byte of state, and events, each on a USB pipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.faults import Fault, FaultSwitches, slip_bytes
from qkdhw_emulators.optics.bench_clicks import BenchInputs
from qkdhw_emulators.sent_events import SentEvents
from qkdhw_emulators.servers.usb_descriptors import standard_reply
from qkdhw_emulators.servers.usb_unit import Endpoint, UsbDescriptor, UsbStallError
from qkdhw_emulators.world import World

TICK_S = 125e-12
MAX_RATE_HZ = 2.2e6  # what the card hands over; above it shuts its inputs now and then
SHORTEST_S, LONGEST_S = 5e-9, 10.0
WRAP_TICKS = 1 << 49
FAST_LATE = 17  # below this of the fast counter the slow one has not moved on yet
STEP_BACK_EVERY = 64
SLOW_SHIFT, WORD_MASK = 24, (1 << 64) - 1
PERIOD_EVENTS, STEPS_PER_TICK = 8192, 16  # so a period is a whole number of 64 ns
INHIBITED, OVERFLOWING = 0x80, 0x10
SWITCHES: dict[int, tuple[str, bool]] = {
    7: ("inhibited", True),
    8: ("inhibited", False),
    9: ("calibration_pulses", False),
    10: ("calibration_pulses", True),
    12: ("transferring", False),
    14: ("transferring", True),
    19: ("full", False),
}
PIPES = (Endpoint(0x01), Endpoint(0x81), Endpoint(0x82))

# Codes of the phase interpolator for 0 to 15 times 125 ps; the card has none for 10 and 15.
CODE_OF_PHASE = np.array([375, 359, 295, 39, 7, 6, 12, 152, 216, 472, 472, 504, 505, 497, 371, 371], np.int64)


class EventsPipe:
    """Pipe 0x82 of the card."""

    def __init__(self, card: EmulatedCqtFx2) -> None:
        self._card = card

    def receive(self, data: bytes) -> bytes:
        """Take nothing: this pipe goes to the host."""
        return b""

    def read_stream(self, limit_bytes: int) -> bytes:
        """Return the next events, whole ones."""
        return self._card.next_events(limit_bytes // 8)


class EmulatedCqtFx2:
    """Takes the card's commands and answers byte for byte; no I/O, no clock of its own.

    A signal generator fires inputs 1, 2, 3, 4 in turn, and events come as fast as they are read; or its inputs are
    connected to detectors of its bench, and events come once they happened.

    Args:
        world: Surroundings.
        inputs: What its inputs are connected to, in place of a signal generator.
        faults: Faults that are on.

    Attributes:
        dac: Values of the eight converters: 0 coincidence, 1 threshold, 2 calibration, 3 skew.
        internal_clock: Whether the 10 MHz are the card's own.
        calibration_pulses: Whether it makes pulses of its own.
        inhibited: Whether its inputs are shut.
        transferring: Whether events are handed to the host.
        full: Whether its buffer is full for good.
        sent_events: What it generated.

    Source:
        qcrypto: tp8.c (firmware), usbtimetagio.h, readevents3.c.
    """

    conditions: ClassVar[dict[str, float]] = {"signal_rate_hz": 10_000.0}
    unit_faults: ClassVar[frozenset[Fault]] = frozenset({
        Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE, Fault.OVERFLOW, Fault.FULL_BUFFER,
        Fault.COUNTER_WRAP, Fault.NON_MONOTONE, Fault.BYTE_SLIP,
    })  # fmt: skip

    def __init__(
        self, world: World | None = None, *, inputs: BenchInputs | None = None, faults: Iterable[Fault | str] = ()
    ) -> None:
        self.world = world or World()
        self._inputs = inputs
        if inputs is None:
            self.world.declare(self.conditions)
        self.faults = FaultSwitches(faults, rng=self.world.rng("faults"))
        self.further_ports: Mapping[str, tuple[EventsPipe, int]] = {"0x82": (EventsPipe(self), 0)}
        self._rng = self.world.rng("unit")
        self.sent_events = SentEvents(Fraction(125))
        self._unsent: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._packet = bytearray()
        self._sent = self._n_pulses = self._begun_ticks = self._step = 0
        self.full = False
        self.power_cycle()

    @property
    def usb_descriptor(self) -> UsbDescriptor:
        """Who the card says it is."""
        product = "Timestamp Card Rev 2 / 4k FIFO (3.3V)"
        if Fault.WRONG_IDENTITY in self.faults:
            product = "EZ-USB FX2 development board"
        release = 0x0999 if Fault.WRONG_FIRMWARE in self.faults else 0x0201
        maker = "Centre for Quantum Technologies"
        return UsbDescriptor(
            0x04B4, 0x1234, maker, product, "xx",
            alternate_settings=(PIPES,), device_class=(0xFF, 0xFF, 0xFF), bcd_device=release,
        )  # fmt: skip

    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        self.dac = [10, 3586, 10, 2000, 0, 0, 0, 0]
        self.internal_clock = True
        self.calibration_pulses = False
        self.transferring = False
        self._reset_counter()

    def reset_input(self) -> None:
        """Forget half a packet: its sender has gone."""
        self._packet.clear()

    def control_in(self, request_type: int, request: int, value: int, index: int, length: int) -> bytes:
        """Answer a standard request; the firmware knows no others."""
        if Fault.SILENT in self.faults or request_type & 0x60:
            raise UsbStallError
        reply = standard_reply(self.usb_descriptor, request, value, 1, 1)[:length]
        return self._rng.bytes(len(reply)) if Fault.GARBAGE in self.faults else reply

    def control_out(self, request_type: int, request: int, value: int, index: int, data: bytes) -> None:
        """Refuse: the firmware knows no such request."""
        raise UsbStallError

    def receive(self, data: bytes) -> bytes:
        """Take command packets, each with its length first, in any split; return the bytes of state asked for."""
        replies = bytearray()
        for byte in data:
            self._packet.append(byte)
            if len(self._packet) >= max(2, self._packet[0]):
                replies += self._execute(self._packet[1], bytes(self._packet[2:]) + b"\0\0")
                self._packet.clear()
        return bytes(replies)

    def next_events(self, n_events: int) -> bytes:
        """Return the next events, at most so many."""
        self.full = self.full or (Fault.FULL_BUFFER in self.faults and self.transferring)
        if not self.transferring or self.inhibited or self.full:
            return b""
        words = self._signal_words(n_events) if self._inputs is None else self._detector_words(self._inputs, n_events)
        if Fault.OVERFLOW in self.faults:
            words = words[::2]
        if Fault.NON_MONOTONE in self.faults:
            late = words[STEP_BACK_EVERY - 1 :: STEP_BACK_EVERY]
            late[:] = words[STEP_BACK_EVERY - 2 :: STEP_BACK_EVERY][: late.shape[0]] - np.uint64(1 << SLOW_SHIFT)
        data = words.tobytes()
        position, self._sent = self._sent, self._sent + len(data)
        return slip_bytes(data, position) if Fault.BYTE_SLIP in self.faults else data

    def _signal_words(self, n_events: int) -> NDArray[np.uint64]:
        """Return the signal generator's next pulses, at most so many."""
        rate_hz = self.world.conditions["signal_rate_hz"]
        if rate_hz <= 0:
            return np.empty(0, np.uint64)
        first = self._period_words(rate_hz)
        period, at = divmod(self._n_pulses, PERIOD_EVENTS)
        words = first[at : at + n_events] + np.uint64(period * self._step << SLOW_SHIFT & WORD_MASK)
        number = self._n_pulses + 1 + np.arange(words.shape[0])
        self.sent_events.add(self._begun_ticks + number * self._step // STEPS_PER_TICK, 1 + number % 4)
        self._n_pulses += words.shape[0]
        return words

    def _detector_words(self, inputs: BenchInputs, n_events: int) -> NDArray[np.uint64]:
        """Return the detectors' next pulses, at most so many."""
        pulses = None if self._unsent.size else inputs.next_pulses()
        if pulses is not None:
            times_s, channels, _ = pulses
            ticks = self._begun_ticks + (times_s / TICK_S).astype(np.int64)
            self.sent_events.add(ticks, channels)
            self._unsent = event_words(ticks % WRAP_TICKS, np.left_shift(1, channels - 1))
        words, self._unsent = self._unsent[:n_events], self._unsent[n_events:]
        return words

    def _period_words(self, rate_hz: float) -> NDArray[np.uint64]:
        """Return the words of the first pulses; later ones differ in the slow counter alone."""
        shortest_s = max(1 / min(rate_hz, MAX_RATE_HZ), SHORTEST_S)
        step = round(min(shortest_s, LONGEST_S) / TICK_S * STEPS_PER_TICK)
        if step != self._step:
            if self._n_pulses:  # the rate was changed: time goes on
                self._begun_ticks += (self._n_pulses * self._step // STEPS_PER_TICK // 512 + 1) * 512
            self._step, self._n_pulses = step, 0
            number = np.arange(1, PERIOD_EVENTS + 1, dtype=np.int64)
            ticks = self._begun_ticks + number * step // STEPS_PER_TICK
            self._words = event_words(ticks % WRAP_TICKS, np.left_shift(1, number % 4))
        return self._words

    def _execute(self, command: int, arguments: bytes) -> bytes:
        """Carry out a command; those for the PLL and the card's own FIFOs leave no trace here."""
        if command == 16:
            return self._state_byte(arguments[0])
        if command in SWITCHES:
            name, value = SWITCHES[command]
            setattr(self, name, value)
            if self._inputs is not None and name in {"inhibited", "transferring"}:
                self._inputs.go_on()
        elif command in {1, 15}:
            self._reset_counter()
            self.transferring = self.transferring and command == 1
        elif command == 2:
            channel, level = arguments[1] >> 4, (arguments[1] & 15) << 8 | arguments[0]
            self.dac[channel & 7] = level
        elif command == 5:
            self.internal_clock = bool(arguments[0])
        return b""

    def _reset_counter(self) -> None:
        self.inhibited = True
        self.full = False
        self._n_pulses = self._sent = 0
        self._step = 0
        self._begun_ticks = WRAP_TICKS - (1 << 24) if Fault.COUNTER_WRAP in self.faults else 0  # 2 ms below
        self._unsent = self._unsent[:0]
        if self._inputs is not None:
            self._inputs.stop_receiver()

    def _rate_hz(self) -> float:
        """Return the rate of pulses at all inputs."""
        if self._inputs is None:
            return self.world.conditions["signal_rate_hz"]
        return sum(self._inputs.rate_hz(channel) for channel in (1, 2, 3, 4))

    def _state_byte(self, index: int) -> bytes:
        too_fast = self._rate_hz() > MAX_RATE_HZ and not self.inhibited
        overflowing = self.transferring and (too_fast or self.full or Fault.OVERFLOW in self.faults)
        values = {0: INHIBITED * self.inhibited | OVERFLOWING * overflowing, 1: 0x80, 2: 1, 8: int(overflowing)}
        if Fault.SILENT in self.faults or not 0 <= index <= 8:
            return b""
        return self._rng.bytes(1) if Fault.GARBAGE in self.faults else bytes([values.get(index, 0)])


def event_words(ticks: NDArray[np.int64], pattern: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Write events as the card does.

    Args:
        ticks: int64 (n,), times in 125 ps below 2^49.
        pattern: int64 (n,), inputs as bits.

    Returns:
        uint64 (n,), little-endian.
    """
    slow, fast, phase = ticks >> 9, ticks >> 4 & 31, ticks & 15
    slow = (slow - (fast < FAST_LATE)) & ((1 << 40) - 1)
    inputs = (pattern & 3) << 16 | (pattern & 12) << 12
    words: NDArray[np.uint64] = (slow << SLOW_SHIFT | inputs | fast << 9 | CODE_OF_PHASE[phase]).astype("<u8")
    return words

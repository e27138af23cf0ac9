"""Named faults of emulated units and of the line to them, scripted from a test, the command line or the control socket.

A fault is on or off; one that is on strikes at every chance, or at a given rate, or a given number of times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Self

import numpy as np

from qkdhw.errors import ConfigurationError

SLIP_EVERY_BYTES = 1 << 16
DELAY_S, LATE_S, LONGEST_S = 0.05, 1.0, 3600.0


@unique
class Fault(StrEnum):
    """What may be wrong. The first group is the line's and works with every unit; a unit lists which others it has.

    DELAY: an answer comes late, but in time (`seconds`, 0.05 if not given).
    LATE_REPLY: an answer comes after the client has given up (`seconds`, 1 if not given).
    DROP: an answer is lost.
    DUPLICATE: an answer comes twice.
    TRUNCATE: an answer ends early; what is missing never comes.
    GARBLE: one byte of an answer is 0xFF, as a framing error leaves it; binary answers without a check sum are spared.
    SPLIT: an answer comes byte by byte.
    DISCONNECT: the connection drops in the middle of an answer.
    NAK: the unit says that it did not understand.
    POWER_CYCLE: the unit loses power: the connection drops and its settings are those of power-up.

    SILENT: no command is answered.
    GARBAGE: every answer is replaced by random bytes of the same length; only the last byte is right.
    WRONG_IDENTITY: another instrument answers.
    WRONG_FIRMWARE: the identity has a firmware that nobody knows.
    STUCK_VALUE: settings do not change, whatever is set.
    OVERFLOW: tagger: half of the events are lost, and the unit says so as the real one does.
    FULL_BUFFER: the unit's buffer is full: it takes or gives nothing more until it is restarted.
    CLOCK_UNLOCK: the reference clock is lost.
    COUNTER_WRAP: counters and times begin just below their wrap.
    NON_MONOTONE: tagger: now and then an event is earlier than the one before it.
    DUMMY_STORM: tagger: dummies come without need, thousands for each event.
    BYTE_SLIP: tagger: one byte in 65536 of the event stream is missing.
    NEGATIVE_TIME: TDC1: TIME? of more than 32767 ms is answered as a negative number, as old firmware does.
    RECORD_OVERRUN: transmitter: does not wait for its reader; old records are dropped.
    LASER_TEMPERATURE: transmitter: START fails with a hardware fault and a latched alarm.
    STOP_UNANSWERED: ID900: the stream service neither answers `stop` nor stops.
    """

    DELAY = "delay"
    LATE_REPLY = "late-reply"
    DROP = "drop"
    DUPLICATE = "duplicate"
    TRUNCATE = "truncate"
    GARBLE = "garble"
    SPLIT = "split"
    DISCONNECT = "disconnect"
    NAK = "nak"
    POWER_CYCLE = "power-cycle"

    SILENT = "silent"
    GARBAGE = "garbage"
    WRONG_IDENTITY = "wrong-identity"
    WRONG_FIRMWARE = "wrong-firmware"
    STUCK_VALUE = "stuck-value"
    OVERFLOW = "overflow"
    FULL_BUFFER = "full-buffer"
    CLOCK_UNLOCK = "clock-unlock"
    COUNTER_WRAP = "counter-wrap"
    NON_MONOTONE = "non-monotone"
    DUMMY_STORM = "dummy-storm"
    BYTE_SLIP = "byte-slip"
    NEGATIVE_TIME = "negative-time"
    RECORD_OVERRUN = "record-overrun"
    LASER_TEMPERATURE = "laser-temperature"
    STOP_UNANSWERED = "stop-unanswered"


LINE_FAULTS = frozenset(list(Fault)[: list(Fault).index(Fault.SILENT)])


@dataclass(slots=True)
class _Switch:
    rate: float
    left: int | None
    seconds: float


class FaultSwitches:
    """Which faults are on; used like a set, and may be changed while the unit runs.

    Args:
        faults: Faults that are on from the start: members or texts as `parse` takes them.
        rng: Draws whether a fault with a rate strikes.

    Attributes:
        struck: How often each struck so far; those that last while they are on, as silent does, are not counted.
    """

    def __init__(self, faults: Iterable[Fault | str] = (), *, rng: np.random.Generator | None = None) -> None:
        self._on: dict[Fault, _Switch] = {}
        self._rng = rng or np.random.default_rng(0)
        self._offered: frozenset[Fault] = frozenset()  # none: not served, so nothing is refused
        self.struck: Counter[Fault] = Counter()
        for fault in faults:
            self.parse(fault)

    def offer(self, faults: Iterable[Fault]) -> None:
        """Say what the unit that is served can have, or one of its further ports; anything else is refused from now on.

        Raises:
            ConfigurationError: Such a fault is on.
        """
        self._offered |= frozenset(faults)
        for fault in self:
            self._check(fault)

    def _check(self, fault: Fault) -> None:
        if self._offered and fault not in self._offered:
            raise ConfigurationError(
                f"this unit cannot have the fault {fault}",
                remedy=f"It can have: {', '.join(each for each in Fault if each in self._offered)}.",
            )

    def add(self, fault: Fault, *, rate: float = 1.0, count: int | None = None, seconds: float | None = None) -> None:
        """Switch a fault on.

        Args:
            fault: Which.
            rate: Probability of striking at each chance, 0 to 1.
            count: It goes off after striking this often; None for never.
            seconds: Of `DELAY` and `LATE_REPLY`: how late, 0 to 3600.

        Raises:
            ConfigurationError: A value is wrong, or the unit that is served cannot have this fault.
        """
        self._check(fault)
        if not 0 <= rate <= 1 or (count is not None and count < 1):
            raise ConfigurationError(
                f"fault {fault}: rate {rate}, count {count}", remedy="Use a rate from 0 to 1 and a count above 0."
            )
        if seconds is not None and not 0 <= seconds <= LONGEST_S:
            raise ConfigurationError(f"fault {fault}: seconds {seconds}", remedy=f"Use 0 to {LONGEST_S:g} seconds.")
        usual_s = LATE_S if fault is Fault.LATE_REPLY else DELAY_S
        self._on[fault] = _Switch(rate, count, usual_s if seconds is None else seconds)

    def parse(self, text: Fault | str) -> None:
        """Switch on what a text says: "drop", "drop:rate=0.1", "late-reply:count=1:seconds=0.5".

        Raises:
            ConfigurationError: There is no such fault, or not on the unit that is served, or a value is wrong.
        """
        name, *options = str(text).split(":")
        if name not in list(Fault):
            raise ConfigurationError(f"no fault is called {name!r}", remedy=f"Known are: {', '.join(Fault)}.")
        values: dict[str, float] = {}
        for option in options:
            key, _, value = option.partition("=")
            try:
                values[key] = {"rate": float, "count": int, "seconds": float}[key](value)
            except (KeyError, ValueError) as error:
                raise ConfigurationError(
                    f"fault {text!r}: {option!r} is not understood",
                    remedy="Options are rate=0.1, count=3, seconds=0.5.",
                ) from error
        self.add(Fault(name), **values)  # type: ignore[arg-type]

    def discard(self, fault: Fault) -> None:
        """Switch a fault off, if it is on."""
        self._on.pop(fault, None)

    def clear(self) -> None:
        """Switch all faults off."""
        self._on.clear()

    def strikes(self, fault: Fault) -> bool:
        """Say whether a fault strikes now, and count it."""
        switch = self._on.get(fault)
        if switch is None or (switch.rate < 1 and self._rng.random() >= switch.rate):
            return False
        self.struck[fault] += 1
        if switch.left is not None:
            switch.left -= 1
            if switch.left == 0:
                del self._on[fault]
        return True

    def seconds(self, fault: Fault) -> float:
        """How late an answer is that this fault delays."""
        switch = self._on.get(fault)
        return switch.seconds if switch else (LATE_S if fault is Fault.LATE_REPLY else DELAY_S)

    def __contains__(self, fault: object) -> bool:
        return fault in self._on

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._on))

    def __len__(self) -> int:
        return len(self._on)

    def __ior__(self, faults: Iterable[Fault]) -> Self:
        for fault in faults:
            self.add(fault)
        return self


def spoil_reply(reply: bytes, faults: FaultSwitches, rng: np.random.Generator) -> bytes:
    """Return the reply as a unit with these faults would send it."""
    if Fault.SILENT in faults:
        return b""
    if Fault.GARBAGE in faults and reply:
        return rng.bytes(len(reply) - 1) + reply[-1:]
    return reply


def slip_bytes(data: bytes, position: int) -> bytes:
    """Leave out the last of every 65536 bytes of a stream; `position` is where in the stream `data` begins."""
    first = SLIP_EVERY_BYTES - 1 - position % SLIP_EVERY_BYTES
    out = bytearray(data)
    del out[first::SLIP_EVERY_BYTES]
    return bytes(out)

"""Time taggers that only their vendor's own library reaches: address library://SERIAL, calls instead of bytes."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from qkdhw.drivers.event_stream import EventStream
from qkdhw.drivers.instrument import ErrorStyle, Instrument
from qkdhw.errors import ConfigurationError, NonMonotonicTimeError, TransportClosedError, UnitError, UnitStateError
from qkdhw.interfaces import Transport
from qkdhw.model import DetectionBlock, EventKind, UnitStatus

POLL_S = 0.02
_NOTHING = np.empty(0, np.int64)
_BEFORE_ALL = -(1 << 62)
Events = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class LibraryTagger(Instrument):
    """Base of such drivers; a context manager.

    A driver gives `_open_device`, `_close_device`, `_begin`, `_end` and `_fetch` beside what every instrument gives.

    Args:
        transport: Link from a library:// address, owned from now on.
        timeout_s: Longest wait for another thread.
    """

    unit_kind: ClassVar[str] = "time tagger"
    capabilities: ClassVar[frozenset[str]] = frozenset({"TimeTagger"})
    error_style: ClassVar[ErrorStyle] = ErrorStyle.IN_BAND
    schemes: ClassVar[tuple[str, ...]] = ("library",)
    module_names: ClassVar[tuple[str, ...]] = ()
    """Names that the vendor's module has, the usual one first."""
    how_to_get: ClassVar[str] = ""
    """Where the vendor's library comes from."""

    def __init__(self, transport: Transport, *, timeout_s: float = 5.0) -> None:
        self._module = self._import()
        self._device: Any = None
        self._running = self._begun = False
        self._counters = {"events": 0, "missed": 0, "gaps": 0}
        self._last_ticks = _BEFORE_ALL
        self._forget_events()
        super().__init__(transport, timeout_s=timeout_s)

    # --- what a driver gives ---------------------------------------------------------------------------------
    def _open_device(self, serial_number: str) -> Any:
        """Open the unit with this serial number, or the first one if it is ""."""
        raise NotImplementedError

    def _close_device(self) -> None:
        """Hand the unit back."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Start a measurement."""
        raise NotImplementedError

    def _end(self) -> None:
        """End the measurement; events that were taken stay readable."""
        raise NotImplementedError

    def _fetch(self) -> Events:
        """Take new events out of the library: time in ps, channel, kind, and of MISSED the count, else 0."""
        raise NotImplementedError

    # --- what all have ---------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start a stream of events.

        Raises:
            UnitStateError: It runs already.
        """
        with self._exchange():
            if self._running:
                raise UnitStateError("the stream runs already", remedy="stop it first")
            self._forget_events()
            self._counters = dict.fromkeys(self._counters, 0)
            with self._library():
                self._begin()
            self._running = self._begun = True

    def stop(self) -> None:
        """Stop the stream; events that were on their way stay readable by `read_block`."""
        with self._exchange():
            if self._running:
                self._running = False
                with self._library():
                    self._end()

    def read_status(self) -> UnitStatus:
        """Read state, counters and alarms; the alarm latches until the next `start`."""
        with self._exchange():
            self._held()
            lost = self._counters["missed"] or self._counters["gaps"]
            state = "running" if self._running else "idle"
            return UnitStatus(state, dict(self._counters), alarms=("event_overflow",) if lost else ())

    def stream(self) -> EventStream:
        """Start, and return the blocks as they come; leaving it stops the unit."""
        return EventStream(self)

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        """Read the next events, in the order sent, each once; empty at the deadline, or at once after `stop`.

        Args:
            max_events: 1 or more.
            timeout_s: Longest wait for the first event.

        Raises:
            ValueError: `max_events` is below 1.
            UnitStateError: It was never started.
            UnitError: The library reports an error.
            NonMonotonicTimeError: Time goes backwards.
        """
        if max_events < 1:
            raise ValueError(f"max_events must be at least 1, not {max_events}")
        deadline_s = time.monotonic() + timeout_s
        while True:
            with self._exchange():
                self._held()
                if not self._begun:
                    raise UnitStateError("the stream was not started", remedy="start it")
                if not len(self._events[0]):
                    self._take_new()
                block = self._cut(max_events)
            left_s = deadline_s - time.monotonic()
            if len(block) or not self._running or left_s <= 0:
                return block
            time.sleep(min(POLL_S, left_s))

    def close(self) -> None:
        """Stop what runs, hand the unit back and close the link; closing twice is allowed."""
        try:
            if self._device is not None:
                with contextlib.suppress(UnitError), self._library():
                    if self._running:
                        self._end()
                    self._close_device()
        finally:
            self._device, self._running = None, False
            self._link.close()

    def _synchronise(self) -> None:
        """Open the unit if it is not open; a call that failed leaves nothing on its way."""
        if self._device is None:
            with self._library():
                self._device = self._open_device(unquote(urlsplit(self._link.url).netloc))

    def _take_new(self) -> None:
        with self._library():
            events = self._fetch()
        ticks = events[0]
        back = np.flatnonzero(ticks < np.concatenate(([self._last_ticks], ticks[:-1]))) if len(ticks) else _NOTHING
        if len(back):
            raise NonMonotonicTimeError(
                f"event {back[0]} of {len(ticks)} is earlier than the one before it",
                index=int(back[0]),
                remedy="start the stream again",
            )
        if len(ticks):
            self._last_ticks = int(ticks[-1])
            self._counters["events"] += len(ticks)
            self._counters["missed"] += int(events[3].sum())
            self._counters["gaps"] += int((events[2] == EventKind.GAP_BEGIN).sum())
        self._events = events

    def _cut(self, max_events: int) -> DetectionBlock:
        ticks, channel, kind, missed = (column[:max_events] for column in self._events)
        first, second, third, fourth = (column[max_events:] for column in self._events)
        self._events = (first, second, third, fourth)
        return DetectionBlock(
            ticks, channel.astype(np.uint8), kind.astype(np.uint8), Fraction(1), missed=int(missed.sum())
        )

    def _forget_events(self) -> None:
        self._events = (_NOTHING, _NOTHING, _NOTHING, _NOTHING)
        self._last_ticks = _BEFORE_ALL

    def _held(self) -> Any:
        """Return the open unit."""
        if self._device is None:
            raise TransportClosedError(f"{self._link.url} is closed", remedy="open the unit again")
        return self._device

    @contextlib.contextmanager
    def _library(self) -> Iterator[None]:
        """Turn what the vendor's library raises into an error of ours."""
        try:
            yield
        except (RuntimeError, ValueError, OSError, LookupError) as error:
            raise UnitError(
                f"the library of {self.vendor} reports: {error}",
                remedy="check the unit's cable and power, and that no other program has it open",
            ) from error

    @classmethod
    def _import(cls) -> Any:
        for name in cls.module_names:
            with contextlib.suppress(ImportError):
                return importlib.import_module(name)
        raise ConfigurationError(f"the Python module {cls.module_names[0]} is not installed", remedy=cls.how_to_get)


def with_gap(events: Events) -> Events:
    """Return the events with marks before them that say: here an unknown number of events is missing."""
    ticks, channel, kind, missed = events
    marks = np.array([EventKind.GAP_BEGIN, EventKind.GAP_END], np.int64)
    nothing = np.zeros(2, np.int64)
    return (
        np.concatenate((np.full(2, ticks[0]), ticks)),
        np.concatenate((nothing, channel)),
        np.concatenate((marks, kind)),
        np.concatenate((nothing, missed)),
    )

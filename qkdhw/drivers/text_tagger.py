"""Time taggers that speak lines of text and are asked for their events again and again."""

from __future__ import annotations

import contextlib
import time
from fractions import Fraction
from typing import Any, ClassVar

from qkdhw.drivers.event_stream import NAP_S, EventBuffer, EventStream
from qkdhw.drivers.setting import Setting
from qkdhw.drivers.text_instrument import TextInstrument
from qkdhw.errors import QkdhwError, UnitStateError, WireFormatError
from qkdhw.model import DetectionBlock, UnitStatus


class TextTagger(TextInstrument):
    """Base of the drivers of such taggers as an `interfaces.TimeTagger`.

    A driver gives how the unit is started, as a setting, and `_fetch_events`; blocks and streams follow.

    Attributes:
        running: Whether events are taken: a bool that can be set and read, with `restore=False`.
        tick_ps: Length of a tick.
        events_at_once: How many events one step of the unit's stream can be.
        stream_alarms: What the unit said was wrong with the last stream.
    """

    unit_kind: ClassVar[str] = "time tagger"
    capabilities: ClassVar[frozenset[str]] = frozenset({"TimeTagger"})
    running: Setting[Any]
    tick_ps: Fraction
    events_at_once: int = 1
    stream_alarms: tuple[str, ...] = ()

    def _fetch_events(self, max_events: int) -> DetectionBlock:
        """Ask once for at most so many events. Called with the link held."""
        raise NotImplementedError

    def start(self) -> None:
        """Start a stream of events.

        Raises:
            UnitStateError: It runs already.
        """
        with self._exchange():  # asked and started with the link held: another thread may start too
            runs = self.running
            if not runs:
                self.configure({"running": True})
        if runs:
            raise UnitStateError(f"the {self.model} runs already", remedy="stop it first")

    def stop(self) -> None:
        """Stop the stream, if one runs."""
        self.configure({"running": False})

    def read_status(self) -> UnitStatus:
        """Read whether the unit runs, and every readable number that is no setting."""
        monitors = super().read_status().monitors
        return UnitStatus("running" if self.running else "idle", monitors=monitors, alarms=self.stream_alarms)

    def fill_events(self, buffer: EventBuffer, *, timeout_s: float) -> None:
        """Write the next events behind those in the buffer as soon as there are any; nothing at the deadline."""
        time_ticks, channel, kind = buffer.free
        deadline_s = time.monotonic() + timeout_s
        while True:
            with self._exchange():
                block = self._fetch_events(len(kind))
                if (n := len(block)) > len(kind):
                    raise WireFormatError(f"the {self.model} sent {n} events, at most {len(kind)} were asked for")
            time_ticks[:n], channel[:n], kind[:n] = block.time_ticks, block.channel, block.kind
            buffer.filled += n
            buffer.missed += block.missed
            if n or time.monotonic() >= deadline_s:
                return
            time.sleep(NAP_S)

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        """Read the next events, in the order sent, each once; empty at the deadline.

        Raises:
            UnitError: No stream runs.
            TransportError: An answer was lost, and its events with it.
        """
        buffer = EventBuffer.of_size(max_events)
        self.fill_events(buffer, timeout_s=timeout_s)
        return buffer.block(self.tick_ps)

    def stream(self, *, max_events: int = 1 << 16, buffer_events: int = 1 << 21, timeout_s: float = 5.0) -> EventStream:
        """Return the events as a context manager that starts and stops the unit, and an iterator of blocks."""
        return EventStream(self, max_events=max_events, buffer_events=buffer_events, timeout_s=timeout_s)

    def close(self) -> None:
        """Stop the stream that was started here, and close the transport."""
        try:
            if self._applied.get(("running", None)):
                with contextlib.suppress(QkdhwError):  # the link may be gone
                    self.stop()
        finally:
            super().close()

"""Record what crosses a wire, and play it back in a unit's place."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qkdhw.errors import NotSupportedError, TransportClosedError, TransportError, WireFormatError
from qkdhw.transport.byte_link import MessageWire, UsbWire, Wire
from qkdhw.transport.session_file import SessionWriter, packed, read_session, unpacked


class RecordingWire:
    """A wire that writes down what crosses it.

    Args:
        wire: The wire to the unit.
        writer: Where to.
        dial: The how-manieth wire of the link this is.
    """

    def __init__(self, wire: Wire, writer: SessionWriter, dial: int) -> None:
        self.keeps_messages = wire.keeps_messages
        self.fresh_when_reopened = wire.fresh_when_reopened
        self._wire = wire
        self._writer = writer
        writer.note({"dial": dial, "keeps_messages": wire.keeps_messages, "fresh": wire.fresh_when_reopened})

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return what the wire received."""
        return self._noted(lambda: self._wire.receive(limit, timeout_s=timeout_s) or None, timeout_s) or b""

    def receive_message(self, limit: int, *, timeout_s: float) -> bytes | None:
        """Return the message that the wire received, which may be empty, or None at the deadline."""
        wire = self._wire
        if isinstance(wire, MessageWire):
            return self._noted(lambda: wire.receive_message(limit, timeout_s=timeout_s), timeout_s)
        return self._noted(lambda: wire.receive(limit, timeout_s=timeout_s) or None, timeout_s)

    def read_pipe(self, pipe: int, limit: int, timeout_s: float) -> bytes:
        """Return what the wire received from another bulk pipe."""
        usb = self._usb()
        return self._noted(lambda: usb.read_pipe(pipe, limit, timeout_s) or None, timeout_s) or b""

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Send by the wire."""
        sent = self._wire.send(data, timeout_s=timeout_s)
        if sent:
            self._writer.note(packed("out", bytes(data[:sent])))
        return sent

    def control_in(self, request_type: int, request: int, value: int, index: int, size: int, timeout_s: float) -> bytes:
        """Control transfer to the host."""
        data = self._usb().control_in(request_type, request, value, index, size, timeout_s)
        self._writer.note({"control": [request_type, request, value, index, size], **packed("in", data)})
        return data

    def control_out(
        self, request_type: int, request: int, value: int, index: int, data: bytes, timeout_s: float
    ) -> None:
        """Control transfer to the unit."""
        self._usb().control_out(request_type, request, value, index, data, timeout_s)
        self._writer.note({"control": [request_type, request, value, index, len(data)], **packed("out", data)})

    def close(self) -> None:
        """Close the wire."""
        self._wire.close()

    def _noted(self, receive: Callable[[], bytes | None], timeout_s: float) -> bytes | None:
        """Write down what came, also that nothing did: whoever polls gets the same when this is played."""
        try:
            data = receive()
        except TransportError as error:
            self._writer.note({"lost": str(error)})
            raise
        self._writer.note({"idle": timeout_s > 0} if data is None else packed("in", data))
        return data

    def _usb(self) -> UsbWire:
        if not isinstance(self._wire, UsbWire):
            raise NotSupportedError(
                "this link has no USB control transfers", remedy="open the unit by a usb:// address"
            )
        return self._wire


def recording_nonce(draw: Callable[[], int], writer: SessionWriter) -> Callable[[], int]:
    """Return a source of nonces that are recorded."""

    def drawn() -> int:
        nonce = draw()
        writer.note({"nonce": nonce})
        return nonce

    return drawn


def recording_dialler(dial: Callable[[float], Wire], writer: SessionWriter) -> Callable[[float], Wire]:
    """Return a dialler whose wires are recorded."""
    count = 0

    def dialled(timeout_s: float) -> Wire:
        nonlocal count
        count += 1
        return RecordingWire(dial(timeout_s), writer, count)

    return dialled


class Playback:
    """A session as it was recorded, in a unit's place: what is sent must be what was sent then.

    Args:
        path: Session file.
        pace: Recorded seconds per second, or None: every answer comes at once.
    """

    def __init__(self, path: Path, *, pace: float | None = None) -> None:
        self._path = path
        self.header, lines = read_session(path)
        self._lines = [(n, line) for n, line in enumerate(lines, 2) if "call" not in line]
        self._at = 0
        self._sent_of_line = 0
        self._given_of_line = 0
        self._pace = pace
        self._begun_s = time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether everything recorded was played."""
        return self._at >= len(self._lines)

    def dial(self, _timeout_s: float) -> Wire:
        """Open the wire as it was opened then."""
        _, line = self._peek("dial")
        self._at += 1
        return PlaybackWire(self, keeps_messages=bool(line["keeps_messages"]), fresh_when_reopened=bool(line["fresh"]))

    def draw_nonce(self) -> int:
        """Return the number that was drawn then."""
        _, line = self._peek("nonce")
        self._at += 1
        return int(line["nonce"])

    def take_out(self, data: bytes) -> None:
        """Compare bytes with what was sent then; a line may be sent in pieces.

        Raises:
            WireFormatError: Something else was sent then.
        """
        while data:
            number, line = self._peek("out", "out64")
            recorded = (unpacked(line, "out") or b"")[self._sent_of_line :]
            size = min(len(recorded), len(data))
            if data[:size] != recorded[:size]:
                raise self._differs(number, f"{_shown(data)} was sent, {_shown(recorded)} was then")
            data = data[size:]
            self._sent_of_line += size
            if size == len(recorded):
                self._at, self._sent_of_line = self._at + 1, 0

    def next_in(self, limit: int, *, waits: bool) -> bytes | None:
        """Return what came next then, or None if nothing did or something was sent first.

        Args:
            limit: Most bytes to return.
            waits: Whether the caller waits for input, or only looks whether there is any.
        """
        while waits and not self.ended and self._lines[self._at][1].get("idle") is False:
            self._at += 1  # it looked more often then than it does now
        if self.ended:
            return None
        _, line = self._lines[self._at]
        if "lost" in line:
            self._at += 1
            raise TransportClosedError(f"the recorded link closed: {line['lost']}", remedy="it is a recording")
        if "idle" in line:
            self._at += waits or not line["idle"]
            return None
        data = unpacked(line, "in")
        if data is None or "control" in line:
            return None
        if self._pace is not None:
            time.sleep(max(0.0, self._begun_s + line["t"] / self._pace - time.monotonic()))
        data = data[self._given_of_line :]
        if len(data) > limit:
            self._given_of_line += limit
            return data[:limit]
        self._at, self._given_of_line = self._at + 1, 0
        return data

    def control(self, wanted: list[int], out: bytes | None) -> bytes:
        """Play a control transfer."""
        number, line = self._peek("control")
        if line["control"] != wanted or (out is not None and unpacked(line, "out") != out):
            raise self._differs(number, f"control transfer {wanted}, {line['control']} was then")
        self._at += 1
        return unpacked(line, "in") or b""

    def _peek(self, *keys: str) -> tuple[int, dict[str, Any]]:
        while not self.ended and "idle" in self._lines[self._at][1]:
            self._at += 1  # it waited longer then than it does now
        if self.ended:
            raise TransportClosedError(f"the recording {self._path} is over", remedy="do no more than was recorded")
        number, line = self._lines[self._at]
        if not any(key in line for key in keys):
            found = next(key for key in line if key != "t")
            raise self._differs(number, f"{keys[0]!r} does not come now, {found!r} was then")
        return number, line

    def _differs(self, number: int, what: str) -> WireFormatError:
        return WireFormatError(
            f"{self._path}, line {number}: {what}", remedy="the driver speaks otherwise than when this was recorded"
        )


class PlaybackWire:
    """The wire to a recorded unit: what it receives comes at once, and where nothing came nothing is waited for."""

    def __init__(self, playback: Playback, *, keeps_messages: bool, fresh_when_reopened: bool) -> None:
        self.keeps_messages = keeps_messages
        self.fresh_when_reopened = fresh_when_reopened
        self._playback = playback

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return what came then."""
        return self._playback.next_in(limit, waits=timeout_s > 0) or b""

    def receive_message(self, limit: int, *, timeout_s: float) -> bytes | None:
        """Return the message that came then."""
        return self._playback.next_in(limit, waits=timeout_s > 0)

    def read_pipe(self, pipe: int, limit: int, timeout_s: float) -> bytes:
        """Return what came from the other bulk pipe then."""
        return self._playback.next_in(limit, waits=timeout_s > 0) or b""

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Compare with what was sent then."""
        self._playback.take_out(bytes(data))
        return len(data)

    def control_in(self, request_type: int, request: int, value: int, index: int, size: int, timeout_s: float) -> bytes:
        """Control transfer as it was then."""
        return self._playback.control([request_type, request, value, index, size], None)

    def control_out(
        self,
        request_type: int,
        request: int,
        value: int,
        index: int,
        data: bytes,
        timeout_s: float,
    ) -> None:
        """Control transfer as it was then."""
        self._playback.control([request_type, request, value, index, len(data)], data)

    def close(self) -> None:
        """Nothing is open."""


def _shown(data: bytes) -> str:
    """Quote a command, but no long run of digits or bytes: it may be a pattern, and that is raw key."""
    if not data.isascii():
        return f"{len(data)} bytes that are no text"
    return repr(re.sub(rb"[0-9]{8,}", lambda match: b"#" * len(match[0]), data[:60]))

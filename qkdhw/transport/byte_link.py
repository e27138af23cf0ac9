"""One byte link: buffered input with limits, deadlines, one lock around each exchange, resynchronisation.

Two threads that share a link without a lock around write-and-read get each other's answers, and after a time-out
the late answer is taken for the answer to the next query. Both are prevented here, once, for every kind of wire.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from qkdhw.errors import NotSupportedError, TransportClosedError, TransportError, TransportTimeoutError, WireFormatError

CHUNK_BYTES = 65536
MESSAGE_LIMIT_BYTES = 64 << 20
DISCARD_S = 1.0  # input that had arrived is thrown away far sooner
REDIAL_FIRST_S, REDIAL_LONGEST_S = 0.005, 0.02  # a unit that is back is found again within 0.1 s


class Wire(Protocol):
    """The unbuffered bytes under a link: a socket, a serial port, a message queue.

    Attributes:
        keeps_messages: Each `send` is one message to the unit and each `receive` returns one whole message.
        fresh_when_reopened: Nothing asked for before a new dial can arrive after it: true of a connection (TCP,
            HiSLIP, ZeroMQ), false of a serial line, where a late answer does not know who opened the port again.
    """

    keeps_messages: bool
    fresh_when_reopened: bool

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes as soon as there are any, b"" at the deadline; TransportClosedError at the end."""
        ...

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Send what fits before the deadline and return how many bytes that was."""
        ...

    def close(self) -> None:
        """Close it; closing twice is allowed."""
        ...


@runtime_checkable
class UsbWire(Wire, Protocol):
    """A wire with USB control transfers beside the bulk bytes."""

    def control_in(self, request_type: int, request: int, value: int, index: int, size: int, timeout_s: float) -> bytes:
        """Read at most `size` bytes by a control transfer."""
        ...

    def control_out(
        self, request_type: int, request: int, value: int, index: int, data: bytes, timeout_s: float
    ) -> None:
        """Write by a control transfer."""
        ...

    def read_pipe(self, pipe: int, limit: int, timeout_s: float) -> bytes:
        """Read at most `limit` bytes from the bulk pipe with this address, b"" at the deadline."""
        ...


@runtime_checkable
class FillingWire(Wire, Protocol):
    """A wire that can receive into a buffer of the caller's, without a copy."""

    def receive_into(self, buffer: memoryview, *, timeout_s: float) -> int:
        """Fill the buffer from its front as soon as there is anything; 0 at the deadline."""
        ...


@runtime_checkable
class MessageWire(Wire, Protocol):
    """A wire whose messages may be empty."""

    def receive_message(self, limit: int, *, timeout_s: float) -> bytes | None:
        """Return the next whole message of at most `limit` bytes, or None at the deadline."""
        ...


class ByteLink:
    """An `interfaces.Transport` over any wire; a context manager.

    A driver does each write-and-read inside `exchange`. Single calls outside an exchange are for one thread only.

    Args:
        url: Where the link leads.
        dial: Opens the wire; called with the time-out in seconds, now and for each `reconnect`.
        timeout_s: Longest wait for the first connection.
        draw_nonce: Draws a number for a challenge.

    Attributes:
        generation: How often the wire was dialled: a driver that sees it change has lost the unit's state.
        draw_nonce: Returns a number below 2^31 that was hardly used before; a played session gives the recorded one.
    """

    def __init__(
        self,
        url: str,
        dial: Callable[[float], Wire],
        *,
        timeout_s: float = 5.0,
        draw_nonce: Callable[[], int] = lambda: secrets.randbelow(1 << 31),
    ) -> None:
        self._url = url
        self._dial = dial
        self._lock = threading.RLock()
        self._depth = 0
        self._dirty = False
        self._closed = False
        self._buffer = bytearray()
        self._take_wire(dial(timeout_s))
        self.generation = 1
        self._process = os.getpid()  # after a fork two processes would get each other's answers
        self.draw_nonce = draw_nonce

    @property
    def url(self) -> str:
        """Where the link leads, without credentials."""
        return self._url

    @property
    def fresh_when_reopened(self) -> bool:
        """Whether after `reconnect` no answer to anything asked before can arrive."""
        return self._wire.fresh_when_reopened

    def __repr__(self) -> str:
        return f"<ByteLink {self._url}{' closed' if self._closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def exchange(self, resynchronise: Callable[[], None], *, timeout_s: float = 5.0) -> Iterator[None]:
        """Own the link for one write-and-read.

        Whatever leaves the block as an exception makes the link dirty: part of an answer may still be on its way.
        A dirty link is resynchronised before the next exchange begins, and stays dirty if that fails.

        Args:
            resynchronise: Brings unit and driver back in step: after it no earlier answer can arrive. Called with
                the lock held.
            timeout_s: Longest wait for another thread's exchange to end.

        Raises:
            TransportTimeoutError: Another thread held the link for too long.
            TransportClosedError: The link was closed.
        """
        if not self._lock.acquire(timeout=timeout_s):
            raise TransportTimeoutError(
                f"{self._url} was in use by another thread for {timeout_s} s",
                remedy="use one thread per unit, or a longer time-out",
            )
        self._depth += 1
        try:
            self._check_open()
            if self._dirty and self._depth == 1:
                resynchronise()
                self._dirty = False
            yield
        except BaseException:
            self._dirty = True
            raise
        finally:
            self._depth -= 1
            self._lock.release()

    def reconnect(self, *, timeout_s: float = 5.0) -> None:
        """Close the wire and open it again, trying with back-off until the deadline; old input is gone.

        Raises:
            TransportError: It could not be opened again in time.
        """
        self._check_open()
        self._wire.close()
        self._buffer.clear()
        deadline_s = time.monotonic() + timeout_s
        pause_s = REDIAL_FIRST_S
        while True:
            try:
                self._take_wire(self._dial(max(0.0, deadline_s - time.monotonic())))
            except TransportError:
                if time.monotonic() + pause_s >= deadline_s:
                    raise
            else:
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, REDIAL_LONGEST_S)
            self._check_open()
        if self._closed:  # by another thread meanwhile, which closed the wire before
            self._wire.close()
        self._check_open()
        self.generation += 1

    def write(self, data: bytes, *, timeout_s: float = 5.0) -> None:
        """Send all bytes.

        Raises:
            TransportTimeoutError: The other end did not take them in time.
            TransportClosedError: The link is closed.
        """
        self._check_open()
        deadline_s = time.monotonic() + timeout_s
        rest = memoryview(data)
        while rest:
            sent = self._wire.send(rest, timeout_s=max(0.0, deadline_s - time.monotonic()))
            if sent == 0:
                raise TransportTimeoutError(
                    f"{self._url} did not take {len(data)} bytes within {timeout_s} s",
                    remedy="check that the unit is on and reads its input",
                )
            rest = rest[sent:]

    def read_exactly(self, size: int, *, timeout_s: float = 5.0) -> bytes:
        """Return exactly `size` bytes.

        Raises:
            TransportTimeoutError: Fewer arrived in time; they stay readable.
            TransportClosedError: The other end closed first; what arrived stays readable.
        """
        deadline_s = time.monotonic() + timeout_s
        while len(self._buffer) < size:
            if not self._fill(size - len(self._buffer), deadline_s):
                raise self._late(f"{len(self._buffer)} of {size} bytes", timeout_s)
        return self._take(size)

    def read_until(self, terminator: bytes, *, limit: int = CHUNK_BYTES, timeout_s: float = 5.0) -> bytes:
        """Return bytes up to and including `terminator`.

        Raises:
            WireFormatError: `limit` bytes came without it.
            TransportTimeoutError: It did not come in time; what arrived stays readable.
            TransportClosedError: The other end closed first.
        """
        deadline_s = time.monotonic() + timeout_s
        searched = 0
        while True:
            end = self._buffer.find(terminator, max(0, searched - len(terminator) + 1), limit)
            if end >= 0:
                return self._take(end + len(terminator))
            searched = len(self._buffer)
            if searched >= limit:
                raise WireFormatError(
                    f"{self._url} sent {limit} bytes without an end of line",
                    remedy="check that the address leads to the right unit",
                )
            if not self._fill(CHUNK_BYTES, deadline_s):
                raise self._late(f"{searched} bytes and no end of line", timeout_s)

    def read_available(self, limit: int, *, timeout_s: float = 5.0) -> bytes:
        """Return 1..limit bytes as soon as there are any, or b"" at the deadline.

        Raises:
            TransportClosedError: The other end closed the link and nothing is left to read.
        """
        if not self._buffer:
            self._fill(limit, time.monotonic() + timeout_s)
        return self._take(min(limit, len(self._buffer)))

    def read_into(self, buffer: memoryview, *, timeout_s: float = 5.0) -> int:
        """Do as `read_available` into a buffer of the caller's and return how many bytes came; for fast streams.

        Raises:
            TransportClosedError: The other end closed the link and nothing is left to read.
        """
        self._check_open()
        if not self._buffer and self._filling is not None:
            return self._filling.receive_into(buffer, timeout_s=timeout_s)
        data = self.read_available(len(buffer), timeout_s=timeout_s)
        buffer[: len(data)] = data
        return len(data)

    def read_message(self, limit: int = MESSAGE_LIMIT_BYTES, *, timeout_s: float = 5.0) -> bytes:
        """Return the next whole message of a link that keeps messages apart (ZeroMQ); it may be empty.

        Raises:
            NotSupportedError: The link is a stream of bytes.
            TransportTimeoutError: None came in time.
            WireFormatError: It is longer than `limit`.
        """
        if not self._wire.keeps_messages:
            raise NotSupportedError(f"{self._url} is a stream of bytes: it keeps no messages apart")
        self._check_open()
        if isinstance(self._wire, MessageWire):
            message = self._wire.receive_message(limit, timeout_s=timeout_s)
        else:
            message = self._wire.receive(limit, timeout_s=timeout_s) or None
        if message is None:
            raise self._late("no message", timeout_s)
        return message

    def control_in(
        self, request_type: int, request: int, value: int, index: int, size: int, *, timeout_s: float = 1.0
    ) -> bytes:
        """Read at most `size` bytes by a USB control transfer."""
        return self._usb().control_in(request_type, request, value, index, size, timeout_s)

    def control_out(
        self, request_type: int, request: int, value: int, index: int, data: bytes = b"", *, timeout_s: float = 1.0
    ) -> None:
        """Write by a USB control transfer."""
        self._usb().control_out(request_type, request, value, index, data, timeout_s)

    def read_pipe(self, pipe: int, limit: int, *, timeout_s: float = 1.0) -> bytes:
        """Do as `read_available` on a further USB bulk pipe of the unit."""
        return self._usb().read_pipe(pipe, limit, timeout_s)

    def discard_input(self) -> int:
        """Throw away what has arrived and return how many bytes that was.

        Raises:
            WireFormatError: It does not end within a second.
        """
        return self.read_until_quiet(0.0, timeout_s=DISCARD_S)

    def read_until_quiet(self, quiet_s: float, *, timeout_s: float = 5.0) -> int:
        """Throw away what comes until nothing came for `quiet_s`, and return how many bytes that was.

        Raises:
            WireFormatError: The other end keeps sending.
            TransportClosedError: The other end closed the link.
        """
        deadline_s = time.monotonic() + timeout_s
        discarded = 0
        while self._buffer or self._fill(CHUNK_BYTES, time.monotonic() + quiet_s):
            discarded += len(self._buffer)
            self._buffer.clear()
            if time.monotonic() > deadline_s:
                raise WireFormatError(
                    f"{self._url} keeps sending: {discarded} bytes within {timeout_s:g} s that nobody asked for",
                    remedy="check that the address leads to the right unit, and the baud rate",
                )
        return discarded

    def close(self) -> None:
        """Close the link; closing twice is allowed."""
        self._closed = True
        self._wire.close()

    def _take_wire(self, wire: Wire) -> None:
        self._wire = wire
        self._filling = wire if isinstance(wire, FillingWire) else None

    def _usb(self) -> UsbWire:
        self._check_open()
        if not isinstance(self._wire, UsbWire):
            raise NotSupportedError(
                f"{self._url} has no USB control transfers", remedy="open this unit by a usb:// address"
            )
        return self._wire

    def _fill(self, limit: int, deadline_s: float) -> bool:
        self._check_open()
        data = self._wire.receive(min(limit, CHUNK_BYTES), timeout_s=max(0.0, deadline_s - time.monotonic()))
        self._buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    def _late(self, got: str, timeout_s: float) -> TransportTimeoutError:
        return TransportTimeoutError(
            f"{self._url} sent {got} within {round(timeout_s, 2):g} s",
            remedy="check the address, the cable and the unit's power",
        )

    def _check_open(self) -> None:
        if self._process != os.getpid():
            raise TransportClosedError(
                f"{self._url} was opened by process {self._process}, before a fork",
                remedy="open the unit in this process",
            )
        if self._closed:
            raise TransportClosedError(f"{self._url} is closed", remedy="open the unit again")

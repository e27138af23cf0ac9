"""The ID900's way for timestamps: IDQ's DataLinkTarget service on the host, and its streams put together.

The service is asked over ZeroMQ REQ and answers JSON; each channel's timestamps come over a PAIR socket of its own,
one message a sub-acquisition. That is the exact rule for merging: sub-acquisition n is complete when the n-th message
of every channel is there, and nothing waits for a clock.

Source:
    IDQ Time Controller Series User Manual, 6.3.4; IDQ's example scripts for streamed timestamps.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import idq as kernels
from qkdhw.drivers.text_instrument import shown
from qkdhw.errors import (
    CommandRefusedError,
    EventOverflowError,
    NonMonotonicTimeError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
    WireFormatError,
)
from qkdhw.interfaces import Transport
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.transport import open_transport

TICK_PS = Fraction(1)
SCPI_PORT = 5555
DATA_LINK = "data-link"
ANSWER_LIMIT_BYTES = 1 << 20
BACKLOG_LIMIT_BYTES = 1 << 30  # what `stop` fetches of sub-acquisitions that nobody has read yet
DIAL_PAUSE_S = 0.01
_ID = re.compile(r"[0-9A-Za-z_.:\[\]-]{1,100}")


@dataclass(frozen=True, slots=True)
class AcquisitionStatus:
    """What the service says of one acquisition.

    Attributes:
        sub_acquisitions: How many it has received from the unit.
        timestamps: How many timestamps.
        errors: What went wrong, in its words.
    """

    sub_acquisitions: int
    timestamps: int
    errors: tuple[str, ...]


class DataLink:
    """A DataLinkTarget service. Safe to use from several threads.

    Args:
        url: Its address.
        timeout_s: Longest wait for an answer.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._link = open_transport(url, timeout_s=timeout_s)

    @property
    def url(self) -> str:
        """Its address."""
        return self._link.url

    def close(self) -> None:
        """Close the link; acquisitions go on."""
        self._link.close()

    def acquisitions(self) -> list[str]:
        """Return the names of the acquisitions that are open, also those that a dead program left."""
        names = self._ask("list")
        if not isinstance(names, list) or not all(isinstance(name, str) and _ID.fullmatch(name) for name in names):
            raise WireFormatError("the DataLink service answered list by something else than a list of names")
        return names

    def start_stream(self, address: str, channel: int, port: int, *, with_index: bool) -> str:
        """Start an acquisition and return its name.

        Args:
            address: Host name of the Time Controller, as the service sees it.
            channel: Input, 1 to 4.
            port: TCP port on the service's host on which the timestamps then come.
            with_index: Whether each is followed by the number of its reference event.

        Raises:
            CommandRefusedError: The service refused; its words are in the message.
        """
        command = f"start-stream --address {address} --channel {channel} --stream-port {port}"
        answer = self._asked(command + (" --with-ref-index" if with_index else ""))
        name = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise WireFormatError("the DataLink service answered start-stream without the name of an acquisition")
        return name

    def status(self, name: str) -> AcquisitionStatus:
        """Ask for an acquisition's counts and errors."""
        return _status_of(self._ask(f"status --id {name}"))

    def stop(self, name: str) -> AcquisitionStatus:
        """End an acquisition and return its last status.

        Raises:
            TransportTimeoutError: No answer, as happens in the field; the acquisition may still be open.
        """
        answer = self._asked(f"stop --id {name}")
        return _status_of(answer.get("status") if isinstance(answer, dict) else None)

    def _ask(self, command: str) -> Any:
        """Ask what may be asked again if the answer is lost or spoilt."""
        try:
            return self._asked(command)
        except (TransportTimeoutError, TransportClosedError, WireFormatError):
            return self._asked(command)

    def _asked(self, command: str) -> Any:
        with self._link.exchange(lambda: self._link.reconnect(timeout_s=self._timeout_s), timeout_s=self._timeout_s):
            self._link.write(command.encode("ascii"), timeout_s=self._timeout_s)
            message = self._link.read_message(ANSWER_LIMIT_BYTES, timeout_s=self._timeout_s)
            try:
                answer = json.loads(message) if message.strip() else None
            except ValueError as error:
                raise WireFormatError(f"the DataLink service answered {shown(message)}, which is no JSON") from error
        if isinstance(answer, dict) and "error" in answer:
            said = answer["error"].get("description") if isinstance(answer["error"], dict) else answer["error"]
            raise CommandRefusedError(
                f"the DataLink service refused {command.split(maxsplit=1)[0]}: {shown(str(said))}",
                command=command,
                remedy="check that the Time Controller is on and no other program uses the channel",
            )
        return answer


def _status_of(answer: Any) -> AcquisitionStatus:
    """Check the form of a status."""
    if isinstance(answer, Mapping):
        counts = [answer.get("acquisitions_count"), answer.get("timestamps_count")]
        errors = answer.get("errors", [])
        if all(type(count) is int and count >= 0 for count in counts) and isinstance(errors, list):
            texts = [error.get("description", "") if isinstance(error, Mapping) else error for error in errors]
            return AcquisitionStatus(counts[0], counts[1], tuple(str(text) for text in texts))  # type: ignore[arg-type]
    raise WireFormatError("the DataLink service answered by something else than an acquisition's status")


@dataclass
class ChannelStream:
    """The messages of one channel.

    Attributes:
        name: The acquisition's name at the service.
        link: Where they come.
        waiting: Those that have come and are not merged yet.
        messages: How many have come.
        timestamps: How many timestamps those hold.
    """

    name: str
    link: Transport
    waiting: deque[bytes] = field(default_factory=deque)
    messages: int = 0
    timestamps: int = 0

    def receive(self, event_bytes: int, *, timeout_s: float) -> None:
        """Wait for the next message.

        Raises:
            TransportTimeoutError: None came in time.
            WireFormatError: Its length is no whole number of events.
        """
        message = self.link.read_message(timeout_s=timeout_s)
        if len(message) % event_bytes:
            raise WireFormatError(
                f"a message of {len(message)} bytes came on {self.link.url}, not of whole timestamps",
                remedy="start again; check that no other program uses the DataLink service",
            )
        self.waiting.append(message)
        self.messages += 1
        self.timestamps += len(message) // event_bytes


def address_beside(unit_url: str, host: str, port: int, name: str) -> str:
    """Return the address of a service or stream that belongs to a unit.

    Args:
        unit_url: Address of the unit.
        host: Where the service runs.
        port: Port number that it has if the unit has its usual one, 5555; if not, as much above or below.
        name: What it is called, for addresses without port numbers: they are given the option port=NAME.
    """
    parts = urlsplit(unit_url)
    if parts.scheme == "zmq" and parts.port:
        kind = "zmq" if name == DATA_LINK else "zmq+pair"
        return f"{kind}://{f'[{host}]' if ':' in host else host}:{port + parts.port - SCPI_PORT}"
    address, hash_sign, fragment = unit_url.partition("#")
    return f"{address}{'&' if parts.query else '?'}port={name}{hash_sign}{fragment}"


def open_stream(url: str, *, timeout_s: float) -> Transport:
    """Open a stream that the service was told to start; it may take a moment to listen."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return open_transport(url, timeout_s=max(DIAL_PAUSE_S, deadline_s - time.monotonic()))
        except TransportError:
            if time.monotonic() + DIAL_PAUSE_S >= deadline_s:
                raise
        time.sleep(DIAL_PAUSE_S)


class MergedStreams:
    """The sub-acquisitions of several channels, one after the other, as events in order of time.

    Args:
        streams: The channels' streams, at most 4, by input number; filled in before the first is read.
        width_ps: Length of a sub-acquisition.
        period_ps: From the start of one to the start of the next.
        reference_period_ps: Picoseconds between reference events, or 0: times count from the sub-acquisition's start.
    """

    def __init__(
        self, streams: dict[int, ChannelStream], *, width_ps: int, period_ps: int, reference_period_ps: int
    ) -> None:
        self.streams = streams
        self.index = 0
        self._ended = False
        self._width_ps = width_ps
        self._period_ps = period_ps
        self._reference_period_ps = reference_period_ps
        self._event_bytes = 16 if reference_period_ps else 8

    def next_block(self, *, timeout_s: float) -> DetectionBlock | None:
        """Return the next sub-acquisition as soon as every channel has sent it, or None at the deadline.

        It begins with GAP_END, but for the first, and ends with GAP_BEGIN: in between the unit takes no events.

        Raises:
            NonMonotonicTimeError: A channel's time goes backwards.
            WireFormatError: A time is after the sub-acquisition's end, or a message holds no whole timestamps.
        """
        deadline_s = time.monotonic() + timeout_s
        for stream in self.streams.values():
            if not stream.waiting and not self._received(stream, max(0.0, deadline_s - time.monotonic())):
                return None
        begin_ps = self.index * self._period_ps
        messages = {number: self.streams[number].waiting.popleft() for number in sorted(self.streams)}
        times = [self._decoded(number, message, begin_ps) for number, message in messages.items()]
        block = self._merged(times, begin_ps)
        self.index += 1
        return block

    def drain(self) -> bool:
        """Fetch what has come without merging it; say whether there was anything.

        Raises:
            EventOverflowError: It is more than fits the memory set aside.
        """
        got = False
        for stream in self.streams.values():
            while self._received(stream, 0.0):
                got = True
        if sum(len(message) for stream in self.streams.values() for message in stream.waiting) > BACKLOG_LIMIT_BYTES:
            raise EventOverflowError(
                "more sub-acquisitions wait to be read than fit the memory: they are lost", remedy="read faster"
            )
        return got

    def close(self) -> None:
        """Close the streams; what was drained stays."""
        self._ended = True
        for stream in self.streams.values():
            stream.link.close()

    def _received(self, stream: ChannelStream, timeout_s: float) -> bool:
        if self._ended:
            return False
        try:
            stream.receive(self._event_bytes, timeout_s=timeout_s)
        except TransportTimeoutError:
            return False
        return True

    def _decoded(self, channel: int, message: bytes, begin_ps: int) -> NDArray[np.int64]:
        times = np.empty(len(message) // self._event_bytes, np.int64)
        bad = kernels.decode_id900(message, begin_ps, self._width_ps, self._reference_period_ps, times)
        if bad < 0:
            return times
        where = f"timestamp {bad} of sub-acquisition {self.index} of channel {channel}"
        remedy = "start again; check threshold and rate of the input"
        words = np.frombuffer(message, "<u8").reshape(len(times), -1)[bad]
        ticks = int(words[0]) + (int(words[1]) * self._reference_period_ps if len(words) > 1 else 0)
        if ticks > self._width_ps:
            raise WireFormatError(f"{where} is after its end", remedy=remedy)
        raise NonMonotonicTimeError(f"{where} is earlier than the one before it", index=bad, remedy=remedy)

    def _merged(self, times: list[NDArray[np.int64]], begin_ps: int) -> DetectionBlock:
        """Merge the channels between the ends of the sub-acquisition."""
        n = sum(map(len, times))
        time_ticks, channel, kind = np.empty(n + 2, np.int64), np.empty(n + 2, np.uint8), np.empty(n + 2, np.uint8)
        nothing = np.empty(0, np.int64)
        a, b, c, d = [*times, nothing, nothing, nothing, nothing][:4]
        numbers = np.array([*sorted(self.streams), 0, 0, 0, 0][:4], np.uint8)
        kernels.merge_id900(a, b, c, d, numbers, time_ticks[1:-1], channel[1:-1])
        time_ticks[0], time_ticks[-1] = begin_ps, begin_ps + self._width_ps
        channel[0] = channel[-1] = 0
        kind[1:-1] = EventKind.PHOTON
        kind[0], kind[-1] = EventKind.GAP_END, EventKind.GAP_BEGIN
        first = 0 if self.index else 1
        return DetectionBlock(time_ticks[first:], channel[first:], kind[first:], TICK_PS)


def split_block(block: DetectionBlock, n_events: int) -> tuple[DetectionBlock, DetectionBlock | None]:
    """Return the first events of a block and the rest, as views; what it missed is told with the last."""
    if len(block) <= n_events:
        return block, None
    first, rest = (
        DetectionBlock(block.time_ticks[part], block.channel[part], block.kind[part], block.tick_ps)
        for part in (slice(None, n_events), slice(n_events, None))
    )
    return first, replace(rest, missed=block.missed)


def with_missed(block: DetectionBlock, missed: int) -> DetectionBlock:
    """Return a block with a MISSED event at its end."""
    return DetectionBlock(
        np.append(block.time_ticks, block.time_ticks[-1:]),
        np.append(block.channel, np.zeros(1, np.uint8)),
        np.append(block.kind, np.full(1, EventKind.MISSED, np.uint8)),
        block.tick_ps,
        missed=missed,
    )

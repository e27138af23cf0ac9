"""Driver for the ID Quantique ID900 and ID1000 Time Controllers: four inputs and a start input, 1 to 100 ps.

Timestamps come by IDQ's DataLinkTarget service, which runs on this computer, see `idq_data_link`. The unit cuts its
time into sub-acquisitions with a gap of 0.4 us between, and sends each when it is over.

Source:
    IDQ Time Controller Series User Manual, 6.3.4 (timestamp data), 8.2 (blocks) and chapter 9 (SCPI commands); IDQ's
    example scripts for streamed timestamps.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

from qkdhw.drivers.event_stream import EventStream
from qkdhw.drivers.idq_data_link import (
    DATA_LINK,
    TICK_PS,
    AcquisitionStatus,
    ChannelStream,
    DataLink,
    MergedStreams,
    address_beside,
    open_stream,
    split_block,
    with_missed,
)
from qkdhw.drivers.idq_settings import INPUTS, IdqTimeController
from qkdhw.drivers.setting import Setting
from qkdhw.drivers.text_instrument import shown
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    EventOverflowError,
    QkdhwError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
    UnitStateError,
)
from qkdhw.interfaces import Transport
from qkdhw.model import DetectionBlock, EventKind, UnitStatus
from qkdhw.quantities import PS_PER_S

DATA_LINK_PORT, STREAM_PORT = 6060, 4241  # a stream's port is 4241 and the channel
DEAD_TIME_PS = 400_000  # IDQ asks for 40 ns or more, and its own examples leave 400
RECALIBRATION_S = 30.0
SETTLE_S, POLL_S = 0.3, 0.02  # a record's last sub-acquisitions are there when nothing new has come for so long
STREAM_SETTINGS = frozenset({
    "clock_source", "resolution", "input_enabled", "start_enabled", "record_trigger", "record_enabled", "record_count",
    "record_width_ps", "record_period_ps", "timestamp_source", "timestamp_reference",
})  # fmt: skip
"""What a running stream rests on: it is refused until the stream is stopped."""
QUIET_S, STALL_S = 1.0, 10.0  # when to ask whether the unit still records, and when not to believe it any more


class IdqId900(IdqTimeController):
    """An ID900 or ID1000 as an `interfaces.TimeTagger` and `interfaces.Counter`; a context manager.

    Args:
        transport: Open ZeroMQ link, owned from now on.
        timeout_s: Longest wait for an answer.
        data_link_url: Address of the DataLinkTarget service; if left out, port 6060 of this computer. That, and
            4241 + n for the stream of channel n, are the ports beside a unit on port 5555; beside another, all are as
            much higher or lower.
    """

    unit_kind: ClassVar[str] = "time tagger"
    capabilities: ClassVar[frozenset[str]] = frozenset({"TimeTagger", "Counter"})

    def __init__(self, transport: Transport, *, timeout_s: float = 2.0, data_link_url: str | None = None) -> None:
        self._data_link_url = data_link_url
        self._data_link: DataLink | None = None
        self._stream_lock = threading.RLock()
        self._state = "idle"  # idle, running, broken: a stream ended by an error
        self._closed = False
        self._merged: MergedStreams | None = None
        self._rest: DetectionBlock | None = None
        self._raw_errors: dict[int, int] = {}
        self._alarms: set[str] = set()
        self._counters = {"photons": 0, "sub_acquisitions": 0, "missed": 0}
        self._heard_s = 0.0
        super().__init__(transport, timeout_s=timeout_s)

    @property
    def stream_alarms(self) -> tuple[str, ...]:
        """What was wrong with the stream since it was started."""
        return tuple(sorted(self._alarms))

    def read_status(self) -> UnitStatus:
        """Read state, counters since start, readings, and the stream's alarms, which latch until the next start."""
        state = "running" if self._state == "running" else "idle"
        monitors = super().read_status().monitors
        return UnitStatus(state=state, counters=dict(self._counters), monitors=monitors, alarms=self.stream_alarms)

    # --- timestamps ------------------------------------------------------------------------------------------
    def start(
        self, channels: Sequence[int] | None = None, *, sub_acquisition_s: float = 0.2, reference_period_ps: int = 0
    ) -> None:
        """Start an endless stream of timestamps.

        What a program that died left open at the service for this unit is closed first. The record generator and the
        timestamp blocks are set up as needed.

        Args:
            channels: Inputs; those that are enabled if left out.
            sub_acquisition_s: Length of a sub-acquisition, 0.001 to 100 s; events come when theirs is over. IDQ
                advises 0.2 s or more, and at most 8 million events in each.
            reference_period_ps: Picoseconds between pulses at the start input, each of which restarts the time; or 0:
                times count from the start of the sub-acquisition.

        Raises:
            ConfigurationError: A channel or a number is not allowed.
            UnitStateError: The stream runs, no input is enabled, or the record does not start.
            CommandRefusedError: The service or the unit refused; another program may have the channel.
        """
        with self._stream_lock:
            if self._state == "running":
                raise UnitStateError("the ID900's stream runs already", remedy="stop it first")
            numbers = self._checked_channels(channels)
            if not 0.001 <= sub_acquisition_s <= 100 or reference_period_ps < 0:
                raise ConfigurationError(
                    f"sub_acquisition_s {sub_acquisition_s}, reference_period_ps {reference_period_ps} are not allowed",
                    remedy="use 0.001 to 100 s, and 0 or more ps",
                )
            if self._merged is not None:
                self._abandon(self._merged)
            self._alarms.clear()
            self._counters = dict.fromkeys(self._counters, 0)
            self._rest, self._merged = None, None
            self._merged = self._begin(numbers, round(sub_acquisition_s * PS_PER_S), reference_period_ps)
            self._raw_errors = dict.fromkeys(numbers, 0)
            self._heard_s = time.monotonic()
            self._state = "running"

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        """Read the next events, in order of time, each once; empty at the deadline.

        A sub-acquisition is handed out when it has come from every channel. GAP_BEGIN and GAP_END, of channel 0, stand
        at its end and at the start of the next; MISSED where the unit's error counters rose, with their rise in
        `missed` of the block.

        Args:
            max_events: At least 1.
            timeout_s: Longest wait for the first event.

        Raises:
            ValueError: `max_events` is below 1.
            NonMonotonicTimeError, WireFormatError: A time cannot be true. The stream is over.
            TransportClosedError: The service has gone, and the stream is over; or the unit was closed, and what had
                come before was read.
            UnitStateError: The record has ended or has stalled, or an earlier error ended the stream.
        """
        if max_events < 1:
            raise ValueError(f"max_events must be at least 1, not {max_events}")
        with self._stream_lock:
            if self._state == "broken":
                raise UnitStateError("the ID900's stream was ended by an earlier error", remedy="start it again")
            if self._rest is None and self._merged is not None:
                self._receive(self._merged, timeout_s)
            if self._rest is None:
                if self._closed:
                    raise TransportClosedError(f"{self._link.url} is closed", remedy="open the unit again")
                nothing = np.empty(0, np.uint8)
                return DetectionBlock(np.empty(0, np.int64), nothing, nothing, TICK_PS)
            block, self._rest = split_block(self._rest, max_events)
            return block

    def stop(self) -> None:
        """Stop the stream; sub-acquisitions that were on their way stay readable by `read_block`.

        Raises:
            EventOverflowError: Timestamps were lost since `start`, in the unit, the service or on the way. The unit is
                stopped.
        """
        with self._stream_lock:
            merged = self._merged
            if self._state == "idle" or merged is None:
                return
            if self._state == "broken":
                self._abandon(merged)
                return
            self._state = "broken"  # until everything below has worked
            self._do("REC:STOP")
            lost, errors = self._end(merged, self._drain(merged))
            self._state = "idle"
        if lost or errors:
            self._alarms.add("event_overflow")
            raise EventOverflowError(
                f"timestamps were lost: {lost or 'an unknown number'} on the way{''.join(f'; {e}' for e in errors)}",
                lost=lost or -1,
                remedy="lower the rate (10 million a second are the most), or read faster",
            )

    def stream(self, *, max_events: int = 1 << 16) -> EventStream:
        """Return the events as a stream that starts when it is entered and stops when it is left.

        Args:
            max_events: Longest block.
        """
        return EventStream(self, max_events=max_events)

    # --- records --------------------------------------------------------------------------------------------
    def play_record(self) -> None:
        """Start a record as set by `record_count`, `record_width_ps` and `record_period_ps`."""
        self._check_not_running()
        self._play()

    def stop_record(self) -> None:
        """Stop the record."""
        self._check_not_running()
        self._do("REC:STOP")

    def recalibrate(self) -> None:
        """Calibrate the sampling again; takes seconds, and no stream may run."""
        self._check_not_running()
        with self._exchange(timeout_s=RECALIBRATION_S):
            self._ask("DEVI:SAMP:RECA", timeout_s=RECALIBRATION_S)

    def clear_errors(self) -> None:
        """Clear the error codes of the inputs, and the error counters of their timestamps."""
        self._check_not_running()
        self._do(*(f"INPU{c}:HIRES:ERROR:CLEAR" for c in INPUTS), *(f"RAW{c}:ERRORS:CLEAR" for c in INPUTS))

    def close(self) -> None:
        """Stop what runs and close all links; a loss is no reason not to."""
        try:
            with contextlib.suppress(QkdhwError):  # the links may be gone; starting again cleans up
                self.stop()
        finally:
            self._state, self._closed = "idle", True
            if self._merged is not None:
                self._merged.close()
            if self._data_link is not None:
                self._data_link.close()
            super().close()

    # --- inside ----------------------------------------------------------------------------------------------
    def _play(self) -> None:
        with self._exchange():
            self._tell("REC:PLAY")
        if self.record_stage == "IDLE":
            raise UnitStateError("the record does not start", remedy="look at the unit's record settings")

    def _check_not_running(self) -> None:
        if self._state == "running":
            raise UnitStateError("this would disturb the ID900's running stream", remedy="stop it first")

    def _plan(self, settings: Mapping[str, Any]) -> list[tuple[Setting[Any], int | None, Any]]:
        plan = super()._plan(settings)
        if STREAM_SETTINGS.intersection(settings):
            self._check_not_running()
        return plan

    def _checked_channels(self, channels: Sequence[int] | None) -> tuple[int, ...]:
        if channels is None:
            enabled = tuple(channel for channel in INPUTS if self.input_enabled[channel])
            if not enabled:
                raise UnitStateError("no input is enabled", remedy="set input_enabled, or name the channels")
            return enabled
        if not channels or len(set(channels)) != len(channels) or not set(channels) <= set(INPUTS):
            raise ConfigurationError(f"channels {tuple(channels)} are not allowed", remedy="use some of 1, 2, 3, 4")
        return tuple(sorted(channels))

    def _begin(self, channels: tuple[int, ...], width_ps: int, reference_period_ps: int) -> MergedStreams:
        """Set up record and timestamp blocks, open the streams, and play."""
        data_link = self._service()
        host = urlsplit(self._link.url).hostname or "localhost"
        for name in data_link.acquisitions():
            if name.rpartition(":")[0] == host:
                self._stop_acquisition(name)
        self._do("REC:STOP")
        reference = "STAR" if reference_period_ps else "NONE"
        self.configure({
            "record_trigger": "MANUAL", "record_enabled": True, "record_count": 0, "record_width_ps": width_ps,
            "record_period_ps": width_ps + DEAD_TIME_PS,
            "timestamp_source": {c: f"TSCO{c + 4}" for c in channels},
            "timestamp_reference": dict.fromkeys(channels, reference),
        })  # fmt: skip
        streams: dict[int, ChannelStream] = {}
        where = urlsplit(data_link.url).hostname or ""
        merged = MergedStreams(
            streams, width_ps=width_ps, period_ps=width_ps + DEAD_TIME_PS, reference_period_ps=reference_period_ps
        )
        try:
            for c in channels:
                self._do(f"RAW{c}:ERRORS:CLEAR")
                url = address_beside(self._link.url, where, STREAM_PORT + c, f"stream-{c}")
                port = urlsplit(url).port or STREAM_PORT + c
                name = data_link.start_stream(host, c, port, with_index=bool(reference_period_ps))
                streams[c] = ChannelStream(name, open_stream(url, timeout_s=self._timeout_s))
                self._do(f"RAW{c}:SEND ON")
            self._play()
        except BaseException:
            self._abandon(merged)
            raise
        return merged

    def _receive(self, merged: MergedStreams, timeout_s: float) -> None:
        """Take the next sub-acquisition, and look after the unit's error counters."""
        running = self._state == "running"
        try:
            self._rest = merged.next_block(timeout_s=timeout_s)
        except QkdhwError:
            self._state = "broken"
            raise
        if self._rest is None:
            if running and time.monotonic() - self._heard_s > QUIET_S:
                self._check_alive()
            return
        self._heard_s = time.monotonic()
        self._counters["sub_acquisitions"] += 1
        self._counters["photons"] += int(np.count_nonzero(self._rest.kind == EventKind.PHOTON))
        if running and (rise := self._rise_of_raw_errors()):
            self._counters["missed"] += rise
            self._alarms.add("event_overflow")
            self._rest = with_missed(self._rest, rise)

    def _rise_of_raw_errors(self) -> int:
        """Return by how much the error counters of the timestamps have risen since they were read last."""
        rise = 0
        for channel in self._raw_errors:
            count = self.raw_errors[channel]
            rise += max(0, count - self._raw_errors[channel])
            self._raw_errors[channel] = count
        return rise

    def _check_alive(self) -> None:
        """Nothing has come for long: UnitStateError if the unit will send nothing more."""
        stage = self.record_stage
        silent_s = time.monotonic() - self._heard_s
        if stage != "PLAYING" or silent_s > STALL_S + self.record_width_ps / PS_PER_S:
            self._state = "broken"
            raise UnitStateError(
                f"the ID900 has sent nothing for {silent_s:.1f} s; its record generator says {stage}",
                remedy="start again; if it goes on saying PLAYING, restart the unit and lower the rate",
            )

    def _drain(self, merged: MergedStreams) -> list[AcquisitionStatus]:
        """Fetch what is on its way, until the service has handed over all it has and nothing new comes.

        Returns:
            What the service then says of each channel.
        """
        before: list[AcquisitionStatus] = []
        changed_s = time.monotonic()
        while True:
            got = merged.drain()
            now = [self._service().status(stream.name) for stream in merged.streams.values()]
            if got or now != before:
                before, changed_s = now, time.monotonic()
            messages = [stream.messages for stream in merged.streams.values()]
            whole = len(set(messages)) == 1 and messages == [status.sub_acquisitions for status in now]
            if time.monotonic() - changed_s > (SETTLE_S if whole else SETTLE_S + self._timeout_s):
                return now
            time.sleep(POLL_S)

    def _end(self, merged: MergedStreams, statuses: list[AcquisitionStatus]) -> tuple[int, list[str]]:
        """Close the acquisitions; return how many timestamps are missing, and what else was lost, in words."""
        lost, errors = 0, []
        most = max(stream.messages for stream in merged.streams.values())
        for (channel, stream), before in zip(merged.streams.items(), statuses, strict=True):
            self._do(f"RAW{channel}:SEND OFF")
            status = self._stop_acquisition(stream.name) or before
            lost += max(0, status.timestamps - stream.timestamps)
            errors += [f"channel {channel}: {shown(error)}" for error in status.errors]
            if not stream.messages == status.sub_acquisitions == most:
                counts = f"{stream.messages} messages for {status.sub_acquisitions} sub-acquisitions, another {most}"
                errors.append(f"channel {channel} sent {counts}: its times may be wrong")
        if rise := self._rise_of_raw_errors() + self._counters["missed"]:
            errors.append(f"the unit's error counters rose by {rise}")
        merged.close()
        return lost, errors

    def _stop_acquisition(self, name: str) -> AcquisitionStatus | None:
        """End an acquisition at the service, which does not always answer; None if there is none any more."""
        data_link = self._service()
        try:
            return data_link.stop(name)
        except CommandRefusedError:
            return None
        except TransportTimeoutError:
            if name not in data_link.acquisitions():  # it stopped, only the answer was lost
                return None
            self._alarms.add("acquisition_left_open")
            return data_link.status(name)

    def _abandon(self, merged: MergedStreams) -> None:
        """End a stream that failed, as far as it can be ended."""
        with contextlib.suppress(QkdhwError):
            self._do("REC:STOP", *(f"RAW{channel}:SEND OFF" for channel in merged.streams))
        for stream in merged.streams.values():
            with contextlib.suppress(QkdhwError):
                self._stop_acquisition(stream.name)
        merged.close()
        self._state, self._merged, self._rest = "idle", None, None

    def _service(self) -> DataLink:
        """Return the link to the service, opened if it is not."""
        if self._data_link is None:
            url = self._data_link_url or address_beside(self._link.url, "127.0.0.1", DATA_LINK_PORT, DATA_LINK)
            try:
                self._data_link = DataLink(url, timeout_s=self._timeout_s)
            except TransportError as error:
                raise TransportError(
                    f"no DataLinkTarget service answers at {url}: {error}",
                    remedy="start IDQ's DataLinkTargetService on this computer, or give data_link_url",
                ) from error
        return self._data_link

"""The virtual clock: one light source for both units, standing still until both ends take part.

Rules:
    1. A transmitter's START and a receiver's `COUNTS?` in timestamp mode each leave a mark. STOP, ABORT or *RST at
       one end takes back that end's mark. When both marks are there they are used up and a run begins: pulse 0,
       receiver time 0, random streams of (seed, run number). The order does not matter.
    2. The clock goes on in chunks of 2^20 pulses, when an end asks for more and both have room: the transmitter's
       record buffer and the receiver's queue. So nothing is lost and no byte depends on who reads how fast.
    3. STOP at the transmitter darkens the fibre; the receiver goes on with dark counts. A START after that leaves a
       mark and waits for the receiver to start again.
    4. ABORT, *RST, another `COUNTS?` or the end of the gate at the receiver ends the run; the clock stands still
       until rule 1 begins the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qkdhw_emulators.optics.link_model import CHUNK_PULSES, N_DETECTORS, LinkChunk, LinkModel
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.optics.record_buffer import RecordBuffer

RECORD_CAPACITY_PULSES = 16 * CHUNK_PULSES
EVENT_CAPACITY = 1 << 18


class LinkRun:
    """Light source of an emulated transmitter and receiver.

    Not for several threads: whoever serves both units calls from one thread.

    Args:
        parameters: The link; the transmitter's settings in it may be changed by the unit at each start.
        seed: Seed of everything random, 0 or more.
        transmitter: Whether a transmitter takes part; without one there are dark counts only.
        receiver: Whether a receiver takes part; without one detection events are thrown away.
        pace: Seconds of the link per second of `now_s` at most, or None for as fast as both ends read.
        now_s: Where time comes from when there is a pace.

    Attributes:
        records: What the transmitter prepared.
        hold_for_transmitter: Whether the clock waits for room in the record buffer; False makes it run over.
        fibre_connected: Says whether there is a fibre; asked for each chunk.
    """

    def __init__(
        self,
        parameters: LinkParameters,
        *,
        seed: int,
        transmitter: bool = True,
        receiver: bool = True,
        pace: float | None = None,
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.parameters = parameters
        self.seed = seed
        self.pace = pace
        self.records = RecordBuffer(RECORD_CAPACITY_PULSES)
        self.hold_for_transmitter = True
        self.fibre_connected: Callable[[], bool] = lambda: True
        self._now_s = now_s
        self._has_transmitter, self._has_receiver = transmitter, receiver
        self._transmitter_mark = self._receiver_mark = False
        self._settings = parameters
        self._receiver_settings: Mapping[str, Any] = {}
        self._transmitting = False
        self._model: LinkModel | None = None
        self._light = False
        self._events: deque[LinkChunk] = deque()
        self._queued_events = 0
        self._runs = 0
        self._begun_s = 0.0
        self._counts_rng = np.random.default_rng([seed, 0x434F554E])

    def start_transmitter(self, settings: LinkParameters) -> None:
        """START with these settings: old records go, pulses begin when the receiver has started too."""
        self._settings = settings
        self._light = False
        self._transmitting = self._transmitter_mark = True
        self.records.clear()
        self._begin_if_both()

    def stop_transmitter(self) -> None:
        """STOP: no more pulses; records stay."""
        self._transmitting = self._transmitter_mark = self._light = False

    def start_receiver(self, settings: Mapping[str, Any] | None = None) -> None:
        """Begin a stream of detection events; the old one, if any, is over.

        Args:
            settings: Parameters of the link that the receiver sets itself, by name, such as `dead_time_ns`.
        """
        self.stop_receiver()
        self._receiver_settings = dict(settings or {})
        self._receiver_mark = True
        self._begin_if_both()

    def stop_receiver(self) -> None:
        """End the stream; events not yet taken go."""
        self._receiver_mark = False
        self._clear_events()
        if self._has_receiver:
            self._model = None

    def fill_records(self, end: int) -> None:
        """Let the clock run until records up to `end` are there or it has to stand still."""
        while self.records.end < end and self._light and self._advance():
            pass

    def next_events(self) -> LinkChunk | None:
        """Return the next chunk of detection events, or None while the clock stands still."""
        if not self._events and not (self._advance() and self._events):
            return None
        chunk = self._events.popleft()
        self._queued_events -= chunk.ticks.shape[0] + 1
        return chunk

    def expected_counts(self, gate_s: float) -> list[int]:
        """Draw what four plain counters would show in a gate, without moving the clock.

        Rates are averages: Poisson light and dark counts through non-paralysable dead time.
        """
        p = replace(self._settings, **self._receiver_settings)
        mean_photons = float(np.dot(p.mean_photon_number, p.intensity_probability)) if self._transmitting else 0.0
        light_hz = p.pulse_rate_hz * mean_photons * p.transmittance * p.detector_efficiency
        key = p.receiver_key_basis_probability
        arms = (key, key, 1 - key, 1 - key)
        rates_hz = [light_hz * arm / 2 + p.dark_count_rate_hz for arm in arms]
        measured_hz = [r / (1 + r * p.dead_time_ns * 1e-9) for r in rates_hz]
        return [int(n) for n in self._counts_rng.poisson(np.array(measured_hz) * gate_s, N_DETECTORS)]

    def _clear_events(self) -> None:
        self._events.clear()
        self._queued_events = 0

    def _begin_if_both(self) -> None:
        if self._has_transmitter and not self._transmitter_mark:
            return
        if self._has_receiver and not self._receiver_mark:
            return
        self._transmitter_mark = self._receiver_mark = False
        self._clear_events()
        parameters = replace(self._settings, **self._receiver_settings)
        self._model = LinkModel(parameters, seed=self.seed, run=self._runs)
        self._runs += 1
        self._light = self._has_transmitter
        self._begun_s = self._now_s()

    def _advance(self) -> bool:
        """Move the clock on by one chunk if there is a run and room at both ends."""
        if self._model is None or self._queued_events > EVENT_CAPACITY:
            return False
        full = self.records.buffered + CHUNK_PULSES > self.records.capacity_pulses
        if self._light and full and self.hold_for_transmitter:
            return False
        if self.pace is not None and self._model.end_s > (self._now_s() - self._begun_s) * self.pace:
            return False
        chunk = self._model.next_chunk(light=self._light, fibre_connected=self.fibre_connected())
        if self._light:
            self.records.append(chunk.records)
        if self._has_receiver:
            self._events.append(chunk)
            self._queued_events += chunk.ticks.shape[0] + 1
        return True

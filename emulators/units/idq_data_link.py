"""What carries an ID900's timestamps to programs: its record generator, and IDQ's DataLinkTarget service.

The service runs on the host. Told to `start-stream`, it sends each sub-acquisition of a channel as one message of
64-bit little-endian picoseconds since the sub-acquisition began, empty if nothing happened.

Source:
    IDQ Time Controller Series User Manual, 6.3.4 (timestamp data) and 8.2.1.8 (RAW); IDQ's example scripts.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qkdhw.quantities import PS_PER_S
from qkdhw_emulators.faults import Fault, FaultSwitches
from qkdhw_emulators.optics.bench_clicks import BenchInputs
from qkdhw_emulators.world import World

BACKLOG_MESSAGES = 64  # that the service keeps for a slow client
CHANNELS = (1, 2, 3, 4)


@dataclass
class Recorder:
    """The RECord generator: it cuts time into sub-acquisitions.

    Attributes:
        world: Surroundings.
        width_ps: Length of a sub-acquisition.
        period_ps: From the start of one to the start of the next.
        number: How many, or None: until it is stopped.
        begun_ps: When it was told to play, on the bench's clock; None: it does not play.
        played: Sub-acquisitions of the record, once it has ended.
        cut_ps: Length of the last of them, if it was stopped within it.
    """

    world: World
    width_ps: int = PS_PER_S
    period_ps: int = PS_PER_S + 400_000
    number: int | None = 1
    begun_ps: int | None = None
    played: int | None = None
    cut_ps: int | None = None

    def now_ps(self) -> int:
        """Return the bench's time."""
        return round(self.world.now_s() * PS_PER_S)

    def play(self) -> None:
        """Begin a record."""
        self.begun_ps, self.played, self.cut_ps = self.now_ps(), None, None

    def stop(self, taken: int) -> None:
        """End the record; on a clock that stands still, after the sub-acquisitions that were taken."""
        if not self.playing:
            return
        since_ps = self.now_ps() - (self.begun_ps or 0)
        if self.world.clock.pace is None:
            self.played = taken
        else:
            whole, rest_ps = divmod(since_ps, self.period_ps)
            self.played = whole + 1
            self.cut_ps = min(rest_ps, self.width_ps)

    @property
    def playing(self) -> bool:
        """Whether a record is being made now."""
        if self.begun_ps is None or self.played is not None:
            return False
        if self.number is None:
            return True
        if self.world.clock.pace is None:
            return False
        return self.now_ps() < self.begun_ps + self.number * self.period_ps

    def width_of(self, index: int) -> int | None:
        """Return the length of a sub-acquisition if it is over, else None."""
        if self.begun_ps is None or (self.number is not None and index >= self.number):
            return None
        if self.played is not None:
            if index < self.played:
                return self.cut_ps if self.cut_ps is not None and index == self.played - 1 else self.width_ps
            return None
        over = self.world.clock.pace is None or self.begun_ps + index * self.period_ps + self.width_ps <= self.now_ps()
        return self.width_ps if over else None

    @property
    def over(self) -> int:
        """How many sub-acquisitions of the record are over."""
        if self.begun_ps is None or self.world.clock.pace is None:
            return self.played or 0
        since_ps = self.now_ps() - self.begun_ps
        return self.played if self.played is not None else max(0, since_ps - self.width_ps) // self.period_ps

    def wait_s(self, index: int) -> float | None:
        """Return the bench seconds until a sub-acquisition is over, or None: it never will be."""
        if not self.playing or self.begun_ps is None or (self.number is not None and index >= self.number):
            return None
        end_ps = self.begun_ps + index * self.period_ps + self.width_ps
        return max(0.0, (end_ps - self.now_ps()) / PS_PER_S)


@dataclass(frozen=True)
class Pulses:
    """Steady pulses at an input; none if `period_ps` is 0.

    Attributes:
        period_ps: From one to the next.
        phase_ps: When the first comes after the start of the record.
    """

    period_ps: int
    phase_ps: int

    def within(self, begin_ps: int, width_ps: int, ramp: Callable[[int, int], NDArray[np.uint64]]) -> Any:
        """Return the pulses of a window, uint64 (n,), in ps since its begin; `ramp` has the multiples of a period."""
        if not self.period_ps:
            return np.empty(0, "<u8")
        first_ps = (self.phase_ps - begin_ps) % self.period_ps if begin_ps > self.phase_ps else self.phase_ps - begin_ps
        n = max(0, -(-(width_ps - first_ps) // self.period_ps))
        return ramp(self.period_ps, n) + np.uint64(first_ps)


@dataclass(frozen=True)
class DetectorPulses:
    """Pulses of a detector at an input.

    Attributes:
        inputs: The inputs.
        number: Which of them.
        begun_ps: Bench time of the start of the record, less the input's delay.
    """

    inputs: BenchInputs
    number: int
    begun_ps: int

    def within(self, begin_ps: int, width_ps: int, ramp: Callable[[int, int], NDArray[np.uint64]]) -> Any:
        """Return the pulses of a window as `Pulses` does."""
        from_s = (self.begun_ps + begin_ps) / PS_PER_S
        times_s = self.inputs.pulses_within(self.number, from_s, from_s + width_ps / PS_PER_S)
        return np.minimum(times_s * PS_PER_S, width_ps - 1).astype("<u8")


class EmulatedRawStream:
    """The timestamps of one channel as messages; no I/O.

    Args:
        channel: Input number, 1 to 4.
        unit: The Time Controller: its recorder, its pulses, its error counters.

    Attributes:
        acquisition: How many streams were started.
        acquisition_id: Name of the running one, or "".
        status: What the service says of it.
    """

    keeps_messages: ClassVar[bool] = True

    def __init__(self, channel: int, unit: Any) -> None:
        self.channel = channel
        self.acquisition = 0
        self.acquisition_id = ""
        self.with_index = False
        self._unit = unit
        self._ramp: NDArray[np.uint64] = np.empty(0, "<u8")
        self._ramp_period_ps = 0
        self._forget()

    def receive(self, data: bytes) -> bytes:
        """Nobody talks to a stream."""
        return b""

    def open(self, acquisition_id: str, *, with_index: bool) -> None:
        """Begin an acquisition."""
        self.acquisition += 1
        self.acquisition_id, self.with_index = acquisition_id, with_index
        self._forget()

    def close(self) -> None:
        """End it."""
        self.acquisition_id = ""
        self._message: bytes | None = None

    def restart(self) -> None:
        """A new record begins: its sub-acquisitions are counted from 0."""
        self.index = 0

    def next_message(self) -> bytes | None:
        """Return the next sub-acquisition that is over, until it is `sent`."""
        if self._message is None and self._flows():
            self._skip_what_was_not_taken()
            width_ps = self._unit.recorder.width_of(self.index)
            if width_ps is not None:
                self._message = self._made(width_ps)
        return self._message

    def sent(self) -> None:
        """The message has gone out."""
        self._message = None

    def wait_s(self) -> float | None:
        """Bench seconds until a sub-acquisition is over, or None."""
        return self._unit.recorder.wait_s(self.index) if self._flows() else None

    def status(self) -> dict[str, Any]:
        """Return what the service says of the acquisition."""
        inactivity_s = self._unit.world.now_s() - self._active_s
        return {
            "acquisitions_count": self._sub_acquisitions, "errors": [{"description": each} for each in self._errors],
            "inactivity": round(inactivity_s, 3), "timestamps_count": self._timestamps,
        }  # fmt: skip

    def _forget(self) -> None:
        self.index = self._unit.recorder.over
        self._sub_acquisitions = self._timestamps = 0
        self._errors: list[str] = []
        self._message = None
        self._active_s = self._unit.world.now_s()

    def _flows(self) -> bool:
        unit = self._unit
        return bool(self.acquisition_id) and unit.sends(self.channel) and Fault.FULL_BUFFER not in unit.faults

    def _made(self, width_ps: int) -> bytes:
        """Make the message of the next sub-acquisition."""
        unit, faults = self._unit, self._unit.faults
        begin_ps = self.index * unit.recorder.period_ps
        times = unit.pulses(self.channel).within(begin_ps, width_ps, self._multiples)
        if Fault.OVERFLOW in faults:
            times = times[: len(times) // 2]
            unit.raw_errors[self.channel] += 1
        if Fault.NON_MONOTONE in faults and len(times) > 2:
            times[1], times[2] = times[2], times[1]
        self.index += 1
        self._sub_acquisitions += 1
        self._timestamps += len(times)
        self._active_s = unit.world.now_s()
        reference = unit.reference(self.channel)
        if reference is None or not self.with_index:
            return bytes(times.tobytes()) if reference is None else bytes((times % reference).tobytes())
        pairs = np.stack([times % reference, times // reference], axis=1)
        return bytes(pairs.astype("<u8").tobytes())

    def _multiples(self, period_ps: int, n: int) -> NDArray[np.uint64]:
        if period_ps != self._ramp_period_ps or n > len(self._ramp):
            self._ramp = np.arange(n + 1, dtype="<u8") * np.uint64(period_ps)
            self._ramp_period_ps = period_ps
        return self._ramp[:n]

    def _skip_what_was_not_taken(self) -> None:
        """Lose the oldest sub-acquisitions if a slow client has left too many."""
        recorder = self._unit.recorder
        if recorder.world.clock.pace is None:
            return
        late = 0
        while recorder.width_of(self.index + late + BACKLOG_MESSAGES) is not None:
            late += 1
        if late:
            self.index += late
            self._errors.append(f"{late} acquisitions dropped: the buffer is full")


@dataclass
class EmulatedDataLink:
    """Answers DataLinkTarget commands; no I/O.

    Attributes:
        streams: The streams that it can start, by channel.
        unit_faults_on: Faults of the Time Controller that are on; STOP_UNANSWERED is this service's.
        faults: Faults of the line to this service.
    """

    streams: dict[int, EmulatedRawStream]
    unit_faults_on: FaultSwitches
    faults: FaultSwitches = field(default_factory=FaultSwitches)
    keeps_messages: ClassVar[bool] = True

    def receive(self, data: bytes) -> bytes:
        """Take one command and return its answer."""
        try:
            words = shlex.split(data.decode("ascii"))
            answer = self._answer(words[0] if words else "", _options(words[1:]))
        except (KeyError, ValueError) as error:
            answer = {"error": {"description": str(error).strip("'\"")}}
        return b"" if answer is None else json.dumps(answer).encode("ascii")

    def _answer(self, command: str, options: dict[str, str]) -> Any:
        if command == "list":
            return [stream.acquisition_id for stream in self.streams.values() if stream.acquisition_id]
        if command == "start-stream":
            return self._start(options)
        if command not in {"status", "stop"}:
            raise ValueError(f"Unknown command {command}")
        stream = next((each for each in self.streams.values() if each.acquisition_id == options["id"]), None)
        if not options["id"] or stream is None:
            raise ValueError(f"No acquisition {options['id']}")
        if command == "status":
            return stream.status()
        status = stream.status()
        if self.unit_faults_on.strikes(Fault.STOP_UNANSWERED):
            return None
        stream.close()
        return {"status": status}

    def _start(self, options: dict[str, str]) -> dict[str, str]:
        stream = self.streams[int(options["channel"])]
        if not re.fullmatch(r"[0-9A-Za-z.:-]+", options["address"]) or int(options["stream-port"]) <= 0:
            raise ValueError("Wrong address or port")
        if stream.acquisition_id:
            raise ValueError(f"Channel {stream.channel} is in use by {stream.acquisition_id}")
        name = f"{options['address']}:{5555 + stream.channel}"
        stream.open(name, with_index="with-ref-index" in options)
        return {"id": name}


def _options(words: Iterable[str]) -> dict[str, str]:
    """Return what follows the command: --name value, and names of switches."""
    options: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            options[name] = ""
        elif name:
            options[name], name = word, ""
        else:
            raise ValueError(f"Unexpected {word}")
    return options

"""A long run of injected faults: random units, transports, states, calls and faults, from one seed.

After each fault the call must have given the right data or a typed error, and the unit must then work again. What a
protocol without a check sum cannot tell is not asked of it: see `Fault.GARBLE`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qkdhw.drivers import load_driver
from qkdhw.errors import CommandRefusedError, QkdhwError, TransportError, UnitError
from qkdhw.model import EventKind
from qkdhw_emulators.conformance.carriers import quick_world
from qkdhw_emulators.conformance.setting_checks import places, trial_values
from qkdhw_emulators.conformance.subject import NotApplicableError, Subject
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.serve import serve_unit

RECOVERY_S = 5.0
HANG_S = 20.0
MOST_PLACES = 6
ANSWERING_FAULTS = frozenset({Fault.SILENT, Fault.GARBAGE})


@dataclass
class Tally:
    """What came of a campaign.

    Attributes:
        faults: How many were injected.
        right: Calls that gave the right data all the same.
        typed: Calls that gave a typed error.
        wrong: What was wrong: data, an error of no known type, a hang, no recovery; must be empty.
        by_fault: Faults injected, by name.
        by_place: Faults injected, by unit and transport.
        slowest_recovery_s: Longest time from a fault's end to the next right answer.
        slowest_call_s: Longest call.
    """

    faults: int = 0
    right: int = 0
    typed: int = 0
    wrong: list[str] = field(default_factory=list)
    by_fault: Counter[str] = field(default_factory=Counter)
    by_place: Counter[str] = field(default_factory=Counter)
    slowest_recovery_s: float = 0.0
    slowest_call_s: float = 0.0


def run_campaign(
    places_: Sequence[tuple[str, str]],
    *,
    n_faults: int,
    seed: int = 1,
    timeout_s: float = 0.1,
    on_progress: Callable[[Tally], None] = lambda _tally: None,
) -> Tally:
    """Inject faults.

    Args:
        places_: Pairs of driver name and what its emulator is put on; each gets an equal share, one after the other.
        n_faults: How many faults in all.
        seed: Seed of everything random.
        timeout_s: Longest wait of the drivers for an answer.
        on_progress: Called now and then.
    """
    tally = Tally()
    share = -(-n_faults // len(places_))
    for number, (name, on) in enumerate(places_):
        rng = np.random.default_rng([seed, number])
        world = quick_world(name, seed=seed)
        with serve_unit(make_unit(name, world), world, transport=on) as served:
            subject = Subject(name, served.url, load_driver(name), timeout_s=timeout_s, served=served)
            with _Attack(subject, rng, tally) as attack:
                for turn in range(share):
                    if tally.faults >= n_faults:
                        break
                    attack.strike()
                    if turn % 20 == 0:
                        on_progress(tally)
    return tally


class _Attack:
    """Faults against one driver at one address."""

    def __init__(self, subject: Subject, rng: np.random.Generator, tally: Tally) -> None:
        self._subject, self._rng, self._tally = subject, rng, tally
        self._served = subject.emulated
        self._place = f"{subject.name} {subject.url.partition(':')[0]}"
        own: frozenset[Fault] = getattr(self._served.unit, "unit_faults", frozenset())
        self._faults = sorted(LINE_FAULTS | (own & ANSWERING_FAULTS))
        self._stack = ExitStack()
        try:
            found = [(s, c) for s, c in places(subject) if s.readable and trial_values(s)]
            self._places = [found[int(i)] for i in sorted(rng.permutation(len(found))[:MOST_PLACES])]
        except NotApplicableError:
            self._places = []
        self._truth: dict[tuple[str, int | None], Any] = {}

    def __enter__(self) -> _Attack:
        deadline_s = time.monotonic() + RECOVERY_S
        while True:
            try:
                self._begin()
            except (TransportError, UnitError):  # on a busy computer even what no fault hits may be late
                self._stack.close()
                if time.monotonic() > deadline_s:
                    raise
            else:
                return self

    def _begin(self) -> None:
        self._unit = self._stack.enter_context(self._subject.open())
        self._info = self._unit.identify()
        self._unit.restore(self._unit.snapshot())  # the driver has set everything, and has to again after power loss
        for setting, channel in self._places:
            self._truth[setting.name, channel] = self._unit.read_setting(setting.name, channel)
        self._streams = self._subject.has("TimeTagger", "ReceiverUnit")

    def __exit__(self, *exc: object) -> None:
        self._served.faults.clear()
        self._stack.close()

    def strike(self) -> None:
        """Inject one fault into one call."""
        fault = Fault(self._rng.choice(self._faults))
        call = self._rng.choice(["identify", "status", "read", "write", *(["stream"] if self._streams else [])])
        action = {"identify": self._identify, "status": self._status, "read": self._read, "write": self._write}
        self._tally.faults += 1
        self._tally.by_fault[fault] += 1
        self._tally.by_place[self._place] += 1
        late = 1.5 if fault is Fault.LATE_REPLY else 0.2
        self._served.faults.add(fault, count=1, seconds=late * self._subject.timeout_s)
        what = f"{self._place}: {call} with {fault}"
        with self._judged(what):
            action.get(str(call), self._stream)()
        self._served.faults.discard(fault)
        begun_s = time.monotonic()
        self._recover(what, begun_s + RECOVERY_S, after=str(call))
        self._tally.slowest_recovery_s = max(self._tally.slowest_recovery_s, time.monotonic() - begun_s)

    @contextmanager
    def _judged(self, what: str) -> Iterator[None]:
        begun_s = time.monotonic()
        try:
            yield
            self._tally.right += 1
        except (TransportError, UnitError):
            self._tally.typed += 1
        except QkdhwError as error:
            if "Event" in type(error).__name__:
                self._tally.typed += 1
            else:
                self._tally.wrong.append(f"{what}: {type(error).__name__}: {error}")
        except _WrongDataError as error:
            self._tally.wrong.append(f"{what}: {error}")
        except Exception as error:  # noqa: BLE001 - any other error is a finding
            self._tally.wrong.append(f"{what}: an error of no known type, {type(error).__name__}: {error}")
        took_s = time.monotonic() - begun_s
        self._tally.slowest_call_s = max(self._tally.slowest_call_s, took_s)
        if took_s > HANG_S:
            self._tally.wrong.append(f"{what}: took {took_s:.1f} s")

    def _recover(self, what: str, deadline_s: float, *, after: str) -> None:
        """After a fault everything is as it was, at the latest after a few tries."""
        while True:
            try:
                self._identify()
                if after != "stream":
                    self._read_some()
                if after in {"write", "stream"}:  # a setting may move others, a stream set up what it needs
                    self._truth = {key: self._unit.read_setting(*key) for key in self._truth}
            except (TransportError, UnitError) as error:
                if time.monotonic() > deadline_s:
                    self._tally.wrong.append(f"{what}: does not recover: {type(error).__name__}: {error}")
                    self._reopen()
                    return
            except _WrongDataError as error:
                self._tally.wrong.append(f"{what}: afterwards {error}")
                self._reopen()
                return
            else:
                return

    def _reopen(self) -> None:
        self._stack.close()
        self.__enter__()

    def _identify(self) -> None:
        info = self._unit.identify()
        if info != self._info:
            raise _WrongDataError(f"identity {info}, not {self._info}")

    def _status(self) -> None:
        self._unit.read_status()

    def _read(self) -> None:
        if self._truth:
            keys = list(self._truth)
            self._read_one(keys[int(self._rng.integers(len(keys)))])

    def _read_some(self) -> None:
        """Read what was just written, or else two settings drawn at random."""
        written = [key for key, value in self._truth.items() if isinstance(value, _OneOf)]
        keys = list(self._truth)
        for key in written or [keys[int(i)] for i in self._rng.permutation(len(keys))[:2]]:
            self._read_one(key)

    def _read_one(self, key: tuple[str, int | None]) -> None:
        got, wanted = self._unit.read_setting(*key), self._truth[key]
        allowed = wanted if isinstance(wanted, _OneOf) else _OneOf((wanted,))
        setting = self._subject.settings[key[0]]
        if not any(setting.agrees(each, got) for each in allowed.values):
            raise _WrongDataError(f"{key} is {got!r}, not {wanted!r}")
        self._truth[key] = got

    def _write(self) -> None:
        if not self._places:
            return
        setting, channel = self._places[int(self._rng.integers(len(self._places)))]
        values = trial_values(setting)
        told = values[int(self._rng.integers(len(values)))]
        old = self._truth[setting.name, channel]
        self._truth[setting.name, channel] = _OneOf((old, told))  # if it fails, either
        with suppress(CommandRefusedError):  # the unit's own range may depend on other settings
            self._unit.configure({setting.name: told if channel is None else {channel: told}})
            self._truth[setting.name, channel] = _OneOf((told,))

    def _stream(self) -> None:
        if self._subject.has("ReceiverUnit"):
            self._unit.arm()
        try:
            self._unit.start()
            block = self._unit.read_block(500, timeout_s=0.5)
            ticks = block.time_ticks[block.kind == EventKind.PHOTON]
            if len(ticks) and not bool((np.diff(ticks) >= 0).all()):
                raise _WrongDataError("time goes backwards in a stream")
        finally:
            with suppress(QkdhwError):
                self._unit.stop()


@dataclass(frozen=True)
class _OneOf:
    values: tuple[Any, ...]


class _WrongDataError(Exception):
    """A call gave data that are not true."""

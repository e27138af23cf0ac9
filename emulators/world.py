"""What emulated units have around them: one clock, one seed, physical conditions."""

from __future__ import annotations

import hashlib
import math
import threading
import time
import zlib
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np

from qkdhw.errors import ConfigurationError


class VirtualClock:
    """The time of an emulated bench.

    Args:
        pace: Bench seconds per second; or None: time stands still until `advance`, so whoever serves the units jumps
            over every wait (as fast as possible, and the same every time).
        monotonic_s: Where real time comes from.
    """

    def __init__(self, *, pace: float | None = 1.0, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        if pace is not None and not 0 < pace < math.inf:
            raise ConfigurationError(f"pace is {pace}", remedy="Give bench seconds per second above 0, or None.")
        self.pace = pace
        self._monotonic_s = monotonic_s
        self._begun_s = monotonic_s()
        self._advanced_s = 0.0

    def now_s(self) -> float:
        """Seconds since the bench was switched on."""
        if self.pace is None:
            return self._advanced_s
        return self._advanced_s + (self._monotonic_s() - self._begun_s) * self.pace

    def advance(self, seconds: float) -> None:
        """Let time jump ahead.

        Raises:
            ValueError: `seconds` is negative.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"time does not go on by {seconds} s")
        self._advanced_s += seconds

    def real_wait_s(self, wait_s: float) -> float:
        """How many seconds of real time a wait on the bench takes: 0 for a clock that jumps."""
        return wait_s / self.pace if self.pace else 0.0


class Conditions(UserDict[str, float]):
    """Physical conditions by name; only those that a unit senses can be set.

    Args:
        world: Whose they are.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def __setitem__(self, name: str, value: float) -> None:
        if name not in self:
            raise ConfigurationError(
                f"{self._world.label or 'this unit'} does not sense {name!r}",
                remedy=f"It senses: {', '.join(sorted(self)) or 'nothing'}.",
            )
        if not math.isfinite(value):
            raise ConfigurationError(f"{name} cannot be {value}", remedy="Give a finite number.")
        with self._world.lock:
            self._world.come_to_now()
            self.data[name] = float(value)

    def declare(self, conditions: Mapping[str, float]) -> None:
        """Have further ones, but those that are there stay as they are."""
        self.data = {**conditions, **self.data}


def serial_number(seed: int) -> str:
    """Return a serial number that differs from seed to seed and does not tell the seed: all choices follow from it."""
    return f"EMU{int.from_bytes(hashlib.sha256(f'serial number {seed}'.encode()).digest()[:8]) % 10**6:06d}"


class World:
    """The surroundings of one emulated unit, or of a whole bench.

    Args:
        seed: Seed of everything random, 0 or more.
        clock: The bench's clock; a new one in real time if left out.

    Attributes:
        seed: The seed.
        clock: The clock.
        label: Name of the unit on its bench, or "".
        lock: Held while a unit of this bench works: units do not see each other half-changed.
        between: What units of this bench share by name, such as a beam of light from one to the other.
        followers: What follows the units' state through time; called before anything changes.
        conditions: Physical conditions by name, such as "fibre_connected" (1 or 0) or "temperature_k"; a person or a
            test changes them while the unit runs. One that no unit senses is refused.
    """

    def __init__(self, *, seed: int = 1, clock: VirtualClock | None = None) -> None:
        if seed < 0:
            raise ConfigurationError(f"seed is {seed}", remedy="Give a seed of 0 or more.")
        self.seed = seed
        self.clock = clock or VirtualClock()
        self.label = ""
        self.lock = threading.RLock()
        self.between: dict[str, object] = {}
        self.followers: list[Callable[[], None]] = []
        self.conditions = Conditions(self)
        self._parts: dict[str, World] = {}

    def now_s(self) -> float:
        """Seconds on the bench's clock."""
        return self.clock.now_s()

    def come_to_now(self) -> None:
        """Let what follows the units' state take in how it was until now: something is about to change."""
        for follow in self.followers:
            follow()

    def rng(self, purpose: str) -> np.random.Generator:
        """Return a new random stream that depends on the seed, the unit's label and the purpose alone."""
        return np.random.default_rng([self.seed, zlib.crc32(self.label.encode()), zlib.crc32(purpose.encode())])

    def declare(self, conditions: Mapping[str, float]) -> None:
        """Say which conditions a unit senses, and what they are unless somebody set them before."""
        self.conditions.declare(conditions)

    def set_condition(self, name: str, value: float) -> None:
        """Change a physical condition.

        Raises:
            ConfigurationError: No unit here senses it, or the value is not finite.
        """
        self.conditions[name] = value

    def part(self, label: str) -> World:
        """Return the surroundings of the unit with this label: all is shared with this bench but the conditions."""
        if label not in self._parts:
            part = World(seed=self.seed, clock=self.clock)
            part.label, part.lock, part.between, part.followers = label, self.lock, self.between, self.followers
            self._parts[label] = part
        return self._parts[label]

    def __enter__(self) -> Self:
        self.lock.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.lock.release()

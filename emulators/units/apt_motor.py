"""A motor with a scale: trapezoidal speed, stops, and something that may be in its way. Positions are counts."""

from __future__ import annotations

import math

STALL_S = 0.2  # a motor that does not turn is switched off after this long


class Motor:
    """One motor; every method takes the time.

    Args:
        position: Where it stands, counts.

    Attributes:
        kind: What it does: "", "move", "jog" or "home".
        forward: Which way it goes.
        stalled: Whether the last movement ended because something was in the way.
    """

    def __init__(self, position: float) -> None:
        self.kind = ""
        self.forward = True
        self.stalled = False
        self._at = position
        self._begun_s = 0.0
        self._phases: list[tuple[float, float, float]] = []  # duration, speed at the start, acceleration
        self._stall_s: float | None = None

    def start(self, kind: str, target: float, now_s: float, *, speed: float, acceleration: float) -> None:
        """Set out for a position; a movement under way ends where it is."""
        self._at = self.position(now_s)
        way = target - self._at
        self.kind, self.forward, self.stalled, self._stall_s = kind, way >= 0, False, None
        self._begun_s = now_s
        distance = abs(way)
        ramp_s = min(speed / acceleration, math.sqrt(distance / acceleration))
        top = acceleration * ramp_s
        cruise_s = max(0.0, distance / top - ramp_s) if top else 0.0
        self._phases = [(ramp_s, 0.0, acceleration), (cruise_s, top, 0.0), (ramp_s, top, -acceleration)]

    def stop(self, now_s: float, *, acceleration: float | None) -> None:
        """Slow down to a halt, or stand still at once if `acceleration` is None."""
        speed = abs(self.speed(now_s))
        self._at = self.position(now_s)
        self._begun_s = now_s
        self._phases = [(speed / acceleration, speed, -acceleration)] if acceleration else []

    def settle(self, now_s: float, *, blocked: bool) -> bool:
        """Let time pass; say whether a movement has just ended.

        Args:
            now_s: The time.
            blocked: Whether something is in the way: the motor stands, and gives up after `STALL_S`.
        """
        if not self.kind:
            return False
        if blocked and self._stall_s is None:
            self._at, self._phases, self._stall_s = self.position(now_s), [], now_s + STALL_S
        if now_s < self.end_s():
            return False
        self._at, self.stalled = self.position(now_s), self._stall_s is not None
        self.kind, self._phases, self._stall_s = "", [], None
        return True

    def end_s(self) -> float:
        """When the movement ends."""
        return self._stall_s if self._stall_s is not None else self._begun_s + sum(phase[0] for phase in self._phases)

    def position(self, now_s: float) -> float:
        """Where it is."""
        return self._at + (1 if self.forward else -1) * self._travel(now_s)[0]

    def speed(self, now_s: float) -> float:
        """How fast it goes, counts per second, negative backwards."""
        return (1 if self.forward else -1) * self._travel(now_s)[1]

    def _travel(self, now_s: float) -> tuple[float, float]:
        """Return how far it has come and how fast it is."""
        left_s, way, speed = now_s - self._begun_s, 0.0, 0.0
        for duration_s, begin, acceleration in self._phases:
            t = min(max(left_s, 0.0), duration_s)
            way += begin * t + acceleration * t * t / 2
            speed = begin + acceleration * t
            left_s -= duration_s
            if left_s < 0:
                return way, speed
        return way, 0.0

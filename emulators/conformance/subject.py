"""What a conformance check looks at: a driver and an address, and, if the unit is emulated, a hand on its faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qkdhw.drivers.setting import Setting, settings_of
from qkdhw.errors import TransportError, UnitError
from qkdhw.transport import open_transport
from qkdhw_emulators.serve import ServedUnit

RECOVERY_S = 10.0


class BrokenRuleError(AssertionError):
    """A driver breaks a rule; the message says which."""


class NotApplicableError(Exception):
    """A check has nothing to look at here; the message says why."""


class NotTriedError(NotApplicableError):
    """A check would have something to look at but cannot be made; the message says why."""


@dataclass(frozen=True)
class Subject:
    """One driver on one address.

    Attributes:
        name: Driver name.
        url: Address.
        driver: The driver's class.
        timeout_s: Longest wait for an answer.
        served: The emulated unit behind the address, or None: a real one, whose faults nobody can switch.
        rounds: How often checks that repeat do so.
        options: Passed on to the driver.
        said: What the unit said of itself, once the suite has opened it.
    """

    name: str
    url: str
    driver: type[Any]
    timeout_s: float = 2.0
    served: ServedUnit | None = None
    rounds: int = 100
    options: dict[str, Any] | None = None
    said: dict[str, str] = field(default_factory=dict)

    def open(self) -> Any:
        """Open the unit."""
        link = open_transport(self.url, timeout_s=self.timeout_s)
        try:
            return self.driver(link, timeout_s=self.timeout_s, **(self.options or {}))
        except BaseException:
            link.close()
            raise

    @property
    def settings(self) -> dict[str, Setting[Any]]:
        """What the driver declares."""
        return settings_of(self.driver)

    @property
    def emulated(self) -> ServedUnit:
        """The emulated unit.

        Raises:
            NotTriedError: The unit is a real one.
        """
        if self.served is None:
            raise NotTriedError("faults can only be switched on an emulated unit")
        return self.served

    def has(self, *capabilities: str) -> bool:
        """Say whether the driver fits one of these Protocols."""
        return bool(set(capabilities) & set(getattr(self.driver, "capabilities", ())))


def require(ok: bool, rule: str) -> None:
    """Raise BrokenRuleError unless the rule holds."""
    if not ok:
        raise BrokenRuleError(rule)


def until_right(call: Callable[[], Any], what: str) -> Any:
    """Call until it works: a recovery may meet what a fault left behind."""
    deadline_s = time.monotonic() + RECOVERY_S
    while True:
        try:
            return call()
        except (TransportError, UnitError) as error:
            require(time.monotonic() < deadline_s, f"{what} works within {RECOVERY_S} s, not {error}")

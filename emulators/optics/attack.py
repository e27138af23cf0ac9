"""What an attacker or a fault does to a link, and when: the base of all knobs, and the state that they turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from qkdhw_emulators.optics.setup import OpticalSetup, Part

if TYPE_CHECKING:
    from qkdhw_emulators.optics.pulse_tables import PulseTables


@dataclass(slots=True)
class DetectorCondition:
    """What is wrong with a detector.

    Attributes:
        blinded: It is in linear mode: only bright light makes it click.
        dead: It clicks no more.
        latched: As dead, until its bias is taken away.
    """

    blinded: bool = False
    dead: bool = False
    latched: bool = False


@dataclass(slots=True)
class LinkCondition:
    """What attackers and faults do to a link in one cell, besides its setup and its tables.

    Attributes:
        detectors: Of the receiver, by index.
        clock_ppm: Added to the receiver's clock frequency.
        clock_step_ps: Added to its reading.
        delay_ps: Added to the travel time at the begin of the cell.
        delay_ps_per_s: How fast the travel time grows.
        monitors: Readings of the link's monitors, by name: see `attacks.MONITORS`.
    """

    detectors: list[DetectorCondition]
    clock_ppm: float = 0.0
    clock_step_ps: float = 0.0
    delay_ps: float = 0.0
    delay_ps_per_s: float = 0.0
    monitors: dict[str, float] = field(default_factory=dict)


class Attack(Part):
    """One attack or fault. The engine calls the three methods in this order in each cell in which it is on.

    Attributes:
        name: What a schedule calls it.
        varies: Whether its effect changes while it is on; else the methods are called when it begins only.
        from_s: When it begins, in seconds of the link's time.
        until_s: When it ends; None: never.
    """

    name: ClassVar[str] = ""
    varies: ClassVar[bool] = False

    from_s: float = Field(default=0.0, ge=0)
    until_s: float | None = Field(default=None, ge=0)

    def is_on(self, now_s: float) -> bool:
        """Tell whether it is on."""
        return self.from_s <= now_s and (self.until_s is None or now_s < self.until_s)

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup as it is under the attack, `since_s` seconds after it began."""
        del since_s
        return setup

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        del setup
        return tables

    def change_condition(self, condition: LinkCondition, setup: OpticalSetup, since_s: float) -> None:
        """Change the rest."""
        del condition, setup, since_s

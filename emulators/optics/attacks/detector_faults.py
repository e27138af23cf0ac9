"""Faults of single detectors."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import Attack, LinkCondition
from qkdhw_emulators.optics.setup import Fraction01, OpticalSetup


class _DetectorFault(Attack):
    """Base of faults of one detector.

    Attributes:
        detector: Its index in the receiver, from 0.
    """

    detector: int = Field(default=0, ge=0, le=7)

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup as it is; refuse a detector that there is not.

        Raises:
            ConfigurationError: There is none.
        """
        del since_s
        if self.detector >= len(setup.receiver.detectors):
            raise ConfigurationError(
                f"attack {self.name}: detector is {self.detector}, the receiver has {len(setup.receiver.detectors)}",
                remedy=f"give 0 to {len(setup.receiver.detectors) - 1}",
            )
        return setup


class DetectorDying(_DetectorFault):
    """A detector loses its efficiency, or is dead.

    Signature: its share of the clicks falls, so that bits and bases are biased; a dead one never clicks.
    Source: see arXiv:2305.18006 for what the bias does to a key.

    Attributes:
        detector: Its index in the receiver, from 0.
        efficiency_factor: What is left of its efficiency; 0: it is dead and has no dark counts either.
    """

    name: ClassVar[str] = "detector-dying"

    efficiency_factor: Fraction01 = 0.0

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup with the weak detector."""
        receiver = super().change_setup(setup, since_s).receiver
        detectors = list(receiver.detectors)
        weak = detectors[self.detector]
        detectors[self.detector] = weak.model_copy(update={"efficiency": weak.efficiency * self.efficiency_factor})
        return setup.model_copy(update={"receiver": receiver.model_copy(update={"detectors": tuple(detectors)})})

    def change_condition(self, condition: LinkCondition, setup: OpticalSetup, since_s: float) -> None:
        """Let a dead one be silent."""
        del setup, since_s
        if self.efficiency_factor == 0.0:
            condition.detectors[self.detector].dead = True


class DetectorLatched(_DetectorFault):
    """A superconducting detector has latched: it conducts no more until its bias was taken away.

    Signature: it never clicks.
    Source: A. J. Annunziata et al., J. Appl. Phys. 108, 084507 (2010), arXiv:1008.0895.

    Attributes:
        detector: Its index in the receiver, from 0.
    """

    name: ClassVar[str] = "detector-latched"

    def change_condition(self, condition: LinkCondition, setup: OpticalSetup, since_s: float) -> None:
        """Latch it."""
        del setup, since_s
        condition.detectors[self.detector].latched = True

"""Attacks on the sender's light, and faults of it."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import Attack, LinkCondition
from qkdhw_emulators.optics.setup import OpticalSetup


def _with_source(setup: OpticalSetup, name: str, **changes: object) -> OpticalSetup:
    """Return the setup with another weak-coherent source.

    Raises:
        ConfigurationError: The source makes no weak coherent pulses.
    """
    if setup.source.kind != "weak-coherent":
        raise ConfigurationError(
            f"attack {name}: it changes weak coherent pulses, the source is of {setup.source.kind}",
            remedy="choose a link with a weak-coherent source",
        )
    return setup.model_copy(update={"source": setup.source.model_copy(update=changes)})


def _brightened(setup: OpticalSetup, factor: float, name: str) -> OpticalSetup:
    intensities = tuple(
        i.model_copy(update={"mean_photon_number": i.mean_photon_number * factor}) for i in setup.source.intensities
    )
    return _with_source(setup, name, intensities=intensities)


class TrojanHorse(Attack):
    """Send light into the sender and read its modulators from what comes back.

    Signature: none in the counts; the monitor of incoming light rises.
    Source: N. Gisin et al., Phys. Rev. A 73, 022320 (2006), arXiv:quant-ph/0507063; M. Lucamarini et al., Phys. Rev.
    X 5, 031030 (2015), arXiv:1506.01989.

    Attributes:
        back_reflection_dbm: What the monitor at the sender's output reads.
    """

    name: ClassVar[str] = "trojan-horse"

    back_reflection_dbm: float = Field(default=-40.0, ge=-120, le=40)

    def change_condition(self, condition: LinkCondition, setup: OpticalSetup, since_s: float) -> None:
        """Let the monitor see it."""
        del setup, since_s
        condition.monitors["back_reflection_dbm"] = self.back_reflection_dbm


class LaserSeeding(Attack):
    """Send light into the sender's laser, which then is brighter than it says.

    Signature: all gains rise by the factor; the laser's power monitor reads more.
    Source: A. Huang et al., Phys. Rev. Applied 12, 064043 (2019), arXiv:1902.09792.

    Attributes:
        factor: Mean photon numbers over what they should be.
    """

    name: ClassVar[str] = "laser-seeding"

    factor: float = Field(default=1.2, gt=0, le=10)

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup with more light."""
        del since_s
        return _brightened(setup, self.factor, self.name)

    def change_condition(self, condition: LinkCondition, setup: OpticalSetup, since_s: float) -> None:
        """Let the monitor see it."""
        del setup, since_s
        condition.monitors["laser_power_dbm"] += 10 * math.log10(self.factor)


class IntensityDrift(Attack):
    """Intensities drift exponentially, behind the power monitor.

    Signature: all gains drift.
    Source: arXiv:2205.11870 found fluctuations large enough to void a proof.

    Attributes:
        per_s: Relative change in a second.
        limit: Largest factor, and the inverse of the smallest.
    """

    name: ClassVar[str] = "intensity-drift"
    varies: ClassVar[bool] = True

    per_s: float = Field(default=0.1, gt=-1, le=10)
    limit: float = Field(default=2.0, ge=1, le=10)

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup with more or less light."""
        exponent = math.log1p(self.per_s) * since_s
        bound = math.log(self.limit)
        return _brightened(setup, math.exp(min(bound, max(-bound, exponent))), self.name)


class IntensityCorrelation(Attack):
    """The intensity of a pulse depends on the one before it, which no decoy proof here takes into account.

    Signature: detections of pulses after a signal pulse are more frequent than after another, by the given change.
    Source: K. Yoshino et al., npj Quantum Inf. 4, 8 (2018).

    Attributes:
        change: Relative change of a pulse's mean after a signal pulse.
    """

    name: ClassVar[str] = "intensity-correlation"

    change: float = Field(default=0.2, ge=-0.5, le=0.5)

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup with the effect."""
        del since_s
        return _with_source(setup, self.name, pattern_effect=self.change)


class PhaseNotRandomised(Attack):
    """The phases of pulses are not random any more: pulses are no mixture of photon numbers.

    Signature: none; every decoy proof is void. Policy must refuse a source that cannot vouch for its phases.
    Source: H.-K. Lo, J. Preskill, Quantum Inf. Comput. 7, 431 (2007), arXiv:quant-ph/0610203.
    """

    name: ClassVar[str] = "phase-not-randomised"

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup without it."""
        del since_s
        return _with_source(setup, self.name, phase_randomised=False)


class CowZeroError(Attack):
    """Measure sequences of coherent-one-way pulses without ambiguity, send what was found, else nothing.

    Signature: none: QBER 0 and visibility 1 stay, and the attacker makes up for the rate. Counts are left as they are.
    Policy must refuse keys from coherent one-way.
    Source: J. Gonzalez-Payo, R. Trenyi, W. Wang, M. Curty, Phys. Rev. Lett. 125, 260510 (2020), arXiv:2006.16891.
    """

    name: ClassVar[str] = "cow-zero-error"

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup as it is; refuse one that cannot be coherent one-way.

        Raises:
            ConfigurationError: It has no weak coherent pulses in time bins.
        """
        if setup.source.encoding != "time-bin":
            raise ConfigurationError(
                f"attack {self.name}: it is one on coherent one-way, the encoding is {setup.source.encoding}",
                remedy="choose a link with time-bin encoding, such as idq-cow-2015",
            )
        return _with_source(setup, self.name)

"""Attacks on when light arrives, and on the clocks."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import Attack, LinkCondition
from qkdhw_emulators.optics.attacks.hidden import PulseAttack, by_state, mode_bits, with_actions
from qkdhw_emulators.optics.pulse_tables import POISSON, PulseTables
from qkdhw_emulators.optics.setup import Fraction01, OpticalSetup

PREPULSE_PHOTONS = 12.0


class TimeShift(PulseAttack):
    """Make pulses early or late at random, where one of the two detectors of a basis is less efficient.

    The ratio holds at the shifted times: early light finds the detectors of bit 1 less efficient, late light those of
    bit 0. The profile of a gate comes on top.

    Signature: QBER as before; among early clicks bit 0 is 1/ratio times as frequent as bit 1, among late ones the other
    way round; with uneven choice of early and late all bits are biased.
    Source: B. Qi, C.-H. F. Fung, H.-K. Lo, X. Ma, Quantum Inf. Comput. 7, 73 (2007), arXiv:quant-ph/0512080.

    Attributes:
        fraction: Share of pulses that are shifted.
        shift_ps: By how much they are shifted.
        efficiency_ratio: Efficiency of the less efficient detector over the other's.
        early: Share of the shifted pulses that are early.
    """

    name: ClassVar[str] = "time-shift"

    fraction: Fraction01 = 1.0
    shift_ps: float = Field(default=100.0, ge=0, le=1e6)
    efficiency_ratio: Fraction01 = 0.5
    early: Fraction01 = 0.5

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        shifted = self.fraction * np.array([self.early, 1 - self.early])
        changed = with_actions(tables, np.array([1 - self.fraction, *shifted]))
        shares, offset_ps = by_state(changed, changed.shares, 3), by_state(changed, changed.state_offset_ps, 3)
        bits = mode_bits(tables, setup)
        for action, (worse_bit, sign) in enumerate(((1, -1), (0, 1)), start=1):
            shares[..., action, :] *= np.where(bits == worse_bit, self.efficiency_ratio, 1.0)
            offset_ps[..., action] += sign * self.shift_ps
        return changed


class DeadTime(PulseAttack):
    """Blind all detectors but one by their own dead time: a bright pulse for the others just before the signal.

    Which detector is spared is random, so that the attacker knows the bit of a click and no rate of a detector differs.
    A cell costs as many steps as it has pulses, for any pulse may be a bright one.

    Signature: clicks before the signal; a click in the signal's time comes when the other detectors are dead, and is
    dropped by a receiver that keeps a click only if all detectors are live.
    Source: H. Weier et al., New J. Phys. 13, 073024 (2011), arXiv:1101.5289.

    Attributes:
        fraction: Share of pulses that are attacked.
        lead_ps: How much earlier the bright pulse comes; shorter than the dead time.
    """

    name: ClassVar[str] = "dead-time"

    fraction: Fraction01 = 0.001
    lead_ps: float = Field(default=5_000.0, gt=0, le=1e6)

    def check(self, setup: OpticalSetup) -> None:
        """Refuse a gated receiver, and detectors that are live again when the signal comes.

        Raises:
            ConfigurationError: It is gated, or the dead time is too short.
        """
        dead_ps = 1e3 * min(d.dead_time_ns for d in setup.receiver.detectors)
        if dead_ps <= self.lead_ps:
            raise ConfigurationError(
                f"attack {self.name}: lead_ps is {self.lead_ps}, a detector is dead for {dead_ps:g} ps only",
                remedy="give a shorter lead_ps, or use a link with a longer dead time",
            )
        if setup.receiver.gate.width_ps:
            raise ConfigurationError(
                f"attack {self.name}: the receiver is gated, its detectors do not see light before the gate",
                remedy="use a link with a free-running receiver (gate.width_ps 0)",
            )

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        n_detectors = len(setup.receiver.detectors)
        if (tables.photons != POISSON).any():
            raise ConfigurationError(
                f"attack {self.name}: it adds bright light to pulses, these have a fixed number of photons",
                remedy="use a weak-coherent source, and no other attack that fixes the number of photons",
            )
        probability = np.full(1 + n_detectors, self.fraction / n_detectors)
        probability[0] = 1 - self.fraction
        changed = with_actions(tables, probability)
        # action k spares detector k - 1; action 0 has no pulse before the signal
        spared = np.arange(1 + n_detectors)[:, None] == np.arange(n_detectors) + 1
        bright = np.where(spared, 0.0, PREPULSE_PHOTONS)
        bright[0] = 0.0
        before = np.tile(bright, (len(changed.shares) // len(bright), 1))
        return replace(
            changed,
            shares=np.hstack((changed.shares, before)),
            mode_detector=np.append(changed.mode_detector, np.arange(n_detectors, dtype=np.uint8)),
            mode_offset_ps=np.append(changed.mode_offset_ps, np.full(n_detectors, -self.lead_ps)),
        )


class CalibrationForgery(PulseAttack):
    """Feed the calibration of the detectors' delays with light of one's own, so that they are set apart.

    Light for bit 0's detectors comes early in their gate, for bit 1's late: the way for a time-shift attack.

    Signature: mean arrival times of the two bits differ.
    Source: N. Jain et al., Phys. Rev. Lett. 107, 110501 (2011), arXiv:1103.2327.

    Attributes:
        apart_ps: Time between them.
    """

    name: ClassVar[str] = "calibration-forgery"

    apart_ps: float = Field(default=200.0, ge=-1e6, le=1e6)

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        bits = mode_bits(tables, setup)
        side = (bits == 1).astype(np.float64) - (bits == 0)
        return replace(tables, mode_offset_ps=tables.mode_offset_ps + side * self.apart_ps / 2)


class ClockSteering(Attack):
    """Steer the receiver's clock through its synchronisation signal: by a step, by a frequency, by a ramp of it.

    Signature: arrival times walk from where they were expected, at once by the step, then by the frequency.
    Source: the clock is that of `Tagger`; whoever holds the synchronisation signal holds its frequency.

    Attributes:
        step_ps: Added to the clock's reading.
        ppm: Added to the clock's frequency.
        ppm_per_s: Growth of what is added to the frequency.
    """

    name: ClassVar[str] = "clock-steering"
    varies: ClassVar[bool] = True

    step_ps: float = Field(default=0.0, ge=-1e12, le=1e12)
    ppm: float = Field(default=1.0, ge=-1000, le=1000)
    ppm_per_s: float = Field(default=0.0, ge=-100, le=100)

    def change_condition(self, condition: LinkCondition, setup: OpticalSetup, since_s: float) -> None:
        """Change the clock; the synchronisation monitor sees how far it has gone."""
        del setup
        condition.clock_step_ps += self.step_ps
        condition.clock_ppm += self.ppm + self.ppm_per_s * since_s
        walked_ps = (self.ppm + self.ppm_per_s * since_s / 2) * since_s * 1e6
        condition.monitors["sync_offset_ps"] += self.step_ps + walked_ps

"""Attacks that measure what was sent and send something else.

Each measures what the sender prepared, so none works behind another attack that sends light of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import Attack
from qkdhw_emulators.optics.attacks.blinding import AfterGate, BlindingCw
from qkdhw_emulators.optics.attacks.hidden import (
    Array,
    PulseAttack,
    by_state,
    light_of,
    mode_bases,
    mode_bits,
    sent,
    with_actions,
)
from qkdhw_emulators.optics.pulse_tables import PulseTables
from qkdhw_emulators.optics.setup import N_BASES_MAX, Fraction01, OpticalSetup


def _results(tables: PulseTables, n_bases: int, error: float, fraction: float) -> Array:
    """Probability of each action (n_choices, 1, 1, 1 + 2 n_bases): let pass, then (her basis, her bit)."""
    _, basis, bit = sent(tables)
    probability = np.full((tables.n_choices, 1, 1, 1 + 2 * n_bases), 1 - fraction)
    for eve in range(n_bases):
        for found in (0, 1):
            same = np.where(bit == found, 1 - error, error)
            probability[:, 0, 0, 1 + 2 * eve + found] = fraction / n_bases * np.where(basis == eve, same, 0.5)
    return probability


class InterceptResend(Attack):
    """Measure in a random basis, send what was found on.

    The pulse that is sent on has the mean photon number of the one that was taken, so that no rate changes. Of a pair
    the receiver's photon is attacked.

    Signature: QBER rises by fraction/4 with two bases, by fraction/3 with three.
    Source: C. H. Bennett et al., J. Cryptology 5, 3 (1992), section on intercept/resend.

    Attributes:
        fraction: Share of pulses that are attacked.
        bases: In how many bases it measures.
        error: Probability that it reads a bit wrong in the right basis.
    """

    name: ClassVar[str] = "intercept-resend"

    fraction: Fraction01 = 1.0
    bases: Literal[2, 3] = 2
    error: Fraction01 = 0.0

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup as it is, but with pairs one whose receiver errs as much more as photons were measured."""
        del since_s
        if not setup.source.of_pairs:
            return setup
        measured_in = [1 / self.bases if basis < self.bases else 0.0 for basis in range(N_BASES_MAX)]
        contrast = [1 - self.fraction * (1 - share * (1 - 2 * self.error)) for share in measured_in]
        misalignment = tuple(
            (1 - (1 - 2 * e) * c) / 2 for e, c in zip(setup.receiver.misalignment, contrast, strict=True)
        )
        receiver = setup.receiver.model_copy(update={"misalignment": misalignment})
        return setup.model_copy(update={"receiver": receiver})

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        del setup
        changed = with_actions(tables, _results(tables, self.bases, self.error, self.fraction))
        shares = by_state(changed, changed.shares, 1 + 2 * self.bases)
        for eve in range(self.bases):
            for found in (0, 1):
                shares[..., 1 + 2 * eve + found, :] = light_of(tables, eve, found)
        return changed


class FakedStates(PulseAttack):
    """Send the opposite bit in the opposite basis, when the detector of that bit is less efficient.

    Light for bit 0's detector comes early, for bit 1's late; at these times the other detector's efficiency is lower
    by the given ratio. The profile of a gate comes on top.

    Signature: with ratio r the QBER is 2r / (1 + 3r): 0 at r = 0, 1/4 at 0.2, 1/2 at 1; the gain is (1 + 3r) / 4 of
    what it was; the bit depends on the time of arrival.
    Source: V. Makarov, A. Anisimov, J. Skaar, Phys. Rev. A 74, 022313 (2006), arXiv:quant-ph/0511032.

    Attributes:
        efficiency_ratio: Efficiency of the less efficient detector over the other's.
        shift_ps: How much early and late the light comes.
    """

    name: ClassVar[str] = "faked-states"

    efficiency_ratio: Fraction01 = 0.1
    shift_ps: float = Field(default=100.0, ge=0, le=1e6)

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        n_bases, bits = setup.source.bases, mode_bits(tables, setup)
        changed = with_actions(tables, _results(tables, n_bases, error=0.0, fraction=1.0))
        shares = by_state(changed, changed.shares, 1 + 2 * n_bases)
        offset_ps = by_state(changed, changed.state_offset_ps, 1 + 2 * n_bases)
        for eve in range(n_bases):
            for found in (0, 1):
                action = 1 + 2 * eve + found
                efficiency = np.where(bits == 1 - found, self.efficiency_ratio, 1.0)
                shares[..., action, :] = light_of(tables, (eve + 1) % n_bases, 1 - found) * efficiency
                offset_ps[..., action] += self.shift_ps if found else -self.shift_ps
        return changed


class BeamSplitterWavelength(PulseAttack):
    """Choose the basis of a passive receiver by the wavelength, since its beam splitter depends on it.

    Measures in a random basis and sends what was found on, at a wavelength that the splitter sends to the same basis.

    Signature: QBER as before if control is perfect, else it rises by up to (1 - control) / 2; clicks in both bases at
    once become rare. A spectral filter before the receiver is the remedy.
    Source: H.-W. Li et al., Phys. Rev. A 84, 062308 (2011).

    Attributes:
        fraction: Share of pulses that are attacked.
        control: Share of the light that goes to the basis that the attacker wants.
    """

    name: ClassVar[str] = "beam-splitter-wavelength"

    fraction: Fraction01 = 1.0
    control: Fraction01 = 0.99

    def check(self, setup: OpticalSetup) -> None:
        """Refuse a receiver that switches.

        Raises:
            ConfigurationError: It switches.
        """
        if setup.receiver.basis_choice != "passive":
            raise ConfigurationError(
                f"attack {self.name}: the receiver chooses its basis actively, no beam splitter does",
                remedy="use a link with basis_choice passive, or another attack",
            )

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        n_bases, bases = setup.source.bases, mode_bases(tables, setup)
        changed = with_actions(tables, _results(tables, n_bases, 0.0, self.fraction))
        shares = by_state(changed, changed.shares, 1 + 2 * n_bases)
        for eve in range(n_bases):
            for found in (0, 1):
                light = light_of(tables, eve, found)
                total = light.sum(axis=-1, keepdims=True)
                wanted = np.where(bases == eve, light, 0.0)
                shares[..., 1 + 2 * eve + found, :] = self.control * _scaled(wanted, total) + (
                    1 - self.control
                ) * _scaled(light - wanted, total)
        return changed


def check_order(attacks: Sequence[Attack]) -> None:
    """Refuse an attack that measures what the sender prepared behind one that has sent light of its own.

    Args:
        attacks: From the sender to the receiver.

    Raises:
        ConfigurationError: Two such attacks are on at the same time; the message names both.
    """
    measuring = (InterceptResend, FakedStates, BeamSplitterWavelength)
    for first, second in itertools.combinations(attacks, 2):
        at_once = first.is_on(second.from_s) or second.is_on(first.from_s)
        if at_once and isinstance(second, measuring) and isinstance(first, (*measuring, BlindingCw, AfterGate)):
            raise ConfigurationError(
                f"attack {second.name}: it measures what the sender prepared, and {first.name} before it sends light "
                f"of its own from {max(first.from_s, second.from_s):g} s",
                remedy="have one of them on at a time, or give blinding and after-gate attacks last",
            )


def _scaled(light: Array, total: Array) -> Array:
    """Scale light of some modes to a total; none stays none."""
    own = light.sum(axis=-1, keepdims=True)
    factor: Array = np.divide(total, own, out=np.zeros_like(total), where=own > 0)
    return light * factor

"""Attacks with bright light that makes a detector click when the attacker wants."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import LinkCondition
from qkdhw_emulators.optics.attacks.hidden import (
    PulseAttack,
    bob_probabilities,
    detection_probability,
    with_actions,
)
from qkdhw_emulators.optics.pulse_tables import PulseTables
from qkdhw_emulators.optics.setup import OpticalSetup


def with_faked_clicks(tables: PulseTables, eve_gain: float) -> PulseTables:
    """Replace all light by what a copy of the receiver in the attacker's hands tells to send.

    The copy has the receiver's way of choosing bases and sees what the receiver would have seen, but no dark counts.
    Of several clicks one counts. What it found, bright light makes the same detector click at the same time; a receiver
    that switches clicks only if it has chosen the same basis.
    """
    n_bob, n_modes = tables.n_bob, tables.shares.shape[1]
    shape = (tables.n_choices, n_bob, tables.n_hidden)
    shares = tables.shares.reshape(*shape, n_modes)
    total = shares.sum(axis=-1, keepdims=True)
    where = np.divide(shares, total, out=np.full_like(shares, 1 / n_modes), where=total > 0)
    # her basis moves from the receiver's place to the front of the actions: (choice, hidden, her basis, mode)
    hers = np.moveaxis(where, 1, 2) * bob_probabilities(tables)[:, None]
    seen = np.moveaxis(detection_probability(tables, eve_gain).reshape(shape), 1, 2)
    n_actions = n_bob * n_modes
    changed = with_actions(tables, hers.reshape(tables.n_choices, 1, tables.n_hidden, n_actions))
    faked = np.zeros((*shape, n_bob, n_modes, n_modes))
    for basis in range(n_bob):
        for mode in range(n_modes):
            faked[:, basis, :, basis, mode, mode] = seen[:, :, basis]
    return replace(
        changed,
        shares=faked.reshape(-1, n_modes),
        photons=np.ones_like(changed.photons),
        bright=np.ones_like(changed.bright),
    )


class BlindingCw(PulseAttack):
    """Blind all detectors by steady light, make one click by a faked state on top.

    A blinded detector is a photodiode: no photon, dark count or afterpulse makes it click. A receiver that switches
    clicks if its basis is the attacker's, with half the power in each detector else it does not; in a passive receiver
    one detector is addressed.

    Signature: no two clicks in a pulse, no dark counts, QBER near that of the optics, and the gain of an active
    receiver with two even bases is half of what it was times the attacker's gain. The photocurrent rises.
    Source: L. Lydersen et al., Nat. Photonics 4, 686 (2010), arXiv:1008.4593; I. Gerhardt et al., Nat. Commun. 2, 349
    (2011), arXiv:1011.0105.

    Attributes:
        photocurrent_ua: What the detectors' bias draws.
        input_power_dbm: Blinding light at the receiver.
        eve_gain: How much more light the attacker's receiver detects: she sits near the sender.
    """

    name: ClassVar[str] = "blinding-cw"

    photocurrent_ua: float = Field(default=20.0, ge=0, le=1e6)
    input_power_dbm: float = Field(default=-30.0, ge=-120, le=40)
    eve_gain: float = Field(default=1.0, ge=0, le=1e6)

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        del setup
        return with_faked_clicks(tables, self.eve_gain)

    def change_condition(self, condition: LinkCondition, setup: OpticalSetup, since_s: float) -> None:
        """Blind the detectors; the monitors see it."""
        del setup, since_s
        for detector in condition.detectors:
            detector.blinded = True
        condition.monitors["input_power_dbm"] = self.input_power_dbm
        condition.monitors["photocurrent_ua"] = self.photocurrent_ua


class BlindingPulsed(BlindingCw):
    """Blind all detectors by pulses between the signals: as steady light, with less of it.

    Signature: as steady blinding; the photocurrent between the pulses is normal, so that a slow monitor reads little
    more than ever, and the mean power at the input is what shows.
    Source: L. Lydersen et al., Opt. Express 18, 27938 (2010), on blinding by heat and by pulses.

    Attributes:
        photocurrent_ua: What the detectors' bias draws.
        input_power_dbm: Mean blinding light at the receiver.
        eve_gain: How much more light the attacker's receiver detects: she sits near the sender.
    """

    name: ClassVar[str] = "blinding-pulsed"

    photocurrent_ua: float = Field(default=0.02, ge=0, le=1e6)
    input_power_dbm: float = Field(default=-45.0, ge=-120, le=40)


class AfterGate(PulseAttack):
    """Send bright light after the gate, when a gated detector is a photodiode and still reports a click.

    Signature: clicks lie behind the gate; no two clicks in a pulse; dark counts stay.
    Source: C. Wiechers et al., New J. Phys. 13, 013043 (2011), arXiv:1009.2683.

    Attributes:
        after_ps: Time from the end of the gate.
        eve_gain: How much more light the attacker's receiver detects: she sits near the sender.
    """

    name: ClassVar[str] = "after-gate"

    after_ps: float = Field(default=100.0, ge=0, le=1e6)
    eve_gain: float = Field(default=1.0, ge=0, le=1e6)

    def check(self, setup: OpticalSetup) -> None:
        """Refuse a free-running receiver.

        Raises:
            ConfigurationError: It is free-running.
        """
        if not setup.receiver.gate.width_ps:
            raise ConfigurationError(
                f"attack {self.name}: the receiver is free-running, it has no gates",
                remedy="use a link whose receiver has gate.width_ps above 0",
            )

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        gate = setup.receiver.gate
        changed = with_faked_clicks(tables, self.eve_gain)
        late_ps = gate.offset_ps + gate.width_ps / 2 + self.after_ps
        return replace(changed, state_offset_ps=changed.state_offset_ps + late_ps)

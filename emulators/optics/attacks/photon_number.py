"""The attack on pulses of more than one photon."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attacks.hidden import (
    Array,
    PulseAttack,
    bob_probabilities,
    by_state,
    detection_probability,
    sent,
)
from qkdhw_emulators.optics.pulse_tables import POISSON, PulseTables
from qkdhw_emulators.optics.setup import OpticalSetup


class PhotonNumberSplitting(PulseAttack):
    """Count the photons of each pulse without touching them, block single ones, keep all but one of the others.

    One photon of a pulse of several goes on through a lossless channel, with a probability that keeps the signal's
    gain. If the channel loses so little that this is not enough, some single photons are let pass too.

    Signature: QBER and the gain of the signal are as before, the gains of the decoys fall towards
    P(n >= 2 | decoy) / P(n >= 2 | signal) of the signal's. Two clicks in a pulse vanish but for dark counts.
    Source: G. Brassard, N. Luetkenhaus, T. Mor, B. C. Sanders, Phys. Rev. Lett. 85, 1330 (2000).
    """

    name: ClassVar[str] = "photon-number-splitting"

    def check(self, setup: OpticalSetup) -> None:
        """Refuse a source that makes no weak coherent pulses.

        Raises:
            ConfigurationError: It makes none.
        """
        if setup.source.kind != "weak-coherent":
            raise ConfigurationError(
                f"attack {self.name}: it needs weak coherent pulses, not {setup.source.kind}",
                remedy="choose a link with a weak-coherent source",
            )

    def change_tables(self, tables: PulseTables, setup: OpticalSetup) -> PulseTables:
        """Return what pulses send to the detectors under the attack."""
        if (tables.photons != POISSON).any():
            raise ConfigurationError(
                f"attack {self.name}: another attack has changed the photon numbers of these pulses",
                remedy="have one of them on at a time",
            )
        mu = np.array([i.mean_photon_number for i in setup.source.intensities])
        intensity, basis, _ = sent(tables)
        states_per_choice = tables.n_bob * tables.n_hidden
        channel = 10 ** (-setup.channel.loss_db / 10)
        per_state = (mu[intensity] * channel).repeat(states_per_choice)[:, None]
        photon = np.divide(tables.shares, per_state, out=np.zeros_like(tables.shares), where=per_state > 0)
        signal = (intensity == 0) & (basis == 0)
        gain = _mean_over_states(tables, detection_probability(tables))[signal].mean()
        detected = _mean_over_states(tables, photon.sum(axis=1))[signal].mean()
        forwarded = forwarding_probability(mu, _at_most_one(float(gain), float(detected)))
        return replace(
            tables,
            photons=np.ones_like(tables.photons),
            shares=photon * forwarded[intensity].repeat(states_per_choice)[:, None],
        )


def _mean_over_states(tables: PulseTables, values: Array) -> Array:
    """Average what differs from state to state over all that the sender does not choose: (n_choices,)."""
    hidden = np.diff(tables.hidden_cumulative, axis=2, prepend=0.0)
    probability = hidden * bob_probabilities(tables)[:, None]
    mean: Array = (by_state(tables, values)[..., 0] * probability).sum(axis=(1, 2))
    return mean


def forwarding_probability(mean_photon_number: Array, wanted: float) -> Array:
    """Say how often one photon of a pulse goes on, for each intensity, so that it does `wanted` times for the first.

    Args:
        mean_photon_number: mu_k, the signal first.
        wanted: Probability for the signal; if even all pulses with a photon are too few, that many it is.
    """
    single = mean_photon_number * np.exp(-mean_photon_number)
    several = np.maximum(-np.expm1(-mean_photon_number) - single, 0.0)
    of_several = _at_most_one(wanted, several[0])
    of_single = _at_most_one(max(0.0, wanted - several[0]), single[0])
    probability: Array = of_several * several + of_single * single
    return probability


def _at_most_one(wanted: float, available: float) -> float:
    """Return the share of what is available that is wanted; none of nothing, as of dark light or dead detectors."""
    return min(1.0, wanted / available) if available > 0 else 0.0

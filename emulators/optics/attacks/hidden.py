"""What an eavesdropper does to a pulse, as further states of the pulse tables: the tools that attacks share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import Attack
from qkdhw_emulators.optics.pulse_tables import POISSON, PulseTables
from qkdhw_emulators.optics.setup import N_BASES_MAX, PROBABILITY_STEPS, OpticalSetup

Array = NDArray[np.float64]
MAX_STATES = 1 << 16


def _noise_nodes() -> tuple[Array, Array]:
    """Return deviations and weights that average over a standard normal law, all within the five of the noise."""
    deviations, weights = np.polynomial.hermite_e.hermegauss(9)
    return deviations, weights / weights.sum()


NOISE_NODES = _noise_nodes()


def with_actions(tables: PulseTables, probability: Array) -> PulseTables:
    """Let an eavesdropper do one of several things to each pulse; each state becomes as many states, still alike.

    Args:
        tables: What was before; its arrays are copied.
        probability: Of each action: (n_choices, n_bob, n_hidden, n_actions), or a shape that broadcasts to it.

    Raises:
        ConfigurationError: Attacks of several kinds at once make too many states.
    """
    before = np.diff(tables.hidden_cumulative, axis=2, prepend=0.0)
    n_actions = probability.shape[-1]
    if before.size * n_actions > MAX_STATES:
        raise ConfigurationError(
            f"these attacks together have {before.size * n_actions} states of a pulse, the limit is {MAX_STATES}",
            remedy="have fewer of them on at the same time",
        )
    joint = before[..., None] * probability
    cumulative = np.cumsum(joint.reshape(*before.shape[:2], -1), axis=2)
    cumulative /= cumulative[..., -1:]
    return replace(
        tables,
        hidden_cumulative=cumulative,
        photons=np.repeat(tables.photons, n_actions),
        shares=np.repeat(tables.shares, n_actions, axis=0),
        bright=np.repeat(tables.bright, n_actions),
        state_offset_ps=np.repeat(tables.state_offset_ps, n_actions),
    )


def by_state(tables: PulseTables, values: Array, n_actions: int = 1) -> Array:
    """View a table of states as (n_choices, n_bob, n_hidden, n_actions, ...)."""
    return values.reshape(tables.n_choices, tables.n_bob, -1, n_actions, *values.shape[1:])


def bob_probabilities(tables: PulseTables) -> Array:
    """Return how often the receiver measures in each basis; one value for a passive one."""
    steps: Array = np.diff(tables.bob_thresholds.astype(np.float64), prepend=0.0)
    shares: Array = steps / steps.sum()
    return shares


def sent(tables: PulseTables) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return intensity, basis and bit of each choice of the sender."""
    choice = np.arange(tables.n_choices)
    return choice // (2 * N_BASES_MAX), choice // 2 % N_BASES_MAX, choice % 2


def light_of(tables: PulseTables, basis: int, bit: int) -> Array:
    """Return what each state would send to the modes had the pulse been prepared in another basis and bit.

    Returns:
        Shares (n_choices, n_bob, n_hidden, n_modes). There is a third basis, whether the sender uses it or not.
    """
    intensity, _, _ = sent(tables)
    return by_state(tables, tables.shares)[:, :, :, 0][(intensity * N_BASES_MAX + basis) * 2 + bit]


def mode_bits(tables: PulseTables, setup: OpticalSetup) -> NDArray[np.int64]:
    """Return the bit of each mode's detector; -1 if it is for both bits, as a time-bin detector is."""
    bits = np.array([int(meaning[-1]) if meaning[-1].isdigit() else -1 for meaning in setup.receiver.meaning])
    return bits[tables.mode_detector]


def mode_bases(tables: PulseTables, setup: OpticalSetup) -> NDArray[np.int64]:
    """Return the basis that a click in each mode of a passive receiver means."""
    index = {"key": 0, "test": 1, "third": 2}
    bases = np.array([index[meaning.rstrip("01")] for meaning in setup.receiver.meaning])
    return bases[tables.mode_detector]


def detection_probability(tables: PulseTables, gain: float = 1.0) -> Array:
    """Return the probability that a pulse in each state is detected at all: (n_states,).

    Poissonian light is averaged over the noise of its intensity and over whether the pulse before was a signal.

    Args:
        tables: The optics.
        gain: Factor on the light of Poissonian states, and on the probability of each photon of other ones.
    """
    mean = tables.shares.sum(axis=1) * gain
    photons = np.where(tables.photons == POISSON, 0, tables.photons)
    poissonian = np.zeros_like(mean)
    after_signal = float(tables.intensity_thresholds[0]) / PROBABILITY_STEPS
    for pattern, often in ((1.0, 1 - after_signal), (1 + tables.pattern_effect, after_signal)):
        for deviation, weight in zip(*NOISE_NODES, strict=True):
            poissonian -= often * weight * np.expm1(-mean * pattern * (1 + deviation * tables.intensity_noise))
    exact = 1 - (1 - np.minimum(mean, 1.0)) ** photons
    found: Array = np.where(tables.photons == POISSON, poissonian, exact)
    return found


class PulseAttack(Attack):
    """Base of attacks on pulses that a sender prepares."""

    def change_setup(self, setup: OpticalSetup, since_s: float) -> OpticalSetup:
        """Return the setup as it is; refuse one whose source makes pairs.

        Raises:
            ConfigurationError: It makes pairs, or the attack needs something else that the setup has not.
        """
        del since_s
        if setup.source.of_pairs:
            raise ConfigurationError(
                f"attack {self.name}: the sender must prepare pulses, this source makes pairs ({setup.source.kind})",
                remedy="choose a prepare-and-measure link",
            )
        self.check(setup)
        return setup

    def check(self, setup: OpticalSetup) -> None:
        """Refuse a setup that has not what the attack needs.

        Raises:
            ConfigurationError: It has not.
        """
        del setup

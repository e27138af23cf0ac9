"""From the parts of a link with a source of pairs to where a pair, or a pulse of them, is detected at the two ends.

The pairs are maximally entangled: measured in one basis, the two ends give equal bits. Errors of the preparation, of
extinction and of both ends' optics shorten the Bloch vectors, 1 - 2e = (1 - 2e1)(1 - 2e2)..., the channel turns the
far photon's.

A pair of a steady pump is detected at one place or none at either end; the joint probability of places with weights v,
w and directions a, b is v w (1 + a . b) / 4.

A pulsed pump makes two independent thermal modes of mean lambda each (Ma, Fung, Lo, PRA 76 012307, arXiv:
quant-ph/0703122). The pairs of a pulse are indistinguishable, and each photon may meet another basis. All of this is
kept, for the state is Gaussian. No click in a set of places has the probability

    1 / det(1 + lambda (A + B - A B))

where A and B are the sums of weight (1 + direction . sigma) / 2 over the set's places at the two ends; differences give
the probability of clicks in exactly a set. Left out: several photons of a pulse at one place are one arrival.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.link_tables import AXES, outlets, receiver_bases
from qkdhw_emulators.optics.setup import OpticalSetup

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MAX_PLACES = 18  # of a pulsed source, both ends together: 2^18 sets
RAREST = 1e-12  # of what is seen; below are rounding errors


@dataclass(frozen=True, slots=True)
class Places:
    """Where one end may detect a photon: a detector and a time.

    Attributes:
        detector: uint8 (n,).
        offset_ps: float64 (n,).
        weight: float64 (n_ways, n), for each basis that the end may switch to (1 for a passive end): probability that a
            photon whose state fits is detected here.
        direction: float64 (n, 3), of length 0 to 1.
    """

    detector: NDArray[np.uint8]
    offset_ps: Floats
    weight: Floats
    direction: Floats

    def __len__(self) -> int:
        return len(self.detector)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What may be seen of a pair or of a pulse.

    Attributes:
        probability: float64 (n_ways, n_outcomes), for each of Alice's ways and, faster, each of Bob's; nothing is seen
            in what is left to 1.
        at_alice: bool (n_outcomes, n_places), where it is detected.
        at_bob: bool (n_outcomes, n_places).
    """

    probability: Floats
    at_alice: Flags
    at_bob: Flags


def build_places(setup: OpticalSetup, rotation: Floats | None = None) -> tuple[Places, Places]:
    """Return where Alice and Bob may detect photons.

    Args:
        setup: The link.
        rotation: (3, 3), what the channel does to the Bloch vector of Bob's photon: a rotation, or what shrinks
            it; None: nothing.

    Raises:
        ConfigurationError: The source makes no pairs, or an end needs pulses and the pump is steady.
    """
    source, sender_receiver = setup.source, setup.sender_receiver
    if sender_receiver is None:
        raise ConfigurationError(f"source.kind: {source.kind} makes no pairs", remedy="use optics.link_tables")
    made: list[Places] = []
    for name, receiver in (("sender_receiver", sender_receiver), ("receiver", setup.receiver)):
        switched = receiver.basis_choice == "active"
        if source.kind == "pair-cw" and (switched or receiver.gate.width_ps or source.encoding == "time-bin"):
            raise ConfigurationError(
                f"{name}: a basis switch, gates and time bins need pulses, and a steady pump has none",
                remedy="use a passive basis choice and free-running detectors, or source.kind pair-pulsed",
            )
        end = setup.model_copy(update={"receiver": receiver})
        found = outlets(end)
        basis = np.array([o.basis for o in found])
        ways = basis == np.arange(receiver_bases(end))[:, None] if switched else np.ones((1, len(found)), bool)
        made.append(
            Places(
                np.array([o.detector for o in found], np.uint8),
                np.array([o.time_ps for o in found], np.float64),
                np.array([o.weight for o in found]) * ways,
                np.array([o.direction for o in found]),
            )
        )
    alice, bob = made
    contrast = 1 - 2 * np.array(source.preparation_error)
    contrast[0] *= 1 - 2 / (1 + 10 ** (source.extinction_ratio_db / 10))
    axes = AXES[source.encoding]
    state = axes.T * contrast @ axes  # of Bob's photon, as a linear function of Alice's direction
    turned = alice.direction @ state @ (np.eye(3) if rotation is None else rotation).T
    bob_weight = bob.weight * 10 ** (-setup.channel.loss_db / 10)
    return (
        Places(alice.detector, alice.offset_ps, alice.weight, turned),
        Places(bob.detector, bob.offset_ps, bob_weight, bob.direction),
    )


def steady_outcomes(alice: Places, bob: Places) -> Outcomes:
    """Tabulate where a single pair is detected: one place or none at either end, the last outcome (none) left out."""
    (v,), (w,) = alice.weight, bob.weight
    n_a, n_b = len(v), len(w)
    table = np.zeros((n_a + 1, n_b + 1))
    table[:n_a, :n_b] = np.outer(v, w) * (1 + alice.direction @ bob.direction.T) / 4
    table[:n_a, n_b] = v / 2 - table[:n_a, :n_b].sum(axis=1)
    table[n_a, :n_b] = w / 2 - table[:n_a, :n_b].sum(axis=0)
    at_alice = np.repeat(np.eye(n_a + 1, n_a, dtype=bool), n_b + 1, axis=0)
    at_bob = np.tile(np.eye(n_b + 1, n_b, dtype=bool), (n_a + 1, 1))
    return Outcomes(np.clip(table, 0.0, 1.0).reshape(1, -1)[:, :-1], at_alice[:-1], at_bob[:-1])


def pulse_outcomes(alice: Places, bob: Places, mean_pairs: float) -> Outcomes:
    """Tabulate which sets of places click in a pulse.

    Args:
        alice: Places of one end.
        bob: Places of the other.
        mean_pairs: lambda, mean pairs in each of the two modes.

    Raises:
        ConfigurationError: There are more sets than can be tabulated.
    """
    n = len(alice) + len(bob)
    if n > MAX_PLACES:
        raise ConfigurationError(
            f"receivers: {n} places for photons, at most {MAX_PLACES} are simulated for pulsed pairs",
            remedy="use fewer bases or detectors, or a test_loss_db below 3 so that side bins are left out",
        )
    ways = itertools.product(alice.weight, bob.weight)
    probability = np.array([_click_sets(alice, bob, v, w, mean_pairs) for v, w in ways])
    kept = np.flatnonzero(probability.max(axis=0) > RAREST * probability.sum(axis=1).max())
    at_alice, at_bob = (_subsets(len(end)) for end in (alice, bob))
    return Outcomes(probability[:, kept], at_alice[kept // len(at_bob)], at_bob[kept % len(at_bob)])


def _click_sets(alice: Places, bob: Places, v: Floats, w: Floats, mean_pairs: float) -> Floats:
    """Return the probability of clicks in exactly each set of places, float64 (2^n,); 0 for the empty set."""
    n = len(v) + len(w)
    a, b = (_sums(weight, end.direction) for weight, end in ((v, alice), (w, bob)))
    some = _some_click(a, b, mean_pairs)
    # no click outside of a set: 1 - some[its complement]; differences leave those with clicks in all of it
    exactly = -some[::-1, ::-1].reshape((2,) * n)
    for axis in range(n):
        without, with_it = np.moveaxis(exactly, axis, 0)
        with_it -= without
    probability = np.clip(exactly.ravel(), 0.0, 1.0)
    probability[0] = 0.0
    return probability


def _some_click(a: tuple[Floats, Floats], b: tuple[Floats, Floats], mean_pairs: float) -> Floats:
    """Return the probability of any click in each set of Alice's places and each of Bob's, float64 (2^n_a, 2^n_b).

    With K = A + B - A B, A = a0 + a . sigma and B alike, det(1 + lambda K) = 1 + lambda tr K + lambda^2 det K, and
    det K = (tr K / 2)^2 - |a (1 - b0) + b (1 - a0)|^2 + |a x b|^2.
    """
    (a0, a_vector), (b0, b_vector) = a, b
    a0, b0 = a0[:, None], b0[None, :]
    aa, bb = (a_vector**2).sum(axis=1)[:, None], (b_vector**2).sum(axis=1)[None, :]
    ab = a_vector @ b_vector.T
    half_trace = a0 + b0 - a0 * b0 - ab
    length2 = aa * (1 - b0) ** 2 + bb * (1 - a0) ** 2 + 2 * ab * (1 - a0) * (1 - b0)
    excess = mean_pairs * (2 * half_trace + mean_pairs * (half_trace**2 - length2 + aa * bb - ab**2))
    some: Floats = excess / (1 + excess)
    return some


def _sums(weight: Floats, direction: Floats) -> tuple[Floats, Floats]:
    """Return a0 and a of each set of places."""
    sets = _subsets(len(weight)).astype(np.float64)
    return sets @ weight / 2, sets @ (weight[:, None] * direction) / 2


def _subsets(n: int) -> Flags:
    """Return all subsets of n things, bool (2^n, n), the first thing in the highest bit."""
    subsets: Flags = (np.arange(1 << n)[:, None] >> np.arange(n)[::-1] & 1) == 1
    return subsets

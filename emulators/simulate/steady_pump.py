"""What a link with a steady pump is expected to count, in closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qkdhw_emulators.optics.closed_forms import (
    SteadyPairs,
    afterpulse_fano,
    afterpulse_multiplier,
    fano,
    measured_rate_hz,
    steady_pairs,
    surviving_children,
)
from qkdhw_emulators.optics.setup import BASES, Detector, OpticalSetup, Receiver
from qkdhw_emulators.simulate.observation import coincidence_sigma_ps, coincidence_window_ps

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


@dataclass(frozen=True, slots=True)
class ExpectedClicks:
    """Of one detector.

    Attributes:
        rate_hz: Clicks per second.
        fano: Variance / mean of their number.
    """

    rate_hz: float
    fano: float


def expected_singles(setup: OpticalSetup, receiver: Receiver) -> list[ExpectedClicks]:
    """Return the clicks of each detector of one end whose bases a splitter chooses."""
    return [_clicks(d, _offered_hz(setup, receiver, i)) for i, d in enumerate(receiver.detectors)]


def expected_coincidences(setup: OpticalSetup, basis: int) -> SteadyPairs | None:
    """Return the coincidences in one basis, or None if an end has no two detectors for it.

    Dead times take their share of each end's detectors, as if they were independent of the pairs.
    """
    ends = (setup.sender_receiver or setup.receiver, setup.receiver)
    eta, dark_hz, live = [], [], 1.0
    for receiver in ends:
        own = [i for i, m in enumerate(receiver.meaning) if m in {f"{BASES[basis]}{bit}" for bit in (0, 1)}]
        if len(own) != 2:
            return None
        eta.append(sum(chance_of_click(setup, receiver, i) for i in own))
        dark_hz.append(sum(receiver.detectors[i].dark_count_rate_hz for i in own))
        clicks = [(_clicks(receiver.detectors[i], n).rate_hz, n) for i in own if (n := _offered_hz(setup, receiver, i))]
        live *= sum(counted for counted, _ in clicks) / sum(offered for _, offered in clicks) if clicks else 1.0
    found = steady_pairs(
        setup.source.pair_rate_hz,
        (eta[0], eta[1]),
        (dark_hz[0], dark_hz[1]),
        coincidence_window_ps(setup) * 1e-12,
        FWHM_PER_SIGMA * coincidence_sigma_ps(setup) * 1e-12,
        unequal_bits(setup, basis),
    )
    return SteadyPairs(
        found.singles_a_hz, found.singles_b_hz, found.true_hz * live, found.accidental_hz * live, found.qber
    )


def unequal_bits(setup: OpticalSetup, basis: int) -> float:
    """Return the probability that a pair gives unequal bits in a basis: independent flips."""
    ends = (setup.sender_receiver or setup.receiver, setup.receiver)
    flips = [setup.source.preparation_error[basis], *(r.misalignment[basis] for r in ends)]
    if basis == 0:
        flips.append(1 / (1 + 10 ** (setup.source.extinction_ratio_db / 10)))
    return (1 - math.prod(1 - 2 * e for e in flips)) / 2


def chance_of_click(setup: OpticalSetup, receiver: Receiver, index: int) -> float:
    """Return a photon's chance to be detected by a detector."""
    names: tuple[str, ...] = BASES
    basis = names.index(receiver.meaning[index].rstrip("01"))
    others = 2 if any(m.startswith("third") for m in receiver.meaning) else 1
    p = receiver.key_basis_probability
    loss_db = receiver.loss_db + (receiver.test_loss_db if basis else 0.0)
    loss_db += setup.channel.loss_db if receiver is setup.receiver else 0.0
    return (p if basis == 0 else (1 - p) / others) / 2 * 10 ** (-loss_db / 10) * receiver.detectors[index].efficiency


def noise_hz(setup: OpticalSetup, receiver: Receiver, index: int) -> float:
    """Return a detector's dark counts and background per second, dead time left aside."""
    background_hz = 0.0
    if receiver is setup.receiver:  # it enters behind the fibre
        way = chance_of_click(setup, receiver, index) * 10 ** (setup.channel.loss_db / 10)
        background_hz = setup.channel.background_rate_hz * way
    return background_hz + receiver.detectors[index].dark_count_rate_hz


def _offered_hz(setup: OpticalSetup, receiver: Receiver, index: int) -> float:
    light_hz = setup.source.pair_rate_hz * chance_of_click(setup, receiver, index)
    return light_hz + noise_hz(setup, receiver, index)


def _clicks(detector: Detector, offered_hz: float) -> ExpectedClicks:
    dead_s, kind = detector.dead_time_ns * 1e-9, detector.dead_time_kind
    children = surviving_children(detector, detector.dead_time_ns * 1e3, offered_hz * 1e-12)
    offered_hz *= afterpulse_multiplier(children)
    return ExpectedClicks(
        measured_rate_hz(offered_hz, dead_s, kind), fano(offered_hz, dead_s, kind) * afterpulse_fano(children)
    )

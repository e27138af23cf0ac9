"""What a link with a pulsed source of pairs is expected to count, in closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qkdhw_emulators.optics.closed_forms import gaussian_inside, pair_gain_and_qber, pulsed_fano, sigma_of_fwhm
from qkdhw_emulators.optics.expected import arrival_sigma_ps
from qkdhw_emulators.optics.setup import BASES, PS_PER_S, Detector, OpticalSetup, Receiver
from qkdhw_emulators.simulate.observation import coincidence_window_ps
from qkdhw_emulators.simulate.steady_pump import ExpectedClicks, chance_of_click, noise_hz, unequal_bits


@dataclass(frozen=True, slots=True)
class PulsedPairs:
    """Of pulses that both ends detect in one basis.

    Attributes:
        gain: Their share of all pulses.
        qber: Their error rate, with a random bit for two clicks of an end.
    """

    gain: float
    qber: float


def expected_pulses(setup: OpticalSetup, basis: int) -> PulsedPairs | None:
    """Return the pulses with clicks at both ends in one basis, or None where the closed form does not hold.

    It holds for pulses that click in their own period, seen by free-running detectors without afterpulses, two of a
    kind at each end, that are live again at the next pulse. Noise beside a pair makes two clicks of one, a random bit.
    """
    ends = (setup.sender_receiver or setup.receiver, setup.receiver)
    period_ps = setup.source.period_ps
    if setup.source.encoding == "time-bin" or coincidence_window_ps(setup) > period_ps:
        return None
    eta, noise = [], []
    for receiver in ends:
        own = [i for i, m in enumerate(receiver.meaning) if m in {f"{BASES[basis]}{bit}" for bit in (0, 1)}]
        if len(own) != 2 or not _fit(receiver, own, period_ps - coincidence_window_ps(setup)):
            return None
        eta.append(sum(chance_of_click(setup, receiver, i) for i in own))
        noise.append(1 - math.exp(-sum(noise_hz(setup, receiver, i) for i in own) * period_ps / PS_PER_S))
    error = unequal_bits(setup, basis)
    gain, qber = pair_gain_and_qber(setup.source.mean_pairs, eta[0], eta[1], noise[0], noise[1], error)
    quiet = math.sqrt((1 - noise[0]) * (1 - noise[1]))  # no noise at the other detector of either end
    return PulsedPairs(gain, 0.5 - (0.5 - qber) * quiet)


def expected_pulsed_singles(setup: OpticalSetup, receiver: Receiver) -> list[ExpectedClicks] | None:
    """Return the clicks of each detector of one end, or None where the closed form does not hold.

    Each has a thermal mode of every pulse, and what goes astray of the other. It holds for free-running detectors
    without afterpulses behind a splitter.
    """
    free = not receiver.gate.width_ps and receiver.basis_choice == "passive" and setup.source.encoding != "time-bin"
    if not free or any(d.afterpulse_probability or d.latches_above_hz for d in receiver.detectors):
        return None
    return [_clicks(setup, receiver, i) for i in range(len(receiver.detectors))]


def _clicks(setup: OpticalSetup, receiver: Receiver, index: int) -> ExpectedClicks:
    """Return a detector's clicks: at most one a pulse, none in the pulses that the dead time of one blinds.

    Without dead time all noise counts besides the light, whose photons of a pulse are one click.
    """
    detector, period_ps = receiver.detectors[index], setup.source.period_ps
    noise = noise_hz(setup, receiver, index) * period_ps / PS_PER_S
    mean = 2 * chance_of_click(setup, receiver, index) * setup.source.mean_pairs
    wrong = receiver.misalignment[BASES.index(receiver.meaning[index].rstrip("01"))]
    light = 1 - 1 / ((1 + mean * (1 - wrong)) * (1 + mean * wrong))
    dead_ps = 1000 * (detector.dead_time_ns + detector.recovery_ns)
    if not dead_ps:
        clicks = light + noise
        return ExpectedClicks(clicks * PS_PER_S / period_ps, 1 - light**2 / clicks if clicks else 1.0)
    p = 1 - math.exp(-noise) * (1 - light)
    at_bob = receiver is setup.receiver
    sigma_ps = math.sqrt(2) * (arrival_sigma_ps(setup) if at_bob else sigma_of_fwhm(setup.source.pulse_fwhm_ps))
    last = round(dead_ps / period_ps)
    over_ps = dead_ps - last * period_ps
    inside = gaussian_inside(-math.inf, over_ps, sigma_ps) if sigma_ps else float(over_ps > 0)
    blind = last - 1 + inside if last else 0.0
    clicks = p * (1 - p) ** blind if detector.dead_time_kind == "paralysable" else p / (1 + blind * p)
    return ExpectedClicks(clicks * PS_PER_S / period_ps, pulsed_fano(p, blind, detector.dead_time_kind))


def _fit(receiver: Receiver, own: list[int], longest_ps: float) -> bool:
    """Tell whether detectors are of a kind, without a gate or afterpulses, and dead for at most so long."""
    detectors = [receiver.detectors[i] for i in own]
    alike = len({(d.efficiency, d.dark_count_rate_hz) for d in detectors}) == 1
    return alike and not receiver.gate.width_ps and all(_forgets(d, longest_ps) for d in detectors)


def _forgets(detector: Detector, longest_ps: float) -> bool:
    dead_ps = 1000 * (detector.dead_time_ns + detector.recovery_ns)
    return dead_ps <= longest_ps and not detector.afterpulse_probability and not detector.latches_above_hz

"""Closed forms of optical links: what the simulation is judged by, so nothing of it is used here.

Probabilities and efficiencies lie in 0..1. Sources: docs/explanation/optical-model.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.setup import Detector

Floats = NDArray[np.float64]
DeadTimeKind = Literal["non-paralysable", "paralysable"]

_FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
_STEPS = 400
_SETTLED = 20  # dead times after which the detector has forgotten the click


@dataclass(frozen=True, slots=True)
class ClickProbabilities:
    """What one pulse does to the two detectors of the basis that it was prepared in.

    Attributes:
        right: Only the right detector clicks.
        wrong: Only the wrong one.
        both: Both.
        none: None.
    """

    right: float
    wrong: float
    both: float
    none: float

    @property
    def gain(self) -> float:
        """Probability of a detection."""
        return self.right + self.wrong + self.both

    @property
    def qber(self) -> float:
        """Error rate of detections, with a random bit for both."""
        return (self.wrong + self.both / 2) / self.gain if self.gain else 0.0


def click_probabilities(mu: float, eta: float, p_dark: float, e_mis: float) -> ClickProbabilities:
    """Return what a phase-randomised weak coherent pulse does to two detectors: two independent Poissonians.

    Args:
        mu: Mean photons of the pulse.
        eta: Transmittance, efficiency of the detectors included.
        p_dark: Probability of a dark count of one detector in the time of the pulse.
        e_mis: Probability that a photon goes to the wrong detector.
    """
    right = 1 - (1 - p_dark) * math.exp(-mu * eta * (1 - e_mis))
    wrong = 1 - (1 - p_dark) * math.exp(-mu * eta * e_mis)
    return ClickProbabilities(right * (1 - wrong), wrong * (1 - right), right * wrong, (1 - right) * (1 - wrong))


def pair_gain_and_qber(
    lam: float, eta_a: float, eta_b: float, y0_a: float, y0_b: float, e_d: float
) -> tuple[float, float]:
    """Return gain and error rate of pulsed pairs, both ends in the same basis (Ma, Fung, Lo, PRA 76, 012307).

    Args:
        lam: Mean pairs in each of the two modes of a pulse; all in all 2 lam.
        eta_a: Transmittance of Alice's side, detectors included.
        eta_b: Of Bob's.
        y0_a: Probability of noise at Alice in the time of a pulse, both detectors together.
        y0_b: At Bob.
        e_d: Probability that a pair gives unequal bits.
    """
    either = eta_a + eta_b - eta_a * eta_b
    gain = (
        1
        - (1 - y0_a) / (1 + eta_a * lam) ** 2
        - (1 - y0_b) / (1 + eta_b * lam) ** 2
        + (1 - y0_a) * (1 - y0_b) / (1 + either * lam) ** 2
    )
    equal = 2 * (0.5 - e_d) * eta_a * eta_b * lam * (1 + lam)
    equal /= (1 + eta_a * lam) * (1 + eta_b * lam) * (1 + either * lam)
    return gain, (gain / 2 - equal) / gain


@dataclass(frozen=True, slots=True)
class SteadyPairs:
    """Rates of a source with a steady pump, both ends in the same basis.

    Attributes:
        singles_a_hz: Clicks at Alice.
        singles_b_hz: Clicks at Bob.
        true_hz: Coincidences of two photons of a pair.
        accidental_hz: Other coincidences.
        qber: Error rate of coincidences.
    """

    singles_a_hz: float
    singles_b_hz: float
    true_hz: float
    accidental_hz: float
    qber: float


def steady_pairs(
    pair_rate_hz: float,
    eta: tuple[float, float],
    dark_hz: tuple[float, float],
    window_s: float,
    fwhm_s: float,
    e_pol: float,
) -> SteadyPairs:
    """Return singles, coincidences and error rate of a steady pump (Neumann et al., PRA 104, 022406).

    Args:
        pair_rate_hz: Pairs at the source.
        eta: Transmittance of Alice's and Bob's sides, detectors included.
        dark_hz: Dark counts of each side.
        window_s: Full width of the coincidence window.
        fwhm_s: Full width at half height of the coincidence peak.
        e_pol: Probability that a pair gives unequal bits.
    """
    singles_a, singles_b = (e * pair_rate_hz + d for e, d in zip(eta, dark_hz, strict=True))
    inside = math.erf(math.sqrt(math.log(2)) * window_s / fwhm_s) if fwhm_s else 1.0
    true = pair_rate_hz * eta[0] * eta[1] * inside
    accidental = singles_a * singles_b * window_s
    return SteadyPairs(singles_a, singles_b, true, accidental, (true * e_pol + accidental / 2) / (true + accidental))


def delay_cdf(x_ps: float, sigma_ps: float, weight: float, tail_ps: float) -> float:
    """Return the probability of a delay of at most `x_ps`: Gaussian, with `weight` an exponential on top."""
    if not sigma_ps:
        gauss = float(x_ps >= 0)
        late = max(0.0, 1 - math.exp(-max(x_ps, 0.0) / tail_ps)) if tail_ps else gauss
        return (1 - weight) * gauss + weight * late
    gauss = _phi(x_ps / sigma_ps)
    late = gauss - _still_to_come(x_ps / sigma_ps, sigma_ps / tail_ps) if tail_ps else gauss
    return (1 - weight) * gauss + weight * late


def jitter_fraction(half_window_ps: float, sigma_ps: float, weight: float, tail_ps: float) -> float:
    """Return the share of clicks within +-`half_window_ps` of the centre of the Gaussian (not of the mean)."""
    return delay_cdf(half_window_ps, sigma_ps, weight, tail_ps) - delay_cdf(-half_window_ps, sigma_ps, weight, tail_ps)


def measured_rate_hz(rate_hz: float, dead_time_s: float, kind: DeadTimeKind) -> float:
    """Return the rate of clicks of a Poissonian rate of events: n / (1 + n t), or n exp(-n t)."""
    if kind == "paralysable":
        return rate_hz * math.exp(-rate_hz * dead_time_s)
    return rate_hz / (1 + rate_hz * dead_time_s)


def fano(rate_hz: float, dead_time_s: float, kind: DeadTimeKind) -> float:
    """Return variance / mean of the number of clicks in a long time; below 1, for a dead time makes clicks regular."""
    load = rate_hz * dead_time_s
    return 1 - 2 * load * math.exp(-load) if kind == "paralysable" else (1 + load) ** -2


def pulsed_clicks(p: float, blind_pulses: float, kind: DeadTimeKind) -> float:
    """Return clicks per pulse of a detector that clicks with `p` when live and then misses `blind_pulses`."""
    if kind == "paralysable":
        return float(p * (1 - p) ** blind_pulses)
    return p / (1 + blind_pulses * p)


def pulsed_fano(p: float, blind_pulses: float, kind: DeadTimeKind) -> float:
    """Return variance / mean of those clicks; an interval is `blind_pulses` plus a geometric number of pulses."""
    if kind == "paralysable":
        return float(1 - (1 + 2 * blind_pulses) * p * (1 - p) ** blind_pulses)
    return (1 - p) / (1 + blind_pulses * p) ** 2


def afterpulse_multiplier(children: float) -> float:
    """Return clicks per first click when each click has `children` on average: 1 + c + c^2 + .. = 1 / (1 - c)."""
    return 1 / (1 - children)


def afterpulse_fano(children: float) -> float:
    """Return variance / mean of clicks in families of Poissonian numbers of children (Borel): 1 / (1 - c)^2."""
    return (1 - children) ** -2


def intercept_resend_qber(fraction: float, bases: int) -> float:
    """Return the error rate of an eavesdropper who measures this fraction in one of `bases` bases and sends on."""
    return fraction * (1 - 1 / bases) / 2


def photon_number_splitting_gains(
    mu: Sequence[float], eta: float, y0: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the gains of each intensity, honest and when single photons are blocked.

    The attacker lets a pulse of two or more photons make a detection with the one probability that leaves the gain of
    the first intensity unchanged. Brassard et al., PRL 85, 1330 (2000); Lo, Ma, Chen, PRL 94, 230504 (2005).

    Args:
        mu: Mean photon numbers, the signal first.
        eta: Transmittance, detectors included.
        y0: Probability of a detection without light.

    Raises:
        ValueError: There are too few pulses of several photons to make up for the gain.
    """
    honest = tuple(y0 + 1 - math.exp(-eta * m) for m in mu)
    several = tuple(1 - (1 + m) * math.exp(-m) for m in mu)
    forwarded = (honest[0] - y0) / several[0]
    if forwarded > 1:
        raise ValueError("the loss is too small for this attack")
    return honest, tuple(y0 + forwarded * s for s in several)


def sigma_of_fwhm(fwhm: float) -> float:
    """Return the standard deviation of a Gaussian of this full width at half height."""
    return fwhm / _FWHM_PER_SIGMA


def gaussian_inside(low: float, high: float, sigma: float) -> float:
    """Return the probability that a centred Gaussian lies within two bounds."""
    if not sigma:
        return float(low <= 0 <= high)
    return _phi(high / sigma) - _phi(low / sigma)


def _still_to_come(x: float, ratio: float) -> float:
    """Return exp(ratio^2 / 2 - ratio x) Phi(x - ratio), the part of Phi(x) that an exponential delay puts beyond x."""
    beyond = (ratio - x) / math.sqrt(2)
    if beyond < 0:
        return math.exp(ratio**2 / 2 - ratio * x) * _phi(x - ratio)
    if beyond < 25:
        scaled = math.exp(beyond**2) * math.erfc(beyond)
    else:  # where exp would overflow, to 1e-6
        scaled = (1 - 1 / (2 * beyond**2)) / (beyond * math.sqrt(math.pi))
    return math.exp(-(x**2) / 2) * scaled / 2


def _phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def surviving_children(detector: Detector, dead_ps: float, events_per_ps: float) -> float:
    """Return the mean number of a click's afterpulses that find the detector live; in a gated one all come in gates.

    A child that comes `s` after the click is lost if that is in the click's dead time or in that of a later click. The
    probability L(s) to find it live obeys L' = -n (L(s) - L(s - t)), L = exp(-n (s - t)) from s = t to 2 t, where n is
    the rate of events and t the dead time; if events prolong the dead time, L = exp(-n t).

    Args:
        detector: Its afterpulses.
        dead_ps: Its dead time, as it acts.
        events_per_ps: Events that would click if it were live.
    """
    if not detector.afterpulse_probability:
        return 0.0
    longest_ps = dead_ps + _longest_wait_ps(detector)
    edges = np.unique(np.concatenate([np.linspace(0, 1, 2001) ** 3 * longest_ps, [dead_ps]]))
    edges = edges[edges >= dead_ps]
    come = -np.diff(_later_than(detector, edges))
    middle = (edges[1:] + edges[:-1]) / 2
    return float(come @ _live_after(middle, dead_ps, events_per_ps, detector.dead_time_kind == "paralysable"))


def _live_after(lag_ps: Floats, dead_ps: float, rate: float, paralysable: bool) -> Floats:
    """Return L(s) of `surviving_children` for s above the dead time, stepwise with `_STEPS` steps a dead time."""
    if not dead_ps or not rate:
        return np.ones_like(lag_ps)
    if paralysable:
        return np.full_like(lag_ps, math.exp(-rate * dead_ps))
    step = dead_ps / _STEPS
    n = min(int((lag_ps.max() - dead_ps) / step) + 2, _STEPS * _SETTLED)
    live = np.empty(n)
    for i in range(n):
        live[i] = (
            math.exp(-rate * step * i)
            if i <= _STEPS
            else (live[i - 1] * (1 - rate * step / 2) + rate * step / 2 * (live[i - _STEPS] + live[i - _STEPS - 1]))
            / (1 + rate * step / 2)
        )
    return np.interp(lag_ps - dead_ps, step * np.arange(n), live)


def _longest_wait_ps(detector: Detector) -> float:
    law = detector.afterpulse_power_law
    return 1000 * (law.to_ns if law else 30 * max(a.tau_ns for a in detector.afterpulses))


def _later_than(detector: Detector, lag_ps: Floats) -> Floats:
    """Return the mean number of children that come later than these times after the click, dead time left aside."""
    law = detector.afterpulse_power_law
    if law is None:
        parts = [a.probability * np.exp(-lag_ps / (1000 * a.tau_ns)) for a in detector.afterpulses]
        return np.asarray(np.sum(parts, axis=0))
    begin, end = 1000 * law.from_ns, 1000 * law.to_ns
    lag_ps = np.clip(lag_ps, begin, end)
    if math.isclose(law.exponent, 1):
        return law.probability * np.log(end / lag_ps) / math.log(end / begin)
    power = 1 - law.exponent
    return np.asarray(law.probability * (end**power - lag_ps**power) / (end**power - begin**power))

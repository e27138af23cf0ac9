"""How many clicks a link is expected to have in each cell (intensity x basis x bit x outcome), and their variance.

Closed forms of the setup, independent of kernels and tables, so that they judge them. Exact: the light (independent
Poissonians for each place, or photons one by one), dark counts, the mean dead time of a detector with and without
afterpulses, each photon a click where there is no dead time at all. Approximate, to first order: what else goes on in
the pulse of a click, recovery as a longer dead time, jitter beyond the next pulse, variances with afterpulses. Left
out: drift, latching, attacks.
docs/explanation/optical-model.md has the formulas.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.closed_forms import (
    afterpulse_fano,
    delay_cdf,
    gaussian_inside,
    pulsed_fano,
    sigma_of_fwhm,
    surviving_children,
)
from qkdhw_emulators.optics.setup import BASES, PROBABILITY_STEPS, PS_PER_S, Detector, OpticalSetup

Floats = NDArray[np.float64]

_SIDE_BINS_LOSS_DB = 3.0


@dataclass(frozen=True, slots=True)
class ExpectedCounts:
    """Expected clicks of a number of pulses.

    Attributes:
        clicks: float64 (intensities, bases, 2, bases, 2): accepted clicks for the sender's intensity, basis and bit,
            and the receiver's basis and bit. A pulse with two clicks counts in both outcomes, and twice in one if a
            detector without dead time made both; a click at a detector of the basis that a switching receiver did
            not choose counts in none.
        variance: float64, the same shape; below `clicks` by dead time, above it by afterpulses and several photons.
        detector_clicks: float64 (n_detectors,), all clicks, whenever they come.
        detector_fano: float64 (n_detectors,), variance / mean of those.
        detector_live: float64 (n_detectors,), share of pulses at which the detector can click.
    """

    clicks: Floats
    variance: Floats
    detector_clicks: Floats
    detector_fano: Floats
    detector_live: Floats


def expected_counts(setup: OpticalSetup, n_pulses: float, window_ps: float | None = None) -> ExpectedCounts:
    """Return the clicks that a prepare-and-measure link is expected to have.

    Args:
        setup: The link.
        n_pulses: Pulses sent.
        window_ps: Full width of the window around a pulse's (or a time bin's) mean arrival in which clicks are
            accepted; None: windows that touch.

    Raises:
        ConfigurationError: The source makes pairs.
    """
    link = _Link(setup, window_ps)
    chosen = link.choice_probability() * n_pulses
    clicks, variance = np.zeros(chosen.shape), np.zeros(chosen.shape)
    for state in link.detectors:
        own = link.clicks(state) * chosen
        clicks += own
        variance += own * (1 - own / max(state.measured * n_pulses, 1e-300) * (1 - state.fano))
    total, fano, live = (np.array([getattr(s, name) for s in link.detectors]) for name in ("measured", "fano", "live"))
    return ExpectedCounts(clicks, variance, total * n_pulses, fano, live)


def expected_gain_and_qber(setup: OpticalSetup, window_ps: float | None = None) -> dict[str, float]:
    """Return what a paper would publish of the link, by the names that presets use in `published`.

    gain_BASIS_K and qber_BASIS_K for intensity K (0 is the signal): per pulse that the sender prepares in the basis
    and, if the receiver switches, that the receiver measures in it. rate_BASIS_hz: sifted detections of all
    intensities; qber_BASIS: their errors. Two clicks of a pulse in a basis are one detection with a random bit. All is
    0 in a basis without detectors.

    Raises:
        ConfigurationError: The source makes pairs.
    """
    link = _Link(setup, window_ps)
    clicks = sum((link.clicks(s, once=True) for s in link.detectors), np.zeros(link.shape))
    one_by_bins = not any(m == "key" and link.never_dead(d) for d, m in enumerate(link.meaning))
    chosen = link.choice_probability()[..., 0].sum(axis=2)
    found: dict[str, float] = {}
    for b, basis in enumerate(BASES[: min(link.shape[1], link.shape[3])]):
        bits = link.bit_probability(b)
        right = np.array([clicks[:, b, x, b, x] for x in (0, 1)])
        wrong = np.array([clicks[:, b, x, b, 1 - x] for x in (0, 1)])
        both = (right * wrong + link.dependence(b)) * (
            basis not in link.meaning or not one_by_bins
        )  # one detector is dead from bin to bin
        gain, errors = bits @ (right + wrong - both), bits @ (wrong - both / 2)
        weight = chosen[:, b, b] * setup.source.pulse_rate_hz
        for k, (g, e) in enumerate(zip(gain, errors, strict=True)):
            found[f"gain_{basis}_{k}"] = float(g)
            found[f"qber_{basis}_{k}"] = float(e / g) if g else 0.0
        found[f"rate_{basis}_hz"] = float(weight @ gain)
        found[f"qber_{basis}"] = float((weight @ errors) / (weight @ gain)) if weight @ gain else 0.0
    return found


@dataclass(slots=True)
class _State:
    """A detector and how it fares in the link, per pulse.

    Attributes:
        index: Which one.
        measured: Clicks.
        live: Share of pulses at which it can click.
        afterpulses: Clicks that are afterpulses.
        fano: Variance / mean of clicks.
        mean_light: Places (time, clicks) of the first click by light, without dead time of all, for the mean pulse.
    """

    index: int
    measured: float
    live: float
    afterpulses: float
    fano: float
    mean_light: list[tuple[float, float]]


class _Link:
    """The link's probabilities per pulse."""

    def __init__(self, setup: OpticalSetup, window_ps: float | None) -> None:
        if setup.source.of_pairs:
            raise ConfigurationError(
                "expected counts are for prepare-and-measure links", remedy="see closed_forms.steady_pairs"
            )
        self.setup, self.receiver, self.source = setup, setup.receiver, setup.source
        self.meaning = self.receiver.meaning
        self.active = self.receiver.basis_choice == "active"
        self.period_ps = self.source.period_ps
        self.bin_ps = self.receiver.bin_separation_ps if self.source.encoding == "time-bin" else 0.0
        self.window_ps = window_ps or (min(self.bin_ps, self.period_ps - self.bin_ps) or self.period_ps)
        self.sigma_ps = arrival_sigma_ps(setup)
        self.in_gate = self._through_gate(self.sigma_ps)
        measured = [n for n, b in enumerate(BASES, 1) if any(m.startswith(b) for m in self.meaning)]
        n_measured = max([*measured, self.source.bases if any(m.startswith("any") for m in self.meaning) else 1])
        self.sent = basis_shares(self.source.key_basis_probability, self.source.bases)
        measured_in = basis_shares(self.receiver.key_basis_probability, n_measured)
        self.measured_in = np.pad(measured_in, (0, max(0, self.source.bases - n_measured)))
        self.intensities = quantised(np.array([i.probability for i in self.source.intensities] or [1.0]))
        self.shape = (len(self.intensities), self.source.bases, 2, len(self.measured_in), 2)
        self.detectors = [self._settled(d) for d in range(len(self.meaning))]

    def choice_probability(self) -> Floats:
        """Return the probability of the sender's choice and a switching receiver's basis, in the shape of clicks."""
        bits = np.array([self.bit_probability(b) for b in range(self.shape[1])])
        sender = self.intensities[:, None, None] * self.sent[:, None] * bits
        receiver = self.measured_in if self.active else np.ones(self.shape[3])
        return np.broadcast_to(sender[..., None, None] * receiver[:, None], self.shape)

    def bit_probability(self, basis: int) -> Floats:
        """Return how often each bit is sent in a basis."""
        return np.array([1.0, 0.0]) if self.source.states == 3 and basis == 1 else np.array([0.5, 0.5])

    def never_dead(self, d: int) -> bool:
        """Tell whether a detector clicks for each photon, however soon after another."""
        return not self._dead_ps(self.receiver.detectors[d])

    def clicks(self, state: _State, *, once: bool = False) -> Floats:
        """Return accepted clicks of a detector per pulse, given the choices; `once`: of several in a window the first.

        They are the same if a click blinds the detector for whole pulses.
        """
        out, d = np.zeros(self.shape), state.index
        open_ps = self._open_ps(self.window_ps)
        noise = self._noise_per_ps(d) * open_ps
        quiet, every = math.exp(-noise), self.never_dead(d) and not once
        blind = self._blind_pulses(self.receiver.detectors[d])
        afterpulses = state.afterpulses * open_ps / self._open_ps(self.period_ps)
        for k, a, x, b, y in np.ndindex(self.shape):
            if not self._tells(d, b, y):
                continue
            centre_ps = y * self.bin_ps * (b == 0)
            light = self._tagged(d, self._light(d, k, a, x, b, every=every), centre_ps)
            neighbours = sum(self._tagged(d, state.mean_light, centre_ps + n * self.period_ps) for n in (-1, 1))
            own = state.live * ((light + noise if every else 1 - (1 - light) * quiet) + neighbours)
            # the clicks of a window are several only of a detector that is live again in it
            shared = own * -math.expm1(-afterpulses) if once and not blind else 0.0
            out[k, a, x, b, y] = own + afterpulses - shared
        return out

    def dependence(self, b: int) -> Floats:
        """Return what the chance of clicks at both bits has beyond the product of chances, by bit sent and intensity.

        Nothing for light of steady intensity; less for counted photons, as one cannot make two clicks.
        """
        found = np.zeros((2, self.shape[0]))
        for x, k in np.ndindex(found.shape):
            share, live = [0.0, 0.0], [1.0, 1.0]
            for state, y in itertools.product(self.detectors, (0, 1)):
                if self._tells(state.index, b, y):
                    places = self._places(state.index, b, x, b)
                    share[y] += sum(chance for time_ps, chance in places if time_ps == y * self.bin_ps * (b == 0))
                    live[y] = min(live[y], state.live)
            apart = self._silent(k, share[0]) * self._silent(k, share[1])
            found[x, k] = live[0] * live[1] * (self._silent(k, share[0] + share[1]) - apart)
        return found

    def _settled(self, d: int) -> _State:
        """Solve clicks m = live p + c m, where live = 1 - k m, or (1 - p)^k if events prolong the dead time."""
        detector = self.receiver.detectors[d]
        noise = self._noise_per_ps(d) * self._open_ps(self.period_ps)
        mean_light = self._mean_light(d)
        light = sum(chance for _, chance in mean_light)
        if self.never_dead(d):
            children = surviving_children(detector, 0.0, 0.0)
            measured = (light + noise) / (1 - children)
            fano = afterpulse_fano(children) * (1 + self._bunching(d) / (light + noise) if light else 1.0)
            return _State(d, measured, 1.0, children * measured, fano, mean_light)
        p = 1 - (1 - light) * math.exp(-noise)
        blind = self._blind_pulses(detector)
        dead_ps = blind * self.period_ps if self.receiver.gate.width_ps else self._dead_ps(detector)
        children = surviving_children(detector, dead_ps, p / self.period_ps)
        if detector.dead_time_kind == "paralysable":
            live = (1 - p) ** blind
            measured = live * p / (1 - children)
        else:
            measured = p / (1 - children + blind * p)
            live = 1 - blind * measured
        fano = afterpulse_fano(children) * pulsed_fano(p, blind, detector.dead_time_kind)
        return _State(d, measured, live, children * measured, fano, mean_light)

    def _mean_light(self, d: int) -> list[tuple[float, float]]:
        """Return the places of light as `_light`, for the mean pulse."""
        found, every = [], self.never_dead(d)
        for (k, a, x, b), chosen in self._choices(d):
            found += [(time_ps, chosen * chance) for time_ps, chance in self._light(d, k, a, x, b, every=every)]
        return found

    def _choices(self, d: int) -> list[tuple[tuple[int, ...], float]]:
        """Return the choices (intensity, basis, bit, receiver's basis) that light a detector, and how often."""
        chosen = np.ndenumerate(self.choice_probability()[..., 0])
        return [(at, float(p)) for at, p in chosen if self.active or at[3] == self._own_basis(d)]

    def _light(self, d: int, k: int, a: int, x: int, b: int, *, every: bool) -> list[tuple[float, float]]:
        """Return the places (time after the pulse, clicks) of one pulse's light.

        Clicks are the probability that the first one is there, without dead time that any is, or the mean number
        if `every` one counts.
        """
        passed, found = 0.0, []
        for time_ps, share in sorted(self._places(d, a, x, b)):
            if every:
                found.append((time_ps, self._photons(k, share)[0]))
                continue
            found.append((time_ps, self._silent(k, passed) - self._silent(k, passed + share)))
            passed += 0.0 if self.never_dead(d) else share
        return found

    def _bunching(self, d: int) -> float:
        """Return how much the variance of a pulse's photons at a detector is above their mean number."""
        moments = [
            (chosen, *self._photons(k, sum(share for _, share in self._places(d, a, x, b))))
            for (k, a, x, b), chosen in self._choices(d)
        ]
        mean, pairs = (sum(m[0] * m[n] for m in moments) for n in (1, 2))
        return float(pairs - mean**2)

    def _photons(self, k: int, share: float) -> tuple[float, float]:
        """Return the means of n and n (n - 1) of the photons that a pulse leaves where a photon has this chance."""
        source = self.source
        if source.kind != "weak-coherent":
            one, two = source.single_photon_probability, source.two_photon_probability
            return (one + 2 * two) * share, 2 * two * share**2
        after, mean = float(self.intensities[0]), source.intensities[k].mean_photon_number * share
        usual, raised = (1 - after, after * (1 + source.pattern_effect))
        pairs = (usual + raised * (1 + source.pattern_effect)) * (1 + source.intensity_noise**2)
        return mean * (usual + raised), mean**2 * pairs

    def _places(self, d: int, a: int, x: int, b: int) -> list[tuple[float, float]]:
        """Return (time, a photon's chance) for each place at which a detector sees bit x of basis a in basis b."""
        found = []
        for y in (0, 1):
            if not self._tells(d, b, y):
                continue
            weight = self._weight(d, b)
            error = mixed_error(self.setup, b)
            found.append((y * self.bin_ps * (b == 0), weight * (0.5 if a != b else error if x != y else 1 - error)))
            if b and self.bin_ps and self.receiver.test_loss_db >= _SIDE_BINS_LOSS_DB:
                early = 0.5 if a else 0.5 + (0.5 - preparation_error(self.setup, 0)) * (1 - 2 * x)
                found += [(-self.bin_ps, weight / 2 * early), (self.bin_ps, weight / 2 * (1 - early))]
        return found

    def _silent(self, k: int, share: float) -> float:
        """Return the probability that light of an intensity makes no click where a photon has this chance."""
        source = self.source
        if source.kind != "weak-coherent":
            one, two = source.single_photon_probability, source.two_photon_probability
            return 1 - one * share - two * share * (2 - share)
        after = self.intensities[0]
        mean = source.intensities[k].mean_photon_number * share
        higher = mean * (1 + source.pattern_effect)
        usual, raised = (math.exp(-m + (m * source.intensity_noise) ** 2 / 2) for m in (mean, higher))
        return float((1 - after) * usual + after * raised)

    def _weight(self, d: int, b: int) -> float:
        """Return a photon's chance to be detected if it takes the right port."""
        way = 1.0 if self.active else float(self.measured_in[b])
        loss_db = self.setup.channel.loss_db + self.receiver.loss_db + (self.receiver.test_loss_db if b else 0.0)
        alike = self.meaning.count(self.meaning[d])
        return way / alike * 10 ** (-loss_db / 10) * self.receiver.detectors[d].efficiency * self.in_gate

    def _tells(self, d: int, b: int, y: int) -> bool:
        return self.meaning[d] in {f"{BASES[b]}{y}", f"any{y}", BASES[b]}

    def _own_basis(self, d: int) -> int:
        return next(b for b, basis in enumerate(BASES) if self.meaning[d].startswith(basis))

    def _through_gate(self, sigma_ps: float) -> float:
        """Return the share of light that the gate and its profile let through."""
        gate = self.receiver.gate
        if not gate.width_ps:
            return 1.0
        times = np.linspace(-gate.width_ps / 2, gate.width_ps / 2, 4001)
        profile = np.exp(-4 * math.log(2) * (times / (gate.profile_fwhm_ps or math.inf)) ** 2)
        if math.isinf(sigma_ps):
            return float(profile.mean())
        if not sigma_ps:
            return float(np.interp(-gate.offset_ps, times, profile, left=0.0, right=0.0))
        density = np.exp(-(((times + gate.offset_ps) / sigma_ps) ** 2) / 2) / (sigma_ps * math.sqrt(2 * math.pi))
        return float(np.trapezoid(density * profile, times))

    def _noise_per_ps(self, d: int) -> float:
        """Return dark counts and background per picosecond in which the detector can click."""
        detector, meaning = self.receiver.detectors[d], self.meaning[d]
        bases = range(len(self.measured_in)) if meaning.startswith("any") else [self._own_basis(d)]
        loss_db = (self.receiver.loss_db + (self.receiver.test_loss_db if b else 0.0) for b in bases)
        share = sum(float(self.measured_in[b]) * 10 ** (-loss / 10) for b, loss in zip(bases, loss_db, strict=True))
        share *= (1.0 if meaning == "key" else 0.5) / self.meaning.count(meaning) * self._through_gate(math.inf)
        background_hz = self.setup.channel.background_rate_hz * share * detector.efficiency
        return (detector.dark_count_rate_hz + background_hz) / PS_PER_S

    def _open_ps(self, window_ps: float) -> float:
        """Return how long a detector can click in a window."""
        return min(self.receiver.gate.width_ps or math.inf, window_ps)

    def _dead_ps(self, detector: Detector) -> float:
        return (detector.dead_time_ns + detector.recovery_ns) * 1000

    def _blind_pulses(self, detector: Detector) -> float:
        """Return how many pulses a click blinds; one that ends the dead time counts in part."""
        dead_ps = self._dead_ps(detector)
        last = round(dead_ps / self.period_ps)
        if last == 0:
            return 0.0
        gap_ps = dead_ps - last * self.period_ps
        return (
            last
            - 1
            + (gaussian_inside(-math.inf, gap_ps, math.sqrt(2) * self.sigma_ps) if self.sigma_ps else gap_ps > 0)
        )

    def _tagged(self, d: int, light: list[tuple[float, float]], centre_ps: float) -> float:
        """Return the probability that a click of light is tagged in the window about a centre."""
        return sum(chance * self._caught(d, time_ps - centre_ps) for time_ps, chance in light)

    def _caught(self, d: int, off_ps: float) -> float:
        """Return the share of clicks `off_ps` after the centre of a window that are tagged in it."""
        detector, tagger, half = self.receiver.detectors[d], self.setup.tagger, self.window_ps / 2
        sigma = math.hypot(detector.jitter_ps, self.sigma_ps, tagger.noise_ps, tagger.tick_fs / 1000 / math.sqrt(12))
        below = [
            delay_cdf(edge - off_ps, sigma, detector.jitter_tail_weight, detector.jitter_tail_ps)
            for edge in (half, -half)
        ]
        return below[0] - below[1]


def mixed_error(setup: OpticalSetup, basis: int) -> float:
    """Return the probability that a photon in a matching basis leaves by the wrong port: independent flips."""
    flips = (preparation_error(setup, basis), setup.receiver.misalignment[basis])
    return (1 - math.prod(1 - 2 * e for e in flips)) / 2


def preparation_error(setup: OpticalSetup, basis: int) -> float:
    """Return the sender's part of it; in the key basis with what the extinction ratio lets through."""
    error = setup.source.preparation_error[basis]
    if basis:
        return error
    leak = 1 / (1 + 10 ** (setup.source.extinction_ratio_db / 10))
    return error + leak - 2 * error * leak


def arrival_sigma_ps(setup: OpticalSetup) -> float:
    """Return the standard deviation of a photon's time in its pulse, from its length and both dispersions."""
    channel, source = setup.channel, setup.source
    chromatic = channel.dispersion_ps_per_nm_km * channel.length_km * source.spectral_width_nm
    polarisation = channel.pmd_ps_per_sqrt_km * math.sqrt(channel.length_km) / 2
    return math.hypot(sigma_of_fwhm(source.pulse_fwhm_ps), chromatic, polarisation)


def basis_shares(key_probability: float, n_bases: int) -> Floats:
    """Return how often each basis is chosen: the key basis, and the others alike; one basis alone always is."""
    if n_bases == 1:
        return np.ones(1)
    return quantised(np.array([key_probability, *[(1 - key_probability) / (n_bases - 1)] * (n_bases - 1)]))


def quantised(probability: Floats) -> Floats:
    """Return probabilities in whole 65536ths, as they are drawn."""
    edges = np.rint(np.cumsum(probability) * PROBABILITY_STEPS)
    return np.diff(edges, prepend=0) / PROBABILITY_STEPS

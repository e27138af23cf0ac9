"""From the parts of a prepare-and-measure link to what a pulse sends to each detector.

A photon's state is a vector in the Bloch sphere; each place where it may be detected has a direction in it and sees the
photon with probability weight * (1 + direction . state) / 2. Independent errors multiply the lengths of the vectors:
1 - 2e = (1 - 2e1)(1 - 2e2)..., so an error of preparation, extinction or misalignment leaves the other bases alone.

Time-bin: the key basis is the time of arrival, bin 0 at the pulse's time and bin 1 one separation later. The test bases
go through an interferometer whose middle bin, where the phase decides the port, stands at the pulse's time. Its side
bins hold as much light as the middle. A `test_loss_db` of 3 or more contains them: then they click as well, one
separation before (bin 0) and after (bin 1). Below 3 they are switched away and never arrive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.pulse_tables import POISSON, PulseTables
from qkdhw_emulators.optics.setup import BASES, PROBABILITY_STEPS, OpticalSetup

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
SIDE_BINS_LOSS_DB = 3.0
Z_AXIS = np.array([0.0, 0.0, 1.0])
# Key, test and third basis. A phase is an angle about z, so a drift of the phase turns both bases of phase encoding.
AXES = {
    "polarisation": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "time-bin": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "phase": np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
}


@dataclass(frozen=True, slots=True)
class Outlet:
    """A place where a photon may be detected.

    Attributes:
        detector: Index of the detector.
        basis: In which the receiver measures there.
        time_ps: After the pulse's arrival, the detector's own delay included.
        weight: Probability of a detection if the direction fits: a share of the light, losses and efficiency.
        direction: (3,), in the Bloch sphere, of length 0 to 1.
    """

    detector: int
    basis: int
    time_ps: float
    weight: float
    direction: NDArray[np.float64]


def build_tables(
    setup: OpticalSetup, rotation: NDArray[np.float64] | None = None, extra_loss_db: float = 0.0
) -> PulseTables:
    """Return what pulses of a link without an eavesdropper send to its detectors.

    What is hidden of a weak coherent pulse is nothing; of a single-photon source, the number of photons (0, 1 or 2).

    Args:
        setup: The link; its source makes no pairs.
        rotation: (3, 3), what the channel does to a Bloch vector; None: nothing.
        extra_loss_db: Loss of the channel on top of the setup's.

    Raises:
        ConfigurationError: The source makes pairs or no light, or the receiver cannot measure its encoding.
    """
    source = setup.source
    if source.of_pairs:
        raise ConfigurationError("a source of pairs has no pulses with a prepared state", remedy="use optics.pairs")
    places = outlets(setup)
    states = bloch_vectors(setup) @ (np.eye(3) if rotation is None else rotation).T
    fits = np.maximum(0.0, 1 + states @ np.array([p.direction for p in places]).T) / 2
    seen = fits * [p.weight for p in places] * 10 ** (-(setup.channel.loss_db + extra_loss_db) / 10)
    modes = sorted({(p.detector, p.time_ps) for p in places})
    measured = _basis_probabilities(setup.receiver.key_basis_probability, receiver_bases(setup))
    measured += [0.0] * (source.bases - len(measured))  # bases without detectors
    n_bob = len(measured) if setup.receiver.basis_choice == "active" else 1
    shares = np.zeros((len(states), n_bob, len(modes)))
    for k, place in enumerate(places):
        shares[:, place.basis if n_bob > 1 else 0, modes.index((place.detector, place.time_ps))] += seen[:, k]
    light, often, photons, probabilities = _light(setup)
    n_hidden = len(probabilities)
    # (intensity, basis and bit, receiver's basis, hidden, mode)
    shares = light[:, None, None, None, None] * np.repeat(shares[None, :, :, None, :], n_hidden, axis=3)
    n_choices = len(light) * len(states)
    return PulseTables(
        intensity_thresholds=thresholds(often),
        basis_thresholds=thresholds(_basis_probabilities(source.key_basis_probability, source.bases)),
        bob_thresholds=thresholds(measured if n_bob > 1 else [1.0]),
        three_state=source.states == 3,
        hidden_cumulative=np.tile(_cumulative(probabilities), (n_choices, n_bob, 1)),
        photons=np.tile(photons, n_choices * n_bob),
        shares=np.ascontiguousarray(shares.reshape(-1, len(modes))),
        bright=np.zeros(n_choices * n_bob * n_hidden, np.uint8),
        state_offset_ps=np.zeros(n_choices * n_bob * n_hidden),
        mode_detector=np.array([detector for detector, _ in modes], np.uint8),
        mode_offset_ps=np.array([time_ps for _, time_ps in modes]),
        pulse_sigma_ps=pulse_sigma_ps(setup),
        period_ps=source.period_ps,
        intensity_noise=source.intensity_noise,
        pattern_effect=source.pattern_effect,
    )


def bloch_vectors(setup: OpticalSetup) -> NDArray[np.float64]:
    """Return the prepared states, (6, 3): bit 0 and 1 of the key, the test and the third basis."""
    source = setup.source
    contrast = 1 - 2 * np.array(source.preparation_error)
    contrast[0] *= 1 - 2 / (1 + 10 ** (source.extinction_ratio_db / 10))
    vectors: NDArray[np.float64] = np.repeat(AXES[source.encoding] * contrast[:, None], 2, axis=0)
    vectors[1::2] *= -1
    return vectors


def receiver_bases(setup: OpticalSetup) -> int:
    """Return how many bases the receiver measures."""
    named = [k + 1 for k, basis in enumerate(BASES) for m in setup.receiver.meaning if m.startswith(basis)]
    shared = setup.source.bases if any(m.startswith("any") for m in setup.receiver.meaning) else 0
    return max([shared, *named])


def outlets(setup: OpticalSetup) -> list[Outlet]:
    """Return all places where a photon may be detected, in the order of bases.

    Raises:
        ConfigurationError: A detector tells bits by time bins, and the encoding has none; or they are a period apart.
    """
    receiver, encoding = setup.receiver, setup.source.encoding
    if "key" in receiver.meaning and encoding != "time-bin":
        raise ConfigurationError(
            f"receiver.layout: a 'key' detector needs time-bin encoding, the source has {encoding}",
            remedy='set source.encoding to "time-bin", or give detectors key0 and key1',
        )
    late = receiver.bin_separation_ps if encoding == "time-bin" else 0.0
    if late >= setup.source.period_ps:
        raise ConfigurationError(
            f"receiver.bin_separation_ps is {late:g}: both bins of time-bin encoding must lie in a period",
            remedy=f"give it below {setup.source.period_ps} ps, such as {setup.source.period_ps // 2}",
        )
    found: list[Outlet] = []
    for basis, probability in enumerate(_basis_probabilities(receiver.key_basis_probability, receiver_bases(setup))):
        arm = 10 ** (-(receiver.loss_db + (receiver.test_loss_db if basis else 0.0)) / 10)
        if receiver.basis_choice == "passive":
            arm *= probability
        for bit in (0, 1):
            meanings = {f"{BASES[basis]}{bit}", f"any{bit}", BASES[basis]}
            detectors = [k for k, meaning in enumerate(receiver.meaning) if meaning in meanings]
            axis = AXES[encoding][basis] * (1 - 2 * receiver.misalignment[basis]) * (-1) ** bit
            bins = [(bit * late if basis == 0 else 0.0, arm, axis)]
            if basis and late and receiver.test_loss_db >= SIDE_BINS_LOSS_DB:
                bins += [(-late, arm / 2, Z_AXIS), (late, arm / 2, -Z_AXIS)]
            for k in detectors:
                detector = receiver.detectors[k]
                share = detector.efficiency / len(detectors)
                found += [Outlet(k, basis, t + detector.delay_ps, share * weight, to) for t, weight, to in bins]
    return found


def pulse_sigma_ps(setup: OpticalSetup) -> float:
    """Return the standard deviation of a photon's time: the pulse, chromatic and polarisation-mode dispersion.

    Light that is spread over both polarisation modes of the fibre is half their mean delay before or after its mean.
    """
    channel, source = setup.channel, setup.source
    chromatic = channel.dispersion_ps_per_nm_km * channel.length_km * source.spectral_width_nm
    polarisation = channel.pmd_ps_per_sqrt_km * math.sqrt(channel.length_km) / 2
    return math.hypot(source.pulse_fwhm_ps / FWHM_PER_SIGMA, chromatic, polarisation)


def mode_means(tables: PulseTables, choice: int, bob_basis: int = 0) -> NDArray[np.float64]:
    """Return the mean number of detectable photons in each mode, (n_modes,), over all that is hidden.

    Args:
        tables: Of the link.
        choice: The sender's.
        bob_basis: Of a receiver that switches.
    """
    hidden, states = _hidden(tables, choice, bob_basis)
    per_share = np.where(tables.photons[states] == POISSON, 1.0, tables.photons[states])
    means: NDArray[np.float64] = (hidden * per_share) @ tables.shares[states]
    return means


def click_probability(tables: PulseTables, choice: int, bob_basis: int = 0) -> NDArray[np.float64]:
    """Return the probability of at least one detectable photon in each mode, (n_modes,), over all that is hidden.

    Source noise is in it to second order of its exponent, as if it were not truncated; the pattern effect exactly.

    Args:
        tables: Of the link.
        choice: The sender's.
        bob_basis: Of a receiver that switches.
    """
    hidden, states = _hidden(tables, choice, bob_basis)
    shares, photons = tables.shares[states], tables.photons[states][:, None]
    after_signal = float(tables.intensity_thresholds[0]) / PROBABILITY_STEPS
    dark = np.zeros_like(shares)
    for factor, weight in ((1.0, 1 - after_signal), (1 + tables.pattern_effect, after_signal)):
        mean = shares * factor
        dark += weight * np.exp(-mean + (mean * tables.intensity_noise) ** 2 / 2)
    dark = np.where(photons == POISSON, dark, (1 - shares) ** photons)
    clicks: NDArray[np.float64] = hidden @ (1 - dark)
    return clicks


def thresholds(probabilities: Sequence[float]) -> NDArray[np.uint32]:
    """Return cumulative 65536ths, the last 65536."""
    steps = np.round(np.cumsum(probabilities) * PROBABILITY_STEPS).astype(np.uint32)
    steps[-1] = PROBABILITY_STEPS
    return steps


def _basis_probabilities(key_probability: float, n_bases: int) -> list[float]:
    """Return how often each basis is chosen; one basis alone always is."""
    if n_bases == 1:
        return [1.0]
    return [key_probability, *[(1 - key_probability) / (n_bases - 1)] * (n_bases - 1)]


def _light(
    setup: OpticalSetup,
) -> tuple[NDArray[np.float64], list[float], NDArray[np.uint8], list[float]]:
    """Return each intensity's factor on shares and its probability; photons and probability of what is hidden."""
    source = setup.source
    if source.kind == "weak-coherent":
        mu = np.array([i.mean_photon_number for i in source.intensities])
        return mu, [i.probability for i in source.intensities], np.array([POISSON], np.uint8), [1.0]
    one, two = source.single_photon_probability, source.two_photon_probability
    if not one + two:
        raise ConfigurationError(
            "source.single_photon_probability is 0, which means no light",
            remedy="give it above 0, such as 0.5 (or two_photon_probability); dark counts alone: --attack fibre-cut",
        )
    return np.ones(1), [1.0], np.array([0, 1, 2], np.uint8), [1 - one - two, one, two]


def _cumulative(probabilities: Sequence[float]) -> NDArray[np.float64]:
    cumulative = np.cumsum(probabilities)
    cumulative[-1] = 1.0
    return cumulative


def _hidden(tables: PulseTables, choice: int, bob_basis: int) -> tuple[NDArray[np.float64], slice]:
    """Return the probabilities of what is hidden, and its states."""
    first = (choice * tables.n_bob + bob_basis) * tables.n_hidden
    return np.diff(tables.hidden_cumulative[choice, bob_basis], prepend=0.0), slice(first, first + tables.n_hidden)

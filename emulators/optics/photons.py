"""Photons from the transmitter's records to detector clicks. Cost follows photons, not pulses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.parameters import LinkParameters, probability_weights


@dataclass(frozen=True, slots=True)
class Clicks:
    """Detector clicks of one chunk, before dead time, in no order.

    Attributes:
        pulse: int64 (n,), index of the pulse in its chunk.
        detector: uint8 (n,): 0 and 1 key basis bit 0 and 1, 2 and 3 test basis bit 0 and 1.
        jitter_ps: int64 (n,), how late the click is.
    """

    pulse: NDArray[np.int64]
    detector: NDArray[np.uint8]
    jitter_ps: NDArray[np.int64]


def prepare_records(parameters: LinkParameters, n_pulses: int, source: np.random.BitGenerator) -> NDArray[np.uint8]:
    """Draw what the transmitter prepares.

    Args:
        parameters: Probabilities; used as quantised to 1/65536.
        n_pulses: How many; a multiple of 64.
        source: Random bits.

    Returns:
        uint8 (n_pulses,): bit 0 the bit value, bit 1 the basis (1 test), bits 2-3 the intensity index.
    """
    w0, w1, _ = probability_weights(parameters.intensity_probability)
    wk, _ = probability_weights((parameters.key_basis_probability, 1 - parameters.key_basis_probability))
    words = np.asarray(source.random_raw(n_pulses // 2 + n_pulses // 64), dtype="<u8")
    shorts = words[: n_pulses // 2].view("<u2")
    record = (shorts[:n_pulses] >= w0).view(np.uint8)
    record += (shorts[:n_pulses] >= w0 + w1).view(np.uint8)
    record <<= 1
    record |= (shorts[n_pulses:] >= wk).view(np.uint8)
    record <<= 1
    record |= np.unpackbits(words[n_pulses // 2 :].view(np.uint8))
    return record


def pack_records(record: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two pulses into a byte, the even pulse in the low nibble."""
    pairs: NDArray[np.uint16] = record.view("<u2")
    return (pairs | (pairs >> 4)).astype(np.uint8)


def detect_photons(
    parameters: LinkParameters, record: NDArray[np.uint8], rng: np.random.Generator, eve: np.random.Generator
) -> Clicks:
    """Send one chunk of pulses through fibre, eavesdropper, splitter, analyser and detectors.

    The photons of all pulses together are drawn as one Poisson number at the brightest intensity and spread over
    the pulses; each is kept with the ratio of its pulse's intensity to the brightest. That gives exactly
    independent Poisson numbers. Where nobody looks in between, the detectors' efficiency is drawn with them.
    """
    tapped = parameters.eavesdropper != "none" and parameters.eavesdropper_fraction > 0
    mu = np.asarray(parameters.mean_photon_number)
    per_pulse = float(mu[0]) * parameters.transmittance * (1.0 if tapped else parameters.detector_efficiency)
    n_candidates = int(rng.poisson(record.shape[0] * per_pulse))
    pulse = rng.integers(0, record.shape[0], n_candidates)
    pulse = pulse[rng.random(n_candidates) < (mu / mu[0])[record[pulse] >> 2]]
    if tapped:
        pulse.sort()
    basis, bit = (record[pulse] >> 1) & 1, record[pulse] & 1
    if tapped:
        basis, bit = intercept_resend(pulse, basis, bit, parameters.eavesdropper_fraction, eve)
        seen = rng.random(pulse.shape[0]) < parameters.detector_efficiency
        pulse, basis, bit = pulse[seen], basis[seen], bit[seen]
    n = pulse.shape[0]
    arm = (rng.random(n) >= parameters.receiver_key_basis_probability).astype(np.uint8)
    p_flip = np.where(arm == basis, parameters.misalignment, 0.5)
    outcome = bit ^ (rng.random(n) < p_flip)
    jitter = np.clip(rng.standard_normal(n), -8.0, 8.0) * parameters.jitter_ps
    return Clicks(pulse, (2 * arm + outcome).astype(np.uint8), np.rint(jitter).astype(np.int64))


def intercept_resend(
    pulse: NDArray[np.int64],
    basis: NDArray[np.uint8],
    bit: NDArray[np.uint8],
    fraction: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Measure every photon of an attacked pulse in a random basis and resend as many with the majority's bit.

    Args:
        pulse: int64 (n,), the pulse that each photon belongs to, in order.
        basis: uint8 (n,), basis of each photon's state.
        bit: uint8 (n,), bit of each photon's state.
        fraction: Fraction of the pulses attacked.
        rng: The eavesdropper's own random numbers.

    Returns:
        Basis and bit of the photons that travel on in place of these.
    """
    if pulse.shape[0] == 0:
        return basis, bit
    starts = np.flatnonzero(np.diff(pulse, prepend=-1))
    photons = np.diff(starts, append=pulse.shape[0])
    attacked = rng.random(starts.shape[0]) < fraction
    her_basis = rng.integers(0, 2, starts.shape[0], dtype=np.uint8)
    coin = rng.integers(0, 2, pulse.shape[0], dtype=np.uint8)
    seen = np.where(np.repeat(her_basis, photons) == basis, bit, coin)
    ones = np.add.reduceat(seen.astype(np.int64), starts)
    tie = rng.integers(0, 2, starts.shape[0], dtype=np.uint8)
    her_bit = np.where(2 * ones == photons, tie, (2 * ones > photons).astype(np.uint8))
    hit = np.repeat(attacked, photons)
    return (
        np.where(hit, np.repeat(her_basis, photons), basis),
        np.where(hit, np.repeat(her_bit, photons), bit),
    )

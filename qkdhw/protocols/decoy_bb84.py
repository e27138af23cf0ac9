"""Decoy-state BB84: the sifting rule, and what a link without an attacker is expected to count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qkdhw.model import Basis, DecoyCounts
from qkdhw.quantities import binary_entropy

SIFTING_RULE: Mapping[tuple[Basis, Basis], Basis] = MappingProxyType(
    {(Basis.KEY, Basis.KEY): Basis.KEY, (Basis.TEST, Basis.TEST): Basis.TEST}
)
"""(transmitter basis, receiver basis) to what a detection is used for; pairs that are absent are dropped.

Detections of every intensity are kept in both bases. Two clicks within a basis are one detection with a random bit.
"""


@dataclass(frozen=True, slots=True)
class ClickProbabilities:
    """What a pair of threshold detectors does in one gate when both bases match; the four sum to 1.

    Attributes:
        only_right: Only the right detector clicks.
        only_wrong: Only the wrong detector clicks.
        both: Both click.
        none: Neither clicks.
    """

    only_right: float
    only_wrong: float
    both: float
    none: float

    @property
    def gain(self) -> float:
        """Probability of a detection."""
        return self.only_right + self.only_wrong + self.both

    @property
    def qber(self) -> float:
        """Error rate of detections, double clicks given a random bit; 0 if there are none."""
        return (self.only_wrong + self.both / 2.0) / self.gain if self.gain > 0.0 else 0.0


def bb84_clicks(mu: float, eta: float, p_dark: float, e_mis: float) -> ClickProbabilities:
    """Click probabilities of a phase-randomised coherent pulse in the matching basis.

    The light splits into two independent Poissonian modes, one a detector.

    Args:
        mu: Mean photon number leaving the transmitter, >= 0.
        eta: Transmittance of everything behind it, detector efficiency included, 0..1.
        p_dark: Dark-count probability per gate and detector, 0..1.
        e_mis: Fraction of the light that leaves by the wrong port, 0..1.

    Source: N. Luetkenhaus, Phys. Rev. A 61, 052304 (2000), sections II and V; Ma, Qi, Zhao, Lo, Phys. Rev. A 72, 012326
    (2005), section II.
    """
    right = -math.expm1(math.log1p(-p_dark) - mu * eta * (1.0 - e_mis))
    wrong = -math.expm1(math.log1p(-p_dark) - mu * eta * e_mis)
    both = right * wrong
    return ClickProbabilities(right - both, wrong - both, both, (1.0 - right) * (1.0 - wrong))


@dataclass(frozen=True, slots=True)
class ExpectedLink:
    """A link without an attacker: passive basis choice by a splitter, two threshold detectors a basis.

    Attributes:
        mean_photon_number: mu_k, brightest first.
        intensity_probability: p_k.
        key_basis_probability: Of the transmitter's choice, and the splitter's ratio, 0..1.
        transmittance: Channel, receiver optics and detector efficiency together, 0..1.
        p_dark: Dark-count probability per gate and detector, 0..1.
        misalignment: Fraction of the light at the wrong detector, 0..1.
    """

    mean_photon_number: tuple[float, ...]
    intensity_probability: tuple[float, ...]
    key_basis_probability: float
    transmittance: float
    p_dark: float
    misalignment: float

    def expected_counts(self, pulses: float, *, reconciliation_efficiency: float) -> DecoyCounts:
        """Return the expected counts of a block, rounded.

        A pulse that clicks in both bases counts in one of them, at random. Dead time is not in it.

        Args:
            pulses: Pulses sent, >= 0.
            reconciliation_efficiency: Published bits over n h(QBER), >= 1.
        """
        n_key, m_key = self._counts(pulses, self.key_basis_probability)
        n_test, m_test = self._counts(pulses, 1.0 - self.key_basis_probability)
        total = sum(n_key)
        qber = sum(m_key) / total if total else 0.0
        return DecoyCounts(
            mean_photon_number=self.mean_photon_number,
            intensity_probability=self.intensity_probability,
            n_key=n_key,
            n_test=n_test,
            m_test=m_test,
            m_key=m_key,
            leak_bits=reconciliation_efficiency * total * binary_entropy(qber),
        )

    def _counts(self, pulses: float, arm: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return detections and errors per intensity for one basis, chosen with probability `arm` at both ends."""
        detections, errors = [], []
        for mu, p in zip(self.mean_photon_number, self.intensity_probability, strict=True):
            clicks = bb84_clicks(mu, self.transmittance * arm, self.p_dark, self.misalignment)
            other = bb84_clicks(mu, self.transmittance * (1.0 - arm), self.p_dark, 0.5)
            expected = pulses * p * arm * clicks.gain * (1.0 - other.gain / 2.0)
            detections.append(round(expected))
            errors.append(round(expected * clicks.qber))
        return tuple(detections), tuple(errors)

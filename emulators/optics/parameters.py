"""What the emulated link is made of: source, fibre, detectors, receiver clock, eavesdropper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attacks import ATTACKS
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.setup import (
    N_BASES_MAX,
    PROBABILITY_STEPS,
    PS_PER_S,
    Channel,
    Detector,
    Intensity,
    OpticalSetup,
    Receiver,
    Source,
    Tagger,
)

__all__ = ["PROBABILITY_STEPS", "PS_PER_S"]

Eavesdropper = Literal["none", "intercept-resend"]

MASTER_CLOCK_HZ = 10_000_000_000


@dataclass(frozen=True, slots=True)
class LinkParameters:
    """Settings of the optical link; fractions lie in 0..1.

    Attributes:
        pulse_rate_hz: Pulses per second; 1 MHz to 5 GHz, a divisor of 10 GHz.
        mean_photon_number: Mean photons per pulse at the transmitter's output, brightest first.
        intensity_probability: Probability of each intensity, quantised to 1/65536.
        key_basis_probability: Probability that the transmitter prepares in the key basis, quantised to 1/65536.
        receiver_key_basis_probability: Share of the passive splitter that goes to the key-basis detectors.
        loss_db: Fibre and receiver optics together.
        detector_efficiency: Of each of the four detectors.
        dark_count_rate_hz: Of each of the four detectors.
        dead_time_ns: Non-paralysable, of each detector on its own.
        jitter_ps: Standard deviation of the Gaussian timing jitter.
        misalignment: Probability that a photon in the matching basis reaches the wrong detector.
        receiver_clock_offset_s: Time from the receiver's start to the arrival of pulse 0; None draws it from the
            seed, uniform in 0 to 10 ms.
        receiver_clock_ppm: How much too fast the receiver's clock runs at the start.
        receiver_clock_drift_ppm_per_s: Linear change of that.
        receiver_clock_walk_ppm: Random walk of it: standard deviation after one second.
        eavesdropper: "none" or "intercept-resend", at the receiver's entrance.
        eavesdropper_fraction: Fraction of the pulses that are attacked.

    Raises:
        ConfigurationError: A value is out of range.
    """

    pulse_rate_hz: int = 20_000_000
    mean_photon_number: tuple[float, float, float] = (0.58, 0.17, 0.001)
    intensity_probability: tuple[float, float, float] = (0.65, 0.29, 0.06)
    key_basis_probability: float = 0.81
    receiver_key_basis_probability: float = 0.81
    loss_db: float = 10.0
    detector_efficiency: float = 0.5
    dark_count_rate_hz: float = 100.0
    dead_time_ns: float = 50.0
    jitter_ps: float = 350.0
    misalignment: float = 0.01
    receiver_clock_offset_s: float | None = None
    receiver_clock_ppm: float = 5.0
    receiver_clock_drift_ppm_per_s: float = 0.002
    receiver_clock_walk_ppm: float = 0.002
    eavesdropper: Eavesdropper = "none"
    eavesdropper_fraction: float = 1.0

    def __post_init__(self) -> None:
        mu, p = self.mean_photon_number, self.intensity_probability
        checks = (
            ("pulse_rate_hz", valid_pulse_rate(self.pulse_rate_hz), "a divisor of 10 GHz from 1 MHz to 5 GHz"),
            ("mean_photon_number", valid_mean_photon_number(mu), "three values, strictly falling, 0 to 2"),
            ("intensity_probability", valid_intensity_probability(p), "three values above 0 with sum 1"),
            ("key_basis_probability", 0.05 <= self.key_basis_probability <= 0.95, "0.05 to 0.95"),
            ("receiver_key_basis_probability", 0 <= self.receiver_key_basis_probability <= 1, "0 to 1"),
            ("loss_db", 0 <= self.loss_db <= 200, "0 to 200"),
            ("detector_efficiency", 0 <= self.detector_efficiency <= 1, "0 to 1"),
            ("dark_count_rate_hz", 0 <= self.dark_count_rate_hz <= 1e8, "0 to 1e8"),
            ("dead_time_ns", 0 <= self.dead_time_ns <= 1e9, "0 to 1e9"),
            ("jitter_ps", 0 <= self.jitter_ps <= 1e6, "0 to 1e6"),
            ("misalignment", 0 <= self.misalignment <= 1, "0 to 1"),
            ("receiver_clock_offset_s", 0 <= (self.receiver_clock_offset_s or 0.0) <= 60, "0 to 60"),
            ("receiver_clock_ppm", abs(self.receiver_clock_ppm) <= 1000, "-1000 to 1000"),
            ("receiver_clock_drift_ppm_per_s", abs(self.receiver_clock_drift_ppm_per_s) <= 1, "-1 to 1"),
            ("receiver_clock_walk_ppm", 0 <= self.receiver_clock_walk_ppm <= 10, "0 to 10"),
            ("eavesdropper", self.eavesdropper in {"none", "intercept-resend"}, "none or intercept-resend"),
            ("eavesdropper_fraction", 0 <= self.eavesdropper_fraction <= 1, "0 to 1"),
        )
        for name, ok, allowed in checks:
            if not ok:
                raise ConfigurationError(
                    f"link parameter {name} is {getattr(self, name)!r}", remedy=f"Allowed is {allowed}."
                )

    @property
    def pulse_period_ps(self) -> int:
        """Exact: every allowed pulse rate divides 10 GHz."""
        return PS_PER_S // self.pulse_rate_hz

    @property
    def transmittance(self) -> float:
        """Fraction of the light that reaches the receiver's splitter."""
        return float(10.0 ** (-self.loss_db / 10.0))

    def setup(self) -> OpticalSetup:
        """Return the whole link: a passive receiver of four detectors, a tagger with ticks of 2 ns."""
        detector = Detector(
            efficiency=self.detector_efficiency,
            dark_count_rate_hz=self.dark_count_rate_hz,
            dead_time_ns=self.dead_time_ns,
            jitter_ps=self.jitter_ps,
        )
        chosen = zip(self.mean_photon_number, self.intensity_probability, strict=True)
        return OpticalSetup(
            source=Source(
                pulse_rate_hz=self.pulse_rate_hz,
                intensities=tuple(Intensity(mean_photon_number=mu, probability=p) for mu, p in chosen),
                key_basis_probability=self.key_basis_probability,
            ),
            channel=Channel(connector_loss_db=self.loss_db),
            receiver=Receiver(
                key_basis_probability=self.receiver_key_basis_probability,
                misalignment=(self.misalignment,) * N_BASES_MAX,
                detectors=(detector,) * 4,
            ),
            tagger=Tagger(
                tick_fs=2_000_000,
                clock_offset_s=self.receiver_clock_offset_s,
                clock_ppm=self.receiver_clock_ppm,
                clock_drift_ppm_per_s=self.receiver_clock_drift_ppm_per_s,
                clock_walk_ppm=self.receiver_clock_walk_ppm,
            ),
        )

    def schedule(self) -> Schedule:
        """Return what the eavesdropper does, from the begin to the end."""
        if self.eavesdropper == "none":
            return Schedule()
        return Schedule((ATTACKS[self.eavesdropper].model_validate({"fraction": self.eavesdropper_fraction}),))


def valid_pulse_rate(pulse_rate_hz: int) -> bool:
    """Tell whether a rate is one that the transmitter can make."""
    return 1_000_000 <= pulse_rate_hz <= 5_000_000_000 and MASTER_CLOCK_HZ % pulse_rate_hz == 0


def valid_mean_photon_number(values: tuple[float, ...]) -> bool:
    """Tell whether there are three values in 0 to 2, strictly falling."""
    return len(values) == 3 and 2 >= values[0] > values[1] > values[2] >= 0


def valid_intensity_probability(values: tuple[float, ...]) -> bool:
    """Tell whether there are three values above 0 whose sum is 1 within 1e-6."""
    return len(values) == 3 and min(values) > 0 and math.isclose(sum(values), 1, rel_tol=0, abs_tol=1e-6)


def nearest_pulse_rate_hz(pulse_rate_hz: int) -> int:
    """Return the divisor of 10 GHz in 1 MHz to 5 GHz that is nearest, the lower one of two."""
    rates = (int(2**a * 5**b) for a in range(11) for b in range(11))
    return min((r for r in rates if valid_pulse_rate(r)), key=lambda r: (abs(r - pulse_rate_hz), r))


def probability_weights(probabilities: tuple[float, ...]) -> tuple[int, ...]:
    """Quantise probabilities to whole 65536ths, each at least one, with sum 65536."""
    weights = [max(1, round(p * PROBABILITY_STEPS)) for p in probabilities]
    weights[weights.index(max(weights))] += PROBABILITY_STEPS - sum(weights)
    return tuple(weights)

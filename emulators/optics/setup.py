"""What an optical link is made of, as values that a preset file holds: source, channel, receivers, taggers.

A preset is TOML with the tables `[source]`, `[channel]`, `[receiver]`, `[tagger]` (and `[sender_receiver]` for a source
of pairs); every name in it is a field below. Fractions lie in 0..1, efficiencies include nothing but what is named.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PS_PER_S = 1_000_000_000_000
PROBABILITY_STEPS = 65536
N_BASES_MAX = 3
MOST_CHILDREN = 0.9  # afterpulses of a click, of which ten clicks come in the end

Fraction01 = Annotated[float, Field(ge=0, le=1)]
Decibels = Annotated[float, Field(ge=0, le=300)]
Basis = Literal["key", "test", "third"]
BASES: tuple[Basis, ...] = ("key", "test", "third")


class Part(BaseModel):
    """Base of all parts: strict and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Intensity(Part):
    """One intensity setting of a weak coherent source.

    Attributes:
        mean_photon_number: Mean photons per pulse at the sender's output.
        probability: How often it is chosen; whole 65536ths are drawn.
    """

    mean_photon_number: float = Field(ge=0, le=10)
    probability: float = Field(gt=0, le=1)


class Source(Part):
    """The sender's light.

    Attributes:
        kind: Phase-randomised weak coherent pulses, single photons, pairs from pulses, or pairs from a steady pump.
        pulse_rate_hz: Pulses per second; the period is a whole number of picoseconds. Ignored for "pair-cw".
        encoding: What carries the bit. Time-bin: the key basis is the time of arrival in one of two bins.
        states: 4 (BB84), 3 (the test basis has one state, bit 0), or 6 (three bases).
        intensities: For weak coherent pulses: one to four, strictly falling, probabilities with sum 1; the first is the
            signal.
        key_basis_probability: How often the sender prepares in the key basis; the rest is shared by the others.
        preparation_error: For each basis: probability that a photon of a prepared state is found in the other one.
        extinction_ratio_db: Further error of the key basis by light in the wrong bin or mode, 1 / (1 + 10^(ER/10)).
        intensity_noise: Relative standard deviation of each pulse's mean photon number.
        pattern_effect: Relative change of a pulse after a signal pulse (correlated intensity).
        phase_randomised: False breaks an assumption of every proof; counts stay the same.
        pulse_fwhm_ps: Length of the optical pulse.
        spectral_width_nm: Standard deviation of the spectrum, for chromatic dispersion.
        single_photon_probability: For "single-photon": probability of one photon in a pulse. Without it and the next
            there is no light, which no link is simulated with.
        two_photon_probability: For "single-photon": probability of two.
        mean_pairs: For "pair-pulsed": mean pairs in each of the two modes, lambda of Ma, Fung, Lo.
        pair_rate_hz: For "pair-cw": pairs per second.
        pair_width_ps: For "pair-cw": standard deviation of the time between the photons of a pair.
    """

    kind: Literal["weak-coherent", "single-photon", "pair-pulsed", "pair-cw"] = "weak-coherent"
    pulse_rate_hz: int = Field(default=1_000_000_000, ge=1_000_000, le=5_000_000_000)
    encoding: Literal["polarisation", "time-bin", "phase"] = "polarisation"
    states: Literal[3, 4, 6] = 4
    intensities: tuple[Intensity, ...] = ()
    key_basis_probability: Fraction01 = 0.5
    preparation_error: tuple[Fraction01, ...] = (0.0, 0.0, 0.0)
    extinction_ratio_db: float = Field(default=300.0, ge=0, le=300)
    intensity_noise: float = Field(default=0.0, ge=0, le=0.15)
    pattern_effect: float = Field(default=0.0, ge=-0.5, le=0.5)
    phase_randomised: bool = True
    pulse_fwhm_ps: float = Field(default=0.0, ge=0, le=100_000)
    spectral_width_nm: float = Field(default=0.0, ge=0, le=10)
    single_photon_probability: Fraction01 = 0.0
    two_photon_probability: Fraction01 = 0.0
    mean_pairs: float = Field(default=0.0, ge=0, le=2)
    pair_rate_hz: float = Field(default=0.0, ge=0, le=1e9)
    pair_width_ps: float = Field(default=0.0, ge=0, le=10_000)

    @property
    def bases(self) -> int:
        """How many bases are prepared: 2 or 3."""
        return 3 if self.states == 6 else 2

    @property
    def of_pairs(self) -> bool:
        """Whether both ends detect."""
        return self.kind in {"pair-pulsed", "pair-cw"}

    @property
    def period_ps(self) -> int:
        """Time from pulse to pulse."""
        return PS_PER_S // self.pulse_rate_hz

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind != "pair-cw" and PS_PER_S % self.pulse_rate_hz:
            raise ValueError("pulse_rate_hz: the period must be a whole number of picoseconds")
        if len(self.preparation_error) != N_BASES_MAX:
            raise ValueError("preparation_error: give three values, for key, test and third basis")
        if self.kind == "weak-coherent":
            mu = [i.mean_photon_number for i in self.intensities]
            if not mu:
                raise ValueError(
                    "intensities: give one, such as { mean_photon_number = 0.5, probability = 1 }, to four"
                )
            if len(mu) > 4 or any(a <= b for a, b in itertools.pairwise(mu)):
                raise ValueError("intensities: give one to four, strictly falling")
            if not math.isclose(sum(i.probability for i in self.intensities), 1, rel_tol=0, abs_tol=1e-6):
                raise ValueError("intensities: the probabilities must sum to 1")
        if self.kind == "single-photon" and self.single_photon_probability + self.two_photon_probability > 1:
            raise ValueError("single_photon_probability and two_photon_probability: their sum is above 1")
        return self


class Channel(Part):
    """The fibre (and whatever else is between the sender's output and the receiver's input).

    Attributes:
        length_km: Length of the fibre.
        attenuation_db_per_km: Of the fibre.
        connector_loss_db: Connectors and splices together.
        group_delay_us_per_km: 4.9 for ordinary fibre.
        thermal_delay_ps_per_km_k: Change of the delay with temperature.
        temperature_swing_k: Amplitude of the fibre's temperature, a sine that begins at 0.
        temperature_period_s: Its period; a day.
        dispersion_ps_per_nm_km: Chromatic dispersion.
        pmd_ps_per_sqrt_km: Polarisation-mode dispersion.
        drift_correlation_s: Time in which polarisation (or phase) loses its correlation; 0: it does not drift.
        background_rate_hz: Stray and Raman photons per second at the receiver's input.
    """

    length_km: float = Field(default=0.0, ge=0, le=2000)
    attenuation_db_per_km: float = Field(default=0.2, ge=0, le=10)
    connector_loss_db: Decibels = 0.0
    group_delay_us_per_km: float = Field(default=4.9, ge=0, le=10)
    thermal_delay_ps_per_km_k: float = Field(default=38.0, ge=-100, le=100)
    temperature_swing_k: float = Field(default=0.0, ge=0, le=100)
    temperature_period_s: float = Field(default=86_400.0, gt=0, le=1e9)
    dispersion_ps_per_nm_km: float = Field(default=0.0, ge=-200, le=200)
    pmd_ps_per_sqrt_km: float = Field(default=0.0, ge=0, le=10)
    drift_correlation_s: float = Field(default=0.0, ge=0, le=1e9)
    background_rate_hz: float = Field(default=0.0, ge=0, le=1e9)

    @property
    def loss_db(self) -> float:
        """Fibre and connectors."""
        return self.length_km * self.attenuation_db_per_km + self.connector_loss_db

    def thermal_delay(self, now_s: float) -> tuple[float, float]:
        """Return how much the travel time has changed since the beginning, in ps, and how fast it does, in ps/s."""
        pace = 2 * math.pi / self.temperature_period_s
        swing_ps = self.thermal_delay_ps_per_km_k * self.length_km * self.temperature_swing_k
        return swing_ps * math.sin(pace * now_s), swing_ps * pace * math.cos(pace * now_s)


class Afterpulse(Part):
    """One exponential component of afterpulsing.

    Attributes:
        probability: Mean number of children of a click in this component, from the click on, before dead time. Of a
            gated detector all of them come in gates, each in the first that opens after its time: registered
            afterpulses per click, as published.
        tau_ns: Its lifetime.
    """

    probability: float = Field(ge=0, lt=1)
    tau_ns: float = Field(ge=1e-3, le=1e9)


class AfterpulsePowerLaw(Part):
    """Afterpulses with a waiting-time density ~ t^-exponent between two times.

    Attributes:
        probability: Mean number of children of a click, as in `Afterpulse`.
        exponent: About 1 for InGaAs.
        from_ns: Shortest waiting time.
        to_ns: Longest waiting time, above `from_ns`.
    """

    probability: float = Field(ge=0, lt=1)
    exponent: float = Field(default=1.0, ge=0, le=3)
    from_ns: float = Field(default=10.0, ge=1e-3, le=1e9)
    to_ns: float = Field(default=100_000.0, ge=1e-3, le=1e9)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.from_ns >= self.to_ns:
            raise ValueError(f"to_ns: {self.to_ns:g} is not above from_ns, {self.from_ns:g}")
        return self


class Detector(Part):
    """One detector.

    Attributes:
        efficiency: Probability that a photon makes a click.
        dark_count_rate_hz: Dark counts per second while it can click; for a gated detector, while the gate is open.
        dead_time_ns: After a click.
        dead_time_kind: Whether an event in the dead time prolongs it.
        recovery_ns: Time constant with which the efficiency comes back after the dead time; 0: at once.
        afterpulses: Exponential components; a cascade: afterpulses have afterpulses.
        afterpulse_power_law: In place of components. Either way a click has at most 0.9 children.
        jitter_ps: Standard deviation of the Gaussian part of the jitter.
        jitter_tail_weight: Share of clicks with an exponential delay on top.
        jitter_tail_ps: Constant of that delay.
        latches_above_hz: Count rate at which it latches and stays silent until reset; 0: never.
        delay_ps: Difference of this detector's path; the tagger's skew comes on top.
    """

    efficiency: Fraction01 = 1.0
    dark_count_rate_hz: float = Field(default=0.0, ge=0, le=1e9)
    dead_time_ns: float = Field(default=0.0, ge=0, le=1e9)
    dead_time_kind: Literal["non-paralysable", "paralysable"] = "non-paralysable"
    recovery_ns: float = Field(default=0.0, ge=0, le=1e9)
    afterpulses: tuple[Afterpulse, ...] = Field(default=(), max_length=8)
    afterpulse_power_law: AfterpulsePowerLaw | None = None
    jitter_ps: float = Field(default=0.0, ge=0, le=1e6)
    jitter_tail_weight: Fraction01 = 0.0
    jitter_tail_ps: float = Field(default=0.0, ge=0, le=1e6)
    latches_above_hz: float = Field(default=0.0, ge=0, le=1e12)
    delay_ps: float = Field(default=0.0, ge=-1e6, le=1e6)

    @property
    def afterpulse_probability(self) -> float:
        """Mean children of a click, dead time left aside."""
        law = self.afterpulse_power_law
        return law.probability if law else sum(a.probability for a in self.afterpulses)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.afterpulses and self.afterpulse_power_law:
            raise ValueError("afterpulses and afterpulse_power_law: give one of them")
        if self.afterpulse_probability > MOST_CHILDREN:
            raise ValueError(
                f"afterpulses: {self.afterpulse_probability:g} children of a click, at most {MOST_CHILDREN}"
            )
        return self


class Gate(Part):
    """When gated detectors can click: a window around each arrival of a pulse.

    Attributes:
        width_ps: Length of the window; 0: free-running.
        profile_fwhm_ps: Width of a Gaussian efficiency profile within it; 0: flat.
        offset_ps: Centre of the window after the pulse's mean arrival.
    """

    width_ps: float = Field(default=0.0, ge=0, le=1e6)
    profile_fwhm_ps: float = Field(default=0.0, ge=0, le=1e6)
    offset_ps: float = Field(default=0.0, ge=-1e6, le=1e6)


class Receiver(Part):
    """Optics and detectors of one end.

    Attributes:
        basis_choice: A random switch for each pulse, or a beam splitter.
        key_basis_probability: How often the key basis is measured.
        loss_db: Optics before the detectors, both bases.
        test_loss_db: Further loss of the test basis, such as 3 dB of an interferometer's side bins.
        misalignment: For each basis: probability that a photon leaves by the wrong port.
        detectors: Two per basis, bit 0 first, key basis first: 4, or 6 with three bases; 2 are shared by all bases of
            an active choice; with time bins 1 or 2 for the key basis (bit = bin) and the test basis' ones after them,
            see `layout`.
        layout: For each detector: what its clicks mean, as "key0", "key1", "test0", "test1", "third0", "third1",
            "key" (time bin) or "any0", "any1" (both bases of an active choice). Empty: the order above. The key basis
            needs both bits; other bases may have one port, or none: what goes there is lost.
        bin_separation_ps: Time between the two bins of time-bin encoding, which needs it; below the pulses' period.
        gate: When the detectors can click.
    """

    basis_choice: Literal["active", "passive"] = "passive"
    key_basis_probability: Fraction01 = 0.5
    loss_db: Decibels = 0.0
    test_loss_db: Decibels = 0.0
    misalignment: tuple[Fraction01, ...] = (0.0, 0.0, 0.0)
    detectors: tuple[Detector, ...] = Field(min_length=1, max_length=8)
    layout: tuple[Literal["key0", "key1", "test0", "test1", "third0", "third1", "key", "any0", "any1"], ...] = ()
    bin_separation_ps: float = Field(default=0.0, ge=0, le=1e6)
    gate: Gate = Gate()

    @property
    def meaning(self) -> tuple[str, ...]:
        """What a click of each detector means."""
        if self.layout:
            return self.layout
        if len(self.detectors) == 2:
            return ("any0", "any1")
        return tuple(f"{basis}{bit}" for basis in BASES for bit in (0, 1))[: len(self.detectors)]

    @property
    def tells_key_bits(self) -> bool:
        """Whether both bits of the key basis have a detector."""
        return "key" in self.meaning or all({f"key{bit}", f"any{bit}"} & {*self.meaning} for bit in (0, 1))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.misalignment) != N_BASES_MAX:
            raise ValueError("misalignment: give three values, for key, test and third basis")
        if len(self.meaning) != len(self.detectors):
            raise ValueError("layout: give one meaning for each detector")
        if any(m.startswith("any") for m in self.meaning) and self.basis_choice == "passive":
            raise ValueError("layout: detectors shared by the bases need an active basis choice")
        if "key" in self.meaning and not self.bin_separation_ps:
            raise ValueError("bin_separation_ps: a time-bin detector needs it")
        return self


class Tagger(Part):
    """The time tagger behind the detectors, and its clock.

    Attributes:
        tick_fs: Length of a tick in femtoseconds: 1000 for 1 ps, 125000 for 125 ps.
        noise_ps: Standard deviation of the tagger's own timing noise.
        non_linearity: Largest relative deviation of a bin's width (DNL); a fixed pattern of 256 bins from the seed.
        skew_ps: For each channel, constant delay; channels beyond its end have none.
        clock_offset_s: Reading of the clock when the first pulse arrives; None draws 0 to 10 ms from the seed.
        clock_ppm: How much too fast the clock runs.
        clock_drift_ppm_per_s: Linear change of that.
        clock_walk_ppm: Random walk of it: standard deviation after one second.
    """

    tick_fs: int = Field(default=1000, ge=1, le=10_000_000)
    noise_ps: float = Field(default=0.0, ge=0, le=1e5)
    non_linearity: float = Field(default=0.0, ge=0, le=0.9)
    skew_ps: tuple[Annotated[float, Field(ge=-1e9, le=1e9)], ...] = Field(default=(), max_length=8)
    clock_offset_s: float | None = Field(default=None, ge=0, le=60)
    clock_ppm: float = Field(default=0.0, ge=-1000, le=1000)
    clock_drift_ppm_per_s: float = Field(default=0.0, ge=-1, le=1)
    clock_walk_ppm: float = Field(default=0.0, ge=0, le=10)


class OpticalSetup(Part):
    """A whole link.

    Attributes:
        title: What it is, in a line.
        citations: Where the numbers come from.
        published: What was published about it, by name, for comparison.
        source: The sender's light.
        channel: The way.
        receiver: Bob.
        tagger: Bob's.
        sender_receiver: Alice's, if the source makes pairs.
        sender_tagger: Alice's, if the source makes pairs.
    """

    title: str = ""
    citations: tuple[str, ...] = ()
    published: dict[str, float] = {}
    source: Source
    channel: Channel = Channel()
    receiver: Receiver
    tagger: Tagger = Tagger()
    sender_receiver: Receiver | None = None
    sender_tagger: Tagger | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source.of_pairs != (self.sender_receiver is not None):
            raise ValueError("sender_receiver: a source of pairs needs one, any other source has none")
        if self.sender_tagger is not None and not self.source.of_pairs:
            raise ValueError("sender_tagger: only a source of pairs has one; the receiver's is [tagger]")
        for end, receiver in (("receiver", self.receiver), ("sender_receiver", self.sender_receiver)):
            if receiver is not None and not receiver.tells_key_bits:
                raise ValueError(
                    f"{end}.layout: its detectors are {', '.join(receiver.meaning)}, which tells no bits of the key "
                    "basis; give detectors for both: key0 and key1, or any0 and any1, or one key with time bins"
                )
        if self.source.kind != "pair-cw" and self.receiver.gate.width_ps > self.source.period_ps:
            raise ValueError(f"receiver.gate.width_ps: at most the period, {self.source.period_ps} ps")
        return self

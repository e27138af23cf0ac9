"""What a pulse sends to each detector, for every state that a pulse can be in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POISSON = 255


@dataclass(frozen=True, slots=True)
class PulseTables:
    """The optics between the sender's choices and the detectors, as numbers.

    A state is (choice * n_bob + bob_basis) * n_hidden + hidden: the sender's choice (intensity * 3 + basis) * 2 + bit,
    the basis of a receiver that switches (0 for a passive one), and what an eavesdropper did. A mode is a place where
    a photon may be detected: a detector and a time. Poissonian light splits into independent Poissonians per mode.

    Attributes:
        intensity_thresholds: uint32, cumulative 65536ths, last 65536.
        basis_thresholds: uint32, the same for the sender's basis.
        bob_thresholds: uint32, the same for the receiver's basis; one value for a passive one.
        three_state: Whether the test basis has bit 0 only.
        hidden_cumulative: float64 (n_choices, n_bob, n_hidden), cumulative probabilities, last 1.
        photons: uint8 (n_states,), 255 for Poissonian light, else the exact number of photons.
        shares: float64 (n_states, n_modes): Poissonian light: mean detectable photons in each mode, efficiency
            included; else the probability of each photon to be detected in the mode.
        bright: uint8 (n_states,), 1 for light that makes any detector click.
        state_offset_ps: float64 (n_states,), delay of the pulse.
        mode_detector: uint8 (n_modes,).
        mode_offset_ps: float64 (n_modes,).
        pulse_sigma_ps: Standard deviation of a photon's time within the pulse.
        period_ps: Time from pulse to pulse.
        intensity_noise: Relative standard deviation of a pulse's mean, truncated at five.
        pattern_effect: Relative change of the mean after a pulse of intensity 0.
    """

    intensity_thresholds: NDArray[np.uint32]
    basis_thresholds: NDArray[np.uint32]
    bob_thresholds: NDArray[np.uint32]
    three_state: bool
    hidden_cumulative: NDArray[np.float64]
    photons: NDArray[np.uint8]
    shares: NDArray[np.float64]
    bright: NDArray[np.uint8]
    state_offset_ps: NDArray[np.float64]
    mode_detector: NDArray[np.uint8]
    mode_offset_ps: NDArray[np.float64]
    pulse_sigma_ps: float
    period_ps: int
    intensity_noise: float
    pattern_effect: float

    @property
    def n_choices(self) -> int:
        """Choices of the sender."""
        return int(self.hidden_cumulative.shape[0])

    @property
    def n_bob(self) -> int:
        """Choices of the receiver."""
        return int(self.hidden_cumulative.shape[1])

    @property
    def n_hidden(self) -> int:
        """What an eavesdropper may have done."""
        return int(self.hidden_cumulative.shape[2])

"""How the channel turns polarisation or phase in time: a random walk with a correlation time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.setup import OpticalSetup

Rotation = NDArray[np.float64]
STEP = 0.02  # of a correlation time: rotations of a step are small
MOST_CORRELATION_TIMES = 10.0  # nothing is left of where a state was


class Drift:
    """Rotation of the Bloch sphere from cell to cell.

    Polarisation walks on the whole sphere, a phase about the axis of the key basis. In a time t the mean cosine of the
    angle between where a state was and where it is falls to exp(-t / correlation time).

    Args:
        setup: The link.
        cell_s: Length of a cell.
        seed_sequence: Of the walk.
    """

    def __init__(self, setup: OpticalSetup, cell_s: float, seed_sequence: np.random.SeedSequence) -> None:
        correlation_s = setup.channel.drift_correlation_s
        self._rng = np.random.Generator(np.random.SFC64(seed_sequence))
        self._whole_sphere = setup.source.encoding == "polarisation"
        self._share = cell_s / correlation_s if correlation_s else 0.0
        self.rotation: Rotation = np.eye(3)

    @property
    def stands_still(self) -> bool:
        """Whether the rotation never changes."""
        return self._share == 0.0

    def advance(self) -> None:
        """Go on by a cell."""
        if self.stands_still:
            return
        steps = math.ceil(min(self._share, MOST_CORRELATION_TIMES) / STEP)
        share = min(self._share, MOST_CORRELATION_TIMES) / steps
        for _ in range(steps):
            if self._whole_sphere:
                # E[cos] of a small rotation about a Gaussian axis of variance v per component is 1 - v
                axis = self._rng.standard_normal(3) * math.sqrt(share)
            else:
                axis = np.array([0.0, 0.0, self._rng.standard_normal() * math.sqrt(2 * share)])
            self.rotation = rotation_about(axis) @ self.rotation


def rotation_about(axis: NDArray[np.float64]) -> Rotation:
    """Return the rotation about an axis by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(axis))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = axis / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turned: Rotation = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross)
    return turned

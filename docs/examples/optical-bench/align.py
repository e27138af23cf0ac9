"""Align the polarisation of a bench: horizontal light to key bit 0, diagonal light to test bit 0.

Eight settings of the paddles are enough to learn what the fibre and the paddles do; then the angles are calculated.
What is not known beforehand is fitted: how the fibre turns polarisation, how much each paddle retards, how unequal the
detectors are, and their contrast.

    python align.py bench.toml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench import Bench, open_bench
from qkdhw.errors import QkdhwError
from qkdhw.model import Basis

Array = NDArray[np.float64]

HORIZONTAL_DEG, DIAGONAL_DEG = 0.0, 22.5  # of the half-wave plate
LONGEST_DEG = 170.0
SETTINGS_TO_LEARN = 8
SIGMA = 0.005  # of a measured share, for the fit: a little more than its counting error
# fitted: 0-2 rotation of the fibre, 3-5 retardances of the paddles, 6-7 logarithms of the detectors' ratios, 8 contrast
USUAL = np.array([0, 0, 0, np.pi / 2, np.pi, np.pi / 2, 0, 0, 0.99])
SPREAD = np.array([np.inf] * 3 + [0.15, 0.3, 0.15, 0.5, 0.5, 0.02])


@dataclass(frozen=True)
class Aligned:
    """How an alignment went.

    Attributes:
        steps: Settings of the paddles that were measured.
        qber_key: Share of the wrong detector with horizontal light.
        qber_test: Share of the wrong detector with diagonal light.
        angles_deg: Where the paddles are.
    """

    steps: int
    qber_key: float
    qber_test: float
    angles_deg: tuple[float, ...]


def align(bench: Bench, *, limit: float = 0.01, most_steps: int = 16, seed: int | None = None) -> Aligned:
    """Turn the paddles until both error rates are below `limit`.

    Args:
        bench: With units "plate", "controller" and "tagger"; light and detectors are on.
        limit: Largest error rate.
        most_steps: After so many settings of the paddles it gives up.
        seed: Of the settings at which the paddles are learned.
    """
    rng = np.random.default_rng(seed)
    angles: list[Array] = []
    shares: list[Array] = []
    learned = None
    while True:
        if len(angles) < SETTINGS_TO_LEARN:
            wanted = rng.uniform(0, LONGEST_DEG, 3)
        else:
            learned = fit(np.array(angles), np.array(shares), learned, rng)
            wanted = best_angles(learned)
        at, right = measure(bench, wanted)
        angles.append(at)
        shares.append(right)
        qber_key, qber_test = float(1 - right[0]), float(1 - right[3])
        if max(qber_key, qber_test) < limit or len(angles) == most_steps:
            return Aligned(len(angles), qber_key, qber_test, tuple(map(float, at)))


def measure(bench: Bench, wanted_deg: Array) -> tuple[Array, Array]:
    """Turn the paddles and count; return where they are and the shares of bit 0.

    Returns:
        Angles in degrees, (3,); shares in the key basis of horizontal and diagonal light, then in the test basis, (4,).
    """
    controller, plate = bench.units["controller"], bench.units["plate"]
    at = [controller.set_retarder(number, angle) for number, angle in zip((1, 2, 3), wanted_deg, strict=True)]
    states = [HORIZONTAL_DEG, DIAGONAL_DEG]
    if abs(plate.read_position() - DIAGONAL_DEG) < 1:  # the nearer one first: the mount is slow
        states.reverse()
    seen = {}
    for state in states:
        plate.move_to(state)
        seen[state] = shares_of_bit_0(bench)
    return np.array(at), np.array([seen[state][basis] for basis in (0, 1) for state in sorted(states)])


def shares_of_bit_0(bench: Bench) -> tuple[float, float]:
    """Count, and return the share of bit 0 in the key basis and in the test basis."""
    counts = bench.units["tagger"].read_counts()
    of = {place: counts[channel - 1] for channel, place in bench.detectors("tagger").items()}
    return tuple(of[basis, 0] / max(1, of[basis, 0] + of[basis, 1]) for basis in (Basis.KEY, Basis.TEST))


def retarders(angles: Array, retardance: float) -> Array:
    """Return what a retarder at each of these angles does to the Stokes vector, (n, 3, 3)."""
    c, s = np.cos(2 * angles), np.sin(2 * angles)
    cos, sin = np.cos(retardance), np.sin(retardance)
    rows = [
        [c * c + s * s * cos, c * s * (1 - cos), s * sin],
        [c * s * (1 - cos), s * s + c * c * cos, -c * sin],
        [-s * sin, c * sin, cos + 0 * c],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def rotation(axis: Array) -> Array:
    """Return the rotation about an axis by its length."""
    angle = max(float(np.linalg.norm(axis)), 1e-12)
    x, y, z = axis / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def expected_shares(p: Array, angles_deg: Array) -> Array:
    """Return the shares of bit 0 that are expected at these settings, (n, 4)."""
    angles = np.radians(angles_deg)
    first, second, third = (retarders(angles[:, n], p[3 + n]) for n in range(3))
    turned = third @ second @ first @ rotation(p[:3])
    light = (1 + p[8] * turned[:, :2, :2]) / 2
    ratio = np.exp(p[6:8])[:, None]
    return (ratio * light / (ratio * light + 1 - light)).reshape(-1, 4)


def fit(angles_deg: Array, shares: Array, before: Array | None, rng: np.random.Generator) -> Array:
    """Learn the fibre and the paddles from what was measured: least squares from several beginnings."""

    def residuals(p: Array) -> Array:
        return np.append((expected_shares(p, angles_deg) - shares) / SIGMA, (p - USUAL) / SPREAD)

    best, least = USUAL, np.inf
    for number in range(30):
        begin = np.append(rng.uniform(-2, 2, 3), USUAL[3:]) if number or before is None else before
        found = least_squares(residuals, begin)
        if (squares := float(np.sum(residuals(found) ** 2))) < least:
            best, least = found, squares
        if least < 3 * shares.size:
            break
    return best


def least_squares(residuals: Callable[[Array], Array], p: Array, steps: int = 40) -> Array:
    """Minimise a sum of squares (Levenberg, Marquardt)."""
    damping, now = 1.0, residuals(p)
    for _ in range(steps):
        slopes = np.array([(residuals(p + each) - now) / 1e-5 for each in 1e-5 * np.eye(len(p))])
        curvature = slopes @ slopes.T
        tried = p - np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), slopes @ now)
        there = residuals(tried)
        if there @ there < now @ now:
            p, now, damping = tried, there, damping / 5
        else:
            damping *= 5
    return p


def best_angles(p: Array) -> Array:
    """Return the angles in degrees that bring both states where they belong, by ever finer grids."""
    low, high = np.zeros(3), np.full(3, LONGEST_DEG)
    for points in (35, 21, 21):
        grid = [np.linspace(*ends, points) for ends in zip(low, high, strict=True)]
        first, second, third = (retarders(np.radians(grid[n]), p[3 + n]) for n in range(3))
        from_fibre = first @ rotation(p[:3])[:, :2]
        good = np.einsum("zki,yij,xjk->xyz", third[:, :2], second, from_fibre, optimize=True)
        at = np.array([grid[n][i] for n, i in enumerate(np.unravel_index(good.argmax(), good.shape))])
        step = (high - low) / (points - 1)
        low, high = np.maximum(at - step, 0), np.minimum(at + step, LONGEST_DEG)
    return at


def align_with_light(bench: Bench, limit: float) -> Aligned:
    """Switch light and detectors on, align, and switch the light off, whatever happens."""
    laser = bench.units["laser"]
    bench.units["detectors"].enable_detectors()
    bench.units["attenuator"].configure({"shutter_open": True})
    try:
        laser.enable_output()
        bench.units["plate"].home()
        return align(bench, limit=limit)
    finally:
        laser.disable_output()


def main() -> int:
    """Align the bench of the command line, and say how it went; 1 if it is not aligned."""
    parser = argparse.ArgumentParser(description="Align the polarisation of a bench.")
    parser.add_argument("bench", help="bench file")
    parser.add_argument("--limit", type=float, default=0.01, help="largest error rate (default 0.01)")
    options = parser.parse_args()
    try:
        with open_bench(options.bench) as bench:
            aligned = align_with_light(bench, options.limit)
    except QkdhwError as error:
        sys.stderr.write(f"{error}\n{error.remedy}\n")
        return 1
    paddles = ", ".join(f"{angle:.1f}" for angle in aligned.angles_deg)
    rates = f"{aligned.qber_key:.2%} in the key basis, {aligned.qber_test:.2%} in the test basis"
    sys.stdout.write(f"{aligned.steps} settings; paddles at {paddles} degrees; error rate {rates}\n")
    if max(aligned.qber_key, aligned.qber_test) < options.limit:
        return 0
    sys.stderr.write(f"not aligned: after {aligned.steps} settings an error rate is not below {options.limit:.2%}\n")
    sys.stderr.write(
        "check that the light passes the controller and that every detector counts, or give a higher --limit\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""Linear two-decoy formulas: bounds on zero- and one-photon counts from bounds on the counts of three intensities.

Write W_k for the mean count of intensity k times e^(mu_k)/p_k. Whatever the channel does, W_k = sum_n mu_k^n S_n / n!
with the same S_n >= 0 for all k, where tau_n S_n is the number of n-photon events. The formulas combine three such
series so that the unwanted terms have one sign.

Source: Lim, Curty, Walenta, Xu, Zbinden, Phys. Rev. A 89, 022307 (2014), equations (2) to (4).
"""

from __future__ import annotations

from collections.abc import Sequence


def vacuum_lower_bound(mu: Sequence[float], tau_0: float, *, dark_lower: float, middle_upper: float) -> float:
    """Lower bound on zero-photon events, equation (2).

    Args:
        mu: Mean photon numbers mu_1 > mu_2 > mu_3.
        tau_0: Probability of no photon.
        dark_lower: Lower bound on W_3.
        middle_upper: Upper bound on W_2.
    """
    return max(0.0, tau_0 * (mu[1] * dark_lower - mu[2] * middle_upper) / (mu[1] - mu[2]))


def single_photon_lower_bound(
    mu: Sequence[float],
    tau_1: float,
    *,
    middle_lower: float,
    dark_upper: float,
    bright_upper: float,
    vacuum_series: float,
) -> float:
    """Lower bound on one-photon events, equation (3); negative if the bounds are too wide.

    Args:
        mu: Mean photon numbers, mu_1 > mu_2 + mu_3.
        tau_1: Probability of one photon.
        middle_lower: Lower bound on W_2.
        dark_upper: Upper bound on W_3.
        bright_upper: Upper bound on W_1.
        vacuum_series: Lower bound on S_0 (zero-photon events over tau_0).
    """
    mu_1, mu_2, mu_3 = mu
    squares = (mu_2 - mu_3) * (mu_2 + mu_3)
    numerator = middle_lower - dark_upper - squares / mu_1**2 * (bright_upper - vacuum_series)
    # The denominator as a product: as a difference of squares its rounding error could change its sign.
    return tau_1 * mu_1 * numerator / ((mu_2 - mu_3) * (mu_1 - mu_2 - mu_3))


def single_photon_error_upper_bound(
    mu: Sequence[float], tau_1: float, *, middle_upper: float, dark_lower: float
) -> float:
    """Upper bound on one-photon errors, equation (4), not below 0.

    Args:
        mu: Mean photon numbers, mu_2 > mu_3.
        tau_1: Probability of one photon.
        middle_upper: Upper bound on W_2 of the errors.
        dark_lower: Lower bound on W_3 of the errors.
    """
    return max(0.0, tau_1 * (middle_upper - dark_lower) / (mu[1] - mu[2]))

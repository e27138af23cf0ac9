"""DetectorChain obeys the laws of detectors; each law has a wrong one beside it that the same clicks refuse."""

import math

import numpy as np
import pytest
from oracle_detector import detect_alone
from statistics_of_counts import LEAST_P, p_chi_square, p_gauss, p_kolmogorov

from qkdhw_emulators._optics.detector import DetectorChain

PS_PER_S = 1e12
NO_LIGHT = np.empty(0), np.empty(0, np.uint8), np.empty(0, np.int64)


def clicks(seed, until_ps, time_ps=None, room=1 << 16, **arguments):
    """Return times, causes and arrivals."""
    light = NO_LIGHT
    if time_ps is not None:
        light = time_ps, np.zeros(len(time_ps), np.uint8), np.arange(len(time_ps))
    chain, parts, used = DetectorChain(np.random.SFC64(seed), **arguments), [], 0
    while True:
        out = np.empty(room), np.empty(room, np.uint8), np.empty(room, np.int64)
        more, n = detect_alone(chain, *(column[used:] for column in light), until_ps, *out)
        used += more
        parts.append([column[:n] for column in out])
        if n < room:
            return [np.concatenate(column) for column in zip(*parts, strict=True)]


@np.vectorize
def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


DEAD_PS = 1e6


def non_paralysable(x):
    return 1 / (1 + x), 1 / (1 + x) ** 2


def paralysable(x):
    return math.exp(-x), 1 - 2 * x * math.exp(-x)


@pytest.mark.parametrize("x", [0.01, 0.1, 1, 5])
@pytest.mark.parametrize(("law", "other"), [(non_paralysable, paralysable), (paralysable, non_paralysable)])
def test_dead_time_takes_its_share_and_narrows_the_counts(x, law, other):
    n_windows, events = 4000, 6_000_000
    window_ps = events / n_windows * DEAD_PS / x
    time_ps, _, _ = clicks(
        1, n_windows * window_ps, dark_hz=x * 1e6, dead_time_ps=DEAD_PS, paralysable=law is paralysable
    )
    counts = np.bincount((time_ps // window_ps).astype(int), minlength=n_windows)

    def p_mean(share, fano):
        return p_gauss(len(time_ps), events * share, math.sqrt(events * share * fano))

    def p_variance(share, fano):
        expected = events / n_windows * share * fano
        return p_gauss(counts.var(ddof=1), expected, expected * math.sqrt(2 / (n_windows - 1)))

    assert p_mean(*law(x)) > LEAST_P
    assert p_variance(*law(x)) > LEAST_P
    assert p_mean(1, 1) < LEAST_P
    if x > 0.01:  # of 1 % of dead time the two kinds make the same
        assert p_mean(*other(x)) < LEAST_P
    if x in {0.1, 1}:
        assert p_variance(law(x)[0], 1) < LEAST_P  # Poissonian counts


def test_intervals_are_the_dead_time_and_an_exponential():
    time_ps, _, _ = clicks(2, 0.2 * PS_PER_S, dark_hz=1e6, dead_time_ps=DEAD_PS)
    intervals = np.diff(time_ps)

    def p(dead_ps, rate_hz):
        return p_kolmogorov(intervals, lambda t: 1 - np.exp(-np.maximum(t - dead_ps, 0) * rate_hz / PS_PER_S))

    assert p(DEAD_PS, 1e6) > LEAST_P
    assert p(1.03 * DEAD_PS, 1e6) < LEAST_P
    assert p(DEAD_PS, 1.05e6) < LEAST_P


def test_noise_has_two_causes_and_changes_from_a_horizon_on():
    chain = DetectorChain(np.random.SFC64(3), dark_hz=1e6, background_hz=3e6)
    out = np.empty(1 << 20), np.empty(1 << 20, np.uint8), np.empty(1 << 20, np.int64)
    for dark_hz, background_hz in ((1e6, 3e6), (2e6, 1e6), (0, 0), (0, 1e6), (1e6, 0)):
        chain.set_noise(dark_hz, background_hz)
        _, n = detect_alone(chain, *NO_LIGHT, 1e11, *out)
        assert n == 0 or out[0][n - 1] < 1e11
        for cause, rate_hz in ((1, dark_hz), (3, background_hz)):
            found = np.count_nonzero(out[1][:n] == cause)
            assert found == 0 if rate_hz == 0 else p_gauss(found, rate_hz / 10, math.sqrt(rate_hz / 10)) > LEAST_P
            assert p_gauss(found, rate_hz / 10 + 3000, math.sqrt(rate_hz / 10 + 3000)) < LEAST_P
        chain.rebase(10**11)


def test_a_cascade_multiplies_the_rate():
    p, parents = 0.3, 500_000
    time_ps, cause, _ = clicks(
        4, parents / 1e5 * PS_PER_S, dark_hz=1e5, child_probability=[0.1, 0.2], child_tau_ps=[1e4, 1e5]
    )
    sigma = math.sqrt(parents / (1 - p) ** 3)
    assert p_gauss(len(time_ps), parents / (1 - p), sigma) > LEAST_P
    assert p_gauss(len(time_ps), parents * (1 + p), sigma) < LEAST_P  # children without children
    assert p_gauss(np.count_nonzero(cause == 1), parents, math.sqrt(parents)) > LEAST_P


def test_pairs_of_clicks_are_as_frequent_as_in_a_hawkes_process():
    p, tau_ps, rate_hz = 0.3, 1e6, 1e4
    time_ps, _, _ = clicks(5, 100 * PS_PER_S, dark_hz=rate_hz, child_probability=[p], child_tau_ps=[tau_ps])
    edges = np.linspace(0, 4 * tau_ps, 21)
    lags = np.concatenate([time_ps[k:] - time_ps[:-k] for k in range(1, 20)])
    counts, _ = np.histogram(lags, edges)
    chance = rate_hz / (1 - p) / PS_PER_S * np.diff(edges)

    def expected(children, decay):
        return len(time_ps) * (chance - children * np.diff(np.exp(-decay * edges / tau_ps)))

    assert p_chi_square(counts, expected(p * (2 - p) / (2 * (1 - p) ** 2), 1 - p)) > LEAST_P
    assert p_chi_square(counts, expected(p, 1)) < LEAST_P  # first generation alone
    assert p_chi_square(counts, expected(0, 1)) < LEAST_P


def first_afterpulses(seed, spacing_ps, **arguments):
    """Return how long after its lonely parent the first afterpulse comes, where there is one, and how many parents."""
    parents = np.arange(300_000) * spacing_ps
    time_ps, cause, _ = clicks(seed, parents[-1] + spacing_ps, parents, **arguments)
    child = np.flatnonzero((cause[1:] == 2) & (cause[:-1] == 0)) + 1
    return time_ps[child] - time_ps[child - 1], len(parents)


COMPONENTS = ([0.1, 0.2], [1e4, 1e5])


def test_the_first_afterpulse_comes_as_the_sum_of_exponentials_says():
    waits, parents = first_afterpulses(6, 3e6, child_probability=COMPONENTS[0], child_tau_ps=COMPONENTS[1])

    def p(components):
        def cdf(t):
            hazard = sum(a * (1 - np.exp(-t / tau)) for a, tau in zip(*components, strict=True))
            return (1 - np.exp(-hazard)) / (1 - math.exp(-sum(components[0])))

        return p_kolmogorov(waits, cdf)

    some = 1 - math.exp(-0.3)
    assert p_gauss(len(waits), parents * some, math.sqrt(parents * some * (1 - some))) > LEAST_P
    assert p(COMPONENTS) > LEAST_P
    assert p(([0.3], [7e4])) < LEAST_P
    assert p(([0.2, 0.1], [1e4, 1e5])) < LEAST_P


@pytest.mark.parametrize("exponent", [0.0, 1.0, math.nextafter(1.0, 2.0), 1.3])
def test_the_first_afterpulse_comes_as_the_power_law_says(exponent):
    probability, a, b = 0.3, 1e4, 1e6
    waits, _ = first_afterpulses(7, 2e7, power_law=(probability, exponent, a, b))

    def p(exponent):
        def primitive(t):
            return np.log(t) if math.isclose(exponent, 1) else t ** (1 - exponent) / (1 - exponent)

        def cdf(t):
            share = (primitive(np.clip(t, a, b)) - primitive(a)) / (primitive(b) - primitive(a))
            return (1 - np.exp(-probability * share)) / (1 - math.exp(-probability))

        return p_kolmogorov(waits, cdf)

    assert waits.min() >= a
    assert waits.max() <= b + a
    assert p(exponent) > LEAST_P
    assert p(exponent + 0.1) < LEAST_P


def test_of_the_children_those_after_the_dead_time_survive():
    waits, parents = first_afterpulses(
        8, 3e6, child_probability=COMPONENTS[0], child_tau_ps=COMPONENTS[1], dead_time_ps=2e4
    )
    left = sum(a * math.exp(-2e4 / tau) for a, tau in zip(*COMPONENTS, strict=True))

    def p(mean):
        return p_gauss(len(waits), parents * (1 - math.exp(-mean)), math.sqrt(parents * (1 - math.exp(-mean))))

    assert waits.min() >= 2e4
    assert p(left) > LEAST_P
    assert p(sum(COMPONENTS[0])) < LEAST_P


def test_afterpulses_of_gated_detectors_come_in_gates_and_are_as_many():
    arguments = {"period_ps": 10_000, "gate_width_ps": 1000.0, "gate_centre_ps": 3000.0}
    time_ps, _, _ = clicks(9, 20 * PS_PER_S, dark_hz=2e5, child_probability=[0.3], child_tau_ps=[1e6], **arguments)
    parents = 20 * 2e5 / 10
    phase = time_ps % 10_000 - 3000
    assert np.abs(phase).max() <= 500 + 1e-2
    assert p_kolmogorov(phase, lambda x: x / 1000 + 0.5) > LEAST_P
    assert p_gauss(len(time_ps), parents / 0.7, math.sqrt(parents / 0.7**3)) > LEAST_P
    assert p_gauss(len(time_ps), parents / (1 - 0.03), math.sqrt(parents / 0.7**3)) < LEAST_P


def test_jitter_is_a_gaussian_with_a_tail():
    """JIT-1 of the reference vectors."""
    true_ps = np.arange(200_000) * 1e5
    time_ps, _, origin = clicks(10, 1e12, true_ps, jitter_ps=40.0, tail_weight=0.1, tail_ps=200.0)
    late = time_ps - true_ps[origin]

    def p(weight, sigma=40.0, tail=200.0):
        def cdf(x):
            tail_part = np.exp(sigma**2 / (2 * tail**2) - x / tail) * normal_cdf(x / sigma - sigma / tail)
            return normal_cdf(x / sigma) - weight * tail_part

        return p_kolmogorov(late, cdf)

    inside, n = np.count_nonzero(np.abs(late) <= 100), len(late)
    assert p_gauss(inside, n * 0.9269490749, math.sqrt(n * 0.9269 * 0.0731)) > LEAST_P
    assert p(0.1) > LEAST_P
    assert p(0.13) < LEAST_P
    assert p(0.1, sigma=42.0) < LEAST_P
    assert p(0) < LEAST_P


@pytest.mark.parametrize("since", [0.1, 1, 3])
def test_efficiency_comes_back_exponentially_after_the_dead_time(since):
    first = np.arange(100_000) * 1e7
    time_ps = np.sort(np.concatenate((first, first + 20_000 + since * 50_000)))
    _, _, origin = clicks(11, 1e13, time_ps, dead_time_ps=20_000.0, recovery_ps=50_000.0)
    n, again = len(first), np.count_nonzero(origin % 2)

    def p(share):
        return p_gauss(again, n * share, math.sqrt(n * share * (1 - share)))

    assert p(1 - math.exp(-since)) > LEAST_P
    assert p(1 - math.exp(-since * 1.1)) < LEAST_P


@pytest.mark.parametrize("fwhm_ps", [0.0, 400.0])
def test_gates_pass_light_as_their_profile_says(fwhm_ps):
    arguments = {"period_ps": 2000, "gate_width_ps": 600.0, "gate_fwhm_ps": fwhm_ps, "gate_centre_ps": -900.0}
    time_ps = np.sort(np.random.default_rng(12).uniform(0, 1e9, 1_000_000))
    through, _, _ = clicks(12, 1e9, time_ps, **arguments)
    background, _, _ = clicks(13, 1e10, background_hz=1e8, **arguments)
    dark, _, _ = clicks(14, 1e10, dark_hz=1e8, **arguments)
    edges = np.linspace(-300, 300, 31)
    middle = (edges[1:] + edges[:-1]) / 2
    profile = np.exp(-4 * math.log(2) * (middle / fwhm_ps) ** 2) if fwhm_ps else np.ones(30)

    def p(found, profile):
        counts, _ = np.histogram((found + 900 + 1000) % 2000 - 1000, edges)
        assert counts.sum() == len(found)
        return p_chi_square(counts, 1_000_000 * 20 / 2000 * profile)

    assert p(through, profile) > LEAST_P
    assert p(background, profile) > LEAST_P
    assert p(dark, np.ones(30)) > LEAST_P
    assert p(background, profile * 1.03) < LEAST_P
    assert p(dark, np.exp(-4 * math.log(2) * (middle / 2000) ** 2)) < LEAST_P

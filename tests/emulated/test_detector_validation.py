"""Detectors, jitter, attacks through the whole engine and tagger against closed forms; each check can fail.

Photon-number splitting at an unchanged error rate, and intercept-resend of all pulses: test_attack_signatures.py.
"""

import math

import numpy as np
import pytest
from optics_judges import LEAST_P, p_chi_square, p_gauss, p_kolmogorov

from attack_signatures import ERROR, ETA, MU, OFTEN, P_DARK, doubles, errors, observe, qber, reference_link, resent
from binomial_law import binomial_p_value
from qkdhw_emulators.optics import closed_forms
from qkdhw_emulators.optics.attacks.blinding import BlindingCw
from qkdhw_emulators.optics.attacks.intercept import InterceptResend
from qkdhw_emulators.optics.setup import Channel, Detector, Intensity, OpticalSetup, Receiver, Source, Tagger
from qkdhw_emulators.optics.simulation import LinkSimulation

TICK_PS = 125.0
DEAD_PS = 1e6


def link_of(detectors, *, mu=0.0, pulse_rate_hz=1_000_000, pulse_fwhm_ps=0.0, **tagger):
    """A link of four detectors that nothing but the pulses' light connects."""
    return OpticalSetup(
        source=Source(
            pulse_rate_hz=pulse_rate_hz,
            intensities=(Intensity(mean_photon_number=mu, probability=1.0),),
            pulse_fwhm_ps=pulse_fwhm_ps,
        ),
        channel=Channel(length_km=0.0),
        receiver=Receiver(detectors=detectors),
        tagger=Tagger(clock_offset_s=0.0, **{"tick_fs": round(TICK_PS * 1000), **tagger}),
    )


def clicks(setup, seconds, seed):
    """Return times, in the middle of their ticks, by channel, all that come before the end, and the end; in ps."""
    with LinkSimulation(setup, seed=seed) as link:
        cells = [link.next_cell().bob for _ in range(math.ceil(seconds / link.cell_s))]
    tick_ps = setup.tagger.tick_fs / 1000
    time_ps = (np.concatenate([c.ticks for c in cells]) + 0.5) * tick_ps
    channel = np.concatenate([c.channel for c in cells])
    return [time_ps[channel == c] for c in range(4)], cells[-1].end_ticks * tick_ps


# --- dead time ----------------------------------------------------------------------------------------------------
LOADS = (0.01, 0.1, 1.0, 5.0)


@pytest.mark.parametrize("kind", ["non-paralysable", "paralysable"])
def test_dead_time_takes_its_share_of_the_rate_and_of_the_variance(kind):
    """One detector for each load, all with 1e6 events a second."""
    rate_hz, window_ps, n_windows = 1e6, 1e9, 2000
    detectors = tuple(
        Detector(dark_count_rate_hz=rate_hz, dead_time_ns=load * 1e3, dead_time_kind=kind) for load in LOADS
    )
    times, end_ps = clicks(link_of(detectors), n_windows * window_ps * 1e-12 + 0.05, seed=1)
    assert end_ps > (n_windows + 1) * window_ps
    other = "paralysable" if kind == "non-paralysable" else "non-paralysable"
    for time_ps, load in zip(times, LOADS, strict=True):
        window = (time_ps // window_ps).astype(int) - 1  # the first one begins with a detector that is live
        counts = np.bincount(window[(window >= 0) & (window < n_windows)], minlength=n_windows)

        def p(load, kind, *, fano=None, counts=counts):
            dead_s, seconds = load / rate_hz, n_windows * window_ps * 1e-12
            expected = closed_forms.measured_rate_hz(rate_hz, dead_s, kind) * seconds
            fano = closed_forms.fano(rate_hz, dead_s, kind) if fano is None else fano
            spread = expected / n_windows * fano
            return (
                p_gauss(counts.sum(), expected, expected * fano),
                p_gauss(counts.var(ddof=1), spread, 2 * spread**2 / (n_windows - 1)),
            )

        assert min(p(load, kind)) > LEAST_P
        assert p(0.0, kind)[0] < LEAST_P
        if load > LOADS[0]:  # of 1 % of dead time the two kinds make the same
            assert p(1.05 * load, kind)[0] < LEAST_P
            assert p(load, other)[0] < LEAST_P
            assert p(load, kind, fano=1.2)[1] < LEAST_P
        if load == 1:
            assert p(load, kind, fano=1.0)[1] < LEAST_P  # Poissonian counts


@pytest.mark.parametrize("tick_fs", [1000, 125_000])
def test_intervals_are_the_dead_time_and_an_exponential(tick_fs):
    detector = Detector(dark_count_rate_hz=1e6, dead_time_ns=DEAD_PS / 1e3)
    times, _ = clicks(link_of((detector,) * 4, tick_fs=tick_fs), 0.5, seed=2)
    for intervals in map(np.diff, times):

        def p(dead_ps, rate_hz, intervals=intervals):
            return p_kolmogorov(-np.expm1(-np.maximum(intervals - dead_ps, 0) * rate_hz * 1e-12))

        assert len(intervals) > 200_000
        assert p(DEAD_PS, 1e6) > LEAST_P
        assert p(1.02 * DEAD_PS, 1e6) < LEAST_P
        assert p(DEAD_PS, 1.03e6) < LEAST_P


# --- afterpulses --------------------------------------------------------------------------------------------------
def test_pairs_of_clicks_show_the_afterpulses():
    """Excess over chance at each lag: c (2 - c) / (2 (1 - c)^2) children in all, a lifetime tau / (1 - c)."""
    share, tau_ps, rate_hz = 0.2, 1e6, 1e4
    detector = Detector(dark_count_rate_hz=rate_hz, afterpulses=({"probability": share, "tau_ns": tau_ps / 1e3},))
    times, _ = clicks(link_of((detector,) * 4), 60, seed=3)
    edges = np.linspace(0, 4 * tau_ps, 33) // TICK_PS * TICK_PS + TICK_PS / 2  # between lags, which are whole ticks
    edges[0] = TICK_PS / 2
    counts = sum(np.histogram(time_ps[k:] - time_ps[:-k], edges)[0] for time_ps in times for k in range(1, 20))
    n = sum(map(len, times))

    def p(share, *, cascade=True):
        chance = rate_hz / (1 - share if cascade else 1 / (1 + share)) * 1e-12 * np.diff(edges)
        size, decay = (share * (2 - share) / (2 * (1 - share) ** 2), 1 - share) if cascade else (share, 1.0)
        expected = n * (chance - size * np.diff(np.exp(-decay * edges / tau_ps)))
        return p_chi_square(float(((counts - expected) ** 2 / expected).sum()), len(expected))

    assert n > 2_000_000
    assert p(share) > LEAST_P
    assert p(1.03 * share) < LEAST_P
    assert p(0.97 * share) < LEAST_P
    assert p(share, cascade=False) < LEAST_P


# --- jitter -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tick_fs", "pulse_fwhm_ps", "noise_ps"), [(1000, 0.0, 0.0), (82_300, 0.0, 0.0), (82_300, 60.0, 20.0)]
)
def test_arrivals_are_late_by_a_gaussian_with_a_tail(tick_fs, pulse_fwhm_ps, noise_ps):
    """A tick says between which times a click came: put at random in that interval of the law, clicks are uniform."""
    sigma_ps, weight, tail_ps, period_ps = 40.0, 0.1, 200.0, 10_000
    detector = Detector(jitter_ps=sigma_ps, jitter_tail_weight=weight, jitter_tail_ps=tail_ps, delay_ps=17.0)
    setup = link_of(
        (detector,) * 4, mu=0.02, pulse_rate_hz=100_000_000, tick_fs=tick_fs, pulse_fwhm_ps=pulse_fwhm_ps,
        noise_ps=noise_ps,
    )  # fmt: skip
    times, _ = clicks(setup, 0.1, seed=4)
    time_ps = np.concatenate(times)
    late_ps = time_ps - np.rint(time_ps / period_ps) * period_ps - 17.0
    place, half = np.random.default_rng(4).random(len(late_ps)), tick_fs / 2000
    other_sigma = math.hypot(closed_forms.sigma_of_fwhm(pulse_fwhm_ps), noise_ps)

    def p(sigma_ps=sigma_ps, weight=weight, tail_ps=tail_ps, half=half):
        grid = np.linspace(-600, 3000, 18_001)
        sigma = math.hypot(sigma_ps, other_sigma)
        law = np.array([closed_forms.delay_cdf(x, sigma, weight, tail_ps) for x in grid.tolist()])
        below, above = (np.interp(late_ps + side * half, grid, law) for side in (-1, 1))
        return p_kolmogorov(below + place * (above - below))

    assert len(late_ps) > 150_000
    assert p() > LEAST_P
    assert p(sigma_ps=1.1 * sigma_ps if pulse_fwhm_ps else 1.05 * sigma_ps) < LEAST_P
    assert p(weight=1.2 * weight) < LEAST_P
    assert p(tail_ps=1.25 * tail_ps) < LEAST_P
    if tick_fs > 1000:
        assert p(half=0.0) < LEAST_P  # as if a tick were a moment


# --- attacks ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bases", [2, 3])
def test_intercept_resend_of_half_the_pulses_costs_an_eighth_or_a_sixth(bases):
    link = reference_link("active")
    source = link.source.model_copy(update={"states": 2 * bases})
    detectors = link.receiver.detectors[:1] * (2 * bases)
    receiver = Receiver(basis_choice="active", misalignment=(ERROR,) * 3, detectors=detectors)
    link = link.model_copy(update={"source": source, "receiver": receiver})
    seen = observe(link, (InterceptResend(fraction=0.5, bases=bases),), 2e7, seed=6)
    assert closed_forms.intercept_resend_qber(0.5, bases) == pytest.approx(0.5 / (4 if bases == 2 else 3))

    def p(fraction, bases):
        return binomial_p_value(*errors(seen), qber(resent(ERROR, fraction, bases), light_factor=2))

    assert p(0.5, bases) > LEAST_P
    assert p(0.5, 5 - bases) < LEAST_P
    assert p(0.45, bases) < LEAST_P


def test_blinding_takes_away_double_clicks_that_would_be_there():
    arms = 1 - (1 - P_DARK) * np.exp(-np.outer(MU * ETA / 2, (1 - ERROR, ERROR, 0.5, 0.5)))
    one, none = 1 - np.prod(1 - arms, axis=1), np.prod(1 - arms, axis=1)
    alone = (none[:, None] * arms / (1 - arms)).sum(axis=1)
    several = float(OFTEN @ (one - alone) / (OFTEN @ one))
    clean, blinded = (observe(reference_link(), on, 2e7, seed=7) for on in ((), (BlindingCw(),)))
    seen, n = doubles(clean)
    assert n * several > 21
    assert doubles(blinded)[1] * several > 21
    assert binomial_p_value(seen, n, several) > LEAST_P
    assert doubles(blinded)[0] == 0
    assert binomial_p_value(*doubles(blinded), several) < LEAST_P
    assert binomial_p_value(seen, n, 0.3 * several) < LEAST_P

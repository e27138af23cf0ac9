"""The closed forms that judge the simulation, themselves judged: by vectors, by papers, by sampling written from scratch."""

from __future__ import annotations

import heapq
import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError
from qkdhw.model import DecoyCounts
from qkdhw.protocols import lim2014
from qkdhw.quantities import binary_entropy
from qkdhw_emulators.optics import closed_forms as forms
from qkdhw_emulators.optics.expected import expected_counts, expected_gain_and_qber
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.optics.setup import Afterpulse, AfterpulsePowerLaw, Detector, OpticalSetup

CLK_1 = {"right": 0.04827972997, "wrong": 0.00048524108, "both": 2.4628945e-5, "none": 0.951210400}


def test_clicks_of_a_pulse_are_the_golden_ones() -> None:
    found = forms.click_probabilities(0.5, 0.1, 1e-5, 0.01)
    for name, value in CLK_1.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-7)
    assert found.gain == pytest.approx(0.04878959999, rel=1e-9)
    assert found.qber == pytest.approx(0.01019798379, rel=1e-9)


def test_canary_one_poissonian_for_both_detectors_is_not_the_golden_one() -> None:
    """A common mistake: a click is drawn, then its detector; there are no double clicks."""
    gain = 1 - (1 - 1e-5) ** 2 * math.exp(-0.05)
    wrong = 0.01 * (1 - math.exp(-0.05)) + 1e-5
    assert wrong / gain != pytest.approx(0.01019798379, rel=1e-4)


def test_pulsed_pairs_are_the_golden_ones_and_those_of_thermal_light() -> None:
    gain, qber = forms.pair_gain_and_qber(0.05, 0.1, 0.05, 1e-5, 2e-5, 0.02)
    assert gain == pytest.approx(5.632177119e-4, rel=1e-9)
    assert qber == pytest.approx(0.05910363554, rel=1e-9)
    n = np.arange(200)  # P(n) = (n + 1) lambda^n / (1 + lambda)^(n + 2), yields of n pairs one by one
    p = (n + 1) * 0.05**n / 1.05 ** (n + 2)
    summed = p @ ((1 - (1 - 1e-5) * 0.9**n) * (1 - (1 - 2e-5) * 0.95**n))
    assert gain == pytest.approx(summed, rel=1e-9)


def test_a_steady_pump_has_the_rates_of_the_field_configuration() -> None:
    found = forms.steady_pairs(4e5, (0.12, 0.04), (2000, 8000), 1.5e-9, 1.196e-9, 0.03)
    assert (found.singles_a_hz, found.singles_b_hz) == pytest.approx((5e4, 2.4e4))
    assert found.true_hz == pytest.approx(1651, rel=1e-3)
    assert found.accidental_hz == pytest.approx(1.8)
    assert found.qber == pytest.approx(0.0305, abs=5e-5)


def test_jitter_in_a_window_is_the_golden_one() -> None:
    assert forms.jitter_fraction(100, 40, 0.1, 200) == pytest.approx(0.9269490749, rel=1e-9)
    assert forms.jitter_fraction(100, 40, 0.0, 200) != pytest.approx(0.9269490749, rel=1e-2)


@pytest.mark.parametrize(
    ("sigma", "tail"), [(40.0, 200.0), (40.0, 1.2), (40.0, 1.4), (1e6, 1e-3), (0.0, 50.0), (0.0, 0.0)]
)
def test_jitter_never_overflows_and_its_cdf_rises_from_0_to_1(sigma: float, tail: float) -> None:
    scale = 20 * max(sigma, tail, 1)
    values = [forms.delay_cdf(x, sigma, 0.3, tail) for x in np.linspace(-scale, scale, 401)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(values))
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[-1] == pytest.approx(1, abs=1e-6)


def lim_length(gains: tuple[float, ...]) -> int:
    """Return the key length of 1e10 pulses with these gains; 2 % errors in both bases."""
    p = (0.6, 0.3, 0.1)
    n_key = tuple(1e10 * 0.81 * q * g for q, g in zip(p, gains, strict=True))
    n_test = tuple(1e10 * 0.01 * q * g for q, g in zip(p, gains, strict=True))
    counts = DecoyCounts(
        mean_photon_number=(0.5, 0.1, 2e-4),
        intensity_probability=p,
        n_key=n_key,
        n_test=n_test,
        m_test=tuple(0.02 * n for n in n_test),
        m_key=None,
        leak_bits=1.16 * sum(n_key) * binary_entropy(0.02),
    )
    return lim2014.key_length(counts, eps_sec=1e-9, eps_cor=1e-15).length_bits


def test_photon_number_splitting_keeps_the_signal_and_leaves_no_key() -> None:
    honest, attacked = forms.photon_number_splitting_gains((0.5, 0.1, 2e-4), 0.01, 1e-6)
    assert honest == pytest.approx((4.9885e-3, 1.0005e-3, 3.0e-6), rel=1e-4)
    assert attacked == pytest.approx((4.9885e-3, 2.5970e-4, 1.0011e-6), rel=1e-4)
    assert lim_length(honest) == pytest.approx(3_821_490, rel=1e-5)
    assert lim_length(attacked) == 0
    with pytest.raises(ValueError, match="too small"):
        forms.photon_number_splitting_gains((0.5, 0.1), 0.9, 1e-6)


@pytest.mark.parametrize(("kind", "rate"), [("non-paralysable", 666.7e3), ("paralysable", 270.7e3)])
def test_dead_time_has_the_known_rates(kind: forms.DeadTimeKind, rate: float) -> None:
    true_hz, dead_s = {"non-paralysable": (1e6, 0.5e-6), "paralysable": (2e6, 1e-6)}[kind]
    assert forms.measured_rate_hz(true_hz, dead_s, kind) == pytest.approx(rate, rel=2e-4)
    assert forms.measured_rate_hz(true_hz, 0, kind) == true_hz
    assert forms.fano(true_hz, 0, kind) == 1


@pytest.mark.parametrize("load", [0.01, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("kind", ["non-paralysable", "paralysable"])
def test_dead_time_agrees_with_sampled_events(kind: forms.DeadTimeKind, load: float) -> None:
    rng = np.random.default_rng(int(100 * load))
    clicks = np.array([sampled_clicks(rng.standard_exponential(2000) / load, kind) for _ in range(400)])
    time = 2000 / load
    wanted, spread = forms.measured_rate_hz(load, 1, kind) * time, forms.fano(load, 1, kind)
    assert clicks.mean() == pytest.approx(wanted, rel=0.01)
    assert wanted == pytest.approx(forms.pulsed_clicks(load / 1e5, 1e5, kind) * 1e5 * time, rel=1e-3)
    if load < 5 or kind == "non-paralysable":  # few clicks are left of a paralysed detector
        fixed_time = fano_in_fixed_time(rng, load, kind)
        assert fixed_time == pytest.approx(spread, rel=0.2, abs=0.02)
        assert spread == pytest.approx(forms.pulsed_fano(load / 1e4, 1e4, kind), abs=1e-3)


def sampled_clicks(gaps: NDArray[np.float64], kind: str) -> int:
    """Count clicks of events with these gaps and a dead time of 1."""
    if kind == "paralysable":
        return int((gaps >= 1).sum())
    clicks, since = 0, math.inf
    for gap in gaps:
        since += gap
        if since >= 1:
            clicks, since = clicks + 1, 0.0
    return clicks


def fano_in_fixed_time(rng: np.random.Generator, load: float, kind: str) -> float:
    """Return variance / mean of clicks in pieces of 200 dead times."""
    gaps = rng.standard_exponential(int(200 * 1500 * load)) / load
    times = np.cumsum(gaps)
    if kind == "paralysable":
        clicks = times[gaps >= 1]
    else:
        chosen, last = [], -math.inf
        for t in times.tolist():
            if t >= last + 1:
                chosen.append(t)
                last = t
        clicks = np.array(chosen)
    counts = np.bincount((clicks / 200).astype(int))[1:-1]
    return float(counts.var() / counts.mean())


def test_afterpulses_multiply_as_a_cascade() -> None:
    assert forms.afterpulse_multiplier(0.05) == pytest.approx(1.0526, abs=1e-4)
    assert forms.afterpulse_multiplier(0.05) != pytest.approx(1.05, abs=1e-3)  # first order only
    rng = np.random.default_rng(5)
    families = np.ones(200_000, np.int64)
    latest = families.copy()
    while latest.any():
        latest = rng.poisson(0.3 * latest)
        families += latest
    assert families.mean() == pytest.approx(forms.afterpulse_multiplier(0.3), rel=0.01)
    assert (families**2).mean() / families.mean() == pytest.approx(forms.afterpulse_fano(0.3), rel=0.03)


def test_intercept_resend_costs_a_quarter_or_a_third() -> None:
    assert forms.intercept_resend_qber(1, 2) == 0.25
    assert forms.intercept_resend_qber(1, 3) == pytest.approx(1 / 3)
    assert forms.intercept_resend_qber(0.4, 2) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["non-paralysable", "paralysable"])
def test_children_that_survive_agree_with_sampled_dead_times(kind: forms.DeadTimeKind) -> None:
    detector = Detector(dead_time_ns=1.0, dead_time_kind=kind, afterpulses=(Afterpulse(probability=0.5, tau_ns=2.0),))
    rng = np.random.default_rng(3)
    alive = 0
    for _ in range(20_000):
        child, t, last = 2 * rng.standard_exponential(), 0.0, 0.0
        while (t := t + rng.standard_exponential() / 0.8) < child:
            if t >= last + 1 or kind == "paralysable":
                last = t
        alive += child >= last + 1
    found = forms.surviving_children(detector, 1000.0, 0.8e-3)
    assert found == pytest.approx(0.5 * alive / 20_000, rel=0.03)
    dead_time_of_the_click_only = 0.5 * math.exp(-0.5)
    assert found < 0.9 * dead_time_of_the_click_only


def test_children_of_a_power_law_are_those_that_come_after_the_dead_time() -> None:
    law = AfterpulsePowerLaw(probability=0.06, exponent=1.0, from_ns=10, to_ns=100_000)
    found = forms.surviving_children(Detector(dead_time_ns=1000, afterpulse_power_law=law), 1e6, 0.0)
    assert found == pytest.approx(0.06 * math.log(100) / math.log(10_000), rel=1e-3)
    steep = law.model_copy(update={"exponent": 1.5})
    found = forms.surviving_children(Detector(dead_time_ns=1000, afterpulse_power_law=steep), 1e6, 0.0)
    assert found == pytest.approx(0.06 * (1000**-0.5 - 1e5**-0.5) / (10**-0.5 - 1e5**-0.5), rel=1e-3)


def small_link(name: str, **detector: object) -> OpticalSetup:
    """Return a preset without loss, of much noise: what happens in it happens often."""
    setup = load_setup(name)
    changed = tuple(d.model_copy(update=detector) for d in setup.receiver.detectors)
    return setup.model_copy(
        update={
            "channel": setup.channel.model_copy(update={"length_km": 10.0}),
            "receiver": setup.receiver.model_copy(update={"detectors": changed}),
        }
    )


def test_expected_clicks_are_the_formula_of_one_pulse() -> None:
    setup = small_link("lim-2014", afterpulses=())
    eta, dark = 0.1 * 10**-0.2, 1 - math.exp(-60e-8)
    gains = expected_gain_and_qber(setup)
    for k, mu in enumerate((0.5, 0.1, 0.0002)):
        wanted = forms.click_probabilities(mu, eta, dark, 0.005)
        assert gains[f"gain_key_{k}"] == pytest.approx(wanted.gain, rel=1e-9)
        assert gains[f"qber_test_{k}"] == pytest.approx(wanted.qber, rel=1e-9)
    counts = expected_counts(setup, 1e9)
    wanted = forms.click_probabilities(0.5, eta, dark, 0.005)
    share = 1e9 * (39322 / 65536) * (58982 / 65536) ** 2 / 2  # probabilities are drawn in 65536ths
    assert counts.clicks[0, 0, 1, 0, 1] == pytest.approx(share * (wanted.right + wanted.both), rel=1e-9)
    assert counts.clicks[0, 0, 1, 0, 0] == pytest.approx(share * (wanted.wrong + wanted.both), rel=1e-9)


def test_unequal_bases_have_random_bits() -> None:
    clicks = expected_counts(load_setup("rusca-2018"), 1e9).clicks
    assert clicks[0, 0, 0, 1, 0] == pytest.approx(clicks[0, 0, 0, 1, 1], rel=1e-3)
    assert clicks[0, 1, 0, 0, 0] == pytest.approx(clicks[0, 1, 0, 0, 1], rel=1e-3)


def sampled(setup: OpticalSetup, n_pulses: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Count clicks of detector 0 (key basis, bit 0) of a passive receiver by intensity, basis and bit, event by event."""
    source, receiver = setup.source, setup.receiver
    detector, e = receiver.detectors[0], receiver.misalignment[0]
    mu = np.array([i.mean_photon_number for i in source.intensities])
    k = rng.choice(len(mu), n_pulses, p=[i.probability for i in source.intensities])
    a = (rng.random(n_pulses) >= source.key_basis_probability).astype(int)
    x = rng.integers(0, 2, n_pulses)
    eta = 10 ** (-setup.channel.loss_db / 10) * detector.efficiency * receiver.key_basis_probability
    light = rng.poisson(mu[k] * eta * np.where(a == 1, 0.5, np.where(x == 0, 1 - e, e))) > 0
    period_ns = source.period_ps / 1000
    dark = rng.random(rng.poisson(detector.dark_count_rate_hz * n_pulses * period_ns * 1e-9)) * n_pulses
    events = (np.sort(np.concatenate([np.flatnonzero(light), dark])) * period_ns).tolist()
    clicks, live_from = [], -math.inf
    while events:
        t = heapq.heappop(events)
        if t >= live_from:
            clicks.append(t)
            live_from = t + detector.dead_time_ns
            for component in detector.afterpulses:
                for wait in rng.standard_exponential(rng.poisson(component.probability)):
                    heapq.heappush(events, t + component.tau_ns * wait)
        elif detector.dead_time_kind == "paralysable":
            live_from = t + detector.dead_time_ns
    pulse = np.rint(np.array(clicks) / period_ns).astype(int)
    pulse = pulse[pulse < n_pulses]
    counts = np.zeros((len(mu), 2, 2), np.int64)
    np.add.at(counts, (k[pulse], a[pulse], x[pulse]), 1)
    return counts


CHAINED = (Afterpulse(probability=0.2, tau_ns=40.0), Afterpulse(probability=0.05, tau_ns=400.0))
BUSY: dict[str, dict[str, object]] = {
    "quiet": {"dark_count_rate_hz": 0.0, "dead_time_ns": 0.2},
    "dark": {"dark_count_rate_hz": 5e6, "dead_time_ns": 0.2},
    "dead time": {"dead_time_ns": 99.5},
    "prolonged dead time": {"dead_time_ns": 49.5, "dead_time_kind": "paralysable"},
    "afterpulses": {"afterpulses": CHAINED, "dead_time_ns": 0.2},
    "afterpulses in dead time": {"afterpulses": CHAINED, "dead_time_ns": 59.5, "dark_count_rate_hz": 1e6},
}


def standard_errors(counts: NDArray[np.int64], wanted: OpticalSetup, n_pulses: int) -> NDArray[np.float64]:
    expected = expected_counts(wanted, n_pulses)
    clicks, variance = expected.clicks[..., 0, 0], expected.variance[..., 0, 0]
    enough = clicks >= 20
    return np.abs(counts - clicks)[enough] / np.sqrt(variance[enough])


@pytest.mark.parametrize("case", BUSY)
def test_expected_clicks_agree_with_a_sampled_detector(case: str) -> None:
    setup = small_link("rusca-2018", **BUSY[case])
    n_pulses = 1_000_000
    counts = sampled(setup, n_pulses, np.random.default_rng(sum(case.encode())))
    assert standard_errors(counts, setup, n_pulses).max() < 4.5


@pytest.mark.parametrize("case", [case for case in BUSY if case != "quiet"])
def test_canary_the_sample_tells_each_effect_from_none(case: str) -> None:
    setup = small_link("rusca-2018", **BUSY[case])
    n_pulses = 1_000_000
    counts = sampled(setup, n_pulses, np.random.default_rng(sum(case.encode())))
    assert standard_errors(counts, small_link("rusca-2018", **BUSY["quiet"]), n_pulses).max() > 6


def test_variance_is_that_of_many_runs() -> None:
    setup = small_link("rusca-2018", **BUSY["dead time"])
    rng = np.random.default_rng(11)
    runs = np.array([sampled(setup, 20_000, rng) for _ in range(400)])
    expected = expected_counts(setup, 20_000)
    total = runs.sum(axis=(1, 2, 3))
    assert total.var() / total.mean() == pytest.approx(expected.detector_fano[0], rel=0.25)
    assert expected.detector_fano[0] < 0.5  # a Poissonian would be far off
    strongest = runs[:, 0, 0, 0]
    assert strongest.var() == pytest.approx(expected.variance[0, 0, 0, 0, 0], rel=0.25)
    assert strongest.var() < 0.75 * expected.clicks[0, 0, 0, 0, 0]


def test_light_of_the_wrong_bin_and_jitter_add_to_errors() -> None:
    setup = load_setup("geneva-2018")
    leaky = setup.model_copy(update={"source": setup.source.model_copy(update={"extinction_ratio_db": 20.0})})
    clean, wrong = (expected_gain_and_qber(s)["qber_key"] for s in (setup, leaky))
    assert wrong - clean == pytest.approx(0.0099 * (1 - 2 * clean), rel=0.01)
    blurred = tuple(d.model_copy(update={"jitter_ps": 100.0}) for d in setup.receiver.detectors)
    slow = setup.model_copy(update={"receiver": setup.receiver.model_copy(update={"detectors": blurred})})
    assert expected_gain_and_qber(slow)["qber_key"] > 0.15


def test_a_narrow_window_takes_less_of_the_noise_than_of_the_light() -> None:
    setup = small_link("lim-2014", dark_count_rate_hz=1e6)
    wide, narrow = expected_gain_and_qber(setup), expected_gain_and_qber(setup, window_ps=500.0)
    assert narrow["qber_key"] < wide["qber_key"]
    assert narrow["gain_key_2"] < 0.1 * wide["gain_key_2"]
    assert narrow["gain_key_0"] > 0.5 * wide["gain_key_0"]


def test_single_photons_have_no_vacuum_but_what_is_lost() -> None:
    weak = load_setup("lim-2014")
    source = weak.source.model_copy(
        update={
            "kind": "single-photon",
            "intensities": (),
            "single_photon_probability": 0.7,
            "two_photon_probability": 0.02,
        }
    )
    quiet = small_link("lim-2014", afterpulses=(), dark_count_rate_hz=0.0)
    gain = expected_gain_and_qber(quiet.model_copy(update={"source": source}))["gain_key_0"]
    eta = 0.1 * 10**-0.2
    assert gain == pytest.approx(0.7 * eta + 0.02 * (1 - (1 - eta) ** 2), rel=1e-3)


def test_a_source_of_pairs_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="prepare-and-measure"):
        expected_counts(load_setup("sfifteen-bbm92"), 1)


def test_clicks_that_jitter_carries_away_arrive_at_the_neighbours() -> None:
    setup = small_link("rusca-2018", dark_count_rate_hz=0.0, jitter_tail_weight=1.0, jitter_tail_ps=200.0)
    far = expected_counts(setup, 1e9)
    assert far.clicks.sum() == pytest.approx(far.detector_clicks.sum(), rel=1e-2)
    narrow = expected_counts(setup, 1e9, window_ps=600.0)
    assert narrow.clicks.sum() < 0.85 * narrow.detector_clicks.sum()
    assert expected_gain_and_qber(setup)["qber_key"] > 0.02  # what arrives at a neighbour is wrong half the time

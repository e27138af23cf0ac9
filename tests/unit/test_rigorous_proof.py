"""The rigorous proof: coverage by simulation, monotonicity, limits, and blocks that must give no key."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw.errors import ConfigurationError
from qkdhw.interfaces import KeyLengthProof
from qkdhw.model import Basis, DecoyCounts
from qkdhw.protocols import lim2014, rigorous, rusca2018, tomamichel2012
from qkdhw.protocols.concentration import mean_lower_bound, mean_upper_bound, unsampled_rate_upper_bound
from qkdhw.protocols.decoy_bb84 import SIFTING_RULE, ExpectedLink, bb84_clicks
from qkdhw.protocols.poisson_source import photon_number_probability
from qkdhw.protocols.registry import load_proof, proof_names, proof_options
from qkdhw.quantities import binary_entropy

EPS = {"eps_sec": 1e-9, "eps_cor": 1e-15}
LINK = ExpectedLink(
    mean_photon_number=(0.58, 0.17, 0.001),
    intensity_probability=(0.65, 0.29, 0.06),
    key_basis_probability=0.81,
    transmittance=0.05,
    p_dark=1e-6,
    misalignment=0.01,
)
COUNTS = LINK.expected_counts(1.4e8, reconciliation_efficiency=1.35)


def test_protocols_are_registered_and_fit_their_interface() -> None:
    assert proof_names() == ("lim2014", "rigorous", "rusca2018", "tomamichel2012")
    proof: KeyLengthProof = load_proof("rigorous")
    assert proof is rigorous.key_length
    assert proof_options(load_proof("lim2014")) == {"clip"}
    with pytest.raises(ConfigurationError, match="no proof 'nonsense'") as caught:
        load_proof("nonsense")
    assert "lim2014, rigorous, rusca2018, tomamichel2012" in caught.value.remedy


def test_sifting_keeps_matching_bases_only() -> None:
    assert SIFTING_RULE.get((Basis.KEY, Basis.KEY)) is Basis.KEY
    assert SIFTING_RULE.get((Basis.TEST, Basis.TEST)) is Basis.TEST
    assert len(SIFTING_RULE) == 2


def test_a_good_link_gives_key_and_names_its_bounds() -> None:
    answer = rigorous.key_length(COUNTS, **EPS)
    assert answer.rigorous
    assert answer.reason == ""
    assert 600_000 < answer.length_bits < 660_000
    assert answer.bounds["eps_per_bound"] == pytest.approx((1e-9 / 3) ** 2 / 13)
    assert 2 * answer.bounds["eps_at"] + answer.bounds["eps_pa"] == pytest.approx(1e-9)
    rest = answer.bounds["s_key_1"] * (1 - binary_entropy(answer.bounds["phase_error_rate"]))
    assert answer.length_bits == math.floor(rest - COUNTS.leak_bits - 2 * math.log2(1.5e9) - math.log2(2e15))


@pytest.mark.parametrize("eps", [1e-21, 0.2])
def test_bounds_written_out(eps: float) -> None:
    """A second writing of the bounds with each count bounded on the side that hurts."""
    mu, p = COUNTS.mean_photon_number, COUNTS.intensity_probability
    tau = [sum(q * math.exp(-m) * m**n for m, q in zip(mu, p, strict=True)) for n in (0, 1)]
    high = {
        name: [mean_upper_bound(x, sum(line), eps) * math.exp(m) / q for x, m, q in zip(line, mu, p, strict=True)]
        for name, line in (("key", COUNTS.n_key), ("test", COUNTS.n_test), ("wrong", COUNTS.m_test))
    }
    low = {
        name: [mean_lower_bound(x, sum(line), eps) * math.exp(m) / q for x, m, q in zip(line, mu, p, strict=True)]
        for name, line in (("key", COUNTS.n_key), ("test", COUNTS.n_test), ("wrong", COUNTS.m_test))
    }
    found = rigorous.single_photon_bounds(COUNTS, eps)
    for name, s_0, s_1 in (("key", found.s_key_0, found.s_key_1), ("test", found.s_test_0, found.s_test_1)):
        vacuum = max(0.0, (mu[1] * low[name][2] - mu[2] * high[name][1]) / (mu[1] - mu[2]))
        # Solve W_2 - W_3 - (mu_2^2 - mu_3^2)/mu_1^2 (W_1 - S_0 - mu_1 S_1) = (mu_2 - mu_3) S_1 for S_1.
        ratio = (mu[1] ** 2 - mu[2] ** 2) / mu[0] ** 2
        gain = low[name][1] - high[name][2] - ratio * (high[name][0] - vacuum)
        assert s_0 == pytest.approx(tau[0] * vacuum)
        assert s_1 == pytest.approx(tau[1] * gain / (mu[1] - mu[2] - ratio * mu[0]))
    v_1 = tau[1] * (high["wrong"][1] - low["wrong"][2]) / (mu[1] - mu[2])
    assert found.v_test_1 == pytest.approx(min(v_1, sum(COUNTS.m_test)))
    assert found.phase_error_rate == unsampled_rate_upper_bound(found.v_test_1, found.s_test_1, found.s_key_1, eps)


def _failures_in_simulation(eps: float, trials: int) -> dict[str, int]:
    """Draw photon numbers, errors, bases and intensities as the protocol does; count how often each bound is wrong."""
    rng = np.random.default_rng(11)
    mu, p = (0.5, 0.15, 0.01), (0.5, 0.3, 0.2)
    given_n = np.array([[pk * math.exp(-m) * m**n for m, pk in zip(mu, p, strict=True)] for n in range(5)])
    given_n /= given_n.sum(axis=1, keepdims=True)
    failures = dict.fromkeys(("s_key_0", "s_key_1", "s_test_1", "v_test_1", "phase_error_rate"), 0)
    for _ in range(trials):
        photons = rng.choice(5, size=9000, p=(0.03, 0.62, 0.25, 0.07, 0.03))
        wrong = rng.permutation(9000) < 300
        is_test = rng.random(9000) < 0.35
        above = rng.random((9000, 1)) > given_n.cumsum(axis=1)[photons]
        intensity = above.sum(axis=1).clip(max=2)
        lines = [tuple(np.bincount(intensity[m], minlength=3).tolist()) for m in (~is_test, is_test, is_test & wrong)]
        found = rigorous.single_photon_bounds(DecoyCounts(mu, p, lines[0], lines[1], lines[2], None, 0.0), eps)
        key, test = (photons == 1) & ~is_test, (photons == 1) & is_test
        failures["s_key_0"] += found.s_key_0 > ((photons == 0) & ~is_test).sum()
        failures["s_key_1"] += found.s_key_1 > key.sum()
        failures["s_test_1"] += found.s_test_1 > test.sum()
        failures["v_test_1"] += found.v_test_1 < (test & wrong).sum()
        if found.phase_error_rate < 0.5:
            failures["phase_error_rate"] += found.phase_error_rate < (key & wrong).sum() / key.sum()
    return failures


def test_coverage_by_simulation() -> None:
    eps, trials = 0.02, 1000
    failures = _failures_in_simulation(eps, trials)
    bounds_behind = {"s_key_0": 2, "s_key_1": 5, "s_test_1": 5, "v_test_1": 2, "phase_error_rate": 13}
    for name, number in bounds_behind.items():
        assert failures[name] <= trials * number * eps, name


def test_the_simulation_can_see_failures() -> None:
    """Without allowance for fluctuations (eps near 1) the same draws break the photon-number bounds often."""
    failures = _failures_in_simulation(1 - 1e-9, 200)
    assert min(failures[name] for name in ("s_key_1", "s_test_1", "s_key_0")) > 20


@settings(max_examples=60, deadline=None)
@given(
    log_pulses=st.floats(6.5, 11),
    loss_db=st.floats(3, 25),
    misalignment=st.floats(0, 0.06),
    p=st.floats(0.5, 0.95),
)
def test_never_exceeds_the_asymptotic_length(log_pulses: float, loss_db: float, misalignment: float, p: float) -> None:
    link = replace(LINK, transmittance=10 ** (-loss_db / 10), misalignment=misalignment, key_basis_probability=p)
    pulses = 10.0**log_pulses
    counts = link.expected_counts(pulses, reconciliation_efficiency=1.0)
    answer = rigorous.key_length(counts, **EPS)
    eta = link.transmittance * p
    single_photon_yield = 1 - (1 - link.p_dark) ** 2 * (1 - eta)
    s_1 = pulses * p * photon_number_probability(counts, 1) * single_photon_yield
    e_1 = misalignment * eta / single_photon_yield
    assert answer.length_bits <= max(0.0, s_1 * (1 - binary_entropy(e_1)) - counts.leak_bits)
    assert answer.bounds["s_key_1"] <= s_1 + 1


def test_approaches_the_asymptotic_length() -> None:
    link = replace(LINK, mean_photon_number=(0.58, 0.02, 0.0))
    counts = link.expected_counts(1e15, reconciliation_efficiency=1.0)
    eta = link.transmittance * link.key_basis_probability
    s_1 = 1e15 * link.key_basis_probability * photon_number_probability(counts, 1) * eta
    length = s_1 * (1 - binary_entropy(0.01)) - counts.leak_bits
    assert rigorous.key_length(counts, **EPS).length_bits == pytest.approx(length, rel=0.06)


COUNT = st.integers(0, 10**8)
TRIPLE = st.tuples(COUNT, COUNT, COUNT)


@st.composite
def plausible_counts(draw: st.DrawFn) -> DecoyCounts:
    link = replace(
        LINK,
        transmittance=10 ** -draw(st.floats(0.3, 2.0)),
        misalignment=draw(st.floats(0, 0.04)),
    )
    return link.expected_counts(10 ** draw(st.floats(7, 10)), reconciliation_efficiency=1.2)


@settings(max_examples=60, deadline=None)
@given(counts=plausible_counts(), extra=st.integers(1, 10_000))
def test_monotone(counts: DecoyCounts, extra: int) -> None:
    length = rigorous.key_length(counts, **EPS).length_bits
    leakier = replace(counts, leak_bits=counts.leak_bits + extra)
    assert rigorous.key_length(leakier, **EPS).length_bits <= length
    assert rigorous.key_length(counts, eps_sec=1e-12, eps_cor=1e-15).length_bits <= length
    assert rigorous.key_length(counts, eps_sec=1e-9, eps_cor=1e-18).length_bits <= length
    for k in (0, 1):
        worse = list(counts.m_test)
        worse[k] = min(worse[k] + extra, counts.n_test[k])
        assert rigorous.key_length(replace(counts, m_test=tuple(worse)), **EPS).length_bits <= length
    doubled = replace(
        counts,
        n_key=tuple(2 * n for n in counts.n_key),
        n_test=tuple(2 * n for n in counts.n_test),
        m_test=tuple(2 * m for m in counts.m_test),
        leak_bits=2 * counts.leak_bits,
    )
    assert rigorous.key_length(doubled, **EPS).length_bits >= 2 * length


@settings(max_examples=100, deadline=None)
@given(n_key=TRIPLE, n_test=TRIPLE, share=st.tuples(*[st.floats(0, 1)] * 6), leak_bits=st.floats(0, 1e8))
def test_any_counts_give_a_finite_length(
    n_key: tuple[int, ...], n_test: tuple[int, ...], share: tuple[float, ...], leak_bits: float
) -> None:
    counts = DecoyCounts(
        mean_photon_number=LINK.mean_photon_number,
        intensity_probability=LINK.intensity_probability,
        n_key=n_key,
        n_test=n_test,
        m_test=tuple(int(s * n) for s, n in zip(share[:3], n_test, strict=True)),
        m_key=tuple(int(s * n) for s, n in zip(share[3:], n_key, strict=True)),
        leak_bits=leak_bits,
    )
    two = replace(
        counts,
        mean_photon_number=(0.5, 0.1),
        intensity_probability=(0.7, 0.3),
        **{name: getattr(counts, name)[:2] for name in ("n_key", "n_test", "m_test", "m_key")},
    )
    for answer in (
        rigorous.key_length(counts, **EPS),
        lim2014.key_length(counts, **EPS),
        lim2014.key_length(counts, **EPS, clip=True),
        rusca2018.key_length(two, **EPS),
    ):
        assert isinstance(answer.length_bits, int)
        assert answer.length_bits >= 0
        assert all(math.isfinite(value) for value in answer.bounds.values())
        assert bool(answer.reason) == (answer.length_bits == 0)
    # The printed formulas can promise more bits than there are detections; the rigorous one cannot.
    assert rigorous.key_length(counts, **EPS).length_bits <= sum(n_key)


def test_no_test_errors_do_not_make_the_phase_error_rate_zero() -> None:
    clean = replace(COUNTS, m_test=(0, 0, 0))
    answer = rigorous.key_length(clean, **EPS)
    assert answer.bounds["v_test_1"] == 0.0
    assert answer.bounds["phase_error_rate"] > 40 / sum(COUNTS.n_test)


def test_an_intercept_resend_attack_leaves_no_key() -> None:
    attacked = replace(COUNTS, m_test=tuple(n // 4 for n in COUNTS.n_test))
    answer = rigorous.key_length(attacked, **EPS)
    assert answer.length_bits == 0
    assert answer.bounds["phase_error_rate"] > 0.4
    assert answer.reason


def test_rare_vacuum_pulses_hoeffding_gives_up_relative_entropy_does_not() -> None:
    """A gigahertz system that sends vacuum in 1 of 256 pulses, twenty minutes: the inequality decides, not the physics."""
    mu, p = (0.425, 0.044, 0.001), (1 - 2**-8 - 2**-7, 2**-7, 2**-8)
    clicks = [bb84_clicks(m, 0.205 * 10**-1.284, 2.1e-5, 0.032) for m in mu]
    n_key = tuple(round(1.2e12 * (15 / 16) ** 2 * pk * c.gain) for pk, c in zip(p, clicks, strict=True))
    n_test = tuple(round(1.2e12 / 256 * pk * c.gain) for pk, c in zip(p, clicks, strict=True))
    m_test = tuple(round(n * c.qber) for n, c in zip(n_test, clicks, strict=True))
    qber = clicks[0].qber
    counts = DecoyCounts(mu, p, n_key, n_test, m_test, None, 1.1 * sum(n_key) * binary_entropy(qber))
    assert lim2014.key_length(counts, eps_sec=1e-10, eps_cor=1e-15).length_bits == 0
    rate_bits_per_s = rigorous.key_length(counts, eps_sec=1e-10, eps_cor=1e-15).length_bits / 1200
    assert 0.5e6 < rate_bits_per_s < 2e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean_photon_number": (0.5, 0.1), "intensity_probability": (0.7, 0.3)}, "3 intensities, not 2"),
        ({"mean_photon_number": (0.1, 0.5, 0.0)}, "must fall"),
        ({"mean_photon_number": (0.3, 0.2, 0.15)}, "mu_1 > mu_2 \\+ mu_3"),
        ({"intensity_probability": (0.5, 0.3, 0.1)}, "sum to 1"),
        ({"intensity_probability": (1.0, 0.0, 0.0)}, "sum to 1"),
        (
            {"mean_photon_number": (0.48029229432005843, 0.4031584389559197, 0.07713385536413866)},
            "mu_1 > mu_2 \\+ mu_3",
        ),
        ({"mean_photon_number": (0.5, 0.1, 0.099999999999999)}, "must fall"),
        ({"mean_photon_number": (1e-300, 1e-301, 0.0)}, "must fall"),
        ({"mean_photon_number": (800.0, 1.0, 0.0)}, "0 to 100"),
        ({"mean_photon_number": (0.5, 0.1, math.nan)}, "0 to 100"),
        ({"n_key": (1, 2)}, "3 counts"),
        ({"n_key": (1, 2, -3)}, "not negative"),
        ({"m_test": (10**9, 0, 0)}, "more errors"),
        ({"leak_bits": math.nan}, "leak_bits"),
        ({"leak_bits": -1.0}, "leak_bits"),
    ],
)
def test_impossible_counts_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        rigorous.key_length(replace(COUNTS, **change), **EPS)  # type: ignore[arg-type]
    assert caught.value.remedy


@pytest.mark.parametrize("eps", [0.0, 1.0, -1e-9, math.nan, 1e-200])
def test_impossible_epsilons_are_refused(eps: float) -> None:
    with pytest.raises(ConfigurationError, match="eps_sec"):
        rigorous.key_length(COUNTS, eps_sec=eps, eps_cor=1e-15)
    with pytest.raises(ConfigurationError, match="eps_cor"):
        rigorous.key_length(COUNTS, eps_sec=1e-9, eps_cor=eps)


def test_one_decoy_formula_needs_the_key_errors() -> None:
    two = DecoyCounts((0.5, 0.1), (0.7, 0.3), (9000, 800), (1000, 90), (10, 1), None, 0.0)
    with pytest.raises(ConfigurationError, match="m_key") as caught:
        rusca2018.key_length(two, **EPS)
    assert "error correction" in caught.value.remedy


def test_single_photon_theorem_takes_one_intensity_and_a_threshold() -> None:
    with pytest.raises(ConfigurationError, match="1 intensities, not 3"):
        tomamichel2012.key_length(COUNTS, **EPS, q_tol=0.03)
    one = DecoyCounts((1.0,), (1.0,), (1_000_000,), (25_000,), (500,), None, 450_000.0)
    with pytest.raises(ConfigurationError, match="q_tol"):
        tomamichel2012.key_length(one, **EPS)
    answer = tomamichel2012.key_length(one, eps_sec=1e-10, eps_cor=1e-15, q_tol=0.03)
    assert answer.length_bits == 215_971
    above = tomamichel2012.key_length(replace(one, m_test=(751,)), **EPS, q_tol=0.03)
    assert above.length_bits == 0
    assert "exceeds q_tol" in above.reason

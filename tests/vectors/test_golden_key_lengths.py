"""Golden key lengths and clicks, and what known misreadings of the papers would give instead."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, localcontext

import pytest

from qkdhw.model import DecoyCounts
from qkdhw.protocols import lim2014, rigorous, rusca2018
from qkdhw.protocols.concentration import fung_ma_chau_deviation, hoeffding_deviation
from qkdhw.protocols.decoy_bb84 import bb84_clicks
from qkdhw.protocols.tomamichel2012 import tomamichel_length
from qkdhw.quantities import binary_entropy, binary_entropy_of_bound

EPS = {"eps_sec": 1e-9, "eps_cor": 1e-15}

LIM_1 = DecoyCounts(
    mean_photon_number=(0.5, 0.1, 2e-4),
    intensity_probability=(0.6, 0.3, 0.1),
    n_key=(8_000_000, 900_000, 4_000),
    n_test=(800_000, 90_000, 400),
    m_test=(12_000, 1_700, 150),
    m_key=None,
    leak_bits=1_160_000,
)
LIM_2 = replace(
    LIM_1,
    n_key=(800_000, 90_000, 400),
    n_test=(80_000, 9_000, 40),
    m_test=(1_200, 170, 15),
    leak_bits=1.16 * 890_400 * binary_entropy(0.015),
)
RUS_1 = DecoyCounts(
    mean_photon_number=(0.5, 0.1),
    intensity_probability=(0.7, 0.3),
    n_key=(9_200_000, 800_000),
    n_test=(1_022_000, 89_000),
    m_test=(10_220, 950),
    m_key=(92_000, 8_400),
    leak_bits=940_000,
)
RUS_2 = replace(
    RUS_1,
    n_key=(92_000, 8_000),
    n_test=(10_220, 890),
    m_test=(102, 10),
    m_key=(920, 84),
)


def _pns_counts(gains: tuple[float, float, float]) -> DecoyCounts:
    """1e10 pulses, 81 % of them in the key basis at both ends, 1 % in the test basis, QBER 2 %; not rounded."""
    p = (0.6, 0.3, 0.1)
    n_key = tuple(1e10 * 0.81 * pk * gain for pk, gain in zip(p, gains, strict=True))
    n_test = tuple(1e10 * 0.01 * pk * gain for pk, gain in zip(p, gains, strict=True))
    return DecoyCounts(
        mean_photon_number=(0.5, 0.1, 2e-4),
        intensity_probability=p,
        n_key=n_key,
        n_test=n_test,
        m_test=tuple(0.02 * n for n in n_test),
        m_key=None,
        leak_bits=1.16 * sum(n_key) * binary_entropy(0.02),
    )


def _honest_gains() -> tuple[float, float, float]:
    gains = [1.0 - (1.0 - 1e-6) * math.exp(-0.01 * mu) for mu in (0.5, 0.1, 2e-4)]
    return gains[0], gains[1], gains[2]


def test_lim_1() -> None:
    answer = lim2014.key_length(LIM_1, **EPS)
    assert answer.bounds["s_key_0"] == 0.0
    assert answer.bounds["s_key_1"] == pytest.approx(5907567.7703, abs=5e-5)
    assert answer.bounds["s_test_1"] == pytest.approx(510342.7013, abs=5e-5)
    assert answer.bounds["v_test_1"] == pytest.approx(21613.7666, abs=5e-5)
    # The printed reference 0.0449536250 is 1.6e-9 off what its own inputs give; the exact check is below.
    assert answer.bounds["phase_error_rate"] == pytest.approx(0.0449536250, abs=2e-9)
    assert answer.length_bits == 3_184_401
    assert not answer.rigorous


def test_lim_1_phase_error_rate_in_forty_digits() -> None:
    bounds = lim2014.key_length(LIM_1, **EPS).bounds
    with localcontext() as context:
        context.prec = 40
        c, d, v = (Decimal(bounds[name]) for name in ("s_test_1", "s_key_1", "v_test_1"))
        b, ln2 = v / c, Decimal(2).ln()
        inverse = (c + d) / (c * d * (1 - b) * b)
        log2 = (inverse * (21 / Decimal("1e-9")) ** 2).ln() / ln2
        expected = b + ((c + d) * (1 - b) * b / (c * d * ln2) * log2).sqrt()
    assert bounds["phase_error_rate"] == pytest.approx(float(expected), rel=1e-12)


def test_lim_1_with_clipped_counts() -> None:
    answer = lim2014.key_length(LIM_1, **EPS, clip=True)
    assert answer.bounds["v_test_1"] == pytest.approx(16254.6844, abs=5e-5)
    assert answer.bounds["phase_error_rate"] == pytest.approx(0.0341277, abs=5e-8)
    assert answer.length_bits == 3_479_031


def test_lim_2() -> None:
    answer = lim2014.key_length(LIM_2, **EPS)
    assert answer.bounds["s_key_1"] == pytest.approx(510342.701253, abs=5e-7)
    assert answer.bounds["phase_error_rate"] == pytest.approx(0.205053, abs=5e-7)
    assert answer.length_bits == 20_502


def test_rus_1() -> None:
    answer = rusca2018.key_length(RUS_1, **EPS)
    assert answer.bounds["s_key_0_upper"] == pytest.approx(70422.987, abs=5e-4)
    assert answer.bounds["s_key_1"] == pytest.approx(5812586.4069, abs=5e-5)
    assert answer.bounds["s_test_1"] == pytest.approx(594355.8974, abs=5e-5)
    assert answer.bounds["v_test_1"] == pytest.approx(13627.9910, abs=5e-5)
    assert answer.bounds["phase_error_rate"] == pytest.approx(0.0247402389, abs=5e-11)
    assert answer.length_bits == 3_899_966


@pytest.mark.parametrize("leak_bits", [0.0, 9_400.0])
def test_rus_2_gives_no_key_whatever_the_leak(leak_bits: float) -> None:
    answer = rusca2018.key_length(replace(RUS_2, leak_bits=leak_bits), **EPS)
    assert answer.length_bits == 0
    assert answer.bounds["s_test_1"] == 0.0
    assert answer.reason


@pytest.mark.parametrize(
    ("n", "k", "leak_bits", "deviation", "length_bits"),
    [(1_000_000, 25_000, 450_000, 0.0316376041, 215_971), (100_000, 10_000, 16_000, 0.0518228185, 43_025)],
    ids=["TOM-1", "TOM-2"],
)
def test_tom(n: int, k: int, leak_bits: float, deviation: float, length_bits: int) -> None:
    answer = tomamichel_length(n, k, 0.03, leak_bits, 1e-10, 1e-15)
    assert answer.bounds["sampling_deviation"] == pytest.approx(deviation, abs=5e-11)
    assert answer.length_bits == length_bits


def test_clk_1() -> None:
    clicks = bb84_clicks(mu=0.5, eta=0.1, p_dark=1e-5, e_mis=0.01)
    assert clicks.only_right == pytest.approx(0.04827972997, abs=5e-12)
    assert clicks.only_wrong == pytest.approx(0.00048524108, abs=5e-12)
    assert clicks.both == pytest.approx(2.4628945e-5, abs=5e-13)
    assert clicks.none == pytest.approx(0.951210400, abs=5e-10)
    assert clicks.gain == pytest.approx(0.04878959999, abs=5e-12)
    assert clicks.qber == pytest.approx(0.01019798379, abs=5e-12)


def test_hoe_1() -> None:
    assert hoeffding_deviation(1e6, 1e-10 / 21) == pytest.approx(3610.427493, abs=5e-7)


def test_pns_1_honest_channel() -> None:
    gains = _honest_gains()
    assert gains == pytest.approx((4.9885e-3, 1.0005e-3, 3.0e-6), rel=1e-4)
    assert lim2014.key_length(_pns_counts(gains), **EPS).length_bits == 3_821_490
    assert rigorous.key_length(_pns_counts(gains), **EPS).length_bits > 0


def test_pns_1_photon_number_splitting_leaves_no_key() -> None:
    attacked = _pns_counts((4.9885e-3, 2.5970e-4, 1.0011e-6))
    assert sum(attacked.m_test) / sum(attacked.n_test) == pytest.approx(0.02)
    assert lim2014.key_length(attacked, **EPS).length_bits == 0
    assert rigorous.key_length(attacked, **EPS).length_bits == 0


def _lim_written_out(
    counts: DecoyCounts,
    *,
    delta_of: str = "total",
    delta_log: float = math.e,
    gamma_ln2: float = math.log(2.0),
    swap_bases: bool = False,
    test_error_rate: float | None = None,
    leak_bits: float | None = None,
) -> float:
    """Lim et al. written out a second time, with known mistakes to switch on; unfloored."""
    key, test, err = counts.n_key, counts.n_test, counts.m_test
    if swap_bases:
        key, test = test, key
    if test_error_rate is not None:
        err = tuple(round(test_error_rate * n) for n in test)
    mu, p = counts.mean_photon_number, counts.intensity_probability
    eps = 1e-9 / 21

    def tau(n: int) -> float:
        return sum(pk * math.exp(-m) * m**n / math.factorial(n) for m, pk in zip(mu, p, strict=True))

    def plus_minus(line: tuple[int, ...], sign: int) -> list[float]:
        total = {"total": lambda n: sum(line), "intensity": lambda n: n}[delta_of]
        return [
            math.exp(m) / pk * (n + sign * math.sqrt(total(n) / 2 * math.log(1 / eps) / math.log(delta_log)))
            for m, pk, n in zip(mu, p, line, strict=True)
        ]

    def s_0_and_s_1(line: tuple[int, ...]) -> tuple[float, float]:
        low, high = plus_minus(line, -1), plus_minus(line, +1)
        s_0 = max(0.0, tau(0) * (mu[1] * low[2] - mu[2] * high[1]) / (mu[1] - mu[2]))
        ratio = (mu[1] ** 2 - mu[2] ** 2) / mu[0] ** 2
        s_1 = tau(1) * mu[0] * (low[1] - high[2] - ratio * (high[0] - s_0 / tau(0)))
        return s_0, s_1 / (mu[0] * (mu[1] - mu[2]) - mu[1] ** 2 + mu[2] ** 2)

    s_0, d = s_0_and_s_1(key)
    _, c = s_0_and_s_1(test)
    b = tau(1) * (plus_minus(err, +1)[1] - plus_minus(err, -1)[2]) / (mu[1] - mu[2]) / c
    inverse = (c + d) / (c * d * (1 - b) * b)
    gamma = math.sqrt((c + d) * (1 - b) * b / (c * d * gamma_ln2) * math.log2(inverse * (21 / 1e-9) ** 2))
    leak = counts.leak_bits if leak_bits is None else leak_bits
    return s_0 + d * (1 - binary_entropy_of_bound(b + gamma)) - leak - 6 * math.log2(21e9) - math.log2(2e15)


@pytest.mark.parametrize("counts", [LIM_1, LIM_2], ids=["LIM-1", "LIM-2"])
def test_lim_written_out_agrees(counts: DecoyCounts) -> None:
    assert math.floor(_lim_written_out(counts)) == lim2014.key_length(counts, **EPS).length_bits


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param({"leak_bits": 1.16 * binary_entropy(0.015)}, id="leak without the factor n"),
        pytest.param({"delta_of": "intensity"}, id="delta of one intensity"),
        pytest.param({"delta_log": 2.0}, id="log2 in delta"),
        pytest.param({"gamma_ln2": 1.0}, id="no ln 2 in gamma"),
        pytest.param({"swap_bases": True, "test_error_rate": 0.015}, id="bases swapped"),
        pytest.param({"test_error_rate": 0.05}, id="error rate of the wrong basis"),
    ],
)
def test_lim_misread_gives_another_length(mistake: dict[str, object]) -> None:
    wrong = math.floor(_lim_written_out(LIM_1, **mistake))  # type: ignore[arg-type]
    assert abs(wrong - 3_184_401) > 1_000


def _rusca_written_out(
    *, weight: bool = True, gamma_terms: int = 19, wrong_basis: bool = False, leak_bits: float = 940_000
) -> float:
    """Rusca et al. for RUS-1, written out a second time, with known mistakes to switch on; unfloored."""
    (mu_1, mu_2), p, eps = RUS_1.mean_photon_number, RUS_1.intensity_probability, 1e-9 / 19
    tau_0 = p[0] * math.exp(-mu_1) + p[1] * math.exp(-mu_2)
    tau_1 = p[0] * math.exp(-mu_1) * mu_1 + p[1] * math.exp(-mu_2) * mu_2
    w = (math.exp(mu_1) / p[0], math.exp(mu_2) / p[1]) if weight else (1.0, 1.0)

    def delta(line: tuple[int, ...]) -> float:
        return math.sqrt(sum(line) / 2 * math.log(1 / eps))

    def s_1(line: tuple[int, ...], errors: tuple[int, ...]) -> float:
        vacuum = min(2 * (tau_0 * wk * (m + delta(errors)) + delta(line)) for wk, m in zip(w, errors, strict=True))
        low, high = w[1] * (line[1] - delta(line)), w[0] * (line[0] + delta(line))
        series = low - (mu_2 / mu_1) ** 2 * high - (mu_1**2 - mu_2**2) / mu_1**2 * vacuum / tau_0
        return tau_1 * mu_1 / (mu_2 * (mu_1 - mu_2)) * series

    if RUS_1.m_key is None:
        raise AssertionError
    c, d = s_1(RUS_1.n_test, RUS_1.m_test), s_1(RUS_1.n_key, RUS_1.m_key)
    m = RUS_1.m_key if wrong_basis else RUS_1.m_test
    high, low = w[0] * (m[0] + delta(m)), w[1] * (m[1] - delta(m))
    b = max(0.0, tau_1 * (high - low) / (mu_1 - mu_2) / c)
    gamma = fung_ma_chau_deviation(min(b, 1.0), c, d, 1e-9, gamma_terms)
    return d * (1 - binary_entropy_of_bound(b + gamma)) - leak_bits - 6 * math.log2(19e9) - math.log2(2e15)


def test_rusca_written_out_agrees() -> None:
    assert math.floor(_rusca_written_out()) == 3_899_966


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param({"gamma_terms": 21}, id="21 in gamma"),
        pytest.param({"weight": False}, id="no source weight, as printed in (A18)"),
        pytest.param({"wrong_basis": True}, id="key-basis errors in the phase error rate"),
        pytest.param({"leak_bits": 1.16 * binary_entropy(0.01)}, id="leak without the factor n"),
    ],
)
def test_rusca_misread_gives_another_length(mistake: dict[str, object]) -> None:
    assert math.floor(_rusca_written_out(**mistake)) != 3_899_966  # type: ignore[arg-type]


def test_tomamichel_with_key_and_test_swapped_gives_another_length() -> None:
    assert tomamichel_length(25_000, 1_000_000, 0.03, 450_000, 1e-10, 1e-15).length_bits != 215_971


def test_channel_loss_without_detector_efficiency_gives_another_error_gain() -> None:
    system = bb84_clicks(0.5, 0.1 * 0.2, 1e-5, 0.01)
    channel_only = bb84_clicks(0.5, 0.1, 1e-5, 0.01)
    assert system.qber * system.gain < 0.3 * channel_only.qber * channel_only.gain


def test_no_proof_answers_with_a_negative_length() -> None:
    hopeless = replace(LIM_1, leak_bits=1e9)
    for key_length in (lim2014.key_length, rigorous.key_length):
        assert key_length(hopeless, **EPS).length_bits == 0
    assert rusca2018.key_length(replace(RUS_1, leak_bits=1e9), **EPS).length_bits == 0
    assert tomamichel_length(1000, 10, 0.03, 1e9, 1e-10, 1e-15).length_bits == 0

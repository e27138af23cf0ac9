"""Sources of pairs through detectors and taggers, against closed forms; canaries show that each check can fail."""

import functools
import math

import numpy as np
import pytest

from qkdhw_emulators.optics.closed_forms import pair_gain_and_qber, steady_pairs
from qkdhw_emulators.optics.pair_tables import build_places, steady_outcomes
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.optics.setup import OpticalSetup
from qkdhw_emulators.optics.simulation import LinkSimulation

P_LIMIT = 1e-6
PERIOD_PS = 1000
WINDOW_PS = 1500
FAR_PS = 2_000_000  # accidentals are counted between 0.1 and 2.1 us
SECONDS = 20.0


def two_sided_p(found, expected, variance):
    return math.erfc(abs(found - expected) / math.sqrt(2 * variance))


def verdict(p, canary):
    return p < P_LIMIT if canary else p > P_LIMIT


def joined(events):
    """Ticks and channels of all cells."""
    return np.concatenate([e.ticks for e in events]), np.concatenate([e.channel for e in events])


# --- a steady pump -----------------------------------------------------------------------------------------------
def kit():
    """The S-Fifteen set with clocks that agree and fine ticks: finding the offset is not what is tested here."""
    preset = load_setup("sfifteen-bbm92")
    tagger = {"tick_fs": 1000, "clock_offset_s": 0.0}
    return OpticalSetup.model_validate({**preset.model_dump(), "tagger": tagger, "sender_tagger": tagger})


@functools.cache
def kit_run():
    """Ticks and channels of both ends, and the time that they were counted in."""
    with LinkSimulation(kit(), seed=21) as simulation:
        cells = [simulation.next_cell() for _ in range(round(SECONDS / simulation.cell_s))]
    ends = [joined(events) for events in ([c.alice for c in cells], [c.bob for c in cells])]
    end_ticks = min(cells[-1].alice.end_ticks, cells[-1].bob.end_ticks)
    return *[(t[t < end_ticks], c[t < end_ticks]) for t, c in ends], end_ticks * 1e-12


def kit_rates(**changed):
    expected = {
        "pair_rate_hz": 4e5,
        "eta": (0.12, 0.04),
        "dark_hz": (2000.0, 8000.0),
        "window_s": WINDOW_PS * 1e-12,
        "fwhm_s": 357e-12 * math.sqrt(2) * 2.354820045,
        "e_pol": 0.03,
    }
    return steady_pairs(**{**expected, **changed})


def between(alice, bob, low, high):
    """How many pairs of events lie in low <= bob - alice < high."""
    return int((np.searchsorted(bob, alice + high) - np.searchsorted(bob, alice + low)).sum())


def coincidences(alice, bob):
    """Channels of the pairs of events within the window."""
    first = np.searchsorted(bob[0], alice[0] - WINDOW_PS // 2)
    n = np.searchsorted(bob[0], alice[0] + WINDOW_PS // 2) - first
    a = np.repeat(np.arange(len(n)), n)
    b = first[a] + np.arange(len(a)) - np.repeat(np.cumsum(n) - n, n)
    return alice[1][a], bob[1][b]


def test_the_closed_form_gives_the_published_numbers():
    rates = kit_rates(fwhm_s=1.2e-9)
    assert rates.true_hz + rates.accidental_hz == pytest.approx(1651, abs=0.5)
    assert rates.accidental_hz == pytest.approx(1.8, abs=0.05)
    assert rates.qber == pytest.approx(0.0305, abs=1e-4)


@pytest.mark.parametrize("canary", [False, True])
@pytest.mark.parametrize("end", [0, 1])
def test_singles(end, canary):
    events, seconds = kit_run()[end], kit_run()[2]
    rates = kit_rates(eta=(0.1215, 0.041)) if canary else kit_rates()
    rate = (rates.singles_a_hz, rates.singles_b_hz)[end]
    expected = seconds * rate / (1 + rate / 4 * 50e-9)  # four detectors with a dead time of 50 ns
    assert verdict(two_sided_p(len(events[0]), expected, expected), canary)


@pytest.mark.parametrize("canary", [False, True])
def test_coincidences(canary):
    alice, bob, seconds = kit_run()
    rates = kit_rates(eta=(0.12, 0.042)) if canary else kit_rates()
    expected = seconds * (rates.true_hz + rates.accidental_hz)
    found = len(coincidences(alice, bob)[0])
    assert verdict(two_sided_p(found, expected, expected), canary)


@pytest.mark.parametrize("canary", [False, True])
def test_accidental_coincidences(canary):
    alice, bob, seconds = kit_run()
    rates = kit_rates(window_s=FAR_PS * 1e-12, dark_hz=(3000.0, 8500.0) if canary else (2000.0, 8000.0))
    expected = seconds * rates.accidental_hz
    # events near to each other share pairs of events: more than Poissonian
    variance = expected * (1 + (rates.singles_a_hz + rates.singles_b_hz) * FAR_PS * 1e-12)
    found = between(alice[0], bob[0], 100_000, 100_000 + FAR_PS)
    assert verdict(two_sided_p(found, expected, variance), canary)


@pytest.mark.parametrize("canary", [False, True])
def test_error_rate(canary):
    a, b = coincidences(*kit_run()[:2])
    same_basis = a // 2 == b // 2
    n = int(same_basis.sum())
    wrong = int((a != b)[same_basis].sum())
    qber = kit_rates(e_pol=0.0375 if canary else 0.03).qber
    assert verdict(two_sided_p(wrong, n * qber, n * qber * (1 - qber)), canary)
    assert two_sided_p(n, len(a) / 2, len(a) / 4) > P_LIMIT


def test_other_bases_agree_as_often_as_not():
    a, b = coincidences(*kit_run()[:2])
    other = a // 2 != b // 2
    n = int(other.sum())
    assert two_sided_p(int((a % 2 != b % 2)[other].sum()), n / 2, n / 4) > P_LIMIT


def test_all_clicks_of_the_kit_follow_its_table():
    """Each pair of channels on its own, accidentals included."""
    alice, bob, seconds = kit_run()
    a, b = coincidences(alice, bob)
    outcomes = steady_outcomes(*build_places(kit()))
    joint = np.einsum("k,ki,kj->ij", outcomes.probability[0], outcomes.at_alice, outcomes.at_bob)
    rates = kit_rates()
    expected = seconds * (joint / joint.sum() * rates.true_hz + rates.accidental_hz / 16)
    found = np.bincount(4 * a + b, minlength=16).reshape(4, 4)
    chi2 = ((found - expected) ** 2 / expected).sum() / 16
    z = (chi2 ** (1 / 3) - (1 - 2 / 144)) / math.sqrt(2 / 144)
    assert math.erfc(z / math.sqrt(2)) / 2 > P_LIMIT


# --- pulses ------------------------------------------------------------------------------------------------------
def same_basis(e_d):
    """Both ends measure one basis with two detectors; dark counts stand for the noise of PDC-1."""

    def end(efficiency, y0, error):
        dark_hz = (1 - math.sqrt(1 - y0)) / (PERIOD_PS * 1e-12)
        return {
            "basis_choice": "active",
            "key_basis_probability": 1.0,
            "misalignment": (error, 0.0, 0.0),
            "detectors": [{"efficiency": efficiency, "dark_count_rate_hz": dark_hz}] * 2,
        }

    tagger = {"tick_fs": 1000, "clock_offset_s": 0.0}
    return OpticalSetup.model_validate(
        {
            "source": {"kind": "pair-pulsed", "mean_pairs": 0.05, "pulse_rate_hz": 1_000_000_000},
            "sender_receiver": end(0.1, 1e-5, 0.0),
            "receiver": end(0.05, 2e-5, e_d),
            "tagger": tagger,
            "sender_tagger": tagger,
        }
    )


def bits(events, n_pulses, rng):
    """Pulses with a click and their bit; a double click gets a random one. Half a period before and after is a pulse's."""
    ticks, channel = joined(events)
    pulse = (ticks + PERIOD_PS // 2) // PERIOD_PS
    pulse, detector = np.divmod(np.unique(pulse[pulse < n_pulses] * 2 + channel[pulse < n_pulses]), 2)
    clicked, first, n = np.unique(pulse, return_index=True, return_counts=True)
    return clicked, np.where(n == 2, rng.integers(0, 2, len(n)), detector[first])


@functools.cache
def sifted(e_d, cells=100):
    """Number of pulses, of those with clicks at both ends, and of unequal bits."""
    rng = np.random.default_rng(4)
    with LinkSimulation(same_basis(e_d), seed=8) as simulation:
        made = [simulation.next_cell() for _ in range(cells)]
        n_pulses = (cells - 1) * simulation.cell_pulses
        alice, bob = (bits(events, n_pulses, rng) for events in ([c.alice for c in made], [c.bob for c in made]))
    _, i, j = np.intersect1d(alice[0], bob[0], assume_unique=True, return_indices=True)
    return n_pulses, len(i), int((alice[1][i] != bob[1][j]).sum())


def test_the_closed_form_gives_the_golden_vector():
    gain, qber = pair_gain_and_qber(0.05, 0.1, 0.05, 1e-5, 2e-5, 0.02)
    assert gain == pytest.approx(5.632177119e-4, rel=1e-9)
    assert qber == pytest.approx(0.05910363554, rel=1e-9)


def test_gain_and_error_rate_of_pulses():
    gain, qber = pair_gain_and_qber(0.05, 0.1, 0.05, 1e-5, 2e-5, 0.02)
    n_pulses, both, wrong = sifted(0.02)
    assert both > 30_000
    assert two_sided_p(both, n_pulses * gain, n_pulses * gain * (1 - gain)) > P_LIMIT
    assert two_sided_p(wrong, both * qber, both * qber * (1 - qber)) > P_LIMIT


def test_a_larger_error_would_be_seen():
    _, qber = pair_gain_and_qber(0.05, 0.1, 0.05, 1e-5, 2e-5, 0.02)
    _, both, wrong = sifted(0.03)
    assert two_sided_p(wrong, both * qber, both * qber * (1 - qber)) < P_LIMIT


def test_poissonian_pairs_would_be_seen():
    """Thermal light has more double pairs than pairs that know nothing of each other."""
    lam, eta_a, eta_b = 0.05, 0.1, 0.05
    either = eta_a + eta_b - eta_a * eta_b
    poissonian = 1 - math.exp(-2 * lam * eta_a) - math.exp(-2 * lam * eta_b) + math.exp(-2 * lam * either)
    n_pulses, both, _ = sifted(0.02)
    assert two_sided_p(both, n_pulses * poissonian, n_pulses * poissonian) < P_LIMIT

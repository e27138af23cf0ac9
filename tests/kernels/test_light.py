"""PulseLight: choices equal a Philox in Python word by word, light has the statistics of its closed forms and no others."""

import dataclasses
import math

import numpy as np
import oracle_light as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators._optics.light import PulseLight
from qkdhw_emulators.optics.pulse_tables import POISSON, PulseTables

P_LEAST = 1e-6
KEYS = np.array([[11, 12], [21, 22], [31, 32], [41, 42]], np.uint64)
KEY = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2).map(lambda k: np.array(k, np.uint64))


def make_tables(shares, *, photons=POISSON, intensities=(65536,), bases=(32768, 65536), bob=(65536,), **more):
    """Return tables of `shares`, (intensities, n_bob, n_hidden, modes), the same for all bases and bits."""
    shares = np.repeat(np.asarray(shares, float), 6, axis=0)
    n_choices, n_bob, n_hidden, n_modes = shares.shape
    n_states = n_choices * n_bob * n_hidden
    hidden = np.broadcast_to(np.arange(1, n_hidden + 1) / n_hidden, (n_choices, n_bob, n_hidden))
    values = {
        "intensity_thresholds": np.array(intensities, np.uint32),
        "basis_thresholds": np.array(bases, np.uint32),
        "bob_thresholds": np.array(bob, np.uint32),
        "three_state": False,
        "hidden_cumulative": hidden.copy(),
        "photons": np.full(n_states, photons, np.uint8) if np.isscalar(photons) else np.resize(photons, n_states),
        "shares": shares.reshape(n_states, n_modes),
        "bright": np.zeros(n_states, np.uint8),
        "state_offset_ps": np.zeros(n_states),
        "mode_detector": np.arange(n_modes, dtype=np.uint8),
        "mode_offset_ps": np.zeros(n_modes),
        "pulse_sigma_ps": 0.0,
        "period_ps": 1000,
        "intensity_noise": 0.0,
        "pattern_effect": 0.0,
    }
    return PulseTables(**(values | more))


def draw(tables, n_pulses, *, first=0, seed=1, capacity=None):
    """Return time, detector, bright, pulse and state of all arrivals, by the contract for arrays that are too small."""
    light = PulseLight(tables)
    capacity = n_pulses if capacity is None else capacity
    while True:
        out = [np.empty(capacity, t) for t in (np.float64, np.uint8, np.uint8, np.int64, np.uint16)]
        found = light.arrivals(KEYS, seed, first, n_pulses, *out)
        if found <= capacity:
            out[3] -= first
            return [column[:found] for column in out]
        capacity = found


def outcomes(tables, n_pulses, group=None, **how):
    """Return how many pulses of each state (or group) had photons in exactly each set of modes, but for none."""
    _, detector, _, pulse, state = draw(tables, n_pulses, **how)
    masks = np.zeros(n_pulses, np.int64)
    np.bitwise_or.at(masks, pulse, 1 << detector.astype(np.int64))
    clicked = np.flatnonzero(masks)
    state_of = np.zeros(n_pulses, np.int64)
    state_of[pulse] = state
    rows = state_of[clicked] if group is None else group[clicked] * len(tables.photons) + state_of[clicked]
    n_rows = len(tables.photons) * (1 if group is None else 2)
    counts = np.zeros((n_rows, 2 ** tables.shares.shape[1]), np.int64)
    np.add.at(counts, (rows, masks[clicked]), 1)
    return counts[:, 1:]


def expected(tables, n_pulses, probabilities=None):
    probabilities = oracle.outcome_probabilities(tables) if probabilities is None else probabilities
    return n_pulses * oracle.state_probabilities(tables)[:, None] * probabilities[:, 1:]


def brighter(tables, factor=1.03):
    return dataclasses.replace(tables, shares=tables.shares * factor)


# --- choices ---------------------------------------------------------------------------------------------------------

CHOICES = [
    make_tables(np.ones((3, 2, 1, 1)), intensities=(100, 40000, 65536), bob=(9000, 65536)),
    make_tables(np.ones((1, 3, 1, 1)), bases=(20000, 40000, 65536), bob=(1, 2, 65536)),
    make_tables(np.ones((2, 1, 1, 1)), intensities=(0, 65536), bases=(60000, 65536), three_state=True),
]


ALL = 2**32 - 1


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_oracle_gives_the_published_words(counter, key, words):
    """Known answers of Random123, the library of Philox's authors."""
    assert oracle.philox(counter, key) == words


@given(st.sampled_from(CHOICES), KEY, st.integers(0, 2**62), st.integers(0, 40), st.booleans())
def test_choices_of_a_range_are_the_oracles(tables, key, first, n, portable):
    choice, basis = np.full(n, 99, np.uint8), np.full(n, 99, np.uint8)
    PulseLight(tables, portable).prepare(key, first, choice)
    PulseLight(tables, portable).measure(key, first, basis)
    assert choice.tolist() == [oracle.prepare(tables, key, p) for p in range(first, first + n)]
    assert basis.tolist() == [oracle.measure(tables, key, p) for p in range(first, first + n)]


@given(st.sampled_from(CHOICES), KEY, st.lists(st.integers(0, 2**63 - 1), max_size=40), st.booleans())
def test_choices_of_any_pulses_are_the_oracles(tables, key, pulses, portable):
    choice, basis = np.full(len(pulses), 99, np.uint8), np.full(len(pulses), 99, np.uint8)
    PulseLight(tables, portable).prepare(key, np.array(pulses, np.int64), choice)
    PulseLight(tables, portable).measure(key, np.array(pulses, np.int64), basis)
    assert choice.tolist() == [oracle.prepare(tables, key, p) for p in pulses]
    assert basis.tolist() == [oracle.measure(tables, key, p) for p in pulses]


@pytest.mark.parametrize("n", [255, 256, 257, 1000])
def test_many_choices_are_those_of_one_at_a_time(n):
    tables = CHOICES[-1]
    at_once, alone = np.full((2, n), 99, np.uint8)
    PulseLight(tables).prepare(KEYS[0], 7, at_once)
    for k in range(n):
        PulseLight(tables, portable=True).prepare(KEYS[0], 7 + k, alone[k : k + 1])
    assert at_once.tolist() == alone.tolist()


def test_choices_come_as_often_as_their_thresholds_say():
    tables = CHOICES[0]
    choice = np.empty(1_000_000, np.uint8)
    PulseLight(tables).prepare(KEYS[0], 0, choice)
    often = oracle.state_probabilities(tables).reshape(18, 2).sum(axis=1)
    counts = np.bincount(choice, minlength=18)
    assert counts[often == 0].sum() == 0
    assert oracle.chi_square_p(counts[often > 0], 1e6 * often[often > 0]) > P_LEAST
    assert oracle.chi_square_p(counts[often > 0], 1e6 * np.full(12, 1 / 12)) < P_LEAST


def test_each_arrival_has_the_state_that_its_pulse_was_given():
    shares = np.random.default_rng(3).random((2, 2, 3, 2))
    tables = make_tables(shares, intensities=(30000, 65536), bob=(40000, 65536))
    first = 4_000_000_003
    _, _, _, pulse, state = draw(tables, 500, first=first, capacity=4000)
    assert len(set(pulse)) > 200
    assert state.tolist() == [oracle.state(tables, KEYS, first + int(p)) for p in pulse]


# --- statistics ------------------------------------------------------------------------------------------------------


def test_clicks_of_weak_pulses_single_and_double_as_in_the_golden_vector():
    """CLK-1 without dark counts: mu = 0.5, eta = 0.1, e_mis = 0.01."""
    mean, error, n = 0.5 * 0.1, 0.01, 8_000_000
    tables = make_tables([[[[mean * (1 - error), mean * error]]]])
    right, wrong = -math.expm1(-mean * (1 - error)), -math.expm1(-mean * error)
    want = n * np.array([right * (1 - wrong), wrong * (1 - right), right * wrong])
    got = outcomes(tables, n).sum(axis=0)
    assert oracle.chi_square_p(got, want) > P_LEAST
    assert oracle.chi_square_p(outcomes(brighter(tables), n).sum(axis=0), want) < P_LEAST


STATISTICAL = {
    "decoys, switch, eavesdropper": make_tables(
        np.random.default_rng(5).random((2, 2, 2, 3)) * [[[[0.3]]], [[[0.05]]]],
        intensities=(40000, 65536),
        bob=(50000, 65536),
    ),
    "bright": make_tables([[[[2.0, 1.0, 0.1]]]]),
    "zero to three photons": make_tables(
        [[[[0.0, 0.0], [0.2, 0.1], [0.3, 0.2], [0.5, 0.4]]]], photons=np.array([0, 1, 2, 3], np.uint8)
    ),
    "every photon detected": make_tables([[[[0.7, 0.3], [0.7, 0.3]]]], photons=np.array([1, 2], np.uint8)),
    "photons beside pulses": make_tables([[[[0.2, 0.1], [0.4, 0.1]]]], photons=np.array([2, POISSON], np.uint8)),
}


@pytest.mark.parametrize("name", STATISTICAL)
def test_sets_of_modes_click_as_often_as_closed_forms_say(name):
    tables, n = STATISTICAL[name], 2_000_000
    got = outcomes(tables, n)
    want = expected(tables, n)
    assert got[want == 0].sum() == 0
    assert oracle.chi_square_p(got[want > 0], want[want > 0]) > P_LEAST
    wrong = brighter(tables, 1.03 if name != "every photon detected" else 0.97)
    assert oracle.chi_square_p(outcomes(wrong, n)[want > 0], want[want > 0]) < P_LEAST


@pytest.mark.parametrize(
    ("photons", "share"), [(POISSON, 0.8), (POISSON, 29.0), (POISSON, 45.0), (5, 0.3), (20, 1.0), (200, 0.4)]
)
def test_number_of_photons_of_a_pulse(photons, share):
    n = 100_000
    tables = make_tables([[[[share * 0.25, share * 0.75]]]], photons=photons)
    _, detector, _, pulse, _ = draw(tables, n, capacity=int(1.1 * n * share * (1 if photons == POISSON else photons)))
    top = 120

    def law(k):
        if photons == POISSON:
            return math.exp(-share + k * math.log(share) - math.lgamma(k + 1))
        return math.comb(photons, k) * share**k * (1 - share) ** max(photons - k, 0)

    want = n * np.array([law(k) for k in range(top)])
    got = np.bincount(np.bincount(pulse, minlength=n), minlength=top)[:top]
    assert got.sum() == n
    assert oracle.chi_square_p(got, want) > P_LEAST
    assert oracle.chi_square_p(got, np.roll(want, 1)) < P_LEAST
    in_first = np.bincount(detector, minlength=2)
    assert oracle.chi_square_p(in_first, in_first.sum() * np.array([0.25, 0.75])) > P_LEAST
    assert oracle.chi_square_p(in_first, in_first.sum() * np.array([0.27, 0.73])) < P_LEAST


def test_distances_of_clicks_are_geometric_and_clicks_are_spread_evenly():
    p, n = 0.4, 2_000_000
    tables = make_tables([[[[p]]]], photons=1)
    _, _, _, pulse, _ = draw(tables, n)
    distance = np.diff(pulse)
    k = np.arange(1, 40)
    want = len(distance) * p * (1 - p) ** (k - 1)
    assert oracle.chi_square_p(np.bincount(distance, minlength=40)[1:40], want) > P_LEAST
    assert oracle.chi_square_p(np.bincount(distance - 1, minlength=40)[1:40], want) < P_LEAST
    assert oracle.chi_square_p(np.bincount(pulse // (n // 64)), np.full(64, n * p / 64)) > P_LEAST


def test_noise_of_the_source_is_common_to_the_photons_of_a_pulse():
    n = 2_000_000
    tables = make_tables([[[[0.6, 0.4]]]], intensity_noise=0.15)
    got = outcomes(tables, n)
    assert oracle.chi_square_p(got, expected(tables, n, oracle.noisy_outcome_probabilities(tables))) > P_LEAST
    dark = n - got.sum()
    second_moment = math.exp(-1 + 0.15**2 / 2)
    deviation = math.sqrt(n * second_moment * (1 - second_moment))
    assert abs(dark - n * second_moment) < 5 * deviation
    assert abs(dark - n * math.exp(-1)) > 5 * deviation
    # the canaries: no noise, and noise of each mode by itself
    assert oracle.chi_square_p(got, expected(tables, n)) < P_LEAST
    clicks = [1 - math.exp(-m + (0.15 * m) ** 2 / 2) for m in (0.6, 0.4)]
    apart = n * np.array([clicks[0] * (1 - clicks[1]), clicks[1] * (1 - clicks[0]), clicks[0] * clicks[1]])
    assert oracle.chi_square_p(got.sum(axis=0), apart) < P_LEAST


def test_a_pulse_after_a_signal_pulse_is_brighter():
    n, first, effect = 4_000_000, 1_000_001, 0.2
    tables = make_tables([[[[0.1, 0.02]]], [[[0.05, 0.03]]]], intensities=(30000, 65536), pattern_effect=effect)
    choice = np.empty(n, np.uint8)
    PulseLight(tables).prepare(KEYS[0], first - 1, choice)
    got = outcomes(tables, n, group=(choice // 6 == 0).astype(np.int64), first=first)
    after = 30000 / 65536
    usual, higher = expected(tables, n), expected(tables, n, oracle.outcome_probabilities(tables, 1 + effect))
    want = np.concatenate([(1 - after) * usual, after * higher])
    assert oracle.chi_square_p(got[want > 0], want[want > 0]) > P_LEAST
    mixed = np.concatenate([(1 - after) * usual, after * usual])
    assert oracle.chi_square_p(got[want > 0], mixed[want > 0]) < P_LEAST


def test_no_pulse_is_before_the_first():
    tables = make_tables([[[[0.01]]]], pattern_effect=500.0)
    clicks = [
        sum(len(set(draw(tables, 1, first=first, seed=s, capacity=40)[3])) for s in range(300)) for first in (0, 1)
    ]
    assert clicks[0] < 20
    assert clicks[1] > 280


# --- times -----------------------------------------------------------------------------------------------------------


def test_times_are_pulse_and_offsets_and_rise():
    tables = make_tables(
        [[[[0.2, 0.3], [0.1, 0.4]]]],
        state_offset_ps=np.tile([0.0, -70.5], 6),
        mode_offset_ps=np.array([12.25, 5300.0]),
        mode_detector=np.array([3, 5], np.uint8),
        bright=np.tile(np.array([0, 1], np.uint8), 6),
    )
    time_ps, detector, bright, pulse, state = draw(tables, 20_000)
    late = np.where(detector == 3, 12.25, 5300.0)
    assert set(detector) == {3, 5}
    np.testing.assert_array_equal(time_ps, pulse * 1000.0 + np.where(state % 2, -70.5, 0.0) + late)
    np.testing.assert_array_equal(bright, state % 2)
    assert np.all(np.diff(time_ps) >= 0)
    assert np.any(np.diff(pulse) < 0)


def test_times_spread_like_the_pulse():
    sigma_ps = 40.0
    tables = make_tables([[[[0.2]]]], pulse_sigma_ps=sigma_ps)
    time_ps, _, _, pulse, _ = draw(tables, 1_000_000)
    deviation = time_ps - pulse * 1000.0

    def p(sigma):
        share = [0.5 * (1 + math.erf(d / sigma / math.sqrt(2))) for d in deviation]
        return oracle.chi_square_p(
            np.bincount((np.array(share) * 40).astype(int), minlength=40), np.full(40, len(share) / 40)
        )

    assert p(sigma_ps) > P_LEAST
    assert p(1.03 * sigma_ps) < P_LEAST
    assert np.all(np.diff(time_ps) >= 0)


# --- contract --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATISTICAL)
@pytest.mark.parametrize("capacity", [0, 1, 300, 5000])
def test_the_size_of_the_arrays_changes_nothing(name, capacity):
    tables = dataclasses.replace(STATISTICAL[name], pulse_sigma_ps=900.0)
    for small, large in zip(draw(tables, 1000, capacity=capacity), draw(tables, 1000, capacity=100_000), strict=True):
        np.testing.assert_array_equal(small, large)


def test_no_pulses_and_one_pulse():
    certain = make_tables([[[[1.0]]]], photons=1)
    assert len(draw(certain, 0)[0]) == 0
    time_ps, detector, bright, pulse, _ = draw(certain, 1, first=7)
    assert (time_ps.tolist(), detector.tolist(), bright.tolist(), pulse.tolist()) == ([0.0], [0], [0], [0])
    assert len(draw(make_tables([[[[0.0]]]]), 1000)[0]) == 0
    assert draw(certain, 1000)[3].tolist() == list(range(1000))


def test_a_faint_link_costs_nothing_and_loses_nothing():
    tables = make_tables([[[[1e-9]]]])
    n = sum(len(draw(tables, 2**31 - 1, seed=s, capacity=20)[0]) for s in range(500))
    mean = 500 * (2**31 - 1) * 1e-9
    assert abs(n - mean) < 5 * math.sqrt(mean)


@pytest.mark.parametrize(
    "wrong",
    [
        {"photons": np.zeros(5, np.uint8)},
        {"shares": np.zeros((6, 2))},
        {"shares": np.full((6, 1), -0.1)},
        {"shares": np.full((6, 1), np.nan)},
        {"shares": np.full((6, 1), 1.1), "photons": np.ones(6, np.uint8)},
        {"bright": np.zeros(7, np.uint8)},
        {"state_offset_ps": np.zeros(1)},
        {"mode_offset_ps": np.zeros(2)},
        {"bob_thresholds": np.array([1, 65536], np.uint32)},
        {"intensity_thresholds": np.array([1, 65536], np.uint32)},
        {"basis_thresholds": np.array([1, 2, 3, 65536], np.uint32)},
        {"intensity_noise": 0.3},
        {"pattern_effect": -1.5},
    ],
    ids=str,
)
def test_tables_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match=r"shape|share|threshold|choices|range"):
        PulseLight(dataclasses.replace(make_tables([[[[0.5]]]]), **wrong))


def test_wrong_arguments_are_refused():
    light = PulseLight(make_tables([[[[0.5]]]]))
    out = [np.empty(9, t) for t in (np.float64, np.uint8, np.uint8, np.int64, np.uint16)]
    for keys, cell, first, n, arrays in (
        (KEYS[:3], 0, 0, 9, out),
        (KEYS, -1, 0, 9, out),
        (KEYS, 2**58, 0, 9, out),
        (KEYS, 0, -1, 9, out),
        (KEYS, 0, 0, -1, out),
        (KEYS, 0, 0, 2**31, out),
        (KEYS, 0, 0, 9, [*out[:4], out[4][:8]]),
    ):
        with pytest.raises(ValueError, match=r"keys|range|length"):
            light.arrivals(keys, cell, first, n, *arrays)
    with pytest.raises(ValueError, match="two words"):
        light.prepare(KEYS[0, :1], 0, out[1])
    with pytest.raises(ValueError, match="length"):
        light.measure(KEYS[1], np.arange(8), out[1])

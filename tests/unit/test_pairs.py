"""The light of a source of pairs against Fock space, closed forms and its own promises."""

import itertools
import math

import numpy as np
import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.drift import rotation_about
from qkdhw_emulators.optics.pair_tables import build_places, pulse_outcomes, steady_outcomes
from qkdhw_emulators.optics.pairs import PairLight, _successes, cell_ps
from qkdhw_emulators.optics.setup import OpticalSetup

P_LIMIT = 1e-6
SIGMA = (
    np.array([[0, 1], [1, 0]], complex),
    np.array([[0, -1j], [1j, 0]]),
    np.array([[1, 0], [0, -1]], complex),
)


def two_sided_p(z):
    return math.erfc(abs(z) / math.sqrt(2))


def chi_square_p(observed, expected):
    """Wilson-Hilferty; what is rare is put together."""
    big = expected >= 20
    observed = np.append(observed[big], observed[~big].sum())
    expected = np.append(expected[big], expected[~big].sum())
    if expected[-1] < 20:
        observed, expected = observed[:-1], expected[:-1]
    n = len(expected)
    assert n >= 3
    ratio = float(((observed - expected) ** 2 / expected).sum() / n) ** (1 / 3)
    z = (ratio - (1 - 2 / (9 * n))) / math.sqrt(2 / (9 * n))
    return math.erfc(z / math.sqrt(2)) / 2


def receiver(n=4, efficiency=0.2, **more):
    return {"detectors": [{"efficiency": efficiency}] * n, **more}


def steady(alice=None, bob=None, channel=None, **source):
    source = {"kind": "pair-cw", "pair_rate_hz": 1e6, **source}
    return OpticalSetup.model_validate(
        {
            "source": source,
            "channel": channel or {},
            "receiver": bob or receiver(),
            "sender_receiver": alice or receiver(),
        }
    )


def pulsed(alice=None, bob=None, **source):
    source = {"kind": "pair-pulsed", "mean_pairs": 0.05, "pulse_rate_hz": 1_000_000_000, **source}
    return OpticalSetup.model_validate(
        {"source": source, "receiver": bob or receiver(), "sender_receiver": alice or receiver()}
    )


# --- tables ------------------------------------------------------------------------------------------------------
def click_probability(outcomes, alice, bob, way=0):
    """Probability that exactly these places click."""
    same = (outcomes.at_alice == alice).all(axis=1) & (outcomes.at_bob == bob).all(axis=1)
    return outcomes.probability[way][same].sum()


def qber(outcomes, first=0):
    """Of single clicks on both sides in the basis whose places begin with `first`."""
    a, b = outcomes.at_alice[:, first : first + 2], outcomes.at_bob[:, first : first + 2]
    one = (a.sum(axis=1) == 1) & (b.sum(axis=1) == 1)
    wrong = one & (a[:, 0] != b[:, 0])
    return outcomes.probability[0][wrong].sum() / outcomes.probability[0][one].sum()


def symmetric_projector(n):
    """On n photons of two modes each, in the space of n distinct photons."""
    projector = np.zeros((2**n, 2**n))
    numbers = np.array(list(itertools.product((0, 1), repeat=n))).reshape(2**n, n)
    value = 2 ** np.arange(n)[::-1]
    for order in itertools.permutations(range(n)):
        projector[numbers[:, list(order)] @ value, np.arange(2**n)] += 1 / math.factorial(n)
    return projector


def fock_space_click_sets(alice, bob, lam, most_pairs):
    """Probability of clicks in exactly each set, pair number by pair number, from explicit operators."""

    def operators(places, weight):
        single = [
            w * (np.eye(2) + sum(c * s for c, s in zip(d, SIGMA, strict=True))) / 2
            for w, d in zip(weight, places.direction, strict=True)
        ]
        sets = list(itertools.product((False, True), repeat=len(single)))
        return sets, [
            np.eye(2) - sum((m for m, on in zip(single, s, strict=True) if on), np.zeros((2, 2))) for s in sets
        ]

    sets_a, none_a = operators(alice, alice.weight[0])
    sets_b, none_b = operators(bob, bob.weight[0])
    projectors = [symmetric_projector(n) for n in range(1, most_pairs + 1)]
    silent = np.zeros((len(sets_a), len(sets_b)))
    for i, j in np.ndindex(silent.shape):
        one = none_a[i] @ none_b[j]
        power = np.eye(1)
        silent[i, j] = 1 / (1 + lam) ** 2
        for n, projector in enumerate(projectors, 1):
            power = np.kron(power, one)
            # (n + 1) lam^n / (1 + lam)^(n + 2) times the mean over the n + 1 symmetric states
            silent[i, j] += (lam**n / (1 + lam) ** (n + 2)) * np.trace(projector @ power).real
    found = {}
    for s, t in itertools.product(sets_a, sets_b):
        clicking = np.array(s + t)
        found[s, t] = 0.0
        for (i, silent_a), (j, silent_b) in itertools.product(enumerate(sets_a), enumerate(sets_b)):
            is_silent = np.array(silent_a + silent_b)
            if (is_silent | clicking).all():  # inclusion and exclusion over the clicking ones that are silent
                found[s, t] += (-1) ** (is_silent & clicking).sum() * silent[i, j]
    return found


@pytest.mark.parametrize("turned", [False, True])
def test_pulses_click_as_in_fock_space_with_every_basis_mixed(turned):
    ends = [receiver(3, 0.7, layout=["key0", "key1", "test0"], misalignment=(0.02, 0.05, 0)) for _ in range(2)]
    rotation = rotation_about(np.array([0.4, -0.7, 0.3])) if turned else None
    setup = pulsed(*ends, mean_pairs=0.08, preparation_error=(0.03, 0.01, 0))
    alice, bob = build_places(setup, rotation)
    oracle = fock_space_click_sets(alice, bob, 0.08, most_pairs=5)
    outcomes = pulse_outcomes(alice, bob, 0.08)
    for (s, t), expected in oracle.items():
        if any(s) or any(t):
            assert click_probability(outcomes, s, t) == pytest.approx(expected, abs=2e-6)  # P(6 pairs or more)
    assert outcomes.probability.sum() == pytest.approx(1 - oracle[(False,) * 3, (False,) * 3], abs=2e-6)


def with_dark_counts(outcomes, y0_a, y0_b):
    """Gain and error rate of both ends in their only basis; double clicks get a random bit."""
    p = np.zeros((2, 2, 2, 2))
    flags = np.concatenate((outcomes.at_alice[:, :2], outcomes.at_bob[:, :2]), axis=1).astype(int)
    np.add.at(p, tuple(flags.T), outcomes.probability[0])
    p[0, 0, 0, 0] = 1 - p.sum()
    for axis, y0 in enumerate((y0_a, y0_a, y0_b, y0_b)):
        dark = 1 - math.sqrt(1 - y0)
        p = np.moveaxis(p, axis, 0)
        p = np.moveaxis(np.stack((p[0] * (1 - dark), p[1] + p[0] * dark)), 0, axis)
    gain = error = 0.0
    one_if_bit_1 = {(1, 0): 0.0, (0, 1): 1.0, (1, 1): 0.5}
    for a, b in itertools.product(one_if_bit_1, repeat=2):
        bit_a, bit_b = one_if_bit_1[a], one_if_bit_1[b]
        gain += p[a + b]
        error += p[a + b] * (bit_a + bit_b - 2 * bit_a * bit_b)
    return gain, error / gain


def same_basis(e_d=0.02, mean_pairs=0.05, **more):
    ends = [receiver(2, eta, basis_choice="active", key_basis_probability=1, misalignment=(e, 0, 0), **more)
            for eta, e in ((0.1, 0.0), (0.05, e_d))]  # fmt: skip
    return pulsed(*ends, mean_pairs=mean_pairs)


def test_pulses_give_the_published_gain_and_error_rate():
    setup = same_basis()
    gain, error = with_dark_counts(pulse_outcomes(*build_places(setup), 0.05), 1e-5, 2e-5)
    assert gain == pytest.approx(5.632177119e-4, rel=1e-9)
    # the closed form lets a dark count never spoil a photon's click: half of the noise, 1.5e-5 of the right ones
    assert error == pytest.approx(0.05910363554, rel=2e-4)


def test_single_photons_of_pulses_are_thermal_whatever_the_bases():
    setup = pulsed(receiver(6, 0.3, key_basis_probability=0.5), receiver(6, 0.1), states=6, mean_pairs=0.5)
    alice, bob = build_places(setup)
    outcomes = pulse_outcomes(alice, bob, 0.5)
    seen_a = outcomes.probability[0][outcomes.at_alice.any(axis=1)].sum()
    assert seen_a == pytest.approx(1 - 1 / (1 + 0.3 * 0.5) ** 2, rel=1e-10)
    either = 0.3 + 0.1 - 0.03
    assert outcomes.probability.sum() == pytest.approx(1 - 1 / (1 + either * 0.5) ** 2, rel=1e-10)


def test_two_pairs_bunch_in_the_other_basis():
    """Two photons that Alice finds in both ports of her basis leave Bob's other basis by one port, never by both."""
    ends = [receiver(2, 1.0, basis_choice="active") for _ in range(2)]
    outcomes = pulse_outcomes(*build_places(pulsed(*ends, mean_pairs=1e-3)), 1e-3)
    both, way = (True, True, False, False), 1  # Alice in the key basis, Bob in the test basis
    bunched = click_probability(outcomes, both, (False, False, True, False), way)
    assert bunched == pytest.approx(1e-6 / 2, rel=0.02)
    assert click_probability(outcomes, both, (False, False, True, True), way) < 0.02 * bunched


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, math.pi / 2, math.pi])
@pytest.mark.parametrize(("axis", "first"), [((1, 0, 0), 0), ((0, 1, 0), 0), ((0, 0, 1), 2), ((0, 1, 0), 2)])
def test_a_turn_of_the_channel_gives_its_error_rate(angle, axis, first):
    setup = steady()
    outcomes = steady_outcomes(*build_places(setup, rotation_about(angle * np.array(axis, float))))
    assert qber(outcomes, first) == pytest.approx((1 - math.cos(angle)) / 2, abs=1e-12)


def test_a_turn_about_the_axis_of_a_basis_leaves_it_alone():
    outcomes = steady_outcomes(*build_places(steady(), rotation_about(np.array([0.0, 0.0, 1.0]))))
    assert qber(outcomes, 0) == pytest.approx(0, abs=1e-12)
    assert qber(outcomes, 2) == pytest.approx((1 - math.cos(1)) / 2, abs=1e-12)


def test_an_eavesdropper_who_measures_shortens_the_vectors():
    """Measuring and sending again in a random basis projects on one of the axes: a quarter of the bits are wrong."""
    measured = np.diag([0.5, 0.0, 0.5])
    outcomes = steady_outcomes(*build_places(steady(), measured))
    assert qber(outcomes, 0) == pytest.approx(0.25, abs=1e-12)
    assert qber(outcomes, 2) == pytest.approx(0.25, abs=1e-12)


def test_independent_errors_combine():
    alice, bob = (receiver(misalignment=e) for e in ((0.01, 0.04, 0), (0.02, 0.05, 0)))
    setup = steady(alice, bob, preparation_error=(0.03, 0.06, 0), extinction_ratio_db=20.0)
    outcomes = steady_outcomes(*build_places(setup))
    key = 0.98 * 0.96 * 0.94 * (1 - 2 / 101)
    assert qber(outcomes, 0) == pytest.approx((1 - key) / 2, rel=1e-12)
    assert qber(outcomes, 2) == pytest.approx((1 - 0.92 * 0.9 * 0.88) / 2, rel=1e-12)


def test_losses_fall_where_they_are():
    setup = steady(
        receiver(efficiency=0.5, loss_db=3.0, key_basis_probability=0.9),
        receiver(efficiency=0.4, test_loss_db=2.0, key_basis_probability=0.8),
        channel={"length_km": 50.0, "connector_loss_db": 1.0},
    )
    outcomes = steady_outcomes(*build_places(setup))
    singles_a = outcomes.probability[0] @ outcomes.at_alice
    singles_b = outcomes.probability[0] @ outcomes.at_bob
    half_a, half_b = 0.5 * 10**-0.3 / 2, 0.4 * 10**-1.1 / 2
    assert singles_a == pytest.approx(half_a * np.array([0.9, 0.9, 0.1, 0.1]))
    assert singles_b == pytest.approx(half_b * np.array([0.8, 0.8, 0.2 * 10**-0.2, 0.2 * 10**-0.2]))


# --- what is drawn -----------------------------------------------------------------------------------------------
def all_arrivals(setup, cells, seed=5, **more):
    light = PairLight(setup, **more)
    return light, [light.arrivals(seed, 0, cell) for cell in range(cells)]


def outcome_counts(cells, n_a, n_b):
    """How often each set of detectors was hit by a pair or a pulse; set 0 is not counted."""
    counts = np.zeros(1 << (n_a + n_b), np.int64)
    for cell in cells:
        pairs = np.concatenate((cell.alice.pair, cell.bob.pair))
        bit = np.concatenate((n_a + n_b - 1 - cell.alice.detector.astype(int), n_b - 1 - cell.bob.detector.astype(int)))
        sets = np.zeros(pairs.max() + 1, np.int64)
        np.bitwise_or.at(sets, pairs, 1 << bit)
        counts += np.bincount(sets, minlength=len(counts))
    counts[0] = 0
    return counts


def table_of(outcomes, n_a, n_b):
    value = np.concatenate((outcomes.at_alice, outcomes.at_bob), axis=1) @ (2 ** np.arange(n_a + n_b)[::-1])
    table = np.zeros(1 << (n_a + n_b))
    np.add.at(table, value, outcomes.probability[0])
    return table


def skewed(**more):
    """Detectors that can be told apart by their rates."""
    efficiencies = (0.5, 0.4, 0.3, 0.2)
    return {"detectors": [{"efficiency": e} for e in efficiencies], "misalignment": (0.05, 0.1, 0), **more}


@pytest.mark.parametrize("canary", [False, True])
def test_pairs_of_a_steady_pump_fall_as_the_table_says(canary):
    setup = steady(skewed(), skewed())
    light, cells = all_arrivals(setup, 60)
    wrong = setup if not canary else steady(skewed(), skewed(misalignment=(0.08, 0.1, 0)))
    duration_s = 60 * light.length_ps * 1e-12
    expected = 1e6 * duration_s * table_of(steady_outcomes(*build_places(wrong)), 4, 4)
    p = chi_square_p(outcome_counts(cells, 4, 4), expected)
    assert p < P_LIMIT if canary else p > P_LIMIT


@pytest.mark.parametrize("canary", [False, True])
def test_pulses_click_as_the_table_says(canary):
    setup = pulsed(skewed(), skewed(), mean_pairs=0.3)
    light, cells = all_arrivals(setup, 60)
    lam = 0.31 if canary else 0.3
    expected = 60 * light.length_ps / 1000 * table_of(pulse_outcomes(*build_places(setup), lam), 4, 4)
    p = chi_square_p(outcome_counts(cells, 4, 4), expected)
    assert p < P_LIMIT if canary else p > P_LIMIT


def test_counts_of_a_steady_pump_are_poissonian_in_time():
    setup = steady(pair_rate_hz=1e7)
    light, cells = all_arrivals(setup, 40)
    slots = np.concatenate([np.histogram(c.alice.time_ps, 50, (0, light.length_ps))[0] for c in cells])
    mean = 1e7 * 0.2 * light.length_ps * 1e-12 / 50
    p = chi_square_p(slots.astype(float), np.full(len(slots), mean))
    assert P_LIMIT < p < 1 - P_LIMIT  # neither more nor less than Poissonian
    gaps = np.concatenate([np.diff(c.alice.time_ps) for c in cells]) * 1e-12 * 2e6
    edges = -np.log1p(-np.linspace(0, 1, 21)[:-1])
    counts = np.histogram(gaps, [*edges, np.inf])[0].astype(float)
    assert chi_square_p(counts, np.full(20, len(gaps) / 20)) > P_LIMIT


@pytest.mark.parametrize("canary", [False, True])
def test_photons_of_a_pair_come_together_as_wide_as_they_should(canary):
    setup = steady(
        receiver(efficiency=1.0, key_basis_probability=1.0),
        receiver(efficiency=1.0, key_basis_probability=1.0),
        channel={"length_km": 10.0, "attenuation_db_per_km": 0.0, "dispersion_ps_per_nm_km": 17.0},
        pair_width_ps=300.0,
        spectral_width_nm=2.0,
    )
    _, cells = all_arrivals(setup, 4)
    late = []
    for cell in cells:
        a = np.empty(len(cell.alice.pair))
        a[cell.alice.pair] = cell.alice.time_ps
        late.append(cell.bob.time_ps - a[cell.bob.pair])
    late = np.concatenate(late)
    n, variance = len(late), 300.0**2 + 340.0**2 * (1.1 if canary else 1.0)
    assert n > 30_000
    assert two_sided_p(late.mean() / math.sqrt(variance / n)) > P_LIMIT
    p = two_sided_p(((late**2).mean() / variance - 1) / math.sqrt(2 / n))
    assert p < P_LIMIT if canary else p > P_LIMIT


def test_photons_of_a_pulse_lie_within_it():
    setup = pulsed(receiver(efficiency=1.0), receiver(efficiency=1.0), pulse_fwhm_ps=100.0)
    light, cells = all_arrivals(setup, 3)
    for end in ("alice", "bob"):
        within = np.concatenate([getattr(c, end).time_ps - 1000.0 * getattr(c, end).pair for c in cells])
        sigma = 100 / 2.354820045
        assert two_sided_p(((within**2).mean() / sigma**2 - 1) / math.sqrt(2 / len(within))) > P_LIMIT
    assert light.length_ps % 1000 == 0


def test_time_bins_carry_the_bit_of_the_key_basis():
    end = receiver(
        3, 1.0, layout=["key", "test0", "test1"], bin_separation_ps=400.0, key_basis_probability=0.5, test_loss_db=3.0
    )
    setup = pulsed(end, end, encoding="time-bin", mean_pairs=1e-3)
    _, cells = all_arrivals(setup, 3)
    equal = late = n = 0
    for cell in cells:
        bins = []
        for side in (cell.alice, cell.bob):
            key = side.detector == 0
            bins.append(dict(zip(side.pair[key], (side.time_ps - 1000.0 * side.pair)[key], strict=True)))
        both = bins[0].keys() & bins[1].keys()
        n += len(both)
        equal += sum(bins[0][k] == bins[1][k] for k in both)
        late += sum(bins[0][k] == 400.0 for k in both)
    assert n > 1000
    assert equal > 0.99 * n  # less only by double pairs
    assert two_sided_p((late - n / 2) / math.sqrt(n / 4)) > P_LIMIT


@pytest.mark.parametrize("setup", [steady(pair_width_ps=500.0), pulsed(pulse_fwhm_ps=300.0)], ids=["steady", "pulsed"])
def test_a_cell_is_made_from_seed_run_and_number_alone(setup):
    def same(x, y):
        return all(
            np.array_equal(getattr(getattr(x, end), field), getattr(getattr(y, end), field))
            for end in ("alice", "bob")
            for field in ("time_ps", "detector", "pair")
        )

    light, again = PairLight(setup), PairLight(setup)
    first = light.arrivals(3, 1, 7)
    for cell in (9, 0, 7):
        last = again.arrivals(3, 1, cell)
    assert same(first, last)
    for other in ((4, 1, 7), (3, 2, 7), (3, 1, 8)):
        assert not same(first, light.arrivals(*other))


@pytest.mark.parametrize(
    "setup", [steady(pair_width_ps=9000.0), pulsed(pulse_fwhm_ps=3000.0)], ids=["steady", "pulsed"]
)
def test_times_rise_and_stay_near_the_cell(setup):
    light, cells = all_arrivals(setup, 3)
    for side in (side for cell in cells for side in (cell.alice, cell.bob)):
        assert side.time_ps.dtype == np.float64
        assert side.detector.dtype == np.uint8
        assert side.pair.dtype == np.int64
        assert len(side.time_ps) == len(side.detector) == len(side.pair) > 100
        assert np.all(np.diff(side.time_ps) >= 0)
        assert side.time_ps[0] > -1e5
        assert side.time_ps[-1] < light.length_ps + 1e5


def test_an_end_that_switches_measures_each_pulse_in_one_basis():
    alice = receiver(4, 0.5, basis_choice="active", key_basis_probability=0.7)
    bob = receiver(6, 0.2, basis_choice="active", key_basis_probability=0.25)
    setup = pulsed(alice, bob, states=6, mean_pairs=0.5)
    light, cells = all_arrivals(setup, 8)
    n_pulses = light.length_ps // 1000
    counts = np.zeros((2, 3), np.int64)
    for number, cell in enumerate(cells):
        for side, arrivals in enumerate((cell.alice, cell.bob)):
            basis = light.bases(side, 5, 0, arrivals.pair + number * n_pulses)
            assert np.array_equal(arrivals.detector // 2, basis)
            counts[side] += np.bincount(light.bases(side, 5, 0, np.arange(n_pulses) + number * n_pulses), minlength=3)
    total = 8 * n_pulses
    for found, expected in zip(counts[:, 0], (0.7 * total, 0.25 * total), strict=True):
        assert two_sided_p((found - expected) / math.sqrt(expected * (1 - expected / total))) > P_LIMIT
    assert counts[0, 2] == 0
    assert two_sided_p((counts[1, 1] - counts[1, 2]) / math.sqrt(0.75 * total)) > P_LIMIT


@pytest.mark.parametrize("canary", [False, True])
def test_pulses_of_ends_that_switch_click_as_often_as_their_bases_say(canary):
    def end(eta):
        return receiver(2, eta, basis_choice="active", key_basis_probability=0.8, test_loss_db=5.0)

    setup = pulsed(end(0.5), end(0.3))
    light, cells = all_arrivals(setup, 6)
    singles = sum(len(c.alice.time_ps) for c in cells)
    probability = 0.0
    for share, eta in ((0.8, 0.5), (0.2, 0.5 * 10**-0.5)):
        probability += share * 2 * (1 - 1 / (1 + eta * 0.05))  # each of two detectors sees one thermal mode
    expected = probability * 6 * light.length_ps / 1000 * (1.05 if canary else 1.0)
    p = two_sided_p((singles - expected) / math.sqrt(expected))
    assert p < P_LIMIT if canary else p > P_LIMIT


def test_a_dark_source_sends_nothing():
    for setup in (steady(pair_rate_hz=0.0), pulsed(mean_pairs=0.0), steady(receiver(4, 0.0), receiver(4, 0.0))):
        cell = PairLight(setup).arrivals(0, 0, 0)
        assert len(cell.alice.time_ps) == len(cell.bob.time_ps) == 0


@pytest.mark.parametrize("probability", [1e-4, 0.3, 1.0])
def test_trials_succeed_as_often_as_they_should(probability):
    rng = np.random.default_rng(8)
    for n in (1, 7, 200_000):
        found = _successes(rng, probability, n)
        assert np.all(np.diff(found) > 0)
        assert np.all((found >= 0) & (found < n))
    assert abs(len(found) - n * probability) <= 5 * math.sqrt(n * probability * (1 - probability))
    assert len(_successes(rng, 0.0, 1000)) == 0
    assert len(_successes(rng, 1e-300, 1000)) == 0


# --- setups ------------------------------------------------------------------------------------------------------
def test_a_cell_is_as_long_as_suits():
    assert cell_ps(steady(pair_rate_hz=1e7)) == pytest.approx(16_384e12 / (2 * 0.2 * 1e7), abs=1)
    assert cell_ps(steady(pair_rate_hz=1e3)) == 10_000_000_000
    assert cell_ps(steady(receiver(4, 1.0), receiver(4, 1.0), pair_rate_hz=1e9)) == 10_000_000
    pulses = cell_ps(pulsed()) // 1000
    assert pulses & (pulses - 1) == 0
    assert 8192 < pulses * 2 * 0.05 * 0.4 <= 16_384
    assert PairLight(steady(pair_rate_hz=1e7), length_ps=12_345).length_ps == 12_345


def test_a_cell_counts_dark_counts():
    loud = {"detectors": [{"efficiency": 0.2, "dark_count_rate_hz": 1e8}] * 4}
    assert cell_ps(steady(loud, loud)) == pytest.approx(16_384e12 / (4e5 + 8e8), abs=1)
    louder = {"detectors": [{"efficiency": 0.2, "dark_count_rate_hz": 1e9}] * 4}
    assert cell_ps(steady(louder, louder)) == 10_000_000


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (steady(receiver(basis_choice="active")), "sender_receiver"),
        (steady(bob=receiver(basis_choice="active")), "receiver: a basis switch"),
        (steady(bob=receiver(gate={"width_ps": 500.0})), "gates"),
        (steady(encoding="time-bin"), "time bins"),
        (OpticalSetup.model_validate({"source": {"kind": "single-photon"}, "receiver": receiver()}), "makes no pairs"),
    ],
)
def test_what_makes_no_sense_is_refused(setup, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        PairLight(setup)
    assert caught.value.remedy


def test_too_many_places_are_refused():
    end = receiver(5, layout=["key", "test0", "test1", "third0", "third1"], bin_separation_ps=300.0, test_loss_db=3.0)
    with pytest.raises(ConfigurationError, match="at most 18"):
        PairLight(pulsed(end, end, encoding="time-bin", states=6))

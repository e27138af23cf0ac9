"""Tables of a link: what its parts say of each pulse, by hand, and what the kernel draws of them."""

import math

import numpy as np
import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators._optics.light import PulseLight
from qkdhw_emulators.optics.link_tables import build_tables, click_probability, mode_means
from qkdhw_emulators.optics.setup import Channel, Detector, Intensity, OpticalSetup, Receiver, Source

KEY0, KEY1, TEST0, TEST1, THIRD0, THIRD1 = range(6)
ONE = (Intensity(mean_photon_number=0.5, probability=1.0),)
IDEAL = Detector()


def link(*, source=None, channel=None, **receiver):
    receiver = {"detectors": (IDEAL,) * 4} | receiver
    return OpticalSetup(
        source=Source(**({"intensities": ONE} | (source or {}))),
        channel=Channel(**(channel or {})),
        receiver=Receiver(**receiver),
    )


def about(axis, angle):
    c, s = math.cos(angle), math.sin(angle)
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def error(tables, choice, bit, modes, bob=0):
    means = mode_means(tables, choice, bob)[list(modes)]
    return means[1 - bit] / means.sum()


def test_a_switch_sends_all_light_to_one_basis_as_in_the_golden_vector():
    setup = link(
        basis_choice="active",
        key_basis_probability=0.75,
        misalignment=(0.01, 0.01, 0.0),
        detectors=(Detector(efficiency=0.1), Detector(efficiency=0.1)),
    )
    tables = build_tables(setup)
    assert tables.bob_thresholds.tolist() == [49152, 65536]
    np.testing.assert_allclose(mode_means(tables, KEY0, 0), [0.0495, 0.0005], rtol=1e-12)
    np.testing.assert_allclose(mode_means(tables, KEY1, 0), [0.0005, 0.0495], rtol=1e-12)
    np.testing.assert_allclose(mode_means(tables, TEST1, 1), [0.0005, 0.0495], rtol=1e-12)
    np.testing.assert_allclose(mode_means(tables, TEST1, 0), [0.025, 0.025], rtol=1e-12)
    # CLK-1 has dark counts of 1e-5 beside the light
    click = 1 - (1 - 1e-5) * (1 - click_probability(tables, KEY0, 0))
    right, wrong = click[0] * (1 - click[1]), click[1] * (1 - click[0])
    assert (right, wrong) == (pytest.approx(0.04827972997, rel=1e-9), pytest.approx(0.00048524108, rel=1e-8))


def test_detectors_of_a_switched_basis_are_dark_in_the_other():
    tables = build_tables(link(basis_choice="active"))
    np.testing.assert_allclose(mode_means(tables, KEY0, 0), [0.5, 0, 0, 0])
    np.testing.assert_allclose(mode_means(tables, KEY0, 1), [0, 0, 0.25, 0.25])


def test_a_beam_splitter_shares_the_light_and_losses_come_on_top():
    efficiencies = (0.5, 0.4, 0.3, 0.2)
    setup = link(
        channel={"length_km": 10.0, "attenuation_db_per_km": 0.2, "connector_loss_db": 1.0},
        key_basis_probability=0.9,
        loss_db=2.0,
        test_loss_db=5.0,
        detectors=tuple(Detector(efficiency=e) for e in efficiencies),
    )
    arriving = 0.5 * 10**-0.5
    key, test = arriving * 0.9, arriving * 0.1 * 10**-0.5
    np.testing.assert_allclose(
        mode_means(build_tables(setup), KEY1), [0, key * 0.4, test * 0.15, test * 0.1], rtol=1e-12
    )
    np.testing.assert_allclose(
        mode_means(build_tables(setup, extra_loss_db=10.0), TEST0),
        [key * 0.025, key * 0.02, test * 0.03, 0],
        rtol=1e-12,
    )


def test_three_bases_have_a_third_of_the_rest_each():
    setup = link(source={"states": 6, "key_basis_probability": 0.5}, detectors=(IDEAL,) * 6, key_basis_probability=0.6)
    tables = build_tables(setup)
    assert tables.basis_thresholds.tolist() == [32768, 49152, 65536]
    np.testing.assert_allclose(mode_means(tables, THIRD1), 0.5 * np.array([0.3, 0.3, 0.1, 0.1, 0, 0.2]), atol=1e-15)


def test_intensities_scale_the_light_and_three_states_are_told():
    two = (Intensity(mean_photon_number=0.4, probability=0.75), Intensity(mean_photon_number=0.1, probability=0.25))
    tables = build_tables(link(source={"intensities": two, "states": 3, "intensity_noise": 0.1, "pattern_effect": 0.2}))
    assert tables.three_state
    assert tables.intensity_thresholds.tolist() == [49152, 65536]
    assert (tables.intensity_noise, tables.pattern_effect, tables.period_ps) == (0.1, 0.2, 1000)
    np.testing.assert_allclose(mode_means(tables, 6 + TEST0), mode_means(tables, TEST0) / 4)


def test_independent_errors_multiply_and_extinction_is_of_the_key_basis():
    setup = link(
        source={"preparation_error": (0.02, 0.03, 0.0), "extinction_ratio_db": 20.0}, misalignment=(0.01, 0.04, 0.0)
    )
    tables = build_tables(setup)
    key = (1 - 0.96 * 0.98 * (1 - 2 / 101)) / 2
    test = (1 - 0.94 * 0.92) / 2
    assert error(tables, KEY0, 0, (0, 1)) == pytest.approx(key, rel=1e-12)
    assert error(tables, KEY1, 1, (0, 1)) == pytest.approx(key, rel=1e-12)
    assert error(tables, TEST1, 1, (2, 3)) == pytest.approx(test, rel=1e-12)
    assert error(tables, TEST0, 0, (0, 1)) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("encoding", "axis", "key_turns", "test_turns"),
    [
        ("polarisation", "x", True, False),
        ("polarisation", "y", True, True),
        ("polarisation", "z", False, True),
        ("time-bin", "z", False, True),
        ("phase", "z", True, True),
    ],
)
def test_a_rotation_of_the_channel_makes_errors_in_the_bases_that_it_turns(encoding, axis, key_turns, test_turns):
    angle = 0.4
    tables = build_tables(link(source={"encoding": encoding}, misalignment=(0.01, 0.01, 0.0)), about(axis, angle))
    turned, still = (1 - 0.98 * math.cos(angle)) / 2, 0.01
    for bit in (0, 1):
        assert error(tables, KEY0 + bit, bit, (0, 1)) == pytest.approx(turned if key_turns else still, rel=1e-12)
        assert error(tables, TEST0 + bit, bit, (2, 3)) == pytest.approx(turned if test_turns else still, rel=1e-12)


def test_a_quarter_turn_makes_one_basis_the_other():
    tables = build_tables(link(), about("y", math.pi / 2))
    np.testing.assert_allclose(mode_means(tables, KEY0), [0.125, 0.125, 0.25, 0], atol=1e-15)
    assert np.all(tables.shares >= 0)


TIME_BIN = {"encoding": "time-bin", "states": 3}
LAYOUT = {"layout": ("key", "test0", "test1"), "bin_separation_ps": 200.0}


def test_time_bins_and_the_middle_bin_alone():
    delays = (Detector(delay_ps=7.0), IDEAL, IDEAL)
    tables = build_tables(link(source=TIME_BIN, detectors=delays, misalignment=(0.01, 0.02, 0.0), **LAYOUT))
    assert tables.mode_detector.tolist() == [0, 0, 1, 2]
    assert tables.mode_offset_ps.tolist() == [7.0, 207.0, 0.0, 0.0]
    np.testing.assert_allclose(mode_means(tables, KEY1), [0.0025, 0.2475, 0.125, 0.125])
    np.testing.assert_allclose(mode_means(tables, TEST0), [0.125, 0.125, 0.245, 0.005])


def test_side_bins_click_if_the_loss_of_the_test_basis_contains_them():
    half_db = 10 * math.log10(2)
    tables = build_tables(link(source=TIME_BIN, detectors=(IDEAL,) * 3, test_loss_db=half_db, **LAYOUT))
    assert tables.mode_detector.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert tables.mode_offset_ps.tolist() == [0, 200, -200, 0, 200, -200, 0, 200]
    eighth = 0.5 / 8
    np.testing.assert_allclose(mode_means(tables, KEY0)[2:] / eighth, [1, 1, 0, 1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(mode_means(tables, KEY1)[2:] / eighth, [0, 1, 1, 0, 1, 1], atol=1e-12)
    np.testing.assert_allclose(mode_means(tables, TEST0)[2:] / eighth, [0.5, 2, 0.5, 0.5, 0, 0.5], atol=1e-12)
    for choice in (KEY0, KEY1, TEST0):
        assert mode_means(tables, choice).sum() == pytest.approx(0.5, rel=1e-12)


def test_two_key_detectors_share_the_light_or_have_a_bin_each():
    shared = link(
        source=TIME_BIN, detectors=(IDEAL,) * 4, layout=("key", "key", "test0", "test1"), bin_separation_ps=200
    )
    np.testing.assert_allclose(mode_means(build_tables(shared), KEY0), [0.125, 0, 0.125, 0, 0.125, 0.125])
    split = build_tables(link(source=TIME_BIN, bin_separation_ps=200.0))
    assert split.mode_offset_ps.tolist() == [0, 200, 0, 0]
    np.testing.assert_allclose(mode_means(split, KEY1), [0, 0.25, 0.125, 0.125])


def test_a_single_photon_source_hides_its_number_of_photons():
    source = {"kind": "single-photon", "single_photon_probability": 0.3, "two_photon_probability": 0.1}
    tables = build_tables(link(source=source | {"intensities": ()}, detectors=(Detector(efficiency=0.2),) * 4))
    assert tables.photons[:3].tolist() == [0, 1, 2]
    np.testing.assert_allclose(tables.hidden_cumulative[KEY0, 0], [0.6, 0.9, 1.0])
    np.testing.assert_allclose(mode_means(tables, KEY0), 0.5 * np.array([0.1, 0, 0.05, 0.05]))
    np.testing.assert_allclose(click_probability(tables, KEY0)[0], 0.3 * 0.1 + 0.1 * (1 - 0.9**2))


def test_pulse_length_and_dispersions_add_in_quadrature():
    setup = link(
        source={"pulse_fwhm_ps": 2 * math.sqrt(2 * math.log(2)) * 30, "spectral_width_nm": 0.05},
        channel={"length_km": 100.0, "dispersion_ps_per_nm_km": 8.0, "pmd_ps_per_sqrt_km": 1.0},
    )
    assert build_tables(setup).pulse_sigma_ps == pytest.approx(math.sqrt(30**2 + 40**2 + 5**2))


def test_click_probability_is_what_the_kernel_draws():
    two = (Intensity(mean_photon_number=0.8, probability=0.75), Intensity(mean_photon_number=0.1, probability=0.25))
    source = {"intensities": two, "intensity_noise": 0.15, "pattern_effect": -0.3}
    tables = build_tables(link(source=source, misalignment=(0.05, 0.05, 0.0)))
    n, keys = 2_000_000, np.arange(8, dtype=np.uint64).reshape(4, 2)
    out = [np.empty(2 * n, t) for t in (np.float64, np.uint8, np.uint8, np.int64, np.uint16)]
    found = PulseLight(tables).arrivals(keys, 4, 0, n, *out)
    _, detector, _, pulse, state = (column[:found] for column in out)
    clicks = np.unique(np.column_stack([pulse, detector, state]), axis=0)[:, 1:]
    for choice in (KEY0, TEST1, 6 + KEY1):
        often = n * (0.25 if choice >= 6 else 0.75) / 4
        p = click_probability(tables, choice)
        got = np.bincount(clicks[clicks[:, 1] == choice, 0], minlength=4)
        deviation = np.sqrt(often * p)
        assert np.all(np.abs(got - often * p) < 5 * deviation)
        assert np.any(np.abs(got - often * p / 1.03) > 5 * deviation) or choice >= 6


@pytest.mark.parametrize(
    "setup",
    [
        OpticalSetup(
            source=Source(kind="pair-pulsed", mean_pairs=0.1),
            receiver=Receiver(detectors=(IDEAL,) * 4),
            sender_receiver=Receiver(detectors=(IDEAL,) * 4),
        ),
        link(detectors=(IDEAL,) * 3, **LAYOUT),
    ],
    ids=["pairs", "time bins of a polarisation"],
)
def test_links_without_tables_are_refused(setup):
    with pytest.raises(ConfigurationError, match=r"pairs|time-bin"):
        build_tables(setup)

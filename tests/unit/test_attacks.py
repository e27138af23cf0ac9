"""Attacks on tables, conditions and setups alone, and the schedule that says when they are on."""

import dataclasses

import numpy as np
import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attack import DetectorCondition, LinkCondition
from qkdhw_emulators.optics.attacks import ATTACKS, MONITORS, baseline_monitors
from qkdhw_emulators.optics.attacks.blinding import AfterGate, BlindingCw
from qkdhw_emulators.optics.attacks.hidden import detection_probability
from qkdhw_emulators.optics.attacks.intercept import BeamSplitterWavelength, FakedStates, InterceptResend
from qkdhw_emulators.optics.attacks.photon_number import PhotonNumberSplitting, forwarding_probability
from qkdhw_emulators.optics.attacks.timing import CalibrationForgery, ClockSteering, DeadTime, TimeShift
from qkdhw_emulators.optics.pulse_tables import POISSON, PulseTables
from qkdhw_emulators.optics.schedule import Schedule, attack_help
from qkdhw_emulators.optics.setup import (
    Channel,
    Detector,
    Gate,
    Intensity,
    OpticalSetup,
    Receiver,
    Source,
)

MU = (0.5, 0.1, 2e-4)
ETA = 0.01
ERROR = 0.02
DETECTORS = 4


def setup_of(choice="passive", **receiver):
    return OpticalSetup(
        source=Source(
            pulse_rate_hz=100_000_000,
            intensities=tuple(
                Intensity(mean_photon_number=m, probability=p) for m, p in zip(MU, (0.6, 0.3, 0.1), strict=True)
            ),
        ),
        channel=Channel(connector_loss_db=20),
        receiver=Receiver(basis_choice=choice, detectors=(Detector(dead_time_ns=50),) * DETECTORS, **receiver),
    )


def time_bin_setup():
    setup = setup_of(layout=("key", "key", "test0", "test1"), bin_separation_ps=1000)
    return setup.model_copy(update={"source": setup.source.model_copy(update={"encoding": "time-bin"})})


def tables_of(setup):
    """Two bases, an even choice, misalignment 2 %: written down state by state, with no help from the engine."""
    active = setup.receiver.basis_choice == "active"
    n_bob = 2 if active else 1
    shares = np.zeros((len(MU), 3, 2, n_bob, 1, DETECTORS))
    for intensity, mu in enumerate(MU):
        for basis in range(3):
            for bit in (0, 1):
                for bob in (0, 1):
                    arm = mu * ETA * (1.0 if active else 0.5)
                    right = (1 - ERROR) if basis == bob else 0.5
                    row = shares[intensity, basis, bit, bob if active else 0, 0]
                    row[2 * bob + bit] = arm * right
                    row[2 * bob + 1 - bit] = arm * (1 - right)
    states = shares.reshape(-1, DETECTORS)
    return PulseTables(
        intensity_thresholds=np.array([39322, 58982, 65536], np.uint32),
        basis_thresholds=np.array([32768, 65536], np.uint32),
        bob_thresholds=np.array([32768, 65536] if active else [65536], np.uint32),
        three_state=False,
        hidden_cumulative=np.ones((len(MU) * 6, n_bob, 1)),
        photons=np.full(len(states), POISSON, np.uint8),
        shares=states,
        bright=np.zeros(len(states), np.uint8),
        state_offset_ps=np.zeros(len(states)),
        mode_detector=np.arange(DETECTORS, dtype=np.uint8),
        mode_offset_ps=np.zeros(DETECTORS),
        pulse_sigma_ps=0.0,
        period_ps=10_000,
        intensity_noise=0.0,
        pattern_effect=0.0,
    )


def mean_light(tables):
    """Mean detections in each mode, (intensity, basis, bit, bob, mode), over what Eve does."""
    probability = np.diff(tables.hidden_cumulative, axis=2, prepend=0.0)
    shares = tables.shares.reshape(*probability.shape, -1)
    mean = (shares * probability[..., None]).sum(axis=2)
    return mean.reshape(-1, 3, 2, *mean.shape[1:])


def qber(tables, basis=0):
    """Error rate in a basis where both ends have chosen it, for weak light; bit 0 and 1 together."""
    light = mean_light(tables)[0, basis]
    n_bob = light.shape[1]
    light = light[:, basis if n_bob > 1 else 0, 2 * basis : 2 * basis + 2]
    return (light[0, 1] + light[1, 0]) / light.sum()


def signal_gains(tables):
    """Detection probability of each intensity, over all else."""
    probability = np.diff(tables.hidden_cumulative, axis=2, prepend=0.0)
    found = detection_probability(tables).reshape(probability.shape)
    return (found * probability).sum(axis=2).reshape(len(MU), -1).mean(axis=1)


def changed_by(attack, choice="passive", **receiver):
    setup = setup_of(choice, **receiver)
    return attack.change_tables(tables_of(setup), setup)


def check_tables(tables):
    """What the kernel takes for granted."""
    states = tables.hidden_cumulative.size
    assert tables.shares.shape == (states, len(tables.mode_detector))
    assert tables.photons.shape == tables.bright.shape == tables.state_offset_ps.shape == (states,)
    assert tables.photons.dtype == tables.bright.dtype == tables.mode_detector.dtype == np.uint8
    assert tables.shares.dtype == tables.hidden_cumulative.dtype == np.float64
    assert (tables.hidden_cumulative[..., -1] == 1).all()
    assert (np.diff(tables.hidden_cumulative, axis=2) >= -1e-15).all()
    assert (tables.shares >= 0).all()
    assert (tables.shares.sum(axis=1)[tables.photons != POISSON] <= 1 + 1e-12).all()
    assert all(getattr(tables, f.name).flags.c_contiguous for f in dataclasses.fields(tables) if "NDArray" in f.type)


@pytest.mark.parametrize("choice", ["active", "passive"])
@pytest.mark.parametrize("name", ATTACKS)
def test_tables_of_every_attack_are_sound_and_those_before_are_left_alone(name, choice):
    gate = Gate(width_ps=1000) if name == "after-gate" else Gate()
    setup = setup_of(choice, gate=gate)
    before, kept = tables_of(setup), tables_of(setup)
    attack = ATTACKS[name]()
    if name == "cow-zero-error":
        setup = time_bin_setup()
    if name == "beam-splitter-wavelength" and choice == "active":
        with pytest.raises(ConfigurationError, match="receiver chooses its basis actively"):
            Schedule((attack,)).check(setup)
        return
    check_tables(attack.change_tables(before, attack.change_setup(setup, 0.0)))
    for field in dataclasses.fields(before):
        assert np.array_equal(getattr(before, field.name), getattr(kept, field.name)), field.name


@pytest.mark.parametrize("choice", ["active", "passive"])
@pytest.mark.parametrize("basis", [0, 1])
@pytest.mark.parametrize(("fraction", "bases"), [(0.4, 2), (1.0, 2), (0.4, 3), (1.0, 3)])
def test_intercept_resend_brings_a_quarter_or_a_third(fraction, bases, basis, choice):
    tables = changed_by(InterceptResend(fraction=fraction, bases=bases), choice)
    from_eve = fraction * (1 - 1 / bases) / 2
    assert qber(tables, basis) == pytest.approx(from_eve + (1 - 2 * from_eve) * ERROR, rel=1e-12)
    assert mean_light(tables).sum() == pytest.approx(tables_of(setup_of(choice)).shares.sum(), rel=1e-12)


def test_eves_own_error_adds_to_it():
    tables = changed_by(InterceptResend(error=0.1))
    assert qber(tables) == pytest.approx(0.5 - 0.5 * (1 - 2 * ERROR) * (1 - 0.2) / 2, rel=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 1.0])
def test_faked_states_follow_the_published_error_rate(ratio):
    setup = setup_of("active")
    aligned = tables_of(setup)
    shares = aligned.shares.reshape(len(MU), 3, 2, 2, DETECTORS)
    for basis in (0, 1):  # the paper's receiver has no misalignment
        for bit in (0, 1):
            shares[:, basis, bit, basis, 2 * basis + 1 - bit] = 0.0
            shares[:, basis, bit, basis, 2 * basis + bit] = np.array(MU) * ETA
    tables = FakedStates(efficiency_ratio=ratio).change_tables(aligned, setup)
    assert qber(tables) == pytest.approx(2 * ratio / (1 + 3 * ratio), abs=1e-12)
    light, before = mean_light(tables)[0, 0, 0, 0], MU[0] * ETA
    assert light.sum() == pytest.approx(before * (1 + 3 * ratio) / 4, rel=1e-12)


def test_wavelength_puts_the_light_where_eve_measured():
    tables = changed_by(BeamSplitterWavelength(control=1.0))
    assert qber(tables) == pytest.approx(ERROR, rel=1e-12)
    rows = tables.shares[tables.shares.sum(axis=1) > 0].reshape(-1, 5, DETECTORS)[:, 1:]
    arms = rows[..., :2].sum(axis=-1), rows[..., 2:].sum(axis=-1)
    assert (np.minimum(*arms) == 0).all()
    assert changed_by(BeamSplitterWavelength(control=0.5)).shares.sum() == pytest.approx(tables.shares.sum())


@pytest.mark.parametrize("choice", ["active", "passive"])
def test_photon_number_splitting_leaves_the_signal_and_thins_the_decoys(choice):
    setup = setup_of(choice)
    tables = PhotonNumberSplitting().change_tables(tables_of(setup), setup)
    several = [1 - (1 + m) * np.exp(-m) for m in MU]
    honest = 1 - np.exp(-ETA * MU[0])
    assert signal_gains(tables) == pytest.approx([honest * s / several[0] for s in several], rel=1e-9)
    assert qber(tables) == pytest.approx(ERROR, rel=1e-12)
    assert (tables.photons == 1).all()


def test_single_photons_pass_where_several_are_too_few():
    mu = np.array(MU)
    several = 1 - (1 + mu) * np.exp(-mu)
    assert forwarding_probability(mu, 0.05) == pytest.approx(several * 0.05 / several[0])
    assert forwarding_probability(mu, 0.2)[0] == pytest.approx(0.2)
    assert forwarding_probability(mu, 0.9)[0] == pytest.approx(1 - np.exp(-0.5))


def test_two_attacks_that_count_photons_are_refused():
    setup = setup_of()
    tables = BlindingCw().change_tables(tables_of(setup), setup)
    with pytest.raises(ConfigurationError, match="photon-number-splitting"):
        PhotonNumberSplitting().change_tables(tables, setup)
    with pytest.raises(ConfigurationError, match="dead-time"):
        DeadTime().change_tables(tables, setup)


@pytest.mark.parametrize(("choice", "rate"), [("active", 0.5), ("passive", 1.0)])
def test_blinded_detectors_click_one_at_a_time_and_as_eve_found(choice, rate):
    tables = changed_by(BlindingCw(), choice)
    assert (tables.bright == 1).all()
    assert (tables.photons == 1).all()
    assert ((tables.shares > 0).sum(axis=1) <= 1).all()
    honest = 1 - np.exp(-ETA * np.array(MU))
    assert signal_gains(tables) == pytest.approx(rate * honest, rel=1e-12)
    assert qber(tables) == pytest.approx(ERROR, rel=1e-12)
    assert signal_gains(changed_by(BlindingCw(eve_gain=2.0), choice))[0] == pytest.approx(
        rate * (1 - np.exp(-2 * ETA * MU[0])), rel=1e-12
    )


def test_after_gate_light_comes_after_the_gate_and_needs_one():
    tables = changed_by(AfterGate(after_ps=200), gate=Gate(width_ps=1000, offset_ps=50))
    assert (tables.state_offset_ps == 750).all()
    with pytest.raises(ConfigurationError, match="free-running"):
        Schedule((AfterGate(),)).check(setup_of())


def test_time_shift_moves_pulses_and_mismatches_detectors():
    tables = changed_by(TimeShift(fraction=0.5, early=0.25, shift_ps=70, efficiency_ratio=0.2))
    assert np.diff(tables.hidden_cumulative[0, 0], prepend=0) == pytest.approx([0.5, 0.125, 0.375])
    assert tables.state_offset_ps[:3].tolist() == [0, -70, 70]
    untouched, early, late = tables.shares[:3]
    assert early / untouched == pytest.approx([1, 0.2, 1, 0.2])
    assert late / untouched == pytest.approx([0.2, 1, 0.2, 1])


def test_dead_time_spares_one_detector():
    tables = changed_by(DeadTime(fraction=0.01, lead_ps=3000))
    assert (tables.mode_offset_ps == [0] * 4 + [-3000] * 4).all()
    assert tables.mode_detector.tolist() == [0, 1, 2, 3] * 2
    before = tables.shares.reshape(-1, 5, 8)[..., 4:]
    assert (before[:, 0] == 0).all()
    assert ((before[:, 1:] == 0) == np.eye(4, dtype=bool)).all()
    with pytest.raises(ConfigurationError, match="dead for 50000 ps only"):
        Schedule((DeadTime(lead_ps=50_000),)).check(setup_of())
    with pytest.raises(ConfigurationError, match="gated"):
        Schedule((DeadTime(),)).check(setup_of(gate=Gate(width_ps=1000)))


def test_a_forged_calibration_parts_the_bits():
    assert changed_by(CalibrationForgery(apart_ps=200)).mode_offset_ps.tolist() == [-100, 100, -100, 100]


def test_a_time_bin_detector_has_no_bit_of_its_own():
    setup = setup_of(layout=("key", "key", "test0", "test1"), bin_separation_ps=1000)
    tables = tables_of(setup)
    assert CalibrationForgery(apart_ps=200).change_tables(tables, setup).mode_offset_ps.tolist() == [0, 0, -100, 100]
    shifted = TimeShift(early=1.0, efficiency_ratio=0.2).change_tables(tables, setup)
    assert shifted.shares[1] / tables.shares[0] == pytest.approx([1, 1, 1, 0.2])


def test_attacks_add_up():
    """Half of the pulses and then half of all pulses are three quarters."""
    setup = setup_of()
    half = InterceptResend(fraction=0.5)
    tables = half.change_tables(half.change_tables(tables_of(setup), setup), setup)
    check_tables(tables)
    assert tables.n_hidden == 25
    assert qber(tables) == pytest.approx(qber(changed_by(InterceptResend(fraction=0.75))), rel=1e-12)
    for attack in (TimeShift(), DeadTime(fraction=0.1), CalibrationForgery()):
        tables = attack.change_tables(tables, setup)
    check_tables(tables)


def test_too_many_states_are_refused():
    setup = setup_of()
    resend = InterceptResend(bases=3)
    tables = tables_of(setup)
    for _ in range(4):
        tables = resend.change_tables(tables, setup)
    with pytest.raises(ConfigurationError, match="limit is 65536"):
        resend.change_tables(tables, setup)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_an_attack_does_to_monitors_is_known(name):
    setup = setup_of(gate=Gate(width_ps=1000))
    condition = LinkCondition([DetectorCondition() for _ in range(4)], monitors=baseline_monitors(setup))
    ATTACKS[name]().change_condition(condition, setup, 10.0)
    moved = {k for k, v in condition.monitors.items() if v != MONITORS[k].normal}
    expected = {
        "blinding-cw": {"photocurrent_ua", "input_power_dbm"},
        "blinding-pulsed": {"photocurrent_ua", "input_power_dbm"},
        "trojan-horse": {"back_reflection_dbm"},
        "laser-seeding": {"laser_power_dbm"},
        "clock-steering": {"sync_offset_ps"},
        "thermal-drift": {"temperature_c"},
    }
    assert moved == expected.get(name, set())
    assert set(condition.monitors) == set(MONITORS)


def test_a_steered_clock_shows_how_far_it_went():
    condition = LinkCondition([], monitors=baseline_monitors(setup_of()))
    ClockSteering(step_ps=100, ppm=2, ppm_per_s=0.5).change_condition(condition, setup_of(), 4.0)
    assert condition.clock_ppm == 4.0
    assert condition.clock_step_ps == 100
    assert condition.monitors["sync_offset_ps"] == pytest.approx(100 + (2 * 4 + 0.5 * 8) * 1e6)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_link_of_pairs_meets_some_attacks_and_refuses_the_others(name):
    receiver = setup_of().receiver
    pairs = OpticalSetup(
        source=Source(kind="pair-cw", pair_rate_hz=1e6), receiver=receiver, sender_receiver=receiver,
        channel=Channel(length_km=1.0),
    )  # fmt: skip
    works = {
        "intercept-resend", "clock-steering", "trojan-horse", "fibre-cut", "fibre-splice",
        "thermal-drift", "background-light", "detector-dying", "detector-latched",
    }  # fmt: skip
    schedule = Schedule((ATTACKS[name](),))
    if name in works:
        schedule.check(pairs)
    else:
        with pytest.raises(ConfigurationError, match=name):
            schedule.check(pairs)


@pytest.mark.parametrize(("bases", "contrast"), [(2, (0.8, 0.8, 0.6)), (3, (0.6 + 0.4 / 3,) * 3)])
def test_intercept_resend_of_pairs_lowers_the_contrast(bases, contrast):
    receiver = setup_of(misalignment=(0.02, 0.02, 0.0)).receiver
    pairs = OpticalSetup(source=Source(kind="pair-cw", pair_rate_hz=1e6), receiver=receiver, sender_receiver=receiver)
    found = InterceptResend(fraction=0.4, bases=bases).change_setup(pairs, 0.0).receiver.misalignment
    expected = [(1 - (1 - 2 * e) * c) / 2 for e, c in zip((0.02, 0.02, 0.0), contrast, strict=True)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_coherent_one_way_has_time_bins():
    Schedule((ATTACKS["cow-zero-error"](),)).check(time_bin_setup())
    with pytest.raises(ConfigurationError, match="the encoding is polarisation"):
        Schedule((ATTACKS["cow-zero-error"](),)).check(setup_of())


def test_a_detector_that_there_is_not_is_refused():
    for name in ("detector-dying", "detector-latched"):
        with pytest.raises(ConfigurationError, match="the receiver has 4"):
            Schedule((ATTACKS[name](detector=4),)).check(setup_of())


def test_every_attack_says_model_source_and_signature():
    for name, kind in ATTACKS.items():
        assert kind.name == name
        assert "Signature: " in kind.__doc__
        assert "Source: " in kind.__doc__
        own = set(kind.model_fields) - {"from_s", "until_s"}
        assert all(f"\n        {field}: " in kind.__doc__ for field in own), name
        assert attack_help()[name].startswith(kind.__doc__.split("\n")[0])
    assert len(ATTACKS) >= 16


# --- the schedule -----------------------------------------------------------------------------------------------
TOML = """
[[attack]]
name = "intercept-resend"
fraction = 0.4
from_s = 1
until_s = 2

[[attack]]
name = "fibre-cut"
from_s = 1.5
"""


def test_a_schedule_from_toml_and_from_arguments_is_the_same():
    schedule = Schedule.from_toml(TOML)
    assert schedule == Schedule.from_arguments(
        ["intercept-resend:fraction=0.4,from_s=1,until_s=2", "fibre-cut: from_s=1.5"]
    )
    assert schedule.attacks[0] == InterceptResend(fraction=0.4, from_s=1, until_s=2)
    assert Schedule.from_arguments(["trojan-horse"]).attacks[0].from_s == 0
    assert Schedule.from_toml("") == Schedule(())


def test_whole_numbers_of_a_command_line_are_numbers():
    assert Schedule.from_arguments(["intercept-resend:bases=3,fraction=1"]).attacks[0] == InterceptResend(bases=3)
    with pytest.raises(ConfigurationError, match="bases: Input should be 2 or 3, not 4"):
        Schedule.from_arguments(["intercept-resend:bases=4"])


def test_an_attack_is_on_once_at_a_time_and_a_fault_once_for_each_detector():
    for texts in (
        ["fibre-cut", "fibre-cut"],
        ["fibre-cut:from_s=1,until_s=3", "fibre-cut:from_s=2"],
        ["detector-dying:detector=1", "detector-dying:detector=1,efficiency_factor=0.5"],
    ):
        with pytest.raises(ConfigurationError, match="is on twice from") as caught:
            Schedule.from_arguments(texts)
        assert caught.value.remedy
    Schedule.from_arguments(["fibre-cut:from_s=1,until_s=2", "fibre-cut:from_s=2"])
    Schedule.from_arguments(["detector-dying:detector=1", "detector-dying:detector=2", "detector-latched:detector=1"])


def test_a_schedule_names_its_file_and_what_was_meant():
    with pytest.raises(ConfigurationError, match=r"^my\.toml: attacks is not expected") as caught:
        Schedule.from_toml("[[attacks]]\nname = 'fibre-cut'", "my.toml")
    assert "did you mean [[attack]]?" in caught.value.remedy
    with pytest.raises(ConfigurationError, match=r"^my\.toml: attack 1: name 'intercept-resent'") as caught:
        Schedule.from_toml("[[attack]]\nname = 'intercept-resent'", "my.toml")
    assert "did you mean intercept-resend?" in caught.value.remedy
    with pytest.raises(ConfigurationError, match="fracton") as caught:
        Schedule.from_arguments(["intercept-resend:fracton=0.4"])
    assert "did you mean fraction?" in caught.value.remedy


def test_a_schedule_says_what_is_on_and_when_that_changes():
    schedule = Schedule.from_toml(TOML)
    resend, cut = schedule.attacks
    on = {0.0: (), 1.0: (resend,), 1.75: (resend, cut), 2.0: (cut,), 1e9: (cut,)}
    assert {now: schedule.active(now) for now in on} == on
    assert [schedule.next_change_s(now) for now in (0.0, 1.0, 1.5, 2.0)] == [1.0, 1.5, 2.0, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "attack schedule: "),
        ("attack = 3", "attack is not expected"),
        ("[other]", "other is not expected"),
        ("[[attack]]", "attack 1: name None is no attack"),
        ("[[attack]]\nname = 'magic'", "attack 1: name 'magic' is no attack"),
        ("[[attack]]\nname = ['a']", "is no attack"),
        ("[[attack]]\nname = 'intercept-resend'\nfraction = 2", r"attack 1 \(intercept-resend\): fraction: .*1, not 2"),
        ("[[attack]]\nname = 'intercept-resend'\nfraction = nan", "fraction"),
        ("[[attack]]\nname = 'intercept-resend'\nbases = 4", "bases"),
        ("[[attack]]\nname = 'fibre-cut'\nlength_km = 2", "length_km"),
        ("[[attack]]\nname = 'fibre-cut'\nfrom_s = -1", "from_s"),
        ("[[attack]]\nname = 'fibre-cut'\nfrom_s = 2\nuntil_s = 2", "until_s: it ends at 2.0 s, before"),
        ("[[attack]]\nname = 'fibre-cut'\n" * 65, "65 attacks, the limit is 64"),
        ("#" * 65_537, "above 65536 bytes"),
    ],
)
def test_a_wrong_schedule_names_the_field_and_the_remedy(text, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        Schedule.from_toml(text)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "name 'magic' is no attack"),
        ("fibre-cut:", "is no field"),
        ("fibre-cut:from_s", "'from_s' is no field"),
        ("fibre-cut:from_s=1,from_s=2", "or twice"),
        ("fibre-cut:name=trojan-horse", "is no field"),
        ("fibre-cut:from_s=soon", "from_s: .*not 'soon'"),
        ("detector-dying:detector=9", "detector: "),
    ],
)
def test_a_wrong_argument_names_the_field_and_the_remedy(text, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        Schedule.from_arguments([text])
    assert caught.value.remedy

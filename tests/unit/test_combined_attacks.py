"""Attacks that are on together, on light whose intensity varies, and on links without light."""

import numpy as np
import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.attacks import ATTACKS
from qkdhw_emulators.optics.attacks.hidden import detection_probability
from qkdhw_emulators.optics.attacks.photon_number import forwarding_probability
from qkdhw_emulators.optics.link_tables import build_tables, click_probability
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.setup import Channel, Detector, Gate, Intensity, OpticalSetup, Receiver, Source
from qkdhw_emulators.optics.simulation import LinkSimulation

MU = 0.5
SIGNAL = 0.6
NOISE, PATTERN = 0.15, 0.5
MEASURING = ("intercept-resend", "faked-states", "beam-splitter-wavelength")
FAKED_CLICKS = ("blinding-cw", "blinding-pulsed", "after-gate")
N_PULSES = 1 << 20


def link(mu=MU, efficiency=1.0, loss_db=3.0, gate_ps=1000.0, **source):
    signal, vacuum = {mu: SIGNAL}, {0.0: 1 - SIGNAL}
    often = signal | vacuum if mu else {mu: 1.0}
    intensities = tuple(Intensity(mean_photon_number=m, probability=p) for m, p in often.items())
    detector = Detector(efficiency=efficiency)
    return OpticalSetup(
        source=Source(pulse_rate_hz=100_000_000, intensities=intensities, **source),
        channel=Channel(connector_loss_db=loss_db),
        receiver=Receiver(basis_choice="passive", detectors=(detector,) * 4, gate=Gate(width_ps=gate_ps)),
    )


def attacked(setup, *names):
    tables = build_tables(setup)
    for name in names:
        tables = ATTACKS[name]().change_tables(tables, setup)
    return tables


def gain(tables):
    """Detection probability of a signal in the key basis, over all that is hidden."""
    hidden = np.diff(tables.hidden_cumulative[0, 0], prepend=0.0)
    return float(hidden @ detection_probability(tables)[: tables.n_hidden])


def varying_gain(mean):
    """Integral over the intensity of a pulse, cut at five sigma, and over what the pulse before it was."""
    z = np.linspace(-5, 5, 20_001)
    density = np.exp(-(z**2) / 2)
    seen = [1 - np.average(np.exp(-mean * f * (1 + NOISE * z)), weights=density) for f in (1.0, 1 + PATTERN)]
    return (1 - SIGNAL) * seen[0] + SIGNAL * seen[1]


def clicked_pulses(setup, *names):
    """Pulses with a click: the light that arrives at the detectors of a link that loses none of them."""
    schedule = Schedule.from_arguments(list(names))
    pulses = 0
    with LinkSimulation(setup, seed=5, schedule=schedule, cell_pulses=N_PULSES) as run:
        for _ in range(2):
            pulses += len(np.unique(run.next_cell().bob_light.origin))
    return pulses


@pytest.mark.parametrize(
    ("first", "second"), [(f, s) for f in (*MEASURING, *FAKED_CLICKS) for s in MEASURING if f != s]
)
def test_what_measures_the_sender_is_refused_behind_light_of_another(first, second):
    with pytest.raises(ConfigurationError) as refused:
        Schedule.from_arguments([first, f"{second}:from_s=1"]).check(link())
    assert first in str(refused.value)
    assert f"attack {second}" in str(refused.value)
    assert "from 1 s" in str(refused.value)


def test_one_after_the_other_in_time_is_no_conflict():
    Schedule.from_arguments(["blinding-cw:until_s=1", "intercept-resend:from_s=1"]).check(link())
    with pytest.raises(ConfigurationError, match="faked-states"):
        LinkSimulation(link(), seed=1, schedule=Schedule.from_arguments(["faked-states", "intercept-resend"]))


@pytest.mark.parametrize("second", FAKED_CLICKS)
def test_faked_clicks_repeat_the_errors_of_what_was_sent_before(second):
    setup = link()
    Schedule.from_arguments(["intercept-resend", second]).check(setup)
    tables = attacked(setup, "intercept-resend", second)
    hidden = np.diff(tables.hidden_cumulative[0, 0], prepend=0.0)
    right, wrong = (hidden @ tables.shares[: tables.n_hidden])[:2]
    assert wrong / (right + wrong) == pytest.approx(0.25, abs=2e-3)


@pytest.mark.parametrize("name", [*FAKED_CLICKS, "photon-number-splitting"])
def test_an_attack_that_keeps_the_gain_keeps_that_of_varying_light(name):
    setup = link(loss_db=10.0, intensity_noise=NOISE, pattern_effect=PATTERN)
    expected = varying_gain(MU * 0.1)
    assert gain(attacked(setup)) == pytest.approx(expected, rel=1e-5)
    assert gain(attacked(setup, name)) == pytest.approx(expected, rel=1e-5)
    assert gain(attacked(setup)) > 1.25 * -np.expm1(-MU * 0.1)


def test_the_mean_over_noise_agrees_with_that_of_modes_and_holds_for_bright_light():
    tables = attacked(link(intensity_noise=NOISE, pattern_effect=PATTERN))
    one_mode = detection_probability(tables)[0]
    assert 1 - one_mode > np.prod(1 - click_probability(tables, 0))  # one intensity for all modes of a pulse
    for brightness in (1.0, 10.0, 1e3, 1e6):
        mean = tables.shares[0].sum() * brightness
        found = detection_probability(tables, brightness)[0]
        assert found == pytest.approx(varying_gain(mean), abs=1e-3)
        assert found <= 1


@pytest.mark.parametrize("name", ["blinding-cw", "after-gate"])
def test_the_engine_sees_the_gain_of_varying_light(name):
    setup = link(gate_ps=1000.0 if name == "after-gate" else 0.0, intensity_noise=NOISE, pattern_effect=PATTERN)
    expected = SIGNAL * varying_gain(MU * 10**-0.3)
    n = 2 * N_PULSES
    for names in ((), (name,)):
        deviation = (clicked_pulses(setup, *names) / n - expected) / np.sqrt(expected * (1 - expected) / n)
        assert abs(deviation) < 6


def test_the_engine_sees_a_quarter_of_errors_when_blinding_takes_over():
    schedule = Schedule.from_arguments(["intercept-resend", "blinding-cw"])
    with LinkSimulation(link(gate_ps=0.0), seed=5, schedule=schedule, cell_pulses=N_PULSES) as run:
        light = run.next_cell().bob_light
        choice = run.prepared_at(light.origin)
    key = (choice // 2 % 3 == 0) & (light.detector < 2)
    wrong = (light.detector != choice % 2)[key]
    assert wrong.mean() == pytest.approx(0.25, abs=6 * np.sqrt(0.1875 / key.sum()) + 2e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("without", [{"mu": 0.0}, {"efficiency": 0.0}, {"mu": 1e-17}], ids=str)
def test_photon_number_splitting_of_nothing_is_nothing(without):
    tables = attacked(link(**without), "photon-number-splitting")
    assert np.isfinite(tables.shares).all()
    assert tables.shares.max() <= 1e-16
    with LinkSimulation(
        link(**without), seed=1, schedule=Schedule.from_arguments(["photon-number-splitting"]), cell_pulses=1 << 16
    ) as run:
        assert len(run.next_cell().bob_light.origin) == 0


@pytest.mark.filterwarnings("error")
def test_a_dark_signal_lets_no_decoy_pass():
    assert forwarding_probability(np.array([0.0, 0.1]), 0.0).tolist() == [0, 0]
    assert forwarding_probability(np.array([0.0, 0.1]), 0.5).tolist() == [0, 0]

"""Detectors without dead time click for each photon of a pulse: the closed forms say so, and how much it varies."""

import numpy as np
import pytest

from qkdhw_emulators.optics.expected import expected_counts, expected_gain_and_qber
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.optics.simulation import LinkSimulation
from qkdhw_emulators.simulate.changes import changed_setup
from qkdhw_emulators.simulate.report import report_of
from qkdhw_emulators.simulate.run import LinkRun, RunOptions

BRIGHT = (
    "receiver.detectors.dead_time_ns=0",
    "receiver.detectors.afterpulses=[]",
    "receiver.detectors.efficiency=0.8",
    "receiver.detectors.dark_count_rate_hz=1e6",
    "channel.length_km=0",
    "source.pulse_rate_hz=100_000_000",
)
PHOTONS = ("source.kind=single-photon", "source.intensities=[]", "source.single_photon_probability=0.5")
LINKS = {
    "a switch": ("lim-2014",),
    "noise of the source": ("lim-2014", "source.intensity_noise=0.15", "source.pattern_effect=0.3"),
    "afterpulses": ("lim-2014", "receiver.detectors.afterpulses=[{ probability = 0.1, tau_ns = 200 }]"),
    "a splitter": ("rusca-2018",),
    "gates": ("idq-clavis",),
    "time bins": ("geneva-2018", "receiver.loss_db=0"),
    "photons": ("lim-2014", *PHOTONS),
    "two photons": ("lim-2014", *PHOTONS, "source.two_photon_probability=0.1"),
}
PULSES = 4_000_000


def bright(preset, *changes):
    return changed_setup(load_setup(preset), [*BRIGHT, *changes])


def observed(setup):
    options = RunOptions(setup, seed=4, duration_s=PULSES * setup.source.period_ps / 1e12)
    with LinkRun(options) as link:
        return report_of(options, "bright", link.run())


@pytest.mark.parametrize("link", LINKS)
def test_clicks_and_gains_are_as_expected(link):
    report = observed(bright(*LINKS[link]))
    assert max(abs(row["z"]) for row in report["detectors"]) < 4.5
    assert max(abs(row["gain_z"]) for row in report["bases"]) < 4.5
    assert max(abs(row["qber_z"]) for row in report["bases"] if row["detections"]) < 4.5


@pytest.mark.parametrize("link", ["a switch", "a splitter", "time bins"])
def test_canary_one_click_a_pulse_would_not_be(link):
    """A dead time that ends before the next pulse, or bin, is what was expected of all detectors."""
    setup = bright(*LINKS[link])
    dead = changed_setup(setup, ["receiver.detectors.dead_time_ns=0.001"])
    every, once = (expected_counts(s, PULSES) for s in (setup, dead))
    assert np.max((every.detector_clicks - once.detector_clicks) / np.sqrt(every.detector_clicks)) > 20


def test_a_gain_counts_a_pulse_once_however_many_photons_click():
    setup = bright("rusca-2018")
    dead = changed_setup(setup, ["receiver.detectors.dead_time_ns=0.001"])
    assert expected_gain_and_qber(setup)["gain_key_0"] == pytest.approx(expected_gain_and_qber(dead)["gain_key_0"])


@pytest.mark.parametrize("link", ["a splitter", "noise of the source", "photons", "two photons"])
def test_their_variance_is_that_of_many_cells(link):
    setup = bright(*LINKS[link])
    pulses, cells = 200, 20_000
    with LinkSimulation(setup, seed=6, cell_pulses=pulses) as simulation:
        counts = [np.bincount(simulation.next_cell().bob_light.detector, minlength=4) for _ in range(cells)]
    found = np.array(counts)[:, 0]
    quiet = changed_setup(setup, ["receiver.detectors.dark_count_rate_hz=0"])
    expected = expected_counts(quiet, pulses)
    assert found.mean() == pytest.approx(expected.detector_clicks[0], rel=5 / np.sqrt(found.sum()))
    fano = found.var() / found.mean()
    assert fano == pytest.approx(expected.detector_fano[0], rel=5 * np.sqrt(2 / cells))
    assert abs(expected.detector_fano[0] - 1) > 5 * np.sqrt(2 / cells)  # a Poissonian would be off

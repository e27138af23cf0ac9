"""What `qkdhw link simulate` counts of a run, and how it says it."""

import json

import numpy as np
from typer.testing import CliRunner

from qkdhw.cli import app
from qkdhw.formats import open_events
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.simulate.changes import changed_setup
from qkdhw_emulators.simulate.run import LinkRun, RunOptions

PULSED = "lim-2014"


def simulate(*arguments):
    done = CliRunner().invoke(app, ["link", "simulate", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def simulate_json(*arguments):
    return json.loads(simulate(*arguments, "--json"))


def observed_of(preset, *changes, **options):
    with LinkRun(RunOptions(changed_setup(load_setup(preset), list(changes)), **options)) as run:
        return run.run()


def test_the_gate_plot_has_all_clicks_of_each_detector():
    """Of four detectors: 200 bins a detector are more than a byte holds."""
    observed = observed_of("rusca-2018", duration_s=0.02)
    by_detector = observed.prepared.phases.sum(axis=1)
    assert len(by_detector) >= 3
    assert np.abs(by_detector - observed.bob.clicks).max() <= 3


def test_noise_before_the_light_is_in_the_file_and_in_no_rate(tmp_path):
    """A tagger that waits ten seconds for a tenth of a second of light."""
    report = simulate_json(
        PULSED, "--set", "tagger.clock_offset_s=10", "--duration", 0.1, "--attack", "fibre-cut", "--out", tmp_path / "a"
    )
    before, after = report["events_before_light"]["bob"], report["events"]["bob"]
    assert before > 50 * after
    assert sum(len(b) for b in open_events(tmp_path / "a" / "bob.parquet").read_blocks()) == before + after
    asked = simulate_json(PULSED, "--set", "tagger.clock_offset_s=10", "--events", 100_000)
    assert asked["events"]["bob"] >= 100_000
    assert max(abs(row["z"]) for row in asked["detectors"]) < 5


def test_a_pair_source_counts_each_end_from_its_own_begin():
    report = simulate_json(
        "sfifteen-bbm92", "--set", "sender_tagger.clock_offset_s=3", "--set", "tagger.clock_offset_s=0", "--duration", 1
    )
    assert report["events_before_light"]["bob"] < 10 < report["events_before_light"]["alice"]
    assert max(abs(row["z"]) for row in report["detectors"]) < 5

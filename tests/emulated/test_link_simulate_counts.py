"""What `qkdhw link simulate` counts of a run, and how it says it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from qkdhw.cli import app
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

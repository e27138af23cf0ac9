"""One file's work: what cannot be done for a file is told in its result, and the others go on."""

from fractions import Fraction

import numpy as np
import pytest

from qkdhw.bench.file_jobs import FileJob, ProcessOptions, run_file_job
from qkdhw.formats import write_events
from qkdhw.model import DetectionBlock


def events(path, ticks, tick_ps=Fraction(1)):
    block = DetectionBlock(ticks, np.ones(len(ticks), np.uint8), np.zeros(len(ticks), np.uint8), tick_ps)
    write_events(path, [block], tick_ps=tick_ps)
    return path


@pytest.mark.parametrize(
    ("first", "tick_ps", "window_ps"),
    [(1 << 62, Fraction(1), 1000), (0, Fraction(10) ** 30, 1000), (0, Fraction(1), 2_000_000)],
)
def test_what_does_not_fit_a_file_fails_that_file(tmp_path, first, tick_ps, window_ps):
    ticks = np.sort(np.random.default_rng(1).integers(0, 10**11, 4000))
    a, b = events(tmp_path / "a.parquet", ticks + first), events(tmp_path / "b.parquet", ticks, tick_ps)
    result = run_file_job(FileJob(0, a, ProcessOptions(partners=(b,), window_ps=window_ps), None))
    assert result.error.startswith(("ConfigurationError: ", "EventError: "))
    assert result.outputs == ()

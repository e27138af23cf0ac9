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


def light(path, times_ps, rng):
    times_ps = np.sort(times_ps.astype(np.int64))
    channel = rng.integers(1, 5, len(times_ps)).astype(np.uint8)
    block = DetectionBlock(times_ps, channel, np.zeros(len(times_ps), np.uint8), Fraction(1))
    write_events(path, [block], tick_ps=Fraction(1))
    return path


def test_accidentals_are_of_the_time_with_light_at_both_sites_however_long_one_was_dark(tmp_path):
    rng = np.random.default_rng(6)
    pairs = rng.integers(10**12, 2 * 10**12, 20_000)
    noise = rng.integers(0, 2 * 10**12, 400_000)  # a second of it before the other site has any
    a = light(tmp_path / "a.parquet", np.concatenate((noise, pairs)), rng)
    b = light(tmp_path / "b.parquet", np.concatenate((rng.integers(10**12, 2 * 10**12, 200_000), pairs)), rng)
    result = run_file_job(FileJob(0, a, ProcessOptions(partners=(b,), window_ps=10_000), None))
    assert not result.error
    # 200,000 unpaired events a second meet 220,000 within 10 ns of theirs; averaged over both seconds it would be half.
    found, error = result.facts["accidentals"], result.facts["accidentals_error"]
    assert abs(found - 440) < 4 * error
    assert 0.02 * found < error < 0.1 * found

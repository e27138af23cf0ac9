"""The engine of the emulated link: the same bytes however it is asked, truth that fits, memory that stays."""

import hashlib
import tracemalloc
from itertools import islice

import numpy as np
import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics.drift import Drift
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.setup import Channel, Detector, Intensity, OpticalSetup, Receiver, Source, Tagger
from qkdhw_emulators.optics.simulation import LinkSimulation

EVENTS = 10_000_000


def bright_setup(**tagger):
    """A link with every effect of a detector and about 2.7 million events a second."""
    detector = Detector(
        efficiency=0.6,
        dark_count_rate_hz=20_000,
        dead_time_ns=40,
        recovery_ns=10,
        afterpulses=({"probability": 0.03, "tau_ns": 200},),
        jitter_ps=60,
        jitter_tail_weight=0.1,
        jitter_tail_ps=150,
    )
    return OpticalSetup(
        source=Source(
            pulse_rate_hz=1_000_000_000,
            intensities=(
                Intensity(mean_photon_number=0.5, probability=0.7),
                Intensity(mean_photon_number=0.1, probability=0.3),
            ),
            intensity_noise=0.02,
            pattern_effect=0.01,
            pulse_fwhm_ps=50,
        ),
        channel=Channel(length_km=100, drift_correlation_s=10, background_rate_hz=10_000),
        receiver=Receiver(misalignment=(0.01, 0.01, 0.01), detectors=(detector,) * 4),
        tagger=Tagger(clock_ppm=3, clock_walk_ppm=0.01, non_linearity=0.1, skew_ps=(0, 50, -30, 100), **tagger),
    )


def whole(block_events, threads):
    """The same bytes in the same order, whatever the size of the blocks."""
    ticks, channel = hashlib.sha256(), hashlib.sha256()
    with LinkSimulation(bright_setup(), seed=5, threads=threads) as simulation:
        for some_ticks, some_channel in islice(simulation.bob_blocks(block_events), EVENTS // block_events):
            ticks.update(some_ticks.tobytes())
            channel.update(some_channel.tobytes())
    return ticks.hexdigest(), channel.hexdigest()


def test_same_seed_same_bytes_for_blocks_of_any_size_and_any_number_of_threads():
    first = whole(1_000, 1)
    assert whole(100_000, 1) == first
    assert whole(10_000_000, 1) == first
    assert whole(1_000, 2) == first
    assert whole(100_000, 2) == first
    assert whole(10_000_000, 2) == first


def test_another_seed_or_run_gives_other_bytes():
    ticks = []
    for choice in ({"seed": 5}, {"seed": 6}, {"seed": 5, "run": 1}):
        with LinkSimulation(bright_setup(clock_offset_s=0.0), **choice) as simulation:
            ticks.append(next(simulation.bob_blocks(10_000))[0])
    assert not np.array_equal(ticks[0], ticks[1])
    assert not np.array_equal(ticks[0], ticks[2])


def test_both_ends_see_the_same_choices_at_any_place():
    with LinkSimulation(bright_setup(), seed=2) as simulation, LinkSimulation(bright_setup(), seed=2) as other:
        for _ in range(3):
            other.next_cell()
        far = 3_600_000_000_000
        stretch = simulation.prepared(far, 1000)
        assert np.array_equal(other.prepared_at(np.arange(far, far + 1000)), stretch)
        assert np.array_equal(other.prepared(far + 1, 998), stretch[1:-1])


def test_truth_names_the_pulse_of_each_event_across_cells():
    setup = bright_setup().model_copy(update={"tagger": Tagger(clock_offset_s=0.0)})
    with LinkSimulation(setup, seed=3) as simulation:
        for _ in range(5):
            cell = simulation.next_cell()
            light = cell.bob_origin >= 0
            assert set(np.unique(cell.bob.cause[light])) <= {0, 4}
            assert set(np.unique(cell.bob.cause[~light])) <= {1, 2, 3}
            late_ps = cell.bob.ticks[light] - cell.bob_origin[light] * setup.source.period_ps
            assert np.abs(late_ps).max() < 5_000
            assert light.sum() > 10_000


def test_an_attack_begins_and_ends_on_time():
    schedule = Schedule.from_arguments(["fibre-cut:from_s=0.05,until_s=0.1"])
    setup = load_setup("geneva-2018")
    counts, times = [], []
    with LinkSimulation(setup, seed=1, schedule=schedule) as simulation:
        while not times or times[-1] < 0.15:
            cell = simulation.next_cell()
            counts.append(int((cell.bob_origin >= 0).sum()))
            times.append(cell.begin_s)
    counts, times = np.array(counts), np.array(times)
    dark = (times >= 0.05) & (times < 0.1)
    inner = dark & (times >= 0.05 + 2 * simulation.cell_s)
    assert counts[inner].sum() == 0
    assert counts[~dark].min() > 20


def test_memory_does_not_grow_with_simulated_time():
    setup = load_setup("idq-clavis")
    with LinkSimulation(setup, seed=1) as simulation:
        for _ in range(50):
            simulation.next_cell()
        tracemalloc.start()
        for _ in range(20):
            simulation.next_cell()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(2000):
            simulation.next_cell()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert grown < 200_000


def test_a_source_of_pairs_has_no_prepared_choices():
    with LinkSimulation(load_setup("sfifteen-bbm92"), seed=1) as simulation:
        cell = simulation.next_cell()
        assert cell.alice is not None
        assert len(cell.alice.ticks)
        with pytest.raises(ConfigurationError, match="pairs"):
            simulation.prepared(0, 10)


@pytest.mark.parametrize("change", [{"length_km": -5.0}, {"drift_correlation_s": "long"}])
def test_a_copy_with_values_out_of_range_is_refused(change):
    setup = bright_setup()
    wrong = setup.model_copy(update={"channel": setup.channel.model_copy(update=change)})
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        LinkSimulation(wrong, seed=1)


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": 1, "threads": 0}, {"seed": 1, "run": -1}, {"seed": 1, "cell_pulses": 0}]
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError):
        LinkSimulation(bright_setup(), **wrong)


@pytest.mark.parametrize("correlation_s", [1e-300, 0.01, 0.5])
def test_a_channel_that_drifts_loses_where_states_were(correlation_s):
    setup = bright_setup()
    setup = setup.model_copy(
        update={"channel": setup.channel.model_copy(update={"drift_correlation_s": correlation_s})}
    )
    cosines = []
    n = 600 if correlation_s > 1e-3 else 150  # the most steps, and nothing left after them
    for seed in range(n):
        drift = Drift(setup, 0.005, np.random.SeedSequence(seed))
        for _ in range(2):
            drift.advance()
        cosines.append(drift.rotation[2, 2])
    expected = np.exp(-min(0.01 / correlation_s, 20))
    assert abs(np.mean(cosines) - expected) < 5 * np.std(cosines) / np.sqrt(n) + 0.001


def test_an_attack_that_does_not_fit_is_refused_before_the_run():
    schedule = Schedule.from_arguments(["fibre-splice:added_km=-500,from_s=6"])
    with pytest.raises(ConfigurationError, match="added_km"):
        LinkSimulation(bright_setup(), seed=1, threads=2, schedule=schedule)

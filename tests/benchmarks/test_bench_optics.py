"""The emulated link in one run: detections a second with every effect on, a fast lossy link, an hour of a long one."""

import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from qkdhw_emulators.optics.attack import DetectorCondition, LinkCondition
from qkdhw_emulators.optics.detection import Detection
from qkdhw_emulators.optics.light_stage import Arrivals
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.optics.setup import Channel, Detector, Intensity, OpticalSetup, Receiver, Source
from qkdhw_emulators.optics.simulation import LinkSimulation

sys.path.insert(0, str(Path(__file__).parents[1] / "emulated"))
from test_simulation import bright_setup

EVENTS = 5_000_000


def copy_s(n_bytes):
    """What copying as many bytes takes, for scale."""
    source = np.ones(n_bytes, np.uint8)
    begun_s = time.process_time()
    source.copy()
    return time.process_time() - begun_s


def steady_setup():
    """Every effect of the detectors and the tagger, none of the source and the channel."""
    setup = bright_setup()
    source = setup.source.model_copy(update={"intensity_noise": 0.0, "pattern_effect": 0.0})
    channel = setup.channel.model_copy(update={"drift_correlation_s": 0.0})
    return setup.model_copy(update={"source": source, "channel": channel})


@pytest.mark.parametrize("setup", [steady_setup(), bright_setup()], ids=["detector effects", "all effects"])
def test_bench_whole_link(benchmark, setup):
    """Light, detectors and tagger on one core."""
    with LinkSimulation(setup, seed=1) as simulation:

        def some_cells():
            begun_s, n = time.process_time(), 0
            while n < EVENTS:
                n += len(simulation.next_cell().bob.ticks)
            return n / (time.process_time() - begun_s)

        rates = [some_cells() for _ in range(3)]
        benchmark.pedantic(simulation.next_cell, rounds=20)
    benchmark.extra_info.update(detections_per_s=f"{max(rates):.3g}", copy_of_as_much_s=f"{copy_s(9 * EVENTS):.2g}")


def test_bench_detectors_and_tagger(benchmark):
    """The same detectors and tagger, on light that is there already."""
    setup = bright_setup()
    with LinkSimulation(setup, seed=1) as simulation:
        cells = [simulation.next_cell().bob_light for _ in range(20)]
        cell_ps = simulation.cell_ps
    light = [Arrivals(c.time_ps, c.detector, c.bright, c.origin, c.state) for c in cells]
    condition = LinkCondition([DetectorCondition() for _ in setup.receiver.detectors])

    def detect():
        detection = Detection(
            setup.receiver, setup.tagger, period_ps=1000, cell_ps=cell_ps, seed=1, run=0, purpose=6,
            background_rate_hz=setup.channel.background_rate_hz,
        )  # fmt: skip
        begun_s, n = time.process_time(), 0
        for cell, arrivals in enumerate(light):
            n += len(detection.register(cell, arrivals, condition).ticks)
        return n / (time.process_time() - begun_s)

    rates = [detect() for _ in range(5)]
    benchmark.pedantic(detect, rounds=3)
    benchmark.extra_info.update(detections_per_s=f"{max(rates):.3g}")


def fast_lossy_setup():
    """2.5 GHz at 40 dB."""
    detector = Detector(efficiency=0.8, dark_count_rate_hz=100, dead_time_ns=30, jitter_ps=15)
    return OpticalSetup(
        source=Source(
            pulse_rate_hz=2_500_000_000,
            pulse_fwhm_ps=30,
            intensities=(
                Intensity(mean_photon_number=0.5, probability=0.7),
                Intensity(mean_photon_number=0.15, probability=0.3),
            ),
        ),
        channel=Channel(length_km=200, attenuation_db_per_km=0.2),
        receiver=Receiver(misalignment=(0.01, 0.01, 0.01), detectors=(detector,) * 4),
    )


def test_bench_one_second_of_a_fast_lossy_link(benchmark):
    def one_second():
        begun_s = time.process_time()
        n = 0
        with LinkSimulation(fast_lossy_setup(), seed=1) as simulation:
            end_s = 0.0
            while end_s < 1:
                cell = simulation.next_cell()
                end_s = cell.end_s
                n += len(cell.bob.ticks)
        return time.process_time() - begun_s, n

    took = [one_second() for _ in range(5)]
    benchmark.pedantic(one_second, rounds=1)
    benchmark.extra_info.update(cpu_s=f"{min(t for t, _ in took):.3g}", detections=took[0][1])
    assert took[0][1] > 50_000


def test_bench_memory_over_an_hour_of_a_long_link(benchmark):
    """Traced memory after the first and after the last minute of a simulated hour at 72 dB."""
    with LinkSimulation(load_setup("geneva-2018-404km"), seed=1) as simulation:

        def until(end_s):
            while simulation.next_cell().end_s < end_s:
                pass

        until(60)
        tracemalloc.start()
        until(61)
        first = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        benchmark.pedantic(lambda: until(3599), rounds=1)
        tracemalloc.start()
        until(3600)
        last = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    benchmark.extra_info.update(bytes_after_a_minute=first, bytes_after_an_hour=last)
    assert last < first + 100_000

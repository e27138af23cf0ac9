"""The light of a cell: cells long enough, and what cannot be held or would come too early refused in words."""

import numpy as np
import pytest

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.optics import light_stage
from qkdhw_emulators.optics.attack import LinkCondition
from qkdhw_emulators.optics.detection import EARLY_PS
from qkdhw_emulators.optics.light_stage import Purpose
from qkdhw_emulators.optics.link_tables import build_tables
from qkdhw_emulators.optics.receiver_oscillator import ReceiverOscillator
from qkdhw_emulators.optics.setup import Channel, Detector, Intensity, OpticalSetup, Receiver, Source, Tagger
from qkdhw_emulators.optics.simulation import LinkSimulation
from qkdhw_emulators.simulate.matching import EndClock

PHOTON = 0


def bright(pulse_rate_hz=5_000_000_000, mean_photon_number=1.0, **channel):
    return OpticalSetup(
        source=Source(
            pulse_rate_hz=pulse_rate_hz,
            intensities=(Intensity(mean_photon_number=mean_photon_number, probability=1.0),),
        ),
        channel=Channel(length_km=0.0, **channel),
        receiver=Receiver(detectors=(Detector(efficiency=1.0, dead_time_ns=20.0),) * 4),
    )


def test_cells_of_a_bright_link_are_longer_than_events_are_late():
    with LinkSimulation(bright(), seed=1) as simulation:
        assert simulation.cell_ps >= 2 * EARLY_PS
        cells = [simulation.next_cell() for _ in range(6)]
    photons = np.concatenate([cell.bob_origin[cell.bob.cause == PHOTON] for cell in cells])
    assert len(photons) > 10_000
    assert photons.min() >= 0


def test_light_that_no_memory_holds_is_refused(monkeypatch):
    setup = bright()
    stage = light_stage.PulseStage(build_tables(setup), light_stage.pulse_keys(1, 0), 1 << 18)
    assert len(stage.arrivals(0)[1].time_ps) > 200_000
    monkeypatch.setattr(light_stage, "MOST_ARRIVALS", 100_000)
    stage = light_stage.PulseStage(build_tables(setup), light_stage.pulse_keys(1, 0), 1 << 18)
    stage._room = 1000
    with pytest.raises(ConfigurationError, match=r"cell 0: \d+ photons .*; at most 100000"):
        stage.arrivals(0)


def test_pulses_longer_than_light_may_come_early_are_refused():
    source = {"spectral_width_nm": 10.0}
    setup = bright(dispersion_ps_per_nm_km=200.0, attenuation_db_per_km=0.0)
    setup = setup.model_copy(
        update={
            "source": setup.source.model_copy(update=source),
            "channel": setup.channel.model_copy(update={"length_km": 2000.0}),
        }
    )
    with pytest.raises(ConfigurationError, match="standard deviation of 4e\\+06 ps"):
        LinkSimulation(setup, seed=1)


def test_a_clock_that_has_counted_too_many_ticks_says_so():
    cell_ps = 4_600 * 10**12
    oscillator = ReceiverOscillator(Tagger(tick_fs=1, clock_offset_s=0.0), cell_ps, np.random.SFC64(1))
    assert oscillator.advance(0, LinkCondition([])).tick == 0
    assert oscillator.advance(1, LinkCondition([])).tick == cell_ps * 1000
    with pytest.raises(ConfigurationError, match=r"tick_fs: 1: after 9200 s .* 2\^62"):
        oscillator.advance(2, LinkCondition([]))


@pytest.mark.parametrize("skew_ps", [(1e9, 0.0), (-1e9, 0.0), (1e9, -1e9)])
def test_events_find_their_light_however_late_a_skew_makes_them(skew_ps):
    setup = bright(100_000_000, 0.2)
    setup = setup.model_copy(update={"tagger": Tagger(skew_ps=skew_ps, clock_offset_s=0.0)})
    with LinkSimulation(setup, seed=1, cell_pulses=4096) as simulation:
        clock = EndClock(setup.receiver, setup.tagger, simulation.cell_ps, 1, Purpose.BOB_DETECTION)
        found = 0
        for _ in range(200):
            cell = simulation.next_cell()
            photon = cell.bob.cause == PHOTON
            assert (cell.bob_origin[photon] >= 0).all()
            assert np.array_equal(clock.origins(cell.bob, cell.bob_light), cell.bob_origin)
            lateness = cell.first_pulse - cell.bob_origin[photon]
            assert lateness.max(initial=0) * setup.source.period_ps < 3e9
            found += int(photon.sum())
    assert found > 10_000

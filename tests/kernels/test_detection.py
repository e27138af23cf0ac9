"""Detection: detectors, clock and tagger over the edges of cells, and what a condition does to them."""

from dataclasses import dataclass

import numpy as np
import oracle_tagger as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_of_counts import LEAST_P, p_gauss

from qkdhw.errors import ConfigurationError
from qkdhw_emulators._optics.tagger import Tagger
from qkdhw_emulators.optics import setup
from qkdhw_emulators.optics.attack import DetectorCondition, LinkCondition
from qkdhw_emulators.optics.detection import EARLY_PS, Detection, noise_rates
from qkdhw_emulators.optics.link_tables import outlets
from qkdhw_emulators.optics.receiver_oscillator import ReceiverOscillator

PERFECT = setup.Detector()
NOISY = setup.Detector(
    dark_count_rate_hz=1e5, dead_time_ns=50, jitter_ps=300, jitter_tail_weight=0.2, jitter_tail_ps=2000, recovery_ns=20,
    afterpulses=(setup.Afterpulse(probability=0.2, tau_ns=2000),), delay_ps=-300,
)  # fmt: skip
INTENSITY = setup.Intensity(mean_photon_number=0.5, probability=1.0)
PLAIN_CLOCK = setup.Tagger(clock_offset_s=0.0)


@dataclass
class Light:
    time_ps: np.ndarray
    detector: np.ndarray
    bright: np.ndarray


def light_of(time_ps, detector, bright=0):
    n = len(time_ps)
    return Light(np.array(time_ps, float), np.broadcast_to(np.uint8(detector), n), np.full(n, bright, np.uint8))


def detection(detectors, tagger=PLAIN_CLOCK, cell_ps=1_000_000, gate=None, seed=1, **numbers):
    receiver = setup.Receiver(
        detectors=detectors, gate=gate or setup.Gate(), layout=("key0", "key1", "test0", "test1")[: len(detectors)]
    )
    arguments = {"period_ps": 1000, "cell_ps": cell_ps, "seed": seed, "run": 0, "purpose": 6, "background_rate_hz": 0.0}
    return Detection(receiver, tagger, **(arguments | numbers))


def clean(n):
    return LinkCondition([DetectorCondition() for _ in range(n)])


def register_all(found, time_ps, detector, cell_ps, n_cells, n_detectors):
    """Cut light into cells and return ticks, channels, causes and arrivals; each cell must fit to those before."""
    parts, last = [], -(1 << 62)
    in_cell = np.floor_divide(time_ps, cell_ps)
    for k in range(n_cells):
        here = in_cell == k
        events = found.register(k, light_of(time_ps[here] - k * cell_ps, detector[here]), clean(n_detectors))
        assert (np.diff(events.ticks) >= 0).all()
        assert len(events.ticks) == 0 or last <= events.ticks[0] <= events.ticks[-1] < events.end_ticks
        assert events.end_ticks >= last
        last = events.end_ticks
        parts.append((events.ticks, events.channel, events.cause, events.arrival))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


@given(
    st.lists(st.tuples(st.integers(0, 49_999_999), st.integers(0, 3)), max_size=60),
    st.sampled_from([1_000_000, 7_000_000, 30_000_000]),
)
@settings(max_examples=60)
def test_perfect_detectors_and_clock_give_each_arrival_as_it_is(arrivals, cell_ps):
    arrivals = sorted(arrivals)
    time_ps = np.array([t for t, _ in arrivals], float)
    detector = np.array([d for _, d in arrivals], np.uint8)
    found = detection((PERFECT,) * 4, cell_ps=cell_ps)
    ticks, channel, cause, arrival = register_all(found, time_ps, detector, cell_ps, 61_000_000 // cell_ps + 1, 4)
    assert list(zip(ticks.tolist(), channel.tolist(), strict=True)) == arrivals
    assert sorted(arrival.tolist()) == list(range(len(arrivals)))
    np.testing.assert_array_equal(time_ps[arrival], ticks)
    np.testing.assert_array_equal(detector[arrival], channel)
    assert not cause.any()


@pytest.mark.parametrize("gate", [setup.Gate(), setup.Gate(width_ps=600, profile_fwhm_ps=400, offset_ps=20)])
def test_cells_of_any_length_give_the_same_clicks_of_noisy_detectors(gate):
    rng = np.random.default_rng(5)
    time_ps = np.sort(rng.integers(0, 400_000, 20_000) * 1000.0 + 2)
    detector = rng.integers(0, 4, len(time_ps)).astype(np.uint8)
    clock = setup.Tagger(clock_offset_s=0.001, skew_ps=(0, 500, -2000), non_linearity=0.5)
    all_columns = []
    for cell_ps in (4_000_000, 32_000_000, 420_000_000):
        found = detection((NOISY,) * 4, clock, cell_ps=cell_ps, gate=gate)
        columns = register_all(found, time_ps, detector, cell_ps, 420_000_000 // cell_ps, 4)
        before = columns[0] < 1_000_000_000 + 390_000_000
        all_columns.append([column[before] for column in columns])
    assert len(all_columns[0][0]) > 4000
    assert set(all_columns[0][2].tolist()) == {0, 1, 2}
    for columns in all_columns[1:]:
        np.testing.assert_array_equal(columns[1:], all_columns[0][1:])
        assert np.abs(columns[0] - all_columns[0][0]).max() <= 2  # a picosecond's last bits, at an edge of bins


def test_a_tagger_that_started_before_the_light_counts_noise():
    dark = setup.Detector(dark_count_rate_hz=1e7)
    for cell_ps in (20_000_000, 10_000_000_000):
        found = detection((dark, dark), setup.Tagger(clock_offset_s=0.002), cell_ps=cell_ps)
        ticks = found.register(0, light_of([], 0), clean(2)).ticks
        assert ticks[0] < 1_000_000
        n = np.count_nonzero(ticks < 2_000_000_000)
        assert p_gauss(n, 40_000, 200) > LEAST_P


def test_streams_are_of_seed_run_purpose_and_detector():
    dark = setup.Detector(dark_count_rate_hz=1e6)

    def ticks(**numbers):
        found = detection((dark, dark), cell_ps=100_000_000, **numbers)
        events = found.register(0, light_of([], 0), clean(2))
        return [events.ticks[events.channel == c].tolist() for c in (0, 1)]

    same = ticks()
    assert ticks() == same
    assert same[0] != same[1]
    others = [ticks(seed=2), ticks(run=1), ticks(purpose=7)]
    assert len({tuple(t) for pair in [same, *others] for t in pair}) == 8


def test_an_hour_costs_no_precision():
    cell_ps, n_cells, tick_fs = 10_000_000_000, 360_000, 3907
    clock = setup.Tagger(tick_fs=tick_fs, clock_offset_s=0.00731, clock_ppm=5.123, clock_drift_ppm_per_s=-0.001)
    oscillator = ReceiverOscillator(clock, cell_ps, np.random.SFC64(0))
    tagger = Tagger(np.random.SFC64(0), [0.0], tick_ps=tick_fs / 1000)
    parts = [10**15 + round((5.123 - 0.001 * (k + 0.5) * 0.01) * 1e9) for k in range(n_cells)]
    rng = np.random.default_rng(7)
    looked_at = set(rng.integers(0, n_cells, 50).tolist()) | {n_cells - 1}
    for k in range(n_cells):
        reading = oscillator.advance(k, clean(1))
        if k in looked_at:
            time_ps = int(rng.integers(cell_ps))
            want = oracle.exact_tick(k * cell_ps + time_ps, "0.00731", parts, cell_ps, tick_fs)
            assert tagger.tick_at(time_ps, *reading) == want


@pytest.mark.parametrize("cell_ps", [1_000_000_000, 50_000_000_000])
def test_a_walk_of_the_frequency_is_the_same_for_all_cells(cell_ps):
    clock = setup.Tagger(clock_offset_s=0.0, clock_walk_ppm=0.2)
    n_cells = 10**12 // cell_ps
    after_1_s = []
    for seed in range(300):
        oscillator = ReceiverOscillator(clock, cell_ps, np.random.SFC64(seed))
        readings = [oscillator.advance(k, clean(1)) for k in range(n_cells + 1)]
        after_1_s.append((readings[-1].rate - 1) * 1e6)

    def p(sigma_ppm):
        return p_gauss(np.var(after_1_s), sigma_ppm**2, sigma_ppm**2 * (2 / 299) ** 0.5)

    assert p(0.2) > LEAST_P
    assert p(0.14) < LEAST_P


def test_a_clock_begins_anywhere_in_10_ms_if_nothing_is_said():
    readings = [
        ReceiverOscillator(setup.Tagger(), 1000, np.random.SFC64(seed)).advance(0, clean(1)).tick for seed in range(200)
    ]
    assert min(readings) < 5e8
    assert 9.5e9 < max(readings) < 1e10
    assert p_gauss(np.mean(readings), 5e9, 1e10 / (12 * 200) ** 0.5) > LEAST_P


def test_a_condition_turns_the_clock():
    found, condition = detection((PERFECT,), cell_ps=100_000_000), clean(1)
    ticks = []
    for k, (ppm, step_ps) in enumerate([(0, 0), (100, 0), (0, 5_000), (0, 0), (0, 0)]):
        condition.clock_ppm, condition.clock_step_ps = ppm, step_ps
        ticks += found.register(k, light_of([10_000_000], 0), condition).ticks.tolist()
    # in the second cell 100 ppm faster; in the fourth the clock, stepped back, is still past where it was
    assert ticks == [10_000_000, 110_001_000, 210_015_000, 310_010_000, 410_010_000]


@pytest.mark.parametrize("field", ["clock_step_ps", "delay_ps"])
def test_a_clock_that_steps_back_goes_on_from_its_lower_reading(field):
    found, condition = detection((PERFECT, PERFECT), cell_ps=100_000_000), clean(2)
    setattr(condition, field, 50_000_000)
    light = light_of([10_000_000, 80_000_000, 95_000_000, 99_000_000], [0, 1, 1, 0])
    first = found.register(0, light, condition)
    assert first.ticks.tolist() == [60_000_000, 130_000_000]
    assert first.end_ticks == 140_000_000
    found._tagger.add(np.array([-2e6]), *np.zeros((2, 1), np.uint8), np.array([77]), 150_000_000, 0.0, 1.0)
    setattr(condition, field, 0)
    second = found.register(1, light, condition)
    # what waits from before comes first, by the old clock; carried light has the new one
    assert second.ticks.tolist() == [148_000_000, 95_000_000, 99_000_000, 110_000_000, 180_000_000]
    assert second.arrival.tolist() == [77, 2, 3, 4, 5]
    assert second.end_ticks == 190_000_000
    assert found._tagger.waiting == 0


def test_nothing_waits_after_a_huge_step_back():
    dark = setup.Detector(dark_count_rate_hz=1e8)
    found, condition = detection((dark,), cell_ps=100_000_000), clean(1)
    last = 0
    for k in range(12):
        condition.clock_step_ps = 1e12 if 3 <= k < 6 else 0.0
        ticks = found.register(k, light_of([], 0), condition).ticks
        assert 8000 < len(ticks) < 12_000
        assert np.count_nonzero(np.diff(ticks, prepend=last) < 0) == (k == 6)
        assert np.unique(ticks, return_counts=True)[1].max() < 10
        assert found._tagger.waiting < 3000
        last = ticks[-1]


def test_too_much_noise_before_the_first_pulse_is_refused():
    dark = setup.Detector(dark_count_rate_hz=1e6)
    with pytest.raises(ConfigurationError, match=r"clock_offset_s: about 6e\+07"):
        detection((dark,), setup.Tagger(clock_offset_s=60.0))
    detection((dark,), setup.Tagger(clock_offset_s=60.0), gate=setup.Gate(width_ps=100))


def test_a_condition_turns_detectors_off():
    found, condition = detection((PERFECT, PERFECT), cell_ps=100_000_000), clean(2)
    states = []
    for k, (what, bright) in enumerate(
        [("", 0), ("blinded", 0), ("blinded", 1), ("dead", 1), ("", 0), ("latched", 0), ("", 0)]
    ):
        condition.detectors[1] = DetectorCondition(**({what: True} if what else {}))
        events = found.register(k, light_of([1e6, 2e6], [0, 1], bright), condition)
        states.append(events.channel.tolist())
    assert states == [[0, 1], [0], [0, 1], [0], [0, 1], [0], [0]]
    assert found.latched == (False, True)
    found.reset(1)
    events = found.register(7, light_of([1e6, 2e6], [0, 1]), condition)
    assert events.channel.tolist() == [0, 1]


def test_gates_follow_the_detector_that_they_belong_to():
    late = setup.Detector(delay_ps=400)
    found = detection((PERFECT, late), cell_ps=100_000_000, gate=setup.Gate(width_ps=200, offset_ps=50))
    events = found.register(0, light_of([50_050, 60_450, 70_050, 80_450], [0, 0, 1, 1]), clean(2))
    assert events.arrival.tolist() == [0, 3]


def test_light_before_and_after_its_cell_is_carried():
    found = detection((PERFECT,), setup.Tagger(clock_offset_s=1e-9), cell_ps=100_000_000)
    first = found.register(0, light_of([-1500, -500, 50, 99_999_000, 100_000_500, 250_000_000], 0), clean(1))
    second = found.register(1, light_of([-EARLY_PS, -100, 700], 0), clean(1))
    third = found.register(2, light_of([], 0), clean(1))
    assert first.ticks.tolist() == [500, 1050]  # the first click came before the tagger's start
    assert second.ticks.tolist() == [90_001_000, 100_000_000, 100_000_900, 100_001_500, 100_001_700]
    assert second.arrival.tolist() == [6, 3, 7, 4, 8]
    assert third.ticks.tolist() == [250_001_000]


def test_noise_meets_the_optics():
    half = setup.Detector(efficiency=0.5, dark_count_rate_hz=7)
    passive = setup.Receiver(detectors=(half,) * 4, key_basis_probability=0.9, loss_db=10, test_loss_db=10)
    assert np.allclose(noise_rates(passive, 2000), [(7, 45), (7, 45), (7, 0.5), (7, 0.5)])
    active = setup.Receiver(detectors=(half,) * 2, basis_choice="active", loss_db=10)
    assert np.allclose(noise_rates(active, 2000), [(7, 50), (7, 50)])
    six = setup.Receiver(detectors=(half,) * 6, key_basis_probability=0.5)
    assert np.allclose(noise_rates(six, 1600), [(7, 200)] * 2 + [(7, 100)] * 4)
    bins = setup.Receiver(detectors=(half,) * 2, layout=("key", "test0"), bin_separation_ps=100)
    assert np.allclose(noise_rates(bins, 1600), [(7, 400), (7, 200)])
    lone = setup.Receiver(detectors=(half,) * 2, layout=("key0", "key1"), key_basis_probability=0.5)
    assert np.allclose(noise_rates(lone, 1600), [(7, 400), (7, 400)])
    found = detection((half, half), cell_ps=10**12)
    found.set_noise(setup.Receiver(detectors=(half, half), layout=("key0", "key1")), 4e6)
    events = found.register(0, light_of([], 0), clean(2))
    for channel in (0, 1):
        assert p_gauss(np.count_nonzero(events.channel == channel), 1_000_007, 1000) > LEAST_P


@pytest.mark.parametrize("layout", [("key", "test0"), ("key0", "key1", "test0", "test1"), ("key0", "key1")])
@pytest.mark.parametrize("test_loss_db", [0.0, 2.99, 3.01])
def test_background_goes_where_unpolarised_light_goes(layout, test_loss_db):
    receiver = setup.Receiver(
        detectors=(setup.Detector(efficiency=0.5),) * len(layout), layout=layout, loss_db=1.0,
        test_loss_db=test_loss_db, bin_separation_ps=300, key_basis_probability=0.6,
    )  # fmt: skip
    source = setup.Source(kind="weak-coherent", encoding="time-bin", intensities=(INTENSITY,))
    want = np.zeros(len(layout))
    for place in outlets(setup.OpticalSetup(source=source, receiver=receiver)):
        want[place.detector] += place.weight / 2
    assert np.allclose([background for _, background in noise_rates(receiver, 1.0)], want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gate": setup.Gate(width_ps=1001)}, "period"),
        ({"gate": setup.Gate(width_ps=500), "cell_ps": 1_000_500}, "multiple"),
    ],
)
def test_gates_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        detection((PERFECT,), **arguments)


def test_cells_out_of_order_and_light_for_no_detector_are_refused():
    found = detection((PERFECT,))
    with pytest.raises(ConfigurationError, match="cell 1"):
        found.register(1, light_of([], 0), clean(1))
    with pytest.raises(ConfigurationError, match="3 is none of 1"):
        detection((PERFECT,), cell_ps=100_000_000).register(0, light_of([1.0], 3), clean(1))

"""Two drifting clocks are followed; steps and gaps are noticed and mended; no chunking changes what is found."""

import math
from fractions import Fraction

import numpy as np
import pytest

from pair_streams import TICK_PS
from qkdhw.errors import NonMonotonicTimeError
from qkdhw.events.pair_correlation import PairClock
from qkdhw.events.pair_tracking import EPOCH_S, PairTracker, TrackingState

TICK_S = float(TICK_PS) * 1e-12
EPOCH = 1 << 32
NANOSECOND = 8.0  # ticks


def simulated_epochs(seed, epochs, offset_of, *, singles=5e4, pairs=1e3, first=0):
    """Yield, epoch by epoch of A, the times of A and of B; the time of B is t + offset_of(t), in seconds."""
    for k in range(first, first + epochs):
        rng = np.random.default_rng([seed, k])
        together = rng.uniform(k * EPOCH_S, (k + 1) * EPOCH_S, rng.poisson(pairs * EPOCH_S))
        sites = []
        for offset in (np.zeros_like, offset_of):
            alone = rng.uniform(k * EPOCH_S, (k + 1) * EPOCH_S, rng.poisson((singles - pairs) * EPOCH_S))
            t = np.concatenate([alone, together + rng.normal(0, 300e-12, len(together))])
            moved = np.floor(offset(t) / TICK_S * 65536) / 65536  # t alone would lose digits to a large offset
            sites.append(np.sort(np.floor(t / TICK_S + moved).astype(np.int64)))
        yield tuple(sites)


def tracker_of(offset_s=0.0, rate=0.0, **options):
    nominal = PairClock.nominal(TICK_PS, TICK_PS)
    clock = nominal.rebased(0, shift_q32=round(offset_s / TICK_S * 2**32), stretch_q48=round(rate * 2**48))
    return PairTracker(clock, TICK_PS, TICK_PS, **options)


def feed(tracker, epochs):
    """Feed epochs as a live link does; B's last of each come with the next, for they may be earlier than A's next."""
    done, b_last = [], -(1 << 62)
    for a_ticks, b_ticks in epochs:
        late = np.sort(np.maximum(b_ticks, b_last))
        done += tracker.track(a_ticks, late)
        b_last = int(late[-1]) if len(late) else b_last
    return done


def errors_ns(epochs, offset_of):
    """How far each epoch's clock is off in its middle."""
    return [
        float(epoch.clock.map_ticks(epoch.clock.ref_a_ticks) - epoch.clock.ref_a_ticks) / NANOSECOND
        - float(offset_of(epoch.clock.ref_a_ticks * TICK_S)) * 1e9
        for epoch in epochs
    ]


@pytest.mark.parametrize(
    "offset_of",
    [lambda t: 3e-3 + 1e-9 * t, lambda t: 3e-3 + 0.5e-9 * t * t, lambda t: 3e-3 + 20e-9 * np.sin(t / 3)],
    ids=["a constant 1e-9", "1e-9 a second", "forth and back"],
)
def test_drift_is_followed_within_a_nanosecond(offset_of):
    tracker = tracker_of(offset_s=3e-3)
    done = feed(tracker, simulated_epochs(1, 40, offset_of))
    assert len(done) == 39
    assert all(epoch.state is TrackingState.TRACKING and not epoch.found_again for epoch in done)
    assert max(map(abs, errors_ns(done, offset_of))) < 1
    assert tracker.state is TrackingState.TRACKING
    assert tracker.clock == done[-1].clock


def test_pairs_and_accidentals_are_counted():
    done = feed(tracker_of(), simulated_epochs(2, 20, np.zeros_like))
    assert np.mean([epoch.accidentals for epoch in done]) == pytest.approx(3e-9 * 5e4**2 * EPOCH_S, rel=0.15)
    assert np.mean([epoch.pairs for epoch in done]) == pytest.approx(0.9992 * 1e3 * EPOCH_S, rel=0.05)


@pytest.mark.parametrize("step_s", [1e-3, -1e-3, 200e-9, 9e-3])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_step_is_mended_within_three_epochs(step_s, part):
    moment_s = (5 + part) * EPOCH_S
    offset_of = lambda t: np.where(t < moment_s, 0.0, step_s) + 1e-9 * t  # noqa: E731
    done = feed(tracker_of(), simulated_epochs(3, 12, offset_of))
    assert [epoch.state for epoch in done[8:]] == [TrackingState.TRACKING] * len(done[8:])
    assert sum(epoch.found_again for epoch in done[5:9]) == 1
    assert max(map(abs, errors_ns(done[8:], offset_of))) < 1


def test_light_that_fails_and_returns_is_found_again():
    offset_of = lambda t: 2e-7 * t  # noqa: E731  drifts out of what is captured while it is dark
    streams = list(simulated_epochs(4, 14, offset_of))
    dark = list(simulated_epochs(4, 14, offset_of, pairs=0, singles=500))
    done = feed(tracker_of(rate=1e-7), streams[:4] + dark[4:10] + streams[10:])
    states = [epoch.state for epoch in done]
    assert states[:4] == [TrackingState.TRACKING] * 4
    assert states[4:10] == [TrackingState.LOST] * 6
    assert states[10:] == [TrackingState.TRACKING] * len(states[10:])


def test_a_silent_site_is_not_waited_for():
    streams = list(simulated_epochs(5, 20, np.zeros_like))
    nothing = np.empty(0, np.int64)
    done = feed(tracker_of(), [(a, b if k < 3 or k >= 12 else nothing) for k, (a, b) in enumerate(streams)])
    states = [epoch.state for epoch in done]
    assert states[:3] == [TrackingState.TRACKING] * 3
    assert states[3:12] == [TrackingState.LOST] * 9
    assert states[12:] == [TrackingState.TRACKING] * len(states[12:])


def test_a_week_without_a_photon_is_passed_over():
    week = 7 * 86400 * 8 * 10**9
    streams = list(simulated_epochs(6, 8, np.zeros_like))
    done = feed(tracker_of(), streams[:4] + [(a + week, b + week) for a, b in streams[4:]])
    assert len(done) < 12
    assert done[-1].state is TrackingState.TRACKING
    assert done[-1].first_ticks > week


def test_no_lock_without_pairs():
    done = feed(tracker_of(), simulated_epochs(7, 12, np.zeros_like, pairs=0))
    assert all(epoch.state is TrackingState.LOST for epoch in done)
    assert all(epoch.residual_ticks == 0 and epoch.significance < 6 for epoch in done)


def test_any_chunks_give_the_same_epochs():
    offset_of = lambda t: np.where(t < 3.3, 1e-6, 1e-3)  # noqa: E731
    streams = list(simulated_epochs(8, 9, offset_of, singles=2e4))
    a, b = (np.sort(np.concatenate([epoch[i] for epoch in streams])) for i in range(2))
    whole = tracker_of(1e-6).track(a, b)
    tracker, pieces, rng = tracker_of(1e-6), [], np.random.default_rng(8)
    a_cuts, b_cuts = ([0, *np.sort(rng.integers(0, len(t), 30)), len(t)] for t in (a, b))
    for k in range(31):
        pieces += tracker.track(a[a_cuts[k] : a_cuts[k + 1]], b[b_cuts[k] : b_cuts[k + 1]])
    assert len(whole) >= 8
    assert pieces == whole


def test_what_is_kept_does_not_grow():
    tracker = tracker_of()
    for pairs in (1e3, 0):
        feed(tracker, simulated_epochs(9, 8, np.zeros_like, pairs=pairs, first=8 * (pairs == 0)))
        assert len(tracker._a) < 5 * 5e4 * EPOCH_S


def test_time_that_goes_backwards_is_named():
    tracker = tracker_of()
    tracker.track(np.array([5, 9]), np.array([7]))
    with pytest.raises(NonMonotonicTimeError, match="chunk"):
        tracker.track(np.array([8]), np.array([9]))
    with pytest.raises(NonMonotonicTimeError):
        tracker.track(np.array([12, 11]), np.array([9]))


def test_the_capture_range_is_what_it_says():
    for resolution_ps in (1000, 4000):
        tracker = tracker_of(resolution_ps=resolution_ps)
        capture_s = tracker.capture_ticks * TICK_S
        assert capture_s == pytest.approx(62e-12 * resolution_ps)
        inside, outside = (
            feed(tracker_of(resolution_ps=resolution_ps), simulated_epochs(10, 2, lambda t, s=s: t * 0 + s, pairs=3e3))
            for s in (0.98 * capture_s, 1.05 * capture_s)
        )
        assert inside[0].state is TrackingState.TRACKING
        assert not inside[0].found_again
        assert outside[0].found_again


def test_ticks_may_differ():
    a_tick_ps, b_tick_ps = Fraction(125), Fraction(125, 2)
    tracker = PairTracker(PairClock.nominal(a_tick_ps, b_tick_ps), a_tick_ps, b_tick_ps)
    done = feed(tracker, ((a, 2 * b + 77) for a, b in simulated_epochs(11, 6, np.zeros_like)))
    for epoch in done[3:]:
        error = float(epoch.clock.map_ticks(epoch.clock.ref_a_ticks)) - 2 * epoch.clock.ref_a_ticks - 77
        assert math.fabs(error) < 8


def test_of_many_pairs_a_part_tells_as_much():
    """Bright light: the clock comes from stripes of each epoch, a step is mended as soon, and rates are those of all."""
    offset_of = lambda t: np.where(t < 2.9 * EPOCH_S, 0.0, 1e-3) + 1e-9 * t  # noqa: E731
    done = feed(tracker_of(), simulated_epochs(12, 8, offset_of, singles=1e5, pairs=5e4))
    assert [epoch.state for epoch in done[3:]] == [TrackingState.TRACKING] * len(done[3:])
    assert sum(epoch.found_again for epoch in done) == 1
    assert max(map(abs, errors_ns(done[4:], offset_of))) < 1
    assert done[1].pairs == pytest.approx(5e4 * EPOCH_S, rel=0.1)
    assert done[1].accidentals == pytest.approx(3e-9 * 1e10 * EPOCH_S, rel=0.5)


def test_memory_is_used_again():
    tracker = tracker_of()
    feed(tracker, simulated_epochs(13, 30, np.zeros_like, singles=2e4))
    assert len(tracker._a._memory) < 20 * 2e4 * EPOCH_S

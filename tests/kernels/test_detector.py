"""DetectorChain: the same clicks as an oracle that is told the same draws, and the laws of physics.md's detectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_detector import Oracle, detect_alone

from qkdhw_emulators._optics import detector
from qkdhw_emulators._optics.detector import DetectorChain

EVERYTHING = {
    "dark_hz": 3e5, "background_hz": 2e5, "dead_time_ps": 20_000.0, "recovery_ps": 30_000.0,
    "child_probability": [0.2, 0.3], "child_tau_ps": [5e5, 5e4], "jitter_ps": 40.0, "tail_weight": 0.1, "tail_ps": 200.0,
    "period_ps": 1000, "gate_width_ps": 400.0, "gate_fwhm_ps": 300.0, "gate_centre_ps": 100.0,
}  # fmt: skip


def arrivals(seed, n=2000, until_ps=100_000_000, sigma_ps=80, bright_share=0.05):
    rng = np.random.default_rng(seed)
    time_ps = np.sort(rng.integers(0, until_ps // 1000, n) * 1000.0 + 100 + rng.normal(0, sigma_ps, n))
    return time_ps, (rng.random(n) < bright_share).astype(np.uint8), np.arange(7, n + 7)


def run(chain, time_ps, bright, number, horizon_ps, room=1000):
    """Call again as long as there is not room enough."""
    parts, used = [], 0
    while True:
        out = np.full(room, -1.0), np.full(room, 99, np.uint8), np.full(room, -99, np.int64)
        more, n = detect_alone(chain, time_ps[used:], bright[used:], number[used:], horizon_ps, *out)
        used += more
        parts.append([column[:n] for column in out])
        if n < room:
            return [np.concatenate(column) for column in zip(*parts, strict=True)], used


def run_in_cells(chain, light, cell_ps, n_cells, room=1000):
    """Cut the light into cells."""
    parts, at = [], 0
    time_ps, bright, number = light
    for k in range(n_cells):
        (t, cause, origin), used = run(
            chain, time_ps[at:] - k * cell_ps, bright[at:], number[at:], float(cell_ps), room=room
        )
        at += used
        parts.append((t + k * cell_ps, cause, origin))
        chain.rebase(cell_ps)
    assert at == np.searchsorted(time_ps, n_cells * cell_ps)
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def assert_same(got, want):
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[2], want[2])
    np.testing.assert_allclose(got[0], want[0], rtol=0, atol=1e-3)


def columns(found):
    return [np.array(c, dtype) for c, dtype in zip(zip(*found, strict=True), (float, np.uint8, np.int64), strict=True)]


POWER_LAW = {"child_probability": [], "child_tau_ps": [], "power_law": (0.4, 1.0, 1e4, 1e6)}
VARIANTS = [
    {},
    {"gate_width_ps": 0.0},
    {"paralysable": True, "gate_width_ps": 0.0},
    {"gate_fwhm_ps": 0.0, "recovery_ps": 0.0},
    {"dead_time_ps": 0.0, "tail_weight": 1.0},
    POWER_LAW,
    {**POWER_LAW, "power_law": (0.9, 1.4, 1e4, 1e6), "jitter_ps": 0.0},
    {"child_probability": [0.8], "child_tau_ps": [1e5], "background_hz": 0.0},
    {"latch_hz": 3e7, "gate_width_ps": 0.0, "dead_time_ps": 0.0, "recovery_ps": 0.0},
    {"dark_hz": 0.0, "background_hz": 0.0, "child_probability": [], "child_tau_ps": []},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_same_draws_give_the_clicks_of_the_oracle(changes, seed):
    light = arrivals(seed)
    got, used = run(DetectorChain(np.random.SFC64(seed), **(EVERYTHING | changes)), *light, 100e6)
    oracle = Oracle(np.random.SFC64(seed), **(EVERYTHING | changes))
    want = columns(oracle.run(*light, 100e6))
    assert_same(got, want)
    assert used == len(light[0])
    assert len(got[0]) > 100
    assert oracle.latched == ("latch_hz" in changes)


@given(
    seed=st.integers(0, 2**32),
    cells=st.sampled_from([1, 2, 5, 50]),
    room=st.integers(1, 300),
    variant=st.sampled_from(VARIANTS),
)
@settings(max_examples=40)
def test_neither_cells_nor_room_change_anything(seed, cells, room, variant):
    light = arrivals(seed, n=300)
    want = run_in_cells(DetectorChain(np.random.SFC64(seed), **(EVERYTHING | variant)), light, 100_000_000, 1)
    chain = DetectorChain(np.random.SFC64(seed), **(EVERYTHING | variant))
    assert_same(run_in_cells(chain, light, 100_000_000 // cells, cells, room), want)


@given(st.lists(st.integers(0, 2000), max_size=100), st.sampled_from([1, 10, 250, 5000]), st.booleans())
def test_without_randomness_cells_of_any_length_give_exactly_the_same(times, cell_ps, paralysable):
    light = np.sort(np.array(times, float)), np.zeros(len(times), np.uint8), np.arange(len(times))
    given_, expected, live_from = [], [], -1.0
    for t in light[0]:
        given_.append(t)
        if t >= live_from:
            expected.append(t)
        if t >= live_from or paralysable:
            live_from = t + 30
    chain = DetectorChain(np.random.SFC64(0), dead_time_ps=30, paralysable=paralysable)
    got = run_in_cells(chain, light, cell_ps, 2001 // cell_ps + 1)
    assert got[0].tolist() == expected


@pytest.mark.parametrize("room", [13, 5000])
def test_detectors_together_click_as_each_does_alone(room):
    time_ps, bright, number = arrivals(4, n=3000)
    which = np.random.default_rng(4).integers(0, 3, 3000).astype(np.uint8)
    variants = [VARIANTS[1], VARIANTS[2], VARIANTS[8]]
    chains = [DetectorChain(np.random.SFC64(k), **(EVERYTHING | v)) for k, v in enumerate(variants)]
    parts, used, n = [], 0, room
    while n == room:
        out = np.empty(room), np.full(room, 9, np.uint8), np.empty(room, np.uint8), np.empty(room, np.int64)
        light = (column[used:] for column in (time_ps, which, bright, number))
        more, n = detector.detect(chains, *light, 0, 100e6, *out)
        used += more
        parts.append([column[:n] for column in out])
    found = [np.concatenate(column) for column in zip(*parts, strict=True)]
    assert used == 3000
    assert (np.diff(found[0]) > -1000).all()  # in order but for jitter
    for k, variant in enumerate(variants):
        alone = DetectorChain(np.random.SFC64(k), **(EVERYTHING | variant))
        want, _ = run(alone, *(column[which == k] for column in (time_ps, bright, number)), 100e6)
        here = found[1] == k
        assert_same([column[here] for column in (found[0], found[2], found[3])], want)
        assert len(want[0]) > 100


def test_blinded_dead_and_latched_detectors():
    light = arrivals(3, n=20_000)
    chain = DetectorChain(np.random.SFC64(1), **(EVERYTHING | {"dark_hz": 1e8, "background_hz": 1e8}))
    for state, causes in ((None, {0, 1, 2, 3, 4}), ("blinded", {4}), ("dead", set()), ("latched", set())):
        for other in ("blinded", "dead", "latched"):
            setattr(chain, other, other == state)
        (_, cause, _), _ = run(chain, *light, 100e6)
        chain.rebase(100_000_000)
        assert set(cause.tolist()) == causes
    chain.latched = False
    (_, cause, _), _ = run(chain, *light, 100e6)
    assert set(cause.tolist()) == {0, 1, 2, 3, 4}


def test_blinding_bright_light_has_no_afterpulses_but_dead_time():
    time_ps = np.arange(0, 10_000_000, 10_000.0)
    light = time_ps, np.ones(1000, np.uint8), np.arange(1000)
    chain = DetectorChain(np.random.SFC64(1), dead_time_ps=15_000, child_probability=[0.9], child_tau_ps=[1e5])
    chain.blinded = True
    (t, _, origin), _ = run(chain, *light, 1e7)
    np.testing.assert_array_equal(t, time_ps[::2])
    np.testing.assert_array_equal(origin, np.arange(0, 1000, 2))
    chain.blinded = False
    chain.rebase(10_000_000)
    (t, _, _), _ = run(chain, *(column[:0] for column in light), 1e7)
    assert len(t) == 0


def test_it_latches_above_its_rate_and_not_below():
    for rate_hz, latches in ((0.9e6, False), (1.1e6, True)):
        time_ps = np.arange(5000) * (1e12 / rate_hz)
        chain = DetectorChain(np.random.SFC64(1), latch_hz=1e6)
        (t, _, _), _ = run(chain, time_ps, np.zeros(5000, np.uint8), np.arange(5000), 1e12)
        assert chain.latched == latches
        assert len(t) == (1024 if latches else 5000)


def test_bright_light_ignores_gate_and_recovery():
    time_ps = np.arange(100) * 2000.0 + 500  # between the gates
    for bright in (0, 1):
        chain = DetectorChain(
            np.random.SFC64(1), dead_time_ps=1000, recovery_ps=1e9, period_ps=1000, gate_width_ps=500, gate_fwhm_ps=100
        )
        (_, cause, _), _ = run(chain, time_ps, np.full(100, bright, np.uint8), np.arange(100), 1e6)
        assert cause.tolist() == [4] * 100 * bright


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"child_probability": [0.1], "child_tau_ps": []}, "as many"),
        ({"child_probability": [0.1] * 9, "child_tau_ps": [1.0] * 9}, "at most 8"),
        ({"gate_width_ps": 11.0, "period_ps": 10}, "period"),
        ({"period_ps": 0}, "period"),
        ({"period_ps": -5}, "period"),
        ({"gate_width_ps": -1.0}, "gate_width_ps"),
        ({"gate_width_ps": np.nan, "period_ps": 10}, "gate_width_ps"),
        ({"gate_centre_ps": np.inf}, "gate_centre_ps"),
        ({"dark_hz": -1.0}, "dark_hz"),
        ({"background_hz": np.nan}, "background_hz"),
        ({"dead_time_ps": np.nan}, "dead_time_ps"),
        ({"tail_weight": 1.1}, "tail_weight"),
        ({"child_probability": [-0.1], "child_tau_ps": [1.0]}, "child_probability"),
        ({"child_probability": [0.6, 0.6], "child_tau_ps": [1.0, 2.0]}, "the sum"),
        ({"child_probability": [0.1], "child_tau_ps": [np.nan]}, "child_tau_ps"),
        ({"power_law": ()}, "power_law: give"),
        ({"power_law": (0.1, 1.0)}, "power_law: give"),
        ({"power_law": (0.1, 1.0, 0.0, 5.0)}, "shortest"),
        ({"power_law": (np.nan, 1.0, 1.0, 5.0)}, "power_law: probability"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DetectorChain(np.random.SFC64(0), **arguments)


def test_numbers_are_counted_where_none_are_given():
    time_ps, bright, number = arrivals(4, n=300)
    found = []
    for numbers, first in ((number, 0), (None, 7)):
        out = np.empty(400), np.empty(400, np.uint8), np.empty(400, np.uint8), np.empty(400, np.int64)
        chain = DetectorChain(np.random.SFC64(1), dark_hz=1e5, dead_time_ps=100)
        used, n = detector.detect([chain], time_ps, np.zeros_like(bright), bright, numbers, first, 1e12, *out)
        assert used == 300
        found.append(out[3][:n].tolist())
    assert found[0] == found[1]
    assert max(found[0]) == 306


def test_arrays_and_cells_that_do_not_fit_are_refused():
    chain = DetectorChain(np.random.SFC64(0), period_ps=10, gate_width_ps=5)
    f, u, i = np.zeros(2), np.zeros(2, np.uint8), np.zeros(2, np.int64)
    for arguments, message in (
        (([chain], f, u, u[:1], i, 0, 1.0, f, u, u, i), "bright"),
        (([chain], f, u, u, i[:1], 0, 1.0, f, u, u, i), "number"),
        (([chain], f, u, u, None, 0, 1.0, f, u, u, i[:1]), "origin"),
        (([chain], f, u + 1, u, None, 0, 1.0, f, u, u, i), "1 is none of 1"),
        (([], f, u, u, i, 0, 1.0, f, u, u, i), "1 to 8"),
        (([chain] * 9, f, u, u, i, 0, 1.0, f, u, u, i), "1 to 8"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.detect(*arguments)
    with pytest.raises(ValueError, match="periods"):
        chain.rebase(11)
    with pytest.raises(ValueError, match="dark_hz"):
        chain.set_noise(np.inf, 0.0)
    with pytest.raises(TypeError):
        DetectorChain.__new__(DetectorChain)
    assert detector.__doc__

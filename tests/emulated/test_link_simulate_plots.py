"""The plots of simulated links: with almost no clicks too, and with pulses, between which nothing happens."""

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from qkdhw.cli import app
from qkdhw_emulators.optics.presets import dump_setup, load_setup, preset_names
from qkdhw_emulators.optics.setup import OpticalSetup
from qkdhw_emulators.simulate.curves import delay_correlation, interval_density
from qkdhw_emulators.simulate.matching import Clicks
from qkdhw_emulators.simulate.observation import INTERVAL_EDGES_PS, LAG_BINS, LAG_PULSES, PairCounts
from qkdhw_emulators.simulate.run import LinkRun, RunOptions

PAIRS = "sfifteen-bbm92"
SHORT = ["--duration", 1e-9]  # a cell
DARK = ["--set", "receiver.detectors.dark_count_rate_hz=0"]
BLIND = [*DARK, "--set", "receiver.detectors.efficiency=0"]
PARALYSED = ["dead_time_kind=paralysable", "dead_time_ns=1e8"]


def pulsed_pairs(rate_hz=100_000_000, jitter_ps=60.0, mean_pairs=0.05) -> OpticalSetup:
    setup = load_setup(PAIRS)
    kind = {"kind": "pair-pulsed", "pulse_rate_hz": rate_hz, "mean_pairs": mean_pairs}
    ends = {}
    for name in ("receiver", "sender_receiver"):
        end = getattr(setup, name)
        detectors = tuple(d.model_copy(update={"jitter_ps": jitter_ps}) for d in end.detectors)
        ends[name] = end.model_copy(update={"detectors": detectors})
    return setup.model_copy(update={"source": setup.source.model_copy(update=kind), **ends})


def noted(folder, link, *arguments):
    """Run a link, and return the notes in its plots by their names; each plot has its two files."""
    command = ["link", "simulate", str(link), *map(str, arguments), "--plots", "--out", str(folder), "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    plots = json.loads(done.stdout)["plots"]
    assert {p.name for p in (folder / "plots").iterdir()} == {f"{name}.{kind}" for name in plots for kind in ("png", "svg")}  # fmt: skip
    drawn = {name: (folder / "plots" / f"{name}.svg").read_text() for name in plots}
    note = re.compile(r"<!-- ((?:no|too few) [^>]*) -->")
    return {name: found[1] for name, text in drawn.items() if (found := note.search(text))}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("preset", preset_names())
def test_plots_of_no_click_say_so(tmp_path, preset):
    notes = noted(tmp_path / "run", preset, *SHORT, *BLIND)
    kinds = {"counts", "intervals", "g2", "qber", "saturation"} | ({"gate"} if preset != PAIRS else set())
    assert set(notes) == (kinds - {"counts"} if preset == PAIRS else kinds)  # Alice has clicks
    assert all(note.startswith(("no ", "too few ")) for note in notes.values())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("link", "arguments"),
    [
        ("geneva-2018-404km", ["--duration", 0.1]),
        ("lim-2014", ["--pulses", 1, "--set", "channel.length_km=300"]),
        ("lim-2014", [*SHORT, "--attack", "fibre-cut", *DARK]),
        ("lim-2014", [*SHORT, "--set", "receiver.detectors.latches_above_hz=1", "--set", "channel.length_km=200"]),
        ("idq-clavis", [*SHORT, *(part for field in PARALYSED for part in ("--set", f"receiver.detectors.{field}"))]),
        (PAIRS, [*SHORT, "--set", "source.pair_rate_hz=0", "--set", "receiver.detectors.dark_count_rate_hz=1"]),
    ],
)
def test_plots_of_almost_no_click_are_drawn(tmp_path, link, arguments):
    assert {"g2", "intervals"} <= set(noted(tmp_path / "run", link, *arguments))


def test_enough_clicks_have_no_note(tmp_path):
    file = tmp_path / "pulsed.toml"
    file.write_text(dump_setup(pulsed_pairs()))
    assert noted(tmp_path / "run", file, "--events", 20_000) == {}
    assert "Bob's pulse less Alice's" in (tmp_path / "run" / "plots" / "g2.svg").read_text()


def test_g2_of_pulsed_pairs_is_against_the_pulses_beside():
    with LinkRun(RunOptions(pulsed_pairs(), events=100_000)) as run:
        pairs = run.run().pairs
    curve = delay_correlation(pairs.delays.astype(float), pairs.level, pairs.half_ps / 10_000)
    assert np.allclose(curve.x, np.arange(-LAG_PULSES, LAG_PULSES + 1))
    assert curve.y[LAG_PULSES] == pytest.approx(1.5 + 1 / (2 * 0.05), rel=0.06)  # <n^2> / <n>^2 of two thermal modes
    beside = np.delete(curve.y, LAG_PULSES)
    assert beside.mean() == pytest.approx(1, abs=0.03)
    assert np.all(np.abs(beside - 1) < 0.25)


def clicks_at(times_ps) -> Clicks:
    n = len(times_ps)
    none = np.zeros(n, np.uint8)
    return Clicks(none, np.array(times_ps, float), np.full(n, -1), np.full(n, np.nan), none, none)


def test_coincidences_are_counted_about_whole_periods():
    pairs = PairCounts(pulsed_pairs())
    near_ps, far_ps = 0.49 * pairs.window_ps, 0.51 * pairs.window_ps
    times = [1e9 + k * 10_000 + off for k in (-20, -3, 0, 20) for off in (-far_ps, -near_ps, near_ps, far_ps)]
    pairs.add(clicks_at([1e9]), clicks_at([*times, 1e9 + 210_000]))
    expected = np.zeros(2 * LAG_PULSES + 1, int)
    expected[[0, LAG_PULSES - 3, LAG_PULSES, 2 * LAG_PULSES]] = 2
    assert pairs.delays.tolist() == expected.tolist()


@pytest.mark.parametrize(("rate_hz", "pulses"), [(100_000_000, 1), (1_000_000_000, 3), (5_000_000_000, 9)])
def test_bins_of_delay_have_odd_numbers_of_pulses_and_reach_ten_windows(rate_hz, pulses):
    pairs = PairCounts(pulsed_pairs(rate_hz, jitter_ps=400.0))
    bin_ps = 2 * pairs.half_ps / len(pairs.delays)
    assert bin_ps == pytest.approx(pulses * 1e12 / rate_hz)
    assert pairs.half_ps >= 10 * pairs.window_ps
    pairs.add(clicks_at([1e9]), clicks_at([1e9 + bin_ps + 1, 1e9 - 2 * bin_ps - 1]))
    assert np.flatnonzero(pairs.delays).tolist() == [LAG_PULSES - 2, LAG_PULSES + 1]


def test_delays_with_a_steady_pump_are_over_ten_windows():
    pairs = PairCounts(load_setup(PAIRS))
    assert (len(pairs.delays), pairs.half_ps) == (LAG_BINS, 10 * pairs.window_ps)


@pytest.mark.parametrize("jitter_ps", [0.0, 300.0, 3000.0])
@pytest.mark.parametrize("period_ps", [1000, 10_000, 200_000])
def test_intervals_of_pulses_do_not_beat_with_the_bins(period_ps, jitter_ps):
    rng = np.random.default_rng(3)
    dead, mean = 5, 300
    pulses = dead + rng.geometric(1 / mean, 1_000_000)
    intervals = pulses * period_ps + rng.normal(0, min(jitter_ps, period_ps / 10), len(pulses))
    counted = np.histogram(intervals, INTERVAL_EDGES_PS)[0]
    centres_ps, per_ps = interval_density(INTERVAL_EDGES_PS, counted, period_ps)
    expected = len(pulses) / mean / period_ps * np.exp(-(centres_ps / period_ps - dead) / mean)
    shown = (centres_ps > (dead + 1.5) * period_ps) & (centres_ps < 300 * period_ps)
    assert shown.sum() > 20
    assert np.allclose(per_ps[shown], expected[shown], rtol=0.12)


def test_intervals_without_pulses_keep_their_bins():
    rng = np.random.default_rng(3)
    counted = np.histogram(rng.exponential(1e6, 100_000), INTERVAL_EDGES_PS)[0]
    centres_ps, per_ps = interval_density(INTERVAL_EDGES_PS, counted, 0)
    some = counted > 0
    assert len(centres_ps) == some.sum()
    assert np.array_equal(per_ps, (counted / np.diff(INTERVAL_EDGES_PS))[some])
    joined_ps, _ = interval_density(INTERVAL_EDGES_PS, counted, 100_000)  # below half a period too
    assert np.array_equal(joined_ps[joined_ps < 40_000], centres_ps[centres_ps < 40_000])

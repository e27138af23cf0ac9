"""What `qkdhw link simulate` counts of a run, and how it says it."""

import json
import re

import numpy as np
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from qkdhw.cli import app
from qkdhw.errors import ConfigurationError
from qkdhw.formats import open_events
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.simulate import command, run
from qkdhw_emulators.simulate.changes import changed_setup
from qkdhw_emulators.simulate.curves import delay_correlation, detector_correlation, qber_over_time, wilson
from qkdhw_emulators.simulate.matching import Clicks
from qkdhw_emulators.simulate.observation import PairCounts, Timeline
from qkdhw_emulators.simulate.run import LinkRun, RunOptions

PULSED = "lim-2014"


def simulate(*arguments):
    done = CliRunner().invoke(app, ["link", "simulate", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def simulate_json(*arguments):
    return json.loads(simulate(*arguments, "--json"))


def observed_of(preset, *changes, **options):
    with LinkRun(RunOptions(changed_setup(load_setup(preset), list(changes)), **options)) as link:
        return link.run()


def test_the_gate_plot_has_all_clicks_of_each_detector():
    """Of four detectors: 200 bins a detector are more than a byte holds."""
    observed = observed_of("rusca-2018", duration_s=0.02)
    by_detector = observed.prepared.phases.sum(axis=1)
    assert len(by_detector) >= 3
    assert np.abs(by_detector - observed.bob.clicks).max() <= 3


def test_noise_before_the_light_is_in_the_file_and_in_no_rate(tmp_path):
    """A tagger that waits ten seconds for a tenth of a second of light."""
    report = simulate_json(
        PULSED, "--set", "tagger.clock_offset_s=10", "--duration", 0.1, "--attack", "fibre-cut", "--out", tmp_path / "a"
    )
    before, after = report["events_before_light"]["bob"], report["events"]["bob"]
    assert before > 50 * after
    assert sum(len(b) for b in open_events(tmp_path / "a" / "bob.parquet").read_blocks()) == before + after
    asked = simulate_json(PULSED, "--set", "tagger.clock_offset_s=10", "--events", 100_000)
    assert asked["events"]["bob"] >= 100_000
    assert max(abs(row["z"]) for row in asked["detectors"]) < 5


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        (PULSED, ["channel.length_km=2000", "receiver.detectors.dark_count_rate_hz=30000"]),
        ("idq-clavis", ["receiver.gate.offset_ps=40000", "receiver.detectors.dark_count_rate_hz=1e6"]),
    ],
)
def test_dark_counts_of_a_link_without_light_are_detections(preset, changes):
    """A clock that nothing has been seen on yet is as well known as any."""
    drifts = ["tagger.clock_ppm=3", "tagger.clock_drift_ppm_per_s=1", "tagger.clock_walk_ppm=0.5"]
    report = simulate_json(preset, "--events", 20_000, *(w for c in [*changes, *drifts] for w in ("--set", c)))
    assert sum(row["detections"] for row in report["bases"]) > 5000
    for row in report["bases"]:
        assert abs(row["gain_z"]) < 5
        assert abs(row["qber_z"] or 0) < 5
        assert row["detections"] < 1000 or row["qber"] == pytest.approx(0.5, abs=0.05)


def test_it_does_not_matter_when_a_fibre_is_cut():
    noisy = ["--set", "receiver.detectors.dark_count_rate_hz=3000", "--set", "channel.length_km=100"]
    first, last = (
        simulate_json(PULSED, *noisy, "--duration", 0.4, "--attack", f"fibre-cut:{when}")["bases"][0]
        for when in ("until_s=0.2", "from_s=0.2")
    )
    for row in (first, last):
        assert row["detections"] > 2000
        assert row["qber"] > 1.3 * row["expected_qber"]
    error = sum(row["qber"] * (1 - row["qber"]) / row["detections"] for row in (first, last)) ** 0.5
    assert abs(first["qber"] - last["qber"]) < 5 * error


def test_a_clock_that_steps_and_a_way_that_changes_lose_no_pulses():
    attacks = ["clock-steering:step_ps=12345,ppm=3,ppm_per_s=0.5,from_s=0.1", "fibre-splice:from_s=0.2,loss_db=0"]
    report = simulate_json(PULSED, "--duration", 0.3, *(w for a in attacks for w in ("--attack", a)))
    assert abs(report["bases"][0]["qber_z"]) < 5


def test_a_pair_source_counts_each_end_from_its_own_begin():
    report = simulate_json(
        "sfifteen-bbm92", "--set", "sender_tagger.clock_offset_s=3", "--set", "tagger.clock_offset_s=0", "--duration", 1
    )
    assert report["events_before_light"]["bob"] < 10 < report["events_before_light"]["alice"]
    assert max(abs(row["z"]) for row in report["detectors"]) < 5


def test_events_that_never_come_end_after_the_longest_wait(monkeypatch):
    monkeypatch.setattr(run, "LONGEST_WAIT_S", 1.0)
    asked = [PULSED, "--events", 1_000_000, "--attack", "fibre-cut"]
    report = simulate_json(*asked)
    assert report["ended_by"] == "longest wait"
    assert report["duration_s"] == pytest.approx(1.0, abs=report["cell_s"])
    assert "--duration sets a longer time" in simulate(*asked)
    assert simulate_json(*asked, "--duration", 1.5)["ended_by"] == "duration"


def test_a_basis_that_the_receiver_has_no_detectors_for_has_no_row():
    asked = ["rusca-2018", "--set", "source.states=6", "--duration", 0.05]
    report = simulate_json(*asked)
    assert {row["basis"] for row in report["bases"]} == {"key", "test"}
    assert max(abs(row["gain_z"]) for row in report["bases"]) < 5
    assert "third" not in simulate(*asked)


def test_a_single_photon_source_has_no_intensities():
    report = simulate_json(
        PULSED, "--set", "source.kind=single-photon", "--set", "source.single_photon_probability=0.5", "--duration", 0.1
    )
    assert [(row["basis"], row["mean_photon_number"]) for row in report["bases"]] == [("key", None), ("test", None)]
    assert max(abs(row["gain_z"]) for row in report["bases"]) < 5


BRIGHT = [
    "source.pulse_fwhm_ps=100",
    "source.pulse_rate_hz=1e9",
    "channel.length_km=0",
    "receiver.detectors.afterpulses=[]",
]


@pytest.mark.parametrize(("dead_ns", "known"), [(0, True), (0.02, False), (0.5, True)])
def test_nothing_is_expected_of_detectors_that_may_click_twice_in_a_pulse(dead_ns, known):
    changes = [*BRIGHT, f"receiver.detectors.dead_time_ns={dead_ns}"]
    asked = [PULSED, "--duration", 0.05, *(w for c in changes for w in ("--set", c))]
    for row in simulate_json(*asked)["detectors"]:
        assert (row["expected_rate_hz"] is not None) == known == (row["z"] is not None)
        assert abs(row["z"] or 0) < 5
    assert ("dead time ends within a pulse" in simulate(*asked)) == (not known)


def test_more_than_was_asked_for_is_said():
    assert "asked for 100 pulses, ran " in simulate(PULSED, "--pulses", 100)
    assert "asked for 0.001 s, ran " in simulate(PULSED, "--duration", 0.001)


def test_attacks_are_told_with_their_times_and_whether_they_began():
    given = ["--attack", "intercept-resend:fraction=0.3,from_s=0.05,until_s=0.08"]
    assert "fraction=0.3" in simulate(PULSED, "--duration", 0.1, *given)
    assert "from_s=0.05, until_s=0.08" in simulate(PULSED, "--duration", 0.1, *given)
    assert "WARNING" not in simulate(PULSED, "--duration", 0.1, *given)
    assert "WARNING: intercept-resend never began" in simulate(PULSED, "--duration", 0.04, *given)
    assert [a["began"] for a in simulate_json(PULSED, "--duration", 0.1, *given)["attacks"]] == [True]
    assert [a["began"] for a in simulate_json(PULSED, "--duration", 0.04, *given)["attacks"]] == [False]


def test_a_short_run_has_the_events_of_its_last_microseconds(tmp_path):
    """A tagger gives events in order, and so some time after their light: 10 us of 200 are a twentieth."""
    bright = ["--set", "channel.length_km=0", "--set", "source.pulse_rate_hz=1000000000"]
    bright += ["--set", "receiver.detectors.efficiency=0.5", "--set", "receiver.detectors.dead_time_ns=0"]
    report = simulate_json("lim-2014", "--duration", 0.0002, *bright, "--record", "full", "--out", tmp_path / "run")
    assert report["duration_s"] < 0.0005
    key = report["bases"][0]
    expected = key["pulses"] * key["expected_gain"]
    assert abs(key["detections"] - expected) < 4 * expected**0.5
    assert key["detections"] - 0.95 * expected > 4 * expected**0.5
    record = pyarrow.parquet.read_table(tmp_path / "run" / "alice.record.parquet")
    assert record.column("pulse").to_numpy().tolist() == list(range(report["pulses"]))


@pytest.mark.parametrize(
    "attack", ["background-light:rate_hz=1e9,", "blinding-cw:", "clock-steering:step_ps=1e8,ppm=0,", "fibre-cut:"]
)
def test_an_attack_that_begins_where_a_run_ends_changes_nothing_of_it(attack):
    """Events of its last microseconds are given in later cells."""
    clean = simulate_json("lim-2014", "--pulses", 1_572_864)
    assert clean["pulses"] == 1_572_864
    attacked = simulate_json("lim-2014", "--pulses", 1_572_864, "--attack", f"{attack}from_s=0.01572864")
    assert [a["began"] for a in attacked["attacks"]] == [False]
    assert attacked["events"] == clean["events"]
    assert attacked["bases"] == clean["bases"]


PULSED_PAIRS = ["source.kind=pair-pulsed", "source.pair_rate_hz=0", "source.mean_pairs=1"]
PULSED_PAIRS += [f"{end}.detectors.efficiency=0.8" for end in ("receiver", "sender_receiver")]


@pytest.mark.parametrize(
    ("rate_hz", "duration_s", "misalignment", "dead_time_ns"),
    [(10_000_000, 0.2, "[0.1,0.1,0]", 0), (1_000_000_000, 0.0006, "[0,0,0]", 50)],
)
def test_singles_of_bright_pulsed_pairs_are_as_expected(rate_hz, duration_s, misalignment, dead_time_ns):
    """Light astray mixes the two thermal modes; a detector is live again exactly a dead time after a click."""
    changes = [*PULSED_PAIRS, f"source.pulse_rate_hz={rate_hz}"]
    for end in ("receiver", "sender_receiver"):
        changes += [f"{end}.misalignment={misalignment}", f"{end}.detectors.dead_time_ns={dead_time_ns}"]
    sets = [part for change in changes for part in ("--set", change)]
    detectors = simulate_json("sfifteen-bbm92", "--duration", duration_s, *sets)["detectors"]
    assert min(d["clicks"] for d in detectors) > 10_000
    assert max(abs(d["z"]) for d in detectors) < 4.5


def test_an_attack_at_the_end_of_all_times_never_begins():
    said = simulate(PULSED, "--duration", 0.01, "--attack", "fibre-cut:from_s=1e308")
    assert "WARNING: fibre-cut never began" in said


def test_a_title_moves_no_cursor(tmp_path):
    file = tmp_path / "link.toml"
    simulate(PULSED, "--write-preset", file)
    lines = [
        'title = "\\u001b[2J\\u0007 [red]evil"' if line.startswith("title = ") else line
        for line in file.read_text().splitlines()
    ]
    file.write_text("\n".join(lines))
    said = simulate(file, "--duration", 0.01)
    assert "\x1b[2J" not in said
    assert r"\x1b[2J\x07 [red]evil" in said


def test_monitors_that_moved_are_a_table():
    quiet = simulate(PULSED, "--duration", 0.02)
    assert "monitor" not in quiet
    shown = simulate(PULSED, "--duration", 0.02, "--attack", "blinding-cw")
    [line] = [line.split() for line in shown.splitlines() if line.startswith(" photocurrent")]
    assert line[1] == "0.01"
    assert float(line[3]) > 1
    assert line[4] == "ua"


def test_what_was_published_is_met_within_its_error():
    published = simulate_json("toshiba-t12-2013", "--events", 100_000)["published"]
    gain, qber = published["gain_key_0"], published["qber_key_0"]
    assert abs(gain["observed"] - gain["published"]) < 5 * gain["error"] < 0.05 * gain["published"]
    assert 0 < qber["error"] < 0.01
    assert published["secret_key_rate_hz"]["error"] is None


@pytest.fixture
def pulsed_pairs(tmp_path):
    """Strong pulses of pairs, so that many have two clicks at an end, with errors, losses and noise."""
    file = tmp_path / "own.toml"
    dark, lit = "{ efficiency = 0.5, dark_count_rate_hz = 3e4, jitter_ps = 50 }", "{ efficiency = 0.6 }"
    file.write_text(
        '[source]\nkind = "pair-pulsed"\npulse_rate_hz = 100_000_000\nmean_pairs = 0.05\n'
        "preparation_error = [0.01, 0.02, 0.0]\n[channel]\nbackground_rate_hz = 2e4\nlength_km = 5\n"
        "[receiver]\nkey_basis_probability = 0.7\nmisalignment = [0.01, 0.02, 0.0]\ntest_loss_db = 1.0\n"
        f"detectors = [{', '.join([dark] * 4)}]\n[sender_receiver]\ndetectors = [{', '.join([lit] * 4)}]\n"
    )
    return file


@pytest.mark.parametrize("dark_hz", [3e4, 2e6])
def test_pulsed_pairs_are_counted_by_pulse_as_the_closed_form_says(pulsed_pairs, dark_hz):
    dark = f"receiver.detectors.dark_count_rate_hz={dark_hz}"
    report = simulate_json(pulsed_pairs, "--duration", 0.1, "--set", dark)
    pairs = report["pairs"]
    assert (pairs["counted"], pairs["window_ps"], pairs["accidental"]) == ("pulses", 10_000, None)
    assert [row["basis"] for row in pairs["bases"]] == ["key", "test"]
    for row in pairs["bases"]:
        assert row["coincidences"] > 30_000
        assert abs(row["z"]) < 5
        assert abs(row["qber_z"]) < 5
    for row in report["detectors"]:
        assert abs(row["z"]) < 5
    assert "pulses with clicks at both ends" in simulate(pulsed_pairs, "--duration", 0.01)


@pytest.mark.parametrize("dead_ns", [1, 47, 58])
def test_dead_times_of_pulsed_pairs(pulsed_pairs, dead_ns):
    """Clicks of a detector follow it; what it does to coincidences is in closed form only if no pulse is blinded."""
    changes = [f"receiver.detectors.dead_time_ns={dead_ns}", "receiver.detectors.dark_count_rate_hz=0",
               "channel.background_rate_hz=0"]  # fmt: skip
    report = simulate_json(pulsed_pairs, "--duration", 0.2, *(w for c in changes for w in ("--set", c)))
    assert max(abs(row["z"]) for row in report["detectors"]) < 5
    known = [row["expected"] is not None for row in report["pairs"]["bases"]]
    assert known == [dead_ns == 1] * 2
    said = simulate(pulsed_pairs, "--duration", 0.01, *(w for c in changes for w in ("--set", c)))
    assert ("no closed form holds" in said) == (dead_ns > 1)


@pytest.mark.parametrize(
    "change",
    ["receiver.detectors.0.efficiency=0.3", 'sender_receiver.detectors.afterpulses=[{probability=0.1, tau_ns=50}]',
     "receiver.detectors.jitter_ps=3000"],
)  # fmt: skip
def test_no_closed_form_is_used_where_it_does_not_hold(pulsed_pairs, change):
    key = simulate_json(pulsed_pairs, "--duration", 0.01, "--set", change)["pairs"]["bases"][0]
    assert [key[name] for name in ("expected", "z", "expected_qber", "qber_z")] == [None] * 4
    assert key["qber"] > 0


def test_a_pulse_with_two_clicks_at_an_end_is_one_coincidence_and_half_an_error():
    setup = load_setup("sfifteen-bbm92")
    source = setup.source.model_copy(update={"kind": "pair-pulsed"})
    pairs = PairCounts(setup.model_copy(update={"source": source}))

    def clicks(pulse, basis, bit):
        channel = np.array([0] * len(pulse), np.uint8)
        times = np.array(pulse) * float(source.period_ps)
        return Clicks(channel, times, np.array(pulse), times * 0, np.array(basis, np.uint8), np.array(bit, np.uint8))

    pairs.add(
        clicks([1, 1, 2, 3, -1], [0, 0, 0, 1, 0], [0, 1, 1, 0, 0]), clicks([1, 2, 3, 3, -1], [0, 0, 1, 0, 0], [0] * 5)
    )
    assert pairs.coincidences.sum() == 4
    assert pairs.coincidences[0, :, 0].tolist() == [[0.5, 0], [1.5, 0]]
    assert pairs.coincidences[1, 0, 1, 0] == pairs.coincidences[1, 0, 0, 0] == 1


def test_writing_a_preset_says_so(tmp_path):
    assert simulate(PULSED, "--write-preset", tmp_path / "a.toml") == f"wrote {tmp_path / 'a.toml'}\n"
    assert simulate_json(PULSED, "--write-preset", tmp_path / "b.toml") == {"written": str(tmp_path / "b.toml")}


def test_clicks_outside_of_all_windows_are_no_part_of_correlations():
    """An interferometer's side bins are many clicks and of no pulse."""
    observed = observed_of("geneva-2018", "channel.length_km=0", duration_s=0.1)
    assert observed.prepared.matched.sum() < 0.95 * observed.bob.clicks.sum()
    curve = detector_correlation(observed.prepared, observed.pulses)
    assert curve.x.tolist() == list(range(21))
    far = curve.y[10:].mean()
    assert far == pytest.approx(1, abs=0.1)


def test_correlations_have_no_points_without_data():
    observed = observed_of(PULSED, duration_s=0.001, schedule=Schedule.from_arguments(["fibre-cut"]))
    assert len(detector_correlation(observed.prepared, observed.pulses).x) == 0
    assert len(delay_correlation(np.zeros(201), 0.0, 1.0).x) == 0
    curve = delay_correlation(np.array([0.0, 4.0, 100.0]), 10.0, 3.0)
    assert curve.x.tolist() == [-2, 0, 2]
    assert curve.low[0] == 0 < curve.high[0]
    assert curve.high[1] - curve.y[1] > curve.y[1] - curve.low[1]


def test_bars_of_error_rates_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    for share, of in ((0.02, 100), (0.3, 50), (0.005, 100)):
        low, high = wilson(rng.binomial(of, share, 20_000).astype(float), np.full(20_000, float(of)))
        assert 0.55 < ((low <= share) & (share <= high)).mean() < 0.95
    assert wilson(np.zeros(1), np.full(1, 10.0))[1] > 0


def test_error_rates_over_time_are_of_slices_with_enough_in_them():
    line = Timeline(4)
    for _ in range(100):
        line.add(40, 2, 0, 0)
    key = qber_over_time(line, 0, weight=2, cell_s=0.1)
    assert key.x.tolist() == pytest.approx(np.arange(0.5, 10))
    assert np.all(key.y == 0.025)
    assert np.all(key.bars > 0)
    assert len(qber_over_time(line, 2, weight=2, cell_s=0.1).x) == 0


@pytest.mark.parametrize("end", [["--duration", 1e9], ["--events", 10**15, "--duration", 1e9], ["--events", 10**12]])
def test_a_record_that_no_disk_holds_is_refused(tmp_path, end):
    asked = ["link", "simulate", PULSED, "--record", "full", "--out", tmp_path / "run", *end]
    done = CliRunner().invoke(app, [*map(str, asked)])
    assert isinstance(done.exception, ConfigurationError)
    assert "--record detected" in (done.exception.remedy or "")
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_that_nobody_looks_at_says_how_long_it_may_be(monkeypatch):
    monkeypatch.setattr(command, "FIRST_ESTIMATE_S", 0.0)
    done = CliRunner().invoke(app, ["link", "simulate", PULSED, "--duration", "0.3", "--json"])
    assert re.search(r"lim-2014: .* events, .*; \d+\.\d\d% in \d+ s, about \d+ s to go\n", done.stderr)
    assert json.loads(done.stdout)["link"] == PULSED

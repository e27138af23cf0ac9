"""`qkdhw link simulate`: what its files hold, what it says, and that it leaves whole folders or none."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from qkdhw.cli import app, main
from qkdhw.formats import FORMATS, open_events
from qkdhw.model import EventKind
from qkdhw_emulators.optics.attacks.timing import ClockSteering
from qkdhw_emulators.optics.light_stage import Purpose
from qkdhw_emulators.optics.presets import load_setup, preset_names
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.setup import OpticalSetup
from qkdhw_emulators.optics.simulation import LinkSimulation
from qkdhw_emulators.simulate import writers
from qkdhw_emulators.simulate.matching import EndClock, PulseMatcher
from qkdhw_emulators.simulate.observation import SLICES, Timeline
from qkdhw_emulators.simulate.run import LinkRun, RunOptions
from qkdhw_emulators.simulate.steady_pump import expected_singles

PULSED = "lim-2014"
PAIRS = "sfifteen-bbm92"
ENOUGH = ["--events", "30000"]


def simulate(*arguments):
    """Return what it prints on standard output; where a run takes long, standard error says how much longer."""
    done = CliRunner().invoke(app, ["link", "simulate", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def simulate_json(*arguments):
    return json.loads(simulate(*arguments, "--json"))


def refused(capsys, monkeypatch, *arguments):
    """Run the program as people do and return what it said on standard error."""
    monkeypatch.setattr(sys, "argv", ["qkdhw", "link", "simulate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


def cells_of(setup, n, seed=1):
    with LinkSimulation(setup, seed=seed) as simulation:
        return [simulation.next_cell() for _ in range(n)]


def written(path, format_name=None):
    """Read a file of events: times in picoseconds as exact fractions of one another, inputs, tick."""
    source = open_events(path, format_name)
    blocks = list(source.read_blocks())
    ticks, inputs, kind = (np.concatenate([getattr(b, n) for b in blocks]) for n in ("time_ticks", "channel", "kind"))
    photon = kind == EventKind.PHOTON
    assert set(kind[~photon].tolist()) <= {EventKind.DUMMY}  # which some formats need so that no wrap is missed
    return ticks[photon], inputs[photon], source.tick_ps


def files_in(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


TOO_SMALL = ("tdc1", "idq")  # ticks of 2 ns; one channel


@pytest.mark.parametrize("format_name", TOO_SMALL)
def test_a_format_that_cannot_hold_the_events_is_refused_before_the_run(tmp_path, capsys, monkeypatch, format_name):
    said = refused(capsys, monkeypatch, PAIRS, "--format", format_name, "--out", tmp_path / "run")
    assert f"--format {format_name} cannot hold" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format_name", [name for name in FORMATS if name not in TOO_SMALL])
def test_both_ends_read_back_as_they_were_simulated_from_every_format(tmp_path, format_name):
    simulate(PAIRS, "--duration", "0.3", "--format", format_name, "--out", tmp_path / "run")
    cells = cells_of(load_setup(PAIRS), 30)
    for end in ("alice", "bob"):
        [path] = [p for p in (tmp_path / "run").iterdir() if p.name.startswith(f"{end}.")]
        ticks, inputs, tick_ps = written(path, format_name)
        events = [getattr(cell, end) for cell in cells]
        ratio = 125 / tick_ps
        assert np.array_equal(ticks, np.concatenate([e.ticks for e in events]) * int(ratio))
        assert np.array_equal(inputs, np.concatenate([e.channel for e in events]) + 1)
        assert len(ticks) > 5000


def test_the_record_holds_the_choice_of_each_detected_pulse_once(tmp_path):
    report = simulate_json("toshiba-t12-2013", *ENOUGH, "--truth", "--out", tmp_path / "run")
    record = pyarrow.parquet.read_table(tmp_path / "run" / "alice.record.parquet")
    pulses = record["pulse"].to_numpy()
    assert record.schema.metadata[b"qkdhw.pulses"] == b"detected"
    assert len(np.unique(pulses)) == len(pulses)
    assert pulses.max() < report["pulses"]
    with LinkSimulation(load_setup("toshiba-t12-2013"), seed=1) as simulation:
        choice = simulation.prepared_at(pulses)
    found = (record["intensity"].to_numpy() * 3 + record["basis"].to_numpy()) * 2 + record["bit"].to_numpy()
    assert np.array_equal(found, choice)
    truth = pyarrow.parquet.read_table(tmp_path / "run" / "bob.truth.parquet")
    lit = truth["pulse"].to_numpy()
    assert truth.num_rows == report["events"]["bob"] + report["events_before_light"]["bob"]
    assert np.array_equal(lit >= 0, np.isin(truth["cause"].to_numpy(), (0, 4)))
    assert np.isin(lit[lit >= 0], pulses).mean() > 0.999


def test_a_short_run_records_all_pulses(tmp_path):
    report = simulate_json(PULSED, "--pulses", 2_000_000, "--out", tmp_path / "run")
    record = pyarrow.parquet.read_table(tmp_path / "run" / "alice.record.parquet")
    assert record.schema.metadata[b"qkdhw.pulses"] == b"all"
    assert np.array_equal(record["pulse"].to_numpy(), np.arange(report["pulses"]))
    with LinkSimulation(load_setup(PULSED), seed=1) as simulation:
        choice = simulation.prepared(0, report["pulses"])
    assert np.array_equal(record["bit"].to_numpy(), choice & 1)
    assert np.array_equal(record["basis"].to_numpy(), choice // 2 % 3)
    assert np.array_equal(record["intensity"].to_numpy(), choice // 6)


def test_only_what_was_asked_for_is_written(tmp_path):
    simulate(PULSED, *ENOUGH, "--record", "none", "--out", tmp_path / "run")
    assert set(files_in(tmp_path / "run")) == {"bob.parquet", "link.toml", "report.json"}
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run" / "bob.parquet").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("preset", [PULSED, PAIRS])
def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(tmp_path, preset):
    common = [preset, *ENOUGH, "--truth", "--format", "hdf5", "--attack", "background-light:from_s=0.02"]
    simulate(*common, "--out", tmp_path / "a")
    simulate(*common, "--threads", 2, "--out", tmp_path / "b")
    simulate(*common, "--seed", 2, "--out", tmp_path / "c")
    first, second, other = (files_in(tmp_path / name) for name in "abc")
    assert first == second
    assert first["bob.h5"] != other["bob.h5"]


def test_the_size_of_blocks_on_the_way_to_a_file_does_not_matter(tmp_path, monkeypatch):
    simulate(PULSED, *ENOUGH, "--format", "ptu", "--out", tmp_path / "a")
    monkeypatch.setattr(writers, "BLOCK_ROWS", 1000)
    simulate(PULSED, *ENOUGH, "--format", "ptu", "--out", tmp_path / "b")
    assert (tmp_path / "a" / "bob.ptu").read_bytes() == (tmp_path / "b" / "bob.ptu").read_bytes()


@pytest.mark.parametrize("preset", sorted(set(preset_names()) - {"geneva-2018-404km"}))
def test_counts_are_as_expected_without_an_attack(preset):
    report = simulate_json(preset, "--events", 200_000)
    rows = [*report.get("bases", ()), *report["detectors"], *report.get("pairs", {}).get("bases", ())]
    z = [row[name] for row in rows for name in ("gain_z", "qber_z", "z") if row.get(name) is not None]
    assert len(z) >= 5
    assert max(map(abs, z)) < 5.5


def test_counts_are_as_published():
    """Signal gains within 1 % and error rates within 0.1 point, at 50 km."""
    published = simulate_json("toshiba-t12-2013", "--events", 2_000_000)["published"]
    gain, qber = published["gain_key_0"], published["qber_key_0"]
    assert gain["observed"] == pytest.approx(gain["published"], rel=0.01)
    assert qber["observed"] == pytest.approx(qber["published"], abs=0.001)
    assert published["secret_key_rate_hz"]["observed"] is None


def test_an_attack_shows():
    report = simulate_json(PULSED, "--events", 100_000, "--attack", "intercept-resend:fraction=0.4")
    signal_row = report["bases"][0]
    assert signal_row["qber"] == pytest.approx(0.1 + 0.8 * signal_row["expected_qber"], abs=0.01)
    assert signal_row["qber_z"] > 50
    assert report["attacks"][0]["name"] == "intercept-resend"


def test_a_schedule_comes_from_a_file(tmp_path):
    schedule = tmp_path / "attacks.toml"
    schedule.write_text('[[attack]]\nname = "intercept-resend"\nfrom_s = 0.05\nfraction = 1.0\n')
    early = simulate_json(PULSED, "--duration", 0.04, "--schedule", schedule)
    late = simulate_json(PULSED, "--duration", 0.2, "--schedule", schedule)
    assert early["bases"][0]["qber_z"] < 5 < 50 < late["bases"][0]["qber_z"]


def test_the_json_object_has_all_that_the_page_lists(tmp_path):
    report = simulate_json(PAIRS, "--duration", 0.2, "--out", tmp_path / "run", "--plots")
    assert set(report) == {
        "link", "title", "seed", "duration_s", "ended_by", "cells", "cell_s", "pulses", "events", "events_before_light", "attacks", "published", "monitors",
        "detectors", "pairs", "plots", "files", "folder",
    }  # fmt: skip
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "simulate-a-link.md").read_text()
    pulsed = simulate_json(PULSED, *ENOUGH)
    for name in (*report, *pulsed, *pulsed["bases"][0], *report["detectors"][0], *report["pairs"]["bases"][0]):
        assert f"`{name}`" in page, name
    kept = json.loads((tmp_path / "run" / "report.json").read_text())
    assert kept == {name: value for name, value in report.items() if name not in {"files", "folder"}}
    assert report["files"] == sorted(files_in(tmp_path / "run"))


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        (PULSED, {"counts", "intervals", "gate", "g2", "qber", "saturation"}),
        (PAIRS, {"counts", "intervals", "g2", "qber", "saturation"}),
    ],
)
def test_plots_are_files_that_open(tmp_path, preset, names):
    simulate(preset, *ENOUGH, "--plots", "--out", tmp_path / "run")
    plots = tmp_path / "run" / "plots"
    assert {p.stem for p in plots.iterdir()} == names
    for name in names:
        image = imread(plots / f"{name}.png")
        assert image.std() > 0.01
        assert ET.parse(plots / f"{name}.svg").getroot().tag.endswith("svg")


def test_a_changed_link_is_written_and_used(tmp_path):
    file = tmp_path / "own.toml"
    simulate(PULSED, "--set", "receiver.detectors.efficiency=0.5", "--set", "receiver.detectors.1.jitter_ps=7",
             "--set", "channel.length_km=1", "--write-preset", file)  # fmt: skip
    setup = load_setup(file)
    assert [d.efficiency for d in setup.receiver.detectors] == [0.5, 0.5]
    assert [d.jitter_ps for d in setup.receiver.detectors][1] == 7
    near, far = (simulate_json(link, "--duration", 0.01)["detectors"][0]["rate_hz"] for link in (file, PULSED))
    assert near > 2 * far


def test_presets_and_attacks_are_listed():
    listed = json.loads(simulate("--list", "--json"))
    assert sorted(listed["presets"]) == list(preset_names())
    assert "fraction=" in listed["attacks"]["intercept-resend"]
    assert PULSED in simulate("--list")


def test_people_get_tables():
    text = simulate(PULSED, *ENOUGH, "--attack", "intercept-resend")
    for part in ("QBER", "expected", "any0", "Attacked by intercept-resend"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["preset", "--list"]),
        (["nowhere"], ["nowhere", "toshiba-t12-2013"]),
        ([PULSED, "--format", "tape"], ["tape", "parquet"]),
        ([PULSED, "--plots"], ["--out"]),
        ([PULSED, "--truth"], ["--out"]),
        ([PULSED, "--format", "ptu"], ["--out"]),
        ([PULSED, "--record", "auto"], ["--out"]),
        ([PULSED, "--duration", "inf"], ["inf s", "no end"]),
        ([PULSED, "--pulses", 10**300], ["no end"]),
        ([PULSED, "--write-preset", "far.txt"], ["far.txt", "*.toml"]),
        ([PULSED, "--pulses", 10, "--duration", 1], ["--pulses", "--duration"]),
        ([PAIRS, "--pulses", 10], ["steady pump", "--duration"]),
        ([PULSED, "--attack", "magic"], ["magic", "intercept-resend"]),
        ([PULSED, "--attack", "intercept-resend:fraction=2"], ["fraction", "2"]),
        ([PULSED, "--attack", "intercept-resend", "--schedule", "a.toml"], ["--schedule"]),
        ([PULSED, "--schedule", "no-such.toml"], ["no-such.toml"]),
        ([PULSED, "--set", "channel.length_km"], ["PART.FIELD=VALUE"]),
        ([PULSED, "--set", "channel.length=1"], ["length", "length_km"]),
        ([PULSED, "--set", "channel.length_km=-1"], ["channel.length_km", "greater than or equal to 0"]),
        ([PULSED, "--set", "receiver.detectors.9.efficiency=1"], ["'9'", "0, 1"]),
        ([PULSED, "--set", "title.x=1"], ["'x'"]),
    ],
)  # fmt: skip
def test_wrong_input_is_said_in_a_line(capsys, monkeypatch, arguments, parts):
    said = refused(capsys, monkeypatch, *arguments)
    assert all(part in said for part in parts), said


@pytest.mark.parametrize("format_name", ["qcrypto-a1", "qcrypto49-a0"])
def test_a_format_that_cannot_hold_the_ticks_is_refused_before_any_work(tmp_path, capsys, monkeypatch, format_name):
    said = refused(capsys, monkeypatch, PULSED, "--format", format_name, "--out", tmp_path / "run")
    assert "no whole numbers" in said
    assert "tagger.tick_fs=125000" in said
    assert list(tmp_path.iterdir()) == []
    simulate(PULSED, *ENOUGH, "--format", format_name, "--set", "tagger.tick_fs=125000", "--out", tmp_path / "run")


def test_what_is_there_is_never_written_over(tmp_path, capsys, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.toml").write_text("mine")
    assert "is there already" in refused(capsys, monkeypatch, PULSED, *ENOUGH, "--out", tmp_path / "run")
    assert "is there already" in refused(capsys, monkeypatch, PULSED, "--write-preset", tmp_path / "run" / "mine.toml")
    assert files_in(tmp_path) == {"run/mine.toml": b"mine"}


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_deep_and_endless_values_are_refused_in_words(value, tmp_path, capsys, monkeypatch):
    assert "channel" in refused(capsys, monkeypatch, PULSED, "--set", f"channel.length_km={value}")
    (tmp_path / "deep.toml").write_text(f"attack = {value}")
    assert "not TOML" in refused(capsys, monkeypatch, PULSED, "--schedule", tmp_path / "deep.toml")
    assert "is above" in refused(capsys, monkeypatch, PULSED, "--schedule", "/dev/zero")


def test_an_empty_folder_may_be_filled(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    simulate(PULSED, *ENOUGH, "--out", tmp_path / "run")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    simulate(PULSED, *ENOUGH, "--out", ".")
    assert files_in(tmp_path / "run") == files_in(tmp_path / "here")


# A shell's background job inherits that SIGINT is ignored; a program at a terminal does not.
AS_AT_A_TERMINAL = ("env", "--default-signal=INT")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_nothing(tmp_path, number):
    command = [*AS_AT_A_TERMINAL, sys.executable, "-m", "qkdhw", "link", "simulate", PULSED, "--duration", "100000"]
    with subprocess.Popen([*command, "--out", tmp_path / "run"], stderr=subprocess.PIPE, text=True) as program:
        try:
            while not list(tmp_path.glob(".run.*.part/.bob.parquet.*")):
                assert program.poll() is None
                time.sleep(0.02)
            program.send_signal(number)
            said = program.stderr.read()
            code = program.wait()
        finally:
            program.kill()
    assert code == (130 if number == signal.SIGINT else 128 + number)
    assert "Traceback" not in said
    if number == signal.SIGINT:
        assert re.search(r"^interrupted at [\d.e-]+ s of the link; nothing was written to .*/run$", said, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--format", "ptu"], ["--format", "hdf5"], ["--format", "parquet"]])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, arguments):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = [sys.executable, "-m", "qkdhw", "link", "simulate", PULSED, "--events", "2000000", *arguments]
    # Coverage would write its own data to the full disk, and say so.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "--out", tmp_path / "run"], preexec_fn=limit, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "candidate"),
    [
        ("qkdhw link simulate tosh", "toshiba-t12-2013"),
        ("qkdhw link simulate x --attack interc", "intercept-resend"),
        ("qkdhw link simulate x --format qut", "qutag-raw"),
    ],
)
def test_a_shell_completes_names(words, candidate):
    environment = os.environ | {
        "_QKDHW_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1),
    }  # fmt: skip
    program = Path(sys.executable).with_name("qkdhw")
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert candidate in done.stdout


CLOCK = {"clock_ppm": 20.0, "clock_drift_ppm_per_s": 0.1, "clock_walk_ppm": 0.01, "skew_ps": (300.0, -250.0)}


@pytest.mark.parametrize("step_ps", [-1e8, 1e8])
def test_clicks_at_a_step_of_the_clock_are_matched_too(step_ps):
    """The last 10 us before a step are registered after it."""
    setup = load_setup("lim-2014")
    steps = tuple(ClockSteering(step_ps=step_ps, ppm=0, from_s=0.02 * k, until_s=0.02 * k + 0.01) for k in range(1, 20))
    n = 0
    with LinkSimulation(setup, seed=3, schedule=Schedule(steps)) as simulation:
        clock = EndClock(setup.receiver, setup.tagger, simulation.cell_ps, 3, Purpose.BOB_DETECTION)
        for _ in range(int(0.42 / simulation.cell_s)):
            cell = simulation.next_cell()
            origin, times_ps = clock.origins(cell.bob, cell.bob_light), clock.times_ps(cell.bob, cell.condition)
            lit = origin >= 0
            late_ps = times_ps[lit] - (origin[lit] - cell.first_pulse) * setup.source.period_ps
            assert np.abs(late_ps).max(initial=0.0) < 1e6
            n += int(lit.sum())
    assert n > 50_000


@pytest.mark.parametrize("preset", [PULSED, "geneva-2018", "idq-clavis"])
def test_clicks_of_light_are_matched_with_the_pulses_they_came_from(preset):
    """On a clock that is wrong, drifts and wanders, with channels that are skewed; an interferometer's side bins are of
    no pulse."""
    setup = load_setup(preset)
    setup = OpticalSetup.model_validate(setup.model_dump() | {"tagger": CLOCK})
    right = matched = total = 0
    with LinkSimulation(setup, seed=3) as simulation:
        clock = EndClock(setup.receiver, setup.tagger, simulation.cell_ps, 3, Purpose.BOB_DETECTION)
        matcher = PulseMatcher(setup, setup.receiver)
        for _ in range(200):
            cell = simulation.next_cell()
            origin = clock.origins(cell.bob, cell.bob_light)
            times_ps = clock.times_ps(cell.bob, cell.condition)
            pulse = matcher.match(cell.first_pulse, times_ps, cell.bob.channel).pulse
            pulse, origin = pulse[origin >= 0], origin[origin >= 0]
            right += int((pulse == origin).sum())
            matched += int((pulse >= 0).sum())
            total += len(origin)
    assert total > 5000
    assert right > 0.999 * matched
    assert matched > (0.93 if preset == "geneva-2018" else 0.999) * total


def test_a_timeline_of_any_length_keeps_its_sums():
    line = Timeline(2)
    for number in range(10 * SLICES + 7):
        line.add(number, 1)
    assert len(line.sums) <= SLICES
    assert line.sums.sum(axis=0).tolist() == [sum(range(10 * SLICES + 7)), 10 * SLICES + 7]
    assert np.all(line.sums[:-1, 1] == line.cells)


def test_singles_of_pairs_follow_dead_time_and_afterpulses():
    setup = load_setup(PAIRS)
    wild = {"efficiency": 0.6, "dark_count_rate_hz": 500.0, "dead_time_ns": 20_000.0, "jitter_ps": 357.0,
            "afterpulses": [{"probability": 0.3, "tau_ns": 30_000.0}]}  # fmt: skip
    values = setup.model_dump()
    values["receiver"]["detectors"] = [wild] * 4
    setup = OpticalSetup.model_validate(values)
    with LinkRun(RunOptions(setup, duration_s=5)) as run:
        observed = run.run()
    for clicks, expected in zip(observed.bob.clicks, expected_singles(setup, setup.receiver), strict=True):
        assert clicks / observed.duration_s == pytest.approx(expected.rate_hz, rel=0.02)


def test_a_link_without_any_light_is_counted_too(tmp_path):
    report = simulate_json(PULSED, "--duration", 0.1, "--attack", "fibre-cut", "--truth", "--out", tmp_path / "run")
    assert 0 < sum(row["detections"] for row in report["bases"]) <= report["events"]["bob"] < 100
    truth = pyarrow.parquet.read_table(tmp_path / "run" / "bob.truth.parquet")
    assert set(truth["pulse"].to_pylist()) == {-1}


def test_an_end_whose_bases_a_switch_chooses_has_no_coincidences(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text("""
[source]
kind = "pair-pulsed"
pulse_rate_hz = 100_000_000
mean_pairs = 0.02
[receiver]
detectors = [{ efficiency = 0.2 }, { efficiency = 0.2 }, { efficiency = 0.2 }, { efficiency = 0.2 }]
[sender_receiver]
basis_choice = "active"
detectors = [{ efficiency = 0.2 }, { efficiency = 0.2 }]
""")
    report = simulate_json(file, "--pulses", 1_000_000, "--out", tmp_path / "run", "--plots")
    assert "pairs" not in report
    assert report["plots"] == ["counts", "intervals", "saturation"]
    assert len(report["detectors"]) == 6

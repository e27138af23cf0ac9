"""`qkdhw events`: what its analyses say of an emulated link, against NumPy and against the link's truth."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qkdhw.cli import app, main
from qkdhw.formats import open_events, write_events
from qkdhw.model import DetectionBlock

PULSED = "rusca-2018"
PAIRS = "sfifteen-bbm92"
TICK_PS = Fraction(125)


def qkdhw(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def events(*arguments):
    return json.loads(qkdhw("events", *arguments, "--json"))


def refused(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["qkdhw", "events", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "Traceback" not in said.err
    return said.err


def write(path, ticks, channel, tick_ps=TICK_PS):
    block = DetectionBlock(np.asarray(ticks), np.asarray(channel, np.uint8), np.zeros(len(ticks), np.uint8), tick_ps)
    write_events(path, [block], tick_ps=tick_ps)
    return path


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Two channels: every third event of the first has a partner 40 ticks later on the second."""
    rng = np.random.default_rng(3)
    first = np.cumsum(rng.integers(1, 20_000, 6000))
    second = np.concatenate((first[::3] + 40, rng.integers(0, first[-1], 3000)))
    ticks = np.concatenate((first, second))
    channel = np.repeat((1, 2), (len(first), len(second)))
    order = np.argsort(ticks, kind="stable")
    path = tmp_path_factory.mktemp("stream") / "two.parquet"
    return write(path, ticks[order], channel[order]), first, np.sort(second)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "run"
    qkdhw("link", "simulate", PAIRS, "--duration", 6, "--seed", 4, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def pulses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pulses") / "run"
    faster = ("--set", "tagger.clock_ppm=5")
    qkdhw("link", "simulate", PULSED, "--pulses", 30_000_000, "--record", "full", "--seed", 4, "--out", folder, *faster)
    return folder


def all_delays(first, second):
    return (second[None, :] - first[:, None]).ravel()


def test_delays_are_those_of_every_pair(stream, tmp_path):
    path, first, second = stream
    found = events("correlate", path, "--range", 12_500, "--bin", 625, "--plot", tmp_path / "c.svg")
    edges = np.array(found["delay_ps"]) / 125 - 2
    delays = all_delays(first, second)
    expected = [int(np.count_nonzero((delays >= low) & (delays < low + 5))) for low in edges]
    assert found["counts"] == expected
    assert found["largest_delay_ps"] == pytest.approx(40 * 125)
    assert (tmp_path / "c.svg").read_bytes().startswith(b"<?xml")
    assert 0 in found["delay_ps"]


def test_g2_of_unrelated_delays_is_one(stream):
    path, *_ = stream
    found = events("g2", path, "--range", 100_000, "--bin", 10_000)
    g2, error = np.array(found["g2"]), np.array(found["g2_error"])
    apart = np.abs(np.array(found["delay_ps"]) - 5000) > 10_000
    assert np.all(np.abs(g2[apart] - 1) < 5 * error[apart])
    assert max(g2) > 3


def test_bins_that_are_too_narrow_for_g2_are_said_with_a_width_that_does(stream):
    path, *_ = stream
    said = qkdhw("events", "g2", path, "--range", 100_000)
    few, width = re.search(
        r"([\d.e-]+) pairs are expected in a bin by chance: --bin (\S+) would have 20", said
    ).groups()
    assert float(few) < 1
    assert "with a longer --range" not in said
    wide = ("g2", path, "--range", 100_000, "--bin", width)
    assert 20 <= events(*wide)["expected_in_a_bin"] < 25
    assert "by chance" not in qkdhw("events", *wide)
    assert "with a longer --range" in qkdhw("events", "g2", path, "--range", 1000)


def test_g2_of_files_of_different_length_is_that_of_their_common_time(tmp_path):
    rng = np.random.default_rng(8)
    long, short = np.sort(rng.integers(0, 4 * 10**9, 40_000)), np.sort(rng.integers(10**9, 1_100_000_000, 1000))
    files = [write(tmp_path / f"{len(times)}.parquet", times, np.ones(len(times))) for times in (long, short)]
    for a, b in (files, files[::-1]):
        found = events("g2", a, b, "--stop", 101, "--range", 10**9, "--bin", 10**8 + 125)
        g2, error = np.array(found["g2"]), np.array(found["g2_error"])
        assert np.all(np.abs(g2 - 1) < 5 * error)
        assert np.all(error < 0.1)
        assert found["duration_s"] == pytest.approx(0.0125, rel=0.01)


def test_coincidences_and_accidentals(stream, tmp_path):
    path, first, second = stream
    table = tmp_path / "pairs.csv"
    found = events("coincidences", path, "--window", 1250, "--centre", 5000, "--out", table)
    delays = all_delays(first, second)
    assert found["coincidences"] == np.count_nonzero(np.abs(delays - 40) <= 5)
    expected = len(first) * len(second) * 11 / (first[-1] - first[0])
    assert abs(found["accidentals"] - expected) < 6 * found["accidentals_error"] + 1
    rows = np.loadtxt(table, np.int64, delimiter=",", skiprows=1)
    assert len(rows) == found["coincidences"]
    assert np.all(np.abs(rows[:, 1] - rows[:, 0] - 40) <= 5)
    skewed = events("coincidences", path, "--window", 1250, "--skew", "2=5000")
    assert skewed["coincidences"] == found["coincidences"]


def test_two_files_of_one_clock_are_one_stream(stream, tmp_path):
    path, first, second = stream
    a = write(tmp_path / "a.parquet", first, np.ones(len(first)))
    b = write(tmp_path / "b.parquet", second * 5, np.ones(len(second)), TICK_PS / 5)
    whole = events("correlate", path, "--range", 12_500, "--bin", 625)
    apart = events("correlate", a, b, "--stop", 101, "--range", 12_500, "--bin", 625)
    assert apart["pairs"] == whole["pairs"]
    assert sum(apart["counts"]) == sum(whole["counts"])


def test_events_out_of_order_are_put_right_only_when_asked(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "x.parquet", [10, 8, 20, 18, 40], [1, 2, 1, 2, 1])
    for command in (("coincidences",), ("histogram", "--period", 1000), ("g2",)):
        said = refused(capsys, monkeypatch, *command, path)
        assert f"NonMonotonicTimeError: {path}: event 1 lies 250 ps before" in said
        assert "within 250 ps or more (--order-within" in said
        assert "StreamMerger" not in said
    assert events("coincidences", path, "--order-within", 250, "--window", 500)["coincidences"] == 2
    found = events("histogram", path, "--order-within", 250, "--period", 1000, "--bins", 8)
    assert [sum(counts) for counts in found["counts"].values()] == [3, 2]


def test_info_says_within_how_much_events_can_be_put_in_order(tmp_path):
    path = write(tmp_path / "x.parquet", [10, 8, 30, 27, 26, 40, 30], [1, 2, 1, 2, 1, 1, 1])
    assert events("info", path)["largest_step_back_ticks"] == 10
    assert "--order-within 1250 puts them right" in " ".join(
        re.sub("[│\n]", " ", qkdhw("events", "info", path)).split()
    )
    assert events("coincidences", path, "--order-within", 1250)["singles_1"] == 5
    assert events("info", write(tmp_path / "y.parquet", [1, 2], [1, 1]))["largest_step_back_ticks"] == 0


def test_a_channel_without_photons_is_said_with_its_coincidences(stream):
    assert "channel 9 has no photons" in qkdhw("events", "coincidences", stream[0], "--channels", "1,9")
    assert "no photons" not in qkdhw("events", "coincidences", stream[0])


def test_a_senders_record_without_a_period_is_told_so(pulses, capsys, monkeypatch):
    said = refused(
        capsys, monkeypatch, "sift", pulses / "bob.parquet", pulses / "alice.record.parquet", "--window", 500
    )
    assert "alice.record.parquet is a record of pulses, not of events" in said
    assert "\nremedy: " in said.split("--period")[0]
    assert "tick_ps" not in said


def test_a_start_stop_file_is_sifted_by_no_conversion(capsys, monkeypatch):
    path = Path(__file__).parents[1] / "vectors" / "events" / "t3.ptu"
    said = refused(capsys, monkeypatch, "sift", path, path, "--window", 500)
    assert "converting a T3 file does not help" in said


def test_two_files_of_one_name_are_told_apart(pairs, tmp_path):
    twice = tmp_path / "bob.parquet"
    twice.write_bytes((pairs / "bob.parquet").read_bytes())
    names = [file["name"] for file in events("process", pairs / "bob.parquet", twice)["files"]]
    assert names == [str(pairs / "bob.parquet"), str(twice)]


@pytest.mark.parametrize("command", ["correlate", "g2", "coincidences"])
def test_what_is_whole_in_a_cut_file_is_looked_at_only_when_asked(stream, tmp_path, capsys, monkeypatch, command):
    path, *_ = stream
    whole, cut = tmp_path / "whole.ptu", tmp_path / "cut.ptu"
    qkdhw("events", "convert", path, whole)
    cut.write_bytes(whole.read_bytes()[:-4001])
    assert "--tolerant" in refused(capsys, monkeypatch, command, cut)
    name = "singles_1" if command == "coincidences" else "start_events"
    assert 0 < events(command, cut, "--tolerant")[name] < events(command, whole)[name]


def test_arrivals_within_a_period(pulses, tmp_path):
    plot = tmp_path / "p.png"
    found = events("histogram", pulses / "bob.parquet", "--period", 1000, "--bins", 10, "--plot", plot)
    blocks = list(open_events(pulses / "bob.parquet").read_blocks())
    total = sum(len(block) for block in blocks)
    assert sum(map(sum, found["counts"].values())) == total
    assert found["bin_ps"] == 100
    assert plot.stat().st_size > 5000


def test_bins_of_a_period_hold_as_many_ticks_each(tmp_path):
    path = write(tmp_path / "steady.parquet", np.arange(10_000), np.ones(10_000), Fraction(1))
    found = events("histogram", path, "--period", 1000)
    assert found["counts"]["1"] == [40] * 250
    uneven = events("histogram", path, "--period", 1000, "--bins", 256)
    assert set(uneven["counts"]["1"]) == {30, 40}
    assert uneven["counts_of_even_bins"]["1"] == pytest.approx([39.0625] * 256)


def test_two_sites_of_a_pair_source_are_aligned_and_sifted(pairs, tmp_path):
    found = events("align", pairs / "alice.parquet", pairs / "bob.parquet")
    assert found["significance_sigma"] > 6
    assert abs(found["relative_rate_ppm"]) < 20
    sifted = events("sift", pairs / "bob.parquet", pairs / "alice.parquet", "--window", 2000, "--out", tmp_path / "s")
    assert sum(sifted["kept"].values()) > 1000
    said = qkdhw("events", "sift", pairs / "bob.parquet", pairs / "alice.parquet", "--window", 2000)
    met, by_chance = (
        int(n.replace(",", "")) for n in re.search(r"([\d,]+) coinc.*about ([\d,]+) ± [\d,]+ by ch", said).groups()
    )
    assert abs(met - 2 * sum(sifted["kept"].values())) < 6 * met**0.5
    assert by_chance == round(sifted["accidentals"])
    assert sifted["qber"]["key"] < 0.08
    key = [(tmp_path / "s" / f"0000-bob.{site}.key").read_bytes() for site in ("receiver", "sender")]
    assert len(key[0]) == len(key[1]) == -(-sifted["kept"]["key"] // 8)
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0
    differ = int.from_bytes(key[0], "little") ^ int.from_bytes(key[1], "little")
    assert differ.bit_count() == sifted["errors"]["key"]
    clock = sifted["alignment"]
    # bob's clock is A here, alice's was above: the same clocks from the other side
    assert clock["relative_rate_ppm"] == pytest.approx(-found["relative_rate_ppm"], abs=0.01)
    assert abs(clock["offset_ps"] + found["offset_ps"]) < 1000 + 1e-6 * 25 * 1e12
    assert clock["significance_sigma"] > 6
    assert (sifted["window_ps"], sifted["window_used_ps"]) == (2000, 17 * 125)
    n, wrong = sifted["kept"]["key"], sifted["errors"]["key"]
    assert sifted["qber"]["key"] == wrong / n
    assert sifted["qber_error"]["key"] == pytest.approx((wrong * (n - wrong) / n**3) ** 0.5, rel=0.1)
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert summary["files"][0]["facts"]["alignment"] == clock
    assert summary["totals"]["qber"] == sifted["qber"]


def test_taggers_started_seconds_apart_are_sifted_when_enough_is_searched(tmp_path, capsys, monkeypatch):
    run = tmp_path / "apart"
    qkdhw("link", "simulate", PAIRS, "--duration", 5, "--out", run, "--set", "tagger.clock_offset_s=3")
    common = [run / "bob.parquet", run / "alice.parquet", "--window", 3000, "--max-offset", 4]
    assert "ClockAlignmentError" in refused(capsys, monkeypatch, "sift", *common)
    sifted = events("sift", *common, "--align-seconds", 6)
    assert sum(sifted["kept"].values()) > 4000
    assert sifted["qber"]["key"] < 0.05
    guessed = events("sift", *common[:-2], "--offset", -3)
    assert abs(sum(guessed["kept"].values()) - sum(sifted["kept"].values())) < 20
    assert guessed["alignment"]["offset_guess_from"] == "given"


def test_taggers_of_one_epoch_that_were_started_apart_need_no_guess(pairs, tmp_path):
    """One file begins five seconds before the other: what both have is searched, not the beginnings."""
    blocks = list(open_events(pairs / "alice.parquet").read_blocks())
    ticks = np.concatenate([block.time_ticks for block in blocks])
    keep = ticks - ticks[0] >= 4.5 * 10**12 / TICK_PS
    late = write(tmp_path / "late.parquet", ticks[keep], np.concatenate([block.channel for block in blocks])[keep])
    for files in ([pairs / "bob.parquet", late], [late, pairs / "bob.parquet"]):
        found = events("align", *files)
        assert found["offset_guess_from"] == "same epoch"
        sifted = events("sift", *files, "--window", 2000)
        assert sum(sifted["kept"].values()) > 200
        assert sifted["alignment"]["offset_guess_from"] == "same epoch"


@pytest.fixture(scope="module")
def epochs(pairs, tmp_path_factory):
    """The pairs of a run, with bob's file as a tagger writes it that was switched on 20 hours before alice's."""
    folder = tmp_path_factory.mktemp("epochs")
    moved = int(20 * 3600 * 10**12 / TICK_PS)
    blocks = list(open_events(pairs / "bob.parquet").read_blocks())
    write(
        folder / "bob.parquet",
        np.concatenate([block.time_ticks for block in blocks]) + moved,
        np.concatenate([block.channel for block in blocks]),
    )
    (folder / "alice.parquet").symlink_to(pairs / "alice.parquet")
    return folder, moved


def test_clocks_that_are_hours_apart_are_aligned_and_sifted(pairs, epochs, capsys, monkeypatch):
    folder, moved = epochs
    near = events("align", pairs / "alice.parquet", pairs / "bob.parquet")
    files = [folder / "alice.parquet", folder / "bob.parquet"]
    found = events("align", *files, "--offset", 20 * 3600)
    assert Fraction(found["clock"]["b_ticks"]) == Fraction(near["clock"]["b_ticks"]) + moved
    assert found["relative_rate"] == near["relative_rate"]
    with_guess = events("sift", *files, "--window", 2000, "--offset", "72000.0")
    plain = events("sift", pairs / "alice.parquet", pairs / "bob.parquet", "--window", 2000)
    assert with_guess["kept"] == plain["kept"]
    assert with_guess["errors"] == plain["errors"]
    # Nobody says how far they are apart: their beginnings are taken for about the same moment, and that is told.
    guessed = events("align", *files)
    assert guessed["offset_guess_from"] == "first events"
    assert abs(guessed["offset_ps"] - found["offset_ps"]) < 1000
    assert "were taken for" in qkdhw("events", "align", *files)
    assert events("sift", *files, "--window", 2000)["alignment"]["offset_guess_from"] == "first events"
    said = refused(capsys, monkeypatch, "align", *files, "--offset", 1000)
    assert "overlap" in said
    assert "--offset" in said.partition("remedy")[2]


@pytest.mark.parametrize("command", ["correlate", "g2"])
def test_the_peak_of_two_free_clocks_is_drawn_with_the_clock_that_was_found(epochs, tmp_path, command):
    """The clocks differ in rate and by 20 hours; on one clock all pairs stand within the jitter around no delay."""
    folder, _ = epochs
    files = [folder / "alice.parquet", folder / "bob.parquet"]
    clock = tmp_path / "clock.json"
    qkdhw("events", "align", *files, "--offset", 20 * 3600, "--seconds", 6, "--out", clock)
    assert abs(json.loads(clock.read_text())["relative_rate_ppm"]) > 1
    asked = ["--clock", clock, "--stop", 101, "--range", 20_000, "--bin", 500]
    found = events(command, *files, *asked, "--plot", tmp_path / "peak.png")
    delay, counts = np.array(found["delay_ps"]), np.array(found["counts"])
    assert found["pairs"] > 1000
    assert counts[np.abs(delay) < 2500].sum() > 0.98 * counts.sum()
    assert abs(np.average(delay, weights=counts)) < 500
    without = json.loads(clock.read_text())
    without["clock"]["b_ticks_per_a_tick"] = "1"
    clock.write_text(json.dumps(without))
    assert max(events(command, *files, *asked)["counts"]) < 0.1 * max(counts)


def test_coincidences_of_two_free_clocks_are_counted(epochs, tmp_path, capsys, monkeypatch):
    folder, _ = epochs
    files = [folder / "alice.parquet", folder / "bob.parquet"]
    clock = tmp_path / "clock.json"
    clock.write_text(qkdhw("events", "align", *files, "--offset", 20 * 3600, "--seconds", 6, "--json"))
    asked = ["--channels", "1,101", "--window", 3000]
    found = events("coincidences", *files, *asked, "--clock", clock)
    assert found["coincidences"] > 1000
    assert found["accidentals"] < 0.02 * found["coincidences"]
    assert events("coincidences", *files, *asked)["coincidences"] == 0
    said = refused(capsys, monkeypatch, "coincidences", files[0], "--channels", "1,2", "--clock", clock)
    assert "--clock belongs to two files" in said
    other = write(tmp_path / "other.parquet", [1, 2, 3], [1, 1, 1], TICK_PS / 5)
    said = refused(capsys, monkeypatch, "coincidences", files[0], other, *asked, "--clock", clock)
    assert "ticks of 125 and 125 ps" in said
    assert "align A B --out" in said
    clock.write_text("{}")
    said = refused(capsys, monkeypatch, "correlate", *files, "--clock", clock)
    assert "holds no clock" in said


def test_a_clock_is_not_written_over_what_is_there(pairs, tmp_path, capsys, monkeypatch):
    files = [pairs / "alice.parquet", pairs / "bob.parquet"]
    assert "same file" in refused(capsys, monkeypatch, "align", *files, "--out", files[1], "--force")
    (tmp_path / "there.json").write_text("")
    assert "exists already" in refused(capsys, monkeypatch, "align", *files, "--out", tmp_path / "there.json")


def test_a_wrong_first_guess_is_named_as_what_was_looked_at(epochs, tmp_path, capsys, monkeypatch):
    folder, _ = epochs
    rng = np.random.default_rng(2)
    other = write(tmp_path / "other.parquet", np.sort(rng.integers(0, 5 * 8 * 10**9, 200_000)), np.ones(200_000))
    said = refused(capsys, monkeypatch, "align", other, folder / "bob.parquet")
    assert "no --offset was given" in said
    assert re.search(r"7[12]\d\d\d(\.\d+)? s apart", said), said


def test_a_receiver_is_sifted_against_the_senders_record(pulses):
    report = json.loads((pulses / "report.json").read_text())
    period_ps = 1e12 / report["pulses"] * report["duration_s"]
    common = [pulses / "bob.parquet", pulses / "alice.record.parquet", "--period", round(period_ps), "--window", 500]
    sifted = events("sift", *common)
    total = sum(sum(each.values()) for each in sifted["kept"].values())
    assert total > 1000
    assert sum(sum(each.values()) for each in sifted["errors"].values()) / total < 0.08
    assert (sifted["window_ps"], sifted["period_ps"]) == (500, round(period_ps))
    clock = sifted["alignment"]
    assert clock["significance_sigma"] > 6
    assert clock["matched_clicks"] > 100
    assert abs(clock["relative_rate_ppm"] + 5) < 0.01  # the receiver's clock is the faster
    said = qkdhw("events", "sift", *common)
    assert "QBER" in said
    sent, kept, ratio = re.search(r"test +│ 1 +│ ([\d,]+) +│ (\d+) +│ \d+ +│ (\S+)", said).groups()
    assert int(sent.replace(",", "")) == sifted["sent"]["test"]["intensity_1"]
    assert float(ratio) == pytest.approx(int(kept) / sifted["sent"]["test"]["intensity_1"], rel=1e-3)


def test_a_receiver_that_switches_gives_its_bases(tmp_path):
    run = tmp_path / "run"
    qkdhw("link", "simulate", "lim-2014", "--pulses", 60_000_000, "--record", "full", "--out", run)
    common = [run / "bob.parquet", run / "alice.record.parquet", "--period", 10_000, "--window", 2000]
    assert "needs --bases" in qkdhw("events", "sift", *common)
    sifted = events("sift", *common, "--bases", run / "bob.record.parquet")
    assert sum(sifted["kept"]["test"].values()) > 500
    assert sifted["qber"]["key"] < 0.03
    assert sifted["qber"]["test"] < 0.05


def shown_on_a_terminal(*arguments):
    """What a command shows on a terminal, without what moves the cursor or colours."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as shown, os.fdopen(theirs, "wb") as terminal:
        command = [sys.executable, "-m", "qkdhw", *map(str, arguments)]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
        with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as process:
            terminal.close()
            octets = b""
            with suppress(OSError):  # a terminal that nobody writes to any more
                while part := shown.read(65536):
                    octets += part
        assert process.returncode == 0, octets
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", octets.decode())


@pytest.mark.parametrize("command", ["align", "sift", "process"])
def test_a_person_sees_events_rate_and_what_is_left(pairs, command):
    alice, bob = pairs / "alice.parquet", pairs / "bob.parquet"
    more = {"align": [alice, bob], "sift": [bob, alice, "--window", 2000], "process": [bob, alice]}[command]
    said = shown_on_a_terminal("events", command, *more)
    assert re.search(r"[1-9][\d,]+ events, \d+\.\d M/s", said), said
    assert re.search(r"\d:\d\d:\d\d", said)
    if command == "process":
        assert "of 2" in said


def test_many_files_give_a_line_each_and_a_failure_an_exit_code(pairs, tmp_path):
    wrong = tmp_path / "wrong.parquet"
    wrong.write_bytes(b"PAR1 and nothing else")
    good = pairs / "bob.parquet"
    report = events("process", good, pairs / "alice.parquet")
    assert [file["name"] for file in report["files"]] == ["bob.parquet", "alice.parquet"]
    assert report["totals"]["events"] == sum(file["events"] for file in report["files"])
    done = CliRunner().invoke(app, ["events", "process", str(good), str(wrong)])
    assert done.exit_code == 1
    assert "wrong.parquet" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["correlate", "two", "--stop", 9], "channel 9 has no photons"),
        (["correlate", "two", "--bin", 100], "no whole number of ticks"),
        (["coincidences", "two", "--channels", "1,x"], "no channels"),
        (
            ["coincidences", "two", "--channels", "1"],
            "2 to 16 different channels, not 1\nremedy: For example --channels",
        ),
        (["correlate", "two", "--range", 10**15, "--bin", 125], "wider, or a shorter --range"),
        (["coincidences", "two", "--window", 1, "--centre", 60], "empty"),
        (["coincidences", "two", "--skew", "2"], "CHANNEL=PS"),
        (["histogram", "two"], "--period is missing"),
        (["histogram", "two", "--period", 100], "period"),
        (["sift", "two", "two"], "--window is missing"),
        (["sift", "two", "two", "--window", 0], "--window 0 is not above 0"),
        (["sift", "two", "two", "--window", 10, "--period", -1], "--period -1 is not above 0"),
        (["sift", "two", "two", "--window", 10, "--wiring", "1,2"], "four channels"),
        (["process", "two", "--record", "two"], "--period"),
        (["process", "two", "--scheduler", "tcp://127.0.0.1:1"], "cannot be reached"),
        (["correlate", "two", "--plot", "x.gif"], ".svg"),
    ],
)
def test_wrong_arguments_are_said_in_words(stream, capsys, monkeypatch, arguments, said):
    path, *_ = stream
    assert said in refused(capsys, monkeypatch, *(path if word == "two" else word for word in arguments))

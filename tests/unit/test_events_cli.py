"""`qkdhw events` as a person or a script calls it: a process of its own."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

VECTORS = Path(__file__).parents[1] / "vectors" / "events"


def qkdhw(*arguments, limit_bytes=None):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(
        [sys.executable, "-m", "qkdhw", "events", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limit if limit_bytes else None,
        # Under the limit Python would cut the byte code that it caches, and never notice.
        env={"COLUMNS": "120", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_info_for_people_and_for_scripts():
    table = qkdhw("info", VECTORS / "tdc2.a1.ts")
    assert table.returncode == 0, table.stderr
    for text in ("125/32 ps = 3.90625 ps", "pattern 1110", "dummy", "steps back in time: 1"):
        assert text in table.stdout
    found = json.loads(qkdhw("info", VECTORS / "tdc2.a1.ts", "--json").stdout)
    assert (found["format"], found["tick_ps"], found["events"]) == ("qcrypto-a1", "125/32", 300)
    assert found["kinds"]["dummy"] == 12
    assert found["first_ticks"] > 2**53
    assert found["backward_steps"] == 1


def test_convert_and_back_is_the_same_file(tmp_path):
    there = qkdhw("convert", VECTORS / "tdc2.a0.ts", tmp_path / "x.h5")
    assert there.returncode == 0, there.stderr
    assert "300 events written" in there.stdout
    back = qkdhw("convert", tmp_path / "x.h5", tmp_path / "y", "--out-format", "qcrypto-a0", "--json")
    assert json.loads(back.stdout)["events"] == 300
    assert (tmp_path / "y").read_bytes() == (VECTORS / "tdc2.a0.ts").read_bytes()


def test_a_file_is_replaced_only_when_asked_and_never_by_itself(tmp_path):
    source, target = tmp_path / "x.ptu", tmp_path / "y.csv"
    source.write_bytes((VECTORS / "t2.ptu").read_bytes())
    target.write_text("old")
    refused = qkdhw("convert", source, target)
    assert (refused.returncode, target.read_text()) == (1, "old")
    assert "ConfigurationError" in refused.stderr
    assert "--force" in refused.stderr
    assert qkdhw("convert", source, target, "--force").returncode == 0
    assert target.read_text() != "old"
    (tmp_path / "soft.ptu").symlink_to(source)
    (tmp_path / "hard.ptu").hardlink_to(source)
    for same in (source, tmp_path / "soft.ptu", tmp_path / "hard.ptu"):
        refused = qkdhw("convert", source, same, "--force")
        assert refused.returncode == 1
        assert "the same file" in refused.stderr
    assert source.read_bytes() == (VECTORS / "t2.ptu").read_bytes()


def test_what_is_left_out_is_said(tmp_path):
    # The one step back in time is small enough for a PTU file.
    done = qkdhw("convert", VECTORS / "tdc2.a1.ts", tmp_path / "x.ptu")
    assert "288 events written" in done.stdout
    assert "12 dummies left out" in done.stdout


def test_a_cut_file(tmp_path):
    (tmp_path / "x.ptu").write_bytes((VECTORS / "t2.ptu").read_bytes()[:-7])
    failed = qkdhw("info", tmp_path / "x.ptu")
    assert failed.returncode == 1
    assert "EventFormatError" in failed.stderr
    assert "byte 2621" in failed.stderr
    assert "remedy:" in failed.stderr
    assert "Traceback" not in failed.stderr
    tolerated = json.loads(qkdhw("info", tmp_path / "x.ptu", "--tolerant", "--json").stdout)
    assert (tolerated["missing_records"], tolerated["trailing_bytes"], tolerated["events"]) == (2, 1, 498)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "none.ptu"), "cannot read"),
        (("info", __file__), "no event format"),
        (("info", VECTORS / "t2.ptu", "--format", "ttbin"), "there is no event format"),
        (("convert", VECTORS / "t2.ptu", "x.xyz"), "does not say"),
        (("convert", VECTORS / "t3.ptu", "x.qutag"), "T3"),
        (("convert", VECTORS / "tdc2.a1.ts", "/none/x.csv"), "cannot write"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_a_remedy(arguments, message):
    failed = qkdhw(*arguments)
    assert failed.returncode == 1
    assert message in failed.stderr
    assert "remedy:" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("ending", ["ptu", "h5", "parquet", "csv"])
def test_a_full_disk(tmp_path, ending):
    failed = qkdhw("convert", VECTORS / "t2.ptu", tmp_path / f"x.{ending}", limit_bytes=1024)
    assert failed.returncode == 1, failed.stderr
    assert "cannot write" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_formats_are_listed():
    assert "ptu" in json.loads(qkdhw("formats", "--json").stdout)
    assert "quTAG BINARY" in qkdhw("formats").stdout


def test_rates_and_intervals_are_drawn_and_nothing_is_replaced(tmp_path):
    for name in ("rates.png", "rates.svg"):
        done = qkdhw("plot", VECTORS / "t2.ptu", tmp_path / name, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["mean_rate_hz"]
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert b"channel 1" in (tmp_path / "rates.svg").read_bytes() or b"<svg" in (tmp_path / "rates.svg").read_bytes()
    for wrong, said in (("rates.png", "exists already"), ("rates.gif", ".svg")):
        refused = qkdhw("plot", VECTORS / "t2.ptu", tmp_path / wrong)
        assert refused.returncode == 1
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr
    assert qkdhw("plot", VECTORS / "t2.ptu").returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ending", ["h5", "parquet"])
def test_a_command_that_is_told_to_end_leaves_nothing_half_written(tmp_path, number, ending):
    source, folder = tmp_path / "many.csv", tmp_path / "out"
    folder.mkdir()
    lines = "".join(f"{1000 * k},1,0\n" for k in range(2_000_000))
    source.write_text("# qkdhw events 1 tick_ps=1\ntime_ticks,channel,kind\n" + lines)
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from qkdhw.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "events", "convert", str(source), str(folder / f"many.{ending}")],
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        while not list(folder.iterdir()) and running.poll() is None:
            time.sleep(0.001)
        running.send_signal(number)
        said = running.communicate(timeout=60)[1]
    assert running.returncode == 128 + number, said
    assert "Traceback" not in said
    assert list(folder.iterdir()) == []

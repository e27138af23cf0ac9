"""Event files over a Dask cluster of real processes: a worker that is killed costs time, and not a byte differs."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from qkdhw.bench.distributed import process_files
from qkdhw.bench.file_jobs import ProcessOptions
from qkdhw.errors import ConfigurationError, TransportError
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.simulate.run import LinkRun, RunOptions

N_FILES = 8
SEED = bytes(range(32))
START_S = 60.0

pytestmark = pytest.mark.timeout(300)


@contextmanager
def cluster(folder, n_workers):
    """Run a scheduler and workers of one thread, each a process of its own; give the address and the workers."""
    file = folder / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    dask = [sys.executable, "-m", "dask"]
    common = ["--host", "127.0.0.1", "--no-dashboard"]
    with ExitStack() as stack:

        def start(*command):
            process = subprocess.Popen([*dask, *command], **quiet)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        start("scheduler", *common, "--port", "0", "--scheduler-file", str(file))
        until_s = time.monotonic() + START_S
        while not (file.exists() and file.read_text().endswith("}")):
            assert time.monotonic() < until_s
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        worker = ("worker", address, *common, "--nthreads", "1", "--no-nanny", "--local-directory", str(folder))
        yield address, [start(*worker) for _ in range(n_workers)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Eight runs of a prepare-and-measure link."""
    folders = [tmp_path_factory.mktemp("link") for _ in range(N_FILES)]
    for seed, folder in enumerate(folders):
        options = RunOptions(load_setup("rusca-2018"), seed=seed, duration_s=0.02, record="detected")
        with LinkRun(options, folder) as run:
            run.run()
    return folders


@pytest.fixture(scope="module")
def work(runs):
    options = ProcessOptions(
        records=tuple(folder / "alice.record.parquet" for folder in runs), period_ps=1000, window_ps=980, seed=SEED
    )
    return [folder / "bob.parquet" for folder in runs], options


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(work, tmp_path_factory):
    """What one process gives."""
    out = tmp_path_factory.mktemp("alone")
    return process_files(*work, out=out), contents(out)


def test_a_killed_worker_costs_time_and_not_a_byte(work, alone, tmp_path):
    """The worker that finished the first file is in its next one, or about to take it, when it is killed."""
    killed, seen = [], []
    with cluster(tmp_path, 2) as (address, workers):

        def kill_one(progress):
            seen.append(progress.files)
            if not killed:
                workers[0].send_signal(signal.SIGKILL)
                workers[0].wait()
                killed.append(progress.files)

        report = process_files(*work, out=tmp_path / "out", scheduler=address, on_progress=kill_one)
        assert workers[0].returncode == -signal.SIGKILL
        assert workers[1].poll() is None
    assert killed[0] < N_FILES - 1
    assert seen == list(range(1, N_FILES + 1))
    assert report == alone[0]
    assert contents(tmp_path / "out") == alone[1]
    assert len(alone[1]) == 5 * N_FILES + 1


def test_both_sites_bits_are_in_the_files(alone):
    report, files = alone
    assert report.totals["failed"] == 0
    for result in report.results:
        n_key = int(sum(result.facts["kept"]["key"].values()))
        ours, theirs = (files[f"{result.number:04d}-bob.{site}.key"] for site in ("receiver", "sender"))
        assert len(ours) == len(theirs) == -(-n_key // 8)
        differ = np.unpackbits(np.frombuffer(ours, np.uint8) ^ np.frombuffer(theirs, np.uint8)).sum()
        assert differ == sum(result.facts["errors"]["key"].values()) < 0.02 * n_key
    for basis, by_intensity in report.totals["kept"].items():
        for intensity, n in by_intensity.items():
            assert n == sum(r.facts["kept"][basis][intensity] for r in report.results)
    whole = [sum(report.totals[name]["key"].values()) for name in ("errors", "kept")]
    assert report.totals["qber"]["key"] == whole[0] / whole[1]
    assert json.loads(files["summary.json"])["totals"] == report.totals


def test_another_seed_draws_other_bits_and_nothing_else(work, alone, tmp_path):
    """Some slots have clicks of both detectors: their bits are drawn."""
    from dataclasses import replace

    files, options = work
    report = process_files(files[:1], replace(options, records=options.records[:1], seed=b"x" * 32), out=tmp_path / "o")
    assert report.results[0].events == alone[0].results[0].events
    mine, others = (tmp_path / "o" / "0000-bob.receiver.key").read_bytes(), alone[1]["0000-bob.receiver.key"]
    assert mine != others


def test_pairs_and_counts_over_a_cluster(tmp_path):
    with LinkRun(RunOptions(load_setup("sfifteen-bbm92"), seed=3, duration_s=5.0), tmp_path) as run:
        run.run()
    files = [tmp_path / "bob.parquet"]
    options = ProcessOptions(partners=(tmp_path / "alice.parquet",), window_ps=3000, seed=SEED)
    (tmp_path / "dask").mkdir()
    with cluster(tmp_path / "dask", 1) as (address, _):
        for name, what in (("pairs", options), ("counts", ProcessOptions(seed=SEED))):
            here = process_files(files, what, out=tmp_path / f"{name}-here")
            there = process_files(files, what, out=tmp_path / f"{name}-there", scheduler=address)
            assert here == there
            assert contents(tmp_path / f"{name}-here") == contents(tmp_path / f"{name}-there")
            assert here.totals["failed"] == 0
    assert here.totals["events"] > 100_000


def test_a_broken_file_fails_alone(work, tmp_path):
    files, options = work
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    seen, read = [], []
    report = process_files(
        [tmp_path / "bad.parquet", files[0]],
        ProcessOptions(records=options.records[:1] * 2, period_ps=1000, window_ps=980),
        out=tmp_path / "out",
        on_progress=seen.append,
        on_read=read.append,
    )
    assert report.totals["failed"] == 1
    assert "bad.parquet" in report.results[0].error
    assert not report.results[1].error
    assert [p.files for p in seen] == [1, 2]
    assert max(p.events for p in read) == report.results[1].events
    assert {p.files for p in read} == {1}
    assert max(p.part for p in read) == 1
    assert not [name for name in contents(tmp_path / "out") if name.startswith("0000-bad")]
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0


def test_what_cannot_be_done_is_refused_before_any_work(work, tmp_path):
    files, options = work
    with pytest.raises(ConfigurationError, match="8 sender's records for 1 files"):
        process_files(files[:1], options)
    with pytest.raises(ConfigurationError, match="no files"):
        process_files([])
    (tmp_path / "there").write_text("")
    with pytest.raises(ConfigurationError, match="not empty"):
        process_files(files, options, out=tmp_path)
    with pytest.raises(TransportError, match="cannot be reached"):
        process_files(files, options, scheduler="tcp://127.0.0.1:1", timeout_s=0.5)
    with pytest.raises(ValueError, match="window_ps"):
        ProcessOptions(partners=(tmp_path,))
    assert os.listdir(tmp_path) == ["there"]

"""kill -9 of either site in mid-block, fifty times: both stores readable and equal afterwards, no key out twice."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qkdhw.keys.account import Role
from qkdhw.keys.kek import read_kek_file
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.model import KeyState
from qkdhw_emulators.demo.staging import DemoOptions, StagedSite, stage_sites, write_site_file

KILLS = 50
SEED = 20261
BLOCK_PULSES = 14_000_000
STEP_TIMEOUT_S = 60.0
# A process that is killed leaves no coverage: measuring it would only slow it down.
UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


class SiteProcess:
    """One site's process, its events on a queue."""

    def __init__(self, site: StagedSite, site_file: Path, environment: Mapping[str, str]) -> None:
        self.site = site
        self._file = site_file
        self._environment = {**environment, **site.environment}
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.seen: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        with (self.site.folder / "site.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qkdhw", "link", "run", str(self._file), "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                text=True,
            )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self.events.put(json.loads(line))
            except ValueError:  # a line cut off by the kill
                continue

    def wait_for(self, name: str) -> dict[str, Any]:
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while True:
            try:
                event = self.events.get(timeout=0.5)
            except queue.Empty:
                assert time.monotonic() < deadline, f"{self.site.role}: no {name}; {self.log()}"
                assert self.process.poll() is None, f"{self.site.role} ended: {self.log()}"
                continue
            self.seen[event["event"]] += 1
            if event["event"] == name:
                return event

    def drain(self) -> None:
        while True:
            try:
                self.seen[self.events.get_nowait()["event"]] += 1
            except queue.Empty:
                return

    def log(self) -> str:
        return (self.site.folder / "site.log").read_text(errors="replace")[-1500:]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(STEP_TIMEOUT_S)
        self._thread.join(STEP_TIMEOUT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.drain()
        return code


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def open_store(site: StagedSite) -> SqliteKeyStore:
    return SqliteKeyStore.open(site.folder / "keys.sqlite", read_kek_file(site.folder / "kek"))


def ready_keys(site: StagedSite) -> dict[str, bytes]:
    """Take every key that is still there, to compare the two sites; the stores are thrown away afterwards."""
    with open_store(site) as store:
        ids = [record.key_id for record in store.records(state=KeyState.READY)]
        if ids:
            store.reserve(receiver="test", key_ids=ids)
        out = {}
        for key_id in ids:
            with store.take(key_id, receiver="test") as key:
                out[key_id] = bytes(key)
        return out


def check_after_kill(site: StagedSite) -> None:
    with open_store(site) as store:
        store.verify_audit()
        delivered = Counter(e.change.subject for e in store.audit_entries() if e.change.event == "deliver")
        assert max(delivered.values(), default=0) <= 1


@contextmanager
def running_sites(
    folder: Path, options: DemoOptions, environment: Mapping[str, str] = os.environ
) -> Iterator[dict[Role, SiteProcess]]:
    """Both sites of an emulated link, each in its process; whatever is left of them is killed at the end."""
    sites = stage_sites(folder)
    command = [sys.executable, "-m", "qkdhw_emulators.serve", "--json", "--seed", str(options.seed)]
    command += ["--loss-db", str(options.loss_db), "--misalignment", str(options.misalignment)]
    link = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    running: dict[Role, SiteProcess] = {}
    try:
        assert link.stdout is not None
        urls = json.loads(link.stdout.readline())
        port = free_port()
        for role, site in sites.items():
            channel = f'{"listen" if role == "transmitter" else "connect"} = "127.0.0.1:{port}"'
            site_file = write_site_file(site, options, unit_url=urls[role], channel=channel)
            running[role] = SiteProcess(site, site_file, environment)
        yield running
    finally:
        for process in running.values():
            if process.process.poll() is None:
                process.end(signal.SIGKILL)
        link.terminate()
        link.communicate(timeout=10)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_leave_both_stores_equal_and_no_key_out_twice(tmp_path: Path) -> None:
    options = DemoOptions(
        seed=3, duration_s=6.0, loss_db=6.0, misalignment=0.005, eavesdropper="none",
        block_pulses=BLOCK_PULSES, blocks=0, keys_to_token=2, tls=False,
    )  # fmt: skip
    rng = random.Random(SEED)
    with running_sites(tmp_path, options, UNMEASURED) as running:
        sites = [process.site for process in running.values()]
        for process in running.values():
            process.wait_for("block")
        for _ in range(KILLS):
            victim = running[rng.choice(["transmitter", "receiver"])]
            time.sleep(rng.uniform(0.0, 1.5))
            victim.end(signal.SIGKILL)
            check_after_kill(victim.site)
            for process in running.values():
                process.drain()
            victim.start()
            victim.wait_for("session")
        for process in running.values():
            process.drain()
            process.wait_for("block")
        assert running["receiver"].end(signal.SIGTERM) == 0, running["receiver"].log()
        running["transmitter"].end(signal.SIGTERM)
        blocks = [process.seen["block"] for process in running.values()]
    for site in sites:
        check_after_kill(site)
        with open_store(site) as store:
            assert store.records(state=KeyState.PENDING) == []
            assert store.records(state=KeyState.RESERVED) == []
    transmitter, receiver = (ready_keys(site) for site in sites)
    assert transmitter == receiver
    assert len(transmitter) > 0
    assert min(blocks) > 1


@pytest.mark.slow
@pytest.mark.parametrize("role", ["transmitter", "receiver"])
def test_a_run_of_three_blocks_ends_although_a_site_was_killed_after_the_first(tmp_path: Path, role: Role) -> None:
    options = DemoOptions(
        seed=4, duration_s=6.0, loss_db=6.0, misalignment=0.005, eavesdropper="none",
        block_pulses=BLOCK_PULSES, blocks=3, keys_to_token=2, tls=True,
    )  # fmt: skip
    with running_sites(tmp_path, options) as running:
        running[role].wait_for("exported")
        running[role].end(signal.SIGKILL)
        running[role].start()
        for process in running.values():
            assert process.process.wait(STEP_TIMEOUT_S) == 0, process.log()
            process.end(signal.SIGTERM)
            assert process.seen["end"] == 1
            assert process.seen["block"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("told", ["transmitter", "receiver", "both"])
def test_a_site_that_is_told_to_stop_ends_in_order_and_its_peer_waits_for_it(tmp_path: Path, told: str) -> None:
    options = DemoOptions(
        seed=5, duration_s=6.0, loss_db=6.0, misalignment=0.005, eavesdropper="none",
        block_pulses=BLOCK_PULSES, blocks=0, keys_to_token=0, tls=False,
    )  # fmt: skip
    with running_sites(tmp_path, options) as running:
        for process in running.values():
            process.wait_for("block")
        stopped = [process for role, process in running.items() if told in {role, "both"}]
        for process in stopped:
            process.process.send_signal(signal.SIGTERM)
        assert [process.process.wait(STEP_TIMEOUT_S) for process in stopped] == [0] * len(stopped)
        for process in stopped:
            process.end(signal.SIGTERM)
        if told != "both":
            stopped[0].start()
            stopped[0].wait_for("block")
            for process in running.values():
                process.end(signal.SIGKILL)

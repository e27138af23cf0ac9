"""No file that a run leaves, nor what it prints, holds a byte of key: not in the databases, not after a crash."""

from __future__ import annotations

import base64
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from demo_run import ROLES, TIMEOUT_S, DemoProcess
from key_scan import count_hits, needles_of, scan_file, scan_tree
from numpy.typing import NDArray

from qkdhw.keys.kek import read_kek_file
from qkdhw.keys.segments import segment_associated_data
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.model import KeyState

Needles = NDArray[np.uint64]
ENCODINGS = {
    "raw": lambda key: key,
    "hex": lambda key: key.hex().encode(),
    "HEX": lambda key: key.hex().upper().encode(),
    "base64": base64.b64encode,
    "base64, one byte on": lambda key: base64.b64encode(b"x" + key),
    "base64, two bytes on": lambda key: base64.b64encode(b"xy" + key),
    "base64 for URLs": base64.urlsafe_b64encode,
    "half of it": lambda key: key[9:25],
}


def unwrapped(site: Path, copy: Path) -> dict[str, bytes]:
    """Every key and authentication segment of a site, taken out of a copy of it."""
    shutil.copytree(site, copy)
    with read_kek_file(copy / "kek") as kek, SqliteKeyStore.open(copy / "keys.sqlite", kek) as store:
        found = {}
        ready = [record.key_id for record in store.records(state=KeyState.READY)]
        if ready:
            store.reserve(receiver="test", key_ids=ready)
        for key_id in ready:
            with store.take(key_id, receiver="test") as key:
                found[key_id] = bytes(key)
        with store.database.reading() as connection:
            rows = connection.execute("SELECT segment_id, size_bytes, wrapped FROM segment WHERE wrapped NOT NULL")
            for segment_id, size_bytes, blob in rows.fetchall():
                with store.wrapping.unwrap(blob, segment_associated_data(segment_id, size_bytes)) as segment:
                    found[f"segment {segment_id}"] = bytes(segment)
    return found


def secrets_of(folder: Path, copies: Path) -> dict[str, bytes]:
    transmitter, receiver = (unwrapped(folder / role, copies / role) for role in ROLES)
    both = {**transmitter, **receiver}
    assert all(transmitter[name] == receiver[name] for name in transmitter.keys() & receiver.keys())
    return both


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_run_leaves_no_key_bytes(seed_7: DemoProcess, tmp_path: Path) -> None:
    found = secrets_of(seed_7.folder, tmp_path)
    keys = {name: secret for name, secret in found.items() if not name.startswith("segment")}
    assert len(keys) == seed_7.summary()["totals"]["keys_stored"] - 24
    assert len(found) - len(keys) == 4  # the start key, and one segment a block
    needles = needles_of(found.values())
    assert needles.size == sum(map(len, found.values())) // 8
    names = {path.name for path in seed_7.folder.rglob("*") if path.is_file()}
    assert {"keys.sqlite", "export.journal", "site.log", "site.toml", "kek", "pin"} <= names
    assert any(name.endswith(".object") for name in names)
    assert scan_tree(seed_7.folder, needles) == {}
    assert {path.name for path in seed_7.out.iterdir()} == {"report.html", "stdout", "stderr"}
    assert scan_tree(seed_7.out, needles) == {}
    # The key of keys unwraps the store, so it is in its own file and nowhere else.
    for role in ROLES:
        kek = needles_of([(seed_7.folder / role / "kek").read_bytes()])
        assert scan_tree(seed_7.folder, kek) == {f"{role}/kek": 4}
        assert scan_tree(seed_7.out, kek) == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_crashed_site_leaves_no_key_bytes(tmp_path: Path) -> None:
    """SIGABRT in mid-run with core files allowed: none may appear, and what is left holds no key."""
    folder, here = tmp_path / "kept", tmp_path / "here"
    here.mkdir()
    _, hard_limit = resource.getrlimit(resource.RLIMIT_CORE)
    log = (here / "stdout").open("wb")
    with log, subprocess.Popen(
        [sys.executable, "-m", "qkdhw", "demo", "--seed", "7", "--keep", folder, "--json"],
        stdout=log, stderr=subprocess.PIPE, cwd=here, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard_limit, hard_limit)),  # noqa: PLW1509
    ) as demo:  # fmt: skip
        assert demo.stderr is not None
        said = ""
        for line in demo.stderr:
            said += line
            if line.startswith("block 2:"):
                break
        time.sleep(0.1)
        os.kill(process_with_argument(folder / "receiver" / "site.toml", parent=demo.pid), signal.SIGABRT)
        said += demo.stderr.read()
        assert demo.wait(TIMEOUT_S) == 1
    assert "Traceback" not in said
    assert "receiver: ended by SIGABRT" in said
    (here / "stderr").write_text(said)
    found = secrets_of(folder, tmp_path / "copies")
    assert len(found) > 100
    assert (folder / "receiver" / "keys.sqlite-wal").stat().st_size > 0
    assert {path.name for path in here.iterdir()} == {"stdout", "stderr", "demo-report.html"}
    assert scan_tree(folder, needles_of(found.values())) == {}
    assert scan_tree(here, needles_of(found.values())) == {}


def process_with_argument(argument: Path, *, parent: int) -> int:
    """The child of `parent` that was given this argument."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = [int(pid) for pid in children if str(argument) in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
    return found


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("shift", range(9))
def test_the_search_finds_a_planted_key(name: str, shift: int, tmp_path: Path) -> None:
    keys = [secrets.token_bytes(32) for _ in range(50)]
    noise = secrets.token_bytes(1000)
    around = noise if name in {"raw", "half of it"} else b'{"some": "text", "more": "'
    planted = around + b"." * shift + ENCODINGS[name](keys[17]) + b'"\n' + around
    needles = needles_of(keys)
    assert count_hits(planted, needles) >= 1
    assert count_hits(planted, needles_of([secrets.token_bytes(32)])) == 0
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "log").write_bytes(planted)
    (tmp_path / "clean").write_bytes(noise)
    assert set(scan_tree(tmp_path, needles)) == {"deep/log"}


def test_the_search_sees_the_whole_of_a_large_file(tmp_path: Path) -> None:
    key = secrets.token_bytes(32)
    for place in (0, (1 << 24) - 13, (1 << 24) + 7):
        (tmp_path / "large").write_bytes(bytes(place) + key + bytes(100))
        assert scan_file(tmp_path / "large", needles_of([key])) >= 4


def test_a_key_planted_in_a_copy_of_a_run_is_found(seed_7: DemoProcess, tmp_path: Path) -> None:
    found = secrets_of(seed_7.folder, tmp_path / "copies")
    shutil.copytree(seed_7.folder, tmp_path / "run")
    key = next(iter(found.values()))
    with (tmp_path / "run" / "receiver" / "site.log").open("ab") as log:
        log.write(b"debug: key=" + key.hex().encode() + b"\n")
    assert list(scan_tree(tmp_path / "run", needles_of(found.values()))) == ["receiver/site.log"]

"""`qkdhw keys make-start-key` and `create`: two stores that agree, or nothing at all."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qkdhw.cli.keys import app
from qkdhw.errors import KeyStoreError
from qkdhw.keys.account import AuthenticationAccount
from qkdhw.keys.kek import read_kek_file
from qkdhw.keys.store import SqliteKeyStore


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def create(folder: Path, *, role: str = "transmitter", start_key: str = "start-key") -> dict[str, Any]:
    files = ("--store", folder / f"{role}.sqlite", "--kek", folder / "kek", "--start-key", folder / start_key)
    value: dict[str, Any] = json.loads(run("create", *files, "--role", role, "--json"))
    return value


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_two_sites_that_share_a_start_key(tmp_path: Path) -> None:
    made = json.loads(run("make-start-key", tmp_path / "start-key", "--size", 16384, "--json"))
    assert made == {"file": str(tmp_path / "start-key"), "size_bytes": 16384}
    assert stat.S_IMODE((tmp_path / "start-key").stat().st_mode) == 0o600
    first, second = create(tmp_path), create(tmp_path, role="receiver")
    assert (first["kek_created"], second["kek_created"]) == (True, False)
    assert first["start_key_bytes"] == 16384
    assert stat.S_IMODE((tmp_path / "kek").stat().st_mode) == 0o600
    assert names(tmp_path) == {"start-key", "kek", "transmitter.sqlite", "receiver.sqlite"}
    assert stat.S_IMODE((tmp_path / "receiver.sqlite").stat().st_mode) == 0o600
    with read_kek_file(tmp_path / "kek") as kek:
        masks = []
        for role in ("transmitter", "receiver"):
            with (
                SqliteKeyStore.open(tmp_path / f"{role}.sqlite", kek) as store,
                AuthenticationAccount(store) as account,
            ):
                assert account.role == role
                if role == "transmitter":
                    account.draw_send()
                mask, hash_key = account.mask_and_hash_key(0, 0, "transmitter")
                masks.append((bytes(mask), bytes(hash_key)))
    assert masks[0] == masks[1]
    assert masks[0][0] == (tmp_path / "start-key").read_bytes()[32:48]


def test_what_is_said_to_people(tmp_path: Path) -> None:
    assert "65,536 bytes" in run("make-start-key", tmp_path / "k")
    files = ("--store", tmp_path / "s", "--kek", tmp_path / "kek", "--start-key", tmp_path / "k")
    text = run("create", *files, "--role", "receiver")
    assert "receiver's site" in text
    assert "destroy" in text
    assert (tmp_path / "k").read_bytes().hex() not in text


@pytest.mark.parametrize(
    ("size_bytes", "mode", "message"),
    [
        (16352, 0o600, "16352 bytes"),
        (16400, 0o600, "16400 bytes"),
        (0, 0o600, "0 bytes"),
        ((1 << 24) + 32, 0o600, "16777248 bytes"),
        (16384, 0o640, "others can get at it"),
        (16384, 0o604, "others can get at it"),
    ],
)
def test_a_start_key_that_is_refused_before_anything_is_made(
    tmp_path: Path, size_bytes: int, mode: int, message: str
) -> None:
    (tmp_path / "start-key").write_bytes(bytes(size_bytes))
    (tmp_path / "start-key").chmod(mode)
    with pytest.raises(KeyStoreError, match=message):
        create(tmp_path)
    assert names(tmp_path) == {"start-key"}


def test_nothing_new_is_left_behind_after_an_error(tmp_path: Path) -> None:
    run("make-start-key", tmp_path / "start-key")
    (tmp_path / "transmitter.sqlite").write_text("in the way")
    with pytest.raises(KeyStoreError, match="exists already"):
        create(tmp_path)
    assert names(tmp_path) == {"start-key", "transmitter.sqlite"}
    files = ("--store", tmp_path / "none" / "s", "--kek", tmp_path / "kek", "--start-key", tmp_path / "start-key")
    with pytest.raises(KeyStoreError, match="cannot create key store"):
        run("create", *files, "--role", "receiver")
    same = ("--store", tmp_path / "kek", "--kek", tmp_path / "kek", "--start-key", tmp_path / "start-key")
    with pytest.raises(KeyStoreError, match="cannot create key store"):
        run("create", *same, "--role", "receiver")
    assert names(tmp_path) == {"start-key", "transmitter.sqlite"}
    (tmp_path / "kek").write_bytes(os.urandom(31))
    (tmp_path / "kek").chmod(0o600)
    with pytest.raises(KeyStoreError, match="31 bytes"):
        create(tmp_path, role="receiver")
    assert names(tmp_path) == {"start-key", "transmitter.sqlite", "kek"}  # a KEK that was there is never removed


@pytest.mark.parametrize("limit_bytes", [16, 40000, 70000])
def test_a_full_disk_leaves_nothing_new(tmp_path: Path, limit_bytes: int) -> None:
    run("make-start-key", tmp_path / "start-key")
    words = ["keys", "create", "--store", "s", "--kek", "kek", "--role", "receiver", "--start-key", "start-key"]
    done = subprocess.run(
        [sys.executable, "-m", "qkdhw", *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "KeyStoreError" in done.stderr
    assert "remedy:" in done.stderr
    assert names(tmp_path) == {"start-key"}


def test_a_start_key_is_never_overwritten_and_never_of_a_wrong_size(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("old")
    with pytest.raises(KeyStoreError, match="never overwritten"):
        run("make-start-key", tmp_path / "k")
    assert (tmp_path / "k").read_text() == "old"
    for size_bytes in (-32, 0, 16352, 65537):
        with pytest.raises(KeyStoreError, match="cannot be used"):
            run("make-start-key", tmp_path / "new", "--size", size_bytes)
    assert names(tmp_path) == {"k"}

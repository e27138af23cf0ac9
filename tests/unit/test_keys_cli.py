"""`qkdhw keys`: looks without the KEK, prints one JSON value, never key bits."""

import json
import re
import uuid

import pytest
from rich.console import Console
from typer.testing import CliRunner

from qkdhw.cli.keys import app
from qkdhw.errors import KeyAlreadyTakenError, KeyNotFoundError, KeyStoreError
from qkdhw.keys.account import install_start_key
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.secret import SecretBuffer


@pytest.fixture
def filled(tmp_path):
    path = tmp_path / "keys.db"
    key_ids = [str(uuid.uuid4()) for _ in range(3)]
    with (
        SecretBuffer.random(32) as kek,
        SecretBuffer.random(32 + 32 * 50) as start,
        SecretBuffer.random(32) as key,
        SqliteKeyStore.create(path, kek) as store,
    ):
        install_start_key(store, start, role="transmitter")
        for key_id in key_ids:
            store.put(key_id=key_id, link="east", block_id=1, key=key, metadata={"proof": "rigorous"})
        store.activate(key_ids[:2])
        yield path, key_ids, key.slice_copy(0, 32), store


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def run_json(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_list_while_the_store_is_in_use(filled):
    path, key_ids, _, _ = filled
    assert [record["key_id"] for record in run_json("list", "--store", path)] == key_ids
    (pending,) = run_json("list", "--store", path, "--state", "pending")
    assert pending["key_id"] == key_ids[2]
    assert pending["size_bits"] == 256


@pytest.mark.parametrize("columns", [80, 50])
def test_list_cuts_no_key_id(filled, columns, monkeypatch):
    path, key_ids, _, store = filled
    key_ids.append(str(uuid.uuid4()))
    with SecretBuffer.random(32) as key:
        store.put(key_id=key_ids[-1], link="alice-bob-metropolitan", block_id=1234567, key=key, metadata={})
    store.reserve(receiver="gateway-1", key_ids=key_ids[:1])
    monkeypatch.setattr("qkdhw.cli.keys.out", Console(width=columns))
    text = run("list", "--store", path).stdout
    if columns < 80:  # folded, and longer than all that stands beside it
        text = "".join(line.split(maxsplit=1)[0] for line in text.splitlines() if line.strip())
    assert all(key_id in text for key_id in key_ids)


def test_list_the_newest(filled):
    path, key_ids, _, _ = filled
    assert [record["key_id"] for record in run_json("list", "--store", path, "--limit", 2)] == key_ids[1:]
    assert len(run_json("list", "--store", path, "--limit", 9)) == 3
    assert run("list", "--store", path, "--limit", 0).exit_code == 2


def test_show(filled):
    path, key_ids, _, _ = filled
    value = run_json("show", key_ids[0], "--store", path)
    assert value["metadata"] == {"proof": "rigorous"}
    assert [entry["event"] for entry in value["history"]] == ["put", "activate"]
    with pytest.raises(KeyNotFoundError):
        run("show", str(uuid.uuid4()), "--store", path)


def test_status(filled):
    value = run_json("status", "--store", filled[0])
    assert value["keys"] == {"pending": 1, "ready": 2, "reserved": 0, "delivered": 0, "burnt": 0}
    assert value["authentication"] == {"active_segments": 1, "send_masks": 50, "receive_masks": 50}


def test_audit(filled):
    value = run_json("audit", "--store", filled[0])
    assert value["verified"] is True
    assert len(value["entries"]) == 6
    assert len(value["head"]) == 64


def test_the_end_of_the_audit_with_readable_times(filled, monkeypatch):
    monkeypatch.setattr("qkdhw.cli.keys.out", Console(width=160))
    value = run_json("audit", "--store", filled[0], "--last", 2)
    assert [entry["sequence"] for entry in value["entries"]] == [5, 6]
    text = run("audit", "--store", filled[0], "--last", 2).stdout
    assert len(re.findall(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)) == 2
    assert "verified: 6 entries" in text


def test_burn(filled):
    path, key_ids, _, store = filled
    with pytest.raises(KeyStoreError, match="another process"):
        run("burn", key_ids[0], "--store", path, "--reason", "test")
    store.close()
    assert run_json("burn", key_ids[0], "--store", path, "--reason", "found on a train")["state"] == "burnt"
    with pytest.raises(KeyAlreadyTakenError):
        run("burn", key_ids[0], "--store", path, "--reason", "again")
    assert run_json("audit", "--store", path)["entries"][-1]["detail"] == "found on a train"


@pytest.mark.parametrize("command", ["list", "show", "status", "audit"])
def test_text_has_no_key_bits(filled, command):
    path, key_ids, key, _ = filled
    result = run(command, *([key_ids[0]] if command == "show" else []), "--store", path)
    assert result.exit_code == 0
    assert result.stdout
    assert bytes(key).hex() not in result.stdout.lower()


def test_no_store(tmp_path):
    with pytest.raises(KeyStoreError, match="no key store"):
        run("status", "--store", tmp_path / "none.db")

"""The key store: what it keeps, what it refuses, and what never reaches the disk."""

import base64
import itertools
import os
import sqlite3
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from qkdhw.errors import (
    KeyAlreadyTakenError,
    KeyExhaustedError,
    KeyNotFoundError,
    KeyStateError,
    KeyStoreError,
)
from qkdhw.interfaces import KeyStore
from qkdhw.keys.ledger import NewKey
from qkdhw.keys.segments import NewSegment, SegmentState
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.model import KeyState
from qkdhw.secret import SecretBuffer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def kek():
    with SecretBuffer.random(32) as buffer:
        yield buffer


@pytest.fixture
def store(tmp_path, kek):
    with SqliteKeyStore.create(tmp_path / "keys.db", kek, clock_ns=itertools.count(1000).__next__) as opened:
        yield opened


def put_key(store, content=b"k" * 32, **metadata) -> str:
    key_id = str(uuid.uuid4())
    with SecretBuffer(len(content)) as key:
        key.copy_from(content)
        store.put(key_id=key_id, link="east", block_id=7, key=key, metadata=metadata)
    return key_id


def put_block(store, block_id=1, keys=2, session="s1", segment=True) -> list[str]:
    key_ids = [str(uuid.uuid4()) for _ in range(keys)]
    with SecretBuffer.random(32) as key, SecretBuffer.random(96) as share:
        store.put_block(
            link="east",
            session=session,
            block_id=block_id,
            digest=b"transcript",
            keys=[NewKey(key_id, key, {"qber": 0.02}) for key_id in key_ids],
            segment=NewSegment(1000 + block_id, share) if segment else None,
        )
    return key_ids


def files_content(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))


def test_it_is_a_key_store(store):
    checked: KeyStore = store
    assert checked.records() == []


def test_life_of_a_key(store):
    key_id = put_key(store, b"0123456789abcdef", proof="rigorous")
    assert store.record(key_id).state is KeyState.PENDING
    store.activate([key_id])
    (record,) = store.reserve(receiver="bob")
    assert (record.key_id, record.state, record.receiver) == (key_id, KeyState.RESERVED, "bob")
    assert (record.link, record.block_id, record.size_bits) == ("east", 7, 128)
    assert record.metadata == {"proof": "rigorous"}
    with store.take(key_id, receiver="bob") as key:
        assert key == b"0123456789abcdef"
    assert store.counts() == {state: int(state is KeyState.DELIVERED) for state in KeyState}
    with pytest.raises(KeyAlreadyTakenError) as caught:
        store.take(key_id, receiver="bob")
    assert caught.value.state == "delivered"


def test_survives_reopening(tmp_path, kek):
    with SqliteKeyStore.create(tmp_path / "k.db", kek) as store:
        key_id = put_key(store)
        store.activate([key_id])
    with SqliteKeyStore.open(tmp_path / "k.db", kek) as store:
        store.reserve(receiver="bob", key_ids=[key_id])
        with store.take(key_id, receiver="bob") as key:
            assert key == b"k" * 32


def test_reserve_gives_the_oldest(store):
    key_ids = [put_key(store) for _ in range(4)]
    store.activate(key_ids[1:])
    assert [record.key_id for record in store.reserve(receiver="bob", count=2)] == key_ids[1:3]


def test_reserve_exactly_these_or_none(store):
    key_ids = [put_key(store) for _ in range(3)]
    store.activate(key_ids[:2])
    with pytest.raises(KeyStateError):
        store.reserve(receiver="bob", key_ids=key_ids)
    with pytest.raises(KeyNotFoundError):
        store.reserve(receiver="bob", key_ids=[key_ids[0], str(uuid.uuid4())])
    with pytest.raises(KeyStateError):  # twice the same
        store.reserve(receiver="bob", key_ids=[key_ids[0], key_ids[0]])
    assert store.counts()[KeyState.READY] == 2
    chosen = store.reserve(receiver="bob", key_ids=[key_ids[1], key_ids[0]])
    assert [record.key_id for record in chosen] == [key_ids[1], key_ids[0]]


def test_reserve_more_than_there_are(store):
    store.activate([put_key(store)])
    with pytest.raises(KeyExhaustedError) as caught:
        store.reserve(receiver="bob", count=2)
    assert (caught.value.asked, caught.value.available) == (2, 1)
    assert store.counts()[KeyState.READY] == 1


@pytest.mark.parametrize(("receiver", "count"), [("", 1), ("bob", 0), ("bob", -1)])
def test_reserve_for_nobody_or_nothing(store, receiver, count):
    with pytest.raises(ValueError, match="cannot reserve"):
        store.reserve(receiver=receiver, count=count)


def test_a_foreign_key_looks_like_none(store):
    key_id = put_key(store)
    store.activate([key_id])
    store.reserve(receiver="bob")
    unknown = str(uuid.uuid4())
    messages = []
    for asked in (key_id, unknown):
        with pytest.raises(KeyNotFoundError) as caught:
            store.take(asked, receiver="eve")
        messages.append(str(caught.value).replace(asked, ""))
    assert messages[0] == messages[1]
    store.take(key_id, receiver="bob").close()
    with pytest.raises(KeyNotFoundError):
        store.take(key_id, receiver="eve")


def test_burn_all_or_none(store):
    key_ids = [put_key(store) for _ in range(2)]
    with pytest.raises(KeyNotFoundError):
        store.burn([*key_ids, str(uuid.uuid4())], reason="test")
    assert store.counts()[KeyState.PENDING] == 2
    store.burn(key_ids, reason="test")
    assert store.counts()[KeyState.BURNT] == 2
    with pytest.raises(KeyAlreadyTakenError):
        store.burn(key_ids, reason="again")


def test_a_key_id_is_used_once(store):
    key_id = put_key(store)
    store.burn([key_id], reason="test")
    with SecretBuffer(32) as key, pytest.raises(KeyStoreError, match="exists already"):
        store.put(key_id=key_id, link="east", block_id=8, key=key, metadata={})


@pytest.mark.parametrize("key_id", ["", "1", "6A5BFEFA-752F-48AF-8409-25C3A8674B73", "' OR 1=1 --"])
def test_key_ids_have_one_spelling(store, key_id):
    with SecretBuffer(32) as key, pytest.raises(ValueError, match=r"UUID|badly formed"):
        store.put(key_id=key_id, link="east", block_id=8, key=key, metadata={})
    assert store.records() == []


@pytest.mark.parametrize("value", [object(), float("nan"), b"bytes"])
def test_metadata_is_json(store, value):
    with SecretBuffer(32) as key, pytest.raises(ValueError, match="JSON"):
        store.put(key_id=str(uuid.uuid4()), link="east", block_id=8, key=key, metadata={"a": value})


# --- blocks -------------------------------------------------------------------------------------------------------
def test_block_is_activated_as_one(store):
    key_ids = put_block(store)
    (block,) = store.blocks()
    assert (block.session, block.block_id, block.link, block.digest) == ("s1", 1, "east", b"transcript")
    assert block.state is KeyState.PENDING
    assert {record.state for record in store.records()} == {KeyState.PENDING}
    store.activate_block(session="s1", block_id=1)
    assert [record.key_id for record in store.records(state=KeyState.READY)] == key_ids
    assert store.blocks(state=KeyState.READY)[0].block_id == 1
    assert store.segments()[0].state is SegmentState.ACTIVE
    with pytest.raises(KeyStateError):
        store.activate_block(session="s1", block_id=1)


def test_block_is_burnt_as_one_but_for_delivered_keys(store):
    key_ids = put_block(store, keys=3)
    store.activate_block(session="s1", block_id=1)
    store.reserve(receiver="bob", count=2)
    store.take(key_ids[0], receiver="bob").close()
    store.burn_block(session="s1", block_id=1, reason="peer lost it")
    assert [record.state for record in store.records()] == ["delivered", "burnt", "burnt"]
    assert store.segments()[0].state is SegmentState.BURNT
    for change in (store.activate_block, lambda **block: store.burn_block(**block, reason="x")):
        with pytest.raises(KeyStateError):
            change(session="s1", block_id=1)


def test_block_is_stored_whole_or_not_at_all(store):
    (taken,) = put_block(store, keys=1)
    before = (store.blocks(), store.records(), store.segments(), store.audit_entries())
    with SecretBuffer.random(32) as key, SecretBuffer.random(96) as share:
        good, bad = NewKey(str(uuid.uuid4()), key, {}), NewKey(taken, key, {})
        fields = {"link": "east", "session": "s1", "digest": b"d"}
        with pytest.raises(KeyStoreError, match="exists already"):
            store.put_block(block_id=2, keys=[good, bad], **fields)
        with pytest.raises(KeyStoreError, match="exists already"):
            store.put_block(block_id=1, keys=[good], **fields)
        with pytest.raises(KeyStoreError, match=r"segment .* exists already"):
            store.put_block(block_id=2, keys=[good], segment=NewSegment(1001, share), **fields)
        with pytest.raises(ValueError, match="32 bytes"):
            store.put_block(block_id=2, keys=[good], segment=NewSegment(5, key), **fields)
    assert (store.blocks(), store.records(), store.segments(), store.audit_entries()) == before


def test_unknown_block(store):
    with pytest.raises(KeyNotFoundError, match="no block s9/1"):
        store.activate_block(session="s9", block_id=1)


# --- opening ------------------------------------------------------------------------------------------------------
def test_wrong_kek_is_told(tmp_path, kek, store):
    store.close()
    with SecretBuffer.random(32) as other, pytest.raises(KeyStoreError, match="not the one"):
        SqliteKeyStore.open(tmp_path / "keys.db", other)
    SqliteKeyStore.open(tmp_path / "keys.db", kek).close()


def test_second_writer_is_refused_readers_are_not(tmp_path, kek, store):
    key_id = put_key(store)
    with pytest.raises(KeyStoreError, match="open for writing in another process") as caught:
        SqliteKeyStore.open(tmp_path / "keys.db", kek)
    assert caught.value.remedy
    with SqliteKeyStore.open(tmp_path / "keys.db", None, read_only=True) as reader:
        assert reader.record(key_id).state is KeyState.PENDING
        with pytest.raises(KeyStoreError, match="read-only"):
            reader.burn([key_id], reason="x")
        store.activate([key_id])
        assert reader.record(key_id).state is KeyState.READY


def test_second_writer_is_refused_through_a_link_too(tmp_path, kek, store):
    (tmp_path / "alias.db").symlink_to(tmp_path / "keys.db")
    with pytest.raises(KeyStoreError, match="open for writing in another process"):
        SqliteKeyStore.open(tmp_path / "alias.db", kek)


def test_without_kek_nothing_is_wrapped_or_taken(tmp_path, store):
    key_id = put_key(store)
    store.activate([key_id])
    store.close()
    with SqliteKeyStore.open(tmp_path / "keys.db", None) as blind:
        blind.reserve(receiver="bob")
        with pytest.raises(KeyStoreError, match="without a KEK"):
            blind.take(key_id, receiver="bob")
        with pytest.raises(KeyStoreError, match="without a KEK"):
            put_key(blind)
        assert blind.counts()[KeyState.RESERVED] == 1


def test_not_a_store(tmp_path, kek):
    (tmp_path / "text").write_text("not a database, just some text\n" * 100)
    (tmp_path / "empty").write_bytes(b"")
    sqlite3.connect(tmp_path / "other.db").close()
    for name in ("text", "empty", "other.db", "missing"):
        with pytest.raises(KeyStoreError) as caught:
            SqliteKeyStore.open(tmp_path / name, kek)
        assert caught.value.remedy
    assert not (tmp_path / "missing").exists()


def test_create_never_overwrites(tmp_path, kek, store):
    put_key(store)
    with pytest.raises(KeyStoreError, match="exists already"):
        SqliteKeyStore.create(tmp_path / "keys.db", kek)
    assert len(store.records()) == 1


def test_create_where_nothing_can_be(tmp_path, kek):
    with pytest.raises(KeyStoreError, match="cannot create"):
        SqliteKeyStore.create(tmp_path / "none" / "keys.db", kek)


def test_short_kek(tmp_path):
    with SecretBuffer(16) as short, pytest.raises(KeyStoreError, match="16 bytes, not 32"):
        SqliteKeyStore.create(tmp_path / "k.db", short)
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_can_read_the_files(tmp_path, store):
    put_key(store)
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


def test_closed_store_refuses(store):
    store.close()
    store.close()
    with pytest.raises(KeyStoreError, match="closed"):
        store.counts()


# --- failing disks ------------------------------------------------------------------------------------------------
def test_full_disk_is_told_and_nothing_is_half_written(store):
    first = put_key(store)
    pages = store.database.connection.execute("PRAGMA page_count").fetchone()[0]
    store.database.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(KeyStoreError, match="full") as caught:
        put_block(store, keys=200)
    assert "disk is full" in caught.value.remedy
    assert [record.key_id for record in store.records()] == [first]
    assert store.blocks() == []
    store.verify_audit()


def test_failing_commit_closes_the_store(tmp_path, kek):
    # In a child of its own: no file may grow beyond 200 kB, so that a write fails for real.
    with SqliteKeyStore.create(tmp_path / "keys.db", kek):
        pass
    (tmp_path / "kek").write_bytes(bytes(kek))
    (tmp_path / "kek").chmod(0o600)
    code = """
import resource, signal, sys, uuid
from pathlib import Path
from qkdhw.errors import KeyStoreError
from qkdhw.keys.kek import read_kek_file
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.secret import SecretBuffer
directory = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
store = SqliteKeyStore.open(directory / "keys.db", read_kek_file(directory / "kek"))
key = SecretBuffer.random(32)
done = 0
try:
    while done < 10_000:
        store.put(key_id=str(uuid.uuid4()), link="a", block_id=done, key=key, metadata={})
        done += 1
except KeyStoreError as error:
    print(done, "|", error, "|", error.remedy)
try:
    store.counts()
except KeyStoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    first, second = done.stdout.splitlines()
    acknowledged = int(first.split("|")[0])
    assert acknowledged < 10_000
    assert "disk" in first.split("|")[2]
    assert "is closed because" in second
    with SqliteKeyStore.open(tmp_path / "keys.db", kek) as store:
        assert len(store.records()) in {acknowledged, acknowledged + 1}
        store.verify_audit()


def test_use_from_another_thread_is_a_typed_error(store):
    caught = []

    def use():
        try:
            store.counts()
        except KeyStoreError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(caught) == 1


# --- what reaches the disk ----------------------------------------------------------------------------------------
def test_canary_keys_are_nowhere_on_the_disk(tmp_path, store):
    canaries = [os.urandom(32) for _ in range(20)]
    key_ids = [put_key(store, canary) for canary in canaries]
    store.activate(key_ids)
    store.reserve(receiver="bob", count=15)
    for key_id in key_ids[:10]:
        store.take(key_id, receiver="bob").close()
    store.burn(key_ids[10:12], reason="test")
    open_content = files_content(tmp_path)
    assert key_ids[0].encode() in open_content  # the scan looks at the right files
    store.close()
    for content in (open_content, files_content(tmp_path)):
        for canary in canaries:
            for form in (canary[:12], canary[10:22]):
                assert form not in content
            assert canary.hex()[:24].encode() not in content.lower()
            for shift in range(3):
                assert base64.b64encode(bytes(shift) + canary)[4:24] not in content


def test_terminal_keys_have_no_wrapped_key_left(store):
    key_ids = [put_key(store) for _ in range(3)]
    store.activate(key_ids)
    store.reserve(receiver="bob")
    store.take(key_ids[0], receiver="bob").close()
    store.burn([key_ids[1]], reason="test")
    rows = store.database.connection.execute("SELECT wrapped IS NULL FROM key ORDER BY sequence").fetchall()
    assert rows == [(1,), (1,), (0,)]


def test_wrapped_keys_are_bound_to_their_row(tmp_path, kek, store):
    key_ids = [put_key(store, bytes([n]) * 32) for n in range(2)]
    store.activate(key_ids)
    store.reserve(receiver="bob", count=2)
    store.close()
    raw = sqlite3.connect(tmp_path / "keys.db")
    one, two = (row[0] for row in raw.execute("SELECT wrapped FROM key ORDER BY sequence"))
    raw.execute("UPDATE key SET wrapped = ? WHERE key_id = ?", (two, key_ids[0]))
    raw.execute("UPDATE key SET wrapped = ? WHERE key_id = ?", (one[:-1] + bytes([one[-1] ^ 1]), key_ids[1]))
    raw.commit()
    raw.close()
    with SqliteKeyStore.open(tmp_path / "keys.db", kek) as store:
        for key_id in key_ids:
            with pytest.raises(KeyStoreError, match="does not unwrap"):
                store.take(key_id, receiver="bob")
            with pytest.raises(KeyAlreadyTakenError):  # and it is gone all the same
                store.take(key_id, receiver="bob")


# --- audit --------------------------------------------------------------------------------------------------------
def test_every_transition_has_its_entry(store):
    key_id = put_key(store)
    store.activate([key_id])
    store.reserve(receiver="bob")
    store.take(key_id, receiver="bob").close()
    entries = store.audit_entries()
    assert [(e.change.event, e.change.state, e.change.detail) for e in entries] == [
        ("put", "pending", "32 bytes of east"),
        ("activate", "ready", ""),
        ("reserve", "reserved", "bob"),
        ("deliver", "delivered", "bob"),
    ]
    assert [e.time_unix_ns for e in entries] == [1000, 1001, 1002, 1003]
    assert {e.change.subject for e in entries} == {f"key {key_id}"}
    summary = store.verify_audit()
    assert (summary.entries, summary.head) == (4, entries[-1].digest.hex())


@pytest.mark.parametrize("statement", ["UPDATE audit SET detail = 'x'", "DELETE FROM audit"])
def test_audit_is_append_only(store, statement):
    put_key(store)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        store.database.connection.execute(statement)


@pytest.mark.parametrize(
    ("tampering", "message"),
    [
        ("UPDATE audit SET detail = 'mallory' WHERE sequence = 3", "entry 3"),
        ("UPDATE audit SET time_unix_ns = 0 WHERE sequence = 2", "entry 2"),
        ("DELETE FROM audit WHERE sequence = 2", "entry 2"),
        ("DELETE FROM audit WHERE sequence = 4", "not in the state"),
        ("UPDATE key SET state = 'ready', wrapped = x'00'", "not in the state"),
        ("DELETE FROM key", "not in the state"),
    ],
)
def test_tampering_is_found(tmp_path, store, tampering, message):
    key_id = put_key(store)
    store.activate([key_id])
    store.reserve(receiver="bob")
    store.take(key_id, receiver="bob").close()
    store.close()
    raw = sqlite3.connect(tmp_path / "keys.db")
    raw.executescript("DROP TRIGGER audit_never_changes; DROP TRIGGER audit_never_shrinks;")
    raw.execute(tampering)
    raw.commit()
    raw.close()
    with SqliteKeyStore.open(tmp_path / "keys.db", None) as store, pytest.raises(KeyStoreError, match=message):
        store.verify_audit()

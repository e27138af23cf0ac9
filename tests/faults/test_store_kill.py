"""kill -9 a process that works on a key store, again and again: nothing acknowledged is lost, nothing is given twice."""

import hashlib
import os
import random
import signal
import time
import uuid
from pathlib import Path

import pytest

from qkdhw.errors import AuthenticationKeyExhaustedError
from qkdhw.keys.account import AuthenticationAccount, install_start_key
from qkdhw.keys.kek import create_kek_file, read_kek_file
from qkdhw.keys.ledger import NewKey
from qkdhw.keys.segments import NewSegment, SegmentState
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.model import KeyState
from qkdhw.secret import SecretBuffer

KILLS = 40
ORDER = [KeyState.PENDING, KeyState.READY, KeyState.RESERVED, KeyState.DELIVERED, KeyState.BURNT]

HALF_DONE = """
SELECT COUNT(*) FROM block
    LEFT JOIN key USING (session, block_id)
    JOIN segment USING (session, block_id)
WHERE key.key_id IS NULL
    OR (block.state = 'pending') IS NOT (key.state = 'pending')
    OR (block.state = 'pending') IS NOT (segment.state = 'pending')
"""


def open_store(directory: Path) -> SqliteKeyStore:
    with read_kek_file(directory / "kek") as kek:
        return SqliteKeyStore.open(directory / "keys.db", kek)


class Worker:
    """What the child does until it is killed; each line it writes is an acknowledgement that somebody acts on."""

    def __init__(self, directory: Path, run: int, acknowledgements: int) -> None:
        self.store = open_store(directory)
        self.account = AuthenticationAccount(self.store)
        self.session = f"run {run}"
        self.first_segment_id = 1 + 10_000 * run
        self.fd = acknowledgements

    def acknowledge(self, *words: object) -> None:
        os.write(self.fd, (" ".join(str(word) for word in words) + "\n").encode())

    def work(self) -> None:
        for record in self.store.records(state=KeyState.RESERVED):
            self.take(record.key_id)
        block_id = 0
        while True:
            block_id += 1
            self.put_and_activate(block_id)
            for record in self.store.reserve(receiver="bob", count=2):
                self.take(record.key_id)
            self.draw_masks()
            self.accept_messages()
            if block_id % 3 == 0:
                self.burn_one()

    def put_and_activate(self, block_id: int) -> None:
        key_ids = [str(uuid.uuid4()) for _ in range(3)]
        with SecretBuffer.random(32) as key, SecretBuffer.random(32 + 32 * 8) as share:
            self.store.put_block(
                link="east",
                session=self.session,
                block_id=block_id,
                digest=hashlib.sha256(key_ids[0].encode()).digest(),
                keys=[NewKey(key_id, key, {}) for key_id in key_ids],
                segment=NewSegment(self.first_segment_id + block_id, share),
            )
            self.acknowledge("state", "pending", *key_ids)
        self.store.activate_block(session=self.session, block_id=block_id)
        self.acknowledge("state", "ready", *key_ids)

    def take(self, key_id: str) -> None:
        with self.store.take(key_id, receiver="bob") as key:
            self.acknowledge("taken", key_id, len(key))

    def draw_masks(self) -> None:
        for _ in range(3):
            try:
                drawn = self.account.draw_send()
            except AuthenticationKeyExhaustedError:
                return
            for part in self.account.mask_and_hash_key(drawn.segment_id, drawn.index, "transmitter"):
                part.close()
            self.acknowledge("mask", drawn.segment_id, drawn.index)

    def accept_messages(self) -> None:
        segment = self.store.segments(state=SegmentState.ACTIVE)[-1]
        for index in range(segment.receive_floor + 1, min(segment.receive_floor + 4, segment.masks)):
            self.account.accept_receive(segment.segment_id, index)
            self.acknowledge("accepted", segment.segment_id, index)

    def burn_one(self) -> None:
        key_id = self.store.records(state=KeyState.READY)[0].key_id
        self.store.burn([key_id], reason="test")
        self.acknowledge("state", "burnt", key_id)


def run_and_kill(directory: Path, run: int, after_s: float) -> list[list[str]]:
    """Fork a worker, kill it `after_s` after its first acknowledgement, return all of them."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            Worker(directory, run, writing).work()
        finally:
            os._exit(1)
    os.close(writing)
    first = os.read(reading, 65536)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    acknowledgements = read_acknowledgements(reading, first)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the worker ended by itself"
    return acknowledgements


def read_acknowledgements(fd: int, first: bytes = b"") -> list[list[str]]:
    with os.fdopen(fd, "rb") as rest:
        return [line.split() for line in (first + rest.read()).decode().splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9(tmp_path):
    create_kek_file(tmp_path / "kek")
    with (
        read_kek_file(tmp_path / "kek") as kek,
        SqliteKeyStore.create(tmp_path / "keys.db", kek) as store,
        SecretBuffer.random(32 + 32 * 200) as start,
    ):
        install_start_key(store, start, role="transmitter")
    chance = random.Random(20)
    acknowledgements: list[list[str]] = []
    for run in range(KILLS):
        acknowledgements += run_and_kill(tmp_path, run, chance.uniform(0.0, 0.08))
        with open_store(tmp_path) as store:
            check_store(store, acknowledgements)
    for kind in ("taken", "mask", "accepted"):
        assert sum(words[0] == kind for words in acknowledgements) > KILLS


def check_store(store: SqliteKeyStore, acknowledgements: list[list[str]]) -> None:
    """Hold a store that was opened after a crash against everything that was ever acknowledged."""
    at_least: dict[str, KeyState] = {}
    once: dict[str, list[tuple[str, ...]]] = {"taken": [], "mask": [], "accepted": []}
    for kind, *words in acknowledgements:
        if kind == "state":
            at_least.update(dict.fromkeys(words[1:], KeyState(words[0])))
        else:
            once[kind].append(tuple(words))
    at_least.update(dict.fromkeys((key_id for key_id, _ in once["taken"]), KeyState.DELIVERED))
    assert len(once["taken"]) == len(set(once["taken"])), "a key was delivered twice"
    assert len(once["mask"]) == len(set(once["mask"])), "a mask was used twice"
    assert len(once["accepted"]) == len(set(once["accepted"])), "a message was accepted twice"
    records = {record.key_id: record for record in store.records()}
    assert at_least.keys() <= records.keys(), "an acknowledged key is lost"
    for key_id, state in at_least.items():
        assert ORDER.index(records[key_id].state) >= ORDER.index(state), "an acknowledged change is lost"
    assert all(records[key_id].state is KeyState.DELIVERED for key_id, _ in once["taken"])
    segments = {str(segment.segment_id): segment for segment in store.segments()}
    for segment_id, index in once["mask"]:
        assert segments[segment_id].send_reserved > int(index), "a mask could be used again"
    for segment_id, index in once["accepted"]:
        assert segments[segment_id].receive_floor >= int(index), "a message could be accepted again"
    connection = store.database.connection
    assert connection.execute(HALF_DONE).fetchone() == (0,), "a block is half done"
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the file is damaged"
    store.verify_audit()

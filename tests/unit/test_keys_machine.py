"""A random walk through the store beside a plain dictionary: both agree after every step, and after reopening."""

import shutil
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from qkdhw.errors import KeyAlreadyTakenError, KeyExhaustedError, KeyNotFoundError, KeyStateError, KeyStoreError
from qkdhw.keys.ledger import NewKey
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.model import KeyState
from qkdhw.secret import SecretBuffer

REFUSED = (KeyAlreadyTakenError, KeyStateError)


class StoreMachine(RuleBasedStateMachine):
    key_ids = Bundle("key_ids")
    blocks = Bundle("blocks")

    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.kek = SecretBuffer.random(32)
        self.store = SqliteKeyStore.create(self.directory / "keys.db", self.kek)
        self.state: dict[str, str] = {}
        self.content: dict[str, bytes] = {}
        self.receiver: dict[str, str] = {}
        self.block: dict[int, tuple[str, list[str]]] = {}
        self.delivered = 0

    def teardown(self):
        self.store.close()
        self.kek.close()
        shutil.rmtree(self.directory)

    def new_key(self, content: bytes) -> NewKey:
        key = SecretBuffer(len(content))
        key.copy_from(content)
        key_id = str(uuid.uuid4())
        self.state[key_id] = "pending"
        self.content[key_id] = content
        return NewKey(key_id, key, {})

    @rule(target=key_ids, content=st.binary(max_size=64))
    def put(self, content):
        new = self.new_key(content)
        with new.key:
            self.store.put(key_id=new.key_id, link="a", block_id=0, key=new.key, metadata={})
        return new.key_id

    @rule(target=blocks, contents=st.lists(st.binary(min_size=1, max_size=32), max_size=3))
    def put_block(self, contents):
        block_id = len(self.block)
        keys = [self.new_key(content) for content in contents]
        self.store.put_block(link="a", session="s", block_id=block_id, digest=b"", keys=keys)
        for new in keys:
            new.key.close()
        self.block[block_id] = ("pending", [new.key_id for new in keys])
        return block_id

    def allowed(self, ids, before, call):
        """Do it; it must work exactly if all keys are in one of these states."""
        if all(self.state[key_id] in before for key_id in ids) and len(set(ids)) == len(ids):
            call()
            return True
        with pytest.raises(REFUSED):
            call()
        return False

    @rule(ids=st.lists(key_ids, max_size=3))
    def activate(self, ids):
        if self.allowed(ids, {"pending"}, lambda: self.store.activate(ids)):
            self.state.update(dict.fromkeys(ids, "ready"))

    @rule(ids=st.lists(key_ids, max_size=2))
    def burn(self, ids):
        if self.allowed(ids, {"pending", "ready", "reserved"}, lambda: self.store.burn(ids, reason="r")):
            self.state.update(dict.fromkeys(ids, "burnt"))

    @rule(ids=st.lists(key_ids, max_size=3), receiver=st.sampled_from("xy"))
    def reserve_these(self, ids, receiver):
        if self.allowed(ids, {"ready"}, lambda: self.store.reserve(receiver=receiver, key_ids=ids)):
            self.state.update(dict.fromkeys(ids, "reserved"))
            self.receiver.update(dict.fromkeys(ids, receiver))

    @rule(count=st.integers(1, 3), receiver=st.sampled_from("xy"))
    def reserve_oldest(self, count, receiver):
        ready = [key_id for key_id, state in self.state.items() if state == "ready"]
        if len(ready) < count:
            with pytest.raises(KeyExhaustedError):
                self.store.reserve(receiver=receiver, count=count)
            return
        got = [record.key_id for record in self.store.reserve(receiver=receiver, count=count)]
        assert got == ready[:count]
        self.state.update(dict.fromkeys(got, "reserved"))
        self.receiver.update(dict.fromkeys(got, receiver))

    @rule(key_id=key_ids, receiver=st.sampled_from("xy"))
    def take(self, key_id, receiver):
        if self.receiver.get(key_id, receiver) != receiver:
            with pytest.raises(KeyNotFoundError):
                self.store.take(key_id, receiver=receiver)
        elif self.state[key_id] == "reserved":
            with self.store.take(key_id, receiver=receiver) as key:
                assert key == self.content[key_id]
            self.state[key_id] = "delivered"
            self.delivered += 1
        else:
            with pytest.raises(REFUSED):
                self.store.take(key_id, receiver=receiver)

    @rule(block_id=blocks)
    def activate_block(self, block_id):
        state, ids = self.block[block_id]
        if state != "pending":
            with pytest.raises(KeyStateError):
                self.store.activate_block(session="s", block_id=block_id)
            return
        self.store.activate_block(session="s", block_id=block_id)
        self.block[block_id] = ("ready", ids)
        self.state.update({key_id: "ready" for key_id in ids if self.state[key_id] == "pending"})

    @rule(block_id=consumes(blocks))
    def burn_block(self, block_id):
        self.store.burn_block(session="s", block_id=block_id, reason="r")
        with pytest.raises(KeyStateError):
            self.store.burn_block(session="s", block_id=block_id, reason="r")
        ids = self.block[block_id][1]
        self.block[block_id] = ("burnt", ids)
        self.state.update({key_id: "burnt" for key_id in ids if self.state[key_id] != "delivered"})

    @rule(target=key_ids, block_id=blocks)
    def name_a_key_of_a_block(self, block_id):
        ids = self.block[block_id][1]
        return ids[0] if ids else self.put(b"none")

    @rule()
    def reopen(self):
        self.store.close()
        with pytest.raises(KeyStoreError):
            self.store.counts()
        self.store = SqliteKeyStore.open(self.directory / "keys.db", self.kek)

    @invariant()
    def agrees(self):
        assert {record.key_id: record.state for record in self.store.records()} == self.state
        assert {block.block_id: block.state for block in self.store.blocks()} == {
            block_id: state for block_id, (state, _) in self.block.items()
        }
        assert self.store.counts()[KeyState.DELIVERED] == self.delivered
        self.store.verify_audit()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)

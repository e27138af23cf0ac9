"""The authentication account: layout, no mask twice, receive order, burning and running out."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qkdhw.errors import (
    AuthenticationError,
    AuthenticationKeyExhaustedError,
    KeyStateError,
    KeyStoreError,
)
from qkdhw.keys.account import CHUNK_MASKS, AuthenticationAccount, MaskRef, install_start_key
from qkdhw.keys.segments import NewSegment, SegmentState
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.secret import SecretBuffer

KEK = bytes(range(32))


def segment_bytes(masks: int) -> int:
    return 32 + 32 * masks


def buffer_of(content: bytes) -> SecretBuffer:
    buffer = SecretBuffer(len(content))
    buffer.copy_from(content)
    return buffer


def make_store(path, role, start: bytes) -> SqliteKeyStore:
    with buffer_of(KEK) as kek:
        store = SqliteKeyStore.create(path, kek)
    with buffer_of(start) as key:
        try:
            install_start_key(store, key, role=role)
        except ValueError:
            store.close()
            raise
    return store


def reopen(path) -> SqliteKeyStore:
    with buffer_of(KEK) as kek:
        return SqliteKeyStore.open(path, kek)


def add_block(store, block_id, key: bytes, *, activate=True) -> int:
    segment_id = 1000 + block_id
    with buffer_of(key) as share:
        store.put_block(
            link="east",
            session="s",
            block_id=block_id,
            digest=b"d",
            keys=[],
            segment=NewSegment(segment_id, share),
        )
    if activate:
        store.activate_block(session="s", block_id=block_id)
    return segment_id


@pytest.fixture
def make(tmp_path):
    opened = []

    def make_one(role="transmitter", masks=40):
        start = bytes(n % 251 for n in range(segment_bytes(masks)))
        opened.append(make_store(tmp_path / f"{role}.db", role, start))
        return opened[-1]

    yield make_one
    for store in opened:
        store.close()


PEER = {"transmitter": "receiver", "receiver": "transmitter"}


def ask_key(account, ref, direction):
    sender = account.role if direction == "send" else PEER[account.role]
    return account.mask_and_hash_key(ref.segment_id, ref.index, sender)


def key_of(account, ref, direction) -> tuple[bytes, bytes]:
    mask, hash_key = ask_key(account, ref, direction)
    with mask, hash_key:
        return bytes(mask), bytes(hash_key)


def test_layout_byte_for_byte(make):
    masks = 3
    start = bytes(n % 251 for n in range(segment_bytes(masks)))
    with (
        AuthenticationAccount(make("transmitter", masks)) as here,
        AuthenticationAccount(make("receiver", masks)) as there,
    ):
        for index in range(masks):
            forward = start[32 + 16 * index :][:16], start[0:16]
            backward = start[32 + 16 * masks + 16 * index :][:16], start[16:32]
            assert key_of(here, here.draw_send(), "send") == forward
            assert key_of(there, MaskRef(0, index), "receive") == forward
            assert key_of(there, there.draw_send(), "send") == backward
            assert key_of(here, MaskRef(0, index), "receive") == backward


def test_a_drawn_mask_is_handed_out_once(make):
    with AuthenticationAccount(make()) as account:
        ref = account.draw_send()
        key_of(account, ref, "send")
        for wrong in (ref, MaskRef(0, ref.index + 1), MaskRef(5, 0)):
            with pytest.raises(KeyStateError, match="not drawn"):
                ask_key(account, wrong, "send")


def test_every_mask_is_drawn_once_then_none(make):
    with AuthenticationAccount(make(masks=40)) as account:
        for left in range(40, 0, -1):
            assert account.available_send_masks() == left
            assert account.draw_send() == MaskRef(0, 40 - left)
        assert account.available_send_masks() == 0
        with pytest.raises(AuthenticationKeyExhaustedError) as caught:
            account.draw_send()
        assert caught.value.remedy


def test_a_new_account_never_draws_what_an_old_one_may_have(make, tmp_path):
    store = make(masks=100)
    with AuthenticationAccount(store) as account:
        account.draw_send()
    with AuthenticationAccount(store) as account:
        assert account.draw_send().index == CHUNK_MASKS
    store.close()
    with reopen(tmp_path / "transmitter.db") as again, AuthenticationAccount(again) as account:
        assert account.draw_send().index == 2 * CHUNK_MASKS


def test_next_segment_when_one_is_used_up(make):
    store = make(masks=2)
    second = add_block(store, 1, bytes(segment_bytes(1)))
    with AuthenticationAccount(store) as account:
        drawn = [account.draw_send() for _ in range(3)]
    assert drawn == [MaskRef(0, 0), MaskRef(0, 1), MaskRef(second, 0)]


def test_pending_segment_is_not_used(make):
    store = make(masks=1)
    segment_id = add_block(store, 1, bytes(segment_bytes(4)), activate=False)
    with AuthenticationAccount(store) as account:
        account.draw_send()
        with pytest.raises(AuthenticationKeyExhaustedError):
            account.draw_send()
        with pytest.raises(AuthenticationError, match="not in use"):
            account.check_receive(segment_id, 0)
        store.activate_block(session="s", block_id=1)
        assert account.draw_send() == MaskRef(segment_id, 0)
        account.check_receive(segment_id, 0)


def test_burnt_segment_is_left_at_once(make):
    store = make(masks=1)
    first, second = (add_block(store, block_id, bytes(segment_bytes(4))) for block_id in (1, 2))
    with AuthenticationAccount(store) as account:
        account.draw_send()
        drawn = account.draw_send()
        assert drawn == MaskRef(first, 0)
        store.burn_block(session="s", block_id=1, reason="peer lost it")
        with pytest.raises(KeyStateError, match="burnt"):
            ask_key(account, drawn, "send")
        with pytest.raises(AuthenticationError):
            account.check_receive(first, 0)
        assert account.available_send_masks() == 4
        assert account.draw_send() == MaskRef(second, 0)


def test_receive_refuses_repetition_and_disorder(make):
    with AuthenticationAccount(make()) as account:
        account.accept_receive(0, 0)
        account.accept_receive(0, 5)  # the peer burnt 1 to 4 in a crash
        for index in (0, 4, 5):
            with pytest.raises(AuthenticationError, match="used before"):
                account.check_receive(0, index)
            with pytest.raises(AuthenticationError, match="used before"):
                ask_key(account, MaskRef(0, index), "receive")
        assert account.available_receive_masks() == 34


@pytest.mark.parametrize(("segment_id", "index"), [(0, -1), (0, 40), (0, 2**40), (1, 0), (-1, 0)])
def test_receive_refuses_what_does_not_exist(make, segment_id, index):
    with AuthenticationAccount(make()) as account, pytest.raises(AuthenticationError, match="not in use"):
        ask_key(account, MaskRef(segment_id, index), "receive")


def test_a_failed_check_uses_nothing_up(make):
    with AuthenticationAccount(make()) as account:
        forged = key_of(account, MaskRef(0, 7), "receive")
        account.check_receive(0, 0)
        assert key_of(account, MaskRef(0, 7), "receive") == forged


def test_what_was_accepted_is_durable(make, tmp_path):
    store = make()
    with AuthenticationAccount(store) as account:
        account.accept_receive(0, 3)
    store.close()
    with reopen(tmp_path / "transmitter.db") as again, AuthenticationAccount(again) as account:
        with pytest.raises(AuthenticationError, match="used before"):
            account.accept_receive(0, 3)
        account.accept_receive(0, 4)


def test_after_a_later_segment_the_earlier_is_over(make):
    store = make()
    second = add_block(store, 1, bytes(segment_bytes(4)))
    with AuthenticationAccount(store) as account:
        account.accept_receive(0, 3)
        account.accept_receive(second, 0)
        with pytest.raises(AuthenticationError, match="used before"):
            account.check_receive(0, 4)
        assert account.available_receive_masks() == 3


def test_a_used_up_segment_is_erased(make):
    store = make(masks=2)
    second = add_block(store, 1, bytes(segment_bytes(2)))
    with AuthenticationAccount(store) as account:
        refs = [account.draw_send() for _ in range(2)]
        account.accept_receive(0, 1)
        assert store.segments()[0].state is SegmentState.ACTIVE  # drawn, but not yet used
        for ref in refs:
            key_of(account, ref, "send")
        assert account.draw_send().segment_id == second
        account.accept_receive(second, 0)
        assert [segment.state for segment in store.segments()] == ["spent", "active"]
    wrapped = store.database.connection.execute("SELECT wrapped IS NULL FROM segment ORDER BY sequence").fetchall()
    assert wrapped == [(1,), (0,)]
    store.verify_audit()


def test_no_mask_twice_even_if_two_writers_get_in(make, tmp_path):
    masks = 20 * CHUNK_MASKS
    make(masks=masks).close()
    path = tmp_path / "transmitter.db"

    def draw_all():
        with reopen(path) as store, AuthenticationAccount(store) as account:
            path.with_name("transmitter.db.lock").unlink()  # the second writer locks another file
            both_in.wait(timeout=10)
            drawn = []
            with contextlib.suppress(AuthenticationKeyExhaustedError):
                while True:
                    drawn.append(account.draw_send())
            return drawn

    both_in = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(draw_all)
        while not both_in.n_waiting:
            time.sleep(0.001)
        second = threads.submit(draw_all)
        drawn = first.result() + second.result()
    assert len(drawn) == len(set(drawn)) == masks


def test_start_key_is_installed_once(make):
    store = make()
    with SecretBuffer(64) as key, pytest.raises(KeyStoreError, match="already"):
        install_start_key(store, key, role="receiver")


@pytest.mark.parametrize("size", [0, 32, 48, 65, 80])
def test_start_key_of_a_wrong_length(tmp_path, size):
    with pytest.raises(ValueError, match="multiple of 32"):
        make_store(tmp_path / "k.db", "receiver", bytes(size))
    with reopen(tmp_path / "k.db") as store, pytest.raises(KeyStoreError, match="no start key"):
        AuthenticationAccount(store)

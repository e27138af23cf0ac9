"""A process with a key in one way of handling it, for the memory scanner: python secret_holder.py WAY.

Prints the key XORed with 0xA5 in hex, then "ready", and waits for its standard input to end. Each way returns what must stay alive.
"""

import base64
import os
import sys
import tempfile
import uuid
from dataclasses import astuple
from pathlib import Path

import numpy as np

from qkdhw.keys.account import AuthenticationAccount, install_start_key
from qkdhw.keys.kek import create_kek_file, read_kek_file
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.secret import SecretBuffer


def print_masked(key):
    with SecretBuffer(len(key)) as masked:
        np.bitwise_xor(np.frombuffer(key, np.uint8), np.uint8(0xA5), out=np.frombuffer(masked, np.uint8))
        print(bytes(masked).hex(), flush=True)


def as_bytes():
    key = os.urandom(32)
    print_masked(key)
    return key


def as_base64():
    with SecretBuffer.random(32) as key:
        print_masked(key)
        return base64.b64encode(bytes(1) + bytes(key))


def as_live_buffer():
    key = SecretBuffer.random(32)
    print_masked(key)
    return key


def as_closed_buffer():
    key = SecretBuffer.random(32)
    print_masked(key)
    key.close()
    return key


def as_dropped_buffer():
    print_masked(SecretBuffer.random(32))


def as_copied_and_compared():
    with SecretBuffer.random(32) as key, SecretBuffer(64) as large:
        print_masked(key)
        np.frombuffer(large, np.uint8)[16:48] = np.frombuffer(key, np.uint8)
        with large.slice_copy(16, 32) as part:
            assert part == key
            part.copy_from(key)


def as_read_from_file():
    path = Path(tempfile.mkdtemp()) / "kek"
    create_kek_file(path)
    with read_kek_file(path) as kek:
        print_masked(kek)
    path.unlink()
    path.parent.rmdir()


def _new_store():
    directory = tempfile.mkdtemp()
    with SecretBuffer.random(32) as kek:
        return SqliteKeyStore.create(Path(directory) / "keys.db", kek)


def _put_large_key(store):
    # Large, so that a stray copy would lie in a heap block that is not soon used again.
    key_id = str(uuid.uuid4())
    with SecretBuffer.random(20_000) as key:
        with key.slice_copy(10_000, 32) as part:
            print_masked(part)
        store.put(key_id=key_id, link="a", block_id=1, key=key, metadata={})
    return key_id


def as_stored():
    store = _new_store()
    _put_large_key(store)
    return store


def as_taken_and_closed():
    store = _new_store()
    key_id = _put_large_key(store)
    store.activate([key_id])
    store.reserve(receiver="b")
    store.take(key_id, receiver="b").close()
    return store


def as_authentication_key():
    store = _new_store()
    with SecretBuffer.random(64) as start, start.slice_copy(24, 32) as middle:
        print_masked(middle)
        install_start_key(store, start, role="transmitter")
    with AuthenticationAccount(store) as account:
        for part in account.mask_and_hash_key(*astuple(account.draw_send()), account.role):
            part.close()
    return store


if __name__ == "__main__":
    kept = globals()[f"as_{sys.argv[1]}"]()
    print("ready", flush=True)
    sys.stdin.read()

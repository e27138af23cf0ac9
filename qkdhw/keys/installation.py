"""Start a site: make the start key that a courier carries, and a key store that has it, whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qkdhw.errors import KeyStoreError
from qkdhw.keys.account import Role, install_start_key
from qkdhw.keys.kek import create_kek_file, create_random_file, open_private_file, read_kek_file, sync_directory
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.secret import SecretBuffer

START_KEY_MIN_BYTES = 16384
START_KEY_MAX_BYTES = 1 << 24  # it is held in locked memory and wrapped in one piece


@dataclass(frozen=True, slots=True)
class Installation:
    """What was made; no key bits.

    Attributes:
        store_id: UUID of the new key store.
        kek_created: Whether the KEK file is new too.
        start_key_bytes: Size of the start key that was installed.
    """

    store_id: str
    kek_created: bool
    start_key_bytes: int


def make_start_key_file(path: Path, size_bytes: int) -> None:
    """Write a random start key to a new file with mode 0600; durable on return.

    Raises:
        KeyStoreError: If the size is wrong, or the file exists or cannot be written; then none is left behind.
    """
    _check_size(size_bytes, "a start key")
    create_random_file(path, size_bytes, what="start key", remedy="Use another path.")


def read_start_key_file(path: Path) -> SecretBuffer:
    """Read a start key straight into a SecretBuffer, which the caller closes.

    Raises:
        KeyStoreError: If the file cannot be read, its size is wrong, or others can read or write it.
    """
    with open_private_file(path, what="start key") as (fd, size_bytes):
        _check_size(size_bytes, f"start key file {path}")
        return SecretBuffer.from_fd(fd, size_bytes)


def install_site(store_path: Path, kek_path: Path, start_key_path: Path, *, role: Role) -> Installation:
    """Make a key store with a start key, and its KEK file if there is none yet; durable on return.

    Args:
        store_path: Where; must not exist.
        kek_path: The KEK file; an existing one is used as it is.
        start_key_path: The start key; the file stays, the caller destroys it.
        role: Of this site.

    Raises:
        KeyStoreError: If anything is wrong with one of the files; then nothing new is left behind.
    """
    with read_start_key_file(start_key_path) as start_key:
        if os.path.lexists(store_path):
            raise KeyStoreError(f"{store_path} exists already", remedy="Use another path for the new key store.")
        kek_created = not os.path.lexists(kek_path)
        if kek_created:
            create_kek_file(kek_path)
        try:
            with read_kek_file(kek_path) as kek:
                store_id = _create_store(store_path, kek, start_key, role)
        except BaseException:
            if kek_created:
                kek_path.unlink(missing_ok=True)
            raise
        return Installation(store_id, kek_created, len(start_key))


def _create_store(path: Path, kek: SecretBuffer, start_key: SecretBuffer, role: Role) -> str:
    """Fill the store in a folder beside its place and link it there last: it never exists without its start key."""
    try:
        with TemporaryDirectory(prefix=f".{path.name}.new-", dir=path.parent) as folder:
            draft = Path(folder, "store")
            with SqliteKeyStore.create(draft, kek) as store:
                install_start_key(store, start_key, role=role)
                store_id = str(store.setting("store_id"))
            if draft.with_name("store-wal").exists():
                raise KeyStoreError(f"key store {path} could not be written out", remedy="Check the free space.")
            os.link(draft, path)
        try:
            sync_directory(path.parent)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeyStoreError(
            f"cannot create key store {path}: {error.strerror}",
            remedy="Check the path, its permissions and the free space.",
        ) from error
    return store_id


def _check_size(size_bytes: int, what: str) -> None:
    if size_bytes % 32 or not START_KEY_MIN_BYTES <= size_bytes <= START_KEY_MAX_BYTES:
        raise KeyStoreError(
            f"{what} of {size_bytes} bytes cannot be used",
            remedy=f"Use a multiple of 32 bytes, from {START_KEY_MIN_BYTES} to {START_KEY_MAX_BYTES}.",
        )

"""Rows of keys and blocks: what a transaction of the store does to them, each change with its audit entry."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qkdhw.errors import KeyNotFoundError, KeyStateError, KeyStoreError
from qkdhw.keys.audit import AuditChange
from qkdhw.keys.lifecycle import TERMINAL, TRANSITIONS, KeyEvent, next_state
from qkdhw.keys.wrapping import KeyWrapping, associated_data
from qkdhw.model import KeyRecord, KeyState
from qkdhw.secret import SecretBuffer

SCHEMA = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE block (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    link     TEXT NOT NULL,
    session  TEXT NOT NULL,
    block_id INTEGER NOT NULL,
    digest   BLOB NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'burnt')),
    UNIQUE (session, block_id)
) STRICT;
CREATE TABLE key (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    key_id     TEXT NOT NULL UNIQUE,
    link       TEXT NOT NULL,
    session    TEXT,
    block_id   INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'reserved', 'delivered', 'burnt')),
    receiver   TEXT NOT NULL DEFAULT '',
    metadata   TEXT NOT NULL,
    wrapped    BLOB,
    CHECK ((state IN ('delivered', 'burnt')) = (wrapped IS NULL)),
    FOREIGN KEY (session, block_id) REFERENCES block (session, block_id)
) STRICT;
CREATE INDEX key_by_state ON key (state, sequence);
CREATE INDEX key_by_block ON key (session, block_id);
"""

_RECORD = "SELECT key_id, link, block_id, size_bytes, state, receiver, metadata FROM key"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be stored with its block.

    Attributes:
        key_id: UUID text in lower case, the same at both sites.
        key: The key; the caller closes it.
        metadata: JSON-able; never key bits.
    """

    key_id: str
    key: SecretBuffer
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """A block of post-processing as the store knows it; what two sites compare after a crash.

    Attributes:
        block_id: Number in its session.
        session: Name of the session, unique for ever.
        link: Name of the link.
        digest: Of the block's public transcript, never of key.
        state: PENDING, READY or BURNT.
    """

    block_id: int
    session: str
    link: str
    digest: bytes
    state: KeyState


def insert_key(
    connection: sqlite3.Connection,
    wrapping: KeyWrapping,
    new: NewKey,
    *,
    link: str,
    session: str | None,
    block_id: int,
) -> AuditChange:
    """Store a wrapped key as PENDING.

    Raises:
        ValueError: If the key ID is no UUID in lower case, or the metadata is not JSON-able.
        KeyStoreError: If there is such a key already.
    """
    if str(uuid.UUID(new.key_id)) != new.key_id:
        raise ValueError(f"key ID {new.key_id} is not a UUID in its usual spelling")
    try:
        metadata = json.dumps(dict(new.metadata), allow_nan=False, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"the metadata of key {new.key_id} is not JSON-able: {error}") from error
    if connection.execute("SELECT 1 FROM key WHERE key_id = ?", (new.key_id,)).fetchone():
        raise KeyStoreError(f"key {new.key_id} exists already", remedy="A key ID is used once.")
    wrapped = wrapping.wrap(new.key, associated_data(new.key_id, link, block_id, len(new.key)))
    connection.execute(
        "INSERT INTO key (key_id, link, session, block_id, size_bytes, state, metadata, wrapped)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (new.key_id, link, session, block_id, len(new.key), KeyState.PENDING, metadata, wrapped),
    )
    return AuditChange(f"key {new.key_id}", "put", KeyState.PENDING, f"{len(new.key)} bytes of {link}")


def move_keys(
    connection: sqlite3.Connection,
    key_ids: Sequence[str],
    event: KeyEvent,
    *,
    receiver: str = "",
    reason: str = "",
) -> list[AuditChange]:
    """Apply an event to keys, erasing the wrapped key when the new state is terminal.

    Raises:
        KeyNotFoundError: If one does not exist.
        KeyStateError, KeyAlreadyTakenError: If the lifecycle does not allow it for one.
    """
    changes = []
    for key_id in key_ids:
        row = connection.execute("SELECT state FROM key WHERE key_id = ?", (key_id,)).fetchone()
        if row is None:
            raise key_not_found(key_id)
        state = next_state(KeyState(row[0]), event, key_id=key_id)
        connection.execute(
            "UPDATE key SET state = ?, receiver = CASE WHEN ? = '' THEN receiver ELSE ? END,"
            " wrapped = CASE WHEN ? THEN NULL ELSE wrapped END WHERE key_id = ?",
            (state, receiver, receiver, state in TERMINAL, key_id),
        )
        changes.append(AuditChange(f"key {key_id}", event, state, receiver or reason))
    return changes


def insert_block(
    connection: sqlite3.Connection, *, link: str, session: str, block_id: int, digest: bytes
) -> AuditChange:
    """Store a block's record as PENDING.

    Raises:
        KeyStoreError: If there is such a block already.
    """
    if _block_state(connection, session, block_id) is not None:
        raise KeyStoreError(
            f"block {session}/{block_id} exists already", remedy="Sessions never repeat a block number."
        )
    connection.execute(
        "INSERT INTO block (link, session, block_id, digest, state) VALUES (?, ?, ?, ?, ?)",
        (link, session, block_id, digest, KeyState.PENDING),
    )
    return AuditChange(f"block {session}/{block_id}", "put", KeyState.PENDING, link)


def move_block(
    connection: sqlite3.Connection, session: str, block_id: int, event: KeyEvent, *, reason: str = ""
) -> list[AuditChange]:
    """Activate a PENDING block or burn one that is not burnt yet, with all its keys that can follow.

    Raises:
        KeyNotFoundError: If there is no such block.
        KeyStateError: If its state does not allow it.
    """
    state = _block_state(connection, session, block_id)
    if state is None:
        raise KeyNotFoundError(
            f"there is no block {session}/{block_id}",
            key_id="",
            remedy="If the peer has it, the peer must burn it: this site never stored it.",
        )
    if state is KeyState.BURNT or (event is KeyEvent.ACTIVATE and state is not KeyState.PENDING):
        raise KeyStateError(
            f"block {session}/{block_id} is {state}; {event} is not possible",
            remedy="Compare the blocks of both sites and burn those that differ.",
        )
    new_state = KeyState.READY if event is KeyEvent.ACTIVATE else KeyState.BURNT
    connection.execute("UPDATE block SET state = ? WHERE session = ? AND block_id = ?", (new_state, session, block_id))
    rows = connection.execute(
        "SELECT key_id, state FROM key WHERE session = ? AND block_id = ? ORDER BY sequence", (session, block_id)
    ).fetchall()
    followers = [key_id for key_id, key_state in rows if (KeyState(key_state), event) in TRANSITIONS]
    changes = [AuditChange(f"block {session}/{block_id}", event, new_state, reason)]
    return changes + move_keys(connection, followers, event, reason=reason)


def read_record(connection: sqlite3.Connection, key_id: str) -> KeyRecord:
    """Return one key's record.

    Raises:
        KeyNotFoundError: If there is no such key.
    """
    row = connection.execute(f"{_RECORD} WHERE key_id = ?", (key_id,)).fetchone()
    if row is None:
        raise key_not_found(key_id)
    return _record_of(row)


def read_records(connection: sqlite3.Connection, state: KeyState | None) -> list[KeyRecord]:
    """List keys, oldest first."""
    rows = connection.execute(f"{_RECORD} WHERE ? IS NULL OR state = ? ORDER BY sequence", (state, state))
    return [_record_of(row) for row in rows]


def read_blocks(connection: sqlite3.Connection, state: KeyState | None) -> list[BlockRecord]:
    """List blocks, oldest first."""
    rows = connection.execute(
        "SELECT block_id, session, link, digest, state FROM block WHERE ? IS NULL OR state = ? ORDER BY sequence",
        (state, state),
    )
    return [BlockRecord(row[0], row[1], row[2], row[3], KeyState(row[4])) for row in rows]


def key_not_found(key_id: str) -> KeyNotFoundError:
    """Make the one error for a key that does not exist for the one who asks."""
    return KeyNotFoundError(
        f"there is no key {key_id} here for this request",
        key_id=key_id,
        remedy="List the keys with `qkdhw keys list`.",
    )


def _record_of(row: tuple[Any, ...]) -> KeyRecord:
    return KeyRecord(row[0], row[1], row[2], 8 * row[3], KeyState(row[4]), row[5], json.loads(row[6]))


def _block_state(connection: sqlite3.Connection, session: str, block_id: int) -> KeyState | None:
    row = connection.execute(
        "SELECT state FROM block WHERE session = ? AND block_id = ?", (session, block_id)
    ).fetchone()
    return None if row is None else KeyState(row[0])

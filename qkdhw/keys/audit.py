"""The audit trail: one row for every transition, each chained to the one before by SHA-256.

The chain shows changes in the middle; it cannot show that its end was cut off, so its head belongs in a log on
another machine.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qkdhw.errors import KeyStoreError

SCHEMA = """
CREATE TABLE audit (
    sequence     INTEGER PRIMARY KEY,
    time_unix_ns INTEGER NOT NULL,
    subject      TEXT NOT NULL,
    event        TEXT NOT NULL,
    state        TEXT NOT NULL,
    detail       TEXT NOT NULL,
    digest       BLOB NOT NULL
) STRICT;
CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_never_shrinks BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
"""

# A subject whose state is not the last one in the trail, or that has a trail but is gone.
_STRAY = """
WITH present AS (
    SELECT 'key ' || key_id AS subject, state FROM key
    UNION ALL SELECT 'block ' || session || '/' || block_id, state FROM block
    UNION ALL SELECT 'segment ' || segment_id, state FROM segment
), told AS (
    SELECT subject, state, MAX(sequence) FROM audit GROUP BY subject
)
SELECT subject FROM present LEFT JOIN told USING (subject) WHERE told.state IS NOT present.state
UNION ALL SELECT subject FROM told WHERE subject NOT IN (SELECT subject FROM present)
LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class AuditChange:
    """One transition to be written down.

    Attributes:
        subject: "key ID", "block SESSION/ID" or "segment ID".
        event: What happened.
        state: The state after it.
        detail: Receiver or reason, or "".
    """

    subject: str
    event: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of the trail.

    Attributes:
        sequence: 1, 2, 3 ... without holes.
        time_unix_ns: When, by the clock of the store's owner.
        change: What.
        digest: SHA-256 over the digest before and this row.
    """

    sequence: int
    time_unix_ns: int
    change: AuditChange
    digest: bytes


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """Outcome of a verification.

    Attributes:
        entries: Number of rows, all of which fit the chain.
        head: Hex digest of the last row.
    """

    entries: int
    head: str


def append_changes(connection: sqlite3.Connection, changes: Iterable[AuditChange], *, time_unix_ns: int) -> None:
    """Write rows inside the caller's transaction."""
    last = connection.execute("SELECT sequence, digest FROM audit ORDER BY sequence DESC LIMIT 1").fetchone()
    sequence, digest = last if last is not None else (0, _genesis(connection))
    rows = []
    for change in changes:
        sequence += 1
        digest = _digest(digest, sequence, time_unix_ns, change)
        rows.append((sequence, time_unix_ns, change.subject, change.event, change.state, change.detail, digest))
    connection.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def read_entries(connection: sqlite3.Connection) -> Iterator[AuditEntry]:
    """Yield all rows, oldest first."""
    for row in connection.execute("SELECT * FROM audit ORDER BY sequence"):
        yield AuditEntry(row[0], row[1], AuditChange(*row[2:6]), row[6])


def verify_chain(connection: sqlite3.Connection) -> AuditSummary:
    """Check every digest, and that each key, block and segment is in the state that the trail says.

    Raises:
        KeyStoreError: At the first row that does not fit.
    """
    digest = _genesis(connection)
    count = 0
    for entry in read_entries(connection):
        count += 1
        digest = _digest(digest, count, entry.time_unix_ns, entry.change)
        if entry.sequence != count or entry.digest != digest:
            raise KeyStoreError(
                f"the audit trail is broken at entry {count}",
                remedy="The store was changed from outside; keep a copy as evidence and burn its keys.",
            )
    stray = connection.execute(_STRAY).fetchone()
    if stray is not None:
        raise KeyStoreError(
            f"{stray[0]} is not in the state that the audit trail says",
            remedy="The store was changed from outside; keep a copy as evidence and burn its keys.",
        )
    return AuditSummary(entries=count, head=digest.hex())


def _genesis(connection: sqlite3.Connection) -> bytes:
    store_id = str(connection.execute("SELECT value FROM setting WHERE name = 'store_id'").fetchone()[0])
    return hashlib.sha256(f"qkdhw audit trail of store {store_id}".encode()).digest()


def _digest(previous: bytes, sequence: int, time_unix_ns: int, change: AuditChange) -> bytes:
    fields = [sequence, time_unix_ns, change.subject, change.event, change.state, change.detail]
    return hashlib.sha256(previous + json.dumps(fields, separators=(",", ":")).encode("ascii")).digest()

"""Segments of authentication key in the store: rows and their states. `account` deals out what is in them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import StrEnum, unique

from qkdhw.errors import KeyStoreError
from qkdhw.keys.audit import AuditChange
from qkdhw.keys.wrapping import KeyWrapping, associated_data
from qkdhw.secret import SecretBuffer

HASH_KEY_BYTES = 16
MASK_BYTES = 16
START_SEGMENT_ID = 0

SCHEMA = """
CREATE TABLE segment (
    sequence      INTEGER PRIMARY KEY AUTOINCREMENT,
    segment_id    INTEGER NOT NULL UNIQUE,
    session       TEXT,
    block_id      INTEGER,
    size_bytes    INTEGER NOT NULL CHECK (size_bytes >= 64 AND size_bytes % 32 = 0),
    state         TEXT NOT NULL CHECK (state IN ('pending', 'active', 'spent', 'burnt')),
    send_reserved INTEGER NOT NULL DEFAULT 0 CHECK (send_reserved BETWEEN 0 AND (size_bytes - 32) / 32),
    receive_floor INTEGER NOT NULL DEFAULT -1 CHECK (receive_floor < (size_bytes - 32) / 32),
    wrapped       BLOB,
    CHECK ((state IN ('spent', 'burnt')) = (wrapped IS NULL)),
    FOREIGN KEY (session, block_id) REFERENCES block (session, block_id)
) STRICT;
"""


@unique
class SegmentState(StrEnum):
    """Lifecycle of a segment: PENDING to ACTIVE with its block, then SPENT; BURNT with its block."""

    PENDING = "pending"
    ACTIVE = "active"
    SPENT = "spent"
    BURNT = "burnt"


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment to be stored.

    Attributes:
        segment_id: 1 .. 2^32 - 1, the same at both sites, such as the number of the block it comes from.
        key: At least 64 bytes, a multiple of 32.
    """

    segment_id: int
    key: SecretBuffer


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """What the store tells about a segment: everything but the key.

    Attributes:
        sequence: Order in which this store got it, which is the order of use.
        segment_id: Its name at both sites.
        size_bytes: Length of the key.
        state: Lifecycle state.
        send_reserved: Masks 0 .. send_reserved - 1 may have been used for sending.
        receive_floor: Masks up to this index are never accepted again; -1 if none was.
    """

    sequence: int
    segment_id: int
    size_bytes: int
    state: SegmentState
    send_reserved: int
    receive_floor: int

    @property
    def masks(self) -> int:
        """Masks a direction."""
        return (self.size_bytes - 2 * HASH_KEY_BYTES) // (2 * MASK_BYTES)


def segment_associated_data(segment_id: int, size_bytes: int) -> bytes:
    """What a wrapped segment is bound to."""
    return associated_data("segment", segment_id, size_bytes)


def insert_segment(
    connection: sqlite3.Connection,
    wrapping: KeyWrapping,
    segment: NewSegment,
    *,
    state: SegmentState,
    block: tuple[str, int] | None,
) -> AuditChange:
    """Store a wrapped segment inside the caller's transaction.

    Raises:
        ValueError: If its length is not at least 64 bytes and a multiple of 32, or its ID is out of range.
        KeyStoreError: If there is such a segment already.
    """
    size = len(segment.key)
    if size < 2 * HASH_KEY_BYTES + 2 * MASK_BYTES or size % (2 * MASK_BYTES):
        raise ValueError(f"a segment has {size} bytes; it must be at least 64 and a multiple of 32")
    if not START_SEGMENT_ID <= segment.segment_id < 2**32:
        raise ValueError(f"segment ID {segment.segment_id} is not 0 .. 2^32 - 1")
    if connection.execute("SELECT 1 FROM segment WHERE segment_id = ?", (segment.segment_id,)).fetchone():
        raise KeyStoreError(
            f"authentication segment {segment.segment_id} exists already",
            remedy="Segments are never replaced; a new block has a new segment ID.",
        )
    session, block_id = block if block is not None else (None, None)
    wrapped = wrapping.wrap(segment.key, segment_associated_data(segment.segment_id, size))
    connection.execute(
        "INSERT INTO segment (segment_id, session, block_id, size_bytes, state, wrapped) VALUES (?, ?, ?, ?, ?, ?)",
        (segment.segment_id, session, block_id, size, state, wrapped),
    )
    return AuditChange(f"segment {segment.segment_id}", "put", state, f"{size} bytes")


def change_block_segments(
    connection: sqlite3.Connection, session: str, block_id: int, state: SegmentState, detail: str
) -> list[AuditChange]:
    """Move the segments of a block on, inside the caller's transaction: pending to active, or these two to burnt."""
    before = ("pending", "pending") if state is SegmentState.ACTIVE else ("pending", "active")
    rows = connection.execute(
        "SELECT segment_id FROM segment WHERE session = ? AND block_id = ? AND state IN (?, ?)",
        (session, block_id, *before),
    ).fetchall()
    event = "activate" if state is SegmentState.ACTIVE else "burn"
    return [set_segment_state(connection, segment_id, state, event, detail) for (segment_id,) in rows]


def set_segment_state(
    connection: sqlite3.Connection, segment_id: int, state: SegmentState, event: str, detail: str
) -> AuditChange:
    """Set a segment's state, erasing the wrapped key when it is over."""
    over = state in {SegmentState.SPENT, SegmentState.BURNT}
    connection.execute(
        "UPDATE segment SET state = ?, wrapped = CASE WHEN ? THEN NULL ELSE wrapped END WHERE segment_id = ?",
        (state, over, segment_id),
    )
    return AuditChange(f"segment {segment_id}", event, state, detail)


def read_segments(connection: sqlite3.Connection, state: SegmentState | None) -> list[SegmentRecord]:
    """List the segments, in order of use."""
    rows = connection.execute(
        "SELECT sequence, segment_id, size_bytes, state, send_reserved, receive_floor FROM segment"
        " WHERE ? IS NULL OR state = ? ORDER BY sequence",
        (state, state),
    )
    return [SegmentRecord(row[0], row[1], row[2], SegmentState(row[3]), row[4], row[5]) for row in rows]

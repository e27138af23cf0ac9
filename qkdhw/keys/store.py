"""The embedded key store: SQLite, wrapped keys only, durable before revealed, delivered at most once.

What it promises, and what it does not, stands in docs/reference/key-store.md.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from qkdhw.errors import KeyExhaustedError, KeyStoreError
from qkdhw.keys import audit, ledger, segments
from qkdhw.keys.audit import AuditChange, AuditEntry, AuditSummary
from qkdhw.keys.database import Database, create_file
from qkdhw.keys.ledger import BlockRecord, NewKey
from qkdhw.keys.lifecycle import KeyEvent
from qkdhw.keys.segments import NewSegment, SegmentRecord, SegmentState
from qkdhw.keys.wrapping import KeyWrapping, associated_data
from qkdhw.model import KeyRecord, KeyState
from qkdhw.secret import SecretBuffer

_SCHEMA = ledger.SCHEMA + segments.SCHEMA + audit.SCHEMA


class SqliteKeyStore:
    """A key store in one SQLite file, with one writer at a time; a context manager.

    Make one with `create` or `open`. Every writing method is one transaction, durable when it returns; when it
    raises, nothing was written. Not for use by several threads.
    """

    def __init__(self, database: Database, wrapping: KeyWrapping | None, clock_ns: Callable[[], int]) -> None:
        self.database = database
        self._wrapping = wrapping
        self._clock_ns = clock_ns

    @classmethod
    def create(cls, path: Path | str, kek: SecretBuffer, *, clock_ns: Callable[[], int] = time.time_ns) -> Self:
        """Make a new store and open it.

        Args:
            path: Where; must not exist.
            kek: 32 bytes; the caller keeps it and may close it at once.
            clock_ns: UNIX time in nanoseconds, for the audit trail.

        Raises:
            KeyStoreError: If the path exists or cannot be written; then nothing is left behind.
        """
        wrapping = KeyWrapping(kek)
        try:
            store_id = str(uuid.uuid4())
            with SecretBuffer(0) as nothing:
                check = wrapping.wrap(nothing, associated_data("kek check", store_id))
            create_file(Path(path), _SCHEMA, {"store_id": store_id, "kek_check": check})
        finally:
            wrapping.close()
        return cls.open(path, kek, clock_ns=clock_ns)

    @classmethod
    def open(
        cls,
        path: Path | str,
        kek: SecretBuffer | None,
        *,
        read_only: bool = False,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> Self:
        """Open a store.

        Args:
            path: Where.
            kek: 32 bytes; the caller keeps it and may close it at once. None: all but `put`, `put_block`, `take`.
            read_only: Look only; possible while another process writes.
            clock_ns: UNIX time in nanoseconds, for the audit trail.

        Raises:
            KeyStoreError: If there is no store, it is open for writing elsewhere, or the KEK is not its own.
        """
        wrapping = KeyWrapping(kek) if kek is not None else None
        try:
            database = Database(Path(path), read_only=read_only)
            store = cls(database, wrapping, clock_ns)
            try:
                store._check_kek()
            except BaseException:
                database.close()
                raise
        except BaseException:
            if wrapping is not None:
                wrapping.close()
            raise
        return store

    def _check_kek(self) -> None:
        if self._wrapping is None:
            return
        store_id, check = self.setting("store_id"), self.setting("kek_check")
        try:
            self._wrapping.unwrap(bytes(check), associated_data("kek check", str(store_id))).close()
        except KeyStoreError as error:
            raise KeyStoreError(
                f"the KEK is not the one that key store {self.database.path} was made with",
                remedy="Use the KEK file that belongs to this store.",
            ) from error

    @property
    def wrapping(self) -> KeyWrapping:
        """Wraps and unwraps under this store's KEK.

        Raises:
            KeyStoreError: If the store was opened without a KEK.
        """
        if self._wrapping is None:
            raise KeyStoreError(f"key store {self.database.path} was opened without a KEK", remedy="Give its KEK.")
        return self._wrapping

    def setting(self, name: str) -> Any:
        """Return a setting of the store, or None."""
        with self.database.reading() as connection:
            row = connection.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def audit_changes(self, connection: sqlite3.Connection, changes: Sequence[AuditChange]) -> None:
        """Write changes to the audit trail inside the caller's transaction."""
        audit.append_changes(connection, changes, time_unix_ns=self._clock_ns())

    # --- keys -------------------------------------------------------------------------------------------------
    def put(self, *, key_id: str, link: str, block_id: int, key: SecretBuffer, metadata: Mapping[str, Any]) -> None:
        """Store a key as PENDING, wrapped; durable on return.

        Raises:
            ValueError: If the key ID is no UUID in lower case, or the metadata is not JSON-able.
            KeyStoreError: If there is such a key already, or the store fails.
        """
        with self.database.transaction() as connection:
            new = NewKey(key_id, key, metadata)
            change = ledger.insert_key(connection, self.wrapping, new, link=link, session=None, block_id=block_id)
            self.audit_changes(connection, [change])

    def activate(self, key_ids: Sequence[str]) -> None:
        """PENDING to READY, all or none: the peer has them too.

        Raises:
            KeyNotFoundError: If one does not exist.
            KeyStateError, KeyAlreadyTakenError: If one is not PENDING.
        """
        with self.database.transaction() as connection:
            self.audit_changes(connection, ledger.move_keys(connection, key_ids, KeyEvent.ACTIVATE))

    def burn(self, key_ids: Sequence[str], *, reason: str) -> None:
        """PENDING, READY or RESERVED to BURNT, all or none, and erase the wrapped keys.

        Raises:
            KeyNotFoundError: If one does not exist.
            KeyAlreadyTakenError: If one is delivered or burnt already.
        """
        with self.database.transaction() as connection:
            self.audit_changes(connection, ledger.move_keys(connection, key_ids, KeyEvent.BURN, reason=reason))

    def reserve(self, *, receiver: str, count: int = 1, key_ids: Sequence[str] | None = None) -> list[KeyRecord]:
        """READY to RESERVED for `receiver`: the oldest `count`, or exactly `key_ids`; all or none.

        Raises:
            ValueError: If `receiver` is empty or `count` is below 1.
            KeyExhaustedError: If fewer than `count` keys are READY.
            KeyNotFoundError: If one of `key_ids` does not exist.
            KeyStateError, KeyAlreadyTakenError: If one of `key_ids` is not READY.
        """
        if not receiver or count < 1:
            raise ValueError(f"cannot reserve {count} keys for receiver {receiver!r}")
        with self.database.transaction() as connection:
            if key_ids is None:
                rows = connection.execute(
                    "SELECT key_id FROM key WHERE state = 'ready' ORDER BY sequence LIMIT ?", (count,)
                ).fetchall()
                if len(rows) < count:
                    raise KeyExhaustedError(
                        f"{count} keys were asked for and {len(rows)} are ready",
                        asked=count,
                        available=len(rows),
                        remedy="Ask for fewer, or wait until the link has made more.",
                    )
                key_ids = [row[0] for row in rows]
            changes = ledger.move_keys(connection, key_ids, KeyEvent.RESERVE, receiver=receiver)
            self.audit_changes(connection, changes)
            return [ledger.read_record(connection, key_id) for key_id in key_ids]

    def take(self, key_id: str, *, receiver: str) -> SecretBuffer:
        """RESERVED to DELIVERED, durable before the key is unwrapped and returned; at most once.

        Raises:
            KeyNotFoundError: If there is no such key, or it is reserved for another receiver.
            KeyStateError, KeyAlreadyTakenError: If it is not RESERVED.
            KeyStoreError: If the store fails; then the key may count as delivered, and is never given out.
        """
        wrapping = self.wrapping
        with self.database.transaction() as connection:
            row = connection.execute(
                "SELECT wrapped, link, block_id, size_bytes, receiver FROM key WHERE key_id = ?", (key_id,)
            ).fetchone()
            if row is None or row[4] not in {"", receiver}:
                raise ledger.key_not_found(key_id)
            changes = ledger.move_keys(connection, [key_id], KeyEvent.DELIVER, receiver=receiver)
            self.audit_changes(connection, changes)
        blob, link, block_id, size, _ = row
        return wrapping.unwrap(blob, associated_data(key_id, link, block_id, size))

    # --- blocks -----------------------------------------------------------------------------------------------
    def put_block(
        self,
        *,
        link: str,
        session: str,
        block_id: int,
        digest: bytes,
        keys: Sequence[NewKey],
        segment: NewSegment | None = None,
    ) -> None:
        """Store a block's keys, its share of authentication key and its record as PENDING, in one transaction.

        Args:
            link: Name of the link.
            session: Name of the session, unique for ever.
            block_id: Number in the session.
            digest: Of the block's public transcript; it is stored in the clear, so never of key.
            keys: Keys of the block.
            segment: Authentication key of the block.

        Raises:
            ValueError: If a key ID, a metadata value or the segment's length is wrong.
            KeyStoreError: If the block, a key or the segment exists already, or the store fails.
        """
        with self.database.transaction() as connection:
            changes = [ledger.insert_block(connection, link=link, session=session, block_id=block_id, digest=digest)]
            changes += [
                ledger.insert_key(connection, self.wrapping, new, link=link, session=session, block_id=block_id)
                for new in keys
            ]
            if segment is not None:
                pending, block = SegmentState.PENDING, (session, block_id)
                changes.append(segments.insert_segment(connection, self.wrapping, segment, state=pending, block=block))
            self.audit_changes(connection, changes)

    def activate_block(self, *, session: str, block_id: int) -> None:
        """Make a PENDING block READY with all its pending keys and its segment: the peer has it too.

        Raises:
            KeyNotFoundError: If there is no such block.
            KeyStateError: If it is not PENDING.
        """
        self._move_block(session, block_id, KeyEvent.ACTIVATE, SegmentState.ACTIVE, "")

    def burn_block(self, *, session: str, block_id: int, reason: str) -> None:
        """Burn a block that is not burnt yet, with its segment and all its keys that are not delivered.

        Raises:
            KeyNotFoundError: If there is no such block.
            KeyStateError: If it is BURNT already.
        """
        self._move_block(session, block_id, KeyEvent.BURN, SegmentState.BURNT, reason)

    def _move_block(
        self, session: str, block_id: int, event: KeyEvent, segment_state: SegmentState, reason: str
    ) -> None:
        with self.database.transaction() as connection:
            changes = ledger.move_block(connection, session, block_id, event, reason=reason)
            changes += segments.change_block_segments(connection, session, block_id, segment_state, reason)
            self.audit_changes(connection, changes)

    # --- looking ----------------------------------------------------------------------------------------------
    def record(self, key_id: str) -> KeyRecord:
        """Return one key's record.

        Raises:
            KeyNotFoundError: If there is no such key.
        """
        with self.database.reading() as connection:
            return ledger.read_record(connection, key_id)

    def records(self, *, state: KeyState | None = None) -> list[KeyRecord]:
        """List keys, oldest first; only those in `state` if given."""
        with self.database.reading() as connection:
            return ledger.read_records(connection, state)

    def blocks(self, *, state: KeyState | None = None) -> list[BlockRecord]:
        """List blocks, oldest first; only those in `state` if given."""
        with self.database.reading() as connection:
            return ledger.read_blocks(connection, state)

    def counts(self) -> dict[KeyState, int]:
        """Count keys by state; every state is there."""
        with self.database.reading() as connection:
            found = dict(connection.execute("SELECT state, COUNT(*) FROM key GROUP BY state").fetchall())
        return {state: int(found.get(state, 0)) for state in KeyState}

    def segments(self, *, state: SegmentState | None = None) -> list[SegmentRecord]:
        """List the segments of authentication key, in order of use; only those in `state` if given."""
        with self.database.reading() as connection:
            return segments.read_segments(connection, state)

    def audit_entries(self) -> list[AuditEntry]:
        """Return the audit trail, oldest first."""
        with self.database.reading() as connection:
            return list(audit.read_entries(connection))

    def verify_audit(self) -> AuditSummary:
        """Check the audit trail's chain, and every key, block and segment against it.

        Raises:
            KeyStoreError: If anything does not fit.
        """
        with self.database.reading() as connection:
            return audit.verify_chain(connection)

    def close(self) -> None:
        """Close the file and wipe the KEK; closing twice is allowed."""
        self.database.close()
        if self._wrapping is not None:
            self._wrapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

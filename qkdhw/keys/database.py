"""The store's SQLite file: settings that are read back, one writer, and transactions that fail whole."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from qkdhw.errors import KeyStoreError
from qkdhw.keys.kek import sync_directory

APPLICATION_ID = 0x514B4448  # "QKDH"
SCHEMA_VERSION = 1

# The library's defaults differ between distributions, so each one is set and read back.
_PRAGMAS: tuple[tuple[str, str, str | int], ...] = (
    ("synchronous", "FULL", 2),
    ("foreign_keys", "ON", 1),
    ("secure_delete", "ON", 1),
    ("trusted_schema", "OFF", 0),
    ("cell_size_check", "ON", 1),
    ("temp_store", "MEMORY", 2),
    ("busy_timeout", "5000", 5000),
    ("wal_autocheckpoint", "1000", 1000),
)

# After these the connection's own view of the file is not to be trusted.
_FATAL_CODES = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

_REMEDIES = {
    sqlite3.SQLITE_FULL: "The disk is full: free some space, then open the store again.",
    sqlite3.SQLITE_IOERR: "The disk failed or is full: check it and the system log, then open the store again.",
    sqlite3.SQLITE_CORRUPT: "The file is damaged: keep a copy, and restore the store or start a new one.",
    sqlite3.SQLITE_NOTADB: "This is no key store: check the path.",
    sqlite3.SQLITE_READONLY: "The file is not writable: check its owner and permissions.",
    sqlite3.SQLITE_CANTOPEN: "Check the path and its permissions.",
    sqlite3.SQLITE_BUSY: "Another program uses the file: close it.",
}


def store_error(what: str, error: sqlite3.Error) -> KeyStoreError:
    """Make the typed error of a SQLite error; its text holds no values of rows."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return KeyStoreError(f"{what}: {error}", remedy=_REMEDIES.get(code, "Check the store with `qkdhw keys audit`."))


def create_file(path: Path, schema: str, settings: dict[str, str | bytes]) -> None:
    """Make a new database file with mode 0600, whole or not at all.

    Raises:
        KeyStoreError: If the path exists already or cannot be written.
    """
    if path.exists():
        raise KeyStoreError(f"{path} exists already", remedy="Open it, or use another path.")
    draft = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.executescript(f"BEGIN;\n{schema}\nCOMMIT;")
            connection.executemany("INSERT INTO setting (name, value) VALUES (?, ?)", settings.items())
        finally:
            connection.close()
        os.link(draft, path)  # unlike a rename, never replaces a store that appeared meanwhile
        draft.unlink()
        sync_directory(path.parent)
    except sqlite3.Error as error:
        raise store_error(f"cannot create key store {path}", error) from error
    except OSError as error:
        raise KeyStoreError(
            f"cannot create key store {path}: {error.strerror}",
            remedy="Check the path, its permissions and the free space.",
        ) from error
    finally:
        for leftover in (draft, draft.with_name(f"{draft.name}-journal")):
            with suppress(OSError):
                leftover.unlink()


class Database:
    """One open key store file, for one thread.

    A writer holds an exclusive lock on PATH.lock; readers need none. When a commit fails, nobody can know what is on
    the disk: the file is closed and everything is refused until it is opened, and so recovered, again.

    Raises:
        KeyStoreError: If the file is missing, is no key store, or another process has it open for writing.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._failure = ""
        self._lock_fd = -1
        self._connection: sqlite3.Connection | None = None
        if not path.is_file():
            raise KeyStoreError(f"there is no key store {path}", remedy="Check the path, or create the store.")
        try:
            if not read_only:
                self._lock_fd = self._lock()
            self._connection = self._connect()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> int:
        file = self.path.resolve()  # a store that is reached through a symbolic link has the same lock
        lock_path = file.with_name(file.name + ".lock")
        try:
            fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KeyStoreError(
                f"cannot open {lock_path}: {error.strerror}", remedy="Check the directory's permissions."
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise KeyStoreError(
                f"key store {self.path} is open for writing in another process",
                remedy="Stop that process, or open the store read-only.",
            ) from error
        return fd

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self.read_only else "rw"
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(
                f"file:{quote(str(self.path.absolute()))}?mode={mode}", uri=True, isolation_level=None
            )
            self._check_identity(connection)
            if not self.read_only:
                connection.execute("PRAGMA journal_mode = WAL")
            self._check_pragma(connection, "journal_mode", "wal")
            for name, setting, expected in _PRAGMAS:
                connection.execute(f"PRAGMA {name} = {setting}")
                self._check_pragma(connection, name, expected)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise store_error(f"cannot open key store {self.path}", error) from error
            raise
        return connection

    def _check_identity(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        if found != APPLICATION_ID:
            raise KeyStoreError(f"{self.path} is not a key store of qkdhw", remedy="Check the path.")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            raise KeyStoreError(
                f"key store {self.path} has schema version {version}; this program reads {SCHEMA_VERSION}",
                remedy="Use the version of qkdhw that made it.",
            )

    def _check_pragma(self, connection: sqlite3.Connection, name: str, expected: str | int) -> None:
        found = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if found != expected:
            raise KeyStoreError(
                f"SQLite {sqlite3.sqlite_version} refuses PRAGMA {name} for {self.path}: {found!r}, not {expected!r}",
                remedy="Put the store on a local file system, or use a complete SQLite library.",
            )

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for reading.

        Raises:
            KeyStoreError: If the store is closed, or was closed by an earlier failure.
        """
        if self._connection is None:
            raise KeyStoreError(
                f"key store {self.path} is closed{self._failure}", remedy="Open it again; that recovers it."
            )
        return self._connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read with SQLite's errors made typed ones."""
        connection = self.connection
        try:
            yield connection
        except sqlite3.Error as error:
            raise store_error(f"cannot read key store {self.path}", error) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write: all of the block is durable after it, or nothing of it ever happened.

        Raises:
            KeyStoreError: On any failure; after a failed commit the store is closed as well.
        """
        connection = self.connection
        if self.read_only:
            raise KeyStoreError(f"key store {self.path} is open read-only", remedy="Open it for writing.")
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
        except BaseException as error:
            self._roll_back(connection, error)
            if isinstance(error, sqlite3.Error):
                raise store_error(f"cannot write key store {self.path}", error) from error
            raise
        try:
            connection.execute("COMMIT")
        except BaseException as error:
            self._fail("a commit failed")
            if isinstance(error, sqlite3.Error):
                raise store_error(f"a commit to key store {self.path} failed and it is closed now", error) from error
            raise

    def _roll_back(self, connection: sqlite3.Connection, cause: BaseException) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._fail("a rollback failed")
        if getattr(cause, "sqlite_errorcode", 0) & 0xFF in _FATAL_CODES:
            self._fail("the file could not be read or written")

    def _fail(self, failure: str) -> None:
        self._failure = f" because {failure}"
        self.close()

    def close(self) -> None:
        """Close the file and let go of the lock; closing twice is allowed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

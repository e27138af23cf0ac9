"""The key-encryption key (KEK) in a file that only its owner can read.

A file is the plainest place for it; it protects backups and copies of the store, not a host whose owner is hostile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qkdhw.errors import KeyStoreError
from qkdhw.secret import SecretBuffer

KEK_BYTES = 32


def create_kek_file(path: Path) -> None:
    """Write a new random KEK to a new file with mode 0600; durable on return.

    Raises:
        KeyStoreError: If the file exists already or cannot be written; then no file is left behind.
    """
    create_random_file(
        path, KEK_BYTES, what="KEK", remedy="Use another path; without the old KEK the old store cannot be read."
    )


def read_kek_file(path: Path) -> SecretBuffer:
    """Read a KEK straight into a SecretBuffer, which the caller closes.

    Raises:
        KeyStoreError: If the file is missing, is not a plain file of 32 bytes, or others can read or write it.
    """
    with open_private_file(path, what="KEK") as (fd, size_bytes):
        if size_bytes != KEK_BYTES:
            raise KeyStoreError(
                f"KEK file {path} has {size_bytes} bytes, not {KEK_BYTES}",
                remedy="Restore the right file from its backup.",
            )
        return SecretBuffer.from_fd(fd, KEK_BYTES)


def create_random_file(path: Path, size_bytes: int, *, what: str, remedy: str) -> None:
    """Write random bytes to a new file with mode 0600; durable on return.

    Args:
        path: Where; must not exist.
        size_bytes: How many bytes.
        what: Name of the key in errors.
        remedy: What to do if the file exists.

    Raises:
        KeyStoreError: If the file exists already or cannot be written; then no file is left behind.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise KeyStoreError(f"{path} exists already; a {what} is never overwritten", remedy=remedy) from error
    except OSError as error:
        raise _cannot("create", what, path, error) from error
    try:
        with SecretBuffer.random(size_bytes) as key:
            _write_all(fd, key)
        os.fsync(fd)
        sync_directory(path.parent)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot("write", what, path, error) from error
        raise
    finally:
        os.close(fd)


@contextmanager
def open_private_file(path: Path, *, what: str) -> Iterator[tuple[int, int]]:
    """Open a key's file for reading: its descriptor and its size in bytes.

    Raises:
        KeyStoreError: If the file cannot be read, is not a plain file, or others can read or write it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot("read", what, path, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyStoreError(f"{what} file {path} is not a plain file", remedy="Point to the file itself.")
        if status.st_mode & 0o077:
            raise KeyStoreError(
                f"{what} file {path} has mode {stat.S_IMODE(status.st_mode):04o}: others can get at it",
                remedy=f"Find out who had access, then chmod 600 {path}.",
            )
        yield fd, status.st_size
    except (OSError, EOFError) as error:
        raise _cannot("read", what, path, error) from error
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: SecretBuffer) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


def _cannot(verb: str, what: str, path: Path, error: OSError | EOFError) -> KeyStoreError:
    return KeyStoreError(
        f"cannot {verb} {what} file {path}: {getattr(error, 'strerror', None) or error}",
        remedy="Check the path, its permissions and the free space.",
    )

"""The key-encryption key (KEK) in a file that only its owner can read.

A file is the plainest place for it; it protects backups and copies of the store, not a host whose owner is hostile.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from qkdhw.errors import KeyStoreError
from qkdhw.secret import SecretBuffer

KEK_BYTES = 32


def create_kek_file(path: Path) -> None:
    """Write a new random KEK to a new file with mode 0600; durable on return.

    Raises:
        KeyStoreError: If the file exists already or cannot be written; then no file is left behind.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise KeyStoreError(
            f"{path} exists already; a KEK is never overwritten",
            remedy="Use another path; without the old KEK the old store cannot be read.",
        ) from error
    except OSError as error:
        raise _cannot("create", path, error) from error
    try:
        with SecretBuffer.random(KEK_BYTES) as kek:
            _write_all(fd, kek)
        os.fsync(fd)
        sync_directory(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _cannot("write", path, error) from error
    finally:
        os.close(fd)


def read_kek_file(path: Path) -> SecretBuffer:
    """Read a KEK straight into a SecretBuffer, which the caller closes.

    Raises:
        KeyStoreError: If the file is missing, is not a plain file of 32 bytes, or others can read or write it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot("read", path, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyStoreError(f"KEK file {path} is not a plain file", remedy="Point to the file itself.")
        if status.st_mode & 0o077:
            raise KeyStoreError(
                f"KEK file {path} has mode {stat.S_IMODE(status.st_mode):04o}: others can get at it",
                remedy=f"Find out who had access, then chmod 600 {path}.",
            )
        if status.st_size != KEK_BYTES:
            raise KeyStoreError(
                f"KEK file {path} has {status.st_size} bytes, not {KEK_BYTES}",
                remedy="Restore the right file from its backup.",
            )
        return SecretBuffer.from_fd(fd, KEK_BYTES)
    except (OSError, EOFError) as error:
        raise _cannot("read", path, error) from error
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


def _cannot(verb: str, path: Path, error: OSError | EOFError) -> KeyStoreError:
    return KeyStoreError(
        f"cannot {verb} KEK file {path}: {getattr(error, 'strerror', None) or error}",
        remedy="Check the path, its permissions and the free space.",
    )

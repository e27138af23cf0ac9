"""Files that appear whole or not at all: written under another name, synchronised, then renamed.

They are for their owner only, because a receiver's events are raw key; plots are as open as other files.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from qkdhw.errors import EventError

_REMEDIES = {
    errno.ENOENT: "make the folder first, or choose another one",
    errno.ENOTDIR: "choose a folder; part of this path is a file",
    errno.EISDIR: "name a file; this is a folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.EFBIG: "choose a folder that takes files so large",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def temporary_beside(path: Path, *, private: bool = True) -> Iterator[Path]:
    """Give the name of an empty file beside `path`; when the body ends well it becomes `path`, else it is removed.

    What a killed process left, or another one is writing, is never in the way: the name is drawn.

    Args:
        path: What it becomes; a file that is there is replaced.
        private: Only its owner may read it.

    Raises:
        EventError: The folder cannot be written, or `path` is something else than a file, such as a device.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        _create(path, temporary, 0o600 if private else 0o666)
        yield temporary
        _synchronise(path, temporary)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _create(path: Path, temporary: Path, mode: int) -> None:
    try:
        if path.exists() and not path.is_file():
            raise EventError(f"cannot write {path}: it is there and no regular file", remedy="choose another name")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode))
    except OSError as error:
        raise write_error(path, error) from error


def _synchronise(path: Path, temporary: Path) -> None:
    try:
        _fsync(temporary, os.O_RDWR)
        temporary.replace(path)
        _fsync(path.parent, os.O_RDONLY)
    except OSError as error:
        raise write_error(path, error) from error


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_whole_file(path: Path, *, private: bool = True) -> Iterator[BinaryIO]:
    """Open a new file for binary writing that appears as `path` only when the body ends well.

    Raises:
        EventError: The file cannot be written, for example because the disk is full.
    """
    with temporary_beside(path, private=private) as temporary:
        try:
            with temporary.open("r+b") as file:
                yield file
        except OSError as error:
            raise write_error(path, error) from error


def write_error(path: Path, error: Exception) -> EventError:
    """Make the typed error for a file that cannot be written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    code = error.errno if isinstance(error, OSError) else None
    remedy = _REMEDIES.get(code or errno.ENOSPC, _REMEDIES[errno.ENOSPC])
    return EventError(f"cannot write {path}: {reason}; nothing was left behind", remedy=remedy)

"""Leases: one bench at a time has a unit, on this machine. Who holds one is told to who comes second.

A lease is a lock of the kernel on a small file, so one whose holder died is free at once. It keeps apart benches that
ask for it, as `open_bench` does; nobody is kept from an instrument by force, nor on another machine.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qkdhw.errors import TransportError

FOLDER = "qkdhw-leases"
LIMIT_BYTES = 4096
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a unit.

    Attributes:
        url: The unit's address.
        process: Process ID.
        user: Name of its user.
        command: What it runs.
        since: Since when, ISO 8601.
    """

    url: str
    process: int
    user: str
    command: str
    since: str


@contextmanager
def lease(url: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Have a unit to oneself while the body runs.

    Args:
        url: The unit's address; what stands after ? or # does not count.
        wait_s: How long to wait for another holder to let it go.

    Raises:
        TransportError: Somebody else has it; the message says who.
    """
    path = _folder() / hashlib.sha256(_place(url).encode()).hexdigest()[:32]
    descriptor = _opened(path)
    try:
        _lock(descriptor, url, time.monotonic() + wait_s)
        here = Holder(_place(url), os.getpid(), getpass.getuser(), " ".join(sys.argv)[:200], _now())
        text = json.dumps({name: getattr(here, name) for name in Holder.__slots__})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holders() -> list[Holder]:
    """Return who has which unit on this machine now."""
    found = []
    for path in sorted(_folder().iterdir()):
        with suppress(OSError):
            descriptor = _opened(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(descriptor)
                found += [holder] if holder else []
            finally:
                os.close(descriptor)
    return found


def _lock(descriptor: int, url: str, deadline_s: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline_s:
                time.sleep(POLL_S)
                continue
            holder = _holder(descriptor)
            who = "another bench"
            if holder is not None:
                who = f"process {holder.process} of {holder.user} since {holder.since}: {holder.command}"
            raise TransportError(f"{url} is in use by {who}", remedy="wait until it ends, or end it") from None
        return


def _holder(descriptor: int) -> Holder | None:
    try:
        facts = json.loads(os.pread(descriptor, LIMIT_BYTES, 0))
        holder = Holder(**{name: kind(facts[name]) for name, kind in _KINDS.items()})
    except (ValueError, KeyError, TypeError):  # it is being written, or somebody else wrote it
        return None
    return holder if f"{holder.url}{holder.user}{holder.command}{holder.since}".isprintable() else None


def _place(url: str) -> str:
    return url.partition("?")[0].partition("#")[0]


def _folder() -> Path:
    """Return the folder of leases; all users of the machine share it."""
    folder = Path(tempfile.gettempdir()) / FOLDER
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o1777)
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise TransportError(f"{folder} is no folder", remedy="remove it: leases lie there")
    return folder


def _opened(path: Path) -> int:
    mask = os.umask(0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise TransportError(f"lease {path}: {error.strerror}", remedy="check the folder's permissions") from error
    finally:
        os.umask(mask)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_KINDS = {"url": str, "process": int, "user": str, "command": str, "since": str}

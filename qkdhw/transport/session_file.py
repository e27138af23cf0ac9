"""A recorded session: the bytes of a link with their times, both directions, and the calls that made them.

JSON lines. The first is the header; then each line is one of
    {"t": s, "dial": n}                                 the link was opened the n-th time
    {"t": s, "out": text} or {"t": s, "out64": base64}   bytes to the unit
    {"t": s, "in": text} or {"t": s, "in64": base64}     bytes from the unit
    {"t": s, "idle": true or false}                      nothing came, to one who waited or who only looked
    {"t": s, "lost": text}                               the link closed, and why
    {"t": s, "control": [type, request, value, index, size], "in64" or "out64": base64}   a USB control transfer
    {"t": s, "nonce": n}                                 a number drawn for a challenge
    {"t": s, "call": name, "arguments": [..], "options": {..}, "result" or "error": ..}   a call to the driver, ended

Bytes from a unit may be raw key: the file is made readable by its owner only.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qkdhw.errors import ConfigurationError

VERSION = 1


class SessionWriter:
    """Writes a session file; a context manager, safe for several threads.

    An error before the first call leaves no file behind.

    Args:
        path: A file that is not there yet.
        header: Facts about the session, JSON-able.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigurationError(f"session file {path}: {error.strerror}", remedy="name a new file") from error
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        self._path, self._has_calls = path, False
        self._lock = threading.Lock()
        self._begun_s = time.monotonic()
        self._write({"qkdhw_session": VERSION, **header})

    def note(self, what: Mapping[str, Any]) -> None:
        """Write a line with the time."""
        self._has_calls |= "call" in what
        self._write({"t": round(time.monotonic() - self._begun_s, 6), **what})

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, default=str)
        with self._lock:
            if not self._file.closed:
                self._file.write(text + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is not None and not self._has_calls:
            self._path.unlink(missing_ok=True)


def read_session(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return header and lines of a session file.

    Raises:
        ConfigurationError: It cannot be read, or is none.
    """
    remedy = "make one by `qkdhw devices record`"
    number, read = 1, []
    try:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):  # noqa: B007
            read.append(json.loads(line))
    except OSError as error:
        raise ConfigurationError(f"session file {path}: {error.strerror}", remedy="check the path") from error
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path} is no session file: line {number}, character {error.colno}: {error.msg}", remedy=remedy
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is no session file: {error}", remedy=remedy) from error
    except (ValueError, RecursionError) as error:  # a number too long, a list too deep
        raise ConfigurationError(f"{path} is no session file: line {len(read) + 1}: {error}", remedy=remedy) from error
    header, *lines = read or [None]
    if not isinstance(header, dict) or header.get("qkdhw_session") != VERSION:
        raise ConfigurationError(f"{path} is no session file of version {VERSION}", remedy="record it again")
    for number, each in enumerate(lines, 2):
        if not _is_line(each):
            raise ConfigurationError(f"{path} is no session file: line {number} is none of a session", remedy=remedy)
    return header, lines


def _is_line(line: Any) -> bool:
    """Say whether a line after the header is one of those that there are."""
    if not isinstance(line, dict) or type(line.get("t")) not in {int, float}:
        return False
    if "call" in line:
        kinds = {"call": str, "arguments": list, "options": dict}
        return all(isinstance(line.get(key), kind) for key, kind in kinds.items()) and ("result" in line) != (
            "error" in line
        )
    for keys in ({"dial": int, "keeps_messages": bool, "fresh": bool}, {"nonce": int}, {"idle": bool}, {"lost": str}):
        if next(iter(keys)) in line:
            return all(isinstance(line.get(key), kind) for key, kind in keys.items())
    numbers = line.get("control", [0] * 5)
    if not isinstance(numbers, list) or [type(each) for each in numbers] != [int] * 5:
        return False
    return sum(_is_data(line, key) for key in ("in", "out")) == 1


def _is_data(line: Mapping[str, Any], key: str) -> bool:
    try:
        return unpacked(line, key) is not None
    except (AttributeError, TypeError, ValueError):  # no text, or none that was packed
        return False


def packed(key: str, data: bytes) -> dict[str, str]:
    """Return bytes as a text where people can read it, else in base64."""
    text = data.decode("latin-1")
    if data.isascii() and text.replace("\r", "").replace("\n", "").replace("\t", "").isprintable():
        return {key: text}
    return {f"{key}64": base64.b64encode(data).decode("ascii")}


def unpacked(line: Mapping[str, Any], key: str) -> bytes | None:
    """Return the bytes of a line, or None if it has none in this direction."""
    if f"{key}64" in line:
        return base64.b64decode(line[f"{key}64"], validate=True)
    return line[key].encode("latin-1") if key in line else None

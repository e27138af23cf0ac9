"""Record a session with a unit, calls and bytes, and play it again: as a unit, or as a test of its driver."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from qkdhw.drivers import open_unit
from qkdhw.errors import ConfigurationError, QkdhwError
from qkdhw.secret import SecretBuffer
from qkdhw.transport.session_file import SessionWriter, read_session
from qkdhw.version import __version__

TOLD = frozenset({"configure", "identify", "read_setting", "read_status", "restore", "snapshot"})


class RecordedUnit:
    """An open unit whose calls are written down with what came of them; otherwise it behaves as the unit does."""

    def __init__(self, unit: Any, writer: SessionWriter) -> None:
        object.__setattr__(self, "_unit", unit)
        object.__setattr__(self, "_writer", writer)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._unit, name)
        if not callable(value) or name.startswith("_"):
            return value

        def called(*arguments: Any, **options: Any) -> Any:
            return self._noted(name, arguments, options, lambda: value(*arguments, **options))

        return called

    def __setattr__(self, name: str, value: Any) -> None:
        self._noted("configure", ({name: value},), {}, lambda: self._unit.configure({name: value}))

    def _noted(self, name: str, arguments: tuple[Any, ...], options: Mapping[str, Any], call: Any) -> Any:
        note = {"call": name, "arguments": jsonable(arguments), "options": jsonable(options)}
        try:
            result = call()
        except QkdhwError as error:
            self._writer.note({**note, "error": type(error).__name__})
            raise
        self._writer.note({**note, "result": jsonable(result)})
        return result


@contextmanager
def record_unit(name: str, url: str, path: Path, *, timeout_s: float = 5.0, **options: Any) -> Iterator[Any]:
    """Open a unit and record everything until the body ends: bytes with times, both directions, and calls.

    Args:
        name: Driver name.
        url: Address.
        path: Session file to make; it may hold raw key and is readable by its owner only.
        timeout_s: Longest wait for an answer.
        options: Passed on to the driver.

    Raises:
        ConfigurationError: The file is there already.
    """
    header = {
        "driver": name, "url": url, "timeout_s": timeout_s, "options": options,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"), "qkdhw": __version__,
    }  # fmt: skip
    with (
        SessionWriter(path, header) as writer,
        open_unit(name, url, timeout_s=timeout_s, recorder=writer, **options) as unit,
    ):
        yield RecordedUnit(unit, writer)


def replay_calls(path: Path) -> int:
    """Play a recorded session against its driver: the same calls must send the same bytes and have the same results.

    Returns:
        How many calls were played.

    Raises:
        QkdhwError: The driver sends other bytes than then, or a call has another result.
    """
    header, lines = _read(path)
    calls = [line for line in lines if "call" in line]
    if leading := [name for name in header["options"] if name.endswith("_url")]:
        raise ConfigurationError(
            f"{path}: the option {leading[0]!r} leads elsewhere; what is played stays in the file",
            remedy="record a session that needs no further links",
        )
    url = f"replay://{path.resolve()}"
    with open_unit(header["driver"], url, timeout_s=header["timeout_s"], **header["options"]) as unit:
        for number, line in enumerate(calls, 1):
            if line["call"] == "close":
                continue
            found = _outcome(unit, line)
            wanted: dict[str, Any] = {key: line[key] for key in ("result", "error") if key in line}
            if found != wanted:
                raise ConfigurationError(
                    f"{path}, call {number}, {line['call']}: {_difference(line['call'], found, wanted)}",
                    remedy="the driver behaves otherwise than when this was recorded",
                )
    return len(calls)


def dialogue_test(path: Path) -> str:
    """Return the text of a test that plays a session file lying beside it; nothing of the file stands in it as code."""
    header, _ = _read(path)
    about = f"A session with {header['driver']} of {header['begun']}: same calls, same bytes, same results."
    stem = "".join(c if c.isascii() and c.isalnum() else "_" for c in path.stem)
    return (
        f"{'# ' + ascii(about)[1:-1]}\n"
        "from pathlib import Path\n\n"
        "from qkdhw.bench import replay_calls\n\n\n"
        f"def test_{stem}() -> None:\n"
        f"    assert replay_calls(Path(__file__).parent / {path.name!a}) > 0\n"
    )


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a session file that `record_unit` made."""
    header, lines = read_session(path)
    kinds = {"driver": str, "options": dict, "timeout_s": int | float, "begun": str}
    if not all(isinstance(header.get(key), kind) for key, kind in kinds.items()) or not 0 < header["timeout_s"] <= 3600:
        raise ConfigurationError(f"{path} does not say how its unit was opened", remedy="record the session again")
    return header, lines


def jsonable(value: Any) -> Any:
    """Return a value as JSON has it; arrays as their length and digest, secrets as their length alone.

    An address is left out: it is another one when the session is played.
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): jsonable(each) for key, each in value.items() if key != "url"}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(each) for each in value]
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, SecretBuffer):
        return {"secret_bytes": len(value)}
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"array": str(value.dtype), "length": len(value), "sha256": digest}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _difference(call: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say what came of a call and what did then, unless that may be raw key."""
    if call in TOLD:
        return f"{found} came of it, {wanted} did then"
    return "something else came of it than then"


def _outcome(unit: Any, line: Mapping[str, Any]) -> dict[str, Any]:
    name = line["call"]
    if name.startswith("_") or not callable(getattr(type(unit), name, None)):
        raise ConfigurationError(f"{type(unit).__name__} has no method {name!r}", remedy="record the session again")
    method, arguments, options = getattr(unit, name), line["arguments"], line["options"]
    try:
        inspect.signature(method).bind(*arguments, **options)
    except TypeError as error:
        raise ConfigurationError(f"{name}: {error}", remedy="record the session again") from error
    try:
        result = method(*arguments, **options)
    except QkdhwError as error:
        if "error" not in line:
            raise
        return {"error": type(error).__name__}
    return {"result": jsonable(result)}

"""The control socket of an emulated bench: change the physical world while the units run.

One JSON object a line in, one out. Requests: {"do": "list"}; {"do": "set", "unit": "receiver", "condition":
"fibre_connected", "value": 0}; {"do": "fault", "unit": "receiver", "fault": "drop:rate=0.1"}; {"do": "clear", "unit":
"receiver"}, with "fault" for one of them; {"do": "advance", "seconds": 5}. Answers have "ok"; if it is false, "error"
and "remedy". The socket is the emulators' own and has no authentication: it lies in a folder of its owner.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qkdhw.errors import ConfigurationError, QkdhwError
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.line import Line

LINE_LIMIT_BYTES = 65_536


class BenchControl:
    """Answers control requests; no I/O.

    Args:
        lines: The lines to the units, by label.
    """

    def __init__(self, lines: Mapping[str, Line]) -> None:
        self._lines = lines
        self._actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "list": self._list,
            "set": self._set,
            "fault": self._fault,
            "clear": self._clear,
            "advance": self._advance,
        }

    def answer(self, line: bytes) -> dict[str, Any]:
        """Carry out one request and return the answer."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or request.get("do") not in self._actions:
                raise ConfigurationError(
                    "a request is a JSON object with 'do'", remedy=f"'do' is one of: {', '.join(self._actions)}."
                )
            return {"ok": True, **self._actions[request["do"]](request)}
        except QkdhwError as error:
            return {"ok": False, "error": str(error), "remedy": error.remedy}
        except (ValueError, KeyError, TypeError) as error:
            return {
                "ok": False,
                "error": f"the request is wrong: {error}",
                "remedy": 'Such as {"do": "set", "unit": "receiver", "condition": "fibre_connected", "value": 0}.',
            }

    def _line(self, request: dict[str, Any]) -> Line:
        label = request.get("unit")
        if label not in self._lines:
            raise ConfigurationError(f"there is no unit {label!r}", remedy=f"Units: {', '.join(self._lines)}.")
        return self._lines[str(label)]

    def _list(self, _request: dict[str, Any]) -> dict[str, Any]:
        units = {
            label: {
                "conditions": dict(sorted(line.world.conditions.items())),
                "faults": sorted(line.faults),
                "unit_faults": sorted(getattr(line.unit, "unit_faults", ())),
            }
            for label, line in self._lines.items()
        }
        return {"now_s": next(iter(self._lines.values())).world.now_s() if self._lines else 0.0, "units": units}

    def _set(self, request: dict[str, Any]) -> dict[str, Any]:
        self._line(request).world.set_condition(request["condition"], float(request["value"]))
        return {}

    def _fault(self, request: dict[str, Any]) -> dict[str, Any]:
        self._line(request).faults.parse(str(request["fault"]))
        return {}

    def _clear(self, request: dict[str, Any]) -> dict[str, Any]:
        faults = self._line(request).faults
        if "fault" in request:
            faults.discard(Fault(request["fault"]))
        else:
            faults.clear()
        return {}

    def _advance(self, request: dict[str, Any]) -> dict[str, Any]:
        for line in self._lines.values():
            with line.world:
                line.world.clock.advance(float(request["seconds"]))
            break  # all units of a bench share one clock
        return {}


@contextmanager
def control_socket(path: Path, lines: Mapping[str, Line]) -> Iterator[None]:
    """Serve a control socket while the body runs; only its owner may connect.

    Raises:
        ConfigurationError: There is something at the path, or it cannot be made.
    """
    control = BenchControl(lines)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        server.bind(str(path))
        server.listen(4)
    except OSError as error:
        server.close()
        raise ConfigurationError(
            f"control socket {path}: {error.strerror or error}", remedy="Choose a path that is free."
        ) from error
    finally:
        os.umask(mask)
    thread = threading.Thread(target=_serve, args=(server, control), name="bench-control", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(1.0)
        path.unlink(missing_ok=True)


def ask_control(path: Path, request: Mapping[str, Any], *, timeout_s: float = 5.0) -> dict[str, Any]:
    """Send one request to a control socket and return the answer.

    Raises:
        ConfigurationError: Nobody serves there, or the request was refused.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile("rb") as stream:
                answer = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no emulated bench answers at {path}: {error}", remedy="Start one with `qkdhw devices emulate --control`."
        ) from error
    if not isinstance(answer, dict) or "ok" not in answer:
        raise ConfigurationError(f"what answers at {path} is no emulated bench", remedy="Check the path.")
    if not answer["ok"]:
        raise ConfigurationError(str(answer.get("error")), remedy=str(answer.get("remedy", "")))
    return answer


def _serve(server: socket.socket, control: BenchControl) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:  # closed
            return
        with client, suppress(OSError), client.makefile("rwb") as stream:
            client.settimeout(60.0)
            while line := stream.readline(LINE_LIMIT_BYTES):
                stream.write(json.dumps(control.answer(line)).encode() + b"\n")
                stream.flush()

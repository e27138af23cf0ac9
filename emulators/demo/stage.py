"""Start the emulated link and the two site processes, follow what they tell, and clean up whatever happens."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkdhw.errors import ConfigurationError, TransportTimeoutError
from qkdhw_emulators.demo.staging import DemoOptions, stage_sites, write_site_file

START_TIMEOUT_S = 30.0
SILENCE_TIMEOUT_S = 120.0
END_TIMEOUT_S = 10.0
SPACE_BYTES = 1 << 20  # what a run may still want to write
BROKEN_SESSIONS = 3  # an emulated link that failed so often will not come up
# Without lazy binding no key bytes are left on the stack by the resolver.
HARDENING = {"LD_BIND_NOW": "1", "PYTHONUNBUFFERED": "1"}

Event = Mapping[str, Any]
Sink = queue.Queue[tuple[str, Event | None]]  # None: the process has closed its output


@dataclass(slots=True)
class DemoRun:
    """What happened: every event of both sites in order of arrival, and how the processes ended."""

    options: DemoOptions
    events: list[tuple[str, Event]] = field(default_factory=list)
    exit_codes: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    duration_s: dict[str, float] = field(default_factory=dict)

    def of(self, role: str, name: str) -> list[Event]:
        """All events of one site with this name."""
        return [event for source, event in self.events if source == role and event["event"] == name]


class _Process:
    """A child whose standard output is JSON lines; leaving the context ends it."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path, sink: Sink) -> None:
        self.name = name
        self._log = log
        self._sink = sink
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **HARDENING, **environment},
                text=True,
            )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                self._sink.put((self.name, event))
        self._sink.put((self.name, None))

    def last_words(self) -> str:
        """What it wrote to standard error, the last lines, and the signal that ended it."""
        lines = self._log.read_text(errors="replace").strip().splitlines()[-4:]
        code = self.process.poll() or 0
        return "\n".join([*lines, f"ended by {signal.Signals(-code).name}"] if code < 0 else lines)

    def wait(self) -> int:
        """Return the exit code; a process that does not end by itself is killed."""
        try:
            return self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *exc: object) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and stream is self.process.stdin:
                stream.close()
        self.process.terminate()
        self.wait()
        self._thread.join(END_TIMEOUT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


def run_demo(options: DemoOptions, folder: Path, follow: Callable[[str, Event], None]) -> DemoRun:
    """Run the main job under `folder` and return what happened.

    Args:
        options: What to emulate.
        folder: Empty folder; everything is made in it.
        follow: Is told every event as (role or "stage", event).

    Raises:
        QkdhwError: Something is missing or a process did not start.
    """
    run = DemoRun(options)
    started = time.monotonic()

    def tell(source: str, event: Event) -> None:
        run.events.append((source, event))
        follow(source, event)

    with ExitStack() as stack:
        tell("stage", {"event": "stage", "name": "staging sites"})
        sites = stage_sites(folder)
        run.duration_s["staging"] = time.monotonic() - started
        tell("stage", {"event": "stage", "name": "starting units"})
        sink: Sink = queue.Queue()
        link = stack.enter_context(_Process("link", _link_command(options), {}, folder / "link.log", sink))
        urls = _first_event(link, sink, lambda event: "transmitter" in event and "receiver" in event, tell)
        processes: dict[str, _Process] = {}
        channel = 'listen = "127.0.0.1:0"'
        for role, site in sites.items():
            path = write_site_file(site, options, unit_url=urls[role], channel=channel)
            command = [sys.executable, "-m", "qkdhw", "link", "run", str(path), "--json"]
            process = _Process(role, command, site.environment, site.folder / "site.log", sink)
            processes[role] = stack.enter_context(process)
            if role == "transmitter":
                port = _first_event(process, sink, lambda event: event.get("event") == "listening", tell)["port"]
                channel = f'connect = "127.0.0.1:{port}"'
        tell("stage", {"event": "stage", "name": "running"})
        begun = time.monotonic()
        _follow_sites(processes, sink, tell)
        run.duration_s["running"] = time.monotonic() - begun
        for name, process in processes.items():
            run.exit_codes[name] = process.wait()
            if run.exit_codes[name]:
                run.errors[name] = process.last_words() or f"ended with exit code {run.exit_codes[name]}"
        if run.errors:
            _verify_space(folder)
    run.duration_s["total"] = time.monotonic() - started
    return run


def _verify_space(folder: Path) -> None:
    """Tell a full disk from other failures: on one, a site may have had no room even for its last words.

    Raises:
        ConfigurationError: The disk is full.
    """
    probe = folder / "space"
    try:
        with probe.open("wb") as file:
            file.write(bytes(SPACE_BYTES))
    except OSError as error:
        raise ConfigurationError(
            f"the sites cannot write to {folder}: {error.strerror}", remedy="free some space, or see --keep and TMPDIR"
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _link_command(options: DemoOptions) -> list[str]:
    return [
        sys.executable, "-m", "qkdhw_emulators.serve", "--json",
        "--seed", str(options.seed),
        "--loss-db", str(options.loss_db),
        "--misalignment", str(options.misalignment),
        "--eavesdropper", options.eavesdropper,
    ]  # fmt: skip


def _first_event(
    process: _Process, sink: Sink, wanted: Callable[[Event], bool], tell: Callable[[str, Event], None]
) -> Event:
    """Wait for the event that says a process is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            name, event = sink.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty as error:
            raise TransportTimeoutError(f"the {process.name} process was not ready in {START_TIMEOUT_S} s") from error
        if event is None:
            raise ConfigurationError(f"the {name} process ended at once: {process.last_words()}")
        if "event" in event:
            tell(name, event)
        if name == process.name and wanted(event):
            return event


def _follow_sites(processes: Mapping[str, _Process], sink: Sink, tell: Callable[[str, Event], None]) -> None:
    """Pass on events until both sites have ended; if one fails, or they do not get along, both are told to stop."""
    open_roles = set(processes)
    broken = 0
    while open_roles:
        try:
            name, event = sink.get(timeout=SILENCE_TIMEOUT_S)
        except queue.Empty as error:
            raise TransportTimeoutError(
                f"nothing was heard of the sites for {SILENCE_TIMEOUT_S} s", remedy="look into their logs with --keep"
            ) from error
        if event is not None:
            tell(name, event)
            broken += name == "receiver" and event.get("event") == "session-broken"
            if broken < BROKEN_SESSIONS:
                continue
            break
        open_roles.discard(name)
        if name not in processes:
            raise ConfigurationError("the emulated link ended before the sites", remedy="see its message above")
        if processes[name].wait():
            break
    for name in open_roles:
        processes[name].process.terminate()

"""`qkdhw demo` as a person calls it: a process of its own, with all that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROLES = ("transmitter", "receiver")
TIMEOUT_S = 240


@dataclass(frozen=True)
class DemoProcess:
    """One run that has ended; `folder` holds what --keep kept, `out` what was printed and the report."""

    folder: Path
    out: Path
    code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> str:
        return (self.out / "report.html").read_text()

    def summary(self) -> dict[str, Any]:
        answer = json.loads(self.stdout)
        assert isinstance(answer, dict)
        return answer


def run_demo(place: Path, *options: str) -> DemoProcess:
    folder, out = place / "kept", place / "out"
    out.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "qkdhw", "demo", "--keep", folder, "--report", out / "report.html", *options],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=os.environ | {"COLUMNS": "100"},
    )  # fmt: skip
    (out / "stdout").write_text(done.stdout)
    (out / "stderr").write_text(done.stderr)
    (place / "code").write_text(str(done.returncode))
    return finished_demo(place)


def finished_demo(place: Path) -> DemoProcess:
    """Say what lies below the folder that it ran in."""
    out = place / "out"
    code = int((place / "code").read_text())
    return DemoProcess(place / "kept", out, code, (out / "stdout").read_text(), (out / "stderr").read_text())

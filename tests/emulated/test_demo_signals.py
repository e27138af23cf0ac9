"""A demo that is told to end leaves nothing behind: no temporary folder with its secrets, no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TIMEOUT_S = 30.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_temporary_folder_goes_with_the_demo(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "qkdhw", "demo", "--report", str(tmp_path / "report.html")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not list(tmp_path.glob("qkdhw-demo-*/receiver/site.log")):
            assert time.monotonic() < deadline
            assert demo.poll() is None
            time.sleep(0.05)
        demo.send_signal(number)
        assert demo.wait(TIMEOUT_S) == 128 + number
    finally:
        demo.kill()
        demo.wait()
    assert list(tmp_path.iterdir()) == []

"""Cut the power under the key store at random writes and syncs: nothing acknowledged is lost.

With less than synchronous=FULL the same run must find losses: if it does not, this test is broken.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("shim") / "power_loss.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, HERE / "power_loss.c", "-ldl"],
        check=True,
        timeout=60,
    )
    return library


def cut_power(shim, directory, synchronous: str, cases: int) -> dict:
    done = subprocess.run(
        [sys.executable, HERE / "power_loss_driver.py", directory, synchronous, str(cases)],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(HERE.parent.parent)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_is_lost_with_full(shim, tmp_path):
    assert cut_power(shim, tmp_path, "FULL", 100) == {"crashes": 100, "wrong": {}}


@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_losses_are_found_without(shim, tmp_path, synchronous):
    assert cut_power(shim, tmp_path, synchronous, 20)["wrong"]

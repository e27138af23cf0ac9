"""A private SoftHSM for one test: its own configuration and store, never the user's."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo_run import finished_demo, run_demo

from qkdhw.export.modules import find_modules
from qkdhw.export.pkcs11 import Pkcs11Token

PIN = "1234-test"


@dataclass
class SoftHsm:
    """A SoftHSM configuration and what is needed to use it."""

    module: str
    config: Path
    store: Path

    def make_token(self, label: str, pin: str = PIN) -> None:
        """Initialise a token."""
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", "so-" + pin]
        subprocess.run(command, check=True, capture_output=True, timeout=20)

    def open(self, label: str, pin: str = PIN) -> Pkcs11Token:
        """Open a token."""
        return Pkcs11Token.open(self.module, label, lambda: pin)


@pytest.fixture
def softhsm(tmp_path, monkeypatch):
    """SoftHSM with an empty store; python-pkcs11 finalises the module at the last close, so each test sees its own."""
    modules = [module.path for module in find_modules() if module.name == "SoftHSM"]
    if not modules or shutil.which("softhsm2-util") is None:
        pytest.fail("SoftHSM is missing: apt-get install softhsm2")
    store = tmp_path / "softhsm"
    store.mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {store}\nobjectstore.backend = file\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))
    return SoftHsm(modules[0], config, store)


@pytest.fixture(scope="session")
def seed_7(tmp_path_factory):
    """One whole run of `qkdhw demo --seed 7 --json`, with all it leaves; tests, of all workers, only look at it."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo-of-seed-7"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return finished_demo(place) if (place / "code").exists() else run_demo(place, "--seed", "7", "--json")

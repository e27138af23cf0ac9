"""Somebody else's driver: from its wheel and ours, in an environment with nothing else, it is found and conforms."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import pytest
from distributions import ROOT, UNMEASURED, Built
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXAMPLE = ROOT / "docs" / "examples" / "acme-rx9"
OTHER_KINDS = ("attenuator", "source", "stage", "other")
ENVIRONMENT = {name: value for name, value in UNMEASURED.items() if not name.startswith(("PYTHON", "PYTEST"))}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Clean:
    """An environment with the two wheels and what they declare that they need, and nothing of the checkout."""

    bin: Path
    place: Path

    def begin(self, *command: object, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start a program of this environment."""
        return begin(self.bin / str(command[0]), *command[1:], cwd=cwd or self.place)

    def run(self, *command: object) -> str:
        """Run it and return what it says."""
        return end(self.begin(*command))


def begin(*command: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]
    return out


def needed_by(*roots: str) -> set[str]:
    """Names of distributions that these need, by what is installed here."""
    found: set[str] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        found.add(name)
        needs = [Requirement(text) for text in requires(name) or ()]
        extras = wanted.extras or {""}
        todo += [n for n in needs if not n.marker or any(n.marker.evaluate({"extra": extra}) for extra in extras)]
    return found


def locked(names: set[str]) -> str:
    """The lines of the lock that are about these distributions, hashes included."""
    entries = re.split(r"\n(?=\S)", (ROOT / ".ci" / "lock" / "dev.txt").read_text())
    kept = [entry for entry in entries if re.split("[=<> ;]", entry)[0] in names]
    assert {re.split("[=<> ;]", entry)[0] for entry in kept} == names
    return "\n".join(kept) + "\n"


def wheel_of(project: Path, into: Path) -> Path:
    """Build a project's wheel from a copy."""
    copy = shutil.copytree(
        project, into / "projects" / project.name, ignore=shutil.ignore_patterns("__pycache__", ".*")
    )
    end(begin(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", into / "wheels", copy))
    (wheel,) = (into / "wheels").glob(f"{project.name.replace('-', '_')}-*.whl")
    return wheel


@pytest.fixture(scope="module")
def clean(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    place = tmp_path_factory.mktemp("third-party")
    (place / "lock.txt").write_text(locked(needed_by("qkdhw[serial]", "pytest") - {"qkdhw"}))
    end(begin(sys.executable, "-m", "venv", "--without-pip", place / "venv"))
    pip = [sys.executable, "-m", "pip", "--python", place / "venv" / "bin" / "python", "--disable-pip-version-check"]
    for what in (
        ["install", "--no-deps", "--require-hashes", "-r", place / "lock.txt"],
        ["install", "--no-deps", "--no-index", built.wheel, wheel_of(EXAMPLE, place)],
        ["check"],
    ):
        end(begin(*pip, *what))
    return Clean(place / "venv" / "bin", place)


def test_nothing_of_the_checkout_is_there(clean: Clean) -> None:
    where = (
        "import qkdhw, qkdhw_emulators, acme_rx9; print(qkdhw.__file__, qkdhw_emulators.__file__, acme_rx9.__file__)"
    )
    files = clean.run("python", "-c", where).split()
    assert len(files) == 3
    assert all(Path(file).is_relative_to(clean.place / "venv") for file in files)


def test_the_driver_is_listed(clean: Clean) -> None:
    drivers = json.loads(clean.run("qkdhw", "devices", "list", "--json"))["drivers"]
    assert {"name": "acme-rx9", "vendor": "Acme", "kind": "time tagger"} in drivers


def test_the_driver_conforms(clean: Clean) -> None:
    report = json.loads(clean.run("qkdhw", "devices", "conform", "acme-rx9", "--timeout", "0.3", "--json"))
    assert report["conforms"] is True
    assert report["counts"]["failed"] == 0
    skipped = {check["check"] for check in report["checks"] if check["verdict"] == "not applicable"}
    assert skipped == {"transmitter states"}


@pytest.fixture
def suites(clean: Clean) -> Iterator[list[subprocess.Popen[str]]]:
    """The tests of the example and of new units of the other kinds, all at once: they mostly wait."""
    pip = [sys.executable, "-m", "pip", "--python", clean.bin / "python", "--disable-pip-version-check", "install"]
    folders = [clean.place / "projects" / "acme-rx9"]
    for kind in OTHER_KINDS:
        told = json.loads(clean.run("qkdhw", "devices", "new", f"umbrella-{kind}", "--kind", kind, "--json"))
        folders.append(clean.place / told["folder"])
        end(begin(*pip, "--no-deps", "--no-index", wheel_of(folders[-1], clean.place)))
    processes = [clean.begin("python", "-m", "pytest", "-q", cwd=folder) for folder in folders]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_its_own_tests_pass_and_so_do_those_of_new_units(suites: list[subprocess.Popen[str]]) -> None:
    for process in suites:
        assert "5 passed" in end(process)

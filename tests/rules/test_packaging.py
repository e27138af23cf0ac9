"""What is shipped: an sdist from a clean tree, a wheel from that sdist, and a program that runs from that wheel alone."""

from __future__ import annotations

import configparser
import json
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from distributions import ROOT, Built

from qkdhw.version import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KERNELS = {f"qkdhw/_core/{path.stem}" for path in (ROOT / "ext").glob("*.pyx")}
KERNELS |= {f"qkdhw_emulators/_optics/{path.stem}" for path in (ROOT / "ext" / "optics").glob("*.pyx")}
SHARED = {"qkdhw/_core/_views", "qkdhw_emulators/_optics/_views"}
PRESETS = {f"qkdhw_emulators/optics/presets/{path.name}" for path in (ROOT / "emulators/optics/presets").iterdir()}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_all_modules_and_nothing_else(built: Built) -> None:
    names = names_in(built.wheel)
    info = f"qkdhw-{__version__}.dist-info/"
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "qkdhw").rglob("*.py")}
    modules |= {"qkdhw_" + str(path.relative_to(ROOT)) for path in (ROOT / "emulators").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    compiled = {name for name in names if name.endswith(".so")}
    assert {name.split(".")[0] for name in compiled} == KERNELS | SHARED
    stubs = {name for name in names if name.endswith(".pyi")}
    assert stubs == {f"{kernel}.pyi" for kernel in KERNELS}
    rest = {name for name in names - modules - compiled - stubs if not name.startswith(info)}
    assert rest == {"qkdhw/py.typed", "qkdhw_emulators/py.typed", *PRESETS}
    assert f"{info}licenses/LICENSE" in names


def test_the_wheel_names_every_entry_point(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        found = configparser.ConfigParser(delimiters="=")
        found.optionxform = str  # type: ignore[assignment,method-assign]
        found.read_string(archive.read(f"qkdhw-{__version__}.dist-info/entry_points.txt").decode())
    wanted = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    assert {section: dict(found[section]) for section in found.sections()} == wanted


def test_the_sdist_can_build_and_test_itself(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "Makefile",
        "README.md",
        "LICENSE",
        "docs/README.md",
        "tests/conftest.py",
        ".ci/lock/run.txt",
        ".ci/run",
    ):
        assert name in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "ext").rglob("*.p[yx][xd]")}
    assert len(sources) > len(KERNELS)
    assert sources <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")} <= names
    assert [name for name in names if name.endswith((".so", ".c", ".pyc", ".o"))] == []


def test_it_runs_from_the_wheel_alone(built: Built) -> None:
    where = "import qkdhw, qkdhw_emulators, qkdhw._core.toeplitz as t; print(qkdhw.__file__, qkdhw_emulators.__file__, t.__file__)"
    files = built.run(sys.executable, "-c", where).stdout.split()
    assert len(files) == 3
    assert all(Path(file).is_relative_to(built.site) for file in files)
    assert built.run(sys.executable, "-m", "qkdhw", "--version").stdout == f"qkdhw {__version__}\n"
    doctor = built.run(sys.executable, "-m", "qkdhw", "doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert json.loads(doctor.stdout)["main_job_can_run"] is True


def test_the_main_job_runs_from_the_wheel_alone(built: Built) -> None:
    report = built.site.parent / "report.html"
    done = built.run(built.site / "bin" / "qkdhw", "demo", "--duration", "2.2", "--json", "--report", report)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout)["totals"]["keys_confirmed"] == 8
    assert report.exists()

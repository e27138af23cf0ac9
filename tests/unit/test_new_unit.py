"""`qkdhw devices new`: what it writes works as it is, is clean, and is the example in the documentation."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qkdhw.cli.devices import app
from qkdhw.errors import ConfigurationError
from qkdhw.transport import open_transport
from qkdhw_emulators.new_unit import Kind, names_of, skeleton, write_project
from qkdhw_emulators.serve import serve_unit

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "acme-rx9"


def run(*arguments):
    return CliRunner().invoke(app, [str(word) for word in ("new", *arguments)], catch_exceptions=False)


def files_in(folder):
    """Texts by path, without what tools leave behind."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in paths if not any(part.startswith((".", "__pycache__")) for part in path.parts)]
    return {str(path): (folder / path).read_text() for path in kept}


def test_the_example_is_what_the_command_writes():
    assert skeleton(names_of("acme-rx9"), Kind.TIME_TAGGER) == files_in(EXAMPLE)


def test_the_example_is_sixty_lines_and_four_of_entry_points():
    assert len((EXAMPLE / "acme_rx9.py").read_text().splitlines()) <= 60
    lines = (EXAMPLE / "pyproject.toml").read_text().splitlines()
    first = lines.index('[project.entry-points."qkdhw.drivers"]')
    assert lines[first : first + 5] == [
        '[project.entry-points."qkdhw.drivers"]',
        'acme-rx9 = "acme_rx9:AcmeRx9"',
        '[project.entry-points."qkdhw.emulators"]',
        'acme-rx9 = "acme_rx9:EmulatedAcmeRx9"',
        "",
    ]


@pytest.mark.parametrize("kind", Kind)
def test_a_unit_answers_by_the_name_that_it_was_given(kind, tmp_path, monkeypatch):
    names = names_of(f"umbrella-{kind}", "Umbrella & Sons")
    write_project(tmp_path / names.name, skeleton(names, kind))
    spec = importlib.util.spec_from_file_location(names.module, tmp_path / names.name / f"{names.module}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    driver, emulator = getattr(module, names.driver), getattr(module, f"Emulated{names.driver}")
    with serve_unit(emulator(), transport="emu") as served, driver(open_transport(served.url)) as unit:
        info = unit.identify()
    assert (info.vendor, info.model) == ("Umbrella & Sons", kind.upper())
    assert (driver.vendor, driver.model) == (info.vendor, info.model)


def test_what_is_written_is_clean(tmp_path):
    folders = []
    for number, kind in enumerate(Kind):
        names = names_of(f"umbrella-x{number}")
        folders.append(tmp_path / names.name)
        write_project(folders[-1], skeleton(names, kind))
    for command in (["ruff", "check", "--no-cache", "."], ["ruff", "format", "--no-cache", "--check", "."]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout
    paths = os.pathsep.join(map(str, [ROOT, ROOT / ".ci" / "typing", *folders]))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", ROOT / ".mypy_cache", *folders],
        cwd=tmp_path, env=os.environ | {"MYPYPATH": paths}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not entry_points(group="qkdhw.drivers"), reason="the package is on the path but not installed")
class TestCommand:
    def test_it_writes_a_project(self, tmp_path):
        told = json.loads(run("acme-va7", "--kind", "attenuator", "--into", tmp_path, "--json").stdout)
        assert told == {
            "folder": str(tmp_path / "acme-va7"), "driver": "acme-va7", "vendor": "Acme", "model": "VA7",
            "files": ["README.md", "acme_va7.py", "pyproject.toml", "tests/test_acme_va7.py"],
        }  # fmt: skip
        assert sorted(files_in(tmp_path / "acme-va7")) == told["files"]

    def test_it_says_what_to_do_next(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        out = run("acme-va7", "--kind", "attenuator").stdout
        assert 'pip install -e ".[test]"' in out
        assert "qkdhw devices conform acme-va7" in out

    def test_it_does_not_overwrite(self, tmp_path):
        (tmp_path / "acme-va7").mkdir()
        with pytest.raises(ConfigurationError, match="is there already"):
            run("acme-va7", "--kind", "attenuator", "--into", tmp_path)
        assert files_in(tmp_path) == {}

    @pytest.mark.parametrize("name", ["sfifteen-tdc1", "numpy", "json"])
    def test_it_refuses_a_name_that_is_taken(self, name, tmp_path):
        with pytest.raises(ConfigurationError, match="installed already"):
            run(name, "--kind", "stage", "--into", tmp_path)
        assert files_in(tmp_path) == {}

    @pytest.mark.parametrize(
        "name", ["Acme-RX9", "acme_rx9", "9-acme", "acme--x", "acme-", "../acme", "a", "a" * 25, ""]
    )
    def test_it_refuses_a_name_that_cannot_be_one(self, name, tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be called"):
            run("--kind", "stage", "--into", tmp_path, "--", name)
        assert files_in(tmp_path) == {}

    @pytest.mark.parametrize("vendor", ["", 'Ac"me', "Acme\n", "Acme, Inc", "Ä", "a" * 25, "Acme\\"])
    def test_it_refuses_a_vendor_that_would_break_a_text(self, vendor, tmp_path):
        with pytest.raises(ConfigurationError, match="vendor"):
            run("acme-x", "--kind", "stage", "--into", tmp_path, "--vendor", vendor)

    def test_an_unknown_kind_names_those_that_there_are(self, tmp_path):
        done = run("acme-x", "--kind", "toaster", "--into", tmp_path)
        assert done.exit_code == 2
        assert all(kind in re.sub(r"\s+", " ", done.output) for kind in Kind)


@pytest.mark.parametrize(
    ("name", "vendor", "wanted"),
    [
        ("acme-rx9", None, ("acme_rx9", "AcmeRx9", "Acme", "RX9")),
        ("acme-rx-9", None, ("acme_rx_9", "AcmeRx9", "Acme", "RX-9")),
        ("s-fifteen-tdc9", "S-Fifteen", ("s_fifteen_tdc9", "SFifteenTdc9", "S-Fifteen", "TDC9")),
        (
            "s-fifteen-tdc9",
            "S-Fifteen Instruments",
            ("s_fifteen_tdc9", "SFifteenTdc9", "S-Fifteen Instruments", "TDC9"),
        ),
        ("single-quantum-x", "Single Quantum", ("single_quantum_x", "SingleQuantumX", "Single Quantum", "X")),
        ("tdc9", "S-Fifteen", ("tdc9", "Tdc9", "S-Fifteen", "TDC9")),
        ("box", None, ("box", "Box", "Box", "BOX")),
    ],
)
def test_names(name, vendor, wanted):
    names = names_of(name, vendor)
    assert (names.module, names.driver, names.vendor, names.model) == wanted


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(("name", "vendor"), [("a" * 24, "b" * 24), ("x1", "9. & Co"), ("acme-va2-rx9-acme", "RX9")])
def test_no_name_breaks_the_text(kind, name, vendor):
    files = skeleton(names_of(name, vendor), kind)
    for path, text in files.items():
        if path.endswith(".py"):
            ast.parse(text)
            assert max(map(len, text.splitlines())) <= 120

"""The tutorial "Add a unit in an hour": every command and every piece of code on the page, in order, as it stands."""

import os
import re
import subprocess
import sys
import sysconfig
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "add-a-unit.md"
BLOCK = re.compile(r"^```(\w+)(?: ([^\n]+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LEFT_OUT = ("COVERAGE", "PYTEST", "PYTHON", "PIP_")
LONGEST_S = 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not entry_points(group="qkdhw.drivers"), reason="on the path but not installed"),
]


@dataclass
class Reader:
    """Somebody who does what the page says; what it puts into /tmp is in a folder of its own.

    Attributes:
        folder: Where the shell is.
        said: What each command of a shell printed, in order.
    """

    folder: Path
    environment: dict[str, str]
    tmp: Path
    stack: ExitStack
    said: dict[str, str] = field(default_factory=dict)

    def do(self, language, info, text):
        text = text.replace("/tmp/", f"{self.tmp}/")
        if (language, info) == ("sh", "second terminal"):
            self.stack.enter_context(self.second_terminal(text))
        elif language == "sh":
            for line in text.splitlines():
                self.shell(line)
        elif language == "python" and info:
            (self.folder / info).write_text(text)
        elif language == "python":
            self.run(["python", "-W", "error", "-c", text])
        elif language == "diff":
            self.change(text)
        else:
            raise AssertionError(f"nobody knows what to do with {language} {info}")

    def shell(self, line):
        where = self.tmp / "where"
        self.said[line] = self.run(["bash", "-euc", f"{line}\npwd > {where}"])
        self.folder = Path(where.read_text().strip())

    def run(self, command):
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def second_terminal(self, line):
        with subprocess.Popen(
            ["bash", "-c", line], cwd=self.folder, env=self.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout.readline()
            yield
            process.stdin.close()
            assert process.wait(timeout=20) == 0

    def change(self, text):
        """Apply a difference without line numbers: what was there must be there exactly once."""
        (old_name, new_name), lines = (line[4:] for line in text.splitlines()[:2]), text.splitlines()[2:]
        before, after = (
            "".join(f"{line[1:]}\n" for line in lines if line[0] in signs) for signs in ((" ", "-"), (" ", "+"))
        )
        file = self.folder / new_name
        assert old_name == new_name
        assert file.read_text().count(before) == 1
        file.write_text(file.read_text().replace(before, after))


@pytest.fixture
def reader(tmp_path):
    """A shell with a Python environment of its own, where all is installed that is installed here."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=100)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    (site / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name in ("pip", "pytest", "qkdhw"):
        program = venv / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {venv}/bin/python -m {name} "$@"\n')
        program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    pip = {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "200"}
    folder = tmp_path / "home"
    folder.mkdir()
    with ExitStack() as stack:
        yield Reader(folder, kept | pip | {"PATH": f"{venv}/bin:{os.environ['PATH']}"}, tmp_path, stack)


def test_every_command_and_every_piece_of_code_runs(reader):
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) > 12
    for block in blocks:
        reader.do(*block)
    said = {command.replace(f"{reader.tmp}/", "/tmp/"): text for command, text in reader.said.items()}
    assert "0.26" in said["qkdhw devices set acme-tt3 emu://acme-tt3 threshold_v.2=0.257"]
    assert "acme-tt3" in said["qkdhw devices list"]
    assert "acme-tt3 conforms" in said["qkdhw devices conform acme-tt3 --timeout 0.2"]
    assert "1 passed" in said["pytest -q tests/test_dead_time.py"]
    assert "1 passed" in said["pytest -q tests/test_first_session.py"]
    assert "light_rate_hz = 0" in said["qkdhw devices world /tmp/acme-tt3.control acme-tt3.light_rate_hz=0"]
    assert (reader.folder / "report" / "conformance-acme-tt3.html").exists()


def test_what_the_page_quotes_of_errors_is_what_they_say():
    """Fixed parts of the messages in the table of usual failures."""
    page = PAGE.read_text()
    sources = "".join(
        path.read_text()
        for folder in ("emulators/conformance", "qkdhw/drivers")
        for path in sorted((ROOT / folder).glob("*.py"))
    )
    for part in (
        "after the unit was told", "it was set to", "it was read as", "after a late answer", "raises ConfigurationError",
    ):  # fmt: skip
        assert part in page
        assert part in sources

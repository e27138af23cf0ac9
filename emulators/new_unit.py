"""`qkdhw devices new`: a project with a driver, its emulator and their tests, that works before a line is changed."""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
import sys
from dataclasses import dataclass
from enum import StrEnum, unique
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qkdhw.drivers import installed_drivers
from qkdhw.errors import ConfigurationError

_NAME = re.compile(r"(?=.{2,24}\Z)[a-z][a-z0-9]*(-[a-z0-9]+)*")
_VENDOR = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 .&-]{0,22}[A-Za-z0-9.])?")

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "qkdhw driver and emulator of the {vendor} {model}"
requires-python = ">=3.11"
dependencies = ["qkdhw[serial]"]

[project.optional-dependencies]
test = ["pytest>=9"]

[project.entry-points."qkdhw.drivers"]
{name} = "{module}:{driver}"
[project.entry-points."qkdhw.emulators"]
{name} = "{module}:Emulated{driver}"

[tool.setuptools]
py-modules = ["{module}"]

[tool.pytest.ini_options]
testpaths = ["tests"]

[tool.ruff]
line-length = 120
[tool.ruff.lint]
select = ["E", "F", "W", "B", "UP"]

[tool.mypy]
strict = true
"""

TESTS = '''\
"""The {vendor} {model}: its driver against its emulator."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from {module} import Emulated{driver}

from qkdhw import open_unit
from qkdhw.drivers import load_driver
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Verdict, run_suite
from qkdhw_emulators.serve import ServedUnit
from qkdhw_emulators.world import World

NAME = "{name}"
DIALOGUE = b"{dialogue}"


@pytest.mark.parametrize("on", ["emu", "pty", "tcp"])
def test_it_conforms(emulated_unit: Callable[..., ServedUnit], on: str) -> None:
    served = emulated_unit(NAME, on=on)
    subject = Subject(NAME, served.url, load_driver(NAME), timeout_s=0.3, served=served, rounds=20)
    assert [outcome for outcome in run_suite(subject) if outcome.verdict is Verdict.FAILED] == []


def test_a_lost_answer_is_asked_for_again(
    emulated_unit: Callable[..., ServedUnit], faulty: Callable[..., AbstractContextManager[None]]
) -> None:
    served = emulated_unit(NAME)
    with open_unit(NAME, served.url, timeout_s=0.5) as unit, faulty(served, "drop:count=1"):
        assert unit.identify().model == "{model}"


def test_the_emulator_answers_the_same_to_bytes_one_by_one() -> None:
    whole, pieces = Emulated{driver}(World(seed=1)), Emulated{driver}(World(seed=1))
    assert whole.receive(DIALOGUE) == b"".join(pieces.receive(bytes([byte])) for byte in DIALOGUE)
'''

README = """\
# {vendor} {model} for qkdhw

`{module}.py` has the driver `{driver}` and `Emulated{driver}`, which answers as the unit does. Both work as they are:

    pip install -e ".[test]"
    qkdhw devices list
    qkdhw devices conform {name}
    pytest

Now make them yours. qkdhw's tutorial "Add a unit in an hour" goes through it step by step:

1. `Source:`, `vendor`, `model` and `idn_pattern`: what your manual is and what your unit answers to `*IDN?`.
2. The emulator first: its commands from the manual's tables, its answers byte for byte.
3. Then the driver's settings: range, step, query and command of each.
4. `qkdhw devices conform {name}` until it conforms, and once more with `--on pty` and `--on tcp`.
5. The real unit: `qkdhw devices conform {name} --address serial:///dev/ttyUSB0`. Settings are changed and restored;
   outputs are left alone.
"""


@unique
class Kind(StrEnum):
    """What there is a template of."""

    TIME_TAGGER = "time-tagger"
    ATTENUATOR = "attenuator"
    SOURCE = "source"
    STAGE = "stage"
    OTHER = "other"


TEMPLATES = {  # the model that a template speaks of, and a dialogue with it
    Kind.TIME_TAGGER: ("RX9", r"*IDN?\nTHR1 0.5\nTHR1?\nRUN 1\nEVT? 9\nRUN 0\nWHAT?\n"),
    Kind.ATTENUATOR: ("VA2", r"*IDN?\nATT 3.02\nATT?\nWAV 1\nWHAT?\n"),
    Kind.SOURCE: ("LS4", r"*IDN?\nPOW 3.002\nPOW?\nOUT 1\nOUT?\nTMP?\nWHAT?\n"),
    Kind.STAGE: ("MS1", r"*IDN?\nMOV 5\nSPD 20.4\nSPD?\nHOM?\nWHAT?\n"),
    Kind.OTHER: ("SW4", r"*IDN?\nRTE 3\nRTE?\nRTE 5\nWHAT?\n"),
}


@dataclass(frozen=True, slots=True)
class Names:
    """What a new unit is called where.

    Attributes:
        name: Driver and emulator, such as "acme-rx9".
        vendor: Such as "Acme".
        model: Such as "RX9".
    """

    name: str
    vendor: str
    model: str

    @property
    def module(self) -> str:
        """Name of the Python module."""
        return self.name.replace("-", "_")

    @property
    def driver(self) -> str:
        """Name of the driver's class; the emulator's has Emulated before it."""
        return "".join(word.capitalize() for word in self.name.split("-"))


def names_of(name: str, vendor: str | None = None) -> Names:
    """Work out what a unit is called.

    Args:
        name: Lower-case words with hyphens between, the vendor's first as a rule.
        vendor: The vendor as it writes itself; the first word of the name if left out.

    Raises:
        ConfigurationError: A name cannot be one.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigurationError(
            f"a unit cannot be called {name!r}", remedy="use words of a-z and 0-9 with hyphens between, as acme-rx9"
        )
    vendor = name.partition("-")[0].capitalize() if vendor is None else vendor
    if not _VENDOR.fullmatch(vendor):
        raise ConfigurationError(f"a vendor cannot be called {vendor!r}", remedy="use at most 24 letters and digits")
    model = name
    for known in (vendor, vendor.partition(" ")[0]):
        if model == name:
            model = name.removeprefix(re.sub("[^a-z0-9]+", "-", known.lower()).strip("-") + "-")
    return Names(name, vendor, model.upper())


def skeleton(names: Names, kind: Kind) -> dict[str, str]:
    """Return the texts of a project's files by their path in it."""
    model, dialogue = TEMPLATES[kind]
    template = resources.files("qkdhw_emulators.templates") / f"{kind.replace('-', '_')}.py"
    words = {f"Acme{model.capitalize()}": names.driver, "Acme": names.vendor, model: names.model}
    source = re.sub("|".join(words), lambda match: words[match[0]], template.read_text("utf-8"))
    fill = {"name": names.name, "module": names.module, "driver": names.driver, "dialogue": dialogue}
    fill |= {"vendor": names.vendor, "model": names.model}
    return {
        f"{names.module}.py": source,
        "pyproject.toml": PYPROJECT.format(**fill),
        f"tests/test_{names.module}.py": TESTS.format(**fill),
        "README.md": README.format(**fill),
    }


def write_project(folder: Path, files: dict[str, str]) -> None:
    """Write a project into a new folder.

    Raises:
        ConfigurationError: It is there already; nothing was written.
    """
    if folder.exists():
        raise ConfigurationError(f"{folder} is there already", remedy="choose another name, or --into another folder")
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")


def new(
    name: Annotated[str, typer.Argument(help="What the unit will be called, vendor first: acme-rx9.")],
    *,
    kind: Annotated[Kind, typer.Option(help="What to begin with.")],
    vendor: Annotated[
        str | None, typer.Option(metavar="VENDOR", help="The vendor's name; by default the first word of NAME.")
    ] = None,
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the project's folder will be.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output.")] = False,
) -> None:
    """Begin a driver of your own: a project with driver, emulator and tests that works before you change a line."""
    names = names_of(name, vendor)
    if name in installed_drivers() or importlib.util.find_spec(names.module) is not None:
        raise ConfigurationError(f"{name} is installed already", remedy="choose another name")
    folder = into / name
    files = skeleton(names, kind)
    write_project(folder, files)
    if as_json:
        told = {"folder": str(folder), "driver": name, "vendor": names.vendor, "model": names.model}
        sys.stdout.write(json.dumps(told | {"files": sorted(files)}, indent=2) + "\n")
        return
    console = Console()
    console.print(
        f"{folder} has the driver and the emulator of the {names.vendor} {names.model}. Next:", highlight=False
    )
    for line in (f"cd {folder}", 'pip install -e ".[test]"', f"qkdhw devices conform {name}", "pytest"):
        console.print(f"  {line}", highlight=False, markup=False)

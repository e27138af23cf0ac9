"""The command line as a whole: every command explains itself, speaks JSON, and fails in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qkdhw.cli import app
from qkdhw.version import __version__

GROUPS = {"devices", "events", "link", "keys", "hsm", "demo", "doctor", "emulate"}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that call it."""
    children = getattr(command, "commands", {})
    if not children or command.invoke_without_command:
        yield path, command
    for name, child in children.items():
        yield from commands(child, (*path, name))


ROOT = typer.main.get_command(app)
COMMANDS = [(path, command) for path, command in commands(ROOT) if path]
IDS = [" ".join(path) for path, _ in COMMANDS]


def qkdhw(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qkdhw", *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_all_groups_are_there() -> None:
    assert {path[0] for path, _ in COMMANDS} == GROUPS
    assert len(COMMANDS) > 15


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_help_is_useful(path: tuple[str, ...], command: Any) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "150", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert f"qkdhw {' '.join(path)}" in shown.output.replace("root", "qkdhw")
    text = " ".join((command.help or "").split())
    assert text.endswith("."), "the help of a command is a sentence"
    assert len(text) > 25
    assert "Args:" not in text
    silent = [p.name for p in command.params if not (p.help or "").strip() and p.name not in {"help", "version"}]
    assert silent == []
    for parameter in command.params:
        for option in getattr(parameter, "opts", []):
            if option.startswith("--"):
                assert option in shown.output


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_every_command_speaks_json(path: tuple[str, ...], command: Any) -> None:
    assert "--json" in [option for parameter in command.params for option in parameter.opts]


def test_every_group_explains_itself() -> None:
    for name, group in ROOT.commands.items():  # type: ignore[attr-defined]
        assert len(group.help or "") > 25, name


def test_without_arguments_it_shows_what_it_can() -> None:
    shown = qkdhw()
    assert "Usage: " in shown.stdout + shown.stderr
    for name in GROUPS:
        assert name in shown.stdout + shown.stderr


@pytest.mark.parametrize("group", sorted(GROUPS - {"demo", "doctor"}))
def test_a_group_without_arguments_shows_its_commands(group: str) -> None:
    shown = CliRunner().invoke(app, [group])
    for path, _ in COMMANDS:
        if path[0] == group:
            assert path[1] in shown.output


def test_version() -> None:
    shown = qkdhw("--version")
    assert (shown.returncode, shown.stdout) == (0, f"qkdhw {__version__}\n")


@pytest.mark.parametrize("arguments", [("formats",), ("formats", "--json")])
def test_a_reader_that_leaves_early_is_no_fault(arguments: tuple[str, ...]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qkdhw", "events", *arguments],
            stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(write_end)
    assert "Traceback" not in done.stderr
    assert "error:" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nonsense",), "No such command"),
        (("devices", "status"), "Missing argument"),
        (("demo", "--duration", "1"), "greater than or equal to 2"),
        (("demo", "--loss-db", "far"), "--loss-db"),
        (("demo", "--eavesdropper", "eve"), "intercept-resend"),
    ],
)
def test_wrong_usage_is_told_with_code_2(arguments: tuple[str, ...], text: str) -> None:
    failed = qkdhw(*arguments, env=os.environ | {"COLUMNS": "200"})
    assert failed.returncode == 2
    assert text in failed.stderr
    assert "Traceback" not in failed.stderr


def test_lists_are_json_for_scripts() -> None:
    for arguments in (("devices", "list"), ("events", "formats"), ("hsm", "modules")):
        done = qkdhw(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)


def test_the_doctor_says_what_is_missing_for_which_driver() -> None:
    found = {check["name"]: check for check in json.loads(qkdhw("doctor", "--json").stdout)["checks"]}
    needs = {"pyvisa": "agilent-8156a", "pyvisa-py": "srs-dg645", "pyusb": "idq-quantis", "libusb": "cqt-fx2"}
    for name, driver in (needs | {"pyzmq": "idq-id900"}).items():
        assert driver in found[name]["found"]
    assert "zeroconf" in found
    for name, module in (("swabian-time-tagger", "Swabian"), ("picoquant-harp", "snAPI")):
        check = found[f"driver {name}"]
        assert check["ok"] == (importlib.util.find_spec(module) is not None)
        assert check["ok"] or (module in check["found"] and "pip install" in check["remedy"])

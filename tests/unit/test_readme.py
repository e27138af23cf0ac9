"""README and docs hold: the examples run as they stand, the commands, options and targets exist, no link is dead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qkdhw.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
NO_CALLS = {"audit trail of store STORE_ID"}  # text that is hashed
COMMAND = typer.main.get_command(app)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, without the indentation of the list item they may stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def code(page: Path) -> Iterator[str]:
    """Inline code and indented blocks, a line each."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for inline in re.findall(r"`([^`]+)`", text):
        yield " ".join(inline.split())
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))


def run_python(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def test_the_example_in_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    assert len(example.splitlines()) <= 10
    done = run_python(example, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"[1-9]\d* events, tick 2000 ps, channels \{1, 2, 3, 4\}", done.stdout), done.stdout


def test_the_installation_of_a_start_key_runs_as_it_stands(tmp_path: Path) -> None:
    lines = [line for text in blocks(ROOT / "docs/how-to/run-a-link.md", "sh") for line in text.splitlines()]
    assert [line.split()[:3] for line in lines] == [["qkdhw", "keys", "make-start-key"], ["qkdhw", "keys", "create"]]
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-m", *line.split()], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"start-key", "kek", "keys.sqlite"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_the_docs_compiles(page: Path) -> None:
    for source in blocks(page, "python"):
        compile(source, str(page), "exec")


def resolve(words: list[str]) -> tuple[list[str], Any]:
    """The command that these words call."""
    path, command = [], COMMAND
    for word in words:
        children = getattr(command, "commands", {})
        if word not in children:
            break
        command = children[word]
        path.append(word)
    return path, command


def calls() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for line in code(page):
            for call in re.findall(r"(?:^|[ /])qkdhw +([a-z-][^|;#&()]*)", line):
                if call not in NO_CALLS:
                    yield page, call.strip()


CALLS = sorted({(name_of(page), call) for page, call in calls()})


def test_there_are_commands_to_check() -> None:
    groups = {call.split()[0] for _, call in CALLS}
    assert {"demo", "devices", "events", "link", "keys", "doctor"} <= groups


@pytest.mark.parametrize(("page", "call"), CALLS, ids=[f"{page}: {call}" for page, call in CALLS])
def test_every_command_named_exists(page: str, call: str) -> None:
    words = call.split()
    path, command = resolve(words)
    assert path or words[0].startswith("--"), f"{page} names `qkdhw {call}`"
    assert not (getattr(command, "commands", {}) and len(words) > len(path) and words[len(path)].isalpha())
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {w.split("=")[0] for w in words if w.startswith("--")} <= known | {"--help", "--install-completion"}
    assert CliRunner().invoke(app, [*path, "--help"]).exit_code == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for line in code(page) for target in re.findall(r"(?:^|\s)make ([a-z]+)", line)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_relative_link_is_dead(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{name_of(page)} links to {target}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_of_the_docs_is_linked_from_somewhere() -> None:
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text()):
            linked.add((page.parent / target).resolve())
            if (page.parent / target).is_dir():
                linked |= set((page.parent / target).resolve().glob("*.md"))
    assert [name_of(page) for page in PAGES if page.is_relative_to(ROOT / "docs") and page not in linked] == []

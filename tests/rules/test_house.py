"""The rules of the house as tests: layout, sizes, names, docstrings, errors."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import qkdhw.errors

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [p for folder in ("qkdhw", "emulators", "ext", "tests") for p in sorted((ROOT / folder).rglob("*.py*"))]
SOURCES = [p for p in SOURCES if p.suffix in {".py", ".pyx", ".pyi", ".pxd"}]
SHIPPED = [p for p in SOURCES if p.suffix == ".py" and not p.is_relative_to(ROOT / "tests")]
TOP_LEVEL = {
    "setup.py", "pyproject.toml", "qkdhw", "ext", "emulators", "tests", "docs", "README.md", "LICENSE",
    "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "MANIFEST.in", "Makefile",
}  # fmt: skip
LIMIT_FILE_LINES = 500
LIMIT_FUNCTION_LINES = 80


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def ending(suffix: str) -> list[Path]:
    return [path for path in SOURCES if path.suffix == suffix]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_top_level_is_exactly_the_house() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} == TOP_LEVEL


def test_no_file_is_above_the_limit() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: n for name, n in lines.items() if n > LIMIT_FILE_LINES} == {}


def test_no_function_is_above_the_limit() -> None:
    lines = {
        f"{name_of(path)}:{f.name}": (f.end_lineno or 0) - f.lineno + 1
        for path in ending(".py")
        for f in functions(path)
    }
    assert {name: n for name, n in lines.items() if n > LIMIT_FUNCTION_LINES} == {}


def kernel_functions(path: Path) -> Iterator[tuple[str, int]]:
    """First line and number of lines of each function of a kernel."""
    lines = path.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"\s*(cdef|cpdef|def) .*[(]", line)]
    for start in starts:
        indent = len(lines[start]) - len(lines[start].lstrip())
        end = start + 1
        while end < len(lines) and (
            not lines[end].strip()
            or len(lines[end]) - len(lines[end].lstrip()) > indent
            or lines[end].lstrip().startswith((")", '"""'))
        ):
            end += 1
        yield lines[start], end - start


def test_no_kernel_function_is_above_the_limit() -> None:
    lines = [(name_of(path), head, n) for path in ending(".pyx") for head, n in kernel_functions(path)]
    assert lines
    assert [each for each in lines if each[-1] > LIMIT_FUNCTION_LINES] == []


def test_kernels_that_index_never_swallow_an_error() -> None:
    """noexcept is for C functions, and for functions of ours that index no memoryview: C pointers raise nothing."""
    view = re.compile(r"\w\[[:, 1]+\] (\w+)")
    for path in ending(".pyx"):
        text = path.read_text()
        attributes = [f"self.{name}" for name in view.findall(text)]
        for body in re.split(r"^ *(?=cdef |def |cpdef )", text, flags=re.MULTILINE):
            head, colon, rest = body.partition("nogil:\n")
            if colon and "noexcept" in head:
                swallowed = [name for name in (*view.findall(body), *attributes) if f"{name}[" in rest]
                assert swallowed == [], f"{name_of(path)}: {head}"


def test_no_vague_module_names() -> None:
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert [name_of(path) for path in SHIPPED if path.stem in vague] == []


def test_every_wait_says_its_unit() -> None:
    without_unit = {"timeout", "delay", "interval", "duration", "frequency", "loss"}
    offenders = [
        f"{name_of(path)}:{function.name}: {a.arg}"
        for path in SHIPPED
        for function in functions(path)
        for a in (*function.args.args, *function.args.kwonlyargs)
        if a.arg in without_unit
    ]
    assert offenders == []


def test_error_names_end_in_error_and_share_one_root() -> None:
    classes = [c for c in vars(qkdhw.errors).values() if isinstance(c, type)]
    assert classes
    for each in classes:
        assert issubclass(each, qkdhw.errors.QkdhwError)
        assert each.__name__.endswith("Error")
        assert each.__doc__


def test_every_kernel_has_stub_and_test() -> None:
    tests = [p.read_text() for p in (ROOT / "tests").rglob("*.py")]
    for path in sorted((ROOT / "ext").rglob("*.pyx")):
        of_the_optics = path.is_relative_to(ROOT / "ext" / "optics")
        package = ROOT / "emulators" / "_optics" if of_the_optics else ROOT / "qkdhw" / "_core"
        assert (package / f"{path.stem}.pyi").exists()
        imported = re.compile(rf"{package.name}(\.| import (\w+, )*){path.stem}\b")
        assert any(imported.search(text) for text in tests), path.stem


def test_the_project_speaks_of_itself_alone() -> None:
    words = re.compile(r"/work/|/root/|\.\./shared|claude|anthropic|farm-bench|assistant", re.IGNORECASE)
    files = [p for p in [*SOURCES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"] if p.exists()]
    offenders = [name_of(p) for p in files if p.name != "test_house.py" and words.search(p.read_text())]
    assert [o for o in offenders if "captures" not in o] == []


def test_kernels_are_imported_through_their_package() -> None:
    """import-linter does not see compiled modules; `from qkdhw._core import name` keeps the edge visible."""
    product = [p for p in SHIPPED if p.is_relative_to(ROOT / "qkdhw")]
    assert [name_of(path) for path in product if "from qkdhw._core." in path.read_text()] == []

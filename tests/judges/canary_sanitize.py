"""Run by `make sanitize`: the sanitizers see the seeded bugs, and the kernels that are tested are theirs."""

import subprocess
import sys
from pathlib import Path

import canary
import pytest

from qkdhw._core import ptu

BUILD = Path("build/judge/sanitize/lib").resolve()


def test_the_kernels_are_of_this_build():
    assert Path(ptu.__file__).is_relative_to(BUILD)
    assert Path(canary.__file__).is_relative_to(BUILD)


@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("read_at(memoryview(bytearray(64)), 72)", "heap-buffer-overflow"),
        ("next_after(2**63 - 1)", "signed integer overflow"),
        ("read_at(memoryview(bytearray(64)), 63)", ""),
        ("next_after(2**63 - 2)", ""),
    ],
)
def test_a_seeded_bug_is_reported(call, report):
    ended = subprocess.run(
        [sys.executable, "-c", f"import canary; canary.{call}"], capture_output=True, text=True, check=False
    )
    assert report in ended.stderr
    assert (ended.returncode != 0) == bool(report), ended.stderr

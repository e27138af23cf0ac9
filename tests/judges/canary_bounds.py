"""Run by `make bounds`: an index outside an array is an error, and the kernels that are tested are checked so."""

from pathlib import Path

import canary
import pytest

from qkdhw._core import ptu

BUILD = Path("build/judge/bounds/lib").resolve()


def test_the_kernels_are_of_this_build():
    assert Path(ptu.__file__).is_relative_to(BUILD)
    assert Path(canary.__file__).is_relative_to(BUILD)


def test_a_seeded_bug_is_reported():
    assert canary.read_at(bytes(range(64)), 63) == 63
    with pytest.raises(IndexError):
        canary.read_at(bytes(64), 64)

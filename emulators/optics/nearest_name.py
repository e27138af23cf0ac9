"""What was meant by a name that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the question whether the nearest of the known names was meant, with a space behind it; else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f"did you mean {near[0]}? " if near else ""

"""What a fuzz target is: a check of one decoder that takes any octets, and octets to begin with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from qkdhw.errors import EventFormatError


@dataclass(frozen=True)
class Target:
    """One decoder to be fuzzed.

    Attributes:
        check: Decodes octets; raises nothing unless the decoder is wrong.
        seeds: Makes input to begin with, valid as far as it can be.
        max_bytes: Longest input.
        slowness: Runs are divided by this: a library of others opens a file in each.
    """

    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    max_bytes: int = 256
    slowness: int = 1


def pieces_of(choice: int, data: bytes) -> list[bytes]:
    """Cut octets in two or three, some of which may be empty; a choice of 0 to 255 says where."""
    size, steps = len(data), choice | 1
    at = [0, *sorted(size * (i * steps % 97) // 97 for i in range(1, 2 + choice % 2)), size]
    return [data[a:b] for a, b in itertools.pairwise(at)]


def refusal(error: EventFormatError, size_bytes: int) -> tuple[type[EventFormatError], int | None]:
    """Return what an error says, when it names no place outside so many octets."""
    assert error.offset_bytes is None or 0 <= error.offset_bytes <= size_bytes, error
    return type(error), error.offset_bytes

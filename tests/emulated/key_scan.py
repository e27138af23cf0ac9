"""Search files for pieces of keys: as they are, in hexadecimal, and in base64.

A needle is any eight bytes that begin at a multiple of eight in a key, so whatever holds fifteen bytes of a key in a row
is found, wherever it begins. Text that could be hexadecimal or base64 is decoded at every alignment and searched too.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 1 << 24
NEEDLE_BYTES = 8
OVERLAP_BYTES = 1 << 12
HEXADECIMAL = re.compile(rb"[0-9a-f]{16,}|[0-9A-F]{16,}")
BASE64 = re.compile(rb"[A-Za-z0-9+/]{12,}|[A-Za-z0-9_-]{12,}")


def needles_of(keys: Iterable[bytes]) -> NDArray[np.uint64]:
    whole = b"".join(key[: len(key) // NEEDLE_BYTES * NEEDLE_BYTES] for key in keys)
    return np.unique(np.frombuffer(whole, np.uint64))


def count_hits(data: bytes, needles: NDArray[np.uint64]) -> int:
    """How many needles stand in `data`, as they are or encoded."""
    return _count_plain(data, needles) + _count_plain(b"".join(_decoded(data)), needles)


def scan_file(path: Path, needles: NDArray[np.uint64]) -> int:
    """Like `count_hits` for a file of any size; what lies in the overlap of two pieces may count twice."""
    hits = 0
    with path.open("rb") as file:
        tail = b""
        while piece := file.read(PIECE_BYTES):
            if piece.strip(b"\0"):
                hits += count_hits(tail + piece, needles)
            tail = piece[-OVERLAP_BYTES:]
    return hits


def scan_tree(folder: Path, needles: NDArray[np.uint64]) -> dict[str, int]:
    """Files under `folder` that hold a needle, and how many."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = {str(path.relative_to(folder)): scan_file(path, needles) for path in files}
    return {name: hits for name, hits in found.items() if hits}


def _count_plain(data: bytes, needles: NDArray[np.uint64]) -> int:
    hits = 0
    for start in range(min(NEEDLE_BYTES, len(data))):
        windows = np.frombuffer(data, np.uint64, (len(data) - start) // NEEDLE_BYTES, start)
        at = np.searchsorted(needles, windows)
        hits += int(np.count_nonzero(needles[np.minimum(at, needles.size - 1)] == windows))
    return hits


def _decoded(data: bytes) -> Iterator[bytes]:
    gap = bytes(NEEDLE_BYTES)  # so that two finds that are no neighbours make no needle
    for match in HEXADECIMAL.finditer(data):
        digits = match[0]
        for start in (0, 1):
            yield bytes.fromhex(digits[start : start + (len(digits) - start) // 2 * 2].decode()) + gap
    for match in BASE64.finditer(data):
        text = match[0].replace(b"-", b"+").replace(b"_", b"/")
        for start in range(4):
            yield base64.b64decode(text[start : start + (len(text) - start) // 4 * 4]) + gap

"""The times that a peer announces, for whoever looks for the clock; and the reply when there is no clock to place them.

Wire format of that reply, little-endian: "QPL" and a version byte 1, sequence uint32. It keeps nothing.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import pair_sifting as kernels
from qkdhw.errors import PeerProtocolError
from qkdhw.postprocessing.pair_sifting import MAX_DETECTIONS, PairAnswer, PairCounts, SiftedPairs

_ANNOUNCEMENT = struct.Struct("<4sIIq")
_UNPLACED = struct.Struct("<4sI")
_UNPLACED_MAGIC = b"QPL\x01"
_LIMIT = 1 << 60


def announced_times(message: bytes) -> tuple[int, NDArray[np.int64]]:
    """Read an announcement.

    Args:
        message: As received.

    Returns:
        Its number, and the times of its detections in units, int64 (n,), not decreasing.

    Raises:
        PeerProtocolError: It is malformed; names the offset.
    """
    if len(message) < _ANNOUNCEMENT.size:
        raise _bad(len(message), "it is shorter than its header")
    magic, sequence, n, first = _ANNOUNCEMENT.unpack_from(message)
    if magic != b"QPA\x01":
        raise _bad(0, "it does not begin with its magic bytes")
    # A detection takes two bits at least, so this also bounds n by what was received.
    if n > MAX_DETECTIONS or 2 * n > 8 * (len(message) - _ANNOUNCEMENT.size):
        raise _bad(8, f"its bytes do not hold {n} detections")
    if not -_LIMIT <= first <= _LIMIT:
        raise _bad(12, f"its first time {first} is out of range")
    units = np.empty(n, np.int64)
    wrong = kernels.read_times(
        np.frombuffer(message + bytes(8), np.uint8), 8 * _ANNOUNCEMENT.size, first, _LIMIT, units
    )
    if wrong >= 0:
        raise _bad(wrong, "a detection is out of range, badly coded or followed by more")
    return sequence, units


def no_pairs(sequence: int) -> SiftedPairs:
    """Return the sifted pairs of an announcement of which none is kept."""
    nothing = np.empty(0, np.uint8)
    return SiftedPairs(sequence, np.empty(0, np.int64), 0, 0, nothing, nothing)


def unplaced_answer(sequence: int, n_announced: int) -> PairAnswer:
    """Answer an announcement whose detections could not be placed: none is kept."""
    reply = _UNPLACED.pack(_UNPLACED_MAGIC, sequence)
    return PairAnswer(reply, no_pairs(sequence), PairCounts(n_announced, 0, 0, 0, 0, 0.0))


def parse_unplaced_reply(reply: bytes) -> int | None:
    """Return the number of the announcement that a reply says it could not place, None if it is another reply."""
    if len(reply) != _UNPLACED.size or not reply.startswith(_UNPLACED_MAGIC):
        return None
    return int(_UNPLACED.unpack(reply)[1])


def _bad(offset: int, reason: str) -> PeerProtocolError:
    return PeerProtocolError(
        f"bad announcement, byte {offset}: {reason}",
        remedy="Drop this message; check that both sites run the same version.",
    )

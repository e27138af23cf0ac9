"""The sync frame: what a transmitter prepared in its first pulses, disclosed for clock alignment, never key."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import PeerProtocolError

MAX_SYNC_PULSES = 1 << 24
_MAGIC = b"QF\x01\x00"
_HEADER = struct.Struct("<4sq")


@dataclass(frozen=True, slots=True)
class SyncFrame:
    """A disclosed piece of a preparation record.

    Attributes:
        first_slot: Number of its first pulse.
        record: uint8 (L,), as in `PreparationBlock`.
    """

    first_slot: int
    record: NDArray[np.uint8]

    @property
    def end_slot(self) -> int:
        """Number of the first pulse after it."""
        return self.first_slot + len(self.record)

    def to_bytes(self) -> bytes:
        """Write it for the other site."""
        return _HEADER.pack(_MAGIC, self.first_slot) + self.record.tobytes()

    @classmethod
    def from_bytes(cls, message: bytes) -> SyncFrame:
        """Read what the other site wrote.

        Raises:
            PeerProtocolError: It is no sync frame.
        """
        size = len(message) - _HEADER.size
        if not 0 < size <= MAX_SYNC_PULSES:
            raise PeerProtocolError(f"a sync frame of {len(message)} bytes", remedy="check that both sites run alike")
        magic, first_slot = _HEADER.unpack_from(message)
        record = np.frombuffer(message, np.uint8, offset=_HEADER.size)
        if magic != _MAGIC or not 0 <= first_slot < 1 << 62 or int(record.max()) > 11:
            raise PeerProtocolError("bytes that are no sync frame", remedy="check that both sites run alike")
        return cls(first_slot, record)

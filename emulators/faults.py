"""Named faults of emulated units, scripted from a test or the command line."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from enum import StrEnum, unique

import numpy as np

SLIP_EVERY_BYTES = 1 << 16


@unique
class Fault(StrEnum):
    """What may be wrong with an emulated unit; each is on or off.

    SILENT: no command is answered.
    GARBAGE: every answer is replaced by random bytes of the same length; only the last byte is right.
    OVERFLOW: tagger: half of the events are lost, and STATUS? has the FIFO overflow bit.
    BYTE_SLIP: tagger: one byte in 65536 of the event stream is missing.
    NEGATIVE_TIME: tagger: TIME? of more than 32767 ms is answered as a negative number, as old firmware does.
    RECORD_OVERRUN: transmitter: does not wait for its reader; old records are dropped.
    LASER_TEMPERATURE: transmitter: START fails with a hardware fault and a latched alarm.
    """

    SILENT = "silent"
    GARBAGE = "garbage"
    OVERFLOW = "overflow"
    BYTE_SLIP = "byte-slip"
    NEGATIVE_TIME = "negative-time"
    RECORD_OVERRUN = "record-overrun"
    LASER_TEMPERATURE = "laser-temperature"


def spoil_reply(reply: bytes, faults: AbstractSet[Fault], rng: np.random.Generator) -> bytes:
    """Return the reply as a unit with these faults would send it."""
    if Fault.SILENT in faults:
        return b""
    if Fault.GARBAGE in faults and reply:
        return rng.bytes(len(reply) - 1) + reply[-1:]
    return reply


def slip_bytes(data: bytes, position: int) -> bytes:
    """Leave out the last of every 65536 bytes of a stream; `position` is where in the stream `data` begins."""
    first = SLIP_EVERY_BYTES - 1 - position % SLIP_EVERY_BYTES
    out = bytearray(data)
    del out[first::SLIP_EVERY_BYTES]
    return bytes(out)

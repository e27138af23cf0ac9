"""Fuzz targets of the stream decoders in qkdhw.formats, one for each class that there is.

The first octet of the input chooses the variant and the mode, the second how the rest is cut. Whole and in pieces the
stream must give the same: events, gaps and tally, or the same error at the same offset inside the stream.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from fuzz_files import written_files
from fuzz_target import Target, pieces_of, refusal

import qkdhw.formats
from qkdhw.errors import EventError, EventFormatError
from qkdhw.formats.qcrypto import LAYOUTS
from qkdhw.formats.stream import StreamDecoder

TOLERANT = 128
# What a decoder is made with, beside `tolerant` and `name`; one that needs arguments and is not here fails.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "DumpDecoder": [{}, {"channels": (2, 1, -1, 300, 3, 4)}],
    "EpochDecoder": [{"packet_type": 1}, {"packet_type": 2}],
    "IdqDecoder": [{}, {"reference_period_ps": 1000}, {"record_period_ps": 10**9}],
    "QcryptoDecoder": [{"format_name": name} for name in LAYOUTS],
    "QutagDecoder": [{"raw": False}, {"raw": True}],
}


def decoders() -> Iterator[type[StreamDecoder]]:
    """Find the classes that decode a stream, in whatever module of the formats they are."""
    for module in pkgutil.iter_modules(qkdhw.formats.__path__):
        importlib.import_module(f"qkdhw.formats.{module.name}")
    waiting = [StreamDecoder]
    while waiting:
        found = waiting.pop()
        waiting += found.__subclasses__()
        if not inspect.isabstract(found):
            yield found


def outcome(decoder: StreamDecoder, pieces: list[bytes]) -> tuple[Any, ...]:
    """Decode pieces; return all that they hold as octets and the tally, or the error's class and offset."""
    size_bytes = sum(map(len, pieces))
    try:
        blocks = [*(decoder.feed(piece) for piece in pieces), decoder.finish()]
    except EventFormatError as error:
        return refusal(error, size_bytes)
    except EventError as error:
        return (type(error),)
    for block in blocks:
        assert len(block.time_ticks) == len(block.channel) == len(block.kind)
    columns = [
        b"".join(
            [np.asarray(column, kind).tobytes() for block in blocks if (column := getattr(block, name)) is not None]
        )
        for name, kind in (("time_ticks", "<i8"), ("channel", "u1"), ("kind", "u1"), ("fine_ticks", "<u2"))
    ]
    return *columns, sum(block.missed for block in blocks), decoder.tally


def check(cls: type[StreamDecoder], variants: list[dict[str, Any]], data: bytes) -> None:
    """Decode a stream whole and in pieces."""
    if len(data) < 2:
        return
    choice, cuts, stream = data[0], data[1], data[2:]
    make = partial(cls, **variants[choice % 64 % len(variants)], tolerant=bool(choice & TOLERANT))
    whole, pieces = outcome(make(), [stream]), outcome(make(), pieces_of(cuts, stream))
    assert whole == pieces, f"{make}: whole {whole} and in pieces {pieces}"


def seeds(cls: type[StreamDecoder], variants: list[dict[str, Any]]) -> list[bytes]:
    """Give each variant the streams that it reads, of all that are written, or anything if it reads none."""
    room = max_bytes(cls) - 2
    streams = [stream[:room] for stream in (*map(without_needless_tags, written_files()), *PLAIN)]
    made = []
    for i, variant in enumerate(variants):
        readable = []
        for stream in streams:
            with contextlib.suppress(EventError):
                decoder = cls(**variant, tolerant=True)
                if np.concatenate([decoder.feed(stream).kind, decoder.finish().kind]).size > 1:
                    readable.append(stream)
        assert readable, f"{cls.__name__} made with {variant} gives no events from any seed"
        heads = (bytes([i, 6]), bytes([i | TOLERANT, 9]))
        made += [head + stream for head in heads for stream in readable[:6]]
    return made


def max_bytes(cls: type[StreamDecoder]) -> int:
    """Return the longest input worth while: the shortest header of a PTU file has 256 octets."""
    return 400 if cls.__name__ == "PtuDecoder" else 256


def without_needless_tags(file: bytes) -> bytes:
    """Return a PTU file with the five tags of its header that count, and any other file as it is."""
    if not file.startswith(b"PQTTTR\0\0"):
        return file
    kept, at = [file[:16]], 16
    while True:
        tag = file[at : at + 48]
        name, _, kind, value = struct.unpack("<32siIq", tag)
        more = value if kind & 0xFFFF == 0xFFFF else 0
        at += 48 + more
        if name.startswith((b"TTResultFormat_TTTRRecType", b"TTResult_Number", b"MeasDesc_", b"Header_End")):
            kept.append(tag)
        if name.startswith(b"Header_End"):
            return b"".join(kept) + file[at:]


# Words of 4, 8 and 16 octets whose numbers rise, with zeros and ones between: events to those who look for them.
PLAIN = [
    b"".join(struct.pack("<I", (i << 9) | 1 << (i % 4)) for i in range(24)),
    b"".join(struct.pack("<Q", i * 1000) for i in range(24)),
    b"".join(struct.pack("<HHiq", 0, 0, 1 + i % 4, i * 1000) for i in range(12)),
    b"".join(struct.pack("<QQ", i * 10, i // 4) for i in range(12)),
]


def _targets() -> Iterator[tuple[str, Target]]:
    for cls in sorted(decoders(), key=lambda cls: cls.__name__):
        variants = VARIANTS.get(cls.__name__, [{}])
        yield cls.__name__, Target(partial(check, cls, variants), partial(seeds, cls, variants), max_bytes(cls))


TARGETS = dict(_targets())

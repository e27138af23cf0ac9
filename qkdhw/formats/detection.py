"""Which format a file of detection events is in, told from its content."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import EventFormatError
from qkdhw.formats import csv_text, hdf5, parquet, ptu_header, qcrypto, qutag, swabian
from qkdhw.formats.epoch_packets import PacketHeader
from qkdhw.formats.event_file import read_error
from qkdhw.formats.qcrypto_epoch import is_epoch_name

SAMPLE_WORDS = 4096
CERTAIN_WORDS = 8
FORMAT_REMEDY = "name the format with --format; `qkdhw events formats` lists them"

_MAGIC = {
    ptu_header.MAGIC: "ptu",
    qutag.MAGIC.to_bytes(4, "little"): "qutag",
    hdf5.MAGIC: "hdf5",
    parquet.MAGIC: "parquet",
    csv_text.MAGIC: "csv",
}


def detect_format(path: Path) -> str:
    """Find the format of a file, or of a folder of epoch files, from its content.

    Nothing in a quTAG RAW or COMPRESSED file, an IDQ file, or one of 32-bit words (TDC1, fast mode) tells: they need
    their name.

    Raises:
        EventFormatError: No format, or more than one, fits.
        EventError: The file cannot be read.
    """
    if path.is_dir():
        path = next((each for each in sorted(path.iterdir()) if is_epoch_name(each.name)), path)
    try:
        with path.open("rb") as file:
            head = file.read(8 * SAMPLE_WORDS)
            last = file.read(1)
    except OSError as error:
        raise read_error(path, error) from error
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if not head:
        raise EventFormatError(f"{path} is empty", offset_bytes=0, remedy="record it again")
    if epochs := _fitting_epochs(head):
        return epochs
    # The last line of a short text may lack its line end.
    fitting = _fitting_layouts(head if last or not head[-1:].isalnum() else head + b"\n")
    if not fitting and _is_dump(head):
        return "swabian-dump"
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        raise EventFormatError(
            f"{path} is too short to tell {' from '.join(fitting)}", offset_bytes=0, remedy=FORMAT_REMEDY
        )
    raise EventFormatError(
        f"{path} is in no event format that this program knows", offset_bytes=0, remedy=FORMAT_REMEDY
    )


def _fitting_layouts(head: bytes) -> list[str]:
    """Name the word layouts that the first words of a file fit."""
    first_line = head[:17].split(b"\n", 1)[0]
    is_text = all(octet in b"0123456789abcdefABCDEF" for octet in first_line)
    digits = len(first_line) if is_text else 0
    fitting = []
    for name, layout in qcrypto.LAYOUTS.items():
        if layout.line_digits != digits:
            continue
        word = qcrypto.sample_words(head, layout)
        if word is None or not len(word):
            continue
        if layout.high_half_first:
            word = (word << np.uint64(32)) | (word >> np.uint64(32))
        if _looks_like_events(word, layout.time_bits):
            fitting.append(name)
    return fitting


def _looks_like_events(word: NDArray[np.uint64], time_bits: int) -> bool:
    """Judge by the bits between time and pattern, which are fixed, the pattern, and by time, which mostly rises.

    Words of a TDC2 have bits 9 and 8 set and 7 and 6 clear. The older cards leave bits 14 to 5 clear; a TDC2 asked
    to imitate them (option -s) clears bits 14 to 10 only.
    """
    low = word & np.uint64(0x7FE0)
    imitated = (low & np.uint64(0x7FC0)) == np.uint64(qcrypto.TDC2_FIXED_BITS)
    if time_bits == qcrypto.TDC2_BITS:
        right = (low & np.uint64(0x3C0)) == np.uint64(qcrypto.TDC2_FIXED_BITS)
        if len(word) >= CERTAIN_WORDS and imitated.all():
            return False
    else:
        right = imitated | (low == 0)
    ticks = (word >> np.uint64(64 - time_bits)).astype(np.int64)
    named = int(np.count_nonzero(word & np.uint64(31)))  # an input or a dummy
    backward = int(np.count_nonzero(np.diff(ticks) < 0))
    return bool(right.all()) and 2 * named > len(word) and 4 * backward <= len(word)


def _fitting_epochs(head: bytes) -> str:
    """Name the type of epoch file that a file begins like, or nothing."""
    packet_types: tuple[Literal[1, 2], ...] = (1, 2)
    for packet_type in packet_types:
        with suppress(EventFormatError):
            PacketHeader.parse(head, packet_type)
            return f"qcrypto-t{packet_type}"
    return ""


def _is_dump(head: bytes) -> bool:
    """Say whether the first records could be a Swabian Dump's."""
    with suppress(EventFormatError):
        return len(swabian.DumpDecoder().feed(head)) > 0
    return False

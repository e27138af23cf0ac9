"""The header of PicoQuant PTU files: tags, read as they come.

Source: PicoQuant, "Time Tagged File Format Demos": appendices "Tag types", "Tag dictionary", "TTTR record types".
"""

from __future__ import annotations

import struct
from enum import IntEnum, unique
from fractions import Fraction
from typing import Any

from qkdhw.errors import EventFormatError
from qkdhw.quantities import PS_PER_S

MAGIC = b"PQTTTR\0\0"
TAG = struct.Struct("<32siI8s")
MAX_TAGS = 100_000
MAX_TAG_BYTES = 1 << 28


@unique
class TagType(IntEnum):
    """Types of header tags (appendix "Tag types")."""

    EMPTY = 0xFFFF0008
    BOOL = 0x00000008
    INT = 0x10000008
    BIT_SET = 0x11000008
    COLOR = 0x12000008
    FLOAT = 0x20000008
    DATE_TIME = 0x21000008
    INT_ARRAY = 0x1001FFFF
    FLOAT_ARRAY = 0x2001FFFF
    ANSI_STRING = 0x4001FFFF
    WIDE_STRING = 0x4002FFFF
    BLOB = 0xFFFFFFFF


@unique
class RecordType(IntEnum):
    """Values of TTResultFormat_TTTRRecType (appendix "TTTR record types")."""

    PICOHARP_T2 = 0x00010203
    PICOHARP_T3 = 0x00010303
    HYDRAHARP_V1_T2 = 0x00010204
    HYDRAHARP_V1_T3 = 0x00010304
    HYDRAHARP_V2_T2 = 0x01010204
    HYDRAHARP_V2_T3 = 0x01010304
    TIMEHARP_260N_T2 = 0x00010205
    TIMEHARP_260N_T3 = 0x00010305
    TIMEHARP_260P_T2 = 0x00010206
    TIMEHARP_260P_T3 = 0x00010306
    GENERIC_T2 = 0x00010207
    GENERIC_T3 = 0x00010307

    @property
    def is_t3(self) -> bool:
        """Whether records count syncs and the time since the sync."""
        return self & 0xFF00 == 0x0300


_LONG_TAGS = {
    TagType.INT_ARRAY,
    TagType.FLOAT_ARRAY,
    TagType.ANSI_STRING,
    TagType.WIDE_STRING,
    TagType.BLOB,
}


class PtuHeader:
    """Reads the tags of a header from bytes as they come.

    Attributes:
        tags: Values by name; an index in brackets follows the name if the tag has one.
        size_bytes: Bytes of it read so far.
    """

    def __init__(self, name: str) -> None:
        self.tags: dict[str, Any] = {}
        self.size_bytes = 0
        self._complete = False
        self._name = name
        self._n_tags = 0

    def is_complete(self) -> bool:
        """Say whether it was read to its end."""
        return self._complete

    def parse(self, data: bytes, *, limit_bytes: int | None = None) -> int:
        """Read from `data`, which begins where the last call left off; return the bytes used.

        Args:
            data: Some bytes.
            limit_bytes: Size of the file, if that is known.

        Raises:
            EventFormatError: The magic, a tag's type or a length is wrong; carries the byte offset.
        """
        used = 0
        if self.size_bytes == 0:
            if not (MAGIC.startswith(data) or data.startswith(MAGIC)):
                raise EventFormatError(
                    f"{self._name} does not start with PQTTTR",
                    offset_bytes=0,
                    remedy="give the right format with --format",
                )
            if len(data) < 16:
                return 0
            self.tags["file_version"] = data[8:16].rstrip(b"\0").decode("ascii", "replace")
            used = 16
        while not self._complete and (length := self._tag_bytes(data, used, limit_bytes)):
            self._take(data[used : used + length])
            used += length
        self.size_bytes += used
        return used

    def _tag_bytes(self, data: bytes, at: int, limit_bytes: int | None) -> int:
        """Return how long the next tag is, or 0 if it is not there as a whole."""
        if len(data) - at < TAG.size:
            return 0
        _, _, type_code, value = TAG.unpack_from(data, at)
        length = TAG.size
        offset_bytes = self.size_bytes + at
        if type_code in _LONG_TAGS:
            number = int.from_bytes(value, "little", signed=True)
            beyond = limit_bytes is not None and number > limit_bytes - offset_bytes - TAG.size
            if not 0 <= number <= MAX_TAG_BYTES or beyond:
                raise self.error(f"a tag of {number} bytes reaches beyond the end of the file", offset_bytes)
            length += number
        elif type_code not in set(TagType):
            raise self.error(f"unknown tag type {type_code:#010x}", offset_bytes)
        return length if len(data) - at >= length else 0

    def _take(self, tag: bytes) -> None:
        self._n_tags += 1
        if self._n_tags > MAX_TAGS:
            raise self.error(f"the header has more than {MAX_TAGS} tags", self.size_bytes)
        ident, index, type_code, value = TAG.unpack_from(tag)
        name = ident.split(b"\0", 1)[0].decode("ascii", "replace")
        if name == "Header_End":
            self._complete = True
        else:
            self.tags[name if index < 0 else f"{name}[{index}]"] = _value(TagType(type_code), value, tag[TAG.size :])

    def error(self, what: str, offset_bytes: int) -> EventFormatError:
        """Make the error for something wrong in the header at a byte."""
        return EventFormatError(
            f"{self._name}: {what} (byte {offset_bytes})",
            offset_bytes=offset_bytes,
            remedy="the header is damaged: copy the file again or record it again",
        )

    def positive(self, name: str, *, zero_allowed: bool = False) -> float:
        """Return a number that the header must have: an int tag as int, a float tag as float.

        Raises:
            EventFormatError: It is not there, no number, or out of range.
        """
        value = self.tags.get(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (0 < value < 2**63 or (zero_allowed and value == 0))
        ):
            raise self.error(f"tag {name} is {'missing' if value is None else f'unusable ({value!r})'}", 0)
        return value

    def record_type(self) -> RecordType:
        """Return how the records are laid out.

        Raises:
            EventFormatError: The header does not say so, or they are of no known type.
        """
        code = self.tags.get("TTResultFormat_TTTRRecType")
        if self.tags.get("TTResultFormat_BitsPerRecord", 32) != 32:
            raise self.error("records are not 32 bits long", 0)
        try:
            return RecordType(code)  # type: ignore[arg-type]
        except ValueError as error:
            shown = f"{code:#010x}" if isinstance(code, int) else code
            raise EventFormatError(
                f"{self._name}: unknown record type {shown}",
                offset_bytes=0,
                remedy="convert it with the maker's software to a PTU of a known instrument",
            ) from error

    def resolutions_ps(self) -> tuple[Fraction, Fraction | None]:
        """Return the tick and, for T3, the fine tick.

        Raises:
            EventFormatError: The header does not say them.
        """
        tick_ps = _exact_ps(self.positive("MeasDesc_GlobalResolution"))
        is_t3 = self.record_type().is_t3
        return tick_ps, _exact_ps(self.positive("MeasDesc_Resolution")) if is_t3 else None


def _value(tag_type: TagType, value: bytes, data: bytes) -> Any:
    if tag_type in {TagType.FLOAT, TagType.DATE_TIME}:
        return struct.unpack("<d", value)[0]
    number = int(struct.unpack("<q", value)[0])
    if tag_type not in _LONG_TAGS:
        return bool(number) if tag_type is TagType.BOOL else number
    if tag_type is TagType.ANSI_STRING:
        return data.split(b"\0", 1)[0].decode("utf-8", "replace")
    if tag_type is TagType.WIDE_STRING:
        return data.decode("utf-16-le", "replace").split("\0", 1)[0]
    return f"<{number} bytes>"


def _exact_ps(seconds: float) -> Fraction:
    """Take the shortest decimal that gives this double: 1e-12 s is one picosecond, and not a little less."""
    return Fraction(repr(seconds)) * PS_PER_S

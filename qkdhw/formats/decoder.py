"""The decoder of a stream of a tagger's bytes, of any format that can be decoded as it comes."""

from __future__ import annotations

from fractions import Fraction

from qkdhw.errors import ConfigurationError
from qkdhw.formats.event_file import Tally
from qkdhw.formats.registry import FORMATS, format_named
from qkdhw.model import DetectionBlock

STREAM_FORMATS = tuple(name for name, known in FORMATS.items() if known.decoder is not None)


class EventDecoder:
    """Makes detection events of the bytes of a file or stream, wherever they are cut into pieces.

    The pieces change nothing but how events are shared out among the blocks. Example:

        decoder = EventDecoder("ptu")
        for data in pieces:
            use(decoder.feed(data))
        use(decoder.finish())

    Args:
        format_name: A name in STREAM_FORMATS, with options if need be (`idq:channel=3`).
        tolerant: Make a gap of what follows no rule of the format (GAP_BEGIN at the last event before it, GAP_END at
            the first after it) and count it, instead of raising EventFormatError.

    Raises:
        ConfigurationError: There is no such format or option, or it can only be read from a whole file.
    """

    def __init__(self, format_name: str, *, tolerant: bool = False) -> None:
        name = format_name.partition(":")[0]
        known = format_named(format_name) if name in FORMATS else None
        if known is None or known.decoder is None:
            raise ConfigurationError(
                f"events in the format {format_name!r} cannot be decoded as they come",
                remedy=f"one of: {', '.join(STREAM_FORMATS)}",
            )
        self._decoder = known.decoder(tolerant)

    @property
    def tally(self) -> Tally:
        """What was met so far."""
        return self._decoder.tally

    @property
    def offset_bytes(self) -> int:
        """Where in the stream the first byte is that was not decoded yet."""
        return self._decoder.offset_bytes

    @property
    def tick_ps(self) -> Fraction:
        """Exact length of a tick in picoseconds; for PTU 1 until its header has come."""
        return self._decoder.tick_ps

    def feed(self, data: bytes | bytearray | memoryview) -> DetectionBlock:
        """Decode what is whole by now, which may be nothing; the rest waits for the next call.

        Raises:
            EventFormatError: The stream does not follow its format; carries the byte offset. Not in tolerant mode,
                but for a header that is wrong.
        """
        return self._decoder.feed(data)

    def finish(self) -> DetectionBlock:
        """Decode what was left over at the end of the stream; feed nothing after that.

        Raises:
            EventFormatError: The stream ends too early: within a header or record, or before what its header
                promises. Not in tolerant mode, but for a header.
        """
        return self._decoder.finish()

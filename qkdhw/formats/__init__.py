"""Files of detection events: read and write."""

from qkdhw.formats.decoder import STREAM_FORMATS, EventDecoder
from qkdhw.formats.detection import detect_format
from qkdhw.formats.event_file import EventFile
from qkdhw.formats.registry import FORMATS, format_named, format_of_name, open_events, write_events
from qkdhw.formats.report import EventCounter, EventReport, report_events

__all__ = [
    "EventCounter",
    "EventDecoder",
    "EventFile",
    "EventReport",
    "FORMATS",
    "STREAM_FORMATS",
    "detect_format",
    "format_named",
    "format_of_name",
    "open_events",
    "report_events",
    "write_events",
]

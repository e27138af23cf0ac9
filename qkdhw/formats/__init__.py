"""Files of detection events: read and write."""

from qkdhw.formats.event_file import EventFile
from qkdhw.formats.registry import FORMATS, detect_format, format_of_name, open_events, write_events
from qkdhw.formats.report import EventCounter, EventReport, report_events

__all__ = [
    "EventCounter",
    "EventFile",
    "EventReport",
    "FORMATS",
    "detect_format",
    "format_of_name",
    "open_events",
    "report_events",
    "write_events",
]

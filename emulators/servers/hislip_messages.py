"""Messages of HiSLIP: header, types and error codes.

Source: IVI-6.1, IVI High-Speed LAN Instrument Protocol (HiSLIP), version 1.0 of the protocol.
"""

from __future__ import annotations

import struct
from enum import IntEnum, unique

HEADER = struct.Struct("!2sBBIQ")  # prologue, type, control code, parameter, length of the payload
PROLOGUE = b"HS"
PROTOCOL_VERSION = 0x0100
ANY_MESSAGE_ID = 0xFFFF_FFFF
RMT_DELIVERED = 0x01
LOCK_SUCCESS = 1
LOCK_ERROR = 3


@unique
class Kind(IntEnum):
    """Message types."""

    INITIALIZE = 0
    INITIALIZE_RESPONSE = 1
    FATAL_ERROR = 2
    ERROR = 3
    ASYNC_LOCK = 4
    ASYNC_LOCK_RESPONSE = 5
    DATA = 6
    DATA_END = 7
    DEVICE_CLEAR_COMPLETE = 8
    DEVICE_CLEAR_ACKNOWLEDGE = 9
    ASYNC_REMOTE_LOCAL_CONTROL = 10
    ASYNC_REMOTE_LOCAL_RESPONSE = 11
    TRIGGER = 12
    ASYNC_MAX_MESSAGE_SIZE = 15
    ASYNC_MAX_MESSAGE_SIZE_RESPONSE = 16
    ASYNC_INITIALIZE = 17
    ASYNC_INITIALIZE_RESPONSE = 18
    ASYNC_DEVICE_CLEAR = 19
    ASYNC_STATUS_QUERY = 21
    ASYNC_STATUS_RESPONSE = 22
    ASYNC_DEVICE_CLEAR_ACKNOWLEDGE = 23
    ASYNC_LOCK_INFO = 24
    ASYNC_LOCK_INFO_RESPONSE = 25


@unique
class Fatal(IntEnum):
    """Codes of fatal errors; both channels are closed after one."""

    BAD_HEADER = 1
    CHANNEL_MISSING = 2
    BAD_INITIALIZATION = 3
    TOO_MANY_CLIENTS = 4


@unique
class Mistake(IntEnum):
    """Codes of errors after which the session goes on."""

    UNKNOWN_MESSAGE = 1
    TOO_LARGE = 4

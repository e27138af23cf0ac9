"""The messages that two sites exchange on the classical channel, and their one encoding.

A message is a kind, a JSON object with exactly the fields that its kind has, and a fixed number of binary parts:

    u8 kind | u8 number of parts | u32 length | JSON, UTF-8 | { u32 length | bytes } per part     (big-endian)

Parsing is strict: an unknown kind, a missing or extra field, a field of another type, a wrong number of parts or a
byte too many is a PeerProtocolError. Nothing here authenticates; that is authentication.py's work, done before
a byte of a message is looked at.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, unique
from types import NoneType
from typing import Any

from qkdhw.errors import PeerProtocolError

LIMIT_BYTES = 64 * 1024 * 1024


@unique
class MessageKind(IntEnum):
    """What a message is for; the number goes over the wire."""

    HELLO = 1
    READY = 2
    SYNC = 3
    ALIGNED = 4
    ANNOUNCE = 5
    SIFT = 6
    TEST_BITS = 7
    SYNDROME = 8
    REQUEST = 9
    ANSWER = 10
    CORRECTED = 11
    VERIFY = 12
    VERIFIED = 13
    AMPLIFY = 14
    ABORT = 15
    STORED = 16
    ACTIVATE = 17
    EXPORT = 18
    EXPORTED = 19
    CONFIRMED = 20
    SESSION = 21
    BYE = 22


# kind: (fields and their types, number of binary parts)
SCHEMA: Mapping[MessageKind, tuple[Mapping[str, tuple[type, ...]], int]] = {
    MessageKind.HELLO: (
        {
            "version": (int,),
            "link": (str,),
            "role": (str,),
            "profile": (str,),
            "blocks": (list,),
            "gone": (list,),
            "done": (int,),
        },
        1,  # nonce
    ),
    MessageKind.READY: ({}, 0),
    MessageKind.SYNC: (
        {"first_slot": (int,), "settings": (dict,)},
        1,
    ),  # preparation record, one byte a pulse
    MessageKind.ALIGNED: ({"significance": (float, int), "clock_ppm": (float, int)}, 0),
    MessageKind.ANNOUNCE: ({"block_id": (int,), "first_slot": (int,), "n_slots": (int,)}, 1),
    MessageKind.SIFT: ({}, 2),  # reply code per detection, transmitter's test bits
    MessageKind.TEST_BITS: ({}, 1),  # receiver's test bits
    MessageKind.SYNDROME: ({}, 1),
    MessageKind.REQUEST: ({}, 1),
    MessageKind.ANSWER: ({}, 1),
    MessageKind.CORRECTED: ({"n_errors": (int,), "leak_bits": (int,)}, 0),
    MessageKind.VERIFY: ({}, 2),  # hash seed, tag
    MessageKind.VERIFIED: ({}, 0),
    MessageKind.AMPLIFY: ({"length_bits": (int,)}, 2),  # Toeplitz seed, key IDs of 16 bytes each
    MessageKind.ABORT: ({"check": (str,), "reason": (str,), "value": (float, int, NoneType)}, 0),
    MessageKind.STORED: ({"block_id": (int,)}, 0),
    MessageKind.ACTIVATE: ({"block_id": (int,)}, 0),
    MessageKind.EXPORT: ({"key_ids": (list,)}, 1),  # transmitter's nonce
    MessageKind.EXPORTED: ({}, 2),  # receiver's nonce, receiver's MACs
    MessageKind.CONFIRMED: ({}, 1),  # transmitter's MACs
    MessageKind.SESSION: ({"port": (int,), "key_id": (str,), "other_key_id": (str,)}, 0),
    MessageKind.BYE: ({}, 0),
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `parts` may hold key-dependent bytes, so the repr shows lengths only."""

    kind: MessageKind
    fields: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"<Message {self.kind.name} parts={[len(part) for part in self.parts]}>"


def encode_message(message: Message) -> bytes:
    """Turn a message into bytes.

    Raises:
        ValueError: The message does not have the fields and parts of its kind (a bug of the caller).
    """
    problem = _mismatch(message.kind, message.fields, len(message.parts))
    if problem:
        raise ValueError(problem)
    header = json.dumps(dict(message.fields), sort_keys=True, separators=(",", ":")).encode()
    out = [struct.pack(">BBI", message.kind, len(message.parts), len(header)), header]
    for part in message.parts:
        out += [struct.pack(">I", len(part)), part]
    return b"".join(out)


def decode_message(data: bytes) -> Message:
    """Turn bytes into a message.

    Raises:
        PeerProtocolError: The bytes are not exactly one well-formed message.
    """
    if not 6 <= len(data) <= LIMIT_BYTES:
        raise PeerProtocolError(f"message of {len(data)} bytes from the peer; 6 to {LIMIT_BYTES} are allowed")
    code, n_parts, header_bytes = struct.unpack_from(">BBI", data)
    try:
        kind = MessageKind(code)
    except ValueError as error:
        raise PeerProtocolError(f"unknown message kind {code} from the peer") from error
    position = 6 + header_bytes
    try:
        fields = json.loads(data[6:position])
    except (ValueError, RecursionError) as error:
        raise PeerProtocolError(f"{kind.name} message from the peer has a header that is not JSON") from error
    parts = []
    for _ in range(n_parts):
        if position + 4 > len(data):
            raise PeerProtocolError(f"{kind.name} message from the peer is cut off")
        (size,) = struct.unpack_from(">I", data, position)
        parts.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    if position != len(data):
        raise PeerProtocolError(f"{kind.name} message from the peer has a wrong length")
    problem = _mismatch(kind, fields, n_parts)
    if problem:
        raise PeerProtocolError(f"from the peer: {problem}")
    return Message(kind, fields, tuple(parts))


def _mismatch(kind: MessageKind, fields: object, n_parts: int) -> str:
    """Say how fields and parts differ from the schema, or ""."""
    wanted, wanted_parts = SCHEMA[kind]
    if not isinstance(fields, Mapping) or set(fields) != set(wanted):
        return f"{kind.name} must have exactly the fields {sorted(wanted)}"
    for name, types in wanted.items():
        if type(fields[name]) not in types:
            return f"field {name} of {kind.name} must be {' or '.join(t.__name__ for t in types)}"
    if n_parts != wanted_parts:
        return f"{kind.name} must have {wanted_parts} binary parts, not {n_parts}"
    return ""

"""The encoding of messages between sites: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import contextlib
import json
import struct
from types import NoneType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.errors import PeerProtocolError
from qkdhw.postprocessing.messages import (
    SCHEMA,
    Message,
    MessageKind,
    decode_message,
    encode_message,
)

VALUES: dict[type, Any] = {
    int: st.integers(-(2**53), 2**53),
    str: st.text(max_size=20),
    float: st.floats(allow_nan=False, allow_infinity=False),
    list: st.lists(st.integers(), max_size=3),
    dict: st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
    NoneType: st.none(),
}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(MessageKind))
    types, n_parts = SCHEMA[kind]
    fields = {name: draw(st.one_of([VALUES[t] for t in allowed])) for name, allowed in types.items()}
    return Message(kind, fields, tuple(draw(st.binary(max_size=40)) for _ in range(n_parts)))


def test_every_kind_has_a_schema() -> None:
    assert set(SCHEMA) == set(MessageKind)


@given(messages())
def test_round_trip(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=200))
def test_garbage_is_a_message_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(PeerProtocolError):
        assert encode_message(decode_message(data))


@given(messages(), st.integers(0, 400))
def test_a_cut_message_is_refused(message: Message, cut: int) -> None:
    data = encode_message(message)
    if cut < len(data):
        with pytest.raises(PeerProtocolError):
            decode_message(data[:cut])


@given(messages())
def test_a_byte_too_many_is_refused(message: Message) -> None:
    with pytest.raises(PeerProtocolError):
        decode_message(encode_message(message) + b"\0")


def raw(kind: int, header: bytes, *parts: bytes) -> bytes:
    out = struct.pack(">BBI", kind, len(parts), len(header)) + header
    return out + b"".join(struct.pack(">I", len(part)) + part for part in parts)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(99, b"{}"), "unknown message kind"),
        (raw(MessageKind.READY, b"not json"), "not JSON"),
        (raw(MessageKind.READY, b"[]"), "exactly the fields"),
        (raw(MessageKind.READY, b'{"extra": 1}'), "exactly the fields"),
        (raw(MessageKind.STORED, b"{}"), "exactly the fields"),
        (raw(MessageKind.STORED, b'{"block_id": "1"}'), "must be int"),
        (raw(MessageKind.STORED, b'{"block_id": true}'), "must be int"),
        (raw(MessageKind.SIFT, b"{}", b""), "2 binary parts"),
        (raw(MessageKind.READY, b"[" * 100_000), "not JSON"),
    ],
)
def test_what_is_refused_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(PeerProtocolError, match=reason):
        decode_message(data)


def test_a_wrong_message_of_our_own_is_a_bug() -> None:
    with pytest.raises(ValueError, match="exactly the fields"):
        encode_message(Message(MessageKind.STORED))


def test_repr_shows_no_bytes() -> None:
    message = Message(MessageKind.REQUEST, parts=(b"\x13\x37secret",))
    assert "secret" not in repr(message)
    assert json.dumps(repr(message)).count("8") == 1

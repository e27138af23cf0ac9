"""Wegman-Carter authentication of every message on the classical channel.

A frame is: segment (u32), index (u32), tag (16 bytes), message; integers big-endian. Segment and index name the
one-time mask. The tag is H(direction, length of the session ID (u16), session ID, sequence number (u64), message)
XOR mask, with H the polynomial hash over GF(2^128) under a hash key for this direction. The direction is one byte,
"T" from the transmitter's site and "R" from the receiver's; the sequence number counts this direction's messages
from 0 in each session. So a frame that is changed, repeated, left out, out of order, sent back to its sender or
taken from another session does not pass.

What a forger may hope for: each attempt on a message of L blocks of 16 bytes passes with probability at most
(L + 1) / 2^128, whatever was seen before, because every tag has its own mask and the family is almost strongly
universal (C. Portmann, arXiv:1202.1229: the hash key may stay, the bounds add up over the messages). After one
failed frame an Authenticator opens nothing more, so a session gives one attempt a direction.
"""

from __future__ import annotations

import hmac
import struct
from typing import Literal, Protocol

from qkdhw._core import gf128 as kernels
from qkdhw.errors import AuthenticationError
from qkdhw.secret import SecretBuffer

Role = Literal["transmitter", "receiver"]

TAG_BYTES = 16
_HEADER = struct.Struct(f">II{TAG_BYTES}s")
_DIRECTION_BYTE: dict[Role, bytes] = {"transmitter": b"T", "receiver": b"R"}
_PEER: dict[Role, Role] = {"transmitter": "receiver", "receiver": "transmitter"}


class MaskRef(Protocol):
    """Which one-time mask; travels in the clear. Any object with these two numbers will do."""

    @property
    def segment_id(self) -> int:
        """Segment of authentication key, the same at both sites."""
        ...

    @property
    def index(self) -> int:
        """Mask in the sender's part of the segment."""
        ...


class MaskAccount(Protocol):
    """Deals out authentication key; no mask is ever used twice, not even after a crash."""

    def draw_send(self) -> MaskRef:
        """Return a fresh mask to send with, durably drawn; AuthenticationKeyExhaustedError if there is none."""
        ...

    def check_receive(self, segment_id: int, index: int) -> None:
        """Raise AuthenticationError if a received message must not name this mask."""
        ...

    def accept_receive(self, segment_id: int, index: int) -> None:
        """Note that a message with this mask had a right tag; it is never accepted again."""
        ...

    def mask_and_hash_key(self, segment_id: int, index: int, direction: Role) -> tuple[SecretBuffer, SecretBuffer]:
        """Return the mask and the hash key, 16 bytes each, of messages that `direction` sends; caller closes both."""
        ...


def forgery_eps(message_bytes: int) -> float:
    """Probability bound (L + 1) / 2^128 that one forged message of this size passes.

    L counts 16-byte blocks of message, direction, session ID (32 bytes) and sequence number.

    Source:
        M. N. Wegman, J. L. Carter, J. Comput. Syst. Sci. 22 (1981) 265, section 4.
    """
    n_blocks = (1 + 2 + 32 + 8 + message_bytes + 15) // 16
    return float((n_blocks + 1) * 2.0**-128)


class Authenticator:
    """Seals what this site sends and opens what the peer sent, in order.

    Until `bind` the session ID is empty: that is for the messages that agree on one.

    Attributes:
        eps: Probability bound that any message opened so far was forged; the bounds add up.

    Args:
        account: This site's authentication key.
        role: Which site this is.

    Source:
        Wegman and Carter 1981, section 4; RFC 8452, section 3 (the hash).
    """

    def __init__(self, account: MaskAccount, role: Role) -> None:
        if role not in _DIRECTION_BYTE:
            raise ValueError("role is 'transmitter' or 'receiver'")
        self._account = account
        self._role: Role = role
        self._session_id = b""
        self._n_sealed = 0
        self._n_opened = 0
        self._failed = False
        self.eps = 0.0

    def bind(self, session_id: bytes) -> None:
        """Make every tag from now on depend on this session; sequence numbers start at 0 again.

        Raises:
            ValueError: The session ID is longer than 65535 bytes.
        """
        if len(session_id) > 0xFFFF:
            raise ValueError("a session ID has at most 65535 bytes")
        self._session_id = bytes(session_id)
        self._n_sealed = 0
        self._n_opened = 0

    def seal(self, message: bytes) -> bytes:
        """Return the frame to send. Each call spends a mask, whether or not the frame is sent.

        Raises:
            AuthenticationKeyExhaustedError: The account has no mask left.
        """
        drawn = self._account.draw_send()
        tag = self._tag(drawn.segment_id, drawn.index, self._role, self._n_sealed, message)
        self._n_sealed += 1
        return _HEADER.pack(drawn.segment_id, drawn.index, tag) + message

    def open(self, frame: bytes) -> bytes:
        """Return the message of the peer's next frame.

        Raises:
            AuthenticationError: The frame is not the peer's next one, or an earlier one failed.
        """
        if self._failed:
            raise AuthenticationError(
                "an earlier message failed authentication; nothing more is accepted in this session",
                remedy="end the session and start a new one",
            )
        self._failed = True
        message = self._open(frame)
        self._failed = False
        self._n_opened += 1
        return message

    def _open(self, frame: bytes) -> bytes:
        if len(frame) < _HEADER.size:
            raise AuthenticationError(
                f"a message of {len(frame)} bytes is too short to hold a tag",
                remedy="the channel or somebody on it cut the message; end the session and start a new one",
            )
        segment_id, index, peer_tag = _HEADER.unpack_from(frame)
        message = frame[_HEADER.size :]
        self._account.check_receive(segment_id, index)
        own_tag = self._tag(segment_id, index, _PEER[self._role], self._n_opened, message)
        if not hmac.compare_digest(own_tag, peer_tag):
            raise AuthenticationError(
                f"message {self._n_opened} of the {_PEER[self._role]}'s site has a wrong tag",
                remedy="it was changed on the way, repeated or left out, or the sites hold different start keys; "
                "end the session and start a new one",
            )
        self._account.accept_receive(segment_id, index)
        self.eps += forgery_eps(len(message))
        return message

    def _tag(self, segment_id: int, index: int, sender: Role, number: int, message: bytes) -> bytes:
        session = struct.pack(">H", len(self._session_id)) + self._session_id
        data = b"".join((_DIRECTION_BYTE[sender], session, struct.pack(">Q", number), message))
        tag = bytearray(TAG_BYTES)
        mask, hash_key = self._account.mask_and_hash_key(segment_id, index, sender)
        with mask, hash_key:
            kernels.polynomial_hash(hash_key, data, tag)
            with memoryview(mask) as mask_bytes:
                for k in range(TAG_BYTES):
                    tag[k] ^= mask_bytes[k]
        return bytes(tag)

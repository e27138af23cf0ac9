"""Prove that two tokens hold the same key without revealing a bit of it. Sans-I/O: messages in, messages out.

Each side sends a nonce, then the MAC that its token computes over both nonces and its own role; a MAC that a peer sends
back unchanged is refused because the role differs.

Source: NIST SP 800-56C r2 and SP 800-56A r3 section 5.9 describe key confirmation by a MAC over roles and nonces.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import Enum
from uuid import UUID

from qkdhw.errors import KeyConfirmationError

NONCE_BYTES = 32
TAG_BYTES = 32
_LABEL = b"qkdhw-confirm|1|"


class ConfirmationRole(Enum):
    """Which end of the link a token is at."""

    TRANSMITTER = b"T"
    RECEIVER = b"R"


class KeyConfirmation:
    """One key, one run: send `nonce`, call `make_tag` with the peer's nonce, send the tag, `verify_tag` the peer's.

    Args:
        key_id: UUID text of the key.
        role: This side's role; the peer must have the other.
        nonce: 32 fresh random bytes, used once.
        mac: HMAC-SHA256 under a key in the token, such as Pkcs11Token.mac: (key_id, data) -> 32 bytes.

    Raises:
        ValueError: The nonce is not 32 bytes, or the key ID is no UUID.
    """

    def __init__(
        self, *, key_id: str, role: ConfirmationRole, nonce: bytes, mac: Callable[[str, bytes], bytes]
    ) -> None:
        if len(nonce) != NONCE_BYTES:
            message = f"nonce of {len(nonce)} bytes, need {NONCE_BYTES}"
            raise ValueError(message)
        self.key_id = str(UUID(key_id))
        self.nonce = nonce
        self._role = role
        self._mac = mac
        self._peer_nonce: bytes | None = None

    def make_tag(self, peer_nonce: bytes) -> bytes:
        """Return the 32-byte tag to send: HMAC(K, label | key ID | role | transmitter's nonce | receiver's nonce).

        Raises:
            KeyConfirmationError: The peer's nonce has a wrong length, or a nonce was given before.
            HsmError: The token failed.
        """
        if len(peer_nonce) != NONCE_BYTES or self._peer_nonce is not None:
            fault = "a second nonce" if self._peer_nonce is not None else f"a nonce of {len(peer_nonce)} bytes"
            raise KeyConfirmationError(f"key {self.key_id}: the peer sent {fault}", remedy="Start a new confirmation.")
        self._peer_nonce = bytes(peer_nonce)
        return self._mac(self.key_id, self._message(self._role, self._peer_nonce))

    def verify_tag(self, peer_tag: bytes) -> None:
        """Compare the peer's tag, in constant time, with what this token computes for the peer's role.

        Raises:
            KeyConfirmationError: The tags differ: the tokens hold different keys, or the message was changed.
            HsmError: The token failed.
        """
        if self._peer_nonce is None:
            raise KeyConfirmationError(f"key {self.key_id}: a tag came before the peer's nonce")
        roles = ConfirmationRole
        peer_role = roles.RECEIVER if self._role is roles.TRANSMITTER else roles.TRANSMITTER
        expected = self._mac(self.key_id, self._message(peer_role, self._peer_nonce))
        if not hmac.compare_digest(expected, bytes(peer_tag)):
            raise KeyConfirmationError(
                f"the two tokens do not hold the same key {self.key_id}",
                remedy="Burn this key at both sites; it was never usable.",
            )

    def _message(self, role: ConfirmationRole, peer_nonce: bytes) -> bytes:
        ordered = (self.nonce, peer_nonce) if self._role is ConfirmationRole.TRANSMITTER else (peer_nonce, self.nonce)
        return _LABEL + UUID(self.key_id).bytes + role.value + b"".join(ordered)

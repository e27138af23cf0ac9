"""Wrap keys with AES-256-GCM under the KEK; plaintext lives in SecretBuffers only.

A wrapped key is nonce (12 bytes) | ciphertext | tag (16 bytes); what it belongs to is associated data, so a blob
moved to another row does not unwrap. Nonces are random: at most 2^32 wraps under one KEK.

Source: NIST SP 800-38D, 8.2.2 and 8.3.
"""

from __future__ import annotations

import json
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qkdhw.errors import KeyStoreError
from qkdhw.keys.kek import KEK_BYTES
from qkdhw.secret import SecretBuffer

_NONCE_BYTES = 12
_TAG_BYTES = 16


def associated_data(*fields: str | int) -> bytes:
    """Encode what a wrapped key belongs to, without ambiguity."""
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode("ascii")


class KeyWrapping:
    """Wraps and unwraps under a copy of the KEK, which `close` wipes.

    Args:
        kek: The KEK, 32 bytes; the caller keeps it and may close it at once.

    Raises:
        KeyStoreError: If the KEK has another length.
    """

    def __init__(self, kek: SecretBuffer) -> None:
        if len(kek) != KEK_BYTES:
            raise KeyStoreError(
                f"the KEK has {len(kek)} bytes, not {KEK_BYTES}", remedy="Make one with create_kek_file."
            )
        self._kek = kek.slice_copy(0, KEK_BYTES)

    def wrap(self, key: SecretBuffer, aad: bytes) -> bytes:
        """Return the wrapped key."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = bytearray(len(key) + _TAG_BYTES)
        with memoryview(self._kek) as kek, memoryview(key) as plaintext:
            AESGCM(kek).encrypt_into(nonce, plaintext, aad, sealed)
        return nonce + bytes(sealed)

    def unwrap(self, blob: bytes, aad: bytes) -> SecretBuffer:
        """Return the key in a new SecretBuffer.

        Raises:
            KeyStoreError: If the blob is not what was wrapped for this associated data under this KEK.
        """
        size = len(blob) - _NONCE_BYTES - _TAG_BYTES
        if size < 0:
            raise KeyStoreError("a wrapped key is too short", remedy="The store is damaged; restore it.")
        view = memoryview(blob)
        key = SecretBuffer(size)
        try:
            with memoryview(self._kek) as kek, memoryview(key) as plaintext:
                AESGCM(kek).decrypt_into(view[:_NONCE_BYTES], view[_NONCE_BYTES:], aad, plaintext)
        except InvalidTag:
            key.close()
            raise KeyStoreError(
                "a wrapped key does not unwrap: another KEK, or the store was changed",
                remedy="Use the KEK that the store was made with; if it is the right one, restore the store.",
            ) from None
        return key

    def close(self) -> None:
        """Wipe the KEK; closing twice is allowed."""
        self._kek.close()

"""Turn a secret from a token into a TLS 1.3 pre-shared key. Pure functions.

Source: RFC 9258 sections 3 and 4.1 (importing external PSKs); RFC 8446 section 7.1 (HKDF-Expand-Label).
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from qkdhw.secret import SecretBuffer

PSK_BYTES = 48
_TLS13 = 0x0304
_HKDF_SHA384 = 0x0002


def make_imported_identity(external_identity: bytes, context: bytes) -> bytes:
    """Return the ImportedIdentity for TLS 1.3 with HKDF_SHA384.

    Args:
        external_identity: Name of the external PSK; it crosses the network in clear.
        context: What the PSK is bound to; it crosses the network in clear.
    """
    parts = (external_identity, context)
    return b"".join(struct.pack(">H", len(p)) + p for p in parts) + struct.pack(">HH", _TLS13, _HKDF_SHA384)


def import_psk(epsk: SecretBuffer, imported_identity: bytes) -> SecretBuffer:
    """Return the 48-byte imported PSK of an external PSK whose hash is SHA-256.

    The steps between are bytes objects of hashlib's and cannot be wiped; they are derived secrets of one session.
    """
    with memoryview(epsk) as view:
        extracted = hmac.digest(bytes(hashlib.sha256().digest_size), view, "sha256")
    label, context = b"tls13 derived psk", hashlib.sha256(imported_identity).digest()
    info = struct.pack(">HB", PSK_BYTES, len(label)) + label + bytes([len(context)]) + context
    psk = SecretBuffer(PSK_BYTES)
    block = b""
    with memoryview(psk) as out:
        for counter, start in enumerate(range(0, PSK_BYTES, 32), 1):
            block = hmac.digest(extracted, block + info + bytes([counter]), "sha256")
            out[start : start + 32] = block[: PSK_BYTES - start]
    return psk

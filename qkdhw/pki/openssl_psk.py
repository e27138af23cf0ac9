"""TLS 1.3 external PSKs through pyOpenSSL's private binding, which alone exposes OpenSSL's PSK-session callbacks.

Source: OpenSSL manual, SSL_CTX_set_psk_use_session_callback(3) and SSL_CTX_set_psk_find_session_callback(3).
"""

from __future__ import annotations

import hmac
from typing import Any

from qkdhw.errors import ConfigurationError
from qkdhw.secret import SecretBuffer

_REMEDY = "pip install 'qkdhw[tls]': pyOpenSSL 26.4 with cryptography 50 is known to work."
try:
    from OpenSSL._util import ffi, lib
except ImportError as _error:
    _message = "pyOpenSSL is not installed"
    raise ConfigurationError(_message, remedy=_REMEDY) from _error

_NEEDED = (
    "SSL_CTX_set_psk_use_session_callback",
    "SSL_CTX_set_psk_find_session_callback",
    "SSL_SESSION_set1_master_key",
    "SSL_SESSION_free",
    "SSL_get_session",
    "SSL_session_reused",
    "SSL_CTX_set1_curves_list",
    "i2d_SSL_SESSION",
    "d2i_SSL_SESSION",
)
_missing = [name for name in _NEEDED if not hasattr(lib, name)]
if _missing or not getattr(lib, "Cryptography_HAS_PSK_TLSv1_3", 0):
    _message = f"this pyOpenSSL cannot do TLS 1.3 PSK sessions (missing: {', '.join(_missing) or 'PSK support'})"
    raise ConfigurationError(_message, remedy=_REMEDY)


class PskOffer:
    """One PSK for one connection, tied to the certificate session that it grew out of.

    OpenSSL gets a copy of that session with only its secret replaced, so the verified peer certificate stays the
    identity of the new connection.

    Attributes:
        consumed: Whether OpenSSL asked for exactly this identity.
    """

    def __init__(self, certificate_session: Any, identity: bytes, psk: SecretBuffer) -> None:
        self.consumed = False
        self._source = certificate_session
        self._identity = identity
        self._identity_c = ffi.new("unsigned char[]", identity)
        self._psk = psk
        self._callback: Any = None

    def arm_client(self, context: Any) -> None:
        """Make a client context offer this PSK."""

        def use(_ssl: Any, _digest: Any, identity: Any, length: Any, session: Any) -> int:
            session[0] = self._clone_session()
            identity[0], length[0] = self._identity_c, len(self._identity)
            self.consumed = session[0] != ffi.NULL
            return int(self.consumed)

        signature = "int(SSL *, const EVP_MD *, const unsigned char **, size_t *, SSL_SESSION **)"
        self._callback = ffi.callback(signature, use, error=0)
        lib.SSL_CTX_set_psk_use_session_callback(context._context, self._callback)

    def arm_server(self, context: Any) -> None:
        """Make a server context take this PSK and no other."""

        def find(_ssl: Any, identity: Any, length: int, session: Any) -> int:
            session[0] = ffi.NULL
            if hmac.compare_digest(ffi.buffer(identity, length)[:], self._identity):
                session[0] = self._clone_session()
                self.consumed = session[0] != ffi.NULL
            return 1

        signature = "int(SSL *, const unsigned char *, size_t, SSL_SESSION **)"
        self._callback = ffi.callback(signature, find, error=0)
        lib.SSL_CTX_set_psk_find_session_callback(context._context, self._callback)

    def _clone_session(self) -> Any:
        """Return a new SSL_SESSION that OpenSSL owns, or NULL if OpenSSL refuses to copy it."""
        source = lib.SSL_get_session(self._source._ssl)
        if source == ffi.NULL:
            return ffi.NULL
        size = lib.i2d_SSL_SESSION(source, ffi.NULL)
        der = ffi.new("unsigned char[]", size)
        lib.i2d_SSL_SESSION(source, ffi.new("unsigned char **", der))
        start = ffi.new("const unsigned char **", ffi.cast("const unsigned char *", der))
        clone = lib.d2i_SSL_SESSION(ffi.NULL, start, size)
        ffi.memmove(der, bytes(size), size)
        if clone == ffi.NULL:
            return ffi.NULL
        with memoryview(self._psk) as view, ffi.from_buffer("unsigned char[]", view) as secret:
            if lib.SSL_SESSION_set1_master_key(clone, secret, len(view)) != 1:
                lib.SSL_SESSION_free(clone)
                return ffi.NULL
        return clone


def session_reused(connection: Any) -> bool:
    """Return whether a connection's handshake used a PSK."""
    return bool(lib.SSL_session_reused(connection._ssl))


def set_groups(context: Any, groups: bytes) -> None:
    """Set a context's key-exchange groups, most wanted first.

    Raises:
        ConfigurationError: This OpenSSL does not know them.
    """
    if lib.SSL_CTX_set1_curves_list(context._context, groups) != 1:
        message = f"this OpenSSL does not know the groups {groups.decode()}"
        raise ConfigurationError(message, remedy=_REMEDY)

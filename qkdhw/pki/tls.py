"""TLS 1.3 sessions whose identity comes from certificates and whose secrecy includes a QKD key.

Two TCP connections, one after the other, which the caller connects:

1. `open_certificate_session`: mutual certificates, X25519MLKEM768 or X25519. Chain and name are checked, and each side
   learns that the other accepted it.
2. `CertificateSession.bind`: both ends derive, in their tokens, EPSK = KDF(K_qkd, exporter of 1 | key ID |
   SHA-256(client's certificate) | SHA-256(server's certificate)) and import it (RFC 9258).
3. `open_qkd_session`: psk_dhe_ke with that PSK, again over the groups of 1. No certificate and no CA is configured, so
   an unusable PSK cannot fall back to certificates. The peer's certificate of 1 is carried over as its identity.

OpenSSL computes the binder with the label "ext binder", where RFC 9258 wants "imp binder": both ends must be this code.

Source: RFC 8446 sections 2.2, 4.2.9 and 7.5; RFC 9257; RFC 9258.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from qkdhw.errors import ConfigurationError, PkiError, SessionRefusedError
from qkdhw.pki.identity import SiteCredentials, verify_peer
from qkdhw.pki.imported_psk import import_psk, make_imported_identity
from qkdhw.pki.openssl_psk import PskOffer, session_reused
from qkdhw.pki.tls_connection import RECORD_BYTES, TlsConnection, describe, make_context
from qkdhw.secret import SecretBuffer

from OpenSSL import SSL  # isort: skip  (after openssl_psk, which says what to install if it is missing)

Derive = Callable[[str, bytes], SecretBuffer]

_EXPORTER_LABEL = b"EXPORTER-qkdhw-epsk"
_EXPORTER_BYTES = 48
_READY = b"qkdhw/1 ready\n"
_SESSION_ID_CONTEXT = b"qkdhw"


@dataclass(frozen=True, slots=True)
class SessionDescription:
    """What a session was made with.

    Attributes:
        peer_name: Checked DNS name of the peer.
        cipher: Cipher suite.
        group: Key-exchange group.
        key_id: Key ID of the QKD key, or "" for a certificate session.
    """

    peer_name: str
    cipher: str
    group: str
    key_id: str


class BoundKey:
    """A QKD key bound to one certificate session, good for one connection. Made by `CertificateSession.bind`."""

    def __init__(self, *, session: CertificateSession, key_id: str, identity: bytes, psk: SecretBuffer) -> None:
        self.key_id = key_id
        self.session = session
        self._identity = identity
        self._psk = psk

    def take_offer(self) -> PskOffer:
        """Return what OpenSSL needs, once.

        Raises:
            SessionRefusedError: It was taken before.
        """
        if self._psk.closed:
            message = f"key {self.key_id} was used for a session before"
            raise SessionRefusedError(message, remedy="Bind another key.")
        return PskOffer(self.session.connection, self._identity, self._psk)

    def close(self) -> None:
        """Wipe the PSK."""
        self._psk.close()


class CertificateSession:
    """A finished certificate handshake: the peer is who it should be. Made by `open_certificate_session`.

    Attributes:
        description: What it was made with.
        server_side: Whether this end is the server.
        connection: The pyOpenSSL connection; its socket is closed already.
        peer_certificate: The peer's certificate, checked.
    """

    def __init__(self, connection: Any, description: SessionDescription, *, server_side: bool) -> None:
        self.connection = connection
        self.description = description
        self.server_side = server_side
        self.peer_certificate = _peer_certificate(connection)
        own: x509.Certificate = connection.get_certificate(as_cryptography=True)
        pair = (self.peer_certificate, own) if server_side else (own, self.peer_certificate)
        self._certificate_hashes = b"".join(hashlib.sha256(c.public_bytes(Encoding.DER)).digest() for c in pair)

    def bind(self, key_id: str, derive: Derive, *, now: datetime | None = None) -> BoundKey:
        """Derive the PSK for one connection from a QKD key that both ends hold.

        Args:
            key_id: UUID text; it is the PSK's identity and crosses the network in clear.
            derive: (key_id, context) -> 32 bytes, computed from the key where the key is; both ends must compute the
                same function.
            now: Time at which the peer's certificate must still be valid; the clock's if None.

        Raises:
            SessionRefusedError: The peer's certificate has expired meanwhile.
        """
        if (now or datetime.now(UTC)) >= self.peer_certificate.not_valid_after_utc:
            message = f"certificate check: the certificate of {self.description.peer_name!r} has expired"
            raise SessionRefusedError(message, remedy="Renew it and open a new certificate session.")
        name = key_id.encode("ascii")
        exported = self.connection.export_keying_material(_EXPORTER_LABEL, _EXPORTER_BYTES, name)
        identity = make_imported_identity(name, hashlib.sha256(self._certificate_hashes).digest())
        with derive(key_id, exported + name + self._certificate_hashes) as epsk:
            psk = import_psk(epsk, identity)
        return BoundKey(session=self, key_id=key_id, identity=identity, psk=psk)


class QkdSession:
    """A TLS connection with certificate identity and QKD secrecy. Made by `open_qkd_session`; a context manager.

    Attributes:
        description: What it was made with.
    """

    def __init__(self, tls: TlsConnection, description: SessionDescription, offer: PskOffer) -> None:
        self.description = description
        self._tls = tls
        self._offer = offer  # OpenSSL keeps a pointer to its callback

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(self, data: bytes, *, timeout_s: float = 30.0) -> None:
        """Send all of `data`.

        Raises:
            PkiError: The connection broke or the deadline passed.
        """
        try:
            self._tls.send(data, timeout_s=timeout_s)
        except (SSL.Error, TimeoutError, OSError) as error:
            raise PkiError(f"TLS session with {self.description.peer_name}: {describe(error)}") from error

    def receive(self, limit: int, *, timeout_s: float = 30.0) -> bytes:
        """Return 1..limit bytes as soon as there are any; b"" when the peer has closed in order.

        Raises:
            PkiError: The connection broke or the deadline passed.
        """
        try:
            return self._tls.receive(limit, timeout_s=timeout_s)
        except (SSL.Error, TimeoutError, OSError) as error:
            raise PkiError(f"TLS session with {self.description.peer_name}: {describe(error)}") from error

    def close(self) -> None:
        """Tell the peer and close the socket."""
        self._tls.close()


def open_certificate_session(
    sock: socket.socket,
    *,
    credentials: SiteCredentials,
    peer_name: str,
    server_side: bool,
    timeout_s: float = 10.0,
) -> CertificateSession:
    """Prove both identities over a connected socket, which is closed afterwards.

    Args:
        sock: Connected TCP socket; this function owns it.
        credentials: This site's files.
        peer_name: DNS name that the peer's certificate must have.
        server_side: Whether this end is the TLS server.
        timeout_s: Deadline for each step.

    Raises:
        SessionRefusedError: A check failed here or at the peer; the message says which.
        ConfigurationError: A file of the credentials cannot be used.
        PkiError: The peer did not answer in time.
    """
    with sock:
        context = _certificate_context(credentials, server_side=server_side)
        tls = TlsConnection(context, sock, server_side=server_side)
        try:
            tls.handshake(timeout_s=timeout_s)
            chain = tls.ssl.get_peer_cert_chain(as_cryptography=True) or []
            verify_peer(
                [_peer_certificate(tls.ssl), *chain] if server_side else chain,
                credentials=credentials,
                peer_name=peer_name,
                peer_is_server=not server_side,
                at=datetime.now(UTC),
            )
            tls.send(_READY, timeout_s=timeout_s)
            answer = tls.receive(len(_READY), timeout_s=timeout_s)
        except (SSL.Error, OSError) as error:
            raise _refusal(error, check="certificate check", peer_name=peer_name) from error
        finally:
            tls.close()
    if answer != _READY:
        message = f"certificate check: {peer_name!r} does not accept this site"
        raise SessionRefusedError(message, remedy="See the peer's message.")
    return CertificateSession(tls.ssl, _summarise(tls, peer_name, ""), server_side=server_side)


def open_qkd_session(sock: socket.socket, bound: BoundKey, *, timeout_s: float = 10.0) -> QkdSession:
    """Open the session that the QKD key protects, over a new connected socket.

    Args:
        sock: Connected TCP socket; the session owns it.
        bound: The key, bound to the certificate session of the same two sites. It is used up.
        timeout_s: Deadline for the handshake.

    Raises:
        SessionRefusedError: The two ends hold different QKD keys, or the key was not used; the message says which.
        PkiError: The peer did not answer in time.
    """
    server_side, peer_name = bound.session.server_side, bound.session.description.peer_name
    context = make_context()
    with contextlib.ExitStack() as on_error:
        on_error.callback(sock.close)
        offer = bound.take_offer()
        on_error.callback(bound.close)
        if server_side:
            context.set_session_id(_SESSION_ID_CONTEXT)
            offer.arm_server(context)
        else:
            offer.arm_client(context)
        tls = TlsConnection(context, sock, server_side=server_side)
        on_error.callback(tls.close)
        try:
            tls.handshake(timeout_s=timeout_s)
        except (SSL.Error, OSError) as error:
            raise _refusal(error, check=f"QKD key check (key {bound.key_id})", peer_name=peer_name) from error
        if not (session_reused(tls.ssl) and offer.consumed):
            message = f"key-use check: the handshake with {peer_name!r} did not use QKD key {bound.key_id}"
            raise SessionRefusedError(message, remedy="Both ends must bind the same key.")
        if _peer_certificate(tls.ssl) != bound.session.peer_certificate:
            message = f"identity check: the certificate of {peer_name!r} was not carried over"
            raise SessionRefusedError(message, remedy="Open a new certificate session.")
        on_error.pop_all()
    bound.close()
    return QkdSession(tls, _summarise(tls, peer_name, bound.key_id), offer)


def exchange_echo(session: QkdSession, payload: bytes, *, timeout_s: float = 30.0) -> bytes:
    """Send `payload` to a peer that echoes and return what came back, as many bytes.

    Raises:
        PkiError: The peer closed early, the connection broke or the deadline passed.
    """
    answer = bytearray()
    for start in range(0, len(payload), RECORD_BYTES):  # a piece at a time, or both ends fill their buffers and wait
        session.send(payload[start : start + RECORD_BYTES], timeout_s=timeout_s)
        while len(answer) < min(start + RECORD_BYTES, len(payload)):
            piece = session.receive(RECORD_BYTES, timeout_s=timeout_s)
            if not piece:
                raise PkiError(f"the peer closed after {len(answer)} of {len(payload)} bytes")
            answer += piece
    return bytes(answer)


def serve_echo(session: QkdSession, *, timeout_s: float = 30.0) -> int:
    """Send everything back until the peer closes; return how many bytes that was.

    Raises:
        PkiError: The connection broke or the deadline passed.
    """
    total_bytes = 0
    while piece := session.receive(RECORD_BYTES, timeout_s=timeout_s):
        session.send(piece, timeout_s=timeout_s)
        total_bytes += len(piece)
    return total_bytes


def _certificate_context(credentials: SiteCredentials, *, server_side: bool) -> Any:
    context = make_context()
    try:
        context.use_certificate_chain_file(str(credentials.certificate))
        context.use_privatekey_file(str(credentials.private_key))
        context.check_privatekey()
        context.load_verify_locations(str(credentials.ca))
    except SSL.Error as error:
        remedy = "Check that the files exist, are PEM and belong together."
        raise ConfigurationError(f"cannot use {credentials}: {describe(error)}", remedy=remedy) from error
    if server_side:
        context.set_session_id(_SESSION_ID_CONTEXT)
    return context


def _peer_certificate(ssl: Any) -> x509.Certificate:
    certificate = ssl.get_peer_certificate(as_cryptography=True)
    if not isinstance(certificate, x509.Certificate):
        raise SessionRefusedError("identity check: the peer has no certificate", remedy="See the peer's message.")
    return certificate


def _summarise(tls: TlsConnection, peer_name: str, key_id: str) -> SessionDescription:
    cipher, group = tls.ssl.get_cipher_name(), tls.ssl.get_group_name()
    return SessionDescription(peer_name=peer_name, cipher=cipher or "", group=group or "", key_id=key_id)


def _refusal(error: Exception, *, check: str, peer_name: str) -> PkiError:
    if isinstance(error, TimeoutError):
        return PkiError(f"{check}: {error}", remedy=f"Check that {peer_name!r} is running and reachable.")
    return SessionRefusedError(
        f"{check}: session with {peer_name!r} refused: {describe(error)}",
        remedy="See the peer's message too: an alert names the check that failed there.",
    )

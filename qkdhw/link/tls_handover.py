"""What the keys are for: a TLS session with the peer site. Needs pyOpenSSL, so only a site with [tls] imports it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import asdict

from qkdhw.errors import PkiError, SessionRefusedError
from qkdhw.link.blocks import Emit
from qkdhw.link.config import SiteConfig, TlsConfig
from qkdhw.link.handover import TokenHandover
from qkdhw.link.peer import Peer
from qkdhw.pki.identity import SiteCredentials
from qkdhw.pki.tls import (
    CertificateSession,
    QkdSession,
    exchange_echo,
    open_certificate_session,
    open_qkd_session,
    serve_echo,
)
from qkdhw.postprocessing.messages import Message, MessageKind
from qkdhw.transport.classical import ChannelListener, parse_endpoint

ECHO_BYTES = 1 << 16


class TlsHandover:
    """The session that the keys are for, with the peer site: certificates first, then a QKD key from the token.

    Args:
        config: The site; its section [tls] is there.
        token: Where the keys are.
        emit: Takes what happened.
    """

    def __init__(self, config: SiteConfig, tls: TlsConfig, token: TokenHandover, emit: Emit) -> None:
        self._config = config
        self._tls = tls
        self._token = token
        self._emit = emit

    def serve(self, peer: Peer, key_ids: list[str]) -> None:
        """The transmitter's site: a TLS server for one session, and for one attempt with another key.

        Raises:
            PkiError: A session failed that should not, or came about although the keys differ.
        """
        with ChannelListener(self._tls.listen) as listener:
            key_id, other = key_ids[:2]
            peer.send(Message(MessageKind.SESSION, {"port": listener.port, "key_id": key_id, "other_key_id": other}))
            timeout_s = self._config.channel.timeout_s

            def connect() -> socket.socket:
                return listener.accept_socket(timeout_s=timeout_s)

            certificates = self._open_certificates(connect(), server_side=True)
            with open_qkd_session(connect(), certificates.bind(key_id, self._token.derive)) as session:
                self._tell_accepted(session, serve_echo(session))
            self._expect_refusal(certificates, connect, other, other)

    def connect(self, asked: Message) -> None:
        """The receiver's site: the client that SESSION asks for; its second attempt derives from the first key."""
        key_id, other = str(asked.fields["key_id"]), str(asked.fields["other_key_id"])
        host, _ = parse_endpoint(self._config.channel.connect or self._tls.listen)
        endpoint = (host, int(asked.fields["port"]))

        def connect() -> socket.socket:
            try:
                return socket.create_connection(endpoint, timeout=self._config.channel.timeout_s)
            except OSError as error:
                raise PkiError(f"no TLS server at {endpoint[0]}:{endpoint[1]}: {error.strerror or error}") from error

        certificates = self._open_certificates(connect(), server_side=False)
        with open_qkd_session(connect(), certificates.bind(key_id, self._token.derive)) as session:
            payload = os.urandom(ECHO_BYTES)
            if exchange_echo(session, payload) != payload:
                raise PkiError("the TLS session gave back other data than was sent")
            self._tell_accepted(session, len(payload))
        self._expect_refusal(certificates, connect, other, key_id)

    def _open_certificates(self, connection: socket.socket, *, server_side: bool) -> CertificateSession:
        credentials = SiteCredentials(
            ca=self._tls.ca_file, certificate=self._tls.certificate_file, private_key=self._tls.private_key_file
        )
        return open_certificate_session(
            connection, credentials=credentials, peer_name=self._tls.peer_name, server_side=server_side
        )

    def _expect_refusal(
        self, certificates: CertificateSession, connect: Callable[[], socket.socket], key_id: str, used: str
    ) -> None:
        """Try a session under `key_id`, deriving its secret from the key `used`; the two ends use different ones."""
        bound = certificates.bind(key_id, lambda _, context: self._token.derive(used, context))
        try:
            session = open_qkd_session(connect(), bound)
        except SessionRefusedError as error:
            self._emit({"event": "tls", "result": "refused", "check": str(error)})
            return
        session.close()
        raise PkiError("a TLS session came about although the two ends hold different QKD keys")

    def _tell_accepted(self, session: QkdSession, echoed_bytes: int) -> None:
        self._emit(
            {
                "event": "tls",
                "result": "accepted",
                "version": "TLS 1.3",
                **asdict(session.description),
                "echoed_bytes": echoed_bytes,
            }
        )

"""What happens to a key after the store: into the token, confirmed between the two tokens, used for a TLS session."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Self

from qkdhw.errors import PeerProtocolError, PkiError, SessionRefusedError
from qkdhw.export.confirmation import NONCE_BYTES, TAG_BYTES, ConfirmationRole, KeyConfirmation
from qkdhw.export.journal import ExportJournal, export_key, recover
from qkdhw.export.pin import read_pin_file
from qkdhw.export.pkcs11 import Pkcs11Token
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.link.blocks import Emit
from qkdhw.link.config import Role, SiteConfig, TlsConfig, TokenConfig
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
from qkdhw.secret import SecretBuffer
from qkdhw.transport.classical import ChannelListener, parse_endpoint

EPSK_LABEL = b"qkdhw cert-bound epsk v1"
ECHO_BYTES = 1 << 16


class TokenHandover:
    """The token of this site, open, with its journal; a context manager.

    Args:
        config: Module, token and PIN file.
        link: Name of the link; part of each key's label.
        journal_file: Where the journal of intents lies; beside the key store.
    """

    def __init__(self, config: TokenConfig, link: str, journal_file: str | os.PathLike[str]) -> None:
        self._link = link
        with ExitStack() as stack:
            self.token = stack.enter_context(
                Pkcs11Token.open(config.module, config.token, lambda: read_pin_file(config.pin_file))
            )
            self._journal = stack.enter_context(ExportJournal(journal_file))
            self.recovered = recover(self._journal, self.token)
            self._resources = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def export(self, peer: Peer, store: SqliteKeyStore, key_ids: list[str], *, role: Role) -> list[str]:
        """Move these keys from the store into the token, at both sites, and prove that the tokens agree.

        The transmitter's site names the keys. Each key is reserved, taken (durable first) and wrapped into the token;
        then each token computes a MAC over fresh nonces under each key, and each site checks the other's.

        Raises:
            KeyConfirmationError: The tokens hold different keys.
            HsmError: The token refused a key; keys not yet in it are burnt at the next start.
        """
        nonce = os.urandom(NONCE_BYTES)
        if role == "transmitter":
            peer.send(Message(MessageKind.EXPORT, {"key_ids": key_ids}, (nonce,)))
            self._import(store, key_ids)
            answer = peer.receive(MessageKind.EXPORTED)
            peer_nonce, tags = answer.parts
            runs = self._confirmations(key_ids, ConfirmationRole.TRANSMITTER, nonce)
            own = b"".join(run.make_tag(peer_nonce) for run in runs)
            _verify(runs, tags)
            peer.send(Message(MessageKind.CONFIRMED, parts=(own,)))
        else:
            asked = peer.receive(MessageKind.EXPORT)
            if asked.fields["key_ids"] != key_ids:
                raise PeerProtocolError("the peer wants to export other keys than this block made")
            self._import(store, key_ids)
            runs = self._confirmations(key_ids, ConfirmationRole.RECEIVER, nonce)
            own = b"".join(run.make_tag(asked.parts[0]) for run in runs)
            peer.send(Message(MessageKind.EXPORTED, parts=(nonce, own)))
            _verify(runs, peer.receive(MessageKind.CONFIRMED).parts[0])
        return key_ids

    def _import(self, store: SqliteKeyStore, key_ids: list[str]) -> None:
        receiver = f"pkcs11:{self.token.label}"
        store.reserve(receiver=receiver, key_ids=key_ids)
        for key_id in key_ids:
            with store.take(key_id, receiver=receiver) as key:
                export_key(self._journal, self.token, key_id=key_id, label=self._link, key=key)

    def _confirmations(self, key_ids: list[str], role: ConfirmationRole, nonce: bytes) -> list[KeyConfirmation]:
        return [KeyConfirmation(key_id=key_id, role=role, nonce=nonce, mac=self.token.mac) for key_id in key_ids]

    def derive(self, key_id: str, context: bytes) -> SecretBuffer:
        """Derive a session secret inside the token; the key does not leave it."""
        return self.token.derive_session_secret(key_id, EPSK_LABEL, context)


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


def _verify(runs: list[KeyConfirmation], tags: bytes) -> None:
    if len(tags) != TAG_BYTES * len(runs):
        raise PeerProtocolError(f"the peer sent {len(tags)} bytes of confirmation tags for {len(runs)} keys")
    for index, run in enumerate(runs):
        run.verify_tag(tags[TAG_BYTES * index : TAG_BYTES * (index + 1)])

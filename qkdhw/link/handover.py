"""What happens to a key after the store: into the token, and confirmed between the two tokens."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from qkdhw.errors import PeerProtocolError
from qkdhw.export.confirmation import NONCE_BYTES, TAG_BYTES, ConfirmationRole, KeyConfirmation
from qkdhw.export.journal import ExportJournal, export_key, recover
from qkdhw.export.pin import read_pin_file
from qkdhw.export.pkcs11 import Pkcs11Token
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.link.config import Role, TokenConfig
from qkdhw.link.peer import HSM_RECEIVER, Peer
from qkdhw.postprocessing.messages import Message, MessageKind
from qkdhw.secret import SecretBuffer

EPSK_LABEL = b"qkdhw cert-bound epsk v1"


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
        receiver = HSM_RECEIVER + self.token.label
        store.reserve(receiver=receiver, key_ids=key_ids)
        for key_id in key_ids:
            with store.take(key_id, receiver=receiver) as key:
                export_key(self._journal, self.token, key_id=key_id, label=self._link, key=key)

    def _confirmations(self, key_ids: list[str], role: ConfirmationRole, nonce: bytes) -> list[KeyConfirmation]:
        return [KeyConfirmation(key_id=key_id, role=role, nonce=nonce, mac=self.token.mac) for key_id in key_ids]

    def derive(self, key_id: str, context: bytes) -> SecretBuffer:
        """Derive a session secret inside the token; the key does not leave it."""
        return self.token.derive_session_secret(key_id, EPSK_LABEL, context)


def _verify(runs: list[KeyConfirmation], tags: bytes) -> None:
    if len(tags) != TAG_BYTES * len(runs):
        raise PeerProtocolError(f"the peer sent {len(tags)} bytes of confirmation tags for {len(runs)} keys")
    for index, run in enumerate(runs):
        run.verify_tag(tags[TAG_BYTES * index : TAG_BYTES * (index + 1)])

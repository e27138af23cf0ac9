"""Sealed messages to and from the peer site, and the handshake that opens a session.

The handshake also settles what a crash cut off: each site tells which blocks it holds, and which keys are gone: burnt,
or handed over to its token. A block that is pending here is activated if the peer holds the same one; a block that the
peer has burnt, never had or has otherwise is burnt; a key that is gone there is burnt here, if it is not gone here too.
Both sites apply the same rule to the same two lists, so their stores end up equal.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from qkdhw.errors import PeerProtocolError
from qkdhw.interfaces import ClassicalChannel
from qkdhw.keys.ledger import BlockRecord
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.link.config import Role, SiteConfig
from qkdhw.model import KeyState
from qkdhw.postprocessing.authentication import Authenticator
from qkdhw.postprocessing.messages import LIMIT_BYTES, Message, MessageKind, decode_message, encode_message

PeerBlocks = dict[tuple[str, int], tuple[str, KeyState]]  # (session, block ID): (digest in hex, state)

VERSION = 2
NONCE_BYTES = 32
BLOCK_STATES = frozenset({KeyState.PENDING, KeyState.READY, KeyState.BURNT})
HELLO_TIMEOUT_S = 5.0
HELLO_BYTES = 1 << 20  # before the peer is known, nobody gets more memory than that
LARGEST_BLOCK_ID = 1 << 48
RECENT_BLOCKS = 64
RECENT_GONE = 4096
HSM_RECEIVER = "pkcs11:"  # begins the receiver of keys that both sites hand over to their tokens


class Peer:
    """The peer site: every message is sealed on the way out and opened before a byte of it is looked at.

    Args:
        channel: A connected classical channel.
        authenticator: Wegman-Carter authentication on this site's key account.
        timeout_s: Longest wait for a message.
    """

    def __init__(self, channel: ClassicalChannel, authenticator: Authenticator, *, timeout_s: float) -> None:
        self._channel = channel
        self._authenticator = authenticator
        self._timeout_s = timeout_s

    def send(self, message: Message) -> bytes:
        """Send one message; returns its encoding."""
        data = encode_message(message)
        self._channel.send(self._authenticator.seal(data), timeout_s=self._timeout_s)
        return data

    def receive(self, *kinds: MessageKind, timeout_s: float | None = None) -> Message:
        """Return the next message, which must be one of these kinds.

        Raises:
            AuthenticationError: Its tag is wrong; nothing of it was used.
            PeerProtocolError: It is of another kind or malformed.
        """
        message, _ = self.receive_raw(*kinds, timeout_s=timeout_s)
        return message

    def receive_raw(
        self, *kinds: MessageKind, timeout_s: float | None = None, limit_bytes: int = LIMIT_BYTES
    ) -> tuple[Message, bytes]:
        """Like `receive`, with the encoding."""
        frame = self._channel.receive(timeout_s=timeout_s or self._timeout_s, limit_bytes=limit_bytes)
        data = self._authenticator.open(frame)
        message = decode_message(data)
        if message.kind not in kinds:
            wanted = " or ".join(kind.name for kind in kinds)
            raise PeerProtocolError(f"the peer sent {message.kind.name}, expected {wanted}")
        return message, data

    @property
    def eps_authentication(self) -> float:
        """Probability bound that a forged message passed in this session so far."""
        return self._authenticator.eps

    def bind(self, session_id: bytes) -> None:
        """From now on every tag depends on this session."""
        self._authenticator.bind(session_id)


@dataclass(frozen=True, slots=True)
class Session:
    """What the handshake agreed on.

    Attributes:
        session_id: Digest of both HELLO messages, with a fresh nonce of each site.
        next_block_id: Number of the first block of this session.
        activated: Blocks that a crash had left pending and that both sites hold.
        burnt: Blocks and keys that only one site held.
        done: Blocks that the two sites have done since either was started, the larger number.
    """

    session_id: bytes
    next_block_id: int
    activated: int
    burnt: int
    done: int


def open_session(
    peer: Peer, config: SiteConfig, store: SqliteKeyStore, random_bytes: Callable[[int], bytes], *, done: int = 0
) -> Session:
    """Exchange HELLO, check that both sites mean the same link, and settle what a crash cut off.

    The site that connected speaks first, so that somebody who only connects costs the other no authentication key.
    Nothing is settled before a message under the new session's ID has come: a HELLO of long ago cannot settle anything.

    Raises:
        PeerProtocolError: The peer is configured differently, has the same role, or sent nonsense.
    """
    link = config.protocol.link
    own_blocks = [block for block in store.blocks() if block.link == link]
    hello = Message(
        MessageKind.HELLO,
        {
            "version": VERSION,
            "link": link,
            "role": config.role,
            "profile": config.protocol.digest(),
            "blocks": [
                [block.session, block.block_id, block.digest.hex(), block.state.value]
                for block in own_blocks[-RECENT_BLOCKS:]
            ],
            "gone": _gone(store, link, own_blocks),
            "done": done,
        },
        (random_bytes(NONCE_BYTES),),
    )
    connected = config.channel.connect is not None
    own = peer.send(hello) if connected else b""
    answer, theirs = peer.receive_raw(
        MessageKind.HELLO, timeout_s=min(HELLO_TIMEOUT_S, config.channel.timeout_s), limit_bytes=HELLO_BYTES
    )
    own = own or peer.send(hello)
    transcript = own + theirs if config.role == "transmitter" else theirs + own
    _check_hello(answer, config)
    peer_blocks = _parse_blocks(answer.fields["blocks"])
    session_id = hashlib.sha256(transcript).digest()
    peer.bind(session_id)
    if connected:
        peer.send(Message(MessageKind.READY))
    peer.receive(MessageKind.READY)
    if not connected:
        peer.send(Message(MessageKind.READY))
    n_activated, n_burnt = _settle(store, own_blocks, peer_blocks, _parse_key_ids(answer.fields["gone"]))
    last = max([block.block_id for block in own_blocks] + [number for _, number in peer_blocks] + [0])
    return Session(session_id, last + 1, n_activated, n_burnt, max(done, int(answer.fields["done"])))


def _gone(store: SqliteKeyStore, link: str, own_blocks: list[BlockRecord]) -> list[str]:
    """List keys of a link that the peer must not have ready: burnt ones, and those of recent blocks in the token."""
    first_block = own_blocks[-RECENT_BLOCKS:][0].block_id if own_blocks else 0
    handed_over = [
        record.key_id
        for record in store.records(state=KeyState.DELIVERED)
        if record.link == link and record.block_id >= first_block and record.receiver.startswith(HSM_RECEIVER)
    ]
    burnt = [record.key_id for record in store.records(state=KeyState.BURNT) if record.link == link]
    return burnt[-RECENT_GONE:] + handed_over[-RECENT_GONE:]


def _check_hello(answer: Message, config: SiteConfig) -> None:
    wanted_role: Role = "receiver" if config.role == "transmitter" else "transmitter"
    same_section = "make the section [protocol] the same in both site files"
    for name, wanted, remedy in (
        ("version", VERSION, "run the same version of qkdhw at both sites"),
        ("link", config.protocol.link, same_section),
        ("role", wanted_role, "make one site the transmitter and the other the receiver"),
        ("profile", config.protocol.digest(), same_section),
    ):
        if answer.fields[name] != wanted:
            raise PeerProtocolError(
                f"the peer site has {name} {answer.fields[name]!r}, this site expects {wanted!r}",
                remedy=remedy,
            )
    if len(answer.parts[0]) != NONCE_BYTES:
        raise PeerProtocolError(f"the peer's nonce has {len(answer.parts[0])} bytes, not {NONCE_BYTES}")


def _parse_blocks(items: list[object]) -> PeerBlocks:
    blocks: PeerBlocks = {}
    for item in items:
        match item:
            case [str(session), int(block_id), str(digest), str(state)] if (
                type(block_id) is int and 0 < block_id <= LARGEST_BLOCK_ID and state in BLOCK_STATES
            ):
                blocks[session, block_id] = (digest, KeyState(state))
            case _:
                raise PeerProtocolError("the peer's list of blocks is malformed")
    return blocks


def _parse_key_ids(items: list[object]) -> list[str]:
    try:
        return [str(uuid.UUID(str(item))) for item in items]
    except ValueError as error:
        raise PeerProtocolError("the peer's list of keys that are gone is malformed") from error


def _settle(
    store: SqliteKeyStore, own_blocks: list[BlockRecord], peer_blocks: PeerBlocks, peer_gone: list[str]
) -> tuple[int, int]:
    """Bring this store to what both sites hold; returns (blocks activated, blocks and keys burnt)."""
    activated = burnt = 0
    told_from = min(number for _, number in peer_blocks) if len(peer_blocks) >= RECENT_BLOCKS else 0
    for block in own_blocks:
        if block.state is KeyState.BURNT or (block.state is KeyState.READY and block.block_id < told_from):
            continue
        digest, state = peer_blocks.get((block.session, block.block_id), ("", KeyState.BURNT))
        if digest == block.digest.hex() and state is not KeyState.BURNT:
            if block.state is KeyState.PENDING:
                store.activate_block(session=block.session, block_id=block.block_id)
                activated += 1
        else:
            reason = "the peer site does not hold it"
            store.burn_block(session=block.session, block_id=block.block_id, reason=reason)
            burnt += 1
    own = {record.key_id: record.state for record in store.records()}
    lost = [key_id for key_id in peer_gone if own.get(key_id) in {KeyState.READY, KeyState.RESERVED}]
    if lost:
        store.burn(lost, reason="the peer site has burnt it or handed it over")
    return activated, burnt + len(lost)

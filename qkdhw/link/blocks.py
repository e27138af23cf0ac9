"""One block, from a unit's stream to durable keys at both sites."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import EventError, PeerProtocolError
from qkdhw.events.gating import Gate
from qkdhw.keys.ledger import NewKey
from qkdhw.keys.segments import NewSegment
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.link.config import SiteConfig
from qkdhw.link.monitoring import BlockWatch, SiteMonitors
from qkdhw.link.peer import Peer
from qkdhw.link.streams import DetectionReader, PreparationReader
from qkdhw.model import BlockStatistics
from qkdhw.postprocessing.messages import Message, MessageKind
from qkdhw.postprocessing.receiver_exchange import ReceiverExchange
from qkdhw.postprocessing.session import KEY_BYTES, RECEIVER_TABLE, TRANSMITTER_TABLE, Outcome, Policy
from qkdhw.postprocessing.sifting import MAX_ANNOUNCED
from qkdhw.postprocessing.transmitter_exchange import TransmitterExchange

Emit = Callable[[Mapping[str, Any]], None]
Intensity = tuple[tuple[float, ...], tuple[float, ...]]
TRANSMITTER_KINDS = frozenset[MessageKind]().union(*TRANSMITTER_TABLE.values())
RECEIVER_KINDS = frozenset[MessageKind]().union(*RECEIVER_TABLE.values())


@dataclass(frozen=True, slots=True)
class Context:
    """What a block needs besides its data.

    Attributes:
        config: The site's configuration.
        store: The site's key store, open.
        policy: What both sites agreed on.
        emit: Takes progress, one mapping at a time.
        random_bytes: Source of fresh randomness.
        notes: Facts that every key's metadata must carry (units, missing monitors, emulation).
        watch: Observes each block of a receiver, if something looks at them.
        monitors: Say whether a receiver's block may give key, if there is a calibration.
    """

    config: SiteConfig
    store: SqliteKeyStore
    policy: Policy
    emit: Emit
    random_bytes: Callable[[int], bytes]
    notes: Mapping[str, Any]
    watch: BlockWatch | None = None
    monitors: SiteMonitors | None = None

    def inspect(self, block: BlockStatistics) -> str:
        """Look at a block; return why it must give no key, or ""."""
        if self.watch is not None:
            self.watch.observe(block)
        return self.monitors.refusal() if self.monitors is not None else ""


@dataclass(frozen=True, slots=True)
class BlockResult:
    """A finished block: its statistics and the IDs of the keys that are now durable at both sites."""

    statistics: BlockStatistics
    key_ids: tuple[str, ...]


def transmit_block(
    context: Context,
    peer: Peer,
    reader: PreparationReader,
    session_id: bytes,
    block_id: int,
    place: tuple[int, int],
    intensity: Intensity,
    announced: Message,
) -> BlockResult:
    """Do one block at the transmitter's site.

    Args:
        context: What a block needs.
        peer: The receiver's site.
        reader: Records of what was prepared.
        session_id: From the handshake.
        block_id: Number of the block.
        place: (first slot, number of slots).
        intensity: (mean photon numbers, probabilities), brightest first.
        announced: The receiver's ANNOUNCE.
    """
    first_slot, n_slots = place
    exchange = TransmitterExchange(
        block_id=block_id,
        first_slot=first_slot,
        record=reader.take(first_slot, n_slots, timeout_s=context.config.channel.timeout_s),
        policy=context.policy,
        intensity=intensity,
        random_bytes=context.random_bytes,
    )
    outcome = _drive(peer, exchange, exchange.receive(announced), TRANSMITTER_KINDS)
    if outcome.secret is None:
        return BlockResult(outcome.statistics, ())
    _put(context, peer, session_id, outcome)
    stored = peer.receive(MessageKind.STORED)
    _check_block_id(stored, block_id)
    context.store.activate_block(session=session_id.hex(), block_id=block_id)
    peer.send(Message(MessageKind.ACTIVATE, {"block_id": block_id}))
    return BlockResult(outcome.statistics, tuple(outcome.key_ids))


def receive_block(
    context: Context,
    peer: Peer,
    collector: DetectionCollector,
    session_id: bytes,
    block_id: int,
    place: tuple[int, int],
    intensity: Intensity,
) -> BlockResult:
    """Do one block at the receiver's site; arguments as in `transmit_block`."""
    first_slot, n_slots = place
    slot, basis, bit = collector.take(first_slot, n_slots, timeout_s=context.config.channel.timeout_s)
    if context.watch is not None:
        context.watch.begin_block(collector.last_slot)
    exchange = ReceiverExchange(
        block_id=block_id,
        first_slot=first_slot,
        n_slots=n_slots,
        slot=slot,
        basis=basis,
        bit=bit,
        policy=context.policy,
        intensity=intensity,
        inspect=context.inspect,
    )
    outcome = _drive(peer, exchange, [exchange.announcement()], RECEIVER_KINDS)
    if context.watch is not None:
        context.watch.observe(outcome.statistics)  # a block that ended before its counts were known
    if outcome.secret is None:
        return BlockResult(outcome.statistics, ())
    _put(context, peer, session_id, outcome)
    peer.send(Message(MessageKind.STORED, {"block_id": block_id}))
    _check_block_id(peer.receive(MessageKind.ACTIVATE), block_id)
    context.store.activate_block(session=session_id.hex(), block_id=block_id)
    return BlockResult(outcome.statistics, tuple(outcome.key_ids))


def _drive(
    peer: Peer,
    exchange: TransmitterExchange | ReceiverExchange,
    outgoing: list[Message],
    kinds: frozenset[MessageKind],
) -> Outcome:
    with closing(exchange):
        while True:
            for message in outgoing:
                peer.send(message)
            if exchange.outcome is not None:
                return exchange.outcome
            outgoing = exchange.receive(peer.receive(*kinds))


def _put(context: Context, peer: Peer, session_id: bytes, outcome: Outcome) -> None:
    """Store a block's keys and authentication bytes as pending, in one durable transaction, and wipe them here."""
    statistics, secret = outcome.statistics, outcome.secret
    if secret is None:
        return
    refill = statistics.authentication_bytes
    digest = hashlib.sha256(session_id + statistics.block_id.to_bytes(8, "big"))
    for key_id in outcome.key_ids:
        digest.update(key_id.encode())
    metadata = key_metadata(context, statistics) | {"eps_authentication": peer.eps_authentication}
    with ExitStack() as wiped:
        wiped.enter_context(secret)
        keys = [
            NewKey(key_id, wiped.enter_context(secret.slice_copy(refill + KEY_BYTES * index, KEY_BYTES)), metadata)
            for index, key_id in enumerate(outcome.key_ids)
        ]
        context.store.put_block(
            link=context.config.protocol.link,
            session=session_id.hex(),
            block_id=statistics.block_id,
            digest=digest.digest(),
            keys=keys,
            segment=NewSegment(statistics.block_id, wiped.enter_context(secret.slice_copy(0, refill))),
        )


def key_metadata(context: Context, statistics: BlockStatistics) -> dict[str, Any]:
    """What each key says about where it came from: proof, epsilons, leak and statistics."""
    length = statistics.key_length
    return {
        **context.notes,
        "proof": length.proof if length else "",
        "rigorous": bool(length and length.rigorous),
        "assumptions": list(length.assumptions) if length else [],
        "eps_sec": context.policy.eps_sec,
        "eps_cor": context.policy.eps_cor,
        "qber_key": statistics.qber_key,
        "qber_test": statistics.qber_test,
        "leak_bits": statistics.leak_bits,
        "sifted_key_bits": statistics.n_sifted_key,
        "sifted_test_bits": statistics.n_sifted_test,
        "counts": asdict(statistics.counts) if statistics.counts else None,
    }


def _check_block_id(message: Message, block_id: int) -> None:
    if message.fields["block_id"] != block_id:
        raise PeerProtocolError(f"the peer acknowledged block {message.fields['block_id']}, not {block_id}")


class DetectionCollector:
    """Gates the stream piece by piece and hands out whole blocks of slots.

    Args:
        reader: Pieces of equal time.
        gate: Clock tracking and gating.
        emit: Takes progress.
    """

    def __init__(self, reader: DetectionReader, gate: Gate, emit: Emit) -> None:
        self._reader = reader
        self._gate = gate
        self._emit = emit
        self._slot: list[NDArray[np.int64]] = []
        self._basis: list[NDArray[np.uint8]] = []
        self._bit: list[NDArray[np.uint8]] = []
        self._last_slot = -1

    @property
    def last_slot(self) -> int:
        """The last slot in which something clicked so far."""
        return self._last_slot

    def feed(self, piece: Any) -> None:
        """Gate one piece of the stream and keep what clicked."""
        gated = self._gate.feed(piece)
        if not len(gated):
            return
        self._slot.append(gated.slot)
        self._basis.append(gated.basis)
        self._bit.append(gated.bit)
        self._last_slot = int(gated.slot[-1])

    def take(
        self, first_slot: int, n_slots: int, *, timeout_s: float
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:
        """Return (slot, basis, bit) of every detection in the block; what lies before it is dropped.

        Raises:
            TransportTimeoutError: The unit sent nothing for `timeout_s`.
            EventError: It sent, but for `timeout_s` no click fell into a slot.
        """
        end = first_slot + n_slots
        reported = advanced = time.monotonic()
        while self._last_slot < end:
            before = self._last_slot
            self.feed(self._reader.next_piece(timeout_s=timeout_s))
            now = time.monotonic()
            if self._last_slot > before:
                advanced = now
            elif now - advanced > timeout_s:
                raise EventError(
                    f"for {timeout_s} s no click fell into a slot",
                    remedy="check the light, the fibre, the detectors and receiver.window_ps",
                )
            if now - reported > 0.2:
                reported = now
                done = min(max(0, self._last_slot - first_slot), n_slots)
                self._emit({"event": "collecting", "done_slots": done, "total_slots": n_slots})
        slot = np.concatenate(self._slot)
        low, high = (int(index) for index in np.searchsorted(slot, [first_slot, end]))
        basis, bit = np.concatenate(self._basis), np.concatenate(self._bit)
        out = slot[low:high].copy(), basis[low:high].copy(), bit[low:high].copy()
        for old in self._bit:
            old.fill(0)
        self._slot, self._basis, self._bit = [slot[high:].copy()], [basis[high:].copy()], [bit[high:].copy()]
        bit.fill(0)
        if len(out[0]) > MAX_ANNOUNCED:
            raise EventError(
                f"a block of {len(out[0])} detections; at most {MAX_ANNOUNCED} can be announced",
                remedy="use smaller blocks (protocol.block_pulses)",
            )
        return out

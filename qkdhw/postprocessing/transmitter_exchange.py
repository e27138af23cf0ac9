"""The transmitter's side of one block; the order of the messages is in session.py."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qkdhw.errors import PeerProtocolError
from qkdhw.model import BlockStatistics
from qkdhw.postprocessing.amplification import seed_bits
from qkdhw.postprocessing.messages import Message, MessageKind
from qkdhw.postprocessing.reconciliation import SyndromeSource
from qkdhw.postprocessing.session import (
    SEED_BYTES,
    TRANSMITTER_TABLE,
    Bits,
    Exchange,
    Policy,
    State,
    unpack_bits,
)
from qkdhw.postprocessing.sifting import parse_announcement, sift_at_transmitter
from qkdhw.postprocessing.verification import verification_tag


class TransmitterExchange(Exchange):
    """The transmitter's side of one block.

    Args:
        block_id: Number that ANNOUNCE must carry.
        first_slot: First slot of the block.
        record: uint8 (n,), what was prepared in the block's slots (see model.PreparationBlock).
        policy: What both sites agreed on.
        intensity: (mean photon numbers, probabilities), brightest first.
        random_bytes: Source of fresh randomness for hash function, Toeplitz seed and key IDs.
    """

    def __init__(
        self,
        *,
        block_id: int,
        first_slot: int,
        record: Bits,
        policy: Policy,
        intensity: tuple[tuple[float, ...], tuple[float, ...]],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        super().__init__(TRANSMITTER_TABLE, State.START, policy, intensity)
        self._record = record
        self._random_bytes = random_bytes
        self._source: SyndromeSource | None = None
        self._n_errors = 0
        self.statistics = BlockStatistics(block_id, first_slot, int(record.size), 0)

    def close(self) -> None:
        """Wipe what is left of the block's bits."""
        super().close()
        self._record.fill(0)

    def _handle(self, message: Message) -> list[Message]:
        match message.kind:
            case MessageKind.ANNOUNCE:
                return self._on_announce(message)
            case MessageKind.TEST_BITS:
                return self._on_test_bits(message)
            case MessageKind.REQUEST:
                return [Message(MessageKind.ANSWER, parts=(self._reconciler.answer(message.parts[0]),))]
            case MessageKind.CORRECTED:
                return self._on_corrected(message)
            case _:
                return self._on_verified()

    @property
    def _reconciler(self) -> SyndromeSource:
        if self._source is None:
            raise PeerProtocolError("the peer went on without a syndrome")
        return self._source

    def _on_announce(self, message: Message) -> list[Message]:
        block = self.statistics
        asked = (message.fields["block_id"], message.fields["first_slot"], message.fields["n_slots"])
        if asked != (block.block_id, block.first_slot, block.n_slots):
            raise PeerProtocolError(f"the peer announced block {asked}, not {block.block_id} of {block.n_slots} slots")
        slot, basis = parse_announcement(message.parts[0])
        sifted = sift_at_transmitter(slot, basis, self._record, block.first_slot)
        self._record.fill(0)
        self._key, self._test = sifted.key_bits, sifted.test_bits
        self._key_intensity, self._test_intensity = sifted.key_intensity, sifted.test_intensity
        self.statistics = replace(block, n_detections=int(slot.size))
        self.state = State.AWAIT_TEST_BITS
        return [Message(MessageKind.SIFT, parts=(sifted.reply.tobytes(), np.packbits(self._test).tobytes()))]

    def _on_test_bits(self, message: Message) -> list[Message]:
        peer_test = unpack_bits(message.parts[0], self._test.size)
        self._estimate(self._test, peer_test, self._key_intensity, self._test_intensity)
        self._source = SyndromeSource(self._key, self.statistics.qber_test or 0.0)
        self.state = State.AWAIT_CORRECTED
        return [Message(MessageKind.SYNDROME, parts=(self._source.first_message(),))]

    def _on_corrected(self, message: Message) -> list[Message]:
        leak_bits, self._n_errors = int(message.fields["leak_bits"]), int(message.fields["n_errors"])
        if leak_bits != self._reconciler.leak_bits:
            raise PeerProtocolError(f"the peer counts {leak_bits} leaked bits, this site {self._reconciler.leak_bits}")
        if not 0 <= self._n_errors <= self._key.size:
            raise PeerProtocolError(f"the peer says it corrected {self._n_errors} of {self._key.size} bits")
        self._leak_bits = leak_bits
        seed = self._random_bytes(SEED_BYTES)
        self.state = State.AWAIT_VERIFIED
        return [Message(MessageKind.VERIFY, parts=(seed, verification_tag(self._key, seed)))]

    def _on_verified(self) -> list[Message]:
        length_bits, n_keys = self._final_length(self._n_errors, self._leak_bits)
        seed = self._random_bytes((seed_bits(self._key.size, length_bits) + 7) // 8)
        raw_ids = [uuid.UUID(bytes=self._random_bytes(16), version=4) for _ in range(n_keys)]
        self._finish_with_key(seed, length_bits, [str(key_id) for key_id in raw_ids])
        id_part = b"".join(key_id.bytes for key_id in raw_ids)
        return [Message(MessageKind.AMPLIFY, {"length_bits": length_bits}, (seed, id_part))]

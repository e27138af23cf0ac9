"""The receiver's side of one block; the order of the messages is in session.py."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import PeerProtocolError
from qkdhw.model import BlockStatistics
from qkdhw.postprocessing.amplification import seed_bits
from qkdhw.postprocessing.messages import Message, MessageKind
from qkdhw.postprocessing.reconciliation import SyndromeSink
from qkdhw.postprocessing.session import (
    RECEIVER_TABLE,
    SEED_BYTES,
    Bits,
    Exchange,
    Policy,
    State,
    unpack_bits,
)
from qkdhw.postprocessing.sifting import announce, sift_at_receiver
from qkdhw.postprocessing.verification import verification_tag, verify_tags


class ReceiverExchange(Exchange):
    """The receiver's side of one block.

    Args:
        block_id: Number of the block.
        first_slot: First slot of the block.
        n_slots: Slots in the block.
        slot: int64 (n,), slots with a detection, strictly increasing, inside the block.
        basis: uint8 (n,), basis of each detection.
        bit: uint8 (n,), bit value of each detection.
        policy: What both sites agreed on.
        intensity: (mean photon numbers, probabilities) as the transmitter announced them, brightest first.
        inspect: Called when the block's counts are known; says why it must give no key, or "".
    """

    def __init__(
        self,
        *,
        block_id: int,
        first_slot: int,
        n_slots: int,
        slot: NDArray[np.int64],
        basis: Bits,
        bit: Bits,
        policy: Policy,
        intensity: tuple[tuple[float, ...], tuple[float, ...]],
        inspect: Callable[[BlockStatistics], str] = lambda _: "",
    ) -> None:
        super().__init__(RECEIVER_TABLE, State.AWAIT_SIFT, policy, intensity)
        self._slot, self._basis, self._bit = slot, basis, bit
        self._inspector = inspect
        self._sink: SyndromeSink | None = None
        self._n_errors = 0
        self.statistics = BlockStatistics(block_id, first_slot, n_slots, int(slot.size))

    def close(self) -> None:
        """Wipe what is left of the block's bits."""
        super().close()
        self._bit.fill(0)
        if self._sink is not None:
            self._sink.corrected.fill(0)

    def announcement(self) -> Message:
        """The message that opens the exchange."""
        block = self.statistics
        fields = {"block_id": block.block_id, "first_slot": block.first_slot, "n_slots": block.n_slots}
        return Message(MessageKind.ANNOUNCE, fields, (announce(self._slot, self._basis),))

    def _handle(self, message: Message) -> list[Message]:
        match message.kind:
            case MessageKind.SIFT:
                return self._on_sift(message)
            case MessageKind.SYNDROME | MessageKind.ANSWER:
                return self._on_syndrome(message)
            case MessageKind.VERIFY:
                return self._on_verify(message)
            case _:
                return self._on_amplify(message)

    def _inspect(self, block: BlockStatistics) -> str:
        return self._inspector(block)

    def _on_sift(self, message: Message) -> list[Message]:
        sifted = sift_at_receiver(self._basis, self._bit, np.frombuffer(message.parts[0], np.uint8))
        self._bit.fill(0)
        self._key = sifted.key_bits
        named = np.concatenate((sifted.key_intensity, sifted.test_intensity))
        if int(named.max(initial=0)) >= len(self._mean_photon_number):
            raise PeerProtocolError("the peer's sifting reply names an intensity that it did not announce")
        peer_test = unpack_bits(message.parts[1], sifted.test_bits.size)
        self._estimate(sifted.test_bits, peer_test, sifted.key_intensity, sifted.test_intensity)
        self.state = State.AWAIT_SYNDROME
        return [Message(MessageKind.TEST_BITS, parts=(np.packbits(sifted.test_bits).tobytes(),))]

    def _on_syndrome(self, message: Message) -> list[Message]:
        if (self._sink is None) != (message.kind is MessageKind.SYNDROME):
            raise PeerProtocolError(f"the peer sent {message.kind.name} in the wrong order")
        if self._sink is None:
            self._sink = SyndromeSink(self._key, self.statistics.qber_test or 0.0)
        request = self._sink.receive(message.parts[0])
        if request is not None:
            return [Message(MessageKind.REQUEST, parts=(request,))]
        self._n_errors, self._leak_bits = int(self._sink.n_errors), int(self._sink.leak_bits)
        uncorrected, self._key = self._key, self._sink.corrected
        uncorrected.fill(0)
        self.state = State.AWAIT_VERIFY
        return [Message(MessageKind.CORRECTED, {"n_errors": self._n_errors, "leak_bits": self._leak_bits})]

    def _on_verify(self, message: Message) -> list[Message]:
        seed, peer_tag = message.parts
        if len(seed) != SEED_BYTES:
            raise PeerProtocolError(f"verification seed of {len(seed)} bytes from the peer, not {SEED_BYTES}")
        verify_tags(verification_tag(self._key, seed), peer_tag)
        self.state = State.AWAIT_AMPLIFY
        return [Message(MessageKind.VERIFIED)]

    def _on_amplify(self, message: Message) -> list[Message]:
        length_bits, n_keys = self._final_length(self._n_errors, self._leak_bits)
        seed, id_part = message.parts
        if message.fields["length_bits"] != length_bits or len(id_part) != 16 * n_keys:
            raise PeerProtocolError("the peer computed another key length from the same counts")
        if len(seed) != (seed_bits(self._key.size, length_bits) + 7) // 8:
            raise PeerProtocolError("the peer's Toeplitz seed has a wrong length")
        key_ids = [str(uuid.UUID(bytes=id_part[i : i + 16])) for i in range(0, len(id_part), 16)]
        if len(set(key_ids)) != n_keys:
            raise PeerProtocolError("the peer gave two keys the same key ID")
        self._finish_with_key(seed, length_bits, key_ids)
        return []

"""One block's exchange between two sites as a state table, sans-I/O: `receive(message)` returns messages to send.

                transmitter                                          receiver
    waits for ANNOUNCE                    <- ANNOUNCE   which slots clicked, in which basis
    SIFT: what is kept, its test bits     ->
                                          <- TEST_BITS  its test bits; both know every count now
    SYNDROME                              ->
    ANSWER                            ->  <- REQUEST    as long as a frame does not decode
                                          <- CORRECTED  its string is fixed from here on
    VERIFY: fresh hash function and tag   ->
                                          <- VERIFIED
    AMPLIFY: fresh seed, length, key IDs  ->

Either side may send ABORT with the name of the check that failed instead of its message. The order is the security
argument: nothing is announced about a basis before the detection, the hash and the Toeplitz seed are drawn only
after both strings are fixed, and there is no way to AMPLIFY but through VERIFIED.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, unique

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import (
    KeyLengthZeroError,
    MonitorAlarmError,
    PeerProtocolError,
    PostprocessingError,
    QberTooHighError,
    QkdhwError,
    ReconciliationError,
    VerificationError,
)
from qkdhw.interfaces import KeyLengthProof
from qkdhw.model import BlockStatistics, DecoyCounts, KeyLength
from qkdhw.postprocessing.amplification import amplify
from qkdhw.postprocessing.estimation import check_qber
from qkdhw.postprocessing.messages import Message, MessageKind
from qkdhw.postprocessing.reconciliation import efficiency
from qkdhw.postprocessing.verification import TAG_BITS
from qkdhw.quantities import binary_entropy
from qkdhw.secret import SecretBuffer

KEY_BYTES = 32
SEED_BYTES = 16
Bits = NDArray[np.uint8]


@unique
class State(Enum):
    """Where a block's exchange stands."""

    START = "start"
    AWAIT_SIFT = "await sift"
    AWAIT_TEST_BITS = "await test bits"
    AWAIT_SYNDROME = "await syndrome"
    AWAIT_CORRECTED = "await corrected"
    AWAIT_VERIFY = "await verify"
    AWAIT_VERIFIED = "await verified"
    AWAIT_AMPLIFY = "await amplify"
    DONE = "done"
    ABORTED = "aborted"


# What each role may receive in each state; ABORT is allowed in every state that is not final.
TRANSMITTER_TABLE: Mapping[State, frozenset[MessageKind]] = {
    State.START: frozenset({MessageKind.ANNOUNCE}),
    State.AWAIT_TEST_BITS: frozenset({MessageKind.TEST_BITS, MessageKind.ABORT}),
    State.AWAIT_CORRECTED: frozenset({MessageKind.REQUEST, MessageKind.CORRECTED, MessageKind.ABORT}),
    State.AWAIT_VERIFIED: frozenset({MessageKind.VERIFIED, MessageKind.ABORT}),
}
RECEIVER_TABLE: Mapping[State, frozenset[MessageKind]] = {
    State.AWAIT_SIFT: frozenset({MessageKind.SIFT, MessageKind.ABORT}),
    State.AWAIT_SYNDROME: frozenset({MessageKind.SYNDROME, MessageKind.ANSWER, MessageKind.ABORT}),
    State.AWAIT_VERIFY: frozenset({MessageKind.VERIFY, MessageKind.ABORT}),
    State.AWAIT_AMPLIFY: frozenset({MessageKind.AMPLIFY, MessageKind.ABORT}),
}

CHECK_NAMES: Mapping[type[PostprocessingError], str] = {
    QberTooHighError: "qber",
    KeyLengthZeroError: "key-length",
    MonitorAlarmError: "monitors",
    ReconciliationError: "reconciliation",
    VerificationError: "verification",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What both sites must agree on before a block; part of the profile that HELLO compares.

    Attributes:
        proof: Security proof that gives the key length.
        eps_sec: Secrecy parameter of a block.
        eps_cor: Correctness parameter of a block.
        qber_limit: Fraction of wrong test bits above which the block is dropped.
        authentication_bytes: How much of each block refills the authentication account (0, or 64 and more, even).
    """

    proof: KeyLengthProof
    eps_sec: float
    eps_cor: float
    qber_limit: float
    authentication_bytes: int


@dataclass(slots=True)
class Outcome:
    """How a block ended. `secret` holds authentication bytes first, then KEY_BYTES for each key ID."""

    statistics: BlockStatistics
    secret: SecretBuffer | None = None
    key_ids: list[str] = field(default_factory=list)


def split_length(length_bits: int, authentication_bytes: int) -> int:
    """Say how many keys a block of so many secret bits gives after the authentication account has its share."""
    return max(0, (length_bits // 8 - authentication_bytes) // KEY_BYTES)


class Exchange:
    """What both roles share: state check, abort, stage times and the key length from the counts."""

    def __init__(
        self,
        table: Mapping[State, frozenset[MessageKind]],
        state: State,
        policy: Policy,
        intensity: tuple[tuple[float, ...], tuple[float, ...]],
    ) -> None:
        self._table = table
        self.state = state
        self._policy = policy
        self._mean_photon_number, self._intensity_probability = intensity
        self._key: Bits = np.zeros(0, np.uint8)
        self._durations: dict[str, float] = {}
        self._leak_bits = 0
        self.statistics = BlockStatistics(0, 0, 0, 0)
        self.outcome: Outcome | None = None

    def receive(self, message: Message) -> list[Message]:
        """Handle one authenticated message and return what to send.

        Raises:
            PeerProtocolError: The state table does not allow this message now: nothing has changed. Or what it says
                cannot be: the block is over and its bits are wiped.
        """
        if message.kind not in self._table.get(self.state, frozenset()):
            raise PeerProtocolError(f"the peer sent {message.kind.name} in state '{self.state.value}'")
        if message.kind is MessageKind.ABORT:
            self._finish_without_key(str(message.fields["check"]), f"peer: {message.fields['reason']}")
            return []
        started = time.perf_counter()
        try:
            return self._handle(message)
        except tuple(CHECK_NAMES) as error:
            check = CHECK_NAMES[type(error)]
            value = error.qber if isinstance(error, QberTooHighError) else None
            self._finish_without_key(check, str(error))
            return [Message(MessageKind.ABORT, {"check": check, "reason": str(error), "value": value})]
        except QkdhwError as error:
            self._finish_without_key("protocol", str(error))
            raise
        finally:
            stage = message.kind.name.lower()
            self._durations[stage] = self._durations.get(stage, 0.0) + time.perf_counter() - started

    def _handle(self, message: Message) -> list[Message]:
        raise NotImplementedError

    def close(self) -> None:
        """Wipe what is left of the block's bits; for a session that breaks in mid-block."""
        self._key.fill(0)

    def _finish_without_key(self, check: str, failure: str) -> None:
        self.close()
        self.state = State.ABORTED
        self.statistics = replace(
            self.statistics,
            n_keys=0,
            authentication_bytes=0,
            failed_check=check,
            failure=failure,
            duration_s=dict(self._durations),
        )
        self.outcome = Outcome(self.statistics)

    def _estimate(self, own_test: Bits, peer_test: Bits, key_intensity: Bits, test_intensity: Bits) -> None:
        """Fill in the counts and stop the block if there are too many errors or no key could come of it."""
        if peer_test.shape != own_test.shape:
            raise PeerProtocolError(f"the peer sent {peer_test.size} test bits; {own_test.size} were sifted")
        wrong = own_test != peer_test
        n_wrong, n_test = int(np.count_nonzero(wrong)), int(own_test.size)
        levels = len(self._mean_photon_number)
        counts = DecoyCounts(
            mean_photon_number=self._mean_photon_number,
            intensity_probability=self._intensity_probability,
            n_key=tuple(int(n) for n in np.bincount(key_intensity, minlength=levels)),
            n_test=tuple(int(n) for n in np.bincount(test_intensity, minlength=levels)),
            m_test=tuple(int(n) for n in np.bincount(test_intensity[wrong], minlength=levels)),
            m_key=None,
            leak_bits=0.0,
        )
        qber = n_wrong / n_test if n_test else None
        self.statistics = replace(
            self.statistics,
            n_sifted_key=int(key_intensity.size),
            n_sifted_test=n_test,
            qber_test=qber,
            counts=counts,
        )
        refusal = self._inspect(self.statistics)
        check_qber(n_wrong, n_test, self._policy.qber_limit)
        if refusal:
            raise MonitorAlarmError(
                f"an alarm of the detectors stands: {refusal}",
                remedy="find what raised it, then clear it with `qkdhw link alarms`",
            )
        self._key_length(replace(counts, leak_bits=key_intensity.size * binary_entropy(qber or 0.0)))

    def _inspect(self, block: BlockStatistics) -> str:
        """Look at a block whose counts are known; return why it must give no key, or ""."""
        del block
        return ""

    def _key_length(self, counts: DecoyCounts) -> KeyLength:
        answer = self._policy.proof(counts, eps_sec=self._policy.eps_sec, eps_cor=self._policy.eps_cor)
        if split_length(answer.length_bits, self._policy.authentication_bytes) == 0:
            self.statistics = replace(self.statistics, key_length=answer)
            needed_bits = 8 * (self._policy.authentication_bytes + KEY_BYTES)
            reason = answer.reason or (
                f"{answer.length_bits} secret bits are fewer than the {needed_bits} of the authentication "
                "account's share and one key"
            )
            raise KeyLengthZeroError(
                f"{answer.proof} allows no key from this block: {reason}",
                remedy="use larger blocks (protocol.block_pulses), or a link with less loss or fewer errors",
            )
        return answer

    def _final_length(self, n_errors: int, leak_bits: int) -> tuple[int, int]:
        """Account the leak, ask the proof and return (bits to keep, number of keys)."""
        counts = self.statistics.counts
        n_key = self.statistics.n_sifted_key
        if counts is None:
            raise PeerProtocolError("the peer went on without parameter estimation")
        qber_key = n_errors / n_key
        published_bits = leak_bits + n_key.bit_length() + TAG_BITS  # syndromes and answers, n_errors, tag
        counts = replace(counts, leak_bits=float(published_bits))
        self.statistics = replace(
            self.statistics,
            qber_key=qber_key,
            leak_bits=published_bits,
            efficiency=efficiency(leak_bits, n_key, n_errors) if n_errors else None,
            counts=counts,
        )
        answer = self._key_length(counts)
        n_keys = split_length(answer.length_bits, self._policy.authentication_bytes)
        self.statistics = replace(
            self.statistics,
            key_length=answer,
            n_keys=n_keys,
            authentication_bytes=self._policy.authentication_bytes,
        )
        return 8 * (self._policy.authentication_bytes + KEY_BYTES * n_keys), n_keys

    def _finish_with_key(self, seed: bytes, length_bits: int, key_ids: list[str]) -> None:
        started = time.perf_counter()
        secret = amplify(self._key, seed, length_bits)
        self._key.fill(0)
        self._durations["amplification"] = time.perf_counter() - started
        self.state = State.DONE
        self.statistics = replace(self.statistics, duration_s=dict(self._durations))
        self.outcome = Outcome(self.statistics, secret, key_ids)


def unpack_bits(data: bytes, n_bits: int) -> Bits:
    """Unpack MSB-first bits.

    Raises:
        PeerProtocolError: The data does not hold exactly so many bits, zero-padded.
    """
    if len(data) != (n_bits + 7) // 8:
        raise PeerProtocolError(f"{len(data)} bytes from the peer, not {(n_bits + 7) // 8}, for {n_bits} bits")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[n_bits:].any():
        raise PeerProtocolError("padding bits from the peer are not zero")
    return bits[:n_bits]

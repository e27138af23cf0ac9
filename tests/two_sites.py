"""Two sites without units: correlated data with planted errors, stores with one start key, and their configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qkdhw.interfaces import KeyLengthProof
from qkdhw.keys.account import install_start_key
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.link.config import (
    ChannelConfig,
    DetectorConfig,
    KeysConfig,
    ProtocolConfig,
    ReceiverConfig,
    SiteConfig,
    UnitConfig,
)
from qkdhw.model import DecoyCounts, KeyLength
from qkdhw.postprocessing.messages import Message
from qkdhw.postprocessing.session import Policy, ReceiverExchange, State, TransmitterExchange
from qkdhw.secret import SecretBuffer

Role = Literal["transmitter", "receiver"]
Bits = NDArray[np.uint8]

FIRST_SLOT = 1000
INTENSITY = ((0.5, 0.1, 0.0), (0.6, 0.3, 0.1))
BLOCK_ID = 5


def lenient(counts: DecoyCounts, *, eps_sec: float, eps_cor: float) -> KeyLength:
    """No proof at all: half of what is not published, so that a small block gives a key in a test."""
    length = max(0, int(0.5 * (sum(counts.n_key) - counts.leak_bits)))
    return KeyLength(length, "lenient", False, eps_sec, eps_cor, {}, assumptions=("this is a test",))


def policy_with(proof: KeyLengthProof = lenient, **changes: float) -> Policy:
    fields = {"eps_sec": 1e-9, "eps_cor": 1e-15, "qber_limit": 0.11, "authentication_bytes": 64} | changes
    return Policy(proof=proof, **fields)


@dataclass
class Prepared:
    """What both units saw of one block."""

    record: Bits
    slot: NDArray[np.int64]
    basis: Bits
    bit: Bits


def prepare(
    seed: int = 1, n_slots: int = 60_000, qber: float = 0.02, transmittance: float = 0.5, key_basis_share: float = 0.5
) -> Prepared:
    """Prepare pulses and detect some: dark counts are a thousandth of the brightest intensity's clicks."""
    rng = np.random.default_rng(seed)
    means, shares = (np.array(values) for values in INTENSITY)
    level = np.searchsorted(np.cumsum(shares), rng.random(n_slots)).clip(max=2)
    sent_basis = rng.random(n_slots) >= key_basis_share
    record = (rng.integers(0, 2, n_slots) | sent_basis << 1 | level << 2).astype(np.uint8)
    click = 1 - np.exp(-transmittance * means) + 1e-3 * transmittance * means[0]
    slot = np.flatnonzero(rng.random(n_slots) < click[level])
    basis = (rng.random(slot.size) >= key_basis_share).astype(np.uint8)
    same = (record[slot] >> 1 & 1) == basis
    wrong = rng.random(slot.size) < qber
    bit = np.where(same, (record[slot] & 1) ^ wrong, rng.integers(0, 2, slot.size)).astype(np.uint8)
    return Prepared(record, slot.astype(np.int64) + FIRST_SLOT, basis, bit)


def exchanges(
    data: Prepared, policy: Policy | None = None, receiver_policy: Policy | None = None, seed: int = 2
) -> tuple[TransmitterExchange, ReceiverExchange]:
    policy = policy or policy_with()
    n_slots = int(data.record.size)
    transmitter = TransmitterExchange(
        block_id=BLOCK_ID, first_slot=FIRST_SLOT, record=data.record.copy(), policy=policy, intensity=INTENSITY,
        random_bytes=np.random.default_rng(seed).bytes,
    )  # fmt: skip
    receiver = ReceiverExchange(
        block_id=BLOCK_ID, first_slot=FIRST_SLOT, n_slots=n_slots, slot=data.slot, basis=data.basis.copy(),
        bit=data.bit.copy(), policy=receiver_policy or policy, intensity=INTENSITY,
    )  # fmt: skip
    return transmitter, receiver


Exchange = TransmitterExchange | ReceiverExchange
Change = Callable[[Message], Message]


def unchanged(message: Message) -> Message:
    return message


class Conversation:
    """Two exchanges, and what is on its way between them, one message at a time."""

    def __init__(self, pair: tuple[TransmitterExchange, ReceiverExchange]) -> None:
        self.transmitter, self.receiver = pair
        self.said: list[Message] = []
        self._waiting: list[tuple[Exchange, Message]] = [(self.transmitter, self.receiver.announcement())]

    def of(self, role: str) -> Exchange:
        return self.transmitter if role == "transmitter" else self.receiver

    def go_on(self, until: Callable[[], bool] = lambda: False, change: Change = unchanged) -> None:
        """Deliver one message after another, as `change` makes it, until both are silent."""
        while self._waiting and not until():
            to, message = self._waiting.pop(0)
            self.said.append(change(message))
            other = self.receiver if to is self.transmitter else self.transmitter
            self._waiting += [(other, answer) for answer in to.receive(self.said[-1])]

    def until(self, role: str, state: State, *, expecting: bool = True) -> Exchange:
        """Stop when a role is in a state, with its next honest message waiting if it expects one."""
        one = self.of(role)
        self.go_on(lambda: one.state is state and (not expecting or any(to is one for to, _ in self._waiting)))
        assert one.state is state
        return one


def run(transmitter: TransmitterExchange, receiver: ReceiverExchange, change: Change = unchanged) -> list[Message]:
    """Let both talk until they are silent; returns what went over the channel."""
    conversation = Conversation((transmitter, receiver))
    conversation.go_on(change=change)
    return conversation.said


# --- stores and configuration -----------------------------------------------------------------------------------
KEK = bytes(range(32))


def buffer_of(content: bytes) -> SecretBuffer:
    buffer = SecretBuffer(len(content))
    buffer.copy_from(content)
    return buffer


def make_store(folder: Path, role: Role, *, masks: int = 60) -> SqliteKeyStore:
    """Make a store whose start key has so many masks a direction; the same at both sites."""
    with buffer_of(KEK) as kek:
        store = SqliteKeyStore.create(folder / f"{role}.sqlite", kek)
    start = np.random.default_rng(77).bytes(32 + 32 * masks)
    with buffer_of(start) as key:
        install_start_key(store, key, role=role)
    return store


def site_config(role: Role, folder: Path, timeout_s: float = 5.0, **protocol: object) -> SiteConfig:
    fields = {"link": "north", "pulse_rate_hz": 100_000_000, "block_pulses": 1 << 16} | protocol
    wiring = (DetectorConfig(channel=1, basis="key", bit=0), DetectorConfig(channel=2, basis="key", bit=1))
    return SiteConfig(
        role=role,
        unit=UnitConfig(name="none", url="none"),
        channel=ChannelConfig(listen="127.0.0.1:0", timeout_s=timeout_s),
        protocol=ProtocolConfig.model_validate(fields),
        keys=KeysConfig(store=folder / f"{role}.sqlite", kek_file=folder / "kek"),
        receiver=ReceiverConfig(wiring=wiring, window_ps=1000) if role == "receiver" else None,
    )

"""Two sites without units: correlated data with planted errors, stores with one start key, and their configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import QkdhwError
from qkdhw.interfaces import KeyLengthProof
from qkdhw.keys.account import AuthenticationAccount, install_start_key
from qkdhw.keys.kek import create_kek_file, read_kek_file
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.link.config import (
    TRANSMITTER_SETTINGS,
    ChannelConfig,
    DetectorConfig,
    KeysConfig,
    ProtocolConfig,
    ReceiverConfig,
    SiteConfig,
    UnitConfig,
)
from qkdhw.link.peer import Peer, Session, open_session
from qkdhw.model import DecoyCounts, KeyLength
from qkdhw.postprocessing.authentication import Authenticator
from qkdhw.postprocessing.messages import Message
from qkdhw.postprocessing.receiver_exchange import ReceiverExchange
from qkdhw.postprocessing.session import Policy, State
from qkdhw.postprocessing.transmitter_exchange import TransmitterExchange
from qkdhw.secret import SecretBuffer
from qkdhw.transport.classical import ChannelListener, TcpClassicalChannel

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
TIMEOUT_S = 5.0


def buffer_of(content: bytes) -> SecretBuffer:
    buffer = SecretBuffer(len(content))
    buffer.copy_from(content)
    return buffer


def make_store(folder: Path, role: Role, *, masks: int = 60) -> SqliteKeyStore:
    """Make a store whose start key has so many masks a direction; the same at both sites."""
    if not (folder / "kek").exists():
        create_kek_file(folder / "kek")
    with read_kek_file(folder / "kek") as kek:
        store = SqliteKeyStore.create(folder / f"{role}.sqlite", kek)
    start = np.random.default_rng(77).bytes(32 + 32 * masks)
    with buffer_of(start) as key:
        install_start_key(store, key, role=role)
    return store


def site_config(role: Role, folder: Path, timeout_s: float = 5.0, **protocol: object) -> SiteConfig:
    fields = {"link": "north", "pulse_rate_hz": 100_000_000, "block_pulses": 1 << 16} | protocol
    bases: tuple[Literal["key", "test"], ...] = ("key", "key", "test", "test")
    wiring = tuple(DetectorConfig(channel=1 + i, basis=basis, bit=i % 2) for i, basis in enumerate(bases))
    return SiteConfig(
        role=role,
        unit=UnitConfig(name="none", url="none", settings=dict.fromkeys(TRANSMITTER_SETTINGS, 0)),
        channel=ChannelConfig(**{"connect" if role == "transmitter" else "listen": "127.0.0.1:1"}, timeout_s=timeout_s),
        protocol=ProtocolConfig.model_validate(fields),
        keys=KeysConfig(store=folder / f"{role}.sqlite", kek_file=folder / "kek"),
        receiver=ReceiverConfig(wiring=wiring, window_ps=1000) if role == "receiver" else None,
    )


class OnThread:
    """Calls the methods of an object on the one thread that may use it."""

    def __init__(self, thread: ThreadPoolExecutor, target: Any) -> None:
        self._thread, self._target = thread, target

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self._thread.submit(getattr(self._target, name), *args, **kwargs).result()


Action = Callable[[TcpClassicalChannel], Any]


class Site:
    """One site without a unit, on a thread of its own: store, account and configuration."""

    def __init__(self, role: Role, folder: Path, stack: ExitStack, *, masks: int = 200) -> None:
        self.role = role
        self.units: list[Any] = []
        self.config = site_config(role, folder)
        self._thread = stack.enter_context(ThreadPoolExecutor(1))
        self.own_store = self._thread.submit(make_store, folder, role, masks=masks).result()
        self.store = OnThread(self._thread, self.own_store)
        self.own_account = self._thread.submit(AuthenticationAccount, self.own_store).result()
        self.account = OnThread(self._thread, self.own_account)
        stack.callback(self.close)

    def close(self) -> None:
        self.account.close()
        self.store.close()

    def restart(self) -> None:
        """Forget what is in memory only, as a crash does."""
        self.account.close()
        self.own_account = self._thread.submit(AuthenticationAccount, self.own_store).result()
        self.account = OnThread(self._thread, self.own_account)

    def peer(self, channel: TcpClassicalChannel, *, timeout_s: float = TIMEOUT_S) -> Peer:
        return Peer(channel, Authenticator(self.own_account, self.role), timeout_s=timeout_s)

    def open(self, channel: TcpClassicalChannel, config: SiteConfig | None = None) -> tuple[Peer, Session]:
        config = config or self.config
        peer = self.peer(channel, timeout_s=config.channel.timeout_s)
        return peer, open_session(peer, config, self.own_store, os.urandom)

    def begin(self, action: Action, channel: TcpClassicalChannel) -> Future[Any]:
        """Start an action; its result is what it returned, or the error it ended with. Who ends, closes."""

        def run() -> Any:
            with channel:
                try:
                    return action(channel)
                except QkdhwError as error:
                    return error

        return self._thread.submit(run)


def channel_pair() -> tuple[TcpClassicalChannel, TcpClassicalChannel]:
    """Connect two ends over the loopback interface."""
    with ChannelListener("127.0.0.1:0") as listener:
        left = TcpClassicalChannel.connect(f"127.0.0.1:{listener.port}", timeout_s=TIMEOUT_S)
        return left, listener.accept(timeout_s=TIMEOUT_S)


def together(
    left: Site, left_action: Action, right: Site, right_action: Action, channels: Sequence[TcpClassicalChannel] = ()
) -> tuple[Any, Any]:
    """Run both ends side by side."""
    one, two = channels or channel_pair()
    first, second = left.begin(left_action, one), right.begin(right_action, two)
    return first.result(), second.result()

"""Somebody sits on the classical channel: whatever they do to a frame, nothing of it is accepted, and no key comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkdhw.errors import (
    AuthenticationError,
    QkdhwError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
)
from qkdhw.link.blocks import BlockResult, Context, receive_block, transmit_block
from qkdhw.model import KeyState
from qkdhw.postprocessing.messages import Message, MessageKind
from qkdhw.transport.classical import TcpClassicalChannel
from two_sites import (
    FIRST_SLOT,
    INTENSITY,
    Prepared,
    Role,
    Site,
    channel_pair,
    policy_with,
    prepare,
    site_config,
    together,
)

Frames = list[tuple[Role, bytes]]  # (who is to get it, frame)
Attack = Callable[[Role, int, bytes], Frames]
PEER: dict[Role, Role] = {"transmitter": "receiver", "receiver": "transmitter"}
PATIENCE_S = 10.0
HEADER_BYTES = 24


class Eve:
    """Passes whole frames between the two sites, as `attack(sender, number, frame)` says, and records them."""

    def __init__(self, attack: Attack | None = None) -> None:
        self._attack = attack or (lambda sender, number, frame: [(PEER[sender], frame)])
        self.seen: dict[Role, list[bytes]] = {"transmitter": [], "receiver": []}

    def __enter__(self) -> Eve:
        transmitter, towards_transmitter = channel_pair()
        receiver, towards_receiver = channel_pair()
        self.ends = (transmitter, receiver)
        self._to = {"transmitter": towards_transmitter, "receiver": towards_receiver}
        self._threads = [threading.Thread(target=self._pump, args=(sender,)) for sender in self.seen]
        for thread in self._threads:
            thread.start()
        return self

    def _pump(self, sender: Role) -> None:
        with self._to[sender] as source, suppress(TransportError):
            try:
                while True:
                    frame = source.receive(timeout_s=PATIENCE_S)
                    self.seen[sender].append(frame)
                    for to, changed in self._attack(sender, len(self.seen[sender]) - 1, frame):
                        self._to[to].send(changed, timeout_s=PATIENCE_S)
            finally:  # as a TCP connection does: what was sent arrives, then the end
                with suppress(OSError):
                    self._to[PEER[sender]]._socket.shutdown(1)

    def __exit__(self, *exc: object) -> None:
        for end in self.ends:
            end.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    with ExitStack() as stack:
        yield Site("transmitter", tmp_path, stack), Site("receiver", tmp_path, stack)


# --- a short conversation -------------------------------------------------------------------------------------------
ROUNDS = 3


class Talk:
    """After the handshake both send two messages a round; notes what each end accepted."""

    def __init__(self, sites: tuple[Site, Site], tmp_path: Path, timeout_s: float) -> None:
        self.sites = sites
        self._configs = {site.role: site_config(site.role, tmp_path, timeout_s) for site in sites}
        self.accepted: dict[Role, list[tuple[MessageKind, int]]] = {"transmitter": [], "receiver": []}
        self.opened: list[Role] = []

    def _end(self, site: Site, channel: TcpClassicalChannel) -> str:
        peer, _ = site.open(channel, self._configs[site.role])
        self.opened.append(site.role)
        kinds = (MessageKind.STORED, MessageKind.ACTIVATE)
        said, heard = kinds if site.role == "receiver" else kinds[::-1]
        for k in range(ROUNDS):
            for number in (2 * k, 2 * k + 1):
                peer.send(Message(said, {"block_id": number}))
            for _ in range(2):
                message = peer.receive(heard)
                self.accepted[site.role].append((message.kind, message.fields["block_id"]))
        return "done"

    def run(self, eve: Eve) -> dict[Role, Any]:
        transmitter, receiver = self.sites
        results = together(
            transmitter,
            lambda channel: self._end(transmitter, channel),
            receiver,
            lambda channel: self._end(receiver, channel),
            eve.ends,
        )
        return dict(zip(("transmitter", "receiver"), results, strict=True))

    def check_order(self) -> None:
        for role, kind in (("transmitter", MessageKind.STORED), ("receiver", MessageKind.ACTIVATE)):
            heard = self.accepted[role]
            assert heard == [(kind, number) for number in range(len(heard))]


def flip(place: int) -> Callable[[bytes], bytes]:
    def change(frame: bytes) -> bytes:
        at = place % len(frame)
        return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]

    return change


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "flip segment": flip(3),
    "flip index": flip(7),
    "flip tag": flip(8),
    "flip kind": flip(HEADER_BYTES),
    "flip last": flip(-1),
    "empty": lambda frame: b"",
    "cut header": lambda frame: frame[: HEADER_BYTES - 1],
    "only header": lambda frame: frame[:HEADER_BYTES],
    "cut last": lambda frame: frame[:-1],
    "longer": lambda frame: frame + b"\0",
    "zeros": lambda frame: bytes(len(frame)),
}
HANDSHAKE_FRAMES = 2  # HELLO, and READY under the new session's ID
N_FRAMES = HANDSHAKE_FRAMES + 2 * ROUNDS


def test_nothing_is_changed_and_all_arrives(sites: tuple[Site, Site], tmp_path: Path) -> None:
    talk = Talk(sites, tmp_path, PATIENCE_S)
    with Eve() as eve:
        assert talk.run(eve) == {"transmitter": "done", "receiver": "done"}
    talk.check_order()
    assert [len(talk.accepted[role]) for role in PEER] == [2 * ROUNDS] * 2
    assert [len(eve.seen[role]) for role in PEER] == [N_FRAMES] * 2


@pytest.mark.parametrize("sender", list(PEER))
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_frame_is_refused_and_so_is_what_follows(
    sites: tuple[Site, Site], tmp_path: Path, sender: Role, name: str
) -> None:
    for target in range(N_FRAMES):
        talk = Talk(sites, tmp_path, PATIENCE_S)

        def attack(who: Role, number: int, frame: bytes, target: int = target) -> Frames:
            return [(PEER[who], CHANGES[name](frame) if (who, number) == (sender, target) else frame)]

        started = time.monotonic()
        with Eve(attack) as eve:
            results = talk.run(eve)
        assert isinstance(results[PEER[sender]], AuthenticationError)
        assert len(talk.accepted[PEER[sender]]) == max(0, target - HANDSHAKE_FRAMES)
        assert time.monotonic() - started < PATIENCE_S
        talk.check_order()
        if target < HANDSHAKE_FRAMES:
            assert PEER[sender] not in talk.opened


def order_attack(name: str, sender: Role, target: int) -> Attack:
    """Drop, repeat, hold back until after the next one, or send back frame `target` of `sender`."""
    held: list[bytes] = []

    def attack(who: Role, number: int, frame: bytes) -> Frames:
        there = [(PEER[who], frame)]
        if who != sender or number not in {target, target + 1}:
            return there
        if number == target:
            held.append(frame)
            return {"drop": [], "repeat": [*there, *there], "reorder": [], "reflect": [(who, frame)]}[name]
        return [*there, (PEER[who], held[0])] if name == "reorder" else there

    return attack


@pytest.mark.parametrize("sender", list(PEER))
@pytest.mark.parametrize("target", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", ["drop", "repeat", "reorder", "reflect"])
def test_frames_left_out_repeated_out_of_order_or_sent_back(
    sites: tuple[Site, Site], tmp_path: Path, name: str, sender: Role, target: int
) -> None:
    victim: Role = sender if name == "reflect" else PEER[sender]
    talk = Talk(sites, tmp_path, 0.5)
    with Eve(order_attack(name, sender, target)) as eve:
        results = talk.run(eve)
    # The handshake goes in turns: without one of its first three frames nobody has anything to say, and who waited
    # longest hangs up first.
    in_turn = {("transmitter", 0), ("receiver", 0), ("transmitter", 1)}
    silent = name in {"drop", "reorder"} and (sender, target) in in_turn
    error = results[victim]
    assert isinstance(error, TransportTimeoutError | TransportClosedError if silent else AuthenticationError), error
    talk.check_order()
    most = target + 1 if name == "repeat" else target
    assert len(talk.accepted[PEER[sender]]) <= max(0, most - HANDSHAKE_FRAMES)


# --- recordings -----------------------------------------------------------------------------------------------------
def play(frames: list[bytes]) -> Callable[[TcpClassicalChannel], None]:
    def action(channel: TcpClassicalChannel) -> None:
        for frame in frames:
            channel.send(frame, timeout_s=PATIENCE_S)

    return action


@pytest.mark.parametrize("victim", list(PEER))
@pytest.mark.parametrize("restarted", [False, True])
def test_a_whole_session_cannot_be_played_back(
    sites: tuple[Site, Site], tmp_path: Path, victim: Role, restarted: bool
) -> None:
    with Eve() as eve:
        Talk(sites, tmp_path, PATIENCE_S).run(eve)
    site = sites[0 if victim == "transmitter" else 1]
    other = sites[1 if victim == "transmitter" else 0]
    if restarted:
        site.restart()
    for frames in (eve.seen[PEER[victim]], eve.seen[PEER[victim]][1:], eve.seen[victim]):
        error, _ = together(site, site.open, other, play(frames))
        assert isinstance(error, AuthenticationError)


def test_a_hello_that_was_held_back_opens_no_session(sites: tuple[Site, Site], tmp_path: Path) -> None:
    """It was never used, so its tag is right; but the other end does not know it, and the next message fails."""
    with Eve(lambda who, number, frame: []) as eve:
        Talk(sites, tmp_path, 0.3).run(eve)
    (stale,) = eve.seen["transmitter"]

    def attack(who: Role, number: int, frame: bytes) -> Frames:
        return [(PEER[who], stale if (who, number) == ("transmitter", 0) else frame)]

    talk = Talk(sites, tmp_path, PATIENCE_S)
    with Eve(attack) as again:
        results = talk.run(again)
    assert any(isinstance(result, AuthenticationError) for result in results.values())
    assert all(isinstance(result, QkdhwError) for result in results.values())
    assert talk.accepted == {"transmitter": [], "receiver": []}


def test_after_a_refused_frame_the_sites_meet_again(sites: tuple[Site, Site], tmp_path: Path) -> None:
    with Eve(lambda who, number, frame: [(PEER[who], flip(30)(frame))]) as eve:
        Talk(sites, tmp_path, PATIENCE_S).run(eve)
    with Eve() as eve:
        assert set(Talk(sites, tmp_path, PATIENCE_S).run(eve).values()) == {"done"}


# --- a whole block --------------------------------------------------------------------------------------------------
DATA = prepare(n_slots=80_000)


class Recorded:
    """Stands where a unit's reader and the gate stand: the block's data are there at once, and are kept in view."""

    def __init__(self, data: Prepared) -> None:
        self._data = data
        self.handed_out: list[Any] = []

    def records(self, first: int, n: int, *, timeout_s: float) -> Any:
        self.handed_out.append(self._data.record.copy())
        return self.handed_out[-1]

    def detections(self, first: int, n: int, *, timeout_s: float) -> Any:
        self.handed_out.append(self._data.bit.copy())
        return self._data.slot.copy(), self._data.basis.copy(), self.handed_out[-1]


class Taken:
    """An object with the one method `take`."""

    def __init__(self, take: Callable[..., Any]) -> None:
        self.take = take


def block_end(site: Site, data: Prepared) -> Callable[[TcpClassicalChannel], BlockResult]:
    """One site's handshake and one block."""

    def action(channel: TcpClassicalChannel) -> BlockResult:
        peer, session = site.open(channel)
        context = Context(
            config=site.config, store=site.own_store, policy=policy_with(), emit=lambda event: None,
            random_bytes=np.random.default_rng().bytes, notes={},
        )  # fmt: skip
        place = (FIRST_SLOT, int(data.record.size))
        unit, number = Recorded(data), session.next_block_id
        site.units.append(unit)
        if site.role == "receiver":
            return receive_block(context, peer, Taken(unit.detections), session.session_id, number, place, INTENSITY)
        announced = peer.receive(MessageKind.ANNOUNCE)
        return transmit_block(
            context, peer, Taken(unit.records), session.session_id, number, place, INTENSITY, announced
        )

    return action


def run_block(sites: tuple[Site, Site], eve: Eve, data: Prepared = DATA) -> dict[Role, Any]:
    transmitter, receiver = sites
    results = together(transmitter, block_end(transmitter, data), receiver, block_end(receiver, data), eve.ends)
    return dict(zip(("transmitter", "receiver"), results, strict=True))


def take_keys(site: Site) -> dict[str, bytes]:
    ids = [record.key_id for record in site.store.records(state=KeyState.READY)]
    if ids:
        site.store.reserve(receiver="test", key_ids=ids)
    keys = {}
    for key_id in ids:
        with site.store.take(key_id, receiver="test") as key:
            keys[key_id] = bytes(key)
    return keys


def test_a_block_through_an_idle_eve_gives_equal_keys(sites: tuple[Site, Site]) -> None:
    with Eve() as eve:
        results = run_block(sites, eve)
    assert results["transmitter"].key_ids == results["receiver"].key_ids
    transmitter, receiver = (take_keys(site) for site in sites)
    assert transmitter == receiver
    assert len(transmitter) == results["receiver"].statistics.n_keys > 0
    with Eve() as eve:  # and the next block's authentication rests on this one's key
        assert run_block(sites, eve)["receiver"].statistics.block_id == 2


def kinds_of(eve: Eve, sender: Role) -> list[MessageKind]:
    return [MessageKind(frame[HEADER_BYTES]) for frame in eve.seen[sender]]


def test_one_byte_of_any_message_of_a_block_changed_and_no_key_is_ready_at_the_victim(sites: tuple[Site, Site]) -> None:
    with Eve() as honest:
        run_block(sites, honest)
    for site in sites:
        take_keys(site)
    rng = np.random.default_rng(5)
    targets = [(sender, number) for sender in PEER for number in range(len(honest.seen[sender]))]
    seen_kinds = set()
    for target in targets:
        place = int(rng.integers(HEADER_BYTES - 16, len(honest.seen[target[0]][target[1]])))

        def attack(
            who: Role, number: int, frame: bytes, target: tuple[Role, int] = target, place: int = place
        ) -> Frames:
            return [(PEER[who], flip(place)(frame) if (who, number) == target else frame)]

        with Eve(attack) as eve:
            results = run_block(sites, eve)
        if len(eve.seen[target[0]]) <= target[1]:
            continue  # fewer rounds of reconciliation than in the honest run: there was no such message
        kind = kinds_of(eve, target[0])[target[1]]
        seen_kinds.add(kind)
        victim = PEER[target[0]]
        assert not any(bits.any() for site in sites for unit in site.units for bits in unit.handed_out), kind
        assert isinstance(results[victim], AuthenticationError), kind
        stores = {site.role: site.store for site in sites}
        assert stores[victim].records(state=KeyState.READY) == [], kind
        if kind is not MessageKind.ACTIVATE:
            assert stores[PEER[victim]].records(state=KeyState.READY) == [], kind
            assert isinstance(results[PEER[victim]], QkdhwError), kind
        if kind not in {MessageKind.AMPLIFY, MessageKind.STORED, MessageKind.ACTIVATE}:
            assert all(store.records(state=KeyState.PENDING) == [] for store in stores.values()), kind
        together(sites[0], sites[0].open, sites[1], sites[1].open)
        left, right = (take_keys(site) for site in sites)
        assert left == right, kind
        assert bool(left) == (kind in {MessageKind.STORED, MessageKind.ACTIVATE}), kind
    k = MessageKind
    assert seen_kinds >= {
        k.HELLO, k.ANNOUNCE, k.SIFT, k.TEST_BITS, k.SYNDROME, k.CORRECTED, k.VERIFY, k.VERIFIED, k.AMPLIFY, k.STORED,
        k.ACTIVATE,
    }  # fmt: skip


def test_too_many_errors_leave_nothing_at_either_site(sites: tuple[Site, Site]) -> None:
    with Eve() as eve:
        results = run_block(sites, eve, prepare(n_slots=80_000, qber=0.25))
    for site in sites:
        assert results[site.role].statistics.failed_check == "qber"
        assert site.store.records() == []
        assert site.store.blocks() == []


def test_silence_is_noticed_in_time(sites: tuple[Site, Site], tmp_path: Path) -> None:
    started = time.monotonic()
    with Eve(lambda who, number, frame: []) as eve:
        results = Talk(sites, tmp_path, 0.3).run(eve)
    assert time.monotonic() - started < PATIENCE_S
    assert any(isinstance(result, TransportTimeoutError) for result in results.values())


def test_who_only_connects_costs_the_listening_site_no_key(sites: tuple[Site, Site]) -> None:
    _, listening = sites
    before = listening.account.available_send_masks()
    for frame in (b"", b"\0" * 100, b"x" * 100_000):
        stranger, end = channel_pair()
        with stranger:
            refused = listening.begin(listening.open, end)
            stranger.send(frame)
            assert isinstance(refused.result(PATIENCE_S), AuthenticationError)
    assert listening.account.available_send_masks() == before

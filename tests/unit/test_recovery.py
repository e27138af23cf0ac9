"""The handshake settles what a crash cut off: whatever either store holds, both end up equal."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkdhw.errors import ConfigurationError, PeerProtocolError
from qkdhw.keys.ledger import NewKey
from qkdhw.keys.segments import NewSegment, SegmentState
from qkdhw.link import run_site
from qkdhw.link.peer import RECENT_BLOCKS
from qkdhw.model import KeyState
from qkdhw.postprocessing.messages import Message, MessageKind
from qkdhw.transport.classical import TcpClassicalChannel
from two_sites import OnThread, Role, Site, buffer_of, site_config, together

EARLIER = "e" * 64
HELD = (None, KeyState.PENDING, KeyState.READY, KeyState.BURNT)


@pytest.fixture
def make_sites(tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        yield lambda **options: (
            Site("transmitter", tmp_path, stack, **options),
            Site("receiver", tmp_path, stack, **options),
        )


@pytest.fixture
def sites(make_sites: Any) -> tuple[Site, Site]:
    return make_sites()


def key_id(block_id: int, index: int, variant: str = "same") -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{block_id} {index} {variant}"))


def put_block(store: OnThread, block_id: int, state: KeyState, variant: str = "same", n_keys: int = 3) -> None:
    """Store a block with its keys and authentication key, as post-processing does, and bring it to a state."""
    rng = np.random.default_rng([block_id, len(variant)])
    with ExitStack() as wiped:
        keys = [
            NewKey(key_id(block_id, i, variant), wiped.enter_context(buffer_of(rng.bytes(32))), {})
            for i in range(n_keys)
        ]
        segment = NewSegment(block_id, wiped.enter_context(buffer_of(rng.bytes(32 + 32 * 8))))
        store.put_block(
            link="north", session=EARLIER, block_id=block_id, digest=variant.encode(), keys=keys, segment=segment
        )
    if state is KeyState.READY:
        store.activate_block(session=EARLIER, block_id=block_id)
    elif state is KeyState.BURNT:
        store.burn_block(session=EARLIER, block_id=block_id, reason="test")


def meet(left: Site, right: Site) -> tuple[Any, Any]:
    """Open a session and say a word each, so that a wrong choice of authentication key would show."""

    def transmitter(channel: TcpClassicalChannel) -> Any:
        peer, session = left.open(channel)
        peer.receive(MessageKind.READY)
        peer.send(Message(MessageKind.BYE))
        return session

    def receiver(channel: TcpClassicalChannel) -> Any:
        peer, session = right.open(channel)
        peer.send(Message(MessageKind.READY))
        peer.receive(MessageKind.BYE)
        return session

    ours, theirs = together(left, transmitter, right, receiver)
    for one in (ours, theirs):
        if isinstance(one, Exception):
            raise one
    return ours, theirs


def usable(store: OnThread) -> tuple[list[str], list[str], list[int]]:
    """What may still be used: READY keys, READY blocks, ACTIVE segments."""
    store.verify_audit()
    assert store.records(state=KeyState.PENDING) == []
    assert store.blocks(state=KeyState.PENDING) == []
    return (
        sorted(record.key_id for record in store.records(state=KeyState.READY)),
        sorted(f"{block.session}/{block.block_id}" for block in store.blocks(state=KeyState.READY)),
        sorted(segment.segment_id for segment in store.segments(state=SegmentState.ACTIVE)),
    )


# --- every combination ----------------------------------------------------------------------------------------------
CASES = [
    (ours, theirs, variant)
    for ours, theirs in itertools.product(HELD, HELD)
    for variant in (("same", "other") if ours and theirs else ("same",))
]


@pytest.mark.parametrize(("ours", "theirs", "variant"), CASES)
def test_both_stores_are_equal_after_the_handshake(
    sites: tuple[Site, Site], ours: KeyState | None, theirs: KeyState | None, variant: str
) -> None:
    transmitter, receiver = sites
    for site in sites:  # a block that both hold stays as it is
        put_block(site.store, 1, KeyState.READY)
    if ours is not None:
        put_block(transmitter.store, 2, ours)
    if theirs is not None:
        put_block(receiver.store, 2, theirs, variant)
    meet(transmitter, receiver)
    kept = variant == "same" and {ours, theirs} <= {KeyState.PENDING, KeyState.READY}
    left = usable(transmitter.store)
    assert left == usable(receiver.store)
    assert left[0] == sorted(key_id(block_id, i) for block_id in ((1, 2) if kept else (1,)) for i in range(3))
    assert left[2] == ([0, 1, 2] if kept else [0, 1])
    for session in meet(transmitter, receiver):  # and there is nothing left to settle
        assert (session.activated, session.burnt) == (0, 0)
    assert usable(transmitter.store) == usable(receiver.store) == left


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product(HELD[1:3], HELD[1:3])))
def test_authentication_goes_on_with_the_key_of_a_settled_block(
    make_sites: Any, ours: KeyState, theirs: KeyState
) -> None:
    transmitter, receiver = make_sites(masks=2)  # HELLO and READY use up the start key
    put_block(transmitter.store, 1, ours)
    put_block(receiver.store, 1, theirs)
    meet(transmitter, receiver)
    assert [segment.state for segment in transmitter.store.segments()] == [SegmentState.SPENT, SegmentState.ACTIVE]


def test_what_was_settled_is_counted(sites: tuple[Site, Site]) -> None:
    transmitter, receiver = sites
    for block_id, ours, theirs in (
        (1, KeyState.PENDING, KeyState.PENDING),
        (2, KeyState.PENDING, KeyState.READY),
        (3, KeyState.READY, KeyState.BURNT),
    ):
        put_block(transmitter.store, block_id, ours)
        put_block(receiver.store, block_id, theirs)
    put_block(receiver.store, 4, KeyState.PENDING)
    ours, theirs = meet(transmitter, receiver)
    assert (ours.activated, ours.burnt) == (2, 1)
    assert (theirs.activated, theirs.burnt) == (1, 1)


def test_blocks_too_old_to_be_told_stay(sites: tuple[Site, Site]) -> None:
    for site in sites:
        for block_id in range(1, RECENT_BLOCKS + 3):
            put_block(site.store, block_id, KeyState.READY, n_keys=0)
    put_block(sites[0].store, RECENT_BLOCKS + 3, KeyState.PENDING, n_keys=0)
    meet(*sites)
    left = usable(sites[0].store)
    assert left == usable(sites[1].store)
    assert len(left[1]) == RECENT_BLOCKS + 2


# --- burnt keys -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("burns", ["transmitter", "receiver"])
@pytest.mark.parametrize("peer_block", [KeyState.PENDING, KeyState.READY])
def test_a_key_burnt_at_one_site_is_burnt_at_the_other(
    sites: tuple[Site, Site], burns: Role, peer_block: KeyState
) -> None:
    one, other = sites if burns == "transmitter" else sites[::-1]
    put_block(one.store, 1, KeyState.READY)
    put_block(other.store, 1, peer_block)
    one.store.burn([key_id(1, 0)], reason="test")
    if peer_block is KeyState.READY:
        one.store.burn([key_id(1, 1)], reason="test")
        other.store.reserve(receiver="app", key_ids=[key_id(1, 1)])
    meet(*sites)
    assert usable(one.store) == usable(other.store)
    assert other.store.record(key_id(1, 0)).state is KeyState.BURNT
    if peer_block is KeyState.READY:
        assert other.store.record(key_id(1, 1)).state is KeyState.BURNT
    assert other.store.record(key_id(1, 2)).state is KeyState.READY


def test_a_delivered_key_stays_delivered(sites: tuple[Site, Site]) -> None:
    transmitter, receiver = sites
    for site in sites:
        put_block(site.store, 1, KeyState.READY)
    receiver.store.reserve(receiver="app", key_ids=[key_id(1, 0)])
    receiver.store.take(key_id(1, 0), receiver="app").close()
    transmitter.store.burn([key_id(1, 0)], reason="test")
    meet(*sites)
    assert receiver.store.record(key_id(1, 0)).state is KeyState.DELIVERED


@pytest.mark.parametrize("hands_over", ["transmitter", "receiver"])
def test_a_key_in_one_token_only_is_burnt_at_the_site_that_was_killed_before_its_own_export(
    sites: tuple[Site, Site], hands_over: Role
) -> None:
    """A key that an application took is another matter: its peer application asks for it later."""
    one, other = sites if hands_over == "transmitter" else sites[::-1]
    for site in sites:
        put_block(site.store, 1, KeyState.READY, n_keys=4)
    for index, receiver in ((0, "pkcs11:qkd"), (1, "pkcs11:qkd"), (2, "app")):
        one.store.reserve(receiver=receiver, key_ids=[key_id(1, index)])
        one.store.take(key_id(1, index), receiver=receiver).close()
    other.store.reserve(receiver="pkcs11:qkd", key_ids=[key_id(1, 1)])
    other.store.take(key_id(1, 1), receiver="pkcs11:qkd").close()
    sessions = meet(one, other) if hands_over == "transmitter" else meet(other, one)[::-1]
    assert [session.burnt for session in sessions] == [0, 1]
    states = [other.store.record(key_id(1, index)).state for index in range(4)]
    assert states == [KeyState.BURNT, KeyState.DELIVERED, KeyState.READY, KeyState.READY]


def test_keys_handed_over_long_ago_are_not_told(sites: tuple[Site, Site]) -> None:
    for site in sites:
        for block_id in range(1, RECENT_BLOCKS + 2):
            put_block(site.store, block_id, KeyState.READY, n_keys=1)
    for block_id in (1, 2):
        sites[0].store.reserve(receiver="pkcs11:qkd", key_ids=[key_id(block_id, 0)])
        sites[0].store.take(key_id(block_id, 0), receiver="pkcs11:qkd").close()
    meet(*sites)
    states = [sites[1].store.record(key_id(block_id, 0)).state for block_id in (1, 2)]
    assert states == [KeyState.READY, KeyState.BURNT]


def test_many_keys_in_the_token_do_not_hide_a_burnt_one(sites: tuple[Site, Site], monkeypatch: Any) -> None:
    monkeypatch.setattr("qkdhw.link.peer.RECENT_GONE", 5)
    for site in sites:
        put_block(site.store, 1, KeyState.READY, n_keys=8)
        taken = [key_id(1, index) for index in range(1, 8)]
        site.store.reserve(receiver="pkcs11:qkd", key_ids=taken)
        for one in taken:
            site.store.take(one, receiver="pkcs11:qkd").close()
    sites[0].store.burn([key_id(1, 0)], reason="test")
    meet(*sites)
    assert [site.store.record(key_id(1, 0)).state for site in sites] == [KeyState.BURNT] * 2


# --- the session ----------------------------------------------------------------------------------------------------
def test_sessions_never_repeat_and_block_numbers_go_on(sites: tuple[Site, Site]) -> None:
    transmitter, receiver = sites
    first = meet(*sites)
    assert first[0].session_id == first[1].session_id
    assert [session.next_block_id for session in first] == [1, 1]
    put_block(transmitter.store, 3, KeyState.PENDING)
    put_block(receiver.store, 7, KeyState.READY)
    second = meet(*sites)
    assert second[0].session_id == second[1].session_id != first[0].session_id
    assert [session.next_block_id for session in second] == [8, 8]
    assert [session.next_block_id for session in meet(*sites)] == [8, 8]


@pytest.mark.parametrize(
    "change",
    [{"link": "south"}, {"eps_sec": 1e-8}, {"qber_limit": 0.1}, {"proof": "lim2014"}, {"block_pulses": 1 << 17}],
)
def test_sites_that_are_configured_differently_refuse_each_other(
    sites: tuple[Site, Site], tmp_path: Path, change: Mapping[str, Any]
) -> None:
    transmitter, receiver = sites
    put_block(transmitter.store, 1, KeyState.PENDING)
    other = site_config("receiver", tmp_path, **change)
    for error in together(transmitter, transmitter.open, receiver, lambda channel: receiver.open(channel, other)):
        assert isinstance(error, PeerProtocolError)
        assert "[protocol]" in error.remedy
    assert [block.state for block in transmitter.store.blocks()] == [KeyState.PENDING]


def hello_of(receiver: Site, **fields: Any) -> Message:
    config = receiver.config
    good = {
        "version": 2, "link": "north", "role": "receiver", "profile": config.protocol.digest(), "blocks": [], "gone": [],
        "done": 0,
    }  # fmt: skip
    return Message(MessageKind.HELLO, good | fields, (bytes(32),))


def answer_with(receiver: Site, message: Message) -> Any:
    """A peer that has the right authentication key and says what it likes."""

    def action(channel: TcpClassicalChannel) -> None:
        peer = receiver.peer(channel)
        _, theirs = peer.receive_raw(MessageKind.HELLO)
        peer.bind(hashlib.sha256(theirs + peer.send(message)).digest())
        peer.receive(MessageKind.READY)
        peer.send(Message(MessageKind.READY))

    return action


BLOCK = [EARLIER, 1, "73616d65", "ready"]


@pytest.mark.parametrize(
    ("fields", "reason", "remedy"),
    [
        ({"version": 1}, "version 1", "same version"),
        ({"link": "south"}, "link 'south'", "[protocol]"),
        ({"role": "transmitter"}, "role 'transmitter'", "transmitter and the other"),
        ({"role": "eve"}, "role 'eve'", "transmitter and the other"),
        ({"profile": ""}, "profile ''", "[protocol]"),
        ({"blocks": [1]}, "list of blocks", ""),
        ({"blocks": [BLOCK[:3]]}, "list of blocks", ""),
        ({"blocks": [[*BLOCK, 1]]}, "list of blocks", ""),
        ({"blocks": [[EARLIER, 0, "73616d65", "ready"]]}, "list of blocks", ""),
        ({"blocks": [[EARLIER, "1", "73616d65", "ready"]]}, "list of blocks", ""),
        ({"blocks": [[EARLIER, True, "73616d65", "ready"]]}, "list of blocks", ""),
        ({"blocks": [[EARLIER, 1, "73616d65", "delivered"]]}, "list of blocks", ""),
        ({"blocks": [[EARLIER, 1, "73616d65", []]]}, "list of blocks", ""),
        ({"gone": ["no UUID"]}, "keys that are gone", ""),
        ({"gone": [7]}, "keys that are gone", ""),
        ({"gone": [None]}, "keys that are gone", ""),
    ],
)
def test_a_hello_that_cannot_be_is_refused_and_settles_nothing(
    sites: tuple[Site, Site], fields: dict[str, Any], reason: str, remedy: str
) -> None:
    transmitter, receiver = sites
    put_block(transmitter.store, 1, KeyState.PENDING)
    error, _ = together(transmitter, transmitter.open, receiver, answer_with(receiver, hello_of(receiver, **fields)))
    assert isinstance(error, PeerProtocolError)
    assert reason in str(error)
    assert remedy in error.remedy
    assert [block.state for block in transmitter.store.blocks()] == [KeyState.PENDING]


def test_a_nonce_of_another_length_or_another_message_is_refused(sites: tuple[Site, Site]) -> None:
    transmitter, receiver = sites
    short = Message(MessageKind.HELLO, hello_of(receiver).fields, (bytes(31),))
    for message, reason in ((short, "nonce has 31"), (Message(MessageKind.READY), "sent READY, expected HELLO")):
        error, _ = together(transmitter, transmitter.open, receiver, answer_with(receiver, message))
        assert isinstance(error, PeerProtocolError)
        assert reason in str(error)


def test_a_peer_that_knows_more_blocks_than_it_tells_settles_as_told(sites: tuple[Site, Site]) -> None:
    """A well-formed HELLO that names the pending block activates it; unknown keys in `gone` do no harm."""
    transmitter, receiver = sites
    put_block(transmitter.store, 1, KeyState.PENDING)
    message = hello_of(receiver, blocks=[BLOCK], gone=[str(uuid.uuid4()), key_id(1, 2)])
    (_, session), _ = together(transmitter, transmitter.open, receiver, answer_with(receiver, message))
    assert (session.activated, session.burnt, session.next_block_id) == (1, 1, 2)
    assert usable(transmitter.store)[0] == sorted([key_id(1, 0), key_id(1, 1)])


@pytest.mark.parametrize("role", ["transmitter", "receiver"])
def test_a_site_file_with_the_other_role_than_the_start_key_is_refused(
    sites: tuple[Site, Site], tmp_path: Path, role: Role
) -> None:
    """Otherwise both sites would send with the same one-time masks."""
    for site in sites:
        site.store.close()
    wrong: Role = "receiver" if role == "transmitter" else "transmitter"
    config = site_config(wrong, tmp_path)
    config = config.model_copy(update={"keys": site_config(role, tmp_path).keys})
    with pytest.raises(ConfigurationError, match=f"role {wrong}.*for the {role}") as raised:
        run_site(config, lambda event: None)
    assert raised.value.remedy

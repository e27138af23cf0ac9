"""One block between two sites in memory: who may say what when, what is refused, and what is left behind."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qkdhw.errors import PeerProtocolError
from qkdhw.model import KeyLength
from qkdhw.postprocessing.messages import SCHEMA, Message, MessageKind, decode_message, encode_message
from qkdhw.postprocessing.receiver_exchange import ReceiverExchange
from qkdhw.postprocessing.session import KEY_BYTES, State, split_length, unpack_bits
from qkdhw.postprocessing.sifting import parse_announcement
from qkdhw.postprocessing.transmitter_exchange import TransmitterExchange
from qkdhw.postprocessing.verification import TAG_BITS
from qkdhw.protocols.registry import load_proof
from two_sites import (
    BLOCK_ID,
    FIRST_SLOT,
    INTENSITY,
    Conversation,
    Exchange,
    exchanges,
    lenient,
    policy_with,
    prepare,
    run,
)

K, S = MessageKind, State

# Written out by hand, not taken from the code: what each role may receive in each state.
ALLOWED = {
    "transmitter": {
        S.START: {K.ANNOUNCE},
        S.AWAIT_TEST_BITS: {K.TEST_BITS, K.ABORT},
        S.AWAIT_CORRECTED: {K.REQUEST, K.CORRECTED, K.ABORT},
        S.AWAIT_VERIFIED: {K.VERIFIED, K.ABORT},
    },
    "receiver": {
        S.AWAIT_SIFT: {K.SIFT, K.ABORT},
        S.AWAIT_SYNDROME: {K.SYNDROME, K.ANSWER, K.ABORT},
        S.AWAIT_VERIFY: {K.VERIFY, K.ABORT},
        S.AWAIT_AMPLIFY: {K.AMPLIFY, K.ABORT},
    },
}
ROLES = tuple(ALLOWED)
REACHED = [(role, state) for role in ROLES for state in (*ALLOWED[role], S.DONE)]
DATA = prepare()
ABORT = Message(K.ABORT, {"check": "test", "reason": "the test says so", "value": None})
SAMPLE: dict[type, Any] = {int: 0, str: "", float: 0.0, list: [], dict: {}}


def any_message(kind: MessageKind) -> Message:
    """Make a well-formed message that says nothing sensible."""
    types, n_parts = SCHEMA[kind]
    message = Message(kind, {name: SAMPLE[of[0]] for name, of in types.items()}, (b"",) * n_parts)
    return decode_message(encode_message(message))


def snapshot(value: Any) -> Any:
    """Everything an exchange holds, comparable, except how long it took."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {name: snapshot(item) for name, item in value.items() if name != "_durations"}
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value]
    if hasattr(value, "__dict__") and not callable(value):
        return snapshot(vars(value))
    return repr(value)


def secret_arrays(exchange: Exchange) -> list[np.ndarray]:
    names = ("_record", "_key", "_bit")
    found = [getattr(exchange, name) for name in names if hasattr(exchange, name)]
    if isinstance(exchange, ReceiverExchange) and exchange._sink is not None:
        found.append(exchange._sink.corrected)
    return found


def assert_over_without_key(exchange: Exchange, check: str) -> None:
    assert exchange.state is S.ABORTED
    assert exchange.outcome is not None
    assert exchange.outcome.secret is None
    assert exchange.outcome.key_ids == []
    assert exchange.outcome.statistics.failed_check == check
    assert exchange.outcome.statistics.failure
    assert exchange.outcome.statistics.n_keys == 0
    assert not any(array.any() for array in secret_arrays(exchange))


# --- the state table ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("role", "state"), REACHED, ids=lambda v: getattr(v, "name", v))
def test_what_the_table_does_not_allow_is_refused_and_changes_nothing(role: str, state: State) -> None:
    conversation = Conversation(exchanges(DATA))
    one = conversation.until(role, state, expecting=state is not S.DONE)
    before = snapshot(vars(one))
    for kind in set(MessageKind) - ALLOWED[role].get(state, set()):
        with pytest.raises(PeerProtocolError, match=f"{kind.name} in state '{state.value}'"):
            one.receive(any_message(kind))
        assert snapshot(vars(one)) == before, kind
    conversation.go_on()
    assert one.outcome is not None
    assert one.outcome.secret is not None


@pytest.mark.parametrize("role", ROLES)
def test_states_of_the_other_role_and_final_states_allow_nothing(role: str) -> None:
    one = Conversation(exchanges(DATA)).of(role)
    for state in set(State) - set(ALLOWED[role]):
        one.state = state
        for kind in MessageKind:
            with pytest.raises(PeerProtocolError, match="in state"):
                one.receive(any_message(kind))
            assert one.state is state


@pytest.mark.parametrize(
    ("role", "state"), [(r, s) for r in ROLES for s in ALLOWED[r]], ids=lambda v: getattr(v, "name", v)
)
def test_every_allowed_message_is_looked_at(role: str, state: State) -> None:
    """No allowed kind is refused by the table: nonsense in it is refused for its contents, and ends the block."""
    for kind in ALLOWED[role][state]:
        one = Conversation(exchanges(DATA)).until(role, state)
        if kind in {K.VERIFIED, K.ABORT}:  # nothing in them can be wrong
            one.receive(any_message(kind))
            continue
        with pytest.raises(PeerProtocolError) as raised:
            one.receive(any_message(kind))
        assert "in state" not in str(raised.value)
        assert_over_without_key(one, "protocol")


@pytest.mark.parametrize(
    ("role", "state"),
    [(r, s) for r in ROLES for s in ALLOWED[r] if s is not S.START],
    ids=lambda v: getattr(v, "name", v),
)
def test_an_abort_of_the_peer_ends_the_block_without_key_in_every_state(role: str, state: State) -> None:
    one = Conversation(exchanges(DATA)).until(role, state)
    before = [array for array in secret_arrays(one) if array.size]
    assert any(array.any() for array in before)
    assert one.receive(ABORT) == []
    assert_over_without_key(one, "test")
    assert one.outcome is not None
    assert one.outcome.statistics.failure == "peer: the test says so"
    assert not any(array.any() for array in before)


@pytest.mark.parametrize(("role", "state"), REACHED, ids=lambda v: getattr(v, "name", v))
def test_a_session_that_breaks_leaves_no_bits(role: str, state: State) -> None:
    one = Conversation(exchanges(DATA)).until(role, state, expecting=False)
    before = secret_arrays(one)
    one.close()
    assert not any(array.any() for array in before)


@pytest.mark.parametrize("role", ROLES)
def test_there_is_no_way_to_a_key_but_through_verified(role: str) -> None:
    """Leave out each message in turn: whoever goes on, nobody ends with a key without VERIFY and VERIFIED."""
    honest = run(*exchanges(DATA))
    for left_out in {message.kind for message in honest} - {K.ABORT, K.AMPLIFY}:
        transmitter, receiver = exchanges(DATA)
        one = transmitter if role == "transmitter" else receiver
        for message in honest:
            if message.kind is left_out:
                continue
            try:
                one.receive(message)
            except PeerProtocolError:
                continue
        needed = {"transmitter": {K.ANNOUNCE, K.TEST_BITS, K.CORRECTED, K.VERIFIED},
                  "receiver": {K.SIFT, K.SYNDROME, K.VERIFY, K.ANSWER}}[role]  # fmt: skip
        if left_out in needed:
            assert one.outcome is None or one.outcome.secret is None, left_out


# --- both sites agree -----------------------------------------------------------------------------------------------
def assert_equal_with_key(transmitter: TransmitterExchange, receiver: ReceiverExchange) -> None:
    ours, theirs = transmitter.outcome, receiver.outcome
    assert ours is not None
    assert theirs is not None
    assert ours.secret is not None
    assert theirs.secret is not None
    with ours.secret as left, theirs.secret as right:
        assert left == right
        assert len(left) == ours.statistics.authentication_bytes + KEY_BYTES * ours.statistics.n_keys
        assert len(set(bytes(left))) > 8  # bits, not zeros
    assert ours.key_ids == theirs.key_ids
    assert len(set(ours.key_ids)) == len(ours.key_ids) == ours.statistics.n_keys > 0
    assert replace(ours.statistics, duration_s={}) == replace(theirs.statistics, duration_s={})
    for exchange in (transmitter, receiver):
        assert exchange.state is S.DONE
        assert not any(array.any() for array in secret_arrays(exchange))


@pytest.mark.parametrize("qber", [0.0, 0.005, 0.03])
def test_both_sites_end_with_the_same_key_ids_and_statistics(qber: float) -> None:
    transmitter, receiver = exchanges(prepare(seed=3, n_slots=120_000, qber=qber))
    run(transmitter, receiver)
    assert_equal_with_key(transmitter, receiver)


def test_a_key_under_the_rigorous_proof() -> None:
    data = prepare(n_slots=1_000_000, qber=0.015, key_basis_share=0.7)
    transmitter, receiver = exchanges(data, policy_with(load_proof("rigorous"), authentication_bytes=128))
    run(transmitter, receiver)
    assert_equal_with_key(transmitter, receiver)
    assert transmitter.statistics.key_length is not None
    assert transmitter.statistics.key_length.rigorous


def test_other_randomness_gives_another_key_of_the_same_block() -> None:
    pairs = [exchanges(DATA, seed=seed) for seed in (1, 2)]
    for pair in pairs:
        run(*pair)
    one, two = (pair[0].outcome for pair in pairs)
    assert one is not None
    assert two is not None
    assert one.secret is not None
    assert one.secret != two.secret
    assert set(one.key_ids).isdisjoint(two.key_ids)


def test_the_statistics_count_the_planted_data_and_everything_published() -> None:
    conversation = Conversation(exchanges(DATA))
    conversation.go_on()
    statistics = conversation.transmitter.statistics
    record, slot = DATA.record, DATA.slot - FIRST_SLOT
    sent_basis, level = record[slot] >> 1 & 1, record[slot] >> 2
    wrong = (record[slot] & 1) != DATA.bit
    key, test = ((sent_basis == DATA.basis) & (DATA.basis == basis) for basis in (0, 1))
    assert (statistics.block_id, statistics.first_slot, statistics.n_slots) == (BLOCK_ID, FIRST_SLOT, record.size)
    assert statistics.n_detections == slot.size
    assert (statistics.n_sifted_key, statistics.n_sifted_test) == (key.sum(), test.sum())
    assert statistics.qber_test == wrong[test].mean()
    assert statistics.qber_key == wrong[key].mean()
    counts = statistics.counts
    assert counts is not None
    assert (counts.mean_photon_number, counts.intensity_probability) == INTENSITY
    for found, chosen in ((counts.n_key, key), (counts.n_test, test), (counts.m_test, test & wrong)):
        assert found == tuple(int(np.sum(chosen & (level == k))) for k in range(3))
    said = {kind: [m for m in conversation.said if m.kind is kind] for kind in MessageKind}
    (corrected,) = said[K.CORRECTED]
    n_errors_bits = int(key.sum()).bit_length()
    assert 2**n_errors_bits > key.sum()
    assert statistics.leak_bits == corrected.fields["leak_bits"] + n_errors_bits + TAG_BITS
    assert counts.leak_bits == statistics.leak_bits
    # What went over the channel about the key, byte for byte: nothing may be published and not counted.
    syndromes = sum(len(m.parts[0]) for m in said[K.SYNDROME] + said[K.ANSWER])
    requests = sum(len(m.parts[0]) - 2 for m in said[K.REQUEST])
    headers = 10 * len(said[K.SYNDROME]) + 2 * len(said[K.ANSWER])
    assert 8 * (syndromes + requests - headers) - 16 * len(conversation.said) <= corrected.fields["leak_bits"]
    assert statistics.key_length == lenient(counts, eps_sec=1e-9, eps_cor=1e-15)
    assert statistics.n_keys == split_length(statistics.key_length.length_bits, 64)
    assert {"announce", "test_bits", "corrected", "amplification"} <= set(statistics.duration_s)


def test_how_a_length_is_split() -> None:
    assert [split_length(bits, 64) for bits in (0, 511, 512, 767, 768, 1024)] == [0, 0, 0, 0, 1, 2]


# --- checks that stop a block ---------------------------------------------------------------------------------------
def test_too_many_errors_stop_the_block_at_the_receiver_and_tell_the_transmitter() -> None:
    transmitter, receiver = exchanges(prepare(qber=0.25))
    said = run(transmitter, receiver)
    assert [message.kind for message in said] == [K.ANNOUNCE, K.SIFT, K.ABORT]
    assert abs(said[-1].fields["value"] - 0.25) < 0.05
    for exchange in (transmitter, receiver):
        assert_over_without_key(exchange, "qber")
    assert receiver.statistics.qber_test == said[-1].fields["value"]


def test_the_transmitter_sees_too_many_errors_itself() -> None:
    transmitter, receiver = exchanges(prepare(n_slots=240_000, qber=0.2), receiver_policy=policy_with(qber_limit=0.49))
    said = run(transmitter, receiver)
    assert [message.kind for message in said] == [K.ANNOUNCE, K.SIFT, K.TEST_BITS, K.ABORT]
    for exchange in (transmitter, receiver):
        assert_over_without_key(exchange, "qber")


def changed(kind: MessageKind, part: int, change: Callable[[bytes], bytes]) -> Callable[[Message], Message]:
    def apply(message: Message) -> Message:
        if message.kind is not kind:
            return message
        parts = list(message.parts)
        parts[part] = change(parts[part])
        return replace(message, parts=tuple(parts))

    return apply


def flip_bit(data: bytes, place: int = 0) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :]


@pytest.mark.parametrize(("kind", "part"), [(K.VERIFY, 0), (K.VERIFY, 1)])
def test_strings_or_tags_that_differ_stop_the_block(kind: MessageKind, part: int) -> None:
    transmitter, receiver = exchanges(DATA)
    said = run(transmitter, receiver, changed(kind, part, flip_bit))
    assert [message.kind for message in said][-2:] == [K.VERIFY, K.ABORT]
    for exchange in (transmitter, receiver):
        assert_over_without_key(exchange, "verification")


def test_a_wrong_correction_is_found_by_verification() -> None:
    """The receiver's string is changed after reconciliation, as a decoder's mistake would."""
    conversation = Conversation(exchanges(DATA))
    receiver = conversation.until("receiver", S.AWAIT_VERIFY)
    receiver._key[7] ^= 1
    conversation.go_on()
    for exchange in (conversation.transmitter, conversation.receiver):
        assert_over_without_key(exchange, "verification")


def test_a_corrupted_syndrome_never_gives_a_key() -> None:
    """The frame may be sent whole in the end, decode wrongly, or be refused; whatever happens, the sites stay equal."""
    for place in range(10, 50, 6):
        transmitter, receiver = exchanges(DATA)
        try:
            run(transmitter, receiver, changed(K.SYNDROME, 0, lambda data, at=place: flip_bit(data, at)))
        except PeerProtocolError:
            assert receiver.outcome is None or receiver.outcome.secret is None
            continue
        assert transmitter.outcome is not None
        assert receiver.outcome is not None
        if transmitter.outcome.secret is None:
            assert transmitter.statistics.failed_check in {"verification", "key-length"}
            assert transmitter.statistics.failed_check == receiver.statistics.failed_check
            assert receiver.outcome.secret is None
        else:
            assert_equal_with_key(transmitter, receiver)


def no_key(counts: Any, *, eps_sec: float, eps_cor: float) -> KeyLength:
    return KeyLength(0, "none", True, eps_sec, eps_cor, {}, reason="the test allows none")


def key_before_leak(counts: Any, *, eps_sec: float, eps_cor: float) -> KeyLength:
    """Allow a key as long as only the Shannon limit is leaked."""
    enough = counts.leak_bits < 0.2 * sum(counts.n_key) and not float(counts.leak_bits).is_integer()
    return KeyLength(1024 if enough else 0, "before leak", True, eps_sec, eps_cor, {}, "" if enough else "leaked")


def test_no_key_length_stops_the_block_before_anything_is_published() -> None:
    transmitter, receiver = exchanges(DATA, policy_with(no_key))
    said = run(transmitter, receiver)
    assert [message.kind for message in said] == [K.ANNOUNCE, K.SIFT, K.ABORT]
    for exchange in (transmitter, receiver):
        assert_over_without_key(exchange, "key-length")
        assert "the test allows none" in exchange.statistics.failure


def test_a_leak_that_leaves_no_key_stops_the_block_at_the_end() -> None:
    transmitter, receiver = exchanges(DATA, policy_with(key_before_leak))
    said = run(transmitter, receiver)
    assert [message.kind for message in said][-2:] == [K.VERIFIED, K.ABORT]
    for exchange in (transmitter, receiver):
        assert_over_without_key(exchange, "key-length")


# --- contents that are refused --------------------------------------------------------------------------------------
def other_field(kind: MessageKind, name: str, change: Callable[[int], int]) -> Callable[[Message], Message]:
    def apply(message: Message) -> Message:
        if message.kind is not kind:
            return message
        return replace(message, fields=dict(message.fields) | {name: change(message.fields[name])})

    return apply


def unpadded(data: bytes, n_bits: int) -> bytes:
    assert n_bits % 8, "choose data with padding"
    return data[:-1] + bytes([data[-1] | 1])


def same_key_ids(data: bytes) -> bytes:
    return data[:16] * (len(data) // 16)


def cut(data: bytes) -> bytes:
    return data[:-1]


def longer(data: bytes) -> bytes:
    return data + b"\0"


MANY_KEYS = prepare(seed=4, n_slots=120_000)
N_TEST = int(np.sum((MANY_KEYS.record[MANY_KEYS.slot - FIRST_SLOT] >> 1 & 1) & MANY_KEYS.basis))
REFUSED = {
    "another block": (other_field(K.ANNOUNCE, "block_id", lambda n: n + 1), "announced block"),
    "another first slot": (other_field(K.ANNOUNCE, "first_slot", lambda n: n - 1), "announced block"),
    "another number of slots": (other_field(K.ANNOUNCE, "n_slots", lambda n: n + 1), "announced block"),
    "announcement cut": (changed(K.ANNOUNCE, 0, cut), "bad announcement"),
    "announcement longer": (changed(K.ANNOUNCE, 0, longer), "bad announcement"),
    "reply cut": (changed(K.SIFT, 0, cut), "sifting reply"),
    "reply longer": (changed(K.SIFT, 0, longer), "sifting reply"),
    "undefined reply": (changed(K.SIFT, 0, lambda data: b"\xff" + data[1:]), "undefined"),
    "test bits of the transmitter cut": (changed(K.SIFT, 1, cut), "bytes from the peer"),
    "padding of the transmitter": (changed(K.SIFT, 1, lambda data: unpadded(data, N_TEST)), "padding"),
    "test bits of the receiver cut": (changed(K.TEST_BITS, 0, cut), "bytes from the peer"),
    "test bits of the receiver longer": (changed(K.TEST_BITS, 0, longer), "bytes from the peer"),
    "padding of the receiver": (changed(K.TEST_BITS, 0, lambda data: unpadded(data, N_TEST)), "padding"),
    "syndrome cut": (changed(K.SYNDROME, 0, cut), "peer"),
    "syndrome longer": (changed(K.SYNDROME, 0, longer), "peer"),
    "syndrome of other frames": (changed(K.SYNDROME, 0, flip_bit), "other frames"),
    "leak too small": (other_field(K.CORRECTED, "leak_bits", lambda n: n - 1), "leaked bits"),
    "leak too large": (other_field(K.CORRECTED, "leak_bits", lambda n: n + 1), "leaked bits"),
    "fewer than no errors": (other_field(K.CORRECTED, "n_errors", lambda n: -1), "corrected -1"),
    "more errors than bits": (other_field(K.CORRECTED, "n_errors", lambda n: 10**9), "corrected 10"),
    "verification seed cut": (changed(K.VERIFY, 0, cut), "verification seed"),
    "verification seed longer": (changed(K.VERIFY, 0, longer), "verification seed"),
    "another length": (other_field(K.AMPLIFY, "length_bits", lambda n: n + 8), "another key length"),
    "Toeplitz seed cut": (changed(K.AMPLIFY, 0, cut), "Toeplitz seed"),
    "Toeplitz seed longer": (changed(K.AMPLIFY, 0, longer), "Toeplitz seed"),
    "a key ID missing": (changed(K.AMPLIFY, 1, lambda data: data[:-16]), "another key length"),
    "a key ID too many": (changed(K.AMPLIFY, 1, lambda data: data + bytes(16)), "another key length"),
    "equal key IDs": (changed(K.AMPLIFY, 1, same_key_ids), "same key ID"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_contents_are_refused_and_leave_no_bits(name: str) -> None:
    change, reason = REFUSED[name]
    conversation = Conversation(exchanges(MANY_KEYS))
    with pytest.raises(PeerProtocolError, match=reason):
        conversation.go_on(change=change)
    over = [one for one in (conversation.transmitter, conversation.receiver) if one.state is S.ABORTED]
    assert len(over) == 1
    assert_over_without_key(over[0], "protocol")
    with pytest.raises(PeerProtocolError, match="in state 'aborted'"):
        over[0].receive(conversation.said[-1])


@pytest.mark.parametrize("tag", [b"", b"\0", bytes(16)])
def test_a_tag_of_another_length_is_a_tag_that_differs(tag: bytes) -> None:
    transmitter, receiver = exchanges(DATA)
    run(transmitter, receiver, changed(K.VERIFY, 1, lambda _: tag))
    assert_over_without_key(receiver, "verification")


def test_an_intensity_that_was_not_announced_is_refused() -> None:
    transmitter, receiver = exchanges(DATA)
    receiver._mean_photon_number = INTENSITY[0][:2]
    (sift,) = transmitter.receive(receiver.announcement())
    kept = np.flatnonzero(np.frombuffer(sift.parts[0], np.uint8))[0]
    reply = bytearray(sift.parts[0])
    reply[kept] = 1 + 2 + 4 * ((reply[kept] - 1) // 4)  # the third of two
    sift = replace(sift, parts=(bytes(reply), sift.parts[1]))
    with pytest.raises(PeerProtocolError, match="intensity"):
        receiver.receive(sift)
    assert_over_without_key(receiver, "protocol")


def test_nothing_finer_than_slots_and_no_bit_is_announced() -> None:
    _, receiver = exchanges(DATA)
    message = receiver.announcement()
    slot, basis = parse_announcement(message.parts[0])
    assert slot.tolist() == DATA.slot.tolist()
    assert basis.tolist() == DATA.basis.tolist()
    _, other = exchanges(replace(DATA, bit=1 - DATA.bit))
    assert encode_message(other.announcement()) == encode_message(message)


def test_unpacking_is_strict() -> None:
    assert unpack_bits(b"", 0).size == 0
    assert unpack_bits(b"\xa0", 3).tolist() == [1, 0, 1]
    for data, n_bits in ((b"\0", 0), (b"", 1), (b"\x10", 3), (struct.pack(">H", 1), 9)):
        with pytest.raises(PeerProtocolError):
            unpack_bits(data, n_bits)

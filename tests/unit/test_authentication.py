"""Only the peer's next frame, unchanged, is opened; everything else is an AuthenticationError."""

import hashlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw.errors import AuthenticationError, AuthenticationKeyExhaustedError
from qkdhw.postprocessing.authentication import Authenticator, Role, forgery_eps
from qkdhw.secret import SecretBuffer

N_MASKS = 40


@dataclass(frozen=True)
class Ref:
    segment_id: int
    index: int


@dataclass
class MemoryAccount:
    """An account in memory: key from a seed, each mask drawn once and accepted once."""

    seed: bytes = b"start key"
    one_key_for_both_directions: bool = False
    drawn: int = 0
    accepted: set[tuple[int, int]] = field(default_factory=set)

    def draw_send(self) -> Ref:
        if self.drawn == N_MASKS:
            raise AuthenticationKeyExhaustedError("no mask left")
        self.drawn += 1
        return Ref(7, self.drawn - 1)

    def check_receive(self, segment_id: int, index: int) -> None:
        if segment_id != 7 or index >= N_MASKS or (segment_id, index) in self.accepted:
            raise AuthenticationError("mask unknown or used before")

    def accept_receive(self, segment_id: int, index: int) -> None:
        self.check_receive(segment_id, index)
        self.accepted.add((segment_id, index))

    def mask_and_hash_key(self, segment_id: int, index: int, direction: Role) -> tuple[SecretBuffer, SecretBuffer]:
        buffers = SecretBuffer(16), SecretBuffer(16)
        for buffer, label in zip(buffers, (f"mask {segment_id} {index}", "hash key"), strict=True):
            sender = "" if self.one_key_for_both_directions else direction
            buffer.copy_from(hashlib.sha256(self.seed + sender.encode() + label.encode()).digest()[:16])
        return buffers


def pair(session_id: bytes = b"session") -> tuple[Authenticator, Authenticator]:
    both = Authenticator(MemoryAccount(), "transmitter"), Authenticator(MemoryAccount(), "receiver")
    for one in both:
        one.bind(session_id)
    return both


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=60)), max_size=20))
@settings(max_examples=40, deadline=None)
def test_messages_pass_in_both_directions(messages: list[tuple[bool, bytes]]) -> None:
    transmitter, receiver = pair()
    for forward, message in messages:
        sender, opener = (transmitter, receiver) if forward else (receiver, transmitter)
        frame = sender.seal(message)
        assert len(frame) == 24 + len(message)
        assert opener.open(frame) == message


def test_every_changed_bit_is_seen() -> None:
    frame = pair()[0].seal(b"sifting reply of one block")
    for position in range(len(frame)):
        for bit in range(8):
            changed = bytearray(frame)
            changed[position] ^= 1 << bit
            with pytest.raises(AuthenticationError):
                pair()[1].open(bytes(changed))


def test_every_other_length_is_seen() -> None:
    frame = pair()[0].seal(b"message\0")
    for length in range(len(frame)):
        with pytest.raises(AuthenticationError):
            pair()[1].open(frame[:length])
    with pytest.raises(AuthenticationError):
        pair()[1].open(frame + b"\0")


def test_replay_gap_reorder_and_reflection_are_seen() -> None:
    transmitter, receiver = pair()
    first, second = transmitter.seal(b"first"), transmitter.seal(b"second")
    assert receiver.open(first) == b"first"
    with pytest.raises(AuthenticationError):
        receiver.open(first)
    with pytest.raises(AuthenticationError):
        pair()[1].open(second)
    with pytest.raises(AuthenticationError):
        transmitter.open(first)


def test_reflection_is_seen_even_if_both_directions_had_one_key() -> None:
    transmitter = Authenticator(MemoryAccount(one_key_for_both_directions=True), "transmitter")
    frame = transmitter.seal(b"message")
    with pytest.raises(AuthenticationError):
        transmitter.open(frame)


def test_mask_of_an_opened_message_is_accepted_for_good() -> None:
    account = MemoryAccount()
    receiver = Authenticator(account, "receiver")
    receiver.open(Authenticator(MemoryAccount(), "transmitter").seal(b"message"))
    assert account.accepted == {(7, 0)}


def test_repeated_message_with_fresh_masks_has_its_place() -> None:
    transmitter, receiver = pair()
    frames = [transmitter.seal(b"again") for _ in range(2)]
    assert len(set(frames)) == 2
    assert [receiver.open(frame) for frame in frames] == [b"again", b"again"]


def test_frames_of_another_session_or_another_key_are_refused() -> None:
    frame = pair(b"session 1")[0].seal(b"message")
    with pytest.raises(AuthenticationError):
        pair(b"session 2")[1].open(frame)
    stranger = Authenticator(MemoryAccount(b"another key"), "receiver")
    stranger.bind(b"session 1")
    with pytest.raises(AuthenticationError):
        stranger.open(frame)


def test_session_is_agreed_on_by_sealed_messages() -> None:
    transmitter, receiver = Authenticator(MemoryAccount(), "transmitter"), Authenticator(MemoryAccount(), "receiver")
    assert receiver.open(transmitter.seal(b"hello")) == b"hello"
    assert transmitter.open(receiver.seal(b"hello")) == b"hello"
    for one in (transmitter, receiver):
        one.bind(b"agreed")
    assert receiver.open(transmitter.seal(b"next")) == b"next"


def test_nothing_is_opened_after_a_failure() -> None:
    transmitter, receiver = pair()
    frame = transmitter.seal(b"message")
    with pytest.raises(AuthenticationError):
        receiver.open(b"short")
    with pytest.raises(AuthenticationError, match="earlier"):
        receiver.open(frame)


def test_refused_message_does_not_count_as_accepted() -> None:
    account = MemoryAccount()
    receiver = Authenticator(account, "receiver")
    with pytest.raises(AuthenticationError):
        receiver.open(b"\0\0\0\7" + bytes(30))
    assert account.accepted == set()


def test_account_runs_dry() -> None:
    transmitter, _ = pair()
    for _ in range(N_MASKS):
        transmitter.seal(b"")
    with pytest.raises(AuthenticationKeyExhaustedError):
        transmitter.seal(b"")


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="role"):
        Authenticator(MemoryAccount(), "alice")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="session ID"):
        pair()[0].bind(bytes(65536))


def test_forgery_bound_of_a_mebibyte() -> None:
    assert forgery_eps(1 << 20) == (65536 + 3 + 1) / 2**128

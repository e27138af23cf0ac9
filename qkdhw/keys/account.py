"""The key account for Wegman-Carter authentication: one-time masks and hash keys, no mask ever used twice.

A segment of S bytes is: bytes 0-15 the hash key from transmitter to receiver, 16-31 the hash key from receiver to
transmitter, then two equal halves of 16-byte one-time masks, first from transmitter to receiver, then back. Both
sites hold the same segments; the transmitter site sends with one half, the receiver site with the other.

Source: M. N. Wegman and J. L. Carter, J. Comput. Syst. Sci. 22, 265 (1981), section 4 (one hash function, a fresh
one-time pad for each tag).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from qkdhw.errors import AuthenticationError, AuthenticationKeyExhaustedError, KeyStateError, KeyStoreError
from qkdhw.keys import segments
from qkdhw.keys.segments import (
    HASH_KEY_BYTES,
    MASK_BYTES,
    START_SEGMENT_ID,
    NewSegment,
    SegmentRecord,
    SegmentState,
)
from qkdhw.keys.store import SqliteKeyStore
from qkdhw.secret import SecretBuffer

Role = Literal["transmitter", "receiver"]

# Masks set aside by one durable commit. A crash burns what is left of them: at most 32 x 16 bytes.
CHUNK_MASKS = 32


@dataclass(frozen=True, slots=True)
class MaskRef:
    """Which mask: it travels with the message in the clear.

    Attributes:
        segment_id: Segment, the same at both sites.
        index: Mask in the sender's half of it, from 0.
    """

    segment_id: int
    index: int


def install_start_key(store: SqliteKeyStore, key: SecretBuffer, *, role: Role) -> None:
    """Make the pre-shared start key the first segment of a store's account, and fix the site's role.

    Args:
        store: A store without an account.
        key: At least 64 bytes, a multiple of 32; the caller closes it and destroys its other copies.
        role: "transmitter" at the transmitter's site, "receiver" at the receiver's.

    Raises:
        ValueError: If the key's length is wrong.
        KeyStoreError: If there is an account already, or the store fails.
    """
    if store.setting("role") is not None:
        raise KeyStoreError("the store has a start key already", remedy="A start key is installed once.")
    start = NewSegment(START_SEGMENT_ID, key)
    with store.database.transaction() as connection:
        change = segments.insert_segment(connection, store.wrapping, start, state=SegmentState.ACTIVE, block=None)
        connection.execute("INSERT INTO setting (name, value) VALUES ('role', ?)", (role,))
        store.audit_changes(connection, [change])


class AuthenticationAccount:
    """Deals out the authentication key of one site; a context manager around an open store.

    Sending: `draw_send`, then `mask_and_hash_key` once for it. Receiving: `check_receive`, `mask_and_hash_key`,
    check the tag, then `accept_receive`. Both ends are durable: neither a mask to send with nor a received message is
    used a second time, not even after kill -9.

    Args:
        store: Open with its KEK, for writing; stays open as long as the account.

    Raises:
        KeyStoreError: If the store has no start key.
    """

    def __init__(self, store: SqliteKeyStore) -> None:
        role = store.setting("role")
        if role not in {"transmitter", "receiver"}:
            raise KeyStoreError(
                f"key store {store.database.path} has no start key", remedy="Install the pre-shared start key."
            )
        self.role: Role = role
        self._store = store
        self._unwrapped: dict[int, SecretBuffer] = {}
        self._chunk_segment = -1
        self._chunk_next = 0
        self._chunk_end = 0
        self._drawn: set[MaskRef] = set()

    # --- sending ----------------------------------------------------------------------------------------------
    def draw_send(self) -> MaskRef:
        """Return a mask that was never drawn before, not even by a process that was killed.

        Raises:
            AuthenticationKeyExhaustedError: If no active segment has one left.
            KeyStoreError: If the store fails.
        """
        if self._chunk_next == self._chunk_end or self._chunk_segment not in self._active():
            self._reserve_chunk()
        ref = MaskRef(self._chunk_segment, self._chunk_next)
        self._chunk_next += 1
        self._drawn.add(ref)
        return ref

    def _reserve_chunk(self) -> None:
        # Read and moved on in one transaction: no mask twice, even if the writer's lock was got around.
        with self._store.database.transaction() as connection:
            for segment in segments.read_segments(connection, SegmentState.ACTIVE):
                begin, end = segment.send_reserved, min(segment.send_reserved + CHUNK_MASKS, segment.masks)
                if begin < end:
                    connection.execute(
                        "UPDATE segment SET send_reserved = ? WHERE segment_id = ?", (end, segment.segment_id)
                    )
                    break
            else:
                raise AuthenticationKeyExhaustedError(
                    "no authentication key is left to send with",
                    remedy="Make new key stores with a new, longer start key at both sites.",
                )
        self._chunk_segment = segment.segment_id
        self._chunk_next, self._chunk_end = begin, end

    # --- receiving --------------------------------------------------------------------------------------------
    def check_receive(self, segment_id: int, index: int) -> None:
        """Refuse a mask that was accepted before, is out of order, or does not exist.

        Raises:
            AuthenticationError: If a message with this mask must not be accepted.
        """
        active = self._active()
        segment = active.get(segment_id)
        if segment is None or not 0 <= index < segment.masks:
            raise AuthenticationError(
                f"a message names authentication mask {segment_id}/{index}, which is not in use here",
                remedy="Compare the blocks of both sites; if they agree, the message is forged.",
            )
        if index <= segment.receive_floor or segment.sequence < _newest_received(active):
            raise AuthenticationError(
                f"a message names authentication mask {segment_id}/{index}, which was used before",
                remedy="The message is a repetition or out of order; end the session and start a new one.",
            )

    def accept_receive(self, segment_id: int, index: int) -> None:
        """Note durably that a message with this mask had a right tag: no mask up to it is accepted any more.

        Segments that are used up in both directions are erased.

        Raises:
            AuthenticationError: As `check_receive`.
            KeyStoreError: If the store fails; then the message must not be acted on.
        """
        self.check_receive(segment_id, index)
        with self._store.database.transaction() as connection:
            connection.execute("UPDATE segment SET receive_floor = ? WHERE segment_id = ?", (index, segment_id))
            spent = self._spent_segments()
            changes = [segments.set_segment_state(connection, over, SegmentState.SPENT, "spend", "") for over in spent]
            self._store.audit_changes(connection, changes)
        for over in spent:
            if over in self._unwrapped:
                self._unwrapped.pop(over).close()

    def _spent_segments(self) -> list[int]:
        active = self._active()
        in_use = {ref.segment_id for ref in self._drawn}
        if self._chunk_next < self._chunk_end:
            in_use.add(self._chunk_segment)
        return [
            segment.segment_id
            for segment in active.values()
            if segment.send_reserved == segment.masks
            and (segment.receive_floor == segment.masks - 1 or segment.sequence < _newest_received(active))
            and segment.segment_id not in in_use
        ]

    # --- key --------------------------------------------------------------------------------------------------
    def mask_and_hash_key(self, segment_id: int, index: int, direction: Role) -> tuple[SecretBuffer, SecretBuffer]:
        """Return the one-time mask and the hash key, 16 bytes each; the caller closes both.

        Args:
            segment_id: From `draw_send`, or from a received message.
            index: Likewise.
            direction: Which site sends: once for a drawn mask of this site's role, until the mask is accepted for
                the peer's.

        Raises:
            KeyStateError: If a mask for sending was not drawn here or was handed out before.
            AuthenticationError: If a mask for receiving must not be accepted.
        """
        ref = MaskRef(segment_id, index)
        if direction == self.role:
            if ref not in self._drawn or ref.segment_id not in self._active():
                raise KeyStateError(
                    f"authentication mask {ref.segment_id}/{ref.index} was not drawn, was used before or is burnt",
                    remedy="Draw a fresh mask for every message.",
                )
        else:
            self.check_receive(ref.segment_id, ref.index)
        forward = direction == "transmitter"
        key = self._unwrap(ref.segment_id)
        half = (len(key) - 2 * HASH_KEY_BYTES) // 2
        start = 2 * HASH_KEY_BYTES + (0 if forward else half) + MASK_BYTES * ref.index
        mask = key.slice_copy(start, MASK_BYTES)
        hash_key = key.slice_copy(0 if forward else HASH_KEY_BYTES, HASH_KEY_BYTES)
        self._drawn.discard(ref)
        return mask, hash_key

    def _unwrap(self, segment_id: int) -> SecretBuffer:
        if segment_id not in self._unwrapped:
            with self._store.database.reading() as connection:
                blob, size = connection.execute(
                    "SELECT wrapped, size_bytes FROM segment WHERE segment_id = ?", (segment_id,)
                ).fetchone()
            self._unwrapped[segment_id] = self._store.wrapping.unwrap(
                blob, segments.segment_associated_data(segment_id, size)
            )
        return self._unwrapped[segment_id]

    # --- how much is left -------------------------------------------------------------------------------------
    def available_send_masks(self) -> int:
        """Count the masks that can still be drawn from active segments."""
        active = self._active()
        left = sum(segment.masks - segment.send_reserved for segment in active.values())
        return left + (self._chunk_end - self._chunk_next if self._chunk_segment in active else 0)

    def available_receive_masks(self) -> int:
        """Count the masks of active segments that a message of the peer may still name."""
        active = self._active()
        newest = _newest_received(active)
        return sum(s.masks - 1 - s.receive_floor for s in active.values() if s.sequence >= newest)

    def _active(self) -> dict[int, SegmentRecord]:
        return {s.segment_id: s for s in self._store.segments(state=SegmentState.ACTIVE)}

    def close(self) -> None:
        """Wipe the unwrapped segments; the store stays open. Closing twice is allowed."""
        while self._unwrapped:
            self._unwrapped.popitem()[1].close()
        self._chunk_next = self._chunk_end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _newest_received(active: dict[int, SegmentRecord]) -> int:
    """Both sites use segments in the same order: once one was used, those before it are over."""
    return max((s.sequence for s in active.values() if s.receive_floor >= 0), default=0)

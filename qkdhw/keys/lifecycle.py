"""Which lifecycle transitions of a key are allowed: one table, and nothing is allowed that is not in it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, unique
from types import MappingProxyType

from qkdhw.errors import KeyAlreadyTakenError, KeyStateError
from qkdhw.model import KeyState


@unique
class KeyEvent(StrEnum):
    """What can happen to a key; the names stand in the audit trail."""

    ACTIVATE = "activate"
    RESERVE = "reserve"
    DELIVER = "deliver"
    BURN = "burn"


TRANSITIONS: Mapping[tuple[KeyState, KeyEvent], KeyState] = MappingProxyType(
    {
        (KeyState.PENDING, KeyEvent.ACTIVATE): KeyState.READY,
        (KeyState.PENDING, KeyEvent.BURN): KeyState.BURNT,
        (KeyState.READY, KeyEvent.RESERVE): KeyState.RESERVED,
        (KeyState.READY, KeyEvent.BURN): KeyState.BURNT,
        (KeyState.RESERVED, KeyEvent.DELIVER): KeyState.DELIVERED,
        (KeyState.RESERVED, KeyEvent.BURN): KeyState.BURNT,
    }
)

TERMINAL = frozenset({KeyState.DELIVERED, KeyState.BURNT})


def next_state(state: KeyState, event: KeyEvent, *, key_id: str) -> KeyState:
    """Return the state that follows.

    Raises:
        KeyAlreadyTakenError: If the key is delivered or burnt.
        KeyStateError: If the table has no such transition.
    """
    following = TRANSITIONS.get((state, event))
    if following is not None:
        return following
    if state in TERMINAL:
        raise KeyAlreadyTakenError(
            f"key {key_id} is {state}; {event} is not possible",
            key_id=key_id,
            state=str(state),
            remedy="Ask for another key; this one is never given out again.",
        )
    raise KeyStateError(
        f"key {key_id} is {state}; {event} is not possible",
        remedy="See the table of states in docs/reference/key-store.md.",
    )

"""Every pair of state and event is either in the table below or refused with the right error."""

import itertools

import pytest

from qkdhw.errors import KeyAlreadyTakenError, KeyStateError
from qkdhw.keys.lifecycle import TRANSITIONS, KeyEvent, next_state
from qkdhw.model import KeyState

ALLOWED = {
    ("pending", "activate"): "ready",
    ("pending", "burn"): "burnt",
    ("ready", "reserve"): "reserved",
    ("ready", "burn"): "burnt",
    ("reserved", "deliver"): "delivered",
    ("reserved", "burn"): "burnt",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(KeyState, KeyEvent)))
def test_every_pair(state, event):
    if (state, event) in ALLOWED:
        assert next_state(state, event, key_id="k") == ALLOWED[state, event]
        return
    expected = KeyAlreadyTakenError if state in {"delivered", "burnt"} else KeyStateError
    with pytest.raises(expected) as caught:
        next_state(state, event, key_id="k")
    assert caught.value.remedy


def test_a_key_never_comes_back():
    order = [KeyState.PENDING, KeyState.READY, KeyState.RESERVED, KeyState.DELIVERED, KeyState.BURNT]
    assert all(order.index(after) > order.index(before) for (before, _), after in TRANSITIONS.items())

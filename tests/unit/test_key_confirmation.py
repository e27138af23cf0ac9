"""Key confirmation as a state table, with a MAC computed in the test."""

from __future__ import annotations

import hmac
import uuid

import pytest

from qkdhw.errors import KeyConfirmationError
from qkdhw.export.confirmation import ConfirmationRole, KeyConfirmation

KEY_ID = "bc490419-7d60-487f-adc1-4ddcc177c139"


def side(role, nonce, key=b"k" * 32):
    def mac(key_id, data):
        assert key_id == KEY_ID
        return hmac.digest(key, data, "sha256")

    return KeyConfirmation(key_id=KEY_ID, role=role, nonce=nonce, mac=mac)


def test_message_is_label_id_role_and_nonces_in_fixed_order():
    tag = side(ConfirmationRole.RECEIVER, b"r" * 32).make_tag(b"t" * 32)
    message = b"qkdhw-confirm|1|" + uuid.UUID(KEY_ID).bytes + b"R" + b"t" * 32 + b"r" * 32
    assert tag == hmac.digest(b"k" * 32, message, "sha256")


def test_reflected_tag_is_refused():
    one = side(ConfirmationRole.TRANSMITTER, b"t" * 32)
    tag = one.make_tag(b"t" * 32)
    with pytest.raises(KeyConfirmationError):
        one.verify_tag(tag)


def test_two_sides_of_one_role_are_refused():
    one, two = (side(ConfirmationRole.TRANSMITTER, bytes([i]) * 32) for i in (1, 2))
    one.make_tag(two.nonce)
    with pytest.raises(KeyConfirmationError):
        one.verify_tag(two.make_tag(one.nonce))


@pytest.mark.parametrize("tag", [b"", b"x", b"\0" * 32, b"\0" * 33])
def test_bad_tags_are_refused(tag):
    one = side(ConfirmationRole.TRANSMITTER, b"t" * 32)
    one.make_tag(b"r" * 32)
    with pytest.raises(KeyConfirmationError):
        one.verify_tag(tag)


def test_order_of_calls():
    one = side(ConfirmationRole.TRANSMITTER, b"t" * 32)
    with pytest.raises(KeyConfirmationError, match="before"):
        one.verify_tag(b"\0" * 32)
    with pytest.raises(KeyConfirmationError, match="31 bytes"):
        one.make_tag(b"r" * 31)
    one.make_tag(b"r" * 32)
    with pytest.raises(KeyConfirmationError, match="second"):
        one.make_tag(b"r" * 32)
    with pytest.raises(ValueError, match="nonce"):
        side(ConfirmationRole.TRANSMITTER, b"")

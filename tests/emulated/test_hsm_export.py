"""Keys into a real SoftHSM: wrapped in, unreadable there, equal on both sides."""

from __future__ import annotations

import base64
import hmac
import multiprocessing
import os
import stat
import uuid

import pkcs11
import pytest
from pkcs11 import Attribute

from qkdhw.errors import HsmError, KeyConfirmationError
from qkdhw.export.confirmation import ConfirmationRole, KeyConfirmation
from qkdhw.export.modules import list_tokens
from qkdhw.export.pkcs11 import Pkcs11Token, import_check
from qkdhw.export.return_codes import hsm_error, return_code
from qkdhw.secret import SecretBuffer

KEY_ID = "bc490419-7d60-487f-adc1-4ddcc177c139"
PIN = "1234-test"


def secret(data: bytes) -> SecretBuffer:
    buffer = SecretBuffer(len(data))
    buffer.copy_from(data)
    return buffer


def raw_objects(token):
    """What any logged-in program sees in the token's store."""
    return list(token._session.get_objects({Attribute.TOKEN: True}))


def test_imported_key_cannot_be_read_or_weakened(softhsm):
    softhsm.make_token("site-a")
    with softhsm.open("site-a") as token:
        imported = token.import_key(KEY_ID, "lab", SecretBuffer.random(32))
        assert (imported.key_id, imported.label) == (KEY_ID, f"qkd:lab:{KEY_ID}")
        (key,) = raw_objects(token)  # one only: RSA pair, KEK and session key never reach the store
        assert key[Attribute.ID] == uuid.UUID(KEY_ID).bytes
        assert (key[Attribute.SENSITIVE], key[Attribute.EXTRACTABLE], key[Attribute.PRIVATE]) == (True, False, True)
        assert not any(key[a] for a in (Attribute.ENCRYPT, Attribute.DECRYPT, Attribute.WRAP, Attribute.UNWRAP))
        with pytest.raises(pkcs11.AttributeSensitive):
            key[Attribute.VALUE]
        for attribute, value in ((Attribute.SENSITIVE, False), (Attribute.EXTRACTABLE, True)):
            with pytest.raises(pkcs11.AttributeReadOnly):
                key[attribute] = value


def test_key_survives_closing_and_mac_and_derivation_equal_software(softhsm):
    softhsm.make_token("site-a")
    key = SecretBuffer.random(32)
    with softhsm.open("site-a") as token:
        token.import_key(KEY_ID, "lab", key)
    with softhsm.open("site-a") as token:
        assert [k.key_id for k in token.list_keys()] == [KEY_ID]
        assert token.mac(KEY_ID, b"data") == hmac.digest(memoryview(key), b"data", "sha256")
        # SP 800-108r1, counter mode: [i]_32 | label | 0x00 | context | [L]_32
        block = (1).to_bytes(4) + b"tls" + b"\0" + b"context" + (256).to_bytes(4)
        with token.derive_session_secret(KEY_ID, b"tls", b"context") as derived:
            assert derived == secret(hmac.digest(memoryview(key), block, "sha256"))
        with pytest.raises(ValueError, match="zero byte"):
            token.derive_session_secret(KEY_ID, b"t\0ls", b"context")
        token.destroy(KEY_ID)
        assert token.list_keys() == []
        with pytest.raises(HsmError, match="holds 0 keys"):
            token.mac(KEY_ID, b"data")


@pytest.mark.parametrize("size_bytes", [32, 40, 64, 1024])
def test_key_sizes(softhsm, size_bytes):
    softhsm.make_token("site-a")
    key = SecretBuffer.random(size_bytes)
    with softhsm.open("site-a") as token:
        token.import_key(KEY_ID, "lab", key)
        assert token.mac(KEY_ID, b"x") == hmac.digest(memoryview(key), b"x", "sha256")


@pytest.mark.parametrize("size_bytes", [1, 16, 31, 33])
def test_key_sizes_that_cannot_be_wrapped_are_refused(softhsm, size_bytes):
    softhsm.make_token("site-a")
    with softhsm.open("site-a") as token:
        with pytest.raises(ValueError, match="multiple of 8"):
            token.import_key(KEY_ID, "lab", SecretBuffer.random(size_bytes))
        assert token.list_keys() == []


def test_duplicate_key_id_is_refused_and_the_first_key_stays(softhsm):
    softhsm.make_token("site-a")
    first = SecretBuffer.random(32)
    for same_session in (True, False):
        with softhsm.open("site-a") as token:
            if same_session:
                token.import_key(KEY_ID, "lab", first)
            with pytest.raises(HsmError, match="already holds"):
                token.import_key(KEY_ID, "lab", SecretBuffer.random(32))
            assert token.check_import(KEY_ID, import_check(KEY_ID, first)) == "good"
            assert len(raw_objects(token)) == 1


def test_wrong_pin_is_tried_exactly_once(softhsm):
    softhsm.make_token("site-a")
    asked = []

    def wrong_pin():
        asked.append(1)
        return "wrong-one"

    with pytest.raises(HsmError) as caught:
        Pkcs11Token.open(softhsm.module, "site-a", wrong_pin)
    assert asked == [1]
    assert caught.value.return_code == "CKR_PIN_INCORRECT"
    assert "lock" in caught.value.remedy
    assert "wrong-one" not in str(caught.value) + caught.value.remedy
    with softhsm.open("site-a"):
        pass


def test_pin_from_secret_buffer(softhsm):
    softhsm.make_token("site-a")
    with secret(PIN.encode()) as pin, Pkcs11Token.open(softhsm.module, "site-a", pin) as token:
        assert token.label == "site-a"


def test_missing_token_names_those_that_are_there(softhsm):
    softhsm.make_token("site-a")
    with pytest.raises(HsmError, match="'site-b'") as caught:
        softhsm.open("site-b")
    assert "'site-a'" in caught.value.remedy
    assert [t.label for t in list_tokens(softhsm.module) if t.initialised] == ["site-a"]


def test_two_tokens_of_one_label_are_refused(softhsm):
    softhsm.make_token("site-a")
    softhsm.make_token("site-a")
    with pytest.raises(HsmError, match="2 tokens"):
        softhsm.open("site-a")


@pytest.mark.parametrize(("path", "message"), [("/nowhere/libx.so", "does not exist"), (__file__, "cannot load")])
def test_missing_module(path, message):
    with pytest.raises(HsmError, match=message):
        Pkcs11Token.open(path, "site-a", lambda: PIN)


def test_token_open_twice_in_one_process_is_refused_and_the_first_goes_on(softhsm):
    softhsm.make_token("site-a")
    with softhsm.open("site-a") as token:
        with pytest.raises(HsmError, match="CKR_USER_ALREADY_LOGGED_IN"):
            softhsm.open("site-a")
        token.import_key(KEY_ID, "lab", SecretBuffer.random(32))


def test_closed_token_and_other_process_are_refused(softhsm):
    softhsm.make_token("site-a")
    with softhsm.open("site-a") as token:
        context = multiprocessing.get_context("fork")
        answers = context.Queue()

        def use_in_child():
            try:
                token.list_keys()
            except HsmError as error:
                answers.put(str(error))

        child = context.Process(target=use_in_child)
        child.start()
        assert "parent process" in answers.get(timeout=20)
        child.join(timeout=20)
    token.close()
    with pytest.raises(HsmError, match="is closed"):
        token.list_keys()


def test_full_disk_is_seen_before_the_import(softhsm):
    softhsm.make_token("site-a")
    with Pkcs11Token.open(softhsm.module, "site-a", lambda: PIN, min_free_bytes=1 << 62) as token:
        assert token.free_bytes() > 0
        with pytest.raises(HsmError, match="is full"):
            token.import_key(KEY_ID, "lab", SecretBuffer.random(32))
        assert token.list_keys() == []


def test_store_that_cannot_be_written(softhsm):
    """The token's folder is gone: CKR_OK or not, no key may be reported as imported."""
    softhsm.make_token("site-a")
    with softhsm.open("site-a") as token:
        (folder,) = softhsm.store.iterdir()
        folder.rename(softhsm.store / "away")
        with pytest.raises(HsmError):
            token.import_key(KEY_ID, "lab", SecretBuffer.random(32))
        (softhsm.store / "away").rename(folder)


def test_no_key_bytes_in_the_store(softhsm):
    softhsm.make_token("site-a")
    canary = os.urandom(32)
    with softhsm.open("site-a") as token:
        token.import_key(KEY_ID, "lab", secret(canary))
    files = [path for path in softhsm.store.rglob("*") if path.is_file()]
    assert len(files) >= 3  # token, its lock and generation, the key
    for path in files:
        content = path.read_bytes()
        for form in (canary, canary.hex().encode(), canary.hex().upper().encode(), base64.b64encode(canary)):
            assert form not in content, path
            assert form[:8] not in content, path
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


def confirm(token_a, token_b, nonce_a, nonce_b):
    a = KeyConfirmation(key_id=KEY_ID, role=ConfirmationRole.TRANSMITTER, nonce=nonce_a, mac=token_a.mac)
    b = KeyConfirmation(key_id=KEY_ID, role=ConfirmationRole.RECEIVER, nonce=nonce_b, mac=token_b.mac)
    tag_a, tag_b = a.make_tag(b.nonce), b.make_tag(a.nonce)
    b.verify_tag(tag_a)
    a.verify_tag(tag_b)
    return tag_a, tag_b


def test_equal_keys_in_two_tokens_confirm(softhsm):
    softhsm.make_token("site-a")
    softhsm.make_token("site-b")
    key = SecretBuffer.random(32)
    with softhsm.open("site-a") as a, softhsm.open("site-b") as b:
        a.import_key(KEY_ID, "lab", key)
        b.import_key(KEY_ID, "lab", key)
        tags = confirm(a, b, os.urandom(32), os.urandom(32))
        assert len({*tags}) == 2  # a reflected tag is another tag


@pytest.mark.parametrize("flipped_bit", [0, 255])
def test_one_wrong_bit_is_refused(softhsm, flipped_bit):
    softhsm.make_token("site-a")
    softhsm.make_token("site-b")
    key = bytearray(os.urandom(32))
    with softhsm.open("site-a") as a, softhsm.open("site-b") as b:
        a.import_key(KEY_ID, "lab", secret(key))
        key[flipped_bit // 8] ^= 1 << flipped_bit % 8
        b.import_key(KEY_ID, "lab", secret(key))
        with pytest.raises(KeyConfirmationError, match="same key"):
            confirm(a, b, os.urandom(32), os.urandom(32))


def test_every_return_code_has_its_standard_name():
    names = {pkcs11.PinIncorrect: "CKR_PIN_INCORRECT", pkcs11.PinLocked: "CKR_PIN_LOCKED"}
    names |= {pkcs11.SlotIDInvalid: "CKR_SLOT_ID_INVALID", pkcs11.DeviceMemory: "CKR_DEVICE_MEMORY"}
    names |= {pkcs11.SessionHandleInvalid: "CKR_SESSION_HANDLE_INVALID", pkcs11.PKCS11Error: ""}
    for class_, name in names.items():
        error = hsm_error(class_("detail"), what="do it")
        assert return_code(class_()) == error.return_code == name
        assert str(error) == f"cannot do it: {name or 'detail'}"
    for class_ in (pkcs11.PinLocked, pkcs11.DeviceMemory, pkcs11.HostMemory, pkcs11.SessionHandleInvalid):
        assert hsm_error(class_(), what="do it").remedy

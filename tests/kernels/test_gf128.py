"""The polynomial hash equals integers in Python and the published POLYVAL values of RFC 8452."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_gf128 import polynomial_hash_of, polyval

from qkdhw._core.gf128 import accelerated, polynomial_hash


def hashed(key: bytes, message: bytes, *, portable: bool = False) -> bytes:
    out = bytearray(16)
    polynomial_hash(key, message, out, portable)
    return bytes(out)


def test_oracle_gives_the_value_of_rfc_8452_appendix_a() -> None:
    blocks = [bytes.fromhex("4f4f95668c83dfb6401762bb2d01a262"), bytes.fromhex("d1a24ddd2721d006bbe45f20d3c9f362")]
    key = bytes.fromhex("25629347589242761d31f826ba4b757b")
    assert polyval(key, blocks).hex() == "f7a3b47b846119fae5b7866cf5e5b77e"


@pytest.mark.parametrize("portable", [False, True])
def test_kernel_gives_the_polyval_result_of_rfc_8452_appendix_c1(portable: bool) -> None:
    key = bytes.fromhex("d9b360279694941ac5dbc6987ada7377")
    message = bytes.fromhex("0100000000000000")
    assert hashed(key, message, portable=portable).hex() == "eb93b7740962c5e49d2a90a7dc5cec74"


@given(key=st.binary(min_size=16, max_size=16), message=st.binary(max_size=400), portable=st.booleans())
@settings(max_examples=60, deadline=None)
def test_equals_integers(key: bytes, message: bytes, portable: bool) -> None:
    assert hashed(key, message, portable=portable) == polynomial_hash_of(key, message)


@pytest.mark.parametrize("n_bytes", [0, 1, 15, 16, 17, 127, 128, 129, 143, 144, 145, 256, 272])
def test_lengths_around_blocks_and_batches(n_bytes: int) -> None:
    key, message = bytes(range(100, 116)), bytes((7 * k + 1) % 256 for k in range(n_bytes))
    expected = polynomial_hash_of(key, message)
    assert hashed(key, message) == expected
    assert hashed(key, message, portable=True) == expected


def test_messages_that_differ_in_padding_only_differ() -> None:
    key = b"\x03" + bytes(15)
    assert len({hashed(key, bytes(n)) for n in range(40)}) == 40


def test_wrong_lengths_are_refused() -> None:
    for key, out in ((bytes(15), bytearray(16)), (bytes(16), bytearray(17))):
        with pytest.raises(ValueError, match="16 bytes"):
            polynomial_hash(key, b"message", out)


def test_says_whether_the_instruction_is_there() -> None:
    assert accelerated() in {True, False}

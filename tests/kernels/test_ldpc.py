"""LDPC kernels equal a dense matrix and exact sum-product; codes have the structure they promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_ldpc import dense, one_pass

from qkdhw._core.ldpc import check_code, decode_syndrome, encode_syndrome
from qkdhw.postprocessing.ldpc_code import build_code, column_degrees


def random_code(rng: np.random.Generator, rows: int, columns: int, size: int) -> tuple[np.ndarray, ...]:
    entries = [rng.permutation(columns)[: rng.integers(2, columns + 1)] for _ in range(rows)]
    row_start = np.cumsum([0, *map(len, entries)], dtype=np.int32)
    column = np.concatenate(entries).astype(np.int32)
    return row_start, column, rng.integers(0, size, column.size).astype(np.int32)


def workspace_for(code: tuple[np.ndarray, ...], size: int) -> np.ndarray:
    row_start, column, _ = code
    largest = int(np.diff(row_start).max())
    return np.empty(column.size * size + 32 * largest + (row_start.size - 1) * size // 4 + 1, np.float32)


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 4),
    columns=st.integers(2, 6),
    size=st.sampled_from([1, 2, 3, 4, 15, 16, 17, 32, 40]),
)
@settings(max_examples=60, deadline=None)
def test_syndrome_and_first_pass(seed: int, rows: int, columns: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    code = random_code(rng, rows, columns, size)
    matrix = dense(*code, columns, size)
    bits = rng.integers(0, 2, columns * size, dtype=np.uint8)
    syndrome = np.full(rows * size, 77, np.uint8)
    encode_syndrome(*code, size, bits, syndrome)
    assert np.array_equal(syndrome, matrix @ bits & 1)

    prior = rng.normal(0.5, 0.5, columns * size).astype(np.float32)
    expected = one_pass(matrix, size, syndrome, prior)
    for portable in (False, True):
        posterior, error = prior.copy(), np.full(columns * size, 77, np.uint8)
        passes = decode_syndrome(*code, size, syndrome, posterior, workspace_for(code, size), error, 1, portable)
        assert np.allclose(posterior, expected, rtol=1e-3, atol=2e-3)
        assert np.array_equal(error, posterior < 0)
        assert (passes == 1) == np.array_equal(matrix @ error & 1, syndrome)


@pytest.mark.parametrize("portable", [False, True])
def test_decodes_what_is_well_within_reach(portable: bool) -> None:
    code = build_code(256, 90, 0, 32)
    arrays = (code.row_start, code.column, code.shift)
    rng = np.random.default_rng(8)
    error = (rng.random(256 * 32) < 0.03).astype(np.uint8)
    found = np.empty_like(error)
    prior = np.full(error.size, math.log(0.97 / 0.03), np.float32)
    passes = decode_syndrome(*arrays, 32, code.syndrome(error), prior, workspace_for(arrays, 32), found, 50, portable)
    assert 1 <= passes <= 50
    assert np.array_equal(found, error)


def test_no_errors_take_one_pass_and_hopeless_ones_give_nothing() -> None:
    code = build_code(128, 20, 0, 16)
    prior = np.full(2048, 4.0, np.float32)
    assert not code.decode(np.zeros(320, np.uint8), prior, 1).any()
    rng = np.random.default_rng(1)
    assert code.decode(rng.integers(0, 2, 320, dtype=np.uint8), np.full(2048, 2.0, np.float32), 10) is None


@pytest.mark.parametrize(("columns", "rows", "size"), [(512, 80, 128), (512, 250, 128), (128, 14, 4), (4, 3, 1)])
def test_codes_are_regular_in_their_rows_and_mostly_free_of_short_cycles(columns: int, rows: int, size: int) -> None:
    code = build_code(columns, rows, 0, size)
    degrees = np.bincount(code.column, minlength=columns)
    assert degrees.tolist() == column_degrees(columns, rows)
    lengths = np.diff(code.row_start)
    assert lengths.max() - lengths.min() <= 2
    shifts = [
        dict(zip(code.column[a:b].tolist(), code.shift[a:b].tolist(), strict=True))
        for a, b in zip(code.row_start, code.row_start[1:], strict=False)
    ]
    assert sum(map(len, shifts)) == code.column.size, "a column occurs twice in a row"
    if size == 128:
        cycles = 0
        for a in range(rows):
            for b in range(a):
                differences = [(shifts[a][c] - shifts[b][c]) % size for c in shifts[a].keys() & shifts[b].keys()]
                cycles += len(differences) - len(set(differences))
        assert cycles == 0


def test_further_rows_leave_the_first_ones_alone() -> None:
    short, long = build_code(256, 40, 0, 16), build_code(256, 40, 9, 16)
    assert long.rows == 49
    assert np.array_equal(long.row_start[:41], short.row_start)
    assert np.array_equal(long.column[: short.column.size], short.column)
    assert np.array_equal(long.shift[: short.shift.size], short.shift)


def test_code_is_the_same_everywhere() -> None:
    # Both sites build it for themselves: a change here makes releases that cannot talk to each other.
    code = build_code(64, 14, 2, 8)
    assert int((code.column.astype(np.int64) * 31 + code.shift) @ np.arange(code.column.size)) == FINGERPRINT


FINGERPRINT = 78376787


def test_wrong_sizes_and_indices_are_refused() -> None:
    row_start, column, shift = (np.array(a, np.int32) for a in ([0, 2], [0, 1], [0, 3]))
    assert check_code(row_start, column, shift, 2, 4) == 2
    for bad in (
        (np.array([0, 3], np.int32), column, shift, 2, 4),
        (np.array([1, 2], np.int32), column, shift, 2, 4),
        (np.array([0, 3, 2], np.int32), column, shift, 2, 4),
        (row_start, column, shift, 1, 4),
        (row_start, column, shift, 2, 3),
        (row_start, column, shift[:1], 2, 4),
    ):
        with pytest.raises(ValueError, match=r"row|column|code"):
            check_code(*bad)
    ok = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="circulants"):
        encode_syndrome(row_start, column, shift, 4, ok[:7], np.zeros(4, np.uint8))
    floats = np.zeros(200, np.float32)
    for syndrome, posterior, workspace, error in (
        (ok[:3], floats[:8], floats, ok),
        (ok[:4], floats[:7], floats, ok),
        (ok[:4], floats[:8], floats[:72], ok),
    ):
        with pytest.raises(ValueError, match=r"must|small"):
            decode_syndrome(row_start, column, shift, 4, syndrome, posterior, workspace, error, 1)
    with pytest.raises(ValueError, match="rows"):
        build_code(3, 4, 0, 8)

"""check_samples equals its NumPy oracle, in any split of the bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_health import first_failure, samples_of

from qkdhw._core.health import check_samples

START = (-1, 0, 0, 0, 0)


def run(pieces, sample_bits, cutoffs):
    """Return the index of the failing sample or -1, and which test it was."""
    state, before = np.array(START, np.int64), 0
    for piece in pieces:
        taken, failed = check_samples(piece, state, sample_bits, *cutoffs)
        before += taken
        if failed:
            return before - 1, failed
        assert taken == len(piece) * 8 // sample_bits
    return -1, 0


data = st.one_of(
    st.binary(max_size=120),
    st.lists(st.sampled_from([b"\0", b"\xff", b"\x0f", b"\xaa\x55", b"\x81"]), max_size=60).map(b"".join),
)
small = st.tuples(st.integers(2, 40), st.integers(2, 40), st.integers(2, 64))


@given(data, st.sampled_from([1, 8]), small)
def test_any_samples_fail_where_the_oracle_says(samples, sample_bits, cutoffs):
    assert run([samples], sample_bits, cutoffs) == first_failure(samples_of(samples, sample_bits), *cutoffs)


@given(data, st.sampled_from([1, 8]), small, st.lists(st.integers(0, 40), max_size=10))
def test_any_split_fails_at_the_same_sample(samples, sample_bits, cutoffs, cuts):
    pieces, at = [], 0
    for cut in [*cuts, len(samples)]:
        pieces.append(samples[at : at + cut])
        at += cut
    assert run(pieces, sample_bits, cutoffs) == run([samples], sample_bits, cutoffs)


@given(st.integers(0, 2**32 - 1))
def test_real_cutoffs_on_random_and_on_biased_bits(seed):
    rng = np.random.default_rng(seed)
    cutoffs = (41, 625, 1024)
    bits = (rng.random(8 * 2048) < rng.choice([0.5, 0.62])).astype(np.uint8)
    packed = np.packbits(bits).tobytes()
    assert run([packed], 1, cutoffs) == first_failure(bits, *cutoffs)


def test_a_run_and_a_majority():
    assert run([b"\x55\x00\x00\x00\x00"], 1, (32, 1000, 1024)) == (39, 1)
    assert run([b"\x55\x00\x00\x00\x01"], 1, (32, 1000, 1024)) == (-1, 0)
    assert run([b"\x55" * 10], 1, (32, 40, 80)) == (78, 2)
    assert run([b"\x55" * 20], 1, (32, 41, 80)) == (-1, 0)
    assert run([b"aXaYaZa"], 8, (2, 4, 512)) == (6, 2)
    assert run([b""], 8, (2, 4, 512)) == (-1, 0)


@pytest.mark.parametrize(
    ("state", "sample_bits", "cutoffs"),
    [(4, 1, (2, 2, 2)), (5, 2, (2, 2, 2)), (5, 1, (1, 2, 2)), (5, 1, (2, 1, 2)), (5, 8, (2, 2, 1))],
)
def test_what_is_out_of_range_is_refused(state, sample_bits, cutoffs):
    with pytest.raises(ValueError, match="must"):
        check_samples(b"abc", np.zeros(state, np.int64), sample_bits, *cutoffs)

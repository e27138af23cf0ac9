"""The QBER bound holds and decides."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.errors import QberTooHighError
from qkdhw.postprocessing.estimation import check_qber, estimate_qber


@given(total=st.integers(1, 10**7), part=st.floats(0, 1))
def test_upper_bound_is_above_and_shrinks_with_the_sample(total: int, part: float) -> None:
    errors = int(part * total)
    estimate = estimate_qber(errors, total)
    assert estimate.qber == errors / total
    assert estimate.qber <= estimate.upper <= 1
    assert estimate_qber(10 * errors, 10 * total).upper <= estimate.upper + 1e-12


def test_bound_covers_the_exact_binomial_tail() -> None:
    for errors, total in ((0, 50), (3, 200), (20, 1000)):
        upper = estimate_qber(errors, total, eps=1e-4).upper
        tail = sum(math.comb(total, k) * upper**k * (1 - upper) ** (total - k) for k in range(errors + 1))
        assert 1e-7 < tail <= 1e-4


def test_no_errors_by_hand() -> None:
    # (1 - p)^n = eps
    assert estimate_qber(0, 1000, eps=1e-6).upper == pytest.approx(1 - 1e-6 ** (1 / 1000), rel=1e-9)


def test_check() -> None:
    assert check_qber(200, 10_000, 0.11).qber == 0.02
    with pytest.raises(QberTooHighError) as caught:
        check_qber(2500, 10_000, 0.11)
    assert (caught.value.qber, caught.value.limit) == (0.25, 0.11)
    with pytest.raises(QberTooHighError):
        check_qber(1, 20, 0.11)  # 5 %, but of far too few
    with pytest.raises(QberTooHighError):
        check_qber(0, 0, 0.11)
    with pytest.raises(ValueError, match="errors"):
        estimate_qber(3, 2)

import numpy as np
from numpy.typing import NDArray

def check_pair_clock(ref_a_ticks: int, ref_b_ticks: int, phase_q32: int, rate_q48: int) -> None: ...
def fold_events(
    time_ticks: NDArray[np.int64],  # (n,)
    ref_ticks: int,
    step: int,  # 2^-(64 + fraction_bits) turns a tick
    fraction_bits: int,
    histogram: NDArray[np.float32],  # (bins,) added to
) -> int: ...
def fold_residuals(
    a_ticks: NDArray[np.int64],  # (n,) ascending
    b_ticks: NDArray[np.int64],  # (m,) ascending
    ref_a_ticks: int,
    ref_b_ticks: int,
    phase_q32: int,
    rate_q48: int,
    first_ticks: int,
    slice_shift: int,
    bin_shift: int,
    histogram: NDArray[np.int64],  # (rows, columns) added to
) -> int: ...

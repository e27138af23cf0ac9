import numpy as np
from numpy.typing import NDArray

def bin_delays(
    first: NDArray[np.int64],  # (n,)
    second: NDArray[np.int64],  # (m,)
    anchor: NDArray[np.int64],  # (rows,)
    begin: NDArray[np.int64],  # (rows,)
    number: NDArray[np.int64],  # (rows,)
    low: int,
    width: int,
    same: bool,
    same_offset: int,
    counts: NDArray[np.int64],  # (bins,) added to
) -> int: ...
def bin_arrivals(
    time_ticks: NDArray[np.int64],  # (n,)
    origin: int,
    period_numerator: int,
    period_denominator: int,
    counts: NDArray[np.int64],  # (bins,) added to
) -> None: ...

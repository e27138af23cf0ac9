import numpy as np
from numpy.typing import NDArray

def match_tuples(
    time_ticks: NDArray[np.int64],  # (n,)
    begin: NDArray[np.int64],  # (order + 1,)
    low: NDArray[np.int64],  # (order, order)
    high: NDArray[np.int64],  # (order, order)
    one_partner: bool,
    next_event: NDArray[np.int64],  # (order,) in and out
    index: NDArray[np.int64] | None,  # (rows, order) out
) -> int: ...

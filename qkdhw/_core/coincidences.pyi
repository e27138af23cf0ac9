import numpy as np
from numpy.typing import NDArray

def check_window(low: int, high: int) -> None: ...
def first_descent(time_ticks: NDArray[np.int64]) -> int: ...  # (n,)
def select_channel(
    time_ticks: NDArray[np.int64],  # (n,)
    channel: NDArray[np.uint8],  # (n,)
    kind: NDArray[np.uint8],  # (n,)
    wanted: int,
    out: NDArray[np.int64],  # (>= n + 1,) out
) -> int: ...
def find_partners(
    first: NDArray[np.int64],  # (n,)
    second: NDArray[np.int64],  # (m,)
    low: int,
    high: int,
    anchor: NDArray[np.int64],  # (>= n,) out
    begin: NDArray[np.int64],  # (>= n,) out
    number: NDArray[np.int64],  # (>= n,) out
) -> int: ...
def count_pairs(
    first: NDArray[np.int64],  # (n,)
    second: NDArray[np.int64],  # (m,)
    low: int,
    high: int,
) -> int: ...
def spread_partners(
    anchor: NDArray[np.int64],  # (rows,)
    begin: NDArray[np.int64],  # (rows,)
    number: NDArray[np.int64],  # (rows,)
    index_first: NDArray[np.int64],  # (>= sum of number,) out
    index_second: NDArray[np.int64],  # (>= sum of number,) out
) -> int: ...
def match_pairs(
    first: NDArray[np.int64],  # (n,)
    second: NDArray[np.int64],  # (m,)
    low: int,
    high: int,
    index_first: NDArray[np.int64] | None,  # (>= n,) out
    index_second: NDArray[np.int64] | None,  # (>= n,) out
    state: NDArray[np.int64],  # (1,) out
) -> int: ...

import numpy as np
from numpy.typing import NDArray

def reset_state(state: NDArray[np.int64]) -> None: ...  # (3,) out
def correct_events(
    time_ticks: NDArray[np.int64],  # (n,)
    channel: NDArray[np.uint8],  # (n,)
    kind: NDArray[np.uint8],  # (n,)
    factor: int,
    shift: NDArray[np.int64],  # (256,) ticks
    renumbered: NDArray[np.uint8],  # (256,)
    window: int,
    state: NDArray[np.int64],  # (3,) in and out
    out_ticks: NDArray[np.int64],  # (>= n,) out
    out_channel: NDArray[np.uint8],  # (>= n,) out
    out_kind: NDArray[np.uint8],  # (>= n,) out
) -> int: ...
def order_events(
    time_ticks: NDArray[np.int64],  # (n,) in and out
    channel: NDArray[np.uint8],  # (n,) in and out
    kind: NDArray[np.uint8],  # (n,) in and out
    max_moves: int,
) -> bool: ...
def merge_two(
    left_ticks: NDArray[np.int64],  # (n,)
    left_channel: NDArray[np.uint8],  # (n,)
    left_kind: NDArray[np.uint8],  # (n,)
    right_ticks: NDArray[np.int64],  # (m,)
    right_channel: NDArray[np.uint8],  # (m,)
    right_kind: NDArray[np.uint8],  # (m,)
    ticks: NDArray[np.int64],  # (n + m,) out
    channel: NDArray[np.uint8],  # (n + m,) out
    kind: NDArray[np.uint8],  # (n + m,) out
) -> None: ...

import numpy as np
from numpy.typing import NDArray

def check_events(
    ticks: NDArray[np.int64],  # (n,)
    detectors: NDArray[np.uint8],  # (n,)
    before: int,
) -> bool: ...
def sift_announced(
    message: NDArray[np.uint8],  # (m + 8,)
    n_detections: int,
    limit: int,
    ticks: NDArray[np.int64],  # (n,)
    detectors: NDArray[np.uint8],  # (n,)
    rate_q48: int,
    offset: int,
    window: int,
    tracking: int,
    edge: int,
    gain_q32: int,
    state: NDArray[np.int64],  # (15,) in and out
    block_time: NDArray[np.int64],  # (1024,) in and out
    block_basis: NDArray[np.uint8],  # (1024,) in and out
    kept: NDArray[np.int64],  # (>= n_detections,) out
    key_bits: NDArray[np.uint8],  # (>= n_detections,) out
    test_bits: NDArray[np.uint8],  # (>= n_detections,) out
    counts: NDArray[np.int64],  # (4,) in and out
) -> int: ...
def read_times(
    message: NDArray[np.uint8],  # (m + 8,)
    bit: int,
    first: int,
    limit: int,
    time: NDArray[np.int64],  # (n,) out
) -> int: ...  # -1, or the byte that is wrong

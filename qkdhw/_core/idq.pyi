import numpy as np
from numpy.typing import NDArray

def decode_id900(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],  # (8 n,), or (16 n,) with a reference
    begin_ticks: int,
    width_ticks: int,
    reference_period_ticks: int,
    time_ticks: NDArray[np.int64],  # (n,) out
) -> int: ...
def merge_id900(
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    c: NDArray[np.int64],
    d: NDArray[np.int64],
    numbers: NDArray[np.uint8],  # (4,)
    time_ticks: NDArray[np.int64],  # (n,) out
    channel: NDArray[np.uint8],  # (n,) out
) -> int: ...

import numpy as np
from numpy.typing import NDArray

def decode_records(
    data: NDArray[np.uint8],  # (10 n,)
    time: NDArray[np.int64],  # (>= n,), ticks, out
    channel: NDArray[np.uint8],  # (>= n,), out
    state: NDArray[np.int64],  # (2,), in and out
) -> int: ...

import numpy as np
from numpy.typing import NDArray

# One event a record; kind 255 for an invalid one.

def decode_records(
    data: NDArray[np.uint8],  # (10 n,)
    time: NDArray[np.int64],  # (>= n,), ticks, out
    channel: NDArray[np.uint8],  # (>= n,), out
    kind: NDArray[np.uint8],  # (>= n,), out
    state: NDArray[np.int64],  # (2,), in and out
) -> int: ...
def decode_compressed(
    data: NDArray[np.uint8],  # (5 n,)
    time: NDArray[np.int64],  # (>= n,), ticks, out
    channel: NDArray[np.uint8],  # (>= n,), out
    kind: NDArray[np.uint8],  # (>= n,), out
    state: NDArray[np.int64],  # (4,), in and out
) -> int: ...

import numpy as np
from numpy.typing import NDArray

# state: int64 (3,): missed events, invalid records, index of the first invalid record or -1

def decode_records(
    data: NDArray[np.uint8],  # (16 n,)
    time: NDArray[np.int64],  # (>= n,), out
    channel: NDArray[np.uint8],  # (>= n,), out
    kind: NDArray[np.uint8],  # (>= n,), out; 255 for an invalid record
    state: NDArray[np.int64],
) -> int: ...

import numpy as np
from numpy.typing import NDArray

def encode_gaps(
    number: NDArray[np.int64],  # (n,)
    beside: NDArray[np.uint8],  # (n,) or (0,)
    least: int,
    step: int,
    data: NDArray[np.uint8],  # (>= 12 n + 9,) out
) -> int: ...
def decode_gaps(
    data: NDArray[np.uint8],  # (m + 8,)
    least: int,
    step: int,
    limit: int,
    number: NDArray[np.int64],  # (n,) out
) -> int: ...

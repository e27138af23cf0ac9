import numpy as np
from numpy.typing import NDArray

def decode_tdc1(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],  # (n,)
    state: NDArray[np.int64],  # (2,) in and out
    time_ticks: NDArray[np.int64],  # (m,) out
    channel: NDArray[np.uint8],  # (m,) out
    kind: NDArray[np.uint8],  # (m,) out
) -> tuple[int, int, int]: ...

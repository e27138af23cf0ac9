import numpy as np
from numpy.typing import NDArray

def decode_grx(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],  # (8 n,)
    base: int,
    last: int,
    time_ticks: NDArray[np.int64],  # (n,) out
    channel: NDArray[np.uint8],  # (n,) out
    kind: NDArray[np.uint8],  # (n,) out
) -> tuple[int, int, int]: ...

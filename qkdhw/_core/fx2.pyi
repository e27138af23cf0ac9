import numpy as np
from numpy.typing import NDArray

def decode_fx2(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],  # (n,)
    phase_of: NDArray[np.int16],  # (512,)
    state: NDArray[np.int64],  # (2,) in and out
    counts: NDArray[np.int64],  # (3,) in and out
    time_ticks: NDArray[np.int64],  # (m,) out
    channel: NDArray[np.uint8],  # (m,) out
    kind: NDArray[np.uint8],  # (m,) out
) -> tuple[int, int, int]: ...

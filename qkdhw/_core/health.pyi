import numpy as np
from numpy.typing import NDArray

def check_samples(
    data: bytes | bytearray | memoryview | NDArray[np.uint8],  # (n,)
    state: memoryview | NDArray[np.int64],  # (5,) in and out
    sample_bits: int,
    repetition_cutoff: int,
    proportion_cutoff: int,
    window: int,
) -> tuple[int, int]: ...

import numpy as np
from numpy.typing import NDArray

def tally_events(
    time_ticks: NDArray[np.int64],  # (n,)
    kind: NDArray[np.uint8],  # (>= n,)
    counts: NDArray[np.int64],  # (8,) in and out
    last: NDArray[np.int64],  # (1,) in and out
) -> None: ...

import numpy as np
from numpy.typing import NDArray

# n records in, at most n events out, of which those of kind 255 are invalid records; returns how many.
# state: int64 (4,).

def decode_picoharp_t2(
    record: NDArray[np.uint32],  # (n,)
    time: NDArray[np.int64],  # (>= n,), ticks, out
    channel: NDArray[np.uint8],  # (>= n,), out
    kind: NDArray[np.uint8],  # (>= n,), out
    state: NDArray[np.int64],  # (4,), in and out
) -> int: ...
def decode_picoharp_t3(
    record: NDArray[np.uint32],
    time: NDArray[np.int64],  # syncs
    fine: NDArray[np.uint16],  # (>= n,), ticks since the sync, out
    channel: NDArray[np.uint8],
    kind: NDArray[np.uint8],
    state: NDArray[np.int64],
) -> int: ...
def decode_hydraharp_t2(
    record: NDArray[np.uint32],
    wrap_ticks: int,
    counted: bool,
    time: NDArray[np.int64],
    channel: NDArray[np.uint8],
    kind: NDArray[np.uint8],
    state: NDArray[np.int64],
    portable: bool = False,
) -> int: ...
def decode_hydraharp_t3(
    record: NDArray[np.uint32],
    counted: bool,
    time: NDArray[np.int64],
    fine: NDArray[np.uint16],
    channel: NDArray[np.uint8],
    kind: NDArray[np.uint8],
    state: NDArray[np.int64],
    portable: bool = False,
) -> int: ...

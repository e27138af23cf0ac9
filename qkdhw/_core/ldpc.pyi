import numpy as np
from numpy.typing import NDArray

def check_code(
    row_start: NDArray[np.int32],  # (rows + 1,)
    column: NDArray[np.int32],  # (entries,)
    shift: NDArray[np.int32],  # (entries,)
    columns: int,
    size: int,
) -> int: ...
def encode_syndrome(
    row_start: NDArray[np.int32],  # (rows + 1,)
    column: NDArray[np.int32],  # (entries,)
    shift: NDArray[np.int32],  # (entries,)
    size: int,
    bits: NDArray[np.uint8],  # (columns * size,), 0 or 1
    out: NDArray[np.uint8],  # (rows * size,), overwritten
) -> None: ...
def decode_syndrome(
    row_start: NDArray[np.int32],  # (rows + 1,)
    column: NDArray[np.int32],  # (entries,)
    shift: NDArray[np.int32],  # (entries,)
    size: int,
    syndrome: NDArray[np.uint8],  # (rows * size,), 0 or 1
    posterior: NDArray[np.float32],  # (columns * size,), prior in, posterior out
    workspace: NDArray[np.float32],  # (entries * size + 32 * largest row + rows * size / 4 + 1,) at least
    error: NDArray[np.uint8],  # (columns * size,), overwritten
    max_iterations: int,
    portable: bool = False,
) -> int: ...

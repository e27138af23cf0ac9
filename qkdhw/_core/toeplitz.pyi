import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

def accelerated() -> bool: ...
def toeplitz_hash(
    bits: NDArray[np.uint8] | Buffer,  # uint8 (n,), 0 or 1
    seed: Buffer,  # uint8 (ceil((n + m - 1) / 8),), most significant bit first
    out: Buffer,  # uint8 (m / 8,), most significant bit first, overwritten
    portable: bool = False,
) -> None: ...

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

def accelerated() -> bool: ...
def polynomial_hash(
    key: NDArray[np.uint8] | Buffer,  # uint8 (16,)
    message: NDArray[np.uint8] | Buffer,  # uint8 (n,)
    out: Buffer,  # uint8 (16,), overwritten
    portable: bool = False,
) -> None: ...

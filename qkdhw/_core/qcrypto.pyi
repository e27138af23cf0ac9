import numpy as np
from numpy.typing import NDArray

# An invalid word gives one event of kind 255.

def decode_words(
    word: NDArray[np.uint64],  # (n,)
    time_bits: int,  # 54 or 49
    high_word_first: bool,
    time: NDArray[np.int64],  # (>= 4 n,), ticks, out
    channel: NDArray[np.uint8],  # (>= 4 n,), out
    kind: NDArray[np.uint8],  # (>= 4 n,), out
    pattern_count: NDArray[np.int64],  # (16,), in and out
    state: NDArray[np.int64],  # (5,), in and out
    portable: bool = False,
) -> int: ...
def decode_fast_words(
    word: NDArray[np.uint32],  # (n,)
    time: NDArray[np.int64],  # (>= 4 n,), ticks, out
    channel: NDArray[np.uint8],  # (>= 4 n,), out
    kind: NDArray[np.uint8],  # (>= 4 n,), out
    pattern_count: NDArray[np.int64],  # (16,), in and out
    state: NDArray[np.int64],  # (6,), in and out
) -> int: ...

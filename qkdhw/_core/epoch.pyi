import numpy as np
from numpy.typing import NDArray

def decode_differences(
    word: NDArray[np.uint32],  # (n,)
    bit: int,  # 0..31
    time_order: int,  # 2..32
    base_bits: int,  # 0..8
    offset: int,  # 0 (T2) or 2 (T4)
    limit: int,  # 0..2^61
    value: NDArray[np.int64],  # (m,), out
    base: NDArray[np.uint8],  # (m,), out
    state: NDArray[np.int64],  # (1,), in and out
) -> tuple[int, int, int]: ...  # entries, next bit, 0 more, 1 ended, 2 wrong
def encode_differences(
    value: NDArray[np.int64],  # (n,)
    base: NDArray[np.uint8],  # (n,)
    time_order: int,  # 2..31
    base_bits: int,  # 0..8
    offset: int,
    as_chopper: bool,
    word: NDArray[np.uint32],  # out
    written: NDArray[np.uint8],  # (n,), out
) -> int: ...  # words, or -1 - index of an entry that does not fit
def pack_values(value: NDArray[np.uint8], bits: int, word: NDArray[np.uint32]) -> int: ...
def unpack_values(word: NDArray[np.uint32], bits: int, value: NDArray[np.uint8]) -> None: ...

import numpy as np
from numpy.typing import NDArray

def sift_transmitter(
    slot: NDArray[np.int64],  # (n,)
    rx_basis: NDArray[np.uint8],  # (n,)
    record: NDArray[np.uint8],  # (N,)
    first_slot: int,
    reply: NDArray[np.uint8],  # (n,) out
    key_bits: NDArray[np.uint8],  # (n,) out, first counts[0] valid
    test_bits: NDArray[np.uint8],  # (n,) out, first counts[1] valid
    key_intensity: NDArray[np.uint8],  # (n,) out
    test_intensity: NDArray[np.uint8],  # (n,) out
    counts: NDArray[np.int64],  # (2,) out
    portable: bool = False,
) -> int: ...
def sift_receiver(
    rx_basis: NDArray[np.uint8],  # (n,)
    rx_bit: NDArray[np.uint8],  # (n,)
    reply: NDArray[np.uint8],  # (n,)
    key_bits: NDArray[np.uint8],  # (n,) out, first counts[0] valid
    test_bits: NDArray[np.uint8],  # (n,) out, first counts[1] valid
    key_intensity: NDArray[np.uint8],  # (n,) out
    test_intensity: NDArray[np.uint8],  # (n,) out
    counts: NDArray[np.int64],  # (2,) out
    portable: bool = False,
) -> int: ...
def encode_slots(
    slot: NDArray[np.int64],  # (n,)
    base: int,
    data: NDArray[np.uint8],  # (>= 9 n,) out
) -> int: ...
def decode_slots(
    data: NDArray[np.uint8],  # (m,)
    base: int,
    slot: NDArray[np.int64],  # (n,) out
) -> int: ...

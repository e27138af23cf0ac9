import numpy as np
from numpy.typing import NDArray

def check_clock(ref_slot: int, ref_ticks: int, phase_q32: int, period_q32: int) -> None: ...
def assign_slots(
    time_ticks: NDArray[np.int64],  # (n,)
    ref_slot: int,
    ref_ticks: int,
    phase_q32: int,
    period_q32: int,
    slot: NDArray[np.int64],  # (n,) out
    residual_q32: NDArray[np.int64],  # (n,) out, 2^-32 ticks
) -> int: ...
def reset_state(state: NDArray[np.int64]) -> None: ...  # (8,) out
def gate_events(
    time_ticks: NDArray[np.int64],  # (n,)
    channel: NDArray[np.uint8],  # (n,)
    kind: NDArray[np.uint8],  # (n,)
    wiring: NDArray[np.uint8],  # (256,) 2 * basis + bit, each once; 255 not wired
    ref_slot: int,
    ref_ticks: int,
    phase_q32: int,
    period_q32: int,
    first_slot: int,
    half_width_q32: int,
    dead_time_q32: int,
    random_bytes: NDArray[np.uint8],  # (>= n // 2 + 2,)
    flush: bool,
    state: NDArray[np.int64],  # (8,) in and out
    slot: NDArray[np.int64],  # (>= n + 1,) out
    basis: NDArray[np.uint8],  # (>= n + 1,) out
    bit: NDArray[np.uint8],  # (>= n + 1,) out
    counts: NDArray[np.int64],  # (15,) added to
    histogram: NDArray[np.int64],  # (bins,) added to
) -> int: ...

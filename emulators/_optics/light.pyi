from typing import final

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.pulse_tables import PulseTables

@final
class PulseLight:
    def __init__(self, tables: PulseTables, portable: bool = False) -> None: ...
    def arrivals(
        self,
        keys: NDArray[np.uint64],  # (4, 2): sender, receiver, eavesdropper, light
        cell: int,
        first_pulse: int,
        n_pulses: int,  # < 2^31
        time_ps: NDArray[np.float64],  # (n,) out
        detector: NDArray[np.uint8],  # (n,) out
        bright: NDArray[np.uint8],  # (n,) out
        origin: NDArray[np.int64],  # (n,) out
        state: NDArray[np.uint16],  # (n,) out
    ) -> int: ...  # above n: call again with as many
    def prepare(
        self,
        key: NDArray[np.uint64],  # (2,)
        pulses: int | NDArray[np.int64],  # the first, or (n,)
        choice: NDArray[np.uint8],  # (n,) out
    ) -> None: ...
    def measure(
        self,
        key: NDArray[np.uint64],  # (2,)
        pulses: int | NDArray[np.int64],  # the first, or (n,)
        basis: NDArray[np.uint8],  # (n,) out
    ) -> None: ...

from collections.abc import Sequence
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

@final
class DetectorChain:
    blinded: bool
    dead: bool
    latched: bool
    def __new__(
        cls,
        bit_generator: np.random.BitGenerator,
        *,
        dark_hz: float = 0,
        background_hz: float = 0,
        dead_time_ps: float = 0,
        paralysable: bool = False,
        recovery_ps: float = 0,
        child_probability: Sequence[float] = (),
        child_tau_ps: Sequence[float] = (),
        power_law: tuple[float, float, float, float] = (0, 1, 1, 1),
        jitter_ps: float = 0,
        tail_weight: float = 0,
        tail_ps: float = 0,
        latch_hz: float = 0,
        period_ps: int = 1,
        gate_width_ps: float = 0,
        gate_fwhm_ps: float = 0,
        gate_centre_ps: float = 0,
    ) -> Self: ...
    def set_noise(self, dark_hz: float, background_hz: float) -> None: ...
    def rebase(self, cell_ps: int) -> None: ...

def detect(
    chains: list[DetectorChain],
    time_ps: NDArray[np.float64],
    detector: NDArray[np.uint8],
    bright: NDArray[np.uint8],
    number: NDArray[np.int64] | None,
    first: int,
    horizon_ps: float,
    click_ps: NDArray[np.float64],
    channel: NDArray[np.uint8],
    cause: NDArray[np.uint8],
    origin: NDArray[np.int64],
) -> tuple[int, int]: ...

from collections.abc import Sequence
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

@final
class Tagger:
    def __new__(
        cls,
        bit_generator: np.random.BitGenerator,
        skew_ps: Sequence[float],
        *,
        tick_ps: float,
        noise_ps: float = 0,
        bin_edges: NDArray[np.float64] | None = None,
    ) -> Self: ...
    @property
    def waiting(self) -> int: ...
    def tick_at(self, time_ps: float, begin_tick: int, begin_ps: float, rate: float) -> int: ...
    def add(
        self,
        time_ps: NDArray[np.float64],
        channel: NDArray[np.uint8],
        cause: NDArray[np.uint8],
        origin: NDArray[np.int64],
        begin_tick: int,
        begin_ps: float,
        rate: float,
    ) -> None: ...
    def merge(
        self,
        end_tick: int,
        tick: NDArray[np.int64],
        channel: NDArray[np.uint8],
        cause: NDArray[np.uint8],
        origin: NDArray[np.int64],
    ) -> int: ...
    def flush(
        self,
        tick: NDArray[np.int64],
        channel: NDArray[np.uint8],
        cause: NDArray[np.uint8],
        origin: NDArray[np.int64],
    ) -> int: ...

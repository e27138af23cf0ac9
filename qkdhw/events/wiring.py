"""Which detector is plugged into which input of the time tagger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qkdhw.model import Basis

NOT_WIRED = 255


@dataclass(frozen=True, slots=True)
class Wiring:
    """The detectors of a receiver with one detector a basis and bit value.

    Attributes:
        detectors: Input number (0 .. 255) to basis and bit value. Every basis and bit value appears exactly
            once, so that no outcome is favoured.
        table: uint8 (256,), 2 * basis + bit per input, 255 where no detector is plugged in.

    Raises:
        ValueError: A detector is missing, doubled or out of range.
    """

    detectors: Mapping[int, tuple[Basis, int]]
    table: NDArray[np.uint8] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = np.full(256, NOT_WIRED, np.uint8)
        for channel, (basis, bit) in self.detectors.items():
            if not 0 <= channel <= 255 or bit not in {0, 1}:
                raise ValueError(f"input {channel} cannot be the detector of basis {basis}, bit value {bit}")
            table[channel] = 2 * basis + bit
        if sorted(table[table != NOT_WIRED]) != [0, 1, 2, 3]:
            raise ValueError("wiring must name each of the four detectors (basis, bit value) exactly once")
        table.flags.writeable = False
        object.__setattr__(self, "table", table)


FOUR_DETECTORS = Wiring({1: (Basis.KEY, 0), 2: (Basis.KEY, 1), 3: (Basis.TEST, 0), 4: (Basis.TEST, 1)})

"""Quasi-cyclic LDPC codes for syndrome coding, built the same at both sites from four numbers.

Construction. The base matrix has `columns` and `rows`, its entries are circulants of size Z. Columns have degree 2,
3 or HIGH_DEGREE; how many of each depends on the syndrome rate rows / columns. Degree-2 columns form a chain (rows c
and c + 1), so that no cycle runs through them alone. Every other column takes the rows with the fewest entries so
far, ties in random order, which keeps the check degrees even. Shifts are random, moved on to the next one that
closes no cycle of length 4, as long as there is one. Further rows, for frames that do not decode, have fewer entries
(FURTHER_ROW_SHARE of the average), in turn on the columns of highest degree, which start the decoding, and on all
columns alike. Random numbers come from SplitMix64, seeded with columns, rows and Z.

The shares of degrees come from a search with Gaussian-approximated density evolution on the binary symmetric
channel, then from decoding frames of 65536 bits.

Source:
    T. Richardson, M. Shokrollahi, R. Urbanke, IEEE Trans. Inf. Theory 47 (2001) 619 (irregular codes, density
    evolution); M. Ardakani, F. Kschischang, IEEE Trans. Commun. 52 (2004) 2033 (Gaussian approximation);
    D. Elkouss et al., arXiv:0901.2140 (irregular codes for reconciliation); G. Steele, D. Lea, C. Flood, OOPSLA
    2014 (SplitMix64).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import ldpc as kernels

HIGH_DEGREE = 12
FURTHER_ROW_SHARE = 0.4
LOW_RATE_HIGH_DEGREE = 8  # below a rate of 0.04 more would close cycles of length 4
_MASK = (1 << 64) - 1


class _SplitMix64:
    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, limit: int) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * limit) >> 64

    def shuffled(self, count: int) -> list[int]:
        order = list(range(count))
        for i in range(count - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


@dataclass(frozen=True, slots=True)
class LdpcCode:
    """A parity-check matrix of circulants.

    Attributes:
        columns: Base columns; a frame has columns * size bits.
        size: Circulant size Z.
        row_start: int32 (rows + 1,), first entry of each base row.
        column: int32 (entries,), base column of each entry.
        shift: int32 (entries,), check i of the row touches bit (i + shift) mod Z of the column.
    """

    columns: int
    size: int
    row_start: NDArray[np.int32]
    column: NDArray[np.int32]
    shift: NDArray[np.int32]

    @property
    def rows(self) -> int:
        """Base rows; a syndrome has rows * size bits."""
        return self.row_start.size - 1

    def syndrome(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Parity of each check over a frame of bits, uint8 (rows * size,)."""
        out = np.empty(self.rows * self.size, np.uint8)
        kernels.encode_syndrome(self.row_start, self.column, self.shift, self.size, bits, out)
        return out

    def decode(
        self, syndrome: NDArray[np.uint8], prior: NDArray[np.float32], max_iterations: int
    ) -> NDArray[np.uint8] | None:
        """Find the error pattern with this syndrome, or None.

        Args:
            syndrome: uint8 (rows * size,), each 0 or 1.
            prior: float32 (columns * size,), ln(P(no error) / P(error)) of each bit; overwritten.
            max_iterations: Most passes over all checks.
        """
        degree = kernels.check_code(self.row_start, self.column, self.shift, self.columns, self.size)
        n_syndrome = self.rows * self.size
        workspace = np.empty(self.column.size * self.size + 32 * degree + n_syndrome // 4 + 1, np.float32)
        error = np.empty(self.columns * self.size, np.uint8)
        passes = kernels.decode_syndrome(
            self.row_start, self.column, self.shift, self.size, syndrome, prior, workspace, error, max_iterations
        )
        workspace.fill(0)
        return error if passes else None


def column_degrees(columns: int, rows: int) -> list[int]:
    """Degree of each base column for this syndrome rate."""
    rate = rows / columns
    n_two = min(int(0.9 * rows), rows - 1, columns)
    high = HIGH_DEGREE if rate > 0.04 else LOW_RATE_HIGH_DEGREE
    share = min(max(0.125 - 0.09 * math.log(rate), 0.1), 0.4)
    n_high = min(int(share * columns), columns - n_two)
    return [2] * n_two + [3] * (columns - n_two - n_high) + [min(high, rows)] * n_high


class _Builder:
    def __init__(self, columns: int, rows: int, size: int) -> None:
        self.random = _SplitMix64((columns << 40) ^ (rows << 20) ^ size)
        self.size = size
        self.by_row: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
        self.by_column: list[list[tuple[int, int]]] = [[] for _ in range(columns)]
        self._differences: list[dict[int, set[int]]] = [{} for _ in range(rows)]

    def add_row(self) -> None:
        self.by_row.append([])
        self._differences.append({})

    def add(self, row: int, column: int) -> None:
        # Two columns with the same difference of shifts between the same two rows make a cycle of length 4.
        taken = self._differences[row]
        others = self.by_column[column]
        size = self.size
        forbidden = {(s + d) % size for r, s in others for d in taken.get(r, ())}
        shift = start = self.random.below(size)
        while shift in forbidden:
            shift = (shift + 1) % size
            if shift == start:
                break
        for other, other_shift in others:
            taken.setdefault(other, set()).add((shift - other_shift) % size)
            self._differences[other].setdefault(row, set()).add((other_shift - shift) % size)
        others.append((row, shift))
        self.by_row[row].append((column, shift))

    def least_filled(self, lists: list[list[tuple[int, int]]], count: int) -> list[int]:
        tie = self.random.shuffled(len(lists))
        return sorted(range(len(lists)), key=lambda k: (len(lists[k]), tie[k]))[:count]


def _add_further_rows(builder: _Builder, degrees: list[int], further_rows: int) -> None:
    """Append rows in turn for the columns of highest degree and for all columns alike."""
    row_degree = max(2, round(FURTHER_ROW_SHARE * sum(degrees) / len(builder.by_row)))
    times_taken = [0] * len(degrees)
    tie = builder.random.shuffled(len(degrees))
    first = len(builder.by_row)
    for row in range(first, first + further_rows):
        builder.add_row()
        to_high = (row - first) % 2 == 0
        order = sorted(range(len(degrees)), key=lambda c: (-degrees[c] if to_high else 0, times_taken[c], tie[c]))
        for column in order[:row_degree]:
            builder.add(row, column)
            times_taken[column] += 1


@lru_cache(maxsize=64)
def build_code(columns: int, rows: int, further_rows: int, size: int) -> LdpcCode:
    """Build the code with `rows` base rows and `further_rows` after them; the first rows do not depend on the rest.

    Raises:
        ValueError: Not 3 <= rows <= columns, or size or further_rows is out of range.

    Source:
        The module's docstring.
    """
    if not 3 <= rows <= columns or size < 1 or further_rows < 0:
        raise ValueError("a code needs 3 <= rows <= columns, size >= 1 and further_rows >= 0")
    builder = _Builder(columns, rows, size)
    degrees = column_degrees(columns, rows)
    for column, degree in enumerate(degrees):
        chosen = [column, column + 1] if degree == 2 else builder.least_filled(builder.by_row, degree)
        for row in chosen:
            builder.add(row, column)
    _add_further_rows(builder, degrees, further_rows)
    entries = [entry for row_entries in builder.by_row for entry in row_entries]
    lengths = [len(row_entries) for row_entries in builder.by_row]
    return LdpcCode(
        columns,
        size,
        np.cumsum([0, *lengths], dtype=np.int32),
        np.array([column for column, _ in entries], np.int32),
        np.array([shift for _, shift in entries], np.int32),
    )

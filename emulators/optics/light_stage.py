"""The light of a cell at the detectors, whatever the source: made from the seed, the run and the cell alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError
from qkdhw_emulators._optics import light
from qkdhw_emulators.optics.detection import EARLY_PS, SAFE_SIGMAS
from qkdhw_emulators.optics.pairs import PairLight, SideArrivals
from qkdhw_emulators.optics.pulse_tables import PulseTables

CELL_DETECTIONS = 32_768
LEAST_CELL_PS = 4 * EARLY_PS  # events come that much later than the cell that they are of
MOST_ARRIVALS = 1 << 26  # in a cell
MAX_CELL_PS = 10_000_000_000
MAX_CELL_PULSES = (1 << 31) - 1
MAX_ROOM = 1 << 20  # arrivals that a cell has room for at first


@unique
class Purpose(IntEnum):
    """What a random stream is for; never renumber, or the same seed gives other bytes."""

    ALICE = 0
    BOB = 1
    EVE = 2
    LIGHT = 3
    DRIFT = 4
    ALICE_DETECTION = 5
    BOB_DETECTION = 6


def stream(seed: int, run: int, *purpose: int) -> np.random.SeedSequence:
    """Return the seed of a random stream."""
    return np.random.SeedSequence(seed, spawn_key=(run, *purpose))


def pulse_keys(seed: int, run: int) -> NDArray[np.uint64]:
    """Return the keys of what is drawn by number of the pulse or of the cell, (4, 2)."""
    purposes = (Purpose.ALICE, Purpose.BOB, Purpose.EVE, Purpose.LIGHT)
    return np.array([stream(seed, run, purpose).generate_state(2, np.uint64) for purpose in purposes])


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Light that reaches the detectors of one end in a cell; truth.

    Attributes:
        time_ps: float64 (n,), since the begin of the cell, rising.
        detector: uint8 (n,).
        bright: uint8 (n,), 1 for light that makes any detector click.
        origin: int64 (n,), number of the pulse since the begin of the run; for a steady pump, of the pair in the cell.
        state: uint16 (n,), state of the pulse: see `PulseTables`; 0 for pairs.
    """

    time_ps: NDArray[np.float64]
    detector: NDArray[np.uint8]
    bright: NDArray[np.uint8]
    origin: NDArray[np.int64]
    state: NDArray[np.uint16]

    @classmethod
    def empty(cls, n: int = 0) -> Arrivals:
        """Make room for arrivals."""
        return cls(
            np.empty(n), np.empty(n, np.uint8), np.empty(n, np.uint8), np.empty(n, np.int64), np.empty(n, np.uint16)
        )


class PulseStage:
    """Light of pulses that a sender prepares.

    Args:
        tables: What pulses send to the detectors.
        keys: Of the run, see `pulse_keys`.
        cell_pulses: Pulses in a cell.

    Raises:
        ConfigurationError: Pulses are so long that light would come before the cell before has ended.
    """

    def __init__(self, tables: PulseTables, keys: NDArray[np.uint64], cell_pulses: int) -> None:
        if tables.pulse_sigma_ps * SAFE_SIGMAS > EARLY_PS:
            raise ConfigurationError(
                f"pulses of a standard deviation of {tables.pulse_sigma_ps:.4g} ps at the receiver, at most 1e6",
                remedy="give shorter pulses, a shorter fibre or less dispersion",
            )
        self._keys = keys
        self._cell_s = cell_pulses * tables.period_ps * 1e-12
        self._light = light.PulseLight(tables)
        self._cell_pulses = cell_pulses
        most = float(tables.shares.sum(axis=1).max()) * cell_pulses
        self._room = int(min(1.1 * most, MAX_ROOM)) + 64

    def arrivals(self, cell: int) -> tuple[Arrivals | None, Arrivals]:
        """Make a cell's light: None for the sender, and what reaches the receiver."""
        first, room = cell * self._cell_pulses, self._room
        while True:
            out = Arrivals.empty(room)
            n = self._light.arrivals(
                self._keys,
                cell,
                first,
                self._cell_pulses,
                out.time_ps,
                out.detector,
                out.bright,
                out.origin,
                out.state,
            )
            if n <= room:
                break
            if n > MOST_ARRIVALS:
                raise ConfigurationError(
                    f"cell {cell}: {n} photons at the detectors in {self._cell_s:.2g} s; at most {MOST_ARRIVALS}",
                    remedy="give less light, or an attack that adds less of it",
                )
            room = n
        return None, Arrivals(out.time_ps[:n], out.detector[:n], out.bright[:n], out.origin[:n], out.state[:n])

    def prepared(self, pulses: int | NDArray[np.int64], n_pulses: int) -> NDArray[np.uint8]:
        """Return the sender's choices, (intensity * 3 + basis) * 2 + bit, of these pulses or from the first on."""
        choice = np.empty(n_pulses, np.uint8)
        self._light.prepare(self._keys[0], pulses, choice)
        return choice

    def measured(self, pulses: int | NDArray[np.int64], n_pulses: int) -> NDArray[np.uint8]:
        """Return the bases of a receiver that switches; 0 for one with a splitter."""
        basis = np.empty(n_pulses, np.uint8)
        self._light.measure(self._keys[1], pulses, basis)
        return basis


class PairStage:
    """Light of a source of pairs.

    Args:
        pairs: The source.
        seed: Seed of everything random.
        run: Number of the run.
        cell_pulses: Pulses in a cell, or 0 for a steady pump.
    """

    def __init__(self, pairs: PairLight, seed: int, run: int, cell_pulses: int) -> None:
        self._pairs, self._seed, self._run, self._cell_pulses = pairs, seed, run, cell_pulses

    def arrivals(self, cell: int) -> tuple[Arrivals | None, Arrivals]:
        """Make a cell's light at the sender's and at the receiver's detectors."""
        both = self._pairs.arrivals(self._seed, self._run, cell)
        first = cell * self._cell_pulses
        return _of_side(both.alice, first), _of_side(both.bob, first)


def _of_side(side: SideArrivals, first: int) -> Arrivals:
    n = len(side.time_ps)
    return Arrivals(side.time_ps, side.detector, np.zeros(n, np.uint8), side.pair + first, np.zeros(n, np.uint16))


def suitable_cell_pulses(tables: PulseTables, noise_hz: float) -> int:
    """Return a power of two of pulses with about 32,768 arrivals and noise counts, 20 us to 10 ms long."""
    per_pulse = float(tables.shares.sum(axis=1).max()) + noise_hz * tables.period_ps * 1e-12
    most = min(MAX_CELL_PS // tables.period_ps, MAX_CELL_PULSES)
    least = LEAST_CELL_PS / tables.period_ps
    wanted = min(max(CELL_DETECTIONS / per_pulse if per_pulse else most, least, 1), most)
    return 1 << (int(wanted).bit_length() - 1)

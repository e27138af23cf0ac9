"""Frozen values that cross rooms. Arrays inside them are read-only by convention: a room makes new ones.

Time is exact: an event's time is an integer count of ticks, and the stream says how many picoseconds a tick is as
an exact fraction (a TDC2 ticks in 3.90625 ps; a 54-bit time does not fit a double).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum, unique
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray


@unique
class EventKind(IntEnum):
    """What an event in a stream is; stored as uint8."""

    PHOTON = 0
    MARKER = 1
    GAP_BEGIN = 2
    GAP_END = 3
    MISSED = 4
    CLOCK_ERROR = 5
    DUMMY = 6


@unique
class Basis(IntEnum):
    """Key basis or test basis. Papers swap the letters X and Z, so no letters here."""

    KEY = 0
    TEST = 1


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """Who a unit says it is."""

    vendor: str
    model: str
    serial_number: str
    firmware: str = ""
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """A unit's state and monitors at one moment.

    Attributes:
        state: "idle", "armed", "running" or "fault".
        counters: Named counts since start, such as pulses, buffered, lost, overflows.
        monitors: Named readings; the name ends in the unit of the value. A monitor that the unit does not have is
            absent, never zero.
        alarms: Names of alarms that are on; alarms latch.
    """

    state: str
    counters: Mapping[str, int] = field(default_factory=dict)
    monitors: Mapping[str, float] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectionBlock:
    """Detection events in the order in which the instrument sent them. They are raw key: the repr shows none.

    Attributes:
        time_ticks: int64 (n,), exact time in ticks since the stream's start.
        channel: uint8 (n,), input number from 1; 0 is a sync or start input; for a MARKER its bit pattern.
        kind: uint8 (n,), an EventKind each. For MISSED, `time_ticks` is when, and the count is in `missed`.
        tick_ps: Exact length of a tick in picoseconds.
        fine_ticks: uint16 (n,) or None: for start-stop instruments (T3) the time since the last sync.
        fine_tick_ps: Exact length of a fine tick, or None.
        missed: Number of events that the stream itself says were lost in this block.
    """

    time_ticks: NDArray[np.int64] = field(repr=False)
    channel: NDArray[np.uint8] = field(repr=False)
    kind: NDArray[np.uint8] = field(repr=False)
    tick_ps: Fraction
    fine_ticks: NDArray[np.uint16] | None = field(default=None, repr=False)
    fine_tick_ps: Fraction | None = None
    missed: int = 0

    def __len__(self) -> int:
        return int(self.time_ticks.shape[0])

    def __repr__(self) -> str:
        missed = f", {self.missed:,} missed" if self.missed else ""
        return f"<DetectionBlock of {len(self):,} events{missed}, tick {self.tick_ps} ps>"


@dataclass(frozen=True, slots=True)
class PreparationBlock:
    """What a transmitter unit prepared, pulse by pulse. It is raw key: the repr shows none.

    Attributes:
        first_pulse_index: Index of the first pulse since start.
        record: uint8 (n,), one byte a pulse: bit 0 the bit value, bit 1 the basis (0 key, 1 test), bits 2-3 the
            intensity index (0 is the brightest).
    """

    first_pulse_index: int
    record: NDArray[np.uint8] = field(repr=False)

    def __len__(self) -> int:
        return int(self.record.shape[0])


@dataclass(frozen=True, slots=True)
class DecoyCounts:
    """The statistics of one block that a security proof works on. Index k is the intensity, brightest first.

    Attributes:
        mean_photon_number: mu_k, mean photons per pulse leaving the transmitter.
        intensity_probability: p_k, sums to 1.
        n_key: Detections in the key basis (both sites) per intensity.
        n_test: Detections in the test basis per intensity.
        m_test: Bit errors in the test basis per intensity.
        m_key: Bit errors in the key basis per intensity, known only after error correction; or None.
        leak_bits: Bits published during reconciliation and verification.
    """

    mean_photon_number: tuple[float, ...]
    intensity_probability: tuple[float, ...]
    n_key: tuple[int, ...]
    n_test: tuple[int, ...]
    m_test: tuple[int, ...]
    m_key: tuple[int, ...] | None
    leak_bits: float


@dataclass(frozen=True, slots=True)
class KeyLength:
    """A proof's answer.

    Attributes:
        length_bits: Secret bits that may be kept; 0 if none.
        proof: Name of the proof.
        rigorous: Whether the formula is a rigorous finite-key bound; others are for comparison only.
        eps_sec: Secrecy parameter of this block.
        eps_cor: Correctness parameter of this block.
        bounds: Intermediate bounds by name (single-photon counts, phase error rate ...).
        reason: Why the length is 0, or "".
        assumptions: What the proof takes for granted about the units.
    """

    length_bits: int
    proof: str
    rigorous: bool
    eps_sec: float
    eps_cor: float
    bounds: Mapping[str, float]
    reason: str = ""
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockStatistics:
    """What is known about one post-processed block; no key bits.

    Attributes:
        block_id: Number of the block on this link.
        first_slot: First slot (pulse number) of the block.
        n_slots: Pulses in the block.
        n_detections: Detections announced.
        n_sifted_key: Sifted bits in the key basis.
        n_sifted_test: Sifted bits in the test basis, all announced.
        qber_test: Fraction of wrong test bits, or None if there are none.
        qber_key: Fraction of key bits that reconciliation corrected, or None before it.
        leak_bits: Bits published in reconciliation and verification, or None before them.
        efficiency: leak_bits of reconciliation over n h(qber_key) (1 is the Shannon limit), or None.
        counts: What the proof worked on, or None.
        key_length: The proof's answer, or None.
        n_keys: Keys made of this block.
        authentication_bytes: Bytes of it that refill the authentication account.
        failed_check: Name of the check that stopped the block, or "".
        failure: What that check found, or "".
        duration_s: Wall-clock seconds per stage, by name.
    """

    block_id: int
    first_slot: int
    n_slots: int
    n_detections: int
    n_sifted_key: int = 0
    n_sifted_test: int = 0
    qber_test: float | None = None
    qber_key: float | None = None
    leak_bits: int | None = None
    efficiency: float | None = None
    counts: DecoyCounts | None = None
    key_length: KeyLength | None = None
    n_keys: int = 0
    authentication_bytes: int = 0
    failed_check: str = ""
    failure: str = ""
    duration_s: Mapping[str, float] = field(default_factory=dict)


@unique
class KeyState(StrEnum):
    """Lifecycle of a key in the store. A key that has left READY never returns to it.

    PENDING: durable here, not yet known to be durable at the peer site.
    READY: durable at both sites; may be taken.
    RESERVED: taken out of the pool for one receiver; not yet handed over.
    DELIVERED: handed over (application or HSM). Terminal.
    BURNT: may have leaked or may exist at one site only; counted, never given out. Terminal.
    """

    PENDING = "pending"
    READY = "ready"
    RESERVED = "reserved"
    DELIVERED = "delivered"
    BURNT = "burnt"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What the store tells about a key: everything but the key.

    Attributes:
        key_id: UUID text, the same at both sites (ETSI GS QKD 014 key_ID).
        link: Name of the link that made it.
        block_id: Block it came from.
        size_bits: Length.
        state: Lifecycle state.
        receiver: Who it was reserved for or delivered to, or "".
        metadata: Proof, epsilons, statistics; JSON-able; never key bits.
    """

    key_id: str
    link: str
    block_id: int
    size_bits: int
    state: KeyState
    receiver: str
    metadata: Mapping[str, Any]

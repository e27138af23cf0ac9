"""Sifting: the receiver announces slot and basis of its detections, the transmitter answers which count.

The receiver never announces when in its slot a click came: arrival times finer than a slot can tell the detector. The
transmitter names basis and intensity only of detections that were announced. Both sites then hold the same positions
in the same order, key basis and test basis apart.

Announcement, little-endian: "QS" and a version byte 1, a zero byte, count uint32, first slot int64, size of the gaps
uint32, the gaps (7 bits a byte, low first), the bases (1 bit each, first in bit 0, padding zero).
Reply: one byte a detection, 0 or 1 + intensity + 4 * basis.

Source: C. C. W. Lim et al., Phys. Rev. A 89, 022307 (2014), section II (sifting of the decoy-state protocol);
A. Lamas-Linares and C. Kurtsiefer, Opt. Express 15, 9388 (2007) (what published arrival times give away).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import sifting as kernels
from qkdhw.errors import PeerProtocolError
from qkdhw.model import Basis

N_INTENSITIES = 3
MAX_ANNOUNCED = 1 << 24
_MAGIC = b"QS\x01\x00"
_HEADER = struct.Struct("<4sIqI")
_SLOT_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class SiftedBlock:
    """One site's sifted bits, one a byte, in the order of detection; the bits are never printed.

    Attributes:
        reply: uint8 (n,), the transmitter's reply: which of the n announced detections these bits are.
        key_bits: uint8 (n_key,), secret.
        test_bits: uint8 (n_test,), secret until they are compared.
        key_intensity: uint8 (n_key,), 0 is the brightest.
        test_intensity: uint8 (n_test,).
    """

    reply: NDArray[np.uint8]
    key_bits: NDArray[np.uint8] = field(repr=False)
    test_bits: NDArray[np.uint8] = field(repr=False)
    key_intensity: NDArray[np.uint8]
    test_intensity: NDArray[np.uint8]

    def wipe(self) -> None:
        """Overwrite all bits with zeros."""
        self.key_bits.fill(0)
        self.test_bits.fill(0)


def announce(slot: NDArray[np.int64], basis: NDArray[np.uint8]) -> bytes:
    """Write the announcement of a block of detections.

    Args:
        slot: int64 (n,), strictly increasing, n <= 2^24, within +-2^62.
        basis: uint8 (n,), 0 key, 1 test.

    Returns:
        The message, about two bytes a detection at one detection in 200 slots.

    Raises:
        ValueError: Lengths differ, slots do not increase, or a basis is above 1.

    Source:
        The wire format is this module's own.
    """
    n = len(slot)
    if len(basis) != n or n > MAX_ANNOUNCED:
        raise ValueError(f"{n} slots and {len(basis)} bases cannot be announced together")
    if n and int(basis.max()) > 1:
        raise ValueError("a basis is 0 or 1")
    first = int(slot[0]) if n else 0
    gaps = np.empty(9 * n, np.uint8)
    size = kernels.encode_slots(slot, first, gaps)
    if size < 0:
        raise ValueError(f"slot {-1 - size} of the announcement does not increase or is out of range")
    header = _HEADER.pack(_MAGIC, n, first, size)
    return header + gaps[:size].tobytes() + np.packbits(basis, bitorder="little").tobytes()


def parse_announcement(message: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read an announcement strictly: one block has exactly one valid encoding.

    Args:
        message: As received, authenticated or not.

    Returns:
        slot int64 (n,), strictly increasing, and basis uint8 (n,).

    Raises:
        PeerProtocolError: Anything is wrong; the message names the offset in bytes.

    Source:
        The wire format is this module's own.
    """
    if len(message) < _HEADER.size:
        raise _bad_announcement(f"{len(message)} bytes are shorter than its header")
    magic, n, first, size = _HEADER.unpack_from(message)
    if magic != _MAGIC:
        raise _bad_announcement("it does not begin with its magic bytes")
    # Every gap takes at least a byte, so this also bounds n by what was received.
    if n > MAX_ANNOUNCED or not n <= size <= 9 * n or len(message) != _HEADER.size + size + (n + 7) // 8:
        raise _bad_announcement(f"{len(message)} bytes do not hold {n} detections with {size} bytes of gaps")
    if not -_SLOT_LIMIT < first < _SLOT_LIMIT or (n == 0 and first != 0):
        raise _bad_announcement(f"first slot {first} is out of range")
    slot = np.empty(n, np.int64)
    gaps = np.frombuffer(message, np.uint8, size, _HEADER.size)
    read = kernels.decode_slots(gaps, first, slot)
    if read < 0 or (n and int(slot[0]) != first):
        raise _bad_announcement(f"the gap at byte {_HEADER.size + max(0, -1 - read)} is wrong")
    packed = np.frombuffer(message, np.uint8, (n + 7) // 8, _HEADER.size + size)
    bases = np.unpackbits(packed, bitorder="little")
    if bases[n:].any():
        raise _bad_announcement("the padding of the bases is not zero")
    return slot, bases[:n].copy()


def sift_at_transmitter(
    slot: NDArray[np.int64], rx_basis: NDArray[np.uint8], record: NDArray[np.uint8], first_slot: int
) -> SiftedBlock:
    """Sift what the receiver announced against what was prepared.

    A slot outside the record is answered with 0. Timing does not depend on bit values.

    Args:
        slot: int64 (n,), strictly increasing.
        rx_basis: uint8 (n,), 0 or 1.
        record: uint8 (N,), preparation record: bit 0 value, bit 1 basis, bits 2-3 intensity 0 .. 2.
        first_slot: Slot of the record's first pulse.

    Returns:
        The transmitter's sifted bits, and in `reply` what to send to the receiver.

    Raises:
        ValueError: Arguments do not fit, or the record holds a byte that no transmitter may give; carries no bits.

    Source:
        C. C. W. Lim et al., Phys. Rev. A 89, 022307 (2014), section II.
    """
    n = len(slot)
    reply = np.empty(n, np.uint8)
    key_bits, test_bits, key_intensity, test_intensity = _four_outputs(n)
    counts = np.zeros(2, np.int64)
    done = kernels.sift_transmitter(
        slot, rx_basis, record, first_slot, reply, key_bits, test_bits, key_intensity, test_intensity, counts
    )
    if done != n:
        raise ValueError(f"detection {done}: its slot does not increase, its basis is above 1 or its record is invalid")
    return _cut(counts, reply, key_bits, test_bits, key_intensity, test_intensity)


def sift_at_receiver(rx_basis: NDArray[np.uint8], rx_bit: NDArray[np.uint8], reply: NDArray[np.uint8]) -> SiftedBlock:
    """Sift the detections that were announced by the transmitter's reply.

    Timing does not depend on bit values.

    Args:
        rx_basis: uint8 (n,), as announced.
        rx_bit: uint8 (n,), secret.
        reply: uint8 (n,), the transmitter's reply as received.

    Returns:
        The receiver's sifted bits.

    Raises:
        PeerProtocolError: The reply has another length, an undefined byte, or names another basis than announced.

    Source:
        C. C. W. Lim et al., Phys. Rev. A 89, 022307 (2014), section II.
    """
    n = len(rx_basis)
    if len(reply) != n:
        raise PeerProtocolError(
            f"the sifting reply has {len(reply)} bytes for {n} detections",
            remedy="Drop this block; check that both sites run the same version.",
        )
    key_bits, test_bits, key_intensity, test_intensity = _four_outputs(n)
    counts = np.zeros(2, np.int64)
    done = kernels.sift_receiver(rx_basis, rx_bit, reply, key_bits, test_bits, key_intensity, test_intensity, counts)
    if done != n:
        raise PeerProtocolError(
            f"byte {done} of the sifting reply is undefined or names another basis than was announced",
            remedy="Drop this block; check that both sites run the same version.",
        )
    return _cut(counts, reply, key_bits, test_bits, key_intensity, test_intensity)


def count_cells(sifted: SiftedBlock) -> NDArray[np.int64]:
    """Count sifted bits per basis and intensity, the n_B,k of the security proofs.

    Args:
        sifted: Either site's block; both give the same counts.

    Returns:
        int64 (2, 3), indexed by Basis and intensity.

    Source:
        C. C. W. Lim et al., Phys. Rev. A 89, 022307 (2014), n_X,k and n_Z,k above equation 2.
    """
    cells = np.zeros((len(Basis), N_INTENSITIES), np.int64)
    cells[Basis.KEY] = np.bincount(sifted.key_intensity, minlength=N_INTENSITIES)
    cells[Basis.TEST] = np.bincount(sifted.test_intensity, minlength=N_INTENSITIES)
    return cells


def _four_outputs(n: int) -> tuple[NDArray[np.uint8], ...]:
    return tuple(np.empty(n, np.uint8) for _ in range(4))


def _cut(
    counts: NDArray[np.int64],
    reply: NDArray[np.uint8],
    key_bits: NDArray[np.uint8],
    test_bits: NDArray[np.uint8],
    key_intensity: NDArray[np.uint8],
    test_intensity: NDArray[np.uint8],
) -> SiftedBlock:
    """Keep what was appended, and erase the scratch: the kernel writes dropped bits beyond it."""
    n_key, n_test = counts.tolist()
    sifted = SiftedBlock(
        reply,
        key_bits[:n_key].copy(),
        test_bits[:n_test].copy(),
        key_intensity[:n_key].copy(),
        test_intensity[:n_test].copy(),
    )
    key_bits.fill(0)
    test_bits.fill(0)
    return sifted


def _bad_announcement(reason: str) -> PeerProtocolError:
    return PeerProtocolError(
        f"bad announcement of detections: {reason}",
        remedy="Drop this block; check that both sites run the same version.",
    )

"""Reconciliation: the receiver corrects its bits to the transmitter's, with syndromes of LDPC codes.

One-way: only the transmitter publishes anything about its bits. The receiver answers with one bit a frame, decoded
or not; it never says which bits were wrong, and which parities come next is fixed beforehand, so nothing else of
its data shows. Hence the leak is what is counted here:

- every parity or bit that the transmitter sends, one by one, and
- one bit for each frame that was still open each time it is the receiver's turn, sent or not.

Messages (integers big-endian; bits packed, first in the most significant bit, spare bits 0):

    first     n (u32), frames (u16), base rows (u16), circulant size (u16), the frames' syndromes one after another
    request   round (u16), for each open frame a bit: 1 if it still does not decode
    answer    round (u16), for each frame asked for, further parities; in the last round the frame's bits

Frame k of F is bits k, k + F, k + 2F ..., so that a stretch of bad bits spreads over all frames; it is filled with
zeros to whole circulants. A string too short for a code is sent whole. Each round adds more parities than the one
before; when they come near the frame's length, or to four times the first syndrome, the frame itself is sent.

Source:
    D. Slepian, J. Wolf, IEEE Trans. Inf. Theory 19 (1973) 471 (the bound n h(q)); A. Liveris, Z. Xiong,
    C. Georghiades, IEEE Commun. Lett. 6 (2002) 440 (syndromes of LDPC codes); D. Tupkary, N. Luetkenhaus,
    arXiv:2307.00576 (what goes wrong when two-way messages are not counted).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import PeerProtocolError
from qkdhw.postprocessing.ldpc_code import LdpcCode, build_code
from qkdhw.quantities import binary_entropy

Bits = NDArray[np.uint8]

FRAME_BITS = 65536
WHOLE_BELOW_BITS = 512
CIRCULANT_SIZE = 128
MIN_QBER, MAX_QBER = 0.002, 0.12
MAX_ITERATIONS = 50
# The first syndrome: what the codes need above the Shannon limit (more where there are few checks), for a frame with
# MARGIN_SIGMA standard deviations more errors than the average. Frames that fail cost a further round, not the block.
CODE_OVERHEAD = 1.10
LOW_QBER_OVERHEAD = 0.0002
MARGIN_SIGMA = 1.0
# Each further round adds this part of the first syndrome, growing by STEP_GROWTH from round to round.
STEP, STEP_GROWTH = 0.04, 1.4
# Above this many times the first syndrome the estimate was plainly wrong, and the frame is sent.
MAX_GROWTH = 4.0
_FIRST = struct.Struct(">IHHH")
_ROUND = struct.Struct(">H")


def efficiency(leak_bits: int, n_bits: int, n_errors: int) -> float:
    """F = leak / (n h(errors / n)); infinite if there was nothing to correct.

    Source:
        G. Brassard, L. Salvail, EUROCRYPT 1993 (leak against the Shannon limit).
    """
    shannon_bits = n_bits * binary_entropy(n_errors / n_bits) if n_bits else 0.0
    return leak_bits / shannon_bits if shannon_bits else math.inf


@dataclass(frozen=True, slots=True)
class _Plan:
    """What both sites derive alike from the number of bits and the estimated QBER."""

    n_bits: int
    frames: int
    columns: int
    rows: int
    size: int

    @classmethod
    def of(cls, n_bits: int, qber_estimate: float) -> _Plan:
        if n_bits < WHOLE_BELOW_BITS:
            return cls(n_bits, min(1, n_bits), 1, 0, n_bits)
        frames = max(1, round(n_bits / FRAME_BITS))
        frame_bits = -(-n_bits // frames)
        qber = min(max(qber_estimate, MIN_QBER), MAX_QBER)
        worse = min(qber + MARGIN_SIGMA * math.sqrt(qber * (1 - qber) / frame_bits), 0.5)
        overhead = CODE_OVERHEAD * (1 + LOW_QBER_OVERHEAD / qber)
        parities = overhead * binary_entropy(worse) * frame_bits
        size = CIRCULANT_SIZE
        while size > 4 and (parities / size < 14 or frame_bits / size < 256):
            size //= 2
        columns = -(-frame_bits // size)
        rows = max(4, math.ceil(parities / size))
        return cls(n_bits, frames, columns, rows, size)

    def frame_bits(self, frame: int) -> int:
        return len(range(frame, self.n_bits, self.frames))

    def further_rows(self, round_number: int) -> int | None:
        """Base rows that rounds 1 .. round_number add, or None if that round sends the frame whole."""
        total = 0
        for k in range(round_number):
            total += max(1, round(STEP * self.rows * STEP_GROWTH**k))
            if self.rows + total > min(0.8 * self.columns, MAX_GROWTH * self.rows):
                return None
        return total

    def code(self, round_number: int) -> LdpcCode:
        return build_code(self.columns, self.rows, self.further_rows(round_number) or 0, self.size)

    def filled(self, bits: Bits, frame: int) -> Bits:
        out = np.zeros(self.columns * self.size, np.uint8)
        own = bits[frame :: self.frames]
        out[: own.size] = own
        return out

    def answer_bits(self, round_number: int, frame: int) -> int:
        """How many bits a frame gets in this round (round 0: its syndrome)."""
        if self.rows == 0 or self.further_rows(round_number) is None:
            return self.frame_bits(frame)
        total = self.further_rows(round_number) or 0
        before = self.further_rows(round_number - 1) or 0 if round_number else -self.rows
        return (total - before) * self.size

    def is_last(self, round_number: int) -> bool:
        return self.rows == 0 or self.further_rows(round_number) is None


class _Ledger:
    """Rounds, open frames and the leak, kept alike at both sites."""

    def __init__(self, bits: Bits, qber_estimate: float) -> None:
        self._bits = bits
        self._plan = _Plan.of(bits.size, qber_estimate)
        self._round = 0
        self._open = list(range(self._plan.frames))
        self.leak_bits = 0

    def _count(self, frames: list[int]) -> int:
        """Note what the transmitter sends in this round and the receiver's turn after it; returns the former."""
        sent = sum(self._plan.answer_bits(self._round, frame) for frame in frames)
        turn = 0 if self._plan.is_last(self._round) else len(frames)
        self.leak_bits += sent + turn
        return sent


class SyndromeSource(_Ledger):
    """The transmitter's side: publishes parities of its bits.

    Args:
        bits: uint8 (n,), each 0 or 1; not modified.
        qber_estimate: Fraction, the same value as at the receiver.

    Attributes:
        leak_bits: What was published so far, as the module's docstring counts it.

    Source:
        The module's docstring.
    """

    def first_message(self) -> bytes:
        """Return the syndromes of all frames; call it once, before anything else."""
        plan = self._plan
        self._count(self._open)
        header = _FIRST.pack(plan.n_bits, plan.frames, plan.rows, plan.size if plan.rows else 0)
        return header + self._parts(self._open)

    def answer(self, request: bytes) -> bytes:
        """Return what the receiver asks for: the next parities of the frames that do not decode.

        Raises:
            PeerProtocolError: The request is malformed, or nothing can be asked for any more.
        """
        if self._plan.is_last(self._round) or not self._open:
            raise PeerProtocolError("the peer asks for more parities although every frame was sent whole")
        if len(request) != _ROUND.size + (len(self._open) + 7) // 8:
            raise PeerProtocolError(f"the peer's request has {len(request)} bytes, which does not fit")
        (number,) = _ROUND.unpack_from(request)
        flags = unpack_exactly(request[_ROUND.size :], len(self._open))
        if number != self._round + 1 or not flags.any():
            raise PeerProtocolError(f"the peer asks for round {number} after round {self._round}, or for no frame")
        self._open = [frame for frame, flag in zip(self._open, flags, strict=True) if flag]
        self._round += 1
        self._count(self._open)
        return _ROUND.pack(self._round) + self._parts(self._open)

    def _parts(self, frames: list[int]) -> bytes:
        if self._plan.is_last(self._round):
            parts = [self._bits[frame :: self._plan.frames] for frame in frames]
        else:
            code = self._plan.code(self._round)
            sizes = [self._plan.answer_bits(self._round, frame) for frame in frames]
            parts = [
                code.syndrome(self._plan.filled(self._bits, frame))[-size:]
                for frame, size in zip(frames, sizes, strict=True)
            ]
        return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


class SyndromeSink(_Ledger):
    """The receiver's side: corrects its bits.

    Args:
        bits: uint8 (n,), each 0 or 1; not modified.
        qber_estimate: Fraction, the same value as at the transmitter.

    Attributes:
        leak_bits: What the transmitter published so far, counted as it counts.
        corrected: uint8 (n,), complete once `receive` returned None. Verification has to confirm it.

    Source:
        The module's docstring.
    """

    def __init__(self, bits: Bits, qber_estimate: float) -> None:
        super().__init__(bits, qber_estimate)
        self.corrected: Bits = bits.copy()
        self._syndromes: dict[int, Bits] = {}
        self._started = False

    @property
    def n_errors(self) -> int:
        """Number of bits in which `corrected` differs from the bits given."""
        return int(np.count_nonzero(self.corrected != self._bits))

    def receive(self, message: bytes) -> bytes | None:
        """Take the transmitter's message; return the request to send, or None when every frame decoded.

        Raises:
            PeerProtocolError: The message does not follow the plan that both sites derive.
        """
        parts = self._parse(message)
        for frame, part in zip(self._open, parts, strict=True):
            if self._plan.is_last(self._round):
                self.corrected[frame :: self._plan.frames] = part
            else:
                known = self._syndromes.get(frame)
                self._syndromes[frame] = part if known is None else np.concatenate((known, part))
        if self._plan.is_last(self._round):
            self._open = []
            return None
        failed = [not self._decode(frame) for frame in self._open]
        if not any(failed):
            self._open = []
            return None
        request = _ROUND.pack(self._round + 1) + np.packbits(np.array(failed, np.uint8)).tobytes()
        self._open = [frame for frame, again in zip(self._open, failed, strict=True) if again]
        return request

    def _parse(self, message: bytes) -> list[Bits]:
        plan = self._plan
        if not self._started:
            expected = _FIRST.pack(plan.n_bits, plan.frames, plan.rows, plan.size if plan.rows else 0)
        elif self._open:
            self._round += 1
            expected = _ROUND.pack(self._round)
        else:
            raise PeerProtocolError("the peer sends parities although every frame is decoded")
        self._started = True
        if message[: len(expected)] != expected:
            raise PeerProtocolError("the peer's parities are for other frames than agreed")
        sizes = [plan.answer_bits(self._round, frame) for frame in self._open]
        self._count(self._open)
        bits = unpack_exactly(message[len(expected) :], sum(sizes))
        return list(np.split(bits, np.cumsum(sizes)[:-1])) if sizes else []

    def _decode(self, frame: int) -> bool:
        plan = self._plan
        code = plan.code(self._round)
        own = plan.filled(self._bits, frame)
        n_frame = plan.frame_bits(frame)
        prior = np.full(own.size, self._prior_llr(code.rows / plan.columns), np.float32)
        prior[n_frame:] = 20.0
        error = code.decode(self._syndromes[frame] ^ code.syndrome(own), prior, MAX_ITERATIONS)
        if error is None or error[n_frame:].any():
            return False
        self.corrected[frame :: plan.frames] = own[:n_frame] ^ error[:n_frame]
        return True

    @staticmethod
    def _prior_llr(rate: float) -> float:
        """ln((1 - q) / q) for the QBER that this syndrome rate is made for: later rounds suppose more errors."""
        low, high = 1e-6, 0.5
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if CODE_OVERHEAD * binary_entropy(middle) < rate else (low, middle)
        return math.log((1 - low) / low)


def unpack_exactly(data: bytes, n_bits: int) -> Bits:
    """Unpack bits, most significant first.

    Raises:
        PeerProtocolError: There are more or fewer bytes than these bits need, or a spare bit is set.

    Source:
        The module's docstring.
    """
    if len(data) != (n_bits + 7) // 8:
        raise PeerProtocolError(f"the peer sent {len(data)} bytes where {(n_bits + 7) // 8} were due")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[n_bits:].any():
        raise PeerProtocolError("the peer set spare bits")
    return bits[:n_bits]

"""Sifting of an entangled source's pairs (BBM92): two sites find common detections and keep those of equal basis.

The site with fewer detections announces times and bases, PairAnnouncer; the other finds the pairs and replies which
detections it keeps, PairSifter. Both then hold the bits of the same detections in the same order, key basis and test
basis apart. A detector is 2 * basis + bit; bits are never announced and choose nothing. Of two detections at one time
the caller keeps one at random before: dropping them would favour a basis.

Announced times must not tell the detector: measure the delays of the four detectors and subtract them before, and
announce no finer than the pairs' jitter asks for.

Wire format, little-endian. Announcement: "QPA" and a version byte 1, sequence uint32, count uint32, first time int64
in units, then Rice-coded gaps with the basis beside (ext/rice.pyx). Reply: "QPR" and 1, sequence uint32, count uint32,
then Rice-coded gaps of the kept indices.

Source: C. H. Bennett, G. Brassard and N. D. Mermin, Phys. Rev. Lett. 68, 557 (1992); C. Ho, A. Lamas-Linares and
C. Kurtsiefer, New J. Phys. 11, 045011 (2009) (a servo on the coincidences); A. Lamas-Linares and C. Kurtsiefer, Opt.
Express 15, 9388 (2007) (what published arrival times give away).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import pair_sifting as kernels
from qkdhw._core import rice
from qkdhw.errors import PeerProtocolError

MAX_DETECTIONS = 1 << 20
_ANNOUNCEMENT = struct.Struct("<4sIIq")
_REPLY = struct.Struct("<4sII")
_LAST_TICK = 1 << 61
_SERVO = slice(0, 3)
_CURSOR, _FREE, _BIT, _UNIT = range(3, 7)
_COUNTS = slice(12, 15)
_BRIDGE = 4096
_NO_BITS = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class SiftedPairs:
    """One site's bits of one announcement, packed, the first in the highest bit; they are never printed.

    Attributes:
        sequence: The announcement's number.
        kept: int64 (n_key + n_test,), indices of the announced detections that are kept.
        n_key: Bits in the key basis.
        n_test: Bits in the test basis.
        key_bits: uint8, n_key bits in whole bytes, the rest zero; secret.
        test_bits: uint8, likewise; secret until they are compared.
    """

    sequence: int
    kept: NDArray[np.int64] = field(repr=False)
    n_key: int
    n_test: int
    key_bits: NDArray[np.uint8] = field(repr=False)
    test_bits: NDArray[np.uint8] = field(repr=False)

    def wipe(self) -> None:
        """Overwrite all bits with zeros."""
        self.key_bits.fill(0)
        self.test_bits.fill(0)


@dataclass(frozen=True, slots=True)
class PairCounts:
    """What became of the detections of one announcement.

    Attributes:
        announced: Detections announced.
        matched: Of these, with a partner inside the window; the kept ones have the partner's basis.
        several: With more than one candidate inside the window; the nearest free one is the partner.
        contested: Without a partner, as earlier detections took all candidates.
        edge: Pairs in the outer half of what the tracking window adds to the window.
        accidentals: How many of `matched` are expected to be accidental, from `edge`.
    """

    announced: int
    matched: int
    several: int
    contested: int
    edge: int
    accidentals: float


@dataclass(frozen=True, slots=True)
class PairAnswer:
    """The reply to one announcement, this site's bits and the counts."""

    reply: bytes = field(repr=False)
    sifted: SiftedPairs
    counts: PairCounts


class PairAnnouncer:
    """The site that announces its detections and learns from the replies which are kept.

    Args:
        unit_ticks: Own ticks in a unit of the announcement, such as 32 on a tagger of 125/32 ps for 125 ps.
        max_waiting: Announcements that may wait for their reply.
    """

    def __init__(self, *, unit_ticks: int = 1, max_waiting: int = 64) -> None:
        if unit_ticks < 1 or max_waiting < 1:
            raise ValueError("unit_ticks and max_waiting are at least 1")
        self._unit_ticks = unit_ticks
        self._max_waiting = max_waiting
        self._waiting: dict[int, NDArray[np.uint8]] = {}
        self._sequence = 0
        self._previous: int | None = None

    def announce(self, ticks: NDArray[np.int64], detectors: NDArray[np.uint8]) -> bytes:
        """Write the announcement of the next detections and keep their bits until the reply.

        Args:
            ticks: int64 (n,), not decreasing, nor before what was announced; n <= 2^20, within +-2^61.
            detectors: uint8 (n,), 2 * basis + bit.

        Returns:
            The message, about 17.2 bits a detection at 0.3 Mcps and 125 ps.

        Raises:
            ValueError: Arrays do not fit, or too many announcements wait for their replies.
        """
        n = len(ticks)
        if n > MAX_DETECTIONS or not kernels.check_events(ticks, detectors, -_LAST_TICK):
            raise ValueError(f"{n} detections are too many, not in order of time, or of a detector above 3")
        if len(self._waiting) >= self._max_waiting:
            raise ValueError(f"{self._max_waiting} announcements wait for their replies")
        units = ticks // self._unit_ticks
        first = int(units[0]) if n else self._previous or 0
        if self._previous is not None and first < self._previous:
            raise ValueError("detections begin before what was announced last")
        data = np.empty(12 * n + 9, np.uint8)
        size = rice.encode_gaps(units, detectors >> np.uint8(1), first, 0, data)
        self._previous = int(units[-1]) if n else first
        sequence = self._sequence
        self._sequence += 1
        self._waiting[sequence] = detectors.copy()
        return _ANNOUNCEMENT.pack(b"QPA\x01", sequence, n, first) + data[:size].tobytes()

    def accept(self, reply: bytes) -> SiftedPairs:
        """Take the bits of the detections that a reply keeps; its announcement is then forgotten.

        Args:
            reply: As received. Replies may come in any order or not at all (forget() then).

        Returns:
            This site's bits.

        Raises:
            PeerProtocolError: The reply is malformed or to nothing that waits; names the offset. What waits stays.
        """
        if len(reply) < _REPLY.size:
            raise _bad("reply", len(reply), "it is shorter than its header")
        magic, sequence, n_kept = _REPLY.unpack_from(reply)
        if magic != b"QPR\x01":
            raise _bad("reply", 0, "it does not begin with its magic bytes")
        detectors = self._waiting.get(sequence)
        if detectors is None:
            raise _bad("reply", 4, f"no announcement {sequence} waits for it")
        if n_kept > len(detectors):
            raise _bad("reply", 8, f"it keeps {n_kept} of {len(detectors)} detections")
        kept = np.empty(n_kept, np.int64)
        read = rice.decode_gaps(_padded(reply)[_REPLY.size :], 0, 1, len(detectors) - 1, kept)
        if read < 0:
            raise _bad("reply", _REPLY.size - 1 - read, "an index is out of range, badly coded or followed by more")
        del self._waiting[sequence]
        chosen = detectors[kept]
        basis, bit = chosen >> 1, chosen & 1
        sifted = _pack(sequence, kept, bit[basis == 0], bit[basis == 1])
        detectors.fill(0)
        return sifted

    def forget(self, sequence: int) -> None:
        """Give up the announcement of this number, whose reply does not come."""
        self._waiting.pop(sequence).fill(0)


@dataclass(frozen=True, slots=True)
class AnnouncedClock:
    """The peer's clock on the own one, from an alignment.

    Attributes:
        offset_ticks: Own tick at the announcer's unit 0.
        ticks_per_unit: Own ticks in a unit, below 2^14; used to 2^-48 tick.
    """

    offset_ticks: int
    ticks_per_unit: Fraction


class _Work:
    """The announcement that is being sifted, and what is kept of it so far."""

    def __init__(self, message: bytes, servo: NDArray[np.int64]) -> None:
        _, self.sequence, self.n, self.first = _ANNOUNCEMENT.unpack_from(message)
        self.message = _padded(message)
        self.servo = servo.copy()
        self.kept = np.empty(self.n, np.int64)
        self.key_bits, self.test_bits = np.empty(self.n, np.uint8), np.empty(self.n, np.uint8)
        self.counts = np.zeros(4, np.int64)

    def wipe(self) -> None:
        """Erase the scratch: the kernel writes dropped bits beyond what is kept."""
        self.key_bits.fill(0)
        self.test_bits.fill(0)


class PairSifter:
    """The site that finds the pairs in its own detections and replies.

    Own events are cut into chunks at will: the answers are the same. A detection is matched when an own event beyond
    its tracking window is there.

    Rule: detections choose in their order; each takes the nearest own event in its window that is later in the stream
    than all that were taken, of two at one distance the earlier.

    Servo: after each 1,024 detections, and after each announcement, the offset moves by the sum of all distances
    inside the tracking window over `servo_pairs`: a centroid, filtered over so many pairs. The rate follows sixteen
    times as slowly, so that a constant drift leaves no lag.

    Args:
        clock: The peer's clock on the own one.
        window_ticks: Largest distance of a pair, in own ticks.
        tracking_ticks: Largest distance that the servo follows, up to 2^20; its outer part gives the accidentals.
        servo_pairs: Power of 2 from 2^10 to 2^20, or 0 for no servo.
        max_waiting: Announcements that may wait for own events.
        max_events: Own events that are kept for announcements to come; later ones are dropped and counted.

    Attributes:
        dropped_events: Own events dropped as too many waited.
        lost_announcements: Announcements that the peer numbered and that did not come.
    """

    def __init__(
        self,
        clock: AnnouncedClock,
        *,
        window_ticks: int,
        tracking_ticks: int,
        servo_pairs: int = 1024,
        max_waiting: int = 64,
        max_events: int = 1 << 26,
    ) -> None:
        if not 0 <= window_ticks < tracking_ticks < 1 << 20:
            raise ValueError("window_ticks is less than tracking_ticks and that less than 2^20")
        if servo_pairs and servo_pairs not in (1 << k for k in range(10, 21)):
            raise ValueError("servo_pairs is a power of 2 from 2^10 to 2^20, or 0")
        if max_waiting < 1 or max_events < 1:
            raise ValueError("max_waiting and max_events are at least 1")
        rate_q48 = round(clock.ticks_per_unit * (1 << 48))
        if not 0 < rate_q48 < 1 << 62 or abs(clock.offset_ticks) >= 1 << 60:
            raise ValueError(f"{clock} is out of range")
        gain_q32 = (1 << 32) // servo_pairs if servo_pairs else 0
        edge_ticks = (window_ticks + tracking_ticks) // 2
        self._rule = (rate_q48, clock.offset_ticks, window_ticks, tracking_ticks, edge_ticks, gain_q32)
        # Of the accidental pairs in the window, how many there are for one in the edges.
        self._edge_weight = Fraction(2 * window_ticks + 1, 2 * (tracking_ticks - edge_ticks))
        self._limit = min(1 << 60, (1 << 108) // rate_q48)
        self._max_waiting, self._max_events = max_waiting, max_events
        self._announcements: deque[bytes] = deque()
        self._work: _Work | None = None
        self._chunks = deque([(np.empty(0, np.int64), np.empty(0, np.uint8))])  # never empty
        self._bridged = 0  # own events at the front of the first chunk that are not in the second
        self._stored = 0
        self._state = np.zeros(15, np.int64)
        self._block = (np.empty(1024, np.int64), np.empty(1024, np.uint8))
        self._last_tick, self._last_sequence, self._last_unit = -_LAST_TICK, -1, -self._limit
        self._closed = False
        self.dropped_events = 0
        self.lost_announcements = 0

    @property
    def servo_ticks(self) -> Fraction:
        """What the servo added to the clock's offset at the last detection, in own ticks."""
        return Fraction(int(self._state[0]), 1 << 32)

    def own_ticks(self, unit: int) -> Fraction:
        """Return the own tick that belongs to a time of the peer, as the servo has it now."""
        rate_q48, offset, *_ = self._rule
        servo_q32, drift_q48, reference = self._state[_SERVO].tolist()
        moved_q48 = unit * rate_q48 + (servo_q32 << 16) + (unit - reference) * drift_q48
        return offset + Fraction(moved_q48, 1 << 48)

    def add_events(self, ticks: NDArray[np.int64], detectors: NDArray[np.uint8]) -> None:
        """Add the next own events. The arrays are kept, not copied: do not write to them afterwards.

        Args:
            ticks: int64 (n,), not decreasing, nor before what was added; within +-2^61.
            detectors: uint8 (n,), 2 * basis + bit.

        Raises:
            ValueError: Arrays do not fit, or close() was called.
        """
        if self._closed:
            raise ValueError("own events were added after close()")
        if not kernels.check_events(ticks, detectors, self._last_tick):
            raise ValueError("own events are not in order of time, or of a detector above 3")
        n = len(ticks)
        if n == 0:
            return
        self._last_tick = int(ticks[-1])
        if self._stored + n > self._max_events:
            self.dropped_events += n
            return
        self._chunks.append((ticks, detectors))
        self._stored += n

    def close(self) -> None:
        """Say that there are no more own events: what waits for some is then answered."""
        self._chunks.append((np.full(1, _LAST_TICK + (1 << 21)), np.zeros(1, np.uint8)))
        self._closed = True

    def add_announcement(self, message: bytes) -> None:
        """Add the next announcement of the peer.

        Args:
            message: As received. Announcements may be missing, but not come twice or out of order.

        Raises:
            PeerProtocolError: Its header is malformed or out of order, or too many wait; names the offset.
        """
        if len(message) < _ANNOUNCEMENT.size:
            raise _bad("announcement", len(message), "it is shorter than its header")
        magic, sequence, n, first = _ANNOUNCEMENT.unpack_from(message)
        if magic != b"QPA\x01":
            raise _bad("announcement", 0, "it does not begin with its magic bytes")
        if sequence <= self._last_sequence:
            raise _bad("announcement", 4, f"its number {sequence} does not follow {self._last_sequence}")
        # A detection takes two bits at least, so this also bounds n by what was received.
        if n > MAX_DETECTIONS or 2 * n > 8 * (len(message) - _ANNOUNCEMENT.size):
            raise _bad("announcement", 8, f"its bytes do not hold {n} detections")
        if not -self._limit <= first <= self._limit:
            raise _bad("announcement", 12, f"its first time {first} is out of range")
        if len(self._announcements) >= self._max_waiting:
            raise _bad("announcement", 4, f"{self._max_waiting} others wait for own events")
        self.lost_announcements += sequence - self._last_sequence - 1
        self._last_sequence = sequence
        self._announcements.append(message)

    def answers(self) -> Iterator[PairAnswer]:
        """Sift as far as announcements and own events reach; give each answer as it is complete.

        Raises:
            PeerProtocolError: The next announcement is malformed; names the offset. It is dropped and the servo set
                back; call again to go on with the one after it.
        """
        while self._work or self._announcements:
            work = self._work = self._work or self._begin(self._announcements.popleft())
            ticks, detectors = self._chunks[0]
            done = kernels.sift_announced(
                work.message, work.n, self._limit, ticks, detectors, *self._rule, self._state, *self._block, work.kept,
                work.key_bits, work.test_bits, work.counts,
            )  # fmt: skip
            if done < 0:
                self._work = None
                self._state[_SERVO] = work.servo
                work.wipe()
                raise _bad("announcement", -1 - done, "a detection is out of range, badly coded or followed by more")
            if done == 1:
                self._work = None
                self._last_unit = int(self._state[_UNIT])
                yield self._answer(work)
            elif not self._next_chunk():
                return

    def _begin(self, message: bytes) -> _Work:
        work = _Work(message, self._state[_SERVO])
        if work.first < self._last_unit:
            raise _bad("announcement", 12, f"its first time {work.first} is before {self._last_unit}, the last before")
        self._state[_FREE + 1 :] = 0
        self._state[_BIT] = 8 * _ANNOUNCEMENT.size
        self._state[_UNIT] = work.first
        return work

    def _next_chunk(self) -> bool:
        """Go on to later own events, with those before that are still in reach; False if there are none.

        A large chunk is not copied: a bridge of the last chunk's rest and this one's first events goes before it.
        """
        cursor = int(self._state[_CURSOR])
        if self._bridged and cursor >= self._bridged:
            self._chunks.popleft()
            self._move(self._bridged)
            self._bridged = 0
            return True
        ticks, detectors = self._chunks.popleft()
        self._move(cursor)
        rest = slice(cursor, self._bridged or None)
        ticks, detectors = ticks[rest].copy(), detectors[rest].copy()
        if not self._chunks:
            self._chunks.append((ticks, detectors))
            return False
        if len(ticks):
            later = self._chunks[0]
            n = len(later[0]) if self._bridged else _BRIDGE
            joined = np.concatenate((ticks, later[0][:n])), np.concatenate((detectors, later[1][:n]))
            if len(later[0]) <= n:
                self._chunks.popleft()
                self._bridged = 0
            else:
                self._bridged = len(ticks)
            self._chunks.appendleft(joined)
        return True

    def _move(self, n: int) -> None:
        """Count own events from n later on; those before are done."""
        self._stored -= n
        self._state[_CURSOR] -= n
        self._state[_FREE] = max(0, int(self._state[_FREE]) - n)

    def _answer(self, work: _Work) -> PairAnswer:
        n_kept, n_key, n_test = self._state[_COUNTS].tolist()
        sifted = _pack(work.sequence, work.kept[:n_kept].copy(), work.key_bits[:n_key], work.test_bits[:n_test])
        work.wipe()
        data = np.empty(12 * n_kept + 9, np.uint8)
        size = rice.encode_gaps(sifted.kept, _NO_BITS, 0, 1, data)
        reply = _REPLY.pack(b"QPR\x01", work.sequence, n_kept) + data[:size].tobytes()
        matched, several, contested, edge = work.counts.tolist()
        # A detection whose true partner is in the window takes no accidental one, or seldom.
        share = edge * self._edge_weight / max(1, work.n)
        # No less where it is more than were matched, which happens by chance: sums over blocks would be too low.
        accidentals = float((work.n - matched) * share / (1 - share)) if share < 1 else float(matched)
        counts = PairCounts(work.n, matched, several, contested, edge, accidentals)
        return PairAnswer(reply, sifted, counts)


def _pack(sequence: int, kept: NDArray[np.int64], key: NDArray[np.uint8], test: NDArray[np.uint8]) -> SiftedPairs:
    return SiftedPairs(sequence, kept, len(key), len(test), np.packbits(key), np.packbits(test))


def _padded(message: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(message + bytes(8), np.uint8)


def _bad(what: str, offset: int, reason: str) -> PeerProtocolError:
    return PeerProtocolError(
        f"bad {what}, byte {offset}: {reason}",
        remedy="Drop this message; check that both sites run the same version.",
    )

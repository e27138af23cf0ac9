"""Sites that share photon pairs: what both have, and the one that announces times and bases."""

from __future__ import annotations

import secrets
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import rice
from qkdhw.bench.pipeline.ahead import Ahead
from qkdhw.bench.pipeline.photons import PhotonFilter, Photons
from qkdhw.bench.pipeline.pieces import PIECE_EVENTS, PIECE_S, Pieces, Source
from qkdhw.errors import PeerProtocolError
from qkdhw.events.wiring import Wiring
from qkdhw.model import DetectionBlock
from qkdhw.postprocessing.announced_times import no_pairs, parse_unplaced_reply
from qkdhw.postprocessing.pair_sifting import PairAnnouncer, SiftedPairs
from qkdhw.quantities import PS_PER_S

ALIGN_S = Fraction(2)
MAX_WAITING = 64
_TIMES = struct.Struct("<4sIqqq")
_MAGIC = b"QPT\x01"
_LIMIT = 1 << 61
_MOST_KEPT_S = 3600  # of own events, while the clock is looked for
_SHORTEST_UNIT_PS, _LONGEST_UNIT_PS = Fraction(1, 1 << 20), 1 << 40


@dataclass(frozen=True, slots=True)
class PairStatistics:
    """What became of the events at one site of a pair source; every event is in exactly one of `fates`.

    Attributes:
        n_events: Events taken in, all kinds.
        n_waiting: Taken in, not yet announced, or not yet offered to the search for pairs.
        n_not_photons: Markers, gaps, dummies and other events that are no detections.
        n_unwired: Dropped: an input without a detector.
        n_simultaneous: Dropped: another detection at the same tick was drawn.
        n_dropped: Dropped: too many waited for announcements.
        n_clock_lost: Dropped: announced or seen while the clock was lost, so that they could not be placed.
        n_unanswered: Announced, without a reply yet; at the other site: waits for an announcement or has no partner.
        n_refused: Dropped: no partner, or one of another basis (at the other site: of another basis only).
        n_key: Sifted key bits.
        n_test: Sifted test bits.
        n_missed: Events that the stream says were lost before it; never taken in.
        n_late: Events dropped before, as they came too late to be put in order; never taken in.
        n_overflows: Overflows that the unit told of.
        n_unit_stalls: How often the unit's ring was full and its reading stopped.
        n_stalls: How often the pipeline's queue was full and its reader waited.
        n_clock_losses: How often the clock was lost; at the site that finds it, as the rest.
        n_relocks: How often it was found again.
        n_clock_moves: How often it stepped by so little that it was followed.
    """

    n_events: int = 0
    n_waiting: int = 0
    n_not_photons: int = 0
    n_unwired: int = 0
    n_simultaneous: int = 0
    n_dropped: int = 0
    n_clock_lost: int = 0
    n_unanswered: int = 0
    n_refused: int = 0
    n_key: int = 0
    n_test: int = 0
    n_missed: int = 0
    n_late: int = 0
    n_overflows: int = 0
    n_unit_stalls: int = 0
    n_stalls: int = 0
    n_clock_losses: int = 0
    n_relocks: int = 0
    n_clock_moves: int = 0

    @property
    def fates(self) -> dict[str, int]:
        """What became of events, by name; the values sum to `n_events`."""
        names = (
            "waiting", "not_photons", "unwired", "simultaneous", "dropped", "clock_lost", "unanswered", "refused",
            "key", "test",
        )  # fmt: skip
        return {name: getattr(self, f"n_{name}") for name in names}


class _PairSite:
    """What both sites have: photons, read ahead, and the first seconds of them for the search of the clock."""

    def __init__(
        self,
        source: Source,
        wiring: Wiring,
        random_bytes: Callable[[int], bytes],
        piece_events: int,
        piece_s: Fraction | float,
        duration_s: float | None,
        timeout_s: float,
    ) -> None:
        self._pieces = Pieces(source, piece_events=piece_events, piece_s=piece_s, duration_s=duration_s)
        self._ahead = Ahead(self._pieces.read, "event reader", timeout_s=timeout_s)
        self._filter = PhotonFilter(wiring, random_bytes)
        self._waiting: deque[Photons] = deque()
        self._ended = False
        self._n_events = self._n_key = self._n_test = 0
        self._tick_ps = Fraction(0)

    def __enter__(self) -> Self:
        self._ahead.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead.__exit__(kind, error, trace)

    def stop(self) -> None:
        """End the stream; what was read before is still handled. May be called from any thread."""
        self._ahead.stop()

    def _read(self) -> Photons | None:
        """Return the next photons, None at the end."""
        piece: DetectionBlock | None = next(self._ahead, None)
        if piece is not None:
            self._n_events += len(piece)
            self._tick_ps = piece.tick_ps
            return self._filter.feed(piece)
        if self._ended:
            return None
        self._ended = True
        return self._filter.flush()

    def _next_photons(self) -> Photons | None:
        return self._waiting.popleft() if self._waiting else self._read()

    def _wait_for(self, span_s: Fraction, *, until_s: Fraction | None = None) -> Photons:
        """Read so long a time, and up to a time of the own clock, keep it and return it in one; an hour at most."""
        while (photons := self._read()) is not None:
            if len(photons):
                self._waiting.append(photons)
                span = int(photons.ticks[-1]) - int(self._waiting[0].ticks[0])
                reached = until_s is None or int(photons.ticks[-1]) * self._tick_ps >= until_s * PS_PER_S
                span_ps = span * self._tick_ps
                if span_ps >= _MOST_KEPT_S * PS_PER_S or (reached and span_ps >= span_s * PS_PER_S):
                    break
        nothing = Photons(np.empty(0, np.int64), np.empty(0, np.uint8))
        return Photons(np.concatenate([nothing.ticks, *(p.ticks for p in self._waiting)]), nothing.detectors)

    def _statistics(
        self, *, n_refused: int, n_offered: int, n_clock_lost: int, n_dropped: int = 0, n_held: int = 0
    ) -> PairStatistics:
        source, photons = self._pieces.counts, self._filter
        return PairStatistics(
            n_events=self._n_events,
            n_waiting=sum(map(len, self._waiting)) + photons.n_waiting + n_held,
            n_not_photons=photons.n_not_photons,
            n_unwired=photons.n_unwired,
            n_simultaneous=photons.n_simultaneous,
            n_dropped=n_dropped,
            n_clock_lost=n_clock_lost,
            n_unanswered=n_offered - n_dropped - n_clock_lost - n_refused - self._n_key - self._n_test,
            n_refused=n_refused,
            n_key=self._n_key,
            n_test=self._n_test,
            n_missed=source.missed,
            n_late=source.late,
            n_overflows=source.overflows,
            n_unit_stalls=source.stalls,
            n_stalls=self._ahead.stalls,
        )


class PairAnnouncerPipeline(_PairSite):
    """The site with fewer detections; a context manager and an iterator of announcements.

    Announced times must not tell the detector: the delays of the detectors must be equal, or subtracted before.

    Args:
        source: An open tagger or receiver, an event file or its path, or blocks in order.
        wiring: Which input is which detector.
        unit_ticks: Ticks in a unit of the announced times: no finer than the jitter of pairs asks for.
        align_s: How much of the stream's beginning is sent for the search of the clock.
        random_bytes: Source of fresh random bytes for detections at the same tick.
        piece_events: Most events announced at once, up to 2^20.
        piece_s: Longest time of the stream announced at once.
        duration_s: End after this time of the stream.
        timeout_s: Longest wait for events.
    """

    def __init__(
        self,
        source: Source,
        wiring: Wiring,
        *,
        unit_ticks: int = 1,
        align_s: Fraction | float = ALIGN_S,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        piece_events: int = PIECE_EVENTS,
        piece_s: Fraction | float = PIECE_S,
        duration_s: float | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(source, wiring, random_bytes, piece_events, piece_s, duration_s, timeout_s)
        self._unit_ticks, self._align_s = unit_ticks, Fraction(align_s)
        self._announcer = PairAnnouncer(unit_ticks=unit_ticks, max_waiting=MAX_WAITING)
        self._announced = self._refused = self._unplaced = 0
        self._sizes: dict[int, int] = {}
        self._sequence = 0

    @property
    def statistics(self) -> PairStatistics:
        """What became of everything so far."""
        return self._statistics(n_refused=self._refused, n_offered=self._announced, n_clock_lost=self._unplaced)

    def first_times(self) -> bytes:
        """Return the first times of the stream, for the other site to find the clock; call it before iterating.

        Raises:
            QkdhwError: As for iterating.
        """
        units = self._wait_for(self._align_s).ticks // self._unit_ticks
        first = int(units[0]) if len(units) else 0
        data = np.empty(12 * len(units) + 9, np.uint8)
        size = rice.encode_gaps(units, np.empty(0, np.uint8), first, 0, data)
        unit_ps = self._tick_ps * self._unit_ticks
        return _TIMES.pack(_MAGIC, len(units), first, *unit_ps.as_integer_ratio()) + data[:size].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next announcement.

        Raises:
            EventError: The events are wrong (time goes backwards, the tick changes), or the file is.
            UnitError: The unit failed.
            TransportTimeoutError: No events came in time; asking again is allowed.
            ValueError: 64 announcements wait for their replies.
        """
        if len(self._sizes) >= MAX_WAITING:
            raise ValueError(f"{MAX_WAITING} announcements wait for their replies")
        while (photons := self._next_photons()) is not None:
            if len(photons):
                self._announced += len(photons)
                self._sizes[self._sequence] = len(photons)
                self._sequence += 1
                announcement = self._announcer.announce(photons.ticks, photons.detectors)
                photons.detectors.fill(0)
                return announcement
        raise StopIteration

    def sift(self, reply: bytes) -> SiftedPairs:
        """Take a reply; its announcement is then forgotten.

        Replies come later than their announcements, in order: the other site waits for what the clock did meanwhile.

        Returns:
            This site's bits; none if the other site had no clock to place what was announced.

        Raises:
            PeerProtocolError: The reply does not fit; the announcement waits on.
        """
        unplaced = parse_unplaced_reply(reply)
        if unplaced is not None:
            return self._give_up(unplaced)
        sifted = self._announcer.accept(reply)
        self._refused += self._sizes.pop(sifted.sequence) - len(sifted.kept)
        self._n_key += sifted.n_key
        self._n_test += sifted.n_test
        return sifted

    def _give_up(self, sequence: int) -> SiftedPairs:
        if sequence not in self._sizes:
            raise PeerProtocolError(
                f"bad reply, byte 4: no announcement {sequence} waits for it",
                remedy="Drop this message; check that both sites run the same version.",
            )
        self._announcer.forget(sequence)
        self._unplaced += self._sizes.pop(sequence)
        return no_pairs(sequence)


def parse_first_times(message: bytes) -> tuple[NDArray[np.int64], Fraction]:
    """Read what `first_times` wrote: times in units, and the length of a unit in picoseconds.

    Raises:
        PeerProtocolError: It is malformed.
    """
    wrong = PeerProtocolError("bad message of first times", remedy="check that both sites run the same version")
    if len(message) < _TIMES.size:
        raise wrong
    magic, n, first, above, below = _TIMES.unpack_from(message)
    # A time takes two bits at least, so this also bounds n by what was received.
    if magic != _MAGIC or above < 1 or below < 1 or 2 * n > 8 * (len(message) - _TIMES.size) or abs(first) > _LIMIT:
        raise wrong
    unit_ps = Fraction(above, below)
    if not _SHORTEST_UNIT_PS <= unit_ps <= _LONGEST_UNIT_PS:
        raise wrong
    units = np.empty(n, np.int64)
    data = np.frombuffer(message + bytes(8), np.uint8, offset=_TIMES.size)
    if rice.decode_gaps(data, first, 0, _LIMIT, units) < 0:
        raise wrong
    if n and int(units[-1] - units[0]) * unit_ps > _MOST_KEPT_S * PS_PER_S:
        raise wrong
    return units, unit_ps

"""Sites that share photon pairs: one announces times and bases, the other finds the pairs and replies what it keeps."""

from __future__ import annotations

import math
import secrets
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Self

import numpy as np

from qkdhw._core import rice
from qkdhw.bench.pipeline.ahead import Ahead
from qkdhw.bench.pipeline.photons import PhotonFilter, Photons
from qkdhw.bench.pipeline.pieces import PIECE_EVENTS, PIECE_S, Pieces, Source
from qkdhw.errors import PeerProtocolError
from qkdhw.events.alignment import MAX_PPM
from qkdhw.events.pair_alignment import MAX_OFFSET_S, PairAlignment, align_pair_times
from qkdhw.events.pair_correlation import PairClock
from qkdhw.events.wiring import Wiring
from qkdhw.model import DetectionBlock
from qkdhw.postprocessing.pair_sifting import AnnouncedClock, PairAnnouncer, PairAnswer, PairSifter, SiftedPairs
from qkdhw.quantities import PS_PER_S

ALIGN_S = Fraction(2)
MAX_WAITING = 64
_TIMES = struct.Struct("<4sIqqq")
_MAGIC = b"QPT\x01"
_LIMIT = 1 << 61


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
        n_unanswered: Announced, without a reply yet; at the other site: waits for an announcement or has no partner.
        n_refused: Dropped: no partner, or one of another basis (at the other site: of another basis only).
        n_key: Sifted key bits.
        n_test: Sifted test bits.
        n_missed: Events that the stream says were lost before it; never taken in.
        n_late: Events dropped before, as they came too late to be put in order; never taken in.
        n_overflows: Overflows that the unit told of.
        n_unit_stalls: How often the unit's ring was full and its reading stopped.
        n_stalls: How often the pipeline's queue was full and its reader waited.
    """

    n_events: int = 0
    n_waiting: int = 0
    n_not_photons: int = 0
    n_unwired: int = 0
    n_simultaneous: int = 0
    n_dropped: int = 0
    n_unanswered: int = 0
    n_refused: int = 0
    n_key: int = 0
    n_test: int = 0
    n_missed: int = 0
    n_late: int = 0
    n_overflows: int = 0
    n_unit_stalls: int = 0
    n_stalls: int = 0

    @property
    def fates(self) -> dict[str, int]:
        """What became of events, by name; the values sum to `n_events`."""
        names = (
            "waiting", "not_photons", "unwired", "simultaneous", "dropped", "unanswered", "refused", "key", "test",
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

    def _wait_for(self, span_s: Fraction) -> Photons:
        """Read so long a time, keep it and return it in one."""
        while (photons := self._read()) is not None:
            if len(photons):
                self._waiting.append(photons)
                span = int(photons.ticks[-1]) - int(self._waiting[0].ticks[0])
                if span * self._tick_ps >= span_s * PS_PER_S:
                    break
        nothing = Photons(np.empty(0, np.int64), np.empty(0, np.uint8))
        return Photons(np.concatenate([nothing.ticks, *(p.ticks for p in self._waiting)]), nothing.detectors)

    def _statistics(self, *, n_dropped: int, n_refused: int, n_offered: int) -> PairStatistics:
        source, photons = self._pieces.counts, self._filter
        return PairStatistics(
            n_events=self._n_events,
            n_waiting=sum(map(len, self._waiting)) + photons.n_waiting,
            n_not_photons=photons.n_not_photons,
            n_unwired=photons.n_unwired,
            n_simultaneous=photons.n_simultaneous,
            n_dropped=n_dropped,
            n_unanswered=n_offered - n_dropped - n_refused - self._n_key - self._n_test,
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
        self._announced = self._refused = 0
        self._sizes: deque[int] = deque()

    @property
    def statistics(self) -> PairStatistics:
        """What became of everything so far."""
        return self._statistics(n_dropped=0, n_refused=self._refused, n_offered=self._announced)

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
                self._sizes.append(len(photons))
                announcement = self._announcer.announce(photons.ticks, photons.detectors)
                photons.detectors.fill(0)
                return announcement
        raise StopIteration

    def sift(self, reply: bytes) -> SiftedPairs:
        """Take the reply to the oldest announcement without one.

        Raises:
            PeerProtocolError: The reply does not fit; the announcement waits on.
        """
        sifted = self._announcer.accept(reply)
        self._refused += self._sizes.popleft() - len(sifted.kept)
        self._n_key += sifted.n_key
        self._n_test += sifted.n_test
        return sifted


class PairSifterPipeline(_PairSite):
    """The site that finds the clock and the pairs; a context manager.

    Args:
        source: As for the announcer.
        wiring: Which input is which detector.
        window_ps: Full width of the coincidence window.
        tracking_ps: Full width of what the drift servo follows; three windows if not given.
        max_offset_s: Largest difference of the two sites' times of the same moment.
        max_ppm: Largest relative difference of the two clocks, parts per million.
        random_bytes: As for the announcer, likewise the rest.
        piece_events: See there.
        piece_s: See there.
        duration_s: See there.
        timeout_s: See there.
    """

    def __init__(
        self,
        source: Source,
        wiring: Wiring,
        *,
        window_ps: Fraction | int,
        tracking_ps: Fraction | int | None = None,
        max_offset_s: float = MAX_OFFSET_S,
        max_ppm: float = MAX_PPM,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        piece_events: int = PIECE_EVENTS,
        piece_s: Fraction | float = PIECE_S,
        duration_s: float | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(source, wiring, random_bytes, piece_events, piece_s, duration_s, timeout_s)
        self._window_ps, self._tracking_ps = Fraction(window_ps), Fraction(tracking_ps or 3 * window_ps)
        self._max_offset_s, self._max_ppm = max_offset_s, max_ppm
        self._sifter: PairSifter | None = None
        self._closed = False
        self._offered = self._matched = 0
        self.accidentals = 0.0

    @property
    def statistics(self) -> PairStatistics:
        """What became of everything so far."""
        dropped = self._sifter.dropped_events if self._sifter else 0
        refused = self._matched - self._n_key - self._n_test
        return self._statistics(n_dropped=dropped, n_refused=refused, n_offered=self._offered)

    def align(self, first_times: bytes) -> PairAlignment:
        """Find the clock from the other site's first times; once, before the first announcement.

        Raises:
            PeerProtocolError: The message is malformed.
            ClockAlignmentError: No offset and rate stand out with 6 standard deviations.
            EventError: The events are wrong.
        """
        units, unit_ps = _parse_times(first_times)
        span_s = Fraction(int(units[-1]) - int(units[0])) * unit_ps / PS_PER_S if len(units) else Fraction(0)
        own = self._wait_for(span_s + 2 * Fraction(self._max_offset_s))
        tick_ps = self._tick_ps or Fraction(1)
        found = align_pair_times(
            units,
            own.ticks,
            PairClock.nominal(unit_ps, tick_ps),
            reach_ticks=math.ceil(Fraction(self._max_offset_s) * PS_PER_S / unit_ps),
            max_ppm=self._max_ppm,
            resolution_ticks=self._window_ps / tick_ps,
            span_ticks=int(span_s * PS_PER_S / unit_ps) + 1,
        )
        self._sifter = PairSifter(
            AnnouncedClock(round(found.clock.map_ticks(0)), found.clock.rate),
            window_ticks=int(self._window_ps / 2 / tick_ps),
            tracking_ticks=int(self._tracking_ps / 2 / tick_ps),
            max_waiting=MAX_WAITING,
        )
        return found

    def answer(self, announcement: bytes) -> list[PairAnswer]:
        """Take an announcement, and give the replies, usually one, that are complete; own events are read as needed.

        Raises:
            PeerProtocolError: The announcement is malformed or out of order.
            QkdhwError: As for the announcer's iteration.
            ValueError: The clock was not looked for.
        """
        if self._sifter is None:
            raise ValueError("align first")
        self._sifter.add_announcement(announcement)
        while True:
            answers = list(self._sifter.answers())
            if answers or self._closed:
                for answer in answers:
                    self._matched += answer.counts.matched
                    self._n_key += answer.sifted.n_key
                    self._n_test += answer.sifted.n_test
                    self.accidentals += answer.counts.accidentals
                return answers
            self._offer(self._sifter)

    def _offer(self, sifter: PairSifter) -> None:
        photons = self._next_photons()
        if photons is None:
            sifter.close()
            self._closed = True
        else:
            self._offered += len(photons)
            sifter.add_events(photons.ticks, photons.detectors)


def _parse_times(message: bytes) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], Fraction]:
    wrong = PeerProtocolError("bad message of first times", remedy="check that both sites run the same version")
    if len(message) < _TIMES.size:
        raise wrong
    magic, n, first, above, below = _TIMES.unpack_from(message)
    # A time takes two bits at least, so this also bounds n by what was received.
    if magic != _MAGIC or above < 1 or below < 1 or 2 * n > 8 * (len(message) - _TIMES.size) or abs(first) > _LIMIT:
        raise wrong
    units = np.empty(n, np.int64)
    data = np.frombuffer(message + bytes(8), np.uint8, offset=_TIMES.size)
    if rice.decode_gaps(data, first, 0, _LIMIT, units) < 0:
        raise wrong
    return units, Fraction(above, below)

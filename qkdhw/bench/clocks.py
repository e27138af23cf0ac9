"""Clocks of two files: where to look for one in terms of the other, what was found, and times put on one clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.ordered import first_events
from qkdhw.errors import ClockAlignmentError, ConfigurationError, EventError
from qkdhw.events.alignment import Alignment
from qkdhw.events.pair_alignment import MAX_OFFSET_S, RESOLUTION_PS, SPAN_S, PairAlignment, align_pairs
from qkdhw.formats import EventFile
from qkdhw.formats.event_file import Tally
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.quantities import PS_PER_S

_LARGEST_FILE_BYTES = 1 << 20
_LONGEST_NUMBER = 100
_MAX_RELATIVE = Fraction(1, 512)
_SEGMENT_LOG2 = 40  # ticks over which a time is counted from one exact reference
_LIMB = 20
_MAX_TICKS = 1 << 62
_REMEDY = "Give what `qkdhw events align A B --out CLOCK.json` wrote for these two files, A first."


@dataclass(frozen=True, slots=True)
class FileClock:
    """The clock of a file B in terms of a file A's: B reads `b_ticks` when A reads `a_ticks`; exact numbers.

    Attributes:
        a_ticks: A time of A, in its ticks.
        b_ticks: The time of B at that moment, in its ticks.
        rate: Ticks of B to a tick of A.
        a_tick_ps: Tick of A.
        b_tick_ps: Tick of B.

    Raises:
        ConfigurationError: A number is out of range, or the clocks' rates differ by more than a 512th.
    """

    a_ticks: int
    b_ticks: Fraction
    rate: Fraction
    a_tick_ps: Fraction
    b_tick_ps: Fraction

    def __post_init__(self) -> None:
        is_near = abs(self.a_ticks) <= _MAX_TICKS and abs(self.b_ticks) <= _MAX_TICKS
        if min(self.rate, self.a_tick_ps, self.b_tick_ps) <= 0 or not is_near:
            raise ConfigurationError("a clock has a number that is out of range", remedy=_REMEDY)
        if abs(self.relative_rate) > _MAX_RELATIVE:
            raise ConfigurationError(
                f"the two clocks' rates differ by {float(self.relative_rate):.3g}, more than a 512th", remedy=_REMEDY
            )

    @property
    def offset_ps(self) -> Fraction:
        """B's time less A's at the reference."""
        return self.b_ticks * self.b_tick_ps - self.a_ticks * self.a_tick_ps

    @property
    def relative_rate(self) -> Fraction:
        """Rate of B's clock over that of A's, less 1."""
        return self.rate * self.b_tick_ps / self.a_tick_ps - 1

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-able; fractions are text such as "125/32"."""
        return {
            "a_ticks": self.a_ticks,
            "b_ticks": str(self.b_ticks),
            "b_ticks_per_a_tick": str(self.rate),
            "a_tick_ps": str(self.a_tick_ps),
            "b_tick_ps": str(self.b_tick_ps),
        }

    def on_a(self, block: DetectionBlock) -> DetectionBlock:
        """Give events of B the times of A's clock, each rounded to the nearest tick of B; their order stays.

        Raises:
            EventError: A time leaves +-2^62 ticks.
        """
        moved = np.empty(len(block), np.int64)
        segments = block.time_ticks >> _SEGMENT_LOG2
        for segment in np.unique(segments).tolist():
            here = segments == segment
            moved[here] = self._moved(block.time_ticks[here], segment << _SEGMENT_LOG2)
        return replace(block, time_ticks=moved)

    def _moved(self, ticks: NDArray[np.int64], first: int) -> NDArray[np.int64]:
        """Move times from `first` on: exact there, and within 2^-8 of a tick before they are rounded."""
        slow = 1 - 1 / (1 + self.relative_rate)  # a time since `first` is longer by this on B's clock
        at_first = self.a_ticks * self.a_tick_ps / self.b_tick_ps + (first - self.b_ticks) * (1 - slow)
        whole, rest_q48 = divmod(int((at_first + Fraction(1, 2)) * (1 << 48) // 1), 1 << 48)
        if abs(whole) + (2 << _SEGMENT_LOG2) > _MAX_TICKS:
            raise EventError("by this clock a time lies beyond 2^62 ticks", remedy=_REMEDY)
        since, slow_q48 = ticks - first, round(slow * (1 << 48))
        low, high = since & ((1 << _LIMB) - 1), since >> _LIMB
        # floor((rest - since * slow) / 2^48) in two limbs, as the product does not fit 64 bits
        correction = (((rest_q48 - low * slow_q48) >> _LIMB) - high * slow_q48) >> (48 - _LIMB)
        return since + correction + whole


def read_clock(path: Path) -> FileClock:
    """Read the clock that `qkdhw events align --out` or `--json` wrote.

    Raises:
        ConfigurationError: The file cannot be read, or it is none.
    """
    try:
        with path.open("rb") as file:
            return _clock_in(file.read(_LARGEST_FILE_BYTES + 1))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", remedy=_REMEDY) from error
    except KeyError as error:
        raise ConfigurationError(f"{path} holds no clock: {error} is missing", remedy=_REMEDY) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"{path} holds no clock: {error}", remedy=_REMEDY) from error


def on_clock_of(a: EventFile, b: EventFile, clock: FileClock) -> EventFile:
    """Return a file B whose events have the times of A's clock; see `FileClock.on_a`.

    Raises:
        ConfigurationError: The clock is that of files with other ticks.
    """
    if (a.tick_ps, b.tick_ps) != (clock.a_tick_ps, clock.b_tick_ps):
        raise ConfigurationError(
            f"the clock is of files with ticks of {clock.a_tick_ps} and {clock.b_tick_ps} ps, and these have "
            f"{a.tick_ps} and {b.tick_ps} ps",
            remedy=_REMEDY,
        )

    def decode(max_events: int, tally: Tally) -> Iterator[DetectionBlock]:
        for block in b.decode(max_events, tally):
            yield block if block.fine_ticks is not None else clock.on_a(block)

    return replace(b, decode=decode)


def _clock_in(octets: bytes) -> FileClock:
    if len(octets) > _LARGEST_FILE_BYTES:
        raise ValueError("it is longer than 1 MiB")
    told = json.loads(octets)["clock"]
    if type(told["a_ticks"]) is not int:
        raise TypeError("a_ticks is no integer")
    names = ("b_ticks", "b_ticks_per_a_tick", "a_tick_ps", "b_tick_ps")
    return FileClock(told["a_ticks"], *(_fraction(told[name]) for name in names))


def _fraction(text: Any) -> Fraction:
    if not isinstance(text, str) or len(text) > _LONGEST_NUMBER or "e" in text.lower():
        raise ValueError(f"{str(text)[:_LONGEST_NUMBER]!r} is no fraction")
    try:
        return Fraction(text)
    except ZeroDivisionError as error:
        raise ValueError(f"{text!r} is no fraction") from error


@dataclass(frozen=True, slots=True)
class OffsetGuess:
    """Where the search for a clock begins.

    Attributes:
        offset_s: About how much later the second file's clock reads.
        max_offset_s: How far from that it is looked for.
        source: "given", "same epoch" (none was given, and the times overlap), or "first events" (none was given, the
            times do not overlap, and the files were taken to begin at about the same moment).
        late_s: How much of the first file lies before the second's beginning, if that is so, or the other way round if
            it is below 0; 0 where the part that is searched has both anyway.
        a_ticks: The time of the first file's first photon, in its ticks.
    """

    offset_s: Fraction
    max_offset_s: float
    source: str
    late_s: Fraction
    a_ticks: int

    def as_dict(self) -> dict[str, Any]:
        """Return what was looked at, JSON-able."""
        return {
            "offset_guess_s": float(self.offset_s),
            "offset_guess_from": self.source,
            "max_offset_s": self.max_offset_s,
        }

    def explained(self, error: ClockAlignmentError) -> ClockAlignmentError:
        """Return the error; it says so if the guess was one that nobody gave."""
        if self.source != "first events":
            return error
        return ClockAlignmentError(
            f"{error} (no --offset was given and the two files have no times in common, so their beginnings, "
            f"{float(self.offset_s):.6g} s apart, were taken for the same moment within {self.max_offset_s:g} s)",
            remedy="Say about how many seconds later the second file's clock reads (--offset; 0 if both count from the "
            "same moment), how far from that it may be (--max-offset), or read more of both files.",
        )


def guess_offset(
    a: EventFile, b: EventFile, *, offset_s: Fraction | None, max_offset_s: float, seconds: float
) -> OffsetGuess:
    """Say where to look for the clock of B: where the user says, or where the files' first times let it lie.

    Args:
        a: The first file.
        b: The second.
        offset_s: About how much later B's clock reads; None if nobody knows.
        max_offset_s: How far from that it may lie.
        seconds: How much of the files is searched.

    Raises:
        EventError: A file has no events, or cannot be read.
    """
    a_ticks = first_ticks(a)
    apart_s = (first_ticks(b) * b.tick_ps - a_ticks * a.tick_ps) / PS_PER_S
    if offset_s is not None:
        return OffsetGuess(offset_s, max_offset_s, "given", apart_s - offset_s, a_ticks)
    if abs(apart_s) < Fraction(seconds) + Fraction(max_offset_s):
        return OffsetGuess(Fraction(0), max_offset_s, "same epoch", Fraction(0), a_ticks)
    earlier, later_ps = (a, a_ticks * a.tick_ps + apart_s * PS_PER_S) if apart_s > 0 else (b, a_ticks * a.tick_ps)
    if any(int(block.time_ticks[-1]) * earlier.tick_ps >= later_ps for block in earlier.read_blocks()):
        return OffsetGuess(Fraction(0), max_offset_s, "same epoch", apart_s, a_ticks)
    return OffsetGuess(apart_s, max(max_offset_s, seconds / 2), "first events", Fraction(0), a_ticks)


def first_ticks(file: EventFile) -> int:
    """Return the time of a file's first photon, in ticks.

    Raises:
        EventError: There is none, or the file cannot be read.
    """
    for block in file.read_blocks():
        photons = block.time_ticks[block.kind == EventKind.PHOTON]
        if len(photons):
            return int(photons[0])
    raise EventError(f"{file.path} has no photons", remedy="`qkdhw events info` says what is in it.")


@dataclass(frozen=True, slots=True)
class FoundClock:
    """The clock of a file B in terms of a file A's, as it was found.

    Attributes:
        clock: Its reference is the first photon of A.
        alignment: How it was found.
        guess: Where it was looked for.
    """

    clock: FileClock
    alignment: PairAlignment
    guess: OffsetGuess

    @classmethod
    def of(cls, found: PairAlignment, guess: OffsetGuess, a_tick_ps: Fraction, b_tick_ps: Fraction) -> FoundClock:
        """Refer an alignment to the first photon of A."""
        a_ticks = guess.a_ticks
        clock = FileClock(a_ticks, found.clock.map_ticks(a_ticks), found.clock.rate, a_tick_ps, b_tick_ps)
        return cls(clock, found, guess)

    @property
    def numbers(self) -> dict[str, Any]:
        """What people look at: offset, rate, and how sure they are."""
        found, b_tick_ps = self.alignment, self.clock.b_tick_ps
        return {
            "offset_ps": float(self.clock.offset_ps),
            "relative_rate_ppm": float(found.relative_rate) * 1e6,
            "resolution_ps": float(found.resolution_ticks * b_tick_ps),
            "pairs_in_the_bin": found.pairs,
            "accidentals_in_the_bin": found.accidentals,
            "significance_sigma": found.significance,
            "search_significance_sigma": found.search_significance,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-able; `read_clock` reads it."""
        exact = {"relative_rate": str(self.alignment.relative_rate), "clock": self.clock.as_dict()}
        return self.numbers | self.guess.as_dict() | exact


def align_files(
    a: EventFile,
    b: EventFile,
    *,
    seconds: float,
    offset_s: Fraction | None = None,
    max_offset_s: float = MAX_OFFSET_S,
    resolution_ps: float = RESOLUTION_PS,
    follow: Callable[[EventFile], Iterator[DetectionBlock]] = EventFile.read_blocks,
    **options: Any,
) -> FoundClock:
    """Find the clock of B in terms of A's from the photon pairs of the first seconds that both can have.

    Args:
        a: The first file.
        b: The second.
        seconds: How much of each is read.
        offset_s: About how much later B's clock reads; see `guess_offset` for None.
        max_offset_s: How far from that it may lie.
        resolution_ps: As of `align_pairs`.
        follow: Passes on the blocks of a file, to show how far it is.
        options: Further options of `align_pairs`.

    Raises:
        ClockAlignmentError: No clock stands out.
        ConfigurationError: A number is out of range.
        EventError: A file has no events, or cannot be read.
    """
    guess = guess_offset(a, b, offset_s=offset_s, max_offset_s=max_offset_s, seconds=seconds)
    skipped_s = [max(Fraction(0), late_s - Fraction(max_offset_s)) for late_s in (guess.late_s, -guess.late_s)]
    first, second = (
        first_events(_without_start(file, skip, follow), seconds) for file, skip in zip((a, b), skipped_s, strict=True)
    )
    try:
        found = align_pairs(
            first,
            second,
            offset_s=guess.offset_s,
            max_offset_s=guess.max_offset_s,
            resolution_ps=resolution_ps,
            span_s=max(SPAN_S, seconds),
            **options,
        )
    except ClockAlignmentError as error:
        raise guess.explained(error) from error
    return FoundClock.of(found, guess, a.tick_ps, b.tick_ps)


def _without_start(
    file: EventFile, skipped_s: Fraction, follow: Callable[[EventFile], Iterator[DetectionBlock]]
) -> EventFile:
    """Return the file without the events of its first seconds."""
    begin = first_ticks(file) + int(skipped_s * PS_PER_S / file.tick_ps)

    def decode(_max_events: int, _tally: Tally) -> Iterator[DetectionBlock]:
        seen = False
        for block in follow(file):
            if not skipped_s or block.fine_ticks is not None:
                yield block
                continue
            keep = slice(int(np.searchsorted(block.time_ticks, begin)), None)
            kept = {name: getattr(block, name)[keep] for name in ("time_ticks", "channel", "kind")}
            if len(kept["kind"]):
                seen = True
                yield replace(block, **kept)
        if skipped_s and not seen:
            raise ClockAlignmentError(
                f"by the offset that was given {file.path} ends before the other file begins: they do not overlap",
                remedy="Check the sign of --offset: how many seconds later the second file's clock reads; or "
                "allow a larger --max-offset.",
            )

    return replace(file, decode=decode)


def watched(file: EventFile, on_read: Callable[[Path, int, int], None]) -> EventFile:
    """Return the file; each reading of it tells its path, and how many events and records were read so far."""

    def decode(max_events: int, tally: Tally) -> Iterator[DetectionBlock]:
        events = 0
        for block in file.decode(max_events, tally):
            events += len(block)
            on_read(file.path, events, tally.records)
            yield block

    return replace(file, decode=decode)


def slot_clock_facts(found: Alignment, period_ps: Fraction, tick_ps: Fraction) -> dict[str, Any]:
    """Say how a sender's clock was found in terms of a receiver's, JSON-able.

    The offset is the sender's time, which is the slot's number times its period, less the receiver's, at the first slot
    of the sync frame; the rate is above 0 where the sender's clock is the faster.
    """
    clock = found.clock
    return {
        "offset_ps": float(clock.ref_slot * period_ps - Fraction(clock.centre_q32(clock.ref_slot), 1 << 32) * tick_ps),
        "relative_rate_ppm": float(period_ps / (clock.period_ticks * tick_ps) - 1) * 1e6,
        "significance_sigma": found.significance,
        "matched_clicks": found.matched,
    }


def qber_facts(kept: Mapping[str, int], errors: Mapping[str, int]) -> dict[str, dict[str, float | None]]:
    """Return the error rate by basis and its standard error, None without bits.

    The standard error is the binomial one, at (errors + 1) / (bits + 2), so that it is not 0 where no error was seen.
    """
    rates: dict[str, float | None] = {}
    sigmas: dict[str, float | None] = {}
    for basis, n in kept.items():
        rate = (errors[basis] + 1) / (n + 2)
        rates[basis] = errors[basis] / n if n else None
        sigmas[basis] = (rate * (1 - rate) / n) ** 0.5 if n else None
    return {"qber": rates, "qber_error": sigmas}

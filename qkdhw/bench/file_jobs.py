"""What is done with one event file of many: counted, or sifted against a sender's record or the partner's events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.clocks import FoundClock, OffsetGuess, guess_offset, qber_facts, slot_clock_facts, watched
from qkdhw.bench.pipeline import RecordReader, SeededBytes, SiftedBits, sift_files, sift_pairs
from qkdhw.errors import ClockAlignmentError, ConfigurationError, EventError, QkdhwError
from qkdhw.events.wiring import FOUR_DETECTORS, Wiring
from qkdhw.formats import EventFile, open_events, report_events
from qkdhw.formats.atomic import write_whole_file
from qkdhw.model import Basis
from qkdhw.postprocessing.pair_sifting import SiftedPairs

BITS = ("receiver.key", "receiver.test", "sender.key", "sender.test")
_OF_TIMING = ("n_stalls", "n_unit_stalls")  # how fast a machine was, not what is in a file


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """What to do with event files.

    With `records` each file is a receiver's, sifted against its sender's record; with `partners` each file is that of
    the site that announces, sifted against the other site's events; with neither, events are counted.

    Attributes:
        records: A sender's record for each file, or none at all.
        partners: The other site's event file for each file, or none at all.
        bases: With records, of a receiver that switches: its own record of bases for each file. Without it the
            detectors say the basis.
        window_ps: Full width of the window; needed for sifting.
        period_ps: Slot period; needed with records.
        dead_time_ps: Longest dead time of the detectors, with records.
        sync_pulses: Pulses at the start used for clock alignment, with records.
        wiring: Which input is which detector, at both sites.
        align_s: How much of a file's beginning is searched for the clock, with partners.
        offset_s: About how much later the partner's clock reads, with partners; None if nobody knows.
        max_offset_s: How far from that the difference of two sites' clocks may lie, with partners.
        max_ppm: Largest relative difference of the two clocks, parts per million.
        tolerant: Skip what is invalid in files, and count it.
        format_name: Format of all event files, with options if need be; None finds each from its content.
        seed: 32 secret bytes for the bits of multiple clicks; with the same ones everything comes out the same. Drawn
            if empty.

    Raises:
        ValueError: Both records and partners are given, or a needed number is not.
    """

    records: tuple[Path, ...] = ()
    partners: tuple[Path, ...] = ()
    bases: tuple[Path, ...] = ()
    window_ps: Fraction | int = 0
    period_ps: Fraction | int = 0
    dead_time_ps: Fraction | int = 0
    sync_pulses: int = 1 << 20
    wiring: Wiring = FOUR_DETECTORS
    align_s: float = 2.0
    offset_s: Fraction | None = None
    max_offset_s: float = 0.1
    max_ppm: float = 20.0
    tolerant: bool = False
    format_name: str | None = None
    seed: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.records and self.partners:
            raise ValueError("a file is sifted against a record or against its partner's events, not both")
        if self.bases and not self.records:
            raise ValueError("a receiver's bases belong to sender's records")
        if (self.records or self.partners) and self.window_ps <= 0:
            raise ValueError("sifting needs window_ps")
        if self.records and self.period_ps <= 0:
            raise ValueError("sifting against a record needs period_ps")


@dataclass(frozen=True, slots=True)
class FileJob:
    """One file's work; it is all that a worker needs.

    Attributes:
        number: Which file it is, from 0.
        path: The event file.
        options: What to do; records and partners are of all files.
        out: Folder for what comes out, or None.
        shown: What it is called in the result; the file's name if empty.
    """

    number: int
    path: Path
    options: ProcessOptions
    out: Path | None
    shown: str = ""

    @property
    def name(self) -> str:
        """What the file is called in its result."""
        return self.shown or self.path.name

    @property
    def stem(self) -> str:
        """Beginning of the names of its outputs."""
        return f"{self.number:04d}-{self.path.stem}"


@dataclass(frozen=True, slots=True)
class FileResult:
    """What came of one file: numbers and names, no bits.

    Attributes:
        number: Which file it is, from 0.
        name: Its name, or its path as it was given if another file has the same name.
        events: Events read.
        facts: What was found, JSON-able; the same however it was computed.
        outputs: Names of the files written.
        error: Why it failed, kind of error first, or "".
        remedy: What to do about it, or "".
    """

    number: int
    name: str
    events: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    error: str = ""
    remedy: str = ""


class _BitFile:
    """A file of bits, the first in bit 0 of the first byte; zeros fill up the last byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = np.empty(0, np.uint8)

    def write(self, packed: NDArray[np.uint8], n_bits: int, *, high_first: bool) -> None:
        bits = np.unpackbits(packed, count=n_bits, bitorder="big" if high_first else "little")
        bits = np.concatenate((self._rest, bits))
        whole = len(bits) // 8 * 8
        self._file.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        self._rest = bits[whole:]

    def end(self) -> None:
        self._file.write(np.packbits(self._rest, bitorder="little").tobytes())


class _Reading:
    """How far the event files of a job are read, told to whoever looks on."""

    def __init__(self, job: FileJob, on_read: Callable[[int, float | None], None]) -> None:
        options = job.options
        self._on_read, self._format, self._tolerant = on_read, options.format_name, options.tolerant
        self._events: dict[Path, int] = {}
        self._records: dict[Path, int] = {}
        self._expected: dict[Path, int | None] = {}

    def open(self, path: Path) -> EventFile:
        """Open a file, to be read once."""
        file = open_events(path, self._format, tolerant=self._tolerant)
        self._expected[path] = file.records_expected
        return watched(file, self._count)

    def _count(self, path: Path, events: int, records: int) -> None:
        self._events[path], self._records[path] = events, records
        known = [n for n in self._expected.values() if n]
        whole = sum(known) if len(known) == len(self._expected) else 0
        self._on_read(sum(self._events.values()), min(1.0, sum(self._records.values()) / whole) if whole else None)


def _unseen(_events: int, _part: float | None) -> None:
    """Show nothing."""


def run_file_job(job: FileJob, on_read: Callable[[int, float | None], None] = _unseen) -> FileResult:
    """Do one file's work; running it again gives the same, byte by byte.

    An error of the file is in the result and not raised: the other files go on.

    Args:
        job: What to do.
        on_read: Called, from any thread, with the events read so far and which part of all that is, None if unknown.
    """
    try:
        return _run(job, _Reading(job, on_read))
    except QkdhwError as error:
        return FileResult(job.number, job.name, error=f"{type(error).__name__}: {error}", remedy=error.remedy)
    except (ValueError, OverflowError) as error:  # what is asked for is out of range for the ticks of this file
        return FileResult(job.number, job.name, error=f"ConfigurationError: {error}")


def _run(job: FileJob, reading: _Reading) -> FileResult:
    options = job.options
    if not (options.records or options.partners):
        facts = _counted(job, reading)
        outputs: tuple[str, ...] = ()
    else:
        with ExitStack() as stack:
            files = _bit_files(job, stack)
            sift = _sifted if options.records else _sifted_pairs
            facts = sift(job, files, reading)
            for file in files.values():
                file.end()
        outputs = tuple(f"{job.stem}.{name}" for name in files)
    if job.out is not None:
        outputs = (*outputs, f"{job.stem}.json")
        write_json(job.out / outputs[-1], {"file": job.name, **facts})
    return FileResult(job.number, job.name, int(facts["events"]), facts, outputs)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON, whole or not at all.

    Raises:
        EventError: The file cannot be written.
    """
    with write_whole_file(path) as file:
        file.write((json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())


def _bit_files(job: FileJob, stack: ExitStack) -> dict[str, _BitFile]:
    if job.out is None:
        return {}
    return {name: _BitFile(stack.enter_context(write_whole_file(job.out / f"{job.stem}.{name}"))) for name in BITS}


def _counted(job: FileJob, reading: _Reading) -> dict[str, Any]:
    report = report_events(reading.open(job.path))
    return {
        "events": report.events,
        "kinds": dict(report.kinds),
        "channels": {str(channel): n for channel, n in sorted(report.channels.items())},
        "missed": report.missed,
        "invalid_records": report.invalid_records,
        "duration_s": report.duration_s,
        "backward_steps": report.backward_steps,
    }


def _sifted(job: FileJob, files: Mapping[str, _BitFile], reading: _Reading) -> dict[str, Any]:
    options = job.options

    def keep(receiver: SiftedBits, sender: SiftedBits) -> None:
        for site, bits in (("receiver", receiver), ("sender", sender)) if files else ():
            files[f"{site}.key"].write(bits.key_bits, bits.n_key, high_first=False)
            files[f"{site}.test"].write(bits.test_bits, bits.n_test, high_first=False)

    events = reading.open(job.path)
    with ExitStack() as stack:
        measured = stack.enter_context(RecordReader(options.bases[job.number])) if options.bases else None
        report = sift_files(
            events,
            options.records[job.number],
            period_ps=options.period_ps,
            window_ps=options.window_ps,
            dead_time_ps=options.dead_time_ps,
            sync_pulses=options.sync_pulses,
            wiring=options.wiring,
            max_ppm=options.max_ppm,
            measured=measured,
            random_bytes=_random_bytes(job, "receiver"),
            on_sifted=keep,
        )
    return {
        "events": report.receiver.n_events,
        "kept": _by_intensity(report.kept),
        "errors": _by_intensity(report.errors),
        "sent": None if report.sent is None else _by_intensity(report.sent),
        **qber_facts(_by_basis(report.kept.sum(axis=1)), _by_basis(report.errors.sum(axis=1))),
        "window_ps": float(options.window_ps),
        "period_ps": float(options.period_ps),
        "alignment": None
        if report.alignment is None
        else slot_clock_facts(report.alignment, Fraction(options.period_ps), events.tick_ps),
        "receiver": _without_timing(report.receiver.as_dict()),
        "sender": asdict(report.sender),
    }


def _sifted_pairs(job: FileJob, files: Mapping[str, _BitFile], reading: _Reading) -> dict[str, Any]:
    options = job.options

    def keep(announcer: SiftedPairs, sifter: SiftedPairs) -> None:
        for site, bits in (("receiver", announcer), ("sender", sifter)) if files else ():
            files[f"{site}.key"].write(bits.key_bits, bits.n_key, high_first=True)
            files[f"{site}.test"].write(bits.test_bits, bits.n_test, high_first=True)

    a, b = reading.open(job.path), reading.open(options.partners[job.number])
    guess = guess_offset(
        a, b, offset_s=options.offset_s, max_offset_s=options.max_offset_s, seconds=float(options.align_s)
    )
    try:
        report = sift_pairs(
            a,
            b,
            window_ps=options.window_ps,
            announcer_wiring=options.wiring,
            sifter_wiring=options.wiring,
            align_s=_searched_s(options, guess),
            offset_s=guess.offset_s,
            max_offset_s=guess.max_offset_s,
            max_ppm=options.max_ppm,
            random_bytes=_random_bytes(job, "pairs"),
            on_sifted=keep,
        )
    except ClockAlignmentError as error:
        raise guess.explained(error) from error
    found = FoundClock.of(report.alignment, guess, a.tick_ps, b.tick_ps)
    kept, errors = _by_basis(report.kept), _by_basis(report.errors)
    return {
        "events": report.announcer.n_events + report.sifter.n_events,
        "kept": kept,
        "errors": errors,
        **qber_facts(kept, errors),
        "window_ps": float(options.window_ps),
        "window_used_ps": float((2 * int(options.window_ps / 2 / b.tick_ps) + 1) * b.tick_ps),
        "alignment": found.as_dict(),
        "accidentals": report.accidentals,
        "accidentals_error": report.accidentals_error,
        "announcer": _without_timing(asdict(report.announcer)),
        "sifter": _without_timing(asdict(report.sifter)),
    }


def _searched_s(options: ProcessOptions, guess: OffsetGuess) -> Fraction:
    """Return how much of the first file is searched: so much of what the second has too."""
    return Fraction(options.align_s) + max(Fraction(0), guess.late_s)


def _by_basis(counts: NDArray[np.int64]) -> dict[str, int]:
    return {basis.name.lower(): int(counts[basis]) for basis in Basis}


def _by_intensity(counts: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """Name counts by basis and intensity; intensity 0 is the brightest."""
    return {
        basis.name.lower(): {f"intensity_{number}": int(n) for number, n in enumerate(counts[basis])} for basis in Basis
    }


def _random_bytes(job: FileJob, name: str) -> SeededBytes:
    """Give each file its own stream: the same whoever works on it, and however often."""
    return SeededBytes(hashlib.blake2b(f"{job.number} {name}".encode(), key=job.options.seed, digest_size=32).digest())


def _without_timing(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if name not in _OF_TIMING}


def check_jobs(files: tuple[Path, ...], options: ProcessOptions, out: Path | None) -> None:
    """Find out before any work whether it can be done, and make the folder, for its owner only.

    Raises:
        ConfigurationError: There are no files, not a record or partner for each, or the folder is there and not empty.
        EventError: The folder cannot be made.
    """
    if not files:
        raise ConfigurationError("there are no files to process", remedy="Name some.")
    for what, given in (
        ("sender's records", options.records),
        ("partners' files", options.partners),
        ("records of bases", options.bases),
    ):
        if given and len(given) != len(files):
            raise ConfigurationError(
                f"{len(given)} {what} for {len(files)} files", remedy="Give one for each, in the same order."
            )
    if out is None:
        return
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty = not any(out.iterdir())
    except OSError as error:
        raise EventError(f"{out} cannot be made: {error.strerror}", remedy="Choose another folder.") from error
    if not empty:
        raise ConfigurationError(f"{out} is there already and not empty", remedy="Name a folder that is not there yet.")

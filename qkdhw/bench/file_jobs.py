"""What is done with one event file of many: counted, or sifted against a sender's record or the partner's events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.pipeline import RecordReader, SeededBytes, SiftedBits, sift_files, sift_pairs
from qkdhw.errors import ConfigurationError, EventError, QkdhwError
from qkdhw.events.wiring import FOUR_DETECTORS, Wiring
from qkdhw.formats import open_events, report_events
from qkdhw.formats.atomic import write_whole_file
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
        max_offset_s: Largest difference of two sites' clocks, with partners.
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
    """

    number: int
    path: Path
    options: ProcessOptions
    out: Path | None

    @property
    def stem(self) -> str:
        """Beginning of the names of its outputs."""
        return f"{self.number:04d}-{self.path.stem}"


@dataclass(frozen=True, slots=True)
class FileResult:
    """What came of one file: numbers and names, no bits.

    Attributes:
        number: Which file it is, from 0.
        name: Its name.
        events: Events read.
        facts: What was found, JSON-able; the same however it was computed.
        outputs: Names of the files written.
        error: Why it failed, or "".
    """

    number: int
    name: str
    events: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    error: str = ""


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


def run_file_job(job: FileJob) -> FileResult:
    """Do one file's work; running it again gives the same, byte by byte.

    An error of the file is in the result and not raised: the other files go on.
    """
    try:
        return _run(job)
    except QkdhwError as error:
        remedy = f" ({error.remedy})" if error.remedy else ""
        return FileResult(job.number, job.path.name, error=f"{type(error).__name__}: {error}{remedy}")
    except (ValueError, OverflowError) as error:  # what is asked for is out of range for the ticks of this file
        return FileResult(job.number, job.path.name, error=f"ConfigurationError: {error}")


def _run(job: FileJob) -> FileResult:
    options = job.options
    if not (options.records or options.partners):
        facts = _counted(job)
        outputs: tuple[str, ...] = ()
    else:
        with ExitStack() as stack:
            files = _bit_files(job, stack)
            facts = _sifted(job, files) if options.records else _sifted_pairs(job, files)
            for file in files.values():
                file.end()
        outputs = tuple(f"{job.stem}.{name}" for name in files)
    if job.out is not None:
        outputs = (*outputs, f"{job.stem}.json")
        write_json(job.out / outputs[-1], {"file": job.path.name, **facts})
    return FileResult(job.number, job.path.name, int(facts["events"]), facts, outputs)


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


def _counted(job: FileJob) -> dict[str, Any]:
    report = report_events(open_events(job.path, job.options.format_name, tolerant=job.options.tolerant))
    return {
        "events": report.events,
        "kinds": dict(report.kinds),
        "channels": {str(channel): n for channel, n in sorted(report.channels.items())},
        "missed": report.missed,
        "invalid_records": report.invalid_records,
        "duration_s": report.duration_s,
        "backward_steps": report.backward_steps,
    }


def _sifted(job: FileJob, files: Mapping[str, _BitFile]) -> dict[str, Any]:
    options = job.options

    def keep(receiver: SiftedBits, sender: SiftedBits) -> None:
        for site, bits in (("receiver", receiver), ("sender", sender)) if files else ():
            files[f"{site}.key"].write(bits.key_bits, bits.n_key, high_first=False)
            files[f"{site}.test"].write(bits.test_bits, bits.n_test, high_first=False)

    with ExitStack() as stack:
        measured = stack.enter_context(RecordReader(options.bases[job.number])) if options.bases else None
        report = sift_files(
            open_events(job.path, options.format_name, tolerant=options.tolerant),
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
        "kept": report.kept.tolist(),
        "errors": report.errors.tolist(),
        "sent": None if report.sent is None else report.sent.tolist(),
        "receiver": _without_timing(report.receiver.as_dict()),
        "sender": asdict(report.sender),
    }


def _sifted_pairs(job: FileJob, files: Mapping[str, _BitFile]) -> dict[str, Any]:
    options = job.options

    def keep(announcer: SiftedPairs, sifter: SiftedPairs) -> None:
        for site, bits in (("receiver", announcer), ("sender", sifter)) if files else ():
            files[f"{site}.key"].write(bits.key_bits, bits.n_key, high_first=True)
            files[f"{site}.test"].write(bits.test_bits, bits.n_test, high_first=True)

    report = sift_pairs(
        open_events(job.path, options.format_name, tolerant=options.tolerant),
        open_events(options.partners[job.number], options.format_name, tolerant=options.tolerant),
        window_ps=options.window_ps,
        announcer_wiring=options.wiring,
        sifter_wiring=options.wiring,
        align_s=options.align_s,
        max_offset_s=options.max_offset_s,
        max_ppm=options.max_ppm,
        random_bytes=_random_bytes(job, "pairs"),
        on_sifted=keep,
    )
    return {
        "events": report.announcer.n_events + report.sifter.n_events,
        "kept": report.kept.tolist(),
        "errors": report.errors.tolist(),
        "accidentals": report.accidentals,
        "announcer": _without_timing(asdict(report.announcer)),
        "sifter": _without_timing(asdict(report.sifter)),
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

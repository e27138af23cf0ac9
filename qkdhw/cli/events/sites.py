"""`qkdhw events sift` and `process`: events of two sites, one run or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qkdhw.bench.distributed import ProcessProgress, ProcessReport, process_files
from qkdhw.bench.file_jobs import FileResult, ProcessOptions
from qkdhw.cli.console import JsonOption, err, out, plain, print_json
from qkdhw.cli.events.clocks import MAX_PPM, MaxOffsetOption, MaxPpmOption, OffsetOption
from qkdhw.cli.events.options import FormatsOption, TolerantOption, picoseconds, print_facts
from qkdhw.errors import ClockAlignmentError, ConfigurationError, EventError, EventFormatError
from qkdhw.events.pair_alignment import MAX_OFFSET_S
from qkdhw.events.wiring import FOUR_DETECTORS, Wiring

_KINDS = {kind.__name__: kind for kind in (ConfigurationError, EventError, ClockAlignmentError, EventFormatError)}
ALIGN_S = 2.0

WindowOption = Annotated[
    Fraction | None, typer.Option("--window", metavar="PS", parser=picoseconds, help="Full width of the window.")
]
PeriodOption = Annotated[
    Fraction | None,
    typer.Option("--period", metavar="PS", parser=picoseconds, help="Slot period, exact, with a sender's record."),
]
BasesOption = Annotated[
    list[Path] | None, typer.Option("--bases", help="Of a receiver that switches: its record of bases, for each file.")
]
DeadTimeOption = Annotated[
    Fraction, typer.Option("--dead-time", metavar="PS", parser=picoseconds, help="Longest dead time of the detectors.")
]
WiringOption = Annotated[str, typer.Option("--wiring", help="Channels of key 0, key 1, test 0, test 1, at both sites.")]
AlignOption = Annotated[
    float,
    typer.Option(
        "--align-seconds",
        metavar="SECONDS",
        min=0.001,
        help="Of pairs: how much of EVENTS is searched for the clock; more than --max-offset if that is large.",
    ),
]
SyncOption = Annotated[int, typer.Option("--sync-pulses", min=1, help="First pulses, disclosed for clock alignment.")]
OutFolderOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="New folder for the sifted bits, which are raw key, and all numbers."),
]


def sift(
    events: Annotated[
        Path, typer.Argument(metavar="EVENTS", help="The receiver's events, or those of the site that announces.")
    ],
    other: Annotated[
        Path, typer.Argument(metavar="OTHER", help="The sender's record (with --period), or the other site's events.")
    ],
    window_ps: WindowOption = None,
    period_ps: PeriodOption = None,
    bases: BasesOption = None,
    dead_time_ps: DeadTimeOption = Fraction(0),
    sync_pulses: SyncOption = 1 << 20,
    wiring: WiringOption = "1,2,3,4",
    align_s: AlignOption = ALIGN_S,
    offset_s: OffsetOption = None,
    max_offset_s: MaxOffsetOption = MAX_OFFSET_S,
    max_ppm: MaxPpmOption = MAX_PPM,
    format_name: FormatsOption = None,
    tolerant: TolerantOption = False,
    folder: OutFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sift two sites' files in one process: error rates, gains, and what became of every event.

    \b
    qkdhw events sift bob.parquet alice.record.parquet --period 10000 --window 2000
    qkdhw events sift bob.parquet alice.parquet --window 1000

    The first is prepare-and-measure, the second a source of photon pairs.
    """  # noqa: D301
    options = _options(
        [other],
        bases or [],
        window_ps,
        period_ps,
        dead_time_ps,
        sync_pulses,
        wiring,
        align_s,
        offset_s,
        max_offset_s,
        max_ppm,
        format_name=format_name,
        tolerant=tolerant,
    )
    with _progress(f"sifting {events.name}", 1) as (show, done):
        report = process_files([events], options, out=folder, on_read=show, on_progress=done)
    (result,) = report.results
    _refuse_failed(report)
    if as_json:
        print_json({"file": result.name, **result.facts, "outputs": result.outputs})
        return
    _print_sifted(result, bases=bool(bases))
    if folder is not None:
        out.print(plain(f"in {folder}: {', '.join((*result.outputs, 'summary.json'))}"), soft_wrap=True)


def process(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Event files; one task each.")],
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Dask scheduler, such as tls://10.0.0.1:8786; else here."),
    ] = None,
    records: Annotated[
        list[Path] | None, typer.Option("--record", help="Sender's record of each file, in order: sift them.")
    ] = None,
    partners: Annotated[
        list[Path] | None, typer.Option("--partner", help="Other site's events of each file, in order: sift them.")
    ] = None,
    window_ps: WindowOption = None,
    period_ps: PeriodOption = None,
    bases: BasesOption = None,
    dead_time_ps: DeadTimeOption = Fraction(0),
    sync_pulses: SyncOption = 1 << 20,
    wiring: WiringOption = "1,2,3,4",
    align_s: AlignOption = ALIGN_S,
    offset_s: OffsetOption = None,
    max_offset_s: MaxOffsetOption = MAX_OFFSET_S,
    max_ppm: MaxPpmOption = MAX_PPM,
    format_name: FormatsOption = None,
    tolerant: TolerantOption = False,
    folder: OutFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count or sift many event files, here or on a Dask cluster; the results are the same.

    Workers see the events, which are raw key: between machines use a scheduler with TLS.
    """
    if records and partners:
        raise ConfigurationError("--record and --partner exclude each other", remedy="Give one kind.")
    if bool(records) != (period_ps is not None):
        raise ConfigurationError("--record and --period belong together", remedy="Give both or none.")
    options = _options(
        records or partners or [], bases or [], window_ps, period_ps, dead_time_ps, sync_pulses, wiring, align_s,
        offset_s, max_offset_s, max_ppm, format_name=format_name, tolerant=tolerant,
    )  # fmt: skip
    with _progress("processing", len(files)) as (show, done):
        report = process_files(files, options, out=folder, scheduler=scheduler, on_read=show, on_progress=done)
    if as_json:
        print_json(report.as_dict())
    else:
        _print_files(report)
    if report.totals["failed"]:
        raise typer.Exit(1)


_Show = Callable[[ProcessProgress], None]


@contextmanager
def _progress(what: str, n_files: int) -> Iterator[tuple[_Show, _Show]]:
    """Show events, their rate, files and the time left while files are read; nothing unless a person looks on."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        shown = progress.add_task(what, total=n_files)

        def show(now: ProcessProgress) -> None:
            spent_s = progress.tasks[0].elapsed
            at = f", {now.events / spent_s / 1e6:,.1f} M/s" if spent_s else ""
            of = f", file {min(now.files + 1, n_files)} of {n_files}" if n_files > 1 else ""
            progress.update(shown, completed=now.files + now.part, description=f"{what}: {now.events:,} events{at}{of}")

        yield show, show


def _options(
    others: list[Path],
    bases: list[Path],
    window_ps: Fraction | None,
    period_ps: Fraction | None,
    dead_time_ps: Fraction,
    sync_pulses: int,
    wiring: str,
    align_s: float,
    offset_s: Fraction | None,
    max_offset_s: float,
    max_ppm: float,
    *,
    format_name: str | None,
    tolerant: bool,
) -> ProcessOptions:
    if others and window_ps is None:
        raise ConfigurationError("--window is missing", remedy="Say how wide the window is, in picoseconds.")
    for name, given in (("--window", window_ps), ("--period", period_ps)):
        if given is not None and given <= 0:
            raise ConfigurationError(f"{name} {given} is not above 0", remedy="Give a time in picoseconds.")
    try:
        return ProcessOptions(
            records=tuple(others) if period_ps is not None else (),
            partners=() if period_ps is not None else tuple(others),
            bases=tuple(bases),
            window_ps=window_ps or 0,
            period_ps=period_ps or 0,
            dead_time_ps=dead_time_ps,
            sync_pulses=sync_pulses,
            wiring=_wiring(wiring),
            align_s=align_s,
            offset_s=offset_s,
            max_offset_s=max_offset_s,
            max_ppm=max_ppm,
            format_name=format_name,
            tolerant=tolerant,
        )
    except ValueError as error:
        raise ConfigurationError(str(error), remedy="See --help.") from error


def _wiring(text: str) -> Wiring:
    try:
        channels = [int(word) for word in text.split(",")]
        return Wiring(dict(zip(channels, FOUR_DETECTORS.detectors.values(), strict=True)))
    except ValueError as error:
        raise ConfigurationError(
            f"--wiring {text!r} does not name four channels", remedy="For example --wiring 1,2,3,4"
        ) from error


def _refuse_failed(report: ProcessReport) -> None:
    """Say why a single file failed, as if it had been raised here."""
    for result in report.results:
        if result.error:
            kind, _, said = result.error.partition(": ")
            named = said if result.name in said else f"{result.name}: {said}"
            raise _KINDS.get(kind, EventError)(named, remedy=result.remedy)


def _total(cells: Any) -> int:
    return sum(cells.values()) if isinstance(cells, Mapping) else int(cells)


def _rate(facts: Mapping[str, Any], basis: str) -> str:
    """Return an error rate and its standard error as text, "" without bits."""
    rate, sigma = (facts[name][basis] for name in ("qber", "qber_error"))
    return "" if rate is None else f"{rate:.4%} ± {sigma:.2%}"


def _print_sifted(result: FileResult, *, bases: bool) -> None:
    table = Table("basis", "sifted bits", "errors", "QBER")
    for basis in result.facts["kept"]:
        kept, errors = (_total(result.facts[name][basis]) for name in ("kept", "errors"))
        table.add_row(basis, f"{kept:,}", f"{errors:,}", _rate(result.facts, basis) or "-")
    out.print(table)
    if result.facts.get("sent") is not None:
        _print_gains(result.facts)
    found = result.facts["alignment"]
    if found is not None:
        out.print(
            f"the second clock reads {found['offset_ps'] / 1e12:.12g} s more, {found['relative_rate_ppm']:+.6g} ppm, "
            f"{found['significance_sigma']:.0f} standard deviations",
            highlight=False,
            soft_wrap=True,
        )
    if "accidentals" in result.facts:
        met = _total(result.facts["kept"]) + result.facts["sifter"]["n_refused"]
        by_chance = f"about {result.facts['accidentals']:,.0f} ± {result.facts['accidentals_error']:,.0f} by chance"
        out.print(f"{met:,} coincidences in all bases, {by_chance}", highlight=False)
    fates = Table("site", "counted there", "events")
    for site in ("receiver", "sender", "announcer", "sifter"):
        for name, count in _flat(result.facts.get(site, {})):
            if count:
                fates.add_row(site, name.removeprefix("n_").replace("_", " "), f"{count:,}")
    out.print(fates)
    gating = result.facts.get("receiver", {}).get("gating", {})
    if not bases and gating and not gating["n_click_test_0"] + gating["n_click_test_1"]:
        out.print("no detector of the test basis clicked: a receiver that switches needs --bases", highlight=False)


def _print_gains(facts: Mapping[str, Any]) -> None:
    """Show what the proofs ask for: how much was sent and sifted by basis and intensity."""
    table = Table("basis", "intensity", "pulses sent", "sifted bits", "errors", "bits a pulse")
    for basis, by_intensity in facts["sent"].items():
        for intensity, sent in by_intensity.items():
            if sent:
                kept, errors = (facts[name][basis][intensity] for name in ("kept", "errors"))
                cells = (f"{sent:,}", f"{kept:,}", f"{errors:,}", f"{kept / sent:.4g}")
                table.add_row(basis, intensity.removeprefix("intensity_"), *cells)
    out.print(table)


def _flat(statistics: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the numbers of a statistics value, those of values in it included."""
    for name, value in statistics.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif isinstance(value, int):
            yield name, value


def _print_files(report: ProcessReport) -> None:
    table = Table("file", "events", "QBER key", "QBER test", "error")
    for result in report.results:
        shown = [_rate(result.facts, name) if "kept" in result.facts else "" for name in ("key", "test")]
        error = f"{result.error} ({result.remedy})" if result.remedy else result.error
        table.add_row(plain(result.name), f"{result.events:,}", *shown, plain(error))
    out.print(table)
    print_facts({name: report.totals[name] for name in ("files", "failed", "events")})

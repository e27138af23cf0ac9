"""`qkdhw link simulate`: options in, files, a table and plots out."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qkdhw.errors import ConfigurationError
from qkdhw.formats import FORMATS
from qkdhw_emulators.simulate.options import (
    AttackOption,
    DurationOption,
    EventsOption,
    FormatOption,
    JsonOption,
    ListOption,
    OutOption,
    PlotsOption,
    PresetArgument,
    PulsesOption,
    Record,
    RecordOption,
    ScheduleOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    TruthOption,
    WritePresetOption,
)

if TYPE_CHECKING:
    from qkdhw_emulators.optics.schedule import Schedule
    from qkdhw_emulators.optics.setup import OpticalSetup
    from qkdhw_emulators.simulate.run import LinkRun, Observed, RunOptions

# The optics are imported where they are used: the command line loads this module at each start.

USUAL_EVENTS = 1_000_000
USUAL_DURATION_S = 60.0
LONGEST_S = 1e9
FIRST_ESTIMATE_S = 10.0  # the next ones each after twice the time
INTERRUPTED = 130  # exit code: 128 and the number of SIGINT


def simulate(
    preset: PresetArgument = None,
    *,
    duration_s: DurationOption = None,
    events: EventsOption = None,
    pulses: PulsesOption = None,
    seed: SeedOption = 1,
    threads: ThreadsOption = 1,
    attack: AttackOption = None,
    schedule: ScheduleOption = None,
    changes: SetOption = None,
    out: OutOption = None,
    format_name: FormatOption = None,
    record: RecordOption = None,
    truth: TruthOption = False,
    plots: PlotsOption = False,
    write_preset: WritePresetOption = None,
    list_all: ListOption = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate a link: event files of both ends, the sender's record, and counts against closed forms.

    \b
    qkdhw link simulate --list
    qkdhw link simulate toshiba-t12-2013 --duration 1
    qkdhw link simulate sfifteen-bbm92 --out run --format qcrypto-a1 --plots
    qkdhw link simulate lim-2014 --set channel.length_km=80 --attack photon-number-splitting

    Without an end it runs to 1,000,000 events or 60 s of the link, whatever comes first.
    """  # noqa: D301
    if list_all:
        _print_list(as_json=as_json)
        return
    if preset is None:
        raise ConfigurationError("give a preset or a file", remedy="qkdhw link simulate --list")
    setup = _setup(preset, changes or [])
    if write_preset is not None:
        _write_preset(write_preset, setup, preset, as_json=as_json)
        return
    if format_name is not None and format_name not in FORMATS:
        raise ConfigurationError(f"there is no event format {format_name!r}", remedy=f"one of: {', '.join(FORMATS)}")
    if out is None and (truth or plots or format_name or record):
        raise ConfigurationError(
            "--truth, --plots, --format and --record are about files", remedy="Say where they go with --out FOLDER."
        )
    from qkdhw_emulators.simulate.run import RunOptions

    longest_s, events = _end(setup, duration_s, events, pulses)
    options = RunOptions(
        setup=setup,
        seed=seed,
        threads=threads,
        schedule=_schedule(attack or [], schedule),
        duration_s=longest_s,
        events=events,
        format_name=format_name or "parquet",
        record=(record or Record.AUTO).value,
        truth=truth,
    )
    report = _run(options, preset, out, plots=plots)
    if as_json:
        _print_json(report)
    else:
        _print(report, out, duration_s, pulses)


def _setup(preset: str, changes: list[str]) -> OpticalSetup:
    from qkdhw_emulators.optics.presets import load_setup
    from qkdhw_emulators.simulate.changes import changed_setup

    setup = load_setup(preset)
    setup = changed_setup(setup, changes) if changes else setup
    if setup.source.kind == "single-photon":  # intensities may be left over from another kind
        setup = setup.model_copy(update={"source": setup.source.model_copy(update={"intensities": ()})})
    return setup


def _end(
    setup: OpticalSetup, duration_s: float | None, events: int | None, pulses: int | None
) -> tuple[float | None, int | None]:
    """Return the longest time and the number of events that end the run."""
    from qkdhw_emulators.simulate.run import duration_of

    if pulses is not None and duration_s is not None:
        raise ConfigurationError("--pulses and --duration are two ways to say the same", remedy="Give one of them.")
    if pulses is not None:
        duration_s = duration_of(setup, pulses)
    if duration_s is not None and not duration_s <= LONGEST_S:
        raise ConfigurationError(
            f"a run of {duration_s:g} s of the link has no end", remedy=f"Give at most {LONGEST_S:g} s."
        )
    if duration_s is None and events is None:
        return USUAL_DURATION_S, USUAL_EVENTS
    return duration_s, events


def _schedule(attacks: list[str], file: Path | None) -> Schedule:
    from qkdhw_emulators.optics.schedule import MAX_TEXT_BYTES, Schedule

    given = Schedule.from_arguments(attacks)
    if file is None:
        return given
    if attacks:
        raise ConfigurationError("--attack and --schedule exclude each other", remedy="Put all attacks into the file.")
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_TEXT_BYTES + 1).decode("utf-8")
        return Schedule.from_toml(text, str(file))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text", remedy="Write it as TOML.") from error


def _run(options: RunOptions, name: str, out: Path | None, *, plots: bool) -> dict[str, Any]:
    """Run it, in a folder that appears at the end if there is one to write."""
    from qkdhw_emulators.optics.presets import dump_setup
    from qkdhw_emulators.simulate.plots import check_plots, write_plots
    from qkdhw_emulators.simulate.report import report_of
    from qkdhw_emulators.simulate.run import LinkRun
    from qkdhw_emulators.simulate.writers import whole_folder

    if plots:
        check_plots()
    with ExitStack() as stack:
        told = _Told()
        for number in (signal.SIGTERM, signal.SIGHUP):  # whoever ends the run finds no half-written folder
            stack.callback(signal.signal, number, signal.signal(number, told.end))
        folder = None if out is None else stack.enter_context(whole_folder(out))
        told.waits_for_cell = True
        run = LinkRun(options, folder)
        stack.enter_context(_interruptible(run, out))
        with run:
            observed = _followed(run, name, told)
        told.waits_for_cell = False
        told.look()
        report = report_of(options, name, observed)
        if folder is not None:
            if plots:
                (folder / "plots").mkdir()
                report["plots"] = write_plots(folder / "plots", options, report, observed)
            (folder / "link.toml").write_text(dump_setup(options.setup), "utf-8")
            (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
            report["files"] = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
            report["folder"] = str(out)
    return report


@contextmanager
def _interruptible(run: LinkRun, out: Path | None) -> Iterator[None]:
    """Say where a run was when somebody ends it."""
    try:
        yield
    except KeyboardInterrupt:
        where = "" if out is None else f"; nothing was written to {out}"
        sys.stderr.write(f"interrupted at {run.cells * run.cell_s:.6g} s of the link{where}\n")
        sys.exit(INTERRUPTED)


class _Told:
    """Whether somebody told the run to end; while files are open the next cell sees it, so that none stays open."""

    code: int | None = None
    waits_for_cell = False

    def end(self, number: int, _frame: object) -> None:
        self.code = 128 + number
        if not self.waits_for_cell:
            sys.exit(self.code)

    def look(self) -> None:
        if self.code is not None:
            sys.exit(self.code)


def _followed(run: LinkRun, name: str, told: _Told) -> Observed:
    """Run it with a bar for a person who looks on; else a long run says now and then how long it may be."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    began_s, estimate_s = time.monotonic(), FIRST_ESTIMATE_S
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=1.0)

        def follow(cells: int, events: int) -> None:
            nonlocal estimate_s
            told.look()
            shares = [cells / run.cells_wanted]
            shares += [events / run.options.events] if run.options.events else []
            spent_s = time.monotonic() - began_s
            rate_hz = events / spent_s if spent_s else 0.0
            described = f"{name}: {cells * run.cell_s:,.3g} s of the link, {events:,} events, {rate_hz:,.0f} /s"
            progress.update(task, completed=max(shares), description=described)
            if not console.is_terminal and spent_s >= estimate_s:
                estimate_s = 2 * spent_s
                left_s = spent_s * (1 / max(shares) - 1)
                sys.stderr.write(f"{described}; {max(shares):.2%} in {spent_s:.0f} s, about {left_s:,.0f} s to go\n")

        return run.run(follow)


def _write_preset(path: Path, setup: OpticalSetup, name: str, *, as_json: bool) -> None:
    from qkdhw_emulators.optics.presets import dump_setup, setup_head

    if path.suffix != ".toml":
        raise ConfigurationError(f"--write-preset {path} is no *.toml", remedy="A preset is read by that name only.")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(dump_setup(setup, setup_head(name)))
    except FileExistsError as error:
        raise ConfigurationError(f"{path} is there already", remedy="Give --write-preset another name.") from error
    if as_json:
        _print_json({"written": str(path)})
    else:
        sys.stdout.write(f"wrote {path}\n")


def _print_list(*, as_json: bool) -> None:
    from qkdhw_emulators.optics.presets import load_setup, preset_names
    from qkdhw_emulators.optics.schedule import attack_help

    presets = {name: load_setup(name).title for name in preset_names()}
    if as_json:
        _print_json({"presets": presets, "attacks": attack_help()})
        return
    from qkdhw.cli.console import plain  # which loads this command

    console = Console()
    for title, rows in (("preset", presets), ("attack or fault", attack_help())):
        table = Table(title, "what it is")
        for name, text in rows.items():
            table.add_row(plain(name), plain(text))
        console.print(table)


def _print_json(value: dict[str, Any]) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _print(report: dict[str, Any], out: Path | None, duration_s: float | None, pulses: int | None) -> None:
    from qkdhw_emulators.simulate.tables import print_report

    console = Console()
    if pulses is not None and report["pulses"] > pulses:
        console.print(f"asked for {pulses:,} pulses, ran {report['pulses']:,} (whole cells)", highlight=False)
    elif duration_s is not None and report["duration_s"] > duration_s * 1.001:
        console.print(f"asked for {duration_s:g} s, ran {report['duration_s']:.6g} s (whole cells)", highlight=False)
    print_report(report, console)
    if out is not None:
        console.print(f"in {out}: {', '.join(report['files'])}", markup=False, highlight=False, soft_wrap=True)

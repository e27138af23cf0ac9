"""`qkdhw devices emulate`, `conform` and `world`: what the emulators add to the devices commands."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qkdhw.drivers import load_driver
from qkdhw.errors import ConfigurationError
from qkdhw_emulators.address import ServedOn
from qkdhw_emulators.bench import serve_bench
from qkdhw_emulators.conformance.report import html_report
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Outcome, Verdict, report_of, run_suite
from qkdhw_emulators.control import ask_control, control_socket
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.serve_command import announce, stop_event
from qkdhw_emulators.world import VirtualClock, World

COLOUR = {
    Verdict.PASSED: "green",
    Verdict.FAILED: "bold red",
    Verdict.NOT_APPLICABLE: "dim",
    Verdict.NOT_TRIED: "yellow",
}
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output.")]
Faults = Annotated[
    list[str] | None,
    typer.Option("--fault", metavar="FAULT", help="Switch a fault on, such as drop:rate=0.1; may be repeated."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random; the same seed gives the same bytes.")]


def emulate(
    name: Annotated[str | None, typer.Argument(help="Unit, as `qkdhw devices list` shows it.")] = None,
    *,
    bench: Annotated[Path | None, typer.Option(help="Serve every unit of a bench file where the file says.")] = None,
    on: Annotated[ServedOn, typer.Option(help="What to put the unit on.")] = ServedOn.PTY,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port, 0 for a free one.")] = 0,
    path: Annotated[Path | None, typer.Option(help="With pty: symbolic link to the terminal.")] = None,
    seed: Seed = 1,
    pace: Annotated[
        str,
        typer.Option(
            help='Bench seconds per second, or "none" to jump over waits. Streams run as fast as they are read.'
        ),
    ] = "1",
    control: Annotated[Path | None, typer.Option(help="Serve a control socket here.")] = None,
    fault: Faults = None,
    as_json: Json = False,
) -> None:
    """Serve emulated units, print their addresses and run until stopped (Ctrl-C, SIGTERM, or the end of a piped input).

    Change the physical world meanwhile with `qkdhw devices world`.
    """
    if (name is None) == (bench is None):
        raise ConfigurationError("give a unit's name or --bench", remedy="qkdhw devices emulate sfifteen-tdc1 --on pty")
    if name is not None and on in {ServedOn.EMU, ServedOn.USB, ServedOn.USBTMC}:
        raise ConfigurationError(
            f"a unit on {on} can be opened in its own process only", remedy="Use --on tcp, or serve_unit() in Python."
        )
    if bench is not None and (fault or port or path is not None):
        raise ConfigurationError(
            "--fault, --port and --path are for one unit", remedy="Switch faults of a bench by `qkdhw devices world`."
        )
    try:
        clock = VirtualClock(pace=None if pace == "none" else float(pace))
    except ValueError as error:
        raise ConfigurationError(f"--pace {pace!r} is no number", remedy='Give a number above 0, or "none".') from error
    world = World(seed=seed, clock=clock)
    stop = stop_event()
    with ExitStack() as stack:
        if bench is not None:
            served = stack.enter_context(serve_bench(bench, world))
            lines, urls = served.lines, served.urls
        else:
            unit_name = str(name)
            part = world.part(unit_name)
            unit = stack.enter_context(
                serve_unit(make_unit(unit_name, part), part, transport=on, port=port, path=path, faults=fault or ())
            )
            lines, urls = {unit_name: unit.line}, {unit_name: unit.url}
        if control is not None:
            stack.enter_context(control_socket(control, lines))
        announce(urls, as_json=as_json)
        stop.wait()


def world(
    control: Annotated[Path, typer.Argument(help="The control socket of `qkdhw devices emulate --control`.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[UNIT.CONDITION=VALUE]...", help="Conditions to set.")
    ] = None,
    *,
    fault: Annotated[
        list[str] | None, typer.Option("--fault", metavar="UNIT:FAULT", help="Switch a fault on; may be repeated.")
    ] = None,
    clear: Annotated[
        list[str] | None, typer.Option("--clear", metavar="UNIT", help="Switch a unit's faults off; may be repeated.")
    ] = None,
    advance_s: Annotated[float, typer.Option("--advance", metavar="SECONDS", min=0, help="Let time jump ahead.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Look at the physical world of a running emulated bench, or change it: remove the fibre, warm a detector."""
    requests: list[dict[str, Any]] = []
    for change in changes or ():
        place, equals, value = change.partition("=")
        unit, dot, condition = place.rpartition(".")
        try:
            requests.append({"do": "set", "unit": unit, "condition": condition, "value": float(value)})
        except ValueError:
            dot = ""
        if not (equals and dot):
            there_are = [
                f"{label}.{each}={now:g}"
                for label, state in ask_control(control, {"do": "list"})["units"].items()
                for each, now in state["conditions"].items()
            ]
            raise ConfigurationError(
                f"{change!r} is not UNIT.CONDITION=NUMBER", remedy=f"now: {', '.join(there_are) or 'no conditions'}"
            )
    for each in fault or ():
        unit, _, what = each.partition(":")
        requests.append({"do": "fault", "unit": unit, "fault": what})
    requests += [{"do": "clear", "unit": unit} for unit in clear or ()]
    requests += [{"do": "advance", "seconds": advance_s}] if advance_s else []
    for request in requests:
        ask_control(control, request)
    state = ask_control(control, {"do": "list"})
    if as_json:
        sys.stdout.write(json.dumps(state, indent=2) + "\n")
        return
    from qkdhw.cli.console import plain  # which loads these commands

    console = Console()
    console.print(f"{state['now_s']:.3f} s on the bench's clock", highlight=False)
    for label, unit_state in state["units"].items():
        console.print(plain(f"{label}  faults: {', '.join(unit_state['faults']) or 'none'}"), style="bold")
        for condition, value in unit_state["conditions"].items():
            console.print(plain(f"  {condition} = {value:g}"))


def conform(
    name: Annotated[str, typer.Argument(help="Driver, as `qkdhw devices list` shows it.")],
    *,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="A real unit; its emulator if left out. Its settings are changed!")
    ] = None,
    on: Annotated[ServedOn, typer.Option(help="Without --address: what to put the emulator on.")] = ServedOn.EMU,
    report: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write conformance-NAME.json and .html there.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often checks repeat that do so.")] = 100,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.05, help="Longest wait.")] = 0.5,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Check a driver against everything that any driver must do; exit code 1 if it does not conform.

    On an emulated unit every fault is tried; on a real one settings are changed and restored, outputs are left alone.
    """
    driver = load_driver(name)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        served = None
        if address is None:
            surroundings = World(seed=seed)
            served = stack.enter_context(serve_unit(make_unit(name, surroundings), surroundings, transport=on))
        url = address or (served.url if served else "")
        subject = Subject(name, url, driver, timeout_s=timeout_s, served=served, rounds=rounds)
        outcomes = _run(subject, lines=not as_json)
    result = report_of(subject, outcomes)
    if report is not None:
        (report / f"conformance-{name}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        (report / f"conformance-{name}.html").write_text(html_report(result), "utf-8")
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        counts = ", ".join(f"{number} {verdict}" for verdict, number in result["counts"].items())
        Console().print(
            f"{name} {'conforms' if result['conforms'] else 'does NOT conform'}: {counts}",
            highlight=False,
            soft_wrap=True,
        )
    if not result["conforms"]:
        raise typer.Exit(1)


def _run(subject: Subject, *, lines: bool) -> list[Outcome]:
    from qkdhw.cli.console import plain  # which loads these commands

    console = Console(stderr=True, quiet=not lines)
    out = console if sys.stdout.isatty() else Console()  # with the progress on one screen, or to be kept
    outcomes = []
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task(f"checking {subject.name}", total=None)
        for outcome in run_suite(subject):
            outcomes.append(outcome)
            colour = COLOUR[outcome.verdict]
            line = plain(f"{outcome.verdict:15} {outcome.check:22} {outcome.duration_s:6.2f} s  {outcome.detail}")
            line.stylize(colour, 0, 15)
            if lines:
                out.print(line, soft_wrap=True)
            progress.update(task, description=f"after {outcome.check}")
    return outcomes

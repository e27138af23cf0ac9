"""`qkdhw devices`: which drivers and instruments there are, who is behind an address, and its settings."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Column, Table

from qkdhw.bench import dialogue_test, read_bench_file, record_unit, replay_calls
from qkdhw.bench.check import mistakes_in
from qkdhw.bench.discovery import Discovery, discover
from qkdhw.bench.lease import holders
from qkdhw.cli.changes import flat, parsed, place_of
from qkdhw.cli.console import JsonOption, out, plain, print_error, print_json
from qkdhw.cli.counts import counts
from qkdhw.cli.target import LONGEST_S, BenchOption, NameArgument, TimeoutOption, UrlArgument, target_of
from qkdhw.drivers import installed_drivers, load_driver
from qkdhw.drivers.setting import Setting, settings_of
from qkdhw.errors import ConfigurationError
from qkdhw.interfaces import TimeTagger

app = typer.Typer(
    help="Find QKD units and instruments, ask them who and how they are, change, watch, record and emulate them.",
    no_args_is_help=True,
)


@app.command("list")
def list_devices(
    network_s: Annotated[
        float,
        typer.Option(
            "--network",
            metavar="SECONDS",
            min=0,
            max=LONGEST_S,
            help="Ask the local network too (mDNS, VXI-11); answers take up to 3 s.",
        ),
    ] = 0.0,
    bench: Annotated[Path | None, typer.Option(help="List the units of a bench file too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List installed drivers, serial ports and USB instruments; nothing is opened, nothing is sent to a port."""
    configured = read_bench_file(bench).units if bench is not None else {}
    drivers, discovery = _drivers(), discover(network_s=network_s)
    if as_json:
        found = [dataclasses.asdict(each) for each in discovery.found]
        units = {label: unit.model_dump() for label, unit in configured.items()}
        leases = [dataclasses.asdict(each) for each in holders()]
        print_json(
            {
                "drivers": drivers,
                "found": found,
                "not_looked": discovery.not_looked,
                "configured": units,
                "leases": leases,
            }
        )
        return
    table = Table("driver", "vendor", "kind", title="Drivers")
    for driver in drivers:
        table.add_row(*(plain(driver[key]) for key in ("name", "vendor", "kind")))
    out.print(table)
    _print_found(discovery)
    if configured:
        table = Table("unit", "driver", "address", title=plain(f"Configured in {bench}"))
        for label, unit in configured.items():
            table.add_row(plain(label), plain(unit.name), plain(unit.url))
        out.print(table)
    for holder in holders():
        out.print(
            f"In use: {holder.url} by process {holder.process} of {holder.user} since {holder.since}: {holder.command}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


@app.command()
def info(
    name: NameArgument,
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="Its address; the driver alone if left out.")
    ] = None,
    bench: BenchOption = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Say what a driver can do and which settings it has, and, with an address, who is there."""
    target = target_of(name, url, bench)[0] if url is not None or bench is not None else None
    name = target.name if target else name
    driver = load_driver(name)
    described = driver.describe() if hasattr(driver, "describe") else {}
    if target is not None:
        with target.open(timeout_s) as unit:
            described = {"identity": dataclasses.asdict(unit.identify()), **described}
    if as_json:
        print_json(described)
        return
    if target is not None:
        _print_fields(target.title, described["identity"])
    facts = {key: described.get(key, "") for key in ("vendor", "model", "kind")}
    facts |= {key: ", ".join(described.get(key, ())) for key in ("capabilities", "schemes", "usb_ids")}
    _print_fields(f"driver {name}", facts)
    _print_settings(driver)


@app.command()
def status(
    name: NameArgument,
    url: UrlArgument = None,
    bench: BenchOption = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Read a unit's state, counters, monitors and alarms. Opening a TDC1 ends a stream that runs."""
    target, _ = target_of(name, url, bench)
    with target.open(timeout_s) as unit:
        state = unit.read_status()
    if as_json:
        print_json({f.name: getattr(state, f.name) for f in dataclasses.fields(state)})
        return
    alarms = ", ".join(state.alarms) or "none"
    _print_fields(target.title, {"state": state.state, "alarms": alarms, **state.counters, **state.monitors})


@app.command()
def get(
    name: NameArgument,
    url: UrlArgument = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING[.CHANNEL]]...", help="Which; all if left out.")
    ] = None,
    bench: BenchOption = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Read settings. With --json and no name this is a snapshot, which `set --from` takes."""
    target, wanted = target_of(name, url, bench, settings)
    with target.open(timeout_s) as unit:
        if not wanted:
            snapshot = unit.snapshot()
            values = flat(snapshot["settings"])
        else:
            snapshot = None
            values = {place: unit.read_setting(*place_of(place)) for place in wanted}
    if as_json:
        print_json(snapshot or values)
    else:
        _print_fields(target.title, values)


@app.command("set")
def set_values(
    name: NameArgument,
    url: UrlArgument = None,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING[.CHANNEL]=VALUE]...", help="What to change.")
    ] = None,
    snapshot: Annotated[Path | None, typer.Option("--from", help="Set what a snapshot holds, but for outputs.")] = None,
    bench: BenchOption = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Change settings and print what the unit then has. Everything is checked before anything is sent."""
    target, given = target_of(name, url, bench, changes)
    if bool(given) == (snapshot is not None):
        raise ConfigurationError("give changes or --from", remedy="write SETTING=VALUE behind the unit")
    wanted = parsed(settings_of(load_driver(target.name)), given)
    with target.open(timeout_s) as unit:
        values = flat(unit.configure(wanted) if snapshot is None else unit.restore(_read_json(snapshot)))
    if as_json:
        print_json(values)
    else:
        _print_fields(target.title, values)


@app.command()
def watch(
    name: NameArgument,
    url: UrlArgument = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING[.CHANNEL]]...", help="What; the status if left out.")
    ] = None,
    bench: BenchOption = None,
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.05, max=LONGEST_S, help="How often.")
    ] = 1.0,
    count: Annotated[int, typer.Option(min=0, help="How many times; 0 until Ctrl-C.")] = 0,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Show a unit's status or settings live; with --json one line of JSON each time."""
    target, wanted = target_of(name, url, bench, settings)
    with target.open(timeout_s) as unit:

        def read() -> dict[str, Any]:
            if wanted:
                return {place: unit.read_setting(*place_of(place)) for place in wanted}
            state = unit.read_status()
            alarms = ", ".join(state.alarms) or "none"
            return {"state": state.state, "alarms": alarms, **state.counters, **state.monitors}

        def turns() -> Any:
            done = 0
            while True:
                yield read()
                done += 1
                if done == count:
                    return
                time.sleep(interval_s)

        if as_json:
            for values in turns():
                sys.stdout.write(json.dumps(values, default=str) + "\n")
                sys.stdout.flush()
            return
        with Live(console=out, auto_refresh=False) as live:
            for values in turns():
                live.update(_fields_table(target.title, values), refresh=True)


@app.command()
def record(
    name: NameArgument,
    url: UrlArgument = None,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Session file to make; it may hold raw key.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING[.CHANNEL]=VALUE]...", help="Settings to change.")
    ] = None,
    bench: BenchOption = None,
    events: Annotated[int, typer.Option(min=0, help="Read this many events of a tagger.")] = 0,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Record a session: identity, a snapshot, changes, events; bytes with times, both directions, and the calls."""
    target, given = target_of(name, url, bench, [*([file] if file else []), *(changes or ())])
    if not given:
        raise typer.BadParameter("Missing argument 'FILE'.")
    path = Path(given[0])
    driver = load_driver(target.name)
    wanted = parsed(settings_of(driver), given[1:])
    if events and not issubclass(driver, TimeTagger):
        raise ConfigurationError(f"{target.name} is no time tagger: it has no events", remedy="leave --events out")
    with record_unit(target.name, target.url, path, timeout_s=timeout_s, **target.options) as unit:
        unit.identify()
        unit.snapshot()
        if wanted:
            unit.configure(wanted)
        if events:
            unit.start()
            seen = 0
            while seen < events:
                seen += len(unit.read_block(max(4, events - seen), timeout_s=timeout_s))
            unit.stop()
        unit.read_status()
    if as_json:
        print_json({"session": str(path), "driver": target.name, "url": target.url})
    else:
        out.print(plain(f"recorded to {path}; play it by `qkdhw devices replay {path}`"), soft_wrap=True)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="Session file.")],
    to_test: Annotated[
        Path | None, typer.Option("--to-test", metavar="TEST.py", help="Write a test that plays the file beside it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Play a session against its driver: the same calls must send the same bytes and have the same results."""
    if to_test is not None:
        if to_test.parent.resolve() != file.parent.resolve():
            raise ConfigurationError(f"{to_test} is not beside {file}", remedy="put both into one folder")
        try:
            with to_test.open("x", encoding="utf-8") as stream:
                stream.write(dialogue_test(file))
        except FileExistsError as error:
            raise ConfigurationError(f"{to_test} is there already", remedy="name a new file") from error
    calls = replay_calls(file)
    if as_json:
        print_json({"session": str(file), "calls": calls, "test": str(to_test) if to_test else None})
    else:
        out.print(f"{calls} calls: the same bytes, the same results", highlight=False, soft_wrap=True)


app.command("counts")(counts)


@app.command()
def check(
    bench: Annotated[Path, typer.Argument(metavar="BENCH", help="Bench file.")], as_json: JsonOption = False
) -> None:
    """Check a bench file against the drivers: names, addresses, options, settings, wiring. Nothing is opened."""
    mistakes = mistakes_in(read_bench_file(bench))
    if as_json:
        print_json({"ok": not mistakes, "mistakes": [{"error": str(m), "remedy": m.remedy} for m in mistakes]})
    else:
        for mistake in mistakes:
            print_error(mistake)
        if not mistakes:
            out.print(plain(f"{bench}: no mistakes"), soft_wrap=True)
    if mistakes:
        raise typer.Exit(1)


for _entry_point in entry_points(group="qkdhw.commands.devices"):
    app.command(_entry_point.name)(_entry_point.load())


def _drivers() -> list[dict[str, str]]:
    found = []
    for name in installed_drivers():
        try:
            driver = load_driver(name)
            vendor, kind = getattr(driver, "vendor", ""), getattr(driver, "unit_kind", "")
        except ConfigurationError as error:
            vendor, kind = "", f"broken: {error}"
        found.append({"name": name, "vendor": vendor, "kind": kind})
    return found


def _print_found(discovery: Discovery) -> None:
    if discovery.found:
        table = Table("address", "USB ID", "serial number", "description", "driver", title="Found")
        for each in discovery.found:
            said = (each.url, each.usb_id, each.serial_number, each.description, ", ".join(each.drivers))
            table.add_row(*map(plain, said))
        out.print(table)
    else:
        out.print("No serial ports and no USB instruments found.")
    for way, remedy in discovery.not_looked.items():
        out.print(plain(f"Not looked for by {way}: {remedy}"), soft_wrap=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not JSON: {error}", remedy="make it by `devices get --json`") from error


def _print_settings(driver: type[Any]) -> None:
    declared = settings_of(driver)
    if not declared:
        return
    with_channels = any(setting.channels for setting in declared.values())
    name_width = max(map(len, declared))
    table = Table(Column("setting", no_wrap=True, min_width=name_width), "access", "allowed", title="Settings")
    for heading in (*(("channels",) if with_channels else ()), "what"):
        table.add_column(heading)
    for name, setting in declared.items():
        channels = (_ranges(setting.channels),) if with_channels else ()
        table.add_row(*map(plain, (name, setting.access, _allowed(setting), *channels, _what(setting))))
    out.print(table)


def _allowed(setting: Setting[Any]) -> str:
    """Say what may be set, and in which steps."""
    if not setting.writable:
        return f"{setting.kind.__name__} {setting.unit}".strip()
    steps = f", step {setting.step:g}" if setting.step else ""
    steps += f", steps of {setting.relative_step:.3g} of the value" if setting.relative_step else ""
    return setting.allowed() + steps


def _what(setting: Setting[Any]) -> str:
    """Say what a setting is, how long it takes to hold, and whether a reconnect leaves it alone."""
    settles = f" Settles in {setting.settle_s:g} s." if setting.settle_s else ""
    return setting.doc + settles + ("" if setting.restore or not setting.writable else " Not restored.")


def _ranges(numbers: Sequence[int]) -> str:
    """Shorten consecutive numbers: 0-64."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _print_fields(title: str, fields: dict[str, Any]) -> None:
    out.print(_fields_table(title, fields))


def _fields_table(title: str, fields: dict[str, Any]) -> Group:
    table = Table(show_header=False)
    for key, value in fields.items():
        table.add_row(plain(key), plain(value))
    return Group(plain(title), table)

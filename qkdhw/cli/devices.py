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
from rich.live import Live
from rich.table import Table

from qkdhw.bench import dialogue_test, read_bench_file, record_unit, replay_calls
from qkdhw.bench.discovery import Discovery, discover
from qkdhw.bench.lease import holders
from qkdhw.cli.console import JsonOption, out, plain, print_json
from qkdhw.drivers import installed_drivers, load_driver, open_unit
from qkdhw.drivers.setting import Setting, settings_of
from qkdhw.errors import ConfigurationError

app = typer.Typer(
    help="Find QKD units and instruments, ask them who and how they are, change, watch, record and emulate them.",
    no_args_is_help=True,
)


def _complete_name(incomplete: str) -> list[str]:
    return [name for name in installed_drivers() if name.startswith(incomplete)]


NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Driver name, as `qkdhw devices list` shows it.", autocompletion=_complete_name
    ),
]
UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="Address, such as tcp://host:port or serial:///dev/NAME?baud=N.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Longest wait.")]


@app.command("list")
def list_devices(
    network_s: Annotated[
        float,
        typer.Option(
            "--network",
            metavar="SECONDS",
            min=0,
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
            markup=False, highlight=False,
        )  # fmt: skip


@app.command()
def info(
    name: NameArgument,
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="Its address; the driver alone if left out.")
    ] = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Say what a driver can do and which settings it has, and, with an address, who is there."""
    driver = load_driver(name)
    described = driver.describe() if hasattr(driver, "describe") else {}
    if url is not None:
        with open_unit(name, url, timeout_s=timeout_s) as unit:
            described = {"identity": dataclasses.asdict(unit.identify()), **described}
    if as_json:
        print_json(described)
        return
    if "identity" in described:
        _print_fields(f"{name} at {url}", described["identity"])
    facts = {key: described.get(key, "") for key in ("vendor", "model", "kind")}
    facts |= {key: ", ".join(described.get(key, ())) for key in ("capabilities", "schemes", "usb_ids")}
    _print_fields(f"driver {name}", facts)
    _print_settings(driver)


@app.command()
def status(name: NameArgument, url: UrlArgument, timeout_s: TimeoutOption = 5.0, as_json: JsonOption = False) -> None:
    """Read a unit's state, counters, monitors and alarms. Opening a TDC1 ends a stream that runs."""
    with open_unit(name, url, timeout_s=timeout_s) as unit:
        state = unit.read_status()
    if as_json:
        print_json({f.name: getattr(state, f.name) for f in dataclasses.fields(state)})
        return
    alarms = ", ".join(state.alarms) or "none"
    _print_fields(f"{name} at {url}", {"state": state.state, "alarms": alarms, **state.counters, **state.monitors})


@app.command()
def get(
    name: NameArgument,
    url: UrlArgument,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING[.CHANNEL]]...", help="Which; all if left out.")
    ] = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Read settings. With --json and no name this is a snapshot, which `set --from` takes."""
    with open_unit(name, url, timeout_s=timeout_s) as unit:
        if not settings:
            snapshot = unit.snapshot()
            values = _flat(snapshot["settings"])
        else:
            snapshot = None
            values = {place: unit.read_setting(*_place(place)) for place in settings}
    if as_json:
        print_json(snapshot or values)
    else:
        _print_fields(f"{name} at {url}", values)


@app.command("set")
def set_values(
    name: NameArgument,
    url: UrlArgument,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING[.CHANNEL]=VALUE]...", help="What to change.")
    ] = None,
    snapshot: Annotated[Path | None, typer.Option("--from", help="Set what a snapshot holds, but for outputs.")] = None,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Change settings and print what the unit then has. Everything is checked before anything is sent."""
    if bool(changes) == (snapshot is not None):
        raise ConfigurationError("give changes or --from", remedy=f"qkdhw devices set {name} {url} SETTING=VALUE")
    wanted = _parsed(settings_of(load_driver(name)), changes or ())
    with open_unit(name, url, timeout_s=timeout_s) as unit:
        values = _flat(unit.configure(wanted) if snapshot is None else unit.restore(_read_json(snapshot)))
    if as_json:
        print_json(values)
    else:
        _print_fields(f"{name} at {url}", values)


@app.command()
def watch(
    name: NameArgument,
    url: UrlArgument,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING[.CHANNEL]]...", help="What; the status if left out.")
    ] = None,
    interval_s: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.05, help="How often.")] = 1.0,
    count: Annotated[int, typer.Option(min=0, help="How many times; 0 until Ctrl-C.")] = 0,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Show a unit's status or settings live; with --json one line of JSON each time."""
    with open_unit(name, url, timeout_s=timeout_s) as unit:

        def read() -> dict[str, Any]:
            if settings:
                return {place: unit.read_setting(*_place(place)) for place in settings}
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
                live.update(_fields_table(f"{name} at {url}", values), refresh=True)


@app.command()
def record(
    name: NameArgument,
    url: UrlArgument,
    file: Annotated[Path, typer.Argument(help="Session file to make; it may hold raw key.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTING[.CHANNEL]=VALUE]...", help="Settings to change.")
    ] = None,
    events: Annotated[int, typer.Option(min=0, help="Read this many events of a tagger.")] = 0,
    timeout_s: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Record a session: identity, a snapshot, changes, events; bytes with times, both directions, and the calls."""
    wanted = _parsed(settings_of(load_driver(name)), changes or ())
    with record_unit(name, url, file, timeout_s=timeout_s) as unit:
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
        print_json({"session": str(file), "driver": name, "url": url})
    else:
        out.print(plain(f"recorded to {file}; play it by `qkdhw devices replay {file}`"))


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
        out.print(f"{calls} calls: the same bytes, the same results", highlight=False)


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
        out.print(plain(f"Not looked for by {way}: {remedy}"))


def _place(text: str) -> tuple[str, int | None]:
    """Split SETTING or SETTING.CHANNEL."""
    name, dot, channel = text.partition(".")
    if not dot:
        return name, None
    if not (channel.isascii() and channel.isdigit()):
        raise ConfigurationError(f"{text!r}: {channel!r} is no channel number", remedy="write SETTING or SETTING.2")
    return name, int(channel)


def _parsed(settings: dict[str, Setting[Any]], changes: Sequence[str]) -> dict[str, Any]:
    """Turn SETTING[.CHANNEL]=VALUE texts into what `configure` takes."""
    wanted: dict[str, Any] = {}
    for change in changes:
        place, equals, text = change.partition("=")
        if not equals:
            raise ConfigurationError(f"{change!r} is no change", remedy="write SETTING=VALUE or SETTING.2=VALUE")
        name, channel = _place(place)
        value = _value(settings.get(name), text)
        if channel is None:
            wanted[name] = value
        else:
            wanted.setdefault(name, {})[channel] = value
    return wanted


def _value(setting: Setting[Any] | None, text: str) -> Any:
    """Read a value as the setting's kind; what is wrong stays a text, which the setting then refuses by name."""
    if setting is not None and setting.kind is str:
        return text
    words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        numbers = [float(part) if set(part) & set(".eE") else int(part) for part in text.split(",")]
    except ValueError:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


def _flat(values: Any) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{channel}": each for channel, each in value.items()}
        else:
            flat[name] = value
    return flat


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}", remedy="make it by `devices get --json`") from error


def _print_settings(driver: type[Any]) -> None:
    declared = settings_of(driver)
    if not declared:
        return
    table = Table("setting", "access", "allowed", "channels", "what", title="Settings")
    for name, setting in declared.items():
        allowed = setting.allowed() if setting.writable else f"{setting.kind.__name__} {setting.unit}".strip()
        facts = (name, setting.access, allowed, ", ".join(map(str, setting.channels)), setting.doc)
        table.add_row(*map(plain, facts))
    out.print(table)


def _print_fields(title: str, fields: dict[str, Any]) -> None:
    out.print(_fields_table(title, fields))


def _fields_table(title: str, fields: dict[str, Any]) -> Table:
    table = Table(title=plain(title), show_header=False)
    for key, value in fields.items():
        table.add_row(plain(key), plain(value))
    return table

"""`qkdhw devices`: which drivers and ports there are, and who is behind an address."""

from __future__ import annotations

import dataclasses
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from rich.table import Table

from qkdhw.cli.console import JsonOption, out, print_json
from qkdhw.drivers import installed_drivers, load_driver, open_unit
from qkdhw.errors import ConfigurationError

app = typer.Typer(help="Find QKD units and ask them who and how they are.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Driver name, as `qkdhw devices list` shows it.")]
UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="tcp://host:port or serial:///dev/NAME?baud=N.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Longest wait.")]


@app.command("list")
def list_devices(as_json: JsonOption = False) -> None:
    """List installed drivers and serial ports; nothing is opened, nothing is sent."""
    drivers, ports = _drivers(), _serial_ports()
    if as_json:
        print_json({"drivers": drivers, "serial_ports": ports})
        return
    table = Table("driver", "vendor", "kind", title="Drivers")
    for driver in drivers:
        table.add_row(driver["name"], driver["vendor"], driver["kind"])
    out.print(table)
    if ports is None:
        out.print("Serial ports: unknown, as pyserial is not installed (pip install 'qkdhw\\[serial]').")
    elif not ports:
        out.print("Serial ports: none found.")
    else:
        table = Table("port", "USB ID", "serial number", "description", title="Serial ports")
        for port in ports:
            table.add_row(port["url"], port["usb_id"], port["serial_number"], port["description"])
        out.print(table)


@app.command()
def info(name: NameArgument, url: UrlArgument, timeout_s: TimeoutOption = 5.0, as_json: JsonOption = False) -> None:
    """Ask a unit who it is. Opening a TDC1 ends a stream that runs."""
    with open_unit(name, url, timeout_s=timeout_s) as unit:
        identity = dataclasses.asdict(unit.identify())
    if as_json:
        print_json(identity)
    else:
        _print_fields(f"{name} at {url}", identity)


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


def _serial_ports() -> list[dict[str, str]] | None:
    try:
        from serial.tools import list_ports
    except ImportError:
        return None
    return [
        {
            "url": f"serial://{port.device}",
            "usb_id": f"{port.vid:04x}:{port.pid:04x}" if port.vid is not None else "",
            "serial_number": port.serial_number or "",
            "description": port.description if port.description != "n/a" else "",
        }
        for port in sorted(list_ports.comports())
    ]


def _print_fields(title: str, fields: dict[str, Any]) -> None:
    table = Table(title=title, show_header=False)
    for key, value in fields.items():
        table.add_row(key, str(value))
    out.print(table)

"""The command line: argument parsing and printing, no logic."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer

from qkdhw.cli import devices, doctor, events, hsm, keys, link
from qkdhw.cli.console import print_error
from qkdhw.errors import ConfigurationError, QkdhwError
from qkdhw.version import __version__

app = typer.Typer(
    name="qkdhw",
    help="From QKD hardware to keys that a PKI can use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(devices.app, name="devices")
app.add_typer(events.app, name="events")
app.add_typer(link.app, name="link")
app.add_typer(keys.app, name="keys")
app.add_typer(hsm.app, name="hsm")
app.add_typer(doctor.app, name="doctor")
for entry_point in entry_points(group="qkdhw.commands"):
    app.add_typer(entry_point.load(), name=entry_point.name)


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"qkdhw {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and leave.", callback=_print_version, is_eager=True
    ),
) -> None:
    """From QKD hardware to keys that a PKI can use."""


def main() -> None:
    """Run the command line; a known error is one line with a remedy and exit code 1, never a traceback."""
    try:
        app()
    except QkdhwError as error:
        print_error(error)
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        remedy = "Check the path, its permissions and the free space."
        print_error(ConfigurationError(f"{place}{error.strerror or error}", remedy=remedy))
        sys.exit(1)

"""`qkdhw hsm`: which PKCS#11 modules, tokens and keys there are. A PIN is never taken from the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from qkdhw.cli.console import JsonOption, out, plain, print_json
from qkdhw.errors import ConfigurationError
from qkdhw.export.modules import find_modules, list_tokens
from qkdhw.export.pin import read_pin_file
from qkdhw.export.pkcs11 import Pkcs11Token

app = typer.Typer(help="Look at PKCS#11 modules, tokens and the keys in them.", no_args_is_help=True)

ModuleOption = Annotated[
    Path | None,
    typer.Option("--module", help="PKCS#11 module (shared library); default: the only one installed."),
]


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(*(Column(name, overflow="fold") for name in columns))
    for row in rows:
        table.add_row(*(plain(value) for value in row))
    out.print(table)


def _choose_module(module: Path | None) -> Path:
    if module is not None:
        return module
    found = find_modules()
    if len(found) != 1:
        paths = ", ".join(m.path for m in found) or "none; on Debian `apt-get install softhsm2` brings SoftHSM"
        message = f"{len(found)} PKCS#11 modules are installed"
        raise ConfigurationError(message, remedy=f"Choose one with --module: {paths}.")
    return Path(found[0].path)


def _read_pin(pin_file: Path | None, pin_env: str | None) -> str:
    if pin_file is not None and pin_env is not None:
        message = "--pin-file and --pin-env are both given"
        raise ConfigurationError(message, remedy="Give one of them.")
    if pin_env is not None:
        if pin_env not in os.environ:
            raise ConfigurationError(f"environment variable {pin_env} is not set", remedy="Put the PIN into it.")
        return os.environ[pin_env]
    if pin_file is not None:
        return read_pin_file(pin_file)
    if not sys.stdin.isatty():
        message = "no PIN is given"
        raise ConfigurationError(message, remedy="Give --pin-file or --pin-env.")
    return str(typer.prompt("User PIN", hide_input=True, err=True))


@app.command()
def modules(json: JsonOption = False) -> None:
    """List the PKCS#11 modules found on this machine; none is loaded."""
    found = find_modules()
    if json:
        print_json([asdict(module) for module in found])
        return
    _print_table(("module", "of"), [(module.path, module.name) for module in found])


@app.command()
def tokens(module: ModuleOption = None, json: JsonOption = False) -> None:
    """List the tokens that a module shows; no PIN is needed."""
    found = list_tokens(_choose_module(module))
    if json:
        print_json([asdict(token) for token in found])
        return
    _print_table(
        ("label", "serial", "model", "made by", "initialised", "PIN locked"),
        [(t.label, t.serial, t.model, t.manufacturer, t.initialised, t.pin_locked) for t in found],
    )


@app.command()
def keys(
    token: Annotated[str, typer.Option("--token", help="Token label.")],
    module: ModuleOption = None,
    pin_file: Annotated[Path | None, typer.Option("--pin-file", help="File with the user PIN, mode 600.")] = None,
    pin_env: Annotated[str | None, typer.Option("--pin-env", help="Environment variable with the user PIN.")] = None,
    json: JsonOption = False,
) -> None:
    """List the exported keys in a token. The PIN is tried once; without an option it is asked for."""
    path = _choose_module(module)
    with Pkcs11Token.open(path, token, lambda: _read_pin(pin_file, pin_env)) as opened:
        found = opened.list_keys()
    if json:
        print_json([asdict(key) for key in found])
        return
    _print_table(("key ID", "label"), [(key.key_id, key.label) for key in found])

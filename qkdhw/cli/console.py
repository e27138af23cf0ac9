"""How every command prints: people get rich text, scripts get one JSON value on standard output."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from qkdhw.errors import QkdhwError

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output.")]

out = Console()
err = Console(stderr=True)


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_error(error: QkdhwError) -> None:
    """Print one line on standard error, and a second with the remedy if there is one."""
    err.print(f"[bold red]error:[/] {type(error).__name__}: ", end="", highlight=False)
    err.print(str(error), markup=False, highlight=False, soft_wrap=True)
    if error.remedy:
        err.print("[bold]remedy:[/] ", end="")
        err.print(error.remedy, markup=False, highlight=False, soft_wrap=True)

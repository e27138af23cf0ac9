"""How every command prints: people get rich text, scripts get one JSON value on standard output."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from qkdhw.errors import QkdhwError

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output.")]

out = Console()
err = Console(stderr=True)


def plain(value: object) -> Text:
    """Return what a unit, a file or a token said as text: no markup, and control characters as escapes."""
    return Text("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(value)))


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_error(error: QkdhwError) -> None:
    """Print one line on standard error, and a second with the remedy if there is one."""
    err.print(f"[bold red]error:[/] {type(error).__name__}: ", end="", highlight=False)
    err.print(plain(error), soft_wrap=True)
    if error.remedy:
        err.print("[bold]remedy:[/] ", end="")
        err.print(plain(error.remedy), soft_wrap=True)

"""qkdhw link: what one QKD link does with its detections."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from qkdhw.cli.console import JsonOption, err, out, print_json
from qkdhw.model import KeyLength
from qkdhw.protocols.counts_file import key_length_of_file, read_counts_file

app = typer.Typer(help="One QKD link: key length from counts.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """One QKD link: key length from counts."""


@app.command()
def keylength(
    counts: Annotated[Path, typer.Argument(help="Counts of a block (docs/reference/counts-file.md).")],
    proof: Annotated[
        str, typer.Option(help="rigorous; lim2014, rusca2018 and tomamichel2012 are for comparison.")
    ] = "rigorous",
    eps_sec: Annotated[float | None, typer.Option(help="Secrecy parameter instead of the file's.")] = None,
    eps_cor: Annotated[float | None, typer.Option(help="Correctness parameter instead of the file's.")] = None,
    clip: Annotated[bool, typer.Option("--clip", help="lim2014: floor lower count bounds at 0.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the secret key length of a block from its counts, with the intermediate bounds."""
    answer = key_length_of_file(read_counts_file(counts), proof=proof, eps_sec=eps_sec, eps_cor=eps_cor, clip=clip)
    if as_json:
        print_json(asdict(answer))
    else:
        _print_answer(answer)
    if not answer.rigorous:
        err.print(
            f"[bold yellow]NOT RIGOROUS:[/] {answer.proof} is for comparison only; do not release key on it. "
            "Use --proof rigorous.",
            highlight=False,
        )


def _print_answer(answer: KeyLength) -> None:
    table = Table(title=f"Key length, proof {answer.proof}")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_row("eps_sec", f"{answer.eps_sec:.6g}")
    table.add_row("eps_cor", f"{answer.eps_cor:.6g}")
    for name, value in answer.bounds.items():
        table.add_row(name, f"{value:.10g}")
    table.add_section()
    table.add_row("[bold]length_bits", f"[bold]{answer.length_bits}")
    out.print(table)
    if answer.reason:
        out.print(f"No key: {answer.reason}.", highlight=False)
    out.print("Taken for granted:")
    for assumption in answer.assumptions:
        out.print(f"  - {assumption}", highlight=False)

"""qkdhw link: what one QKD link does with its detections."""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from qkdhw.cli import link_monitors
from qkdhw.cli.console import JsonOption, err, out, print_json
from qkdhw.errors import ConfigurationError
from qkdhw.link import load_site, run_site
from qkdhw.model import KeyLength
from qkdhw.protocols.counts_file import key_length_of_file, read_counts_file

_PR_SET_DUMPABLE = 4

app = typer.Typer(help="One QKD link: run a site, compute key lengths, simulate one.", no_args_is_help=True)


@app.command()
def run(
    site: Annotated[Path, typer.Argument(help="Site file (docs/reference/site-file.md).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line on standard output.")] = False,
) -> None:
    """Run one site of a link: make keys with the peer site until the blocks are done or SIGTERM comes.

    What happens is told as it happens, one line an event (docs/reference/link-events.md). SIGTERM and Ctrl-C end the
    site after the current block.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _forbid_core_dumps()
    run_site(load_site(site), _print_event_json if as_json else _print_event, stop=stop)


@app.command()
def calibrate(
    site: link_monitors.SiteArgument,
    note: Annotated[str, typer.Option(help="Who trusts the link to be undisturbed now, and why; kept in the record.")],
    blocks: Annotated[int, typer.Option(min=2, help="Blocks to look at.")] = 12,
    false_alarm_rate: Annotated[float, typer.Option(help="Risk that an honest block raises any alarm.")] = 1e-9,
    tolerance: Annotated[
        list[str] | None, typer.Option(help="A change that is honest, such as profile=0.3; may be given again.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--out", help="File to write; receiver.monitors.calibration if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line on standard output.")] = False,
) -> None:
    """Run the receiver's site for some blocks, and write what its monitors shall take for normal.

    The peer runs `qkdhw link run` as ever. Keys of these blocks say that they were not monitored.
    """
    _forbid_core_dumps()
    link_monitors.calibrate_link(
        site,
        _print_event_json if as_json else _print_event,
        blocks=blocks,
        note=note,
        false_alarm_rate=false_alarm_rate,
        tolerances=tolerance or [],
        record=record,
    )


app.command()(link_monitors.alarms)


def _forbid_core_dumps() -> None:
    """Leave nothing of this process behind in a crash, neither in a core file nor with a crash reporter.

    SecretBuffer keeps its pages out of a core; a core still has the registers, where the hash keys of authentication
    are while it works, and what a PKCS#11 module keeps of keys.

    Source: prctl(2), PR_SET_DUMPABLE; core(5): a limit of 0 does not stop a crash reporter.
    """
    _, hard_limit = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard_limit))
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise ConfigurationError("core dumps of this process cannot be forbidden", remedy="allow it to call prctl")


def _print_event_json(event: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(event, default=str) + "\n")
    sys.stdout.flush()


def _print_event(event: Mapping[str, Any]) -> None:
    if event["event"] != "collecting":
        out.print(_line(event), markup=False, highlight=False, soft_wrap=True)


def _line(event: Mapping[str, Any]) -> str:
    """Say an event in one line."""
    match event["event"]:
        case "unit":
            unit = event["info"]
            serial = f" serial {unit['serial_number']}" if unit["serial_number"] else ""
            return f"unit: {unit['vendor']} {unit['model']}{serial}"
        case "session" | "aligned":
            return _session_line(event)
        case "block":
            return _block_line(event["statistics"])
        case "alarm":
            return (
                f"ALARM of the detectors, {event['monitor']} in block {event['block_id']}: {event['said']}; "
                "no key until it is cleared with `qkdhw link alarms`"
            )
        case "end":
            counts = ", ".join(f"{state} {count}" for state, count in event["counts"].items() if count) or "no keys"
            return f"end: {counts}; {event['sent_bytes']:,} bytes sent, {event['received_bytes']:,} received"
        case name:
            facts = ", ".join(f"{fact} {value}" for fact, value in event.items() if fact != "event")
            return f"{name}: {facts}"


def _session_line(event: Mapping[str, Any]) -> str:
    if event["event"] == "session":
        return (
            f"session {event['session_id']}: "
            f"{event['activated_blocks']} earlier blocks activated, {event['burnt']} burnt"
        )
    return (
        f"aligned: {event['significance']:.1f} sigma, clock {event['clock_ppm']:+.3f} ppm, "
        f"QBER {_percent(event['qber'])}"
    )


def _block_line(block: Mapping[str, Any]) -> str:
    sifted = f"block {block['block_id']}: {block['n_sifted_key']:,} sifted bits, QBER {_percent(block['qber_test'])}"
    if block["failed_check"]:
        return f"{sifted}, no key: {block['failed_check']}: {block['failure']}"
    secret_bits = block["key_length"]["length_bits"] if block["key_length"] else 0
    return f"{sifted}, {secret_bits:,} secret bits"


def _percent(fraction: float | None) -> str:
    return "unknown" if fraction is None else f"{fraction:.2%}"


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


for _entry_point in entry_points(group="qkdhw.commands.link"):
    app.command(_entry_point.name)(_entry_point.load())

"""qkdhw link calibrate and qkdhw link alarms: what a receiver's monitors take for normal, and what they found."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from qkdhw.cli.console import JsonOption, out, print_json
from qkdhw.errors import ConfigurationError
from qkdhw.events.monitors import read_tolerances
from qkdhw.link import AlarmFile, Emit, SiteConfig, calibrate_site, load_site

SiteArgument = Annotated[Path, typer.Argument(help="Site file of the receiver's site (docs/reference/site-file.md).")]


def calibrate_link(
    site: Path,
    emit: Emit,
    *,
    blocks: int,
    note: str,
    false_alarm_rate: float,
    tolerances: list[str],
    record: Path | None,
) -> None:
    """Run a receiver's site for some blocks and write the calibration of its monitors."""
    config = load_site(site)
    chosen = config.receiver.monitors if config.receiver is not None else None
    place = record or (chosen.calibration if chosen is not None else site.with_name("monitors.json"))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    found = calibrate_site(
        config,
        emit,
        place,
        n_blocks=blocks,
        false_alarm_rate=false_alarm_rate,
        note=note,
        tolerances=read_tolerances(tolerances),
        stop=stop,
    )
    emit({"event": "calibrated", "file": str(place), "blocks": found.n_blocks, "monitors": len(found.limits) + 1})


def alarms(
    site: SiteArgument,
    clear: Annotated[str | None, typer.Option(help="Clear the alarm of this monitor.")] = None,
    reason: Annotated[str, typer.Option(help="What was found and mended; needed to clear.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show the alarms of a receiver's monitors, or clear one; a running site takes that over at its next block."""
    file = _alarm_file(load_site(site))
    if clear is not None:
        file.clear(clear, reason)
    standing, cleared = file.standing(), file.cleared()
    if as_json:
        print_json(
            {
                "standing": [alarm.model_dump(mode="json") for alarm in standing.values()],
                "cleared": [entry.model_dump(mode="json") for entry in cleared],
            }
        )
        return
    if not standing:
        out.print("No alarm stands.")
    table = Table("monitor", "block", "at", "seen", "state")
    for alarm in standing.values():
        table.add_row(alarm.monitor, str(alarm.block_id), alarm.at, alarm.said, "[bold red]stands[/]")
    for entry in cleared:
        table.add_row(
            entry.alarm.monitor, str(entry.alarm.block_id), entry.alarm.at, entry.alarm.said, f"cleared: {entry.reason}"
        )
    if table.row_count:
        out.print(table)


def _alarm_file(config: SiteConfig) -> AlarmFile:
    if config.receiver is None or config.receiver.monitors is None:
        raise ConfigurationError(
            "this site has no monitors", remedy="add the section [receiver.monitors] at the receiver's site"
        )
    return AlarmFile(config.receiver.monitors.alarms)

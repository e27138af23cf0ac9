"""`qkdhw demo`: options in, progress and a table out."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.demo.report import check_report, write_report
from qkdhw_emulators.demo.stage import DemoRun, run_demo
from qkdhw_emulators.demo.staging import PULSE_RATE_HZ, DemoOptions
from qkdhw_emulators.demo.summary import last_line, print_summary, summarise

app = typer.Typer(help="The main job: two emulated QKD units to one key in two HSMs and a TLS session on it.")


class Eavesdropper(StrEnum):
    """Who listens on the fibre."""

    NONE = "none"
    INTERCEPT_RESEND = "intercept-resend"


@app.callback(invoke_without_command=True)
def demo(
    seed: Annotated[
        int, typer.Option(help="Seed of the emulated link; the same seed gives the same photons.", min=0)
    ] = 1,
    duration_s: Annotated[
        float, typer.Option("--duration", help="Seconds of link time to emulate.", min=2.0, max=120.0)
    ] = 6.0,
    block_duration_s: Annotated[
        float,
        typer.Option(
            "--block-duration", help="Seconds of link time in a block; long fibres need longer ones.", min=0.2, max=60.0
        ),
    ] = 2.0,
    loss_db: Annotated[float, typer.Option(help="Loss of the fibre in dB.", min=0.0, max=60.0)] = 10.0,
    misalignment: Annotated[
        float, typer.Option(help="Fraction of photons that leave by the wrong port.", min=0.0, max=0.5)
    ] = 0.01,
    eavesdropper: Annotated[Eavesdropper, typer.Option(help="Who listens on the fibre.")] = Eavesdropper.NONE,
    report: Annotated[Path, typer.Option(help="Where the HTML report goes.")] = Path("demo-report.html"),
    keep: Annotated[
        Path | None, typer.Option(help="Keep stores, tokens and logs in this new folder instead of a temporary one.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Run the main job on emulated units: photons, two sites, post-processing, two tokens, a TLS session.

    Exit code 0: keys were made, are equal in both tokens and carry a TLS session; or, with an eavesdropper, no key was
    made and the check that stopped it is named. Exit code 1: anything else.
    """
    options = DemoOptions(
        seed=seed,
        duration_s=duration_s,
        loss_db=loss_db,
        misalignment=misalignment,
        eavesdropper=eavesdropper.value,
        block_pulses=2 * round(block_duration_s * PULSE_RATE_HZ / 2),
    )
    if keep is not None and keep.exists() and not (keep.is_dir() and not any(keep.iterdir())):
        raise ConfigurationError(f"--keep {keep} is not an empty folder", remedy="name one that does not exist yet")
    check_report(report)
    # Whoever ends the demo shall not leave its KEKs, PINs and tokens lying about in the temporary folder.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    console = Console(stderr=json_output)
    run = _run(options, keep, console)
    summary = summarise(run)
    if json_output:
        json.dump(summary, sys.stdout, indent=2)
        sys.stdout.write("\n")
        sys.stdout.flush()
    else:
        print_summary(summary, console)
    write_report(report, summary, datetime.now(UTC))
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)
    for role, text in run.errors.items():
        console.print(f"{role}: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(last_line(summary), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if summary["ok"] else 1)


def _run(options: DemoOptions, keep: Path | None, console: Console) -> DemoRun:
    """Run the demo in the folder to keep, or in one that goes with it."""
    try:
        with ExitStack() as stack:
            folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qkdhw-demo-")))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            follower = stack.enter_context(_Follower(console, options))
            return run_demo(options, folder.resolve(), follower.follow)
    except OSError as error:
        raise ConfigurationError(
            f"cannot work in {error.filename or keep or tempfile.gettempdir()}: {error.strerror or error}",
            remedy="give a folder with some MB of free space with --keep, or with TMPDIR",
        ) from error


class _Follower:
    """Live progress: one bar over all blocks, one line for what happens."""

    def __init__(self, console: Console, options: DemoOptions) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._blocks = options.block_count
        self._done = 0
        self._task = self._progress.add_task("staging", total=float(options.block_count))

    def __enter__(self) -> _Follower:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def follow(self, source: str, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event["event"]:
            case "stage":
                self._describe(str(event["name"]))
            case "unit":
                self._say(f"{source}: {event['info']['vendor']} {event['info']['model']}")
            case "aligned" if source == "receiver":
                self._say(f"clocks aligned at {event['significance']:.0f} sigma, {event['clock_ppm']:+.3f} ppm")
            case "collecting":
                share = event["done_slots"] / event["total_slots"]
                self._progress.update(self._task, completed=self._done + 0.8 * share)
                self._describe(f"block {self._done + 1} of {self._blocks}: detections")
            case "block" if source == "receiver":
                self._block(event["statistics"])
            case "exported" if source == "receiver":
                self._say(f"{event['keys']} keys in both tokens, {event['confirmed']} proved equal there")
            case "tls" if source == "receiver":
                self._say(f"TLS session {event['result']}: {event.get('peer_name') or event.get('check')}")
            case "session-broken":
                self._say(f"{source}: session broken, trying again: {event['reason']}")

    def _block(self, statistics: Mapping[str, Any]) -> None:
        self._done += 1
        self._progress.update(self._task, completed=float(self._done))
        number = statistics["block_id"]
        if statistics["failed_check"]:
            self._say(
                f"block {number}: no key, stopped by check '{statistics['failed_check']}': {statistics['failure']}"
            )
        else:
            bits = statistics["key_length"]["length_bits"]
            self._say(
                f"block {number}: {statistics['n_sifted_key']:,} sifted bits, "
                f"QBER {100 * statistics['qber_key']:.2f} %, {bits:,} secret bits"
            )

    def _describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def _say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

"""`qkdhw emulate`: emulated units on the command line."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from qkdhw.errors import QkdhwError
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.serve import serve_link

_DEFAULTS = LinkParameters()

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Software that stands in for QKD units, byte for byte: drivers open it like the real thing. "
    "It serves until SIGTERM, Ctrl-C, or, if standard input is a pipe, until that is closed.",
)


class EavesdropperChoice(StrEnum):
    """Eavesdroppers that the link knows."""

    NONE = "none"
    INTERCEPT_RESEND = "intercept-resend"


Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random; the same seed gives the same bytes.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON on standard output.")]


@app.callback()
def _root() -> None:
    """Software that stands in for QKD units, byte for byte: drivers open it like the real thing."""


@app.command("link")
def link_command(
    *,
    seed: Seed = 1,
    loss_db: Annotated[float, typer.Option(help="Loss of fibre and receiver optics.")] = _DEFAULTS.loss_db,
    misalignment: Annotated[
        float, typer.Option(help="Fraction of photons in the matching basis that go to the wrong detector.")
    ] = _DEFAULTS.misalignment,
    eavesdropper: Annotated[
        EavesdropperChoice, typer.Option(help="Who listens on the fibre.")
    ] = EavesdropperChoice.NONE,
    eavesdropper_fraction: Annotated[float, typer.Option(help="Fraction of the pulses attacked.")] = 1.0,
    pulse_rate_hz: Annotated[int, typer.Option(help="A divisor of 10 GHz.")] = _DEFAULTS.pulse_rate_hz,
    detector_efficiency: Annotated[
        float, typer.Option(help="Of each detector, 0 to 1.")
    ] = _DEFAULTS.detector_efficiency,
    dark_count_rate_hz: Annotated[float, typer.Option(help="Of each detector.")] = _DEFAULTS.dark_count_rate_hz,
    dead_time_ns: Annotated[float, typer.Option(help="Of each detector.")] = _DEFAULTS.dead_time_ns,
    jitter_ps: Annotated[float, typer.Option(help="Standard deviation.")] = _DEFAULTS.jitter_ps,
    receiver_clock_offset_s: Annotated[
        float | None, typer.Option(help="Receiver's start to pulse 0; from the seed (0 to 10 ms) if left out.")
    ] = None,
    receiver_clock_ppm: Annotated[float, typer.Option(help="Frequency error.")] = _DEFAULTS.receiver_clock_ppm,
    pace: Annotated[
        float | None, typer.Option(min=0.001, help="Link seconds per second; as fast as both ends read if left out.")
    ] = None,
    transmitter_port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port, 0 for a free one.")] = 0,
    receiver_link: Annotated[
        Path | None, typer.Option(help="Symbolic link to make to the receiver's terminal; removed at the end.")
    ] = None,
    transmitter_fault: Annotated[list[Fault] | None, typer.Option(help="May be repeated.")] = None,
    receiver_fault: Annotated[list[Fault] | None, typer.Option(help="May be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Serve a transmitter (GTX/1 over TCP) and a receiver (TDC1 on a pseudo-terminal) on one optical link.

    Time on the link stands still until the transmitter was started and the receiver streams, and goes on as fast as
    both are read.
    """
    parameters = LinkParameters(
        pulse_rate_hz=pulse_rate_hz,
        loss_db=loss_db,
        detector_efficiency=detector_efficiency,
        dark_count_rate_hz=dark_count_rate_hz,
        dead_time_ns=dead_time_ns,
        jitter_ps=jitter_ps,
        misalignment=misalignment,
        receiver_clock_offset_s=receiver_clock_offset_s,
        receiver_clock_ppm=receiver_clock_ppm,
        eavesdropper=eavesdropper.value,
        eavesdropper_fraction=eavesdropper_fraction,
    )
    stop = stop_event()
    with serve_link(
        parameters,
        seed=seed,
        transmitter_port=transmitter_port,
        receiver_link=receiver_link,
        pace=pace,
        transmitter_faults=transmitter_fault or (),
        receiver_faults=receiver_fault or (),
    ) as served:
        announce({"transmitter": served.transmitter_url, "receiver": served.receiver_url}, as_json=as_json)
        stop.wait()


def run_command(arguments: list[str] | None = None) -> int:
    """Run `qkdhw emulate` outside of qkdhw's own command line and return the exit code."""
    try:
        app(arguments)
    except QkdhwError as error:
        typer.echo(f"error: {error} {error.remedy}".rstrip(), err=True)
        return 1
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def run_link_command() -> int:
    """Run `qkdhw emulate link` with the arguments of this process."""
    return run_command(["link", *sys.argv[1:]])


def announce(urls: dict[str, Any], *, as_json: bool) -> None:
    """Print addresses for people or for a script."""
    typer.echo(json.dumps(urls) if as_json else "\n".join(f"{name}: {url}" for name, url in urls.items()))
    sys.stdout.flush()


def stop_event() -> threading.Event:
    """Return an event that is set by SIGTERM, SIGINT or the end of standard input if that is a pipe."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        kind = os.fstat(0).st_mode
    except OSError:
        return stop
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    return stop


def _wait_for_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()

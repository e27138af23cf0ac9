"""The options of `qkdhw link simulate`, and how a shell completes them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qkdhw.formats import FORMATS


class Record(StrEnum):
    """Which pulses the sender's record has."""

    AUTO = "auto"
    DETECTED = "detected"
    FULL = "full"
    NONE = "none"


def _complete_preset(incomplete: str) -> list[str]:
    from qkdhw_emulators.optics.presets import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def _complete_attack(incomplete: str) -> list[tuple[str, str]]:
    from qkdhw_emulators.optics.schedule import attack_help

    return [(name, text) for name, text in attack_help().items() if name.startswith(incomplete)]


def _complete_format(incomplete: str) -> list[tuple[str, str]]:
    return [(name, known.description) for name, known in FORMATS.items() if name.startswith(incomplete)]


PresetArgument = Annotated[
    str | None,
    typer.Argument(help="Preset (see --list), or a TOML file of the same form.", autocompletion=_complete_preset),
]
DurationOption = Annotated[
    float | None, typer.Option("--duration", metavar="SECONDS", min=1e-9, help="Time of the link; whole cells run.")
]
EventsOption = Annotated[
    int | None, typer.Option("--events", metavar="N", min=1, help="End once the receiver has N events.")
]
PulsesOption = Annotated[
    int | None, typer.Option("--pulses", metavar="N", min=1, help="Pulses to send, in place of a duration.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random; the same seed gives the same files.")]
ThreadsOption = Annotated[int, typer.Option(min=1, max=64, help="Threads for the light; changes nothing but time.")]
AttackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        metavar="NAME:FIELD=VALUE,...",
        help="Attack or fault, such as intercept-resend:fraction=0.2,from_s=1; may be repeated.",
        autocompletion=_complete_attack,
    ),
]
ScheduleOption = Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Attacks: a table `attack` for each.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PART.FIELD=VALUE", help="Change the link; may be repeated.")
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="New folder for all files; it appears whole or not at all.")
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of the event files, else parquet: see `qkdhw events formats`.",
        autocompletion=_complete_format,
    ),
]
RecordOption = Annotated[
    Record | None,
    typer.Option(help="The sender's choices of which pulses; auto (as without): all if 10 million or less."),
]
TruthOption = Annotated[bool, typer.Option("--truth", help="Write what made each event too, which no real link knows.")]
PlotsOption = Annotated[bool, typer.Option("--plots", help="Draw plots (PNG and SVG) into the folder.")]
WritePresetOption = Annotated[
    Path | None, typer.Option(metavar="FILE.toml", help="Write the link, changes included, and leave.")
]
ListOption = Annotated[bool, typer.Option("--list", help="List presets and attacks, and leave.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]

"""A calibration of the receiver's monitors from blocks of a link that somebody trusts to be undisturbed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkdhw.errors import ConfigurationError
from qkdhw.events.monitors import Calibration, Observation, Tolerances, calibrate
from qkdhw.formats.atomic import write_whole_file
from qkdhw.link.blocks import Emit
from qkdhw.link.config import SiteConfig
from qkdhw.link.monitoring import UNCLEAN_CHECKS, BlockWatch
from qkdhw.link.site import run_site
from qkdhw.model import BlockStatistics


def calibrate_site(
    config: SiteConfig,
    emit: Emit,
    out: Path,
    *,
    n_blocks: int,
    false_alarm_rate: float,
    note: str,
    tolerances: Tolerances | None = None,
    stop: threading.Event | None = None,
) -> Calibration:
    """Run a receiver's site for so many blocks without judging them, and write what is normal.

    Args:
        config: The site; its peer runs as ever.
        emit: As for `run_site`.
        out: File of the record; it is not there yet.
        n_blocks: Blocks to look at, ten or more of the size that is judged later.
        false_alarm_rate: Probability that an honest block raises any alarm.
        note: Who trusts the link, and why.
        tolerances: Changes that are honest.
        stop: Ends the site early; nothing is written then.

    Raises:
        ConfigurationError: The site is no receiver's, the file is there already, a block was unclean, too few blocks
            came, or they are not steady.
        QkdhwError: As `run_site`.
    """
    _check(config, out, n_blocks, note)
    stop = stop or threading.Event()
    seen: list[Observation] = []
    unclean: list[str] = []

    def take(observation: Observation, block: BlockStatistics) -> None:
        if len(seen) < n_blocks:
            seen.append(observation)
        if len(seen) == n_blocks:
            stop.set()

    def follow(event: Mapping[str, Any]) -> None:
        emit(event)
        failed = event["statistics"]["failed_check"] if event["event"] == "block" else ""
        if failed in UNCLEAN_CHECKS:
            unclean.append(f"block {event['statistics']['block_id']} stopped by check '{failed}'")

    run_site(config, follow, stop=stop, watch=BlockWatch(take))
    if unclean or len(seen) < n_blocks:
        raise ConfigurationError(
            f"no calibration: {unclean[0] if unclean else f'{len(seen)} of {n_blocks} blocks came'}",
            remedy="let the link run undisturbed, and calibrate again",
        )
    found = calibrate(seen, false_alarm_rate=false_alarm_rate, note=note, tolerances=tolerances)
    with write_whole_file(out) as file:
        file.write(found.to_json().encode())
    return found


def _check(config: SiteConfig, out: Path, n_blocks: int, note: str) -> None:
    if config.receiver is None:
        raise ConfigurationError("only the receiver's site has monitors", remedy="calibrate at the receiver's site")
    if out.exists():
        raise ConfigurationError(f"{out} is there already", remedy="move it away, or give another --out")
    if n_blocks < 2 or not note.strip():
        raise ConfigurationError("a calibration takes at least two blocks, and a note on who trusts the link and why")

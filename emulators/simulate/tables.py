"""A run's report as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

LOUD_Z = 4.0


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print a report as tables."""
    _print_run(report, console)
    if "bases" in report:
        _print_bases(report, console)
    _print_published(report, console)
    _print_detectors(report, console)
    if "pairs" in report:
        _print_pairs(report["pairs"], console)
    _print_monitors(report, console)


def _print_run(report: Mapping[str, Any], console: Console) -> None:
    from qkdhw.cli.console import plain  # which loads this command

    bob = report["events"]["bob"]
    lines = [
        f"{report['title'] or report['link']}: {report['duration_s']:.6g} s, "
        + (f"{report['pulses']:,} pulses, " if report["pulses"] else "")
        + ", ".join(f"{n:,} events of {end}" for end, n in report["events"].items())
    ]
    if report["ended_by"] == "longest wait":
        lines += [f"ended after {report['duration_s']:,.0f} s with {bob:,} events: --duration sets a longer time"]
    for attack in report["attacks"]:
        fields = {k: v for k, v in attack.items() if k not in {"name", "began"} and v is not None}
        said = ", ".join(f"{name}={value}" for name, value in fields.items())
        lines += [f"Attacked by {attack['name']}: {said}; expected: the link without"]
        if not attack["began"]:
            lines += [f"WARNING: {attack['name']} never began: no cell of this run began in its time"]
    for line in lines:
        console.print(plain(line), highlight=False, soft_wrap=True)


def _print_bases(report: Mapping[str, Any], console: Console) -> None:
    table = _table("basis", "μ", "detections", "gain", "expected", "z", "QBER", "expected", "z")
    for row in report["bases"]:
        mu = row["mean_photon_number"]
        table.add_row(
            row["basis"], "" if mu is None else f"{mu:g}", f"{row['detections']:,}",
            _number(row["gain"]), _number(row["expected_gain"]), _sigmas(row["gain_z"]),
            _percent(row["qber"]), _percent(row["expected_qber"]), _sigmas(row["qber_z"]),
        )  # fmt: skip
    console.print(table)


def _print_published(report: Mapping[str, Any], console: Console) -> None:
    rows = {what: row for what, row in report["published"].items() if row["observed"] is not None}
    if not rows:
        return
    table = _table("published", "there", "here", "±")
    for what, row in rows.items():
        table.add_row(what, *(f"{row[name]:.4g}" for name in ("published", "observed")), f"{row['error']:.1g}")
    console.print(table)


def _print_detectors(report: Mapping[str, Any], console: Console) -> None:
    table = _table("end", "input", "means", "clicks", "rate (/s)", "expected (/s)", "z")
    for row in report["detectors"]:
        expected = row["expected_rate_hz"]
        table.add_row(
            row["end"], str(row["input"]), row["meaning"], f"{row['clicks']:,}", f"{row['rate_hz']:,.1f}",
            "" if expected is None else f"{expected:,.1f}", _sigmas(row["z"]),
        )  # fmt: skip
    console.print(table)
    if "bases" in report and any(row["expected_rate_hz"] is None for row in report["detectors"]):
        said = (
            "nothing is expected of detectors whose dead time ends within a pulse: some of its photons click, not all"
        )
        console.print(said, highlight=False, soft_wrap=True)


def _print_pairs(pairs: Mapping[str, Any], console: Console) -> None:
    said = f"{pairs['coincidences']:,} coincidences within {pairs['window_ps']:,.0f} ps"
    if pairs["counted"] == "pulses":
        said = f"{pairs['coincidences']:,} coincidences: pulses with clicks at both ends, two clicks are a random bit"
        if any(row["expected"] is None for row in pairs["bases"]):
            said += "; no closed form holds for these detectors"
    elif pairs["accidental"] is not None:
        said += f", about {pairs['accidental']:,.0f} of them by chance"
    console.print(said, highlight=False, soft_wrap=True)
    table = _table("basis", "coincidences", "expected", "z", "QBER", "expected", "z")
    for row in pairs["bases"]:
        table.add_row(
            row["basis"], f"{row['coincidences']:,}", "" if row["expected"] is None else f"{row['expected']:,.0f}",
            _sigmas(row["z"]), _percent(row["qber"]), _percent(row["expected_qber"]), _sigmas(row["qber_z"]),
        )  # fmt: skip
    console.print(table)


def _print_monitors(report: Mapping[str, Any], console: Console) -> None:
    """Print those that moved."""
    moved = {name: row for name, row in report["monitors"].items() if len(set(row.values())) > 1}
    if not moved:
        return
    table = _table("monitor", "normal", "lowest", "highest", "unit")
    for name, row in moved.items():
        what, _, unit = name.rpartition("_")
        table.add_row(what.replace("_", " "), *(f"{row[n]:.6g}" for n in ("normal", "lowest", "highest")), unit)
    console.print(table)


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=SIMPLE, padding=(0, 0))
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3e}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _sigmas(z: float | None) -> str:
    if z is None:
        return ""
    return f"[bold yellow]{z:+.1f}[/]" if abs(z) > LOUD_Z else f"{z:+.1f}"

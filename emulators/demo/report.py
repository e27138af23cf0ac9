"""The self-contained HTML page that a demo run leaves: a table, and the plots a physicist looks at first."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkdhw.errors import ConfigurationError
from qkdhw.version import __version__
from qkdhw_emulators.demo.summary import Summary, rows, time_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>qkdhw demo report</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td {{ border-bottom: 1px solid #ddd; padding: .25rem 1rem .25rem 0; vertical-align: top; }}
td + td {{ font-variant-numeric: tabular-nums; }}
figure {{ margin: 1.5rem 0; }} svg {{ max-width: 100%; height: auto; }}
.verdict {{ padding: .6rem 1rem; background: {colour}; border-radius: .4rem; }}
</style></head><body>
<h1>From photons to a session</h1>
<p class="verdict">{verdict}</p>
<table>{table}</table>
{figures}
<h2>Time</h2><table>{times}</table>
<h2>Options</h2><table>{options}</table>
<p>Epsilons add up over the blocks. Units and fibre were emulated; every bit after them went through the code that real
units use.</p>
<p>Written {date} UTC by qkdhw {version}.</p>
</body></html>
"""


def check_report(path: Path) -> None:
    """Find out before any work whether a report can be drawn and written there.

    Raises:
        ConfigurationError: matplotlib is missing, or no file can be made there.
    """
    try:
        import matplotlib.backends.backend_svg
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "matplotlib is not installed; the report's plots need it", remedy='pip install "qkdhw[plot]"'
        ) from error
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no folder {path.parent} for the report", remedy="make it, or see --report")
    if path.is_dir():
        raise ConfigurationError(f"--report {path} is a folder", remedy="name a file")
    scratch = _scratch(path)
    try:
        scratch.touch()
        scratch.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_report(path: Path, summary: Summary, written: datetime) -> None:
    """Write the page; a full disk or a missing folder leaves no half-written file.

    Args:
        path: Where.
        summary: What `summarise` made.
        written: Now, in UTC.

    Raises:
        ConfigurationError: The report cannot be written there.
    """
    figures = [
        _figure(_plot_gate, summary, "Arrival of clicks in the slot; the gate is what lies between the lines"),
        _figure(_plot_blocks, summary, "QBER and secret key rate over the blocks"),
        _figure(_plot_bits, summary, "Where the bits went, from a detection to a key"),
    ]
    page = PAGE.format(
        colour=_colour(summary),
        verdict=html.escape(_verdict(summary)),
        table=_table(rows(summary)),
        figures="\n".join(figures),
        options=_table([(name, str(value)) for name, value in summary["options"].items()]),
        times=_table(time_rows(summary)),
        date=f"{written:%Y-%m-%d %H:%M:%S}",
        version=html.escape(__version__),
    )
    scratch = _scratch(path)
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):  # the first error says more
            scratch.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def _scratch(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _cannot_write(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot write the report {path}: {error.strerror}", remedy="give another place with --report"
    )


def _colour(summary: Summary) -> str:
    """Green for keys, red for a failure, neither for an eavesdropper that was stopped."""
    if not summary["ok"]:
        return "#fbe3e3"
    return "#e3f4e3" if summary["outcome"] == "keys" else "#eef"


def _verdict(summary: Summary) -> str:
    if not summary["ok"]:
        return "The run did not do its job: " + (summary["reason"] or str(summary["errors"]) or "see the table")
    if summary["outcome"] == "keys":
        return "The same keys are in both tokens, and a TLS 1.3 session runs on one of them."
    return f"No key was made: the check '{summary['stopped_by']}' stopped it. {summary['reason']}"


def _table(lines: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in lines)


def _figure(plot: Any, summary: Summary, caption: str) -> str:
    """Draw one plot as inline SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    plot(figure.add_subplot(), summary)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _plot_gate(axes: Axes, summary: Summary) -> None:
    gating: list[Mapping[str, Any]] = summary["gating"]
    if not gating:
        axes.text(0.5, 0.5, "no block", ha="center")
        return
    last = gating[-1]
    edges_ns = [edge / 1000 for edge in last["edges_ps"]]
    axes.stairs(last["histogram"], edges_ns, fill=True, color="#4c78a8")
    for edge in (-last["window_ps"] / 2, last["window_ps"] / 2):
        axes.axvline(edge / 1000, color="#e45756", linestyle="--")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 2 * max([*last["histogram"], 1]))
    axes.set_xlabel("time from the expected arrival (ns)")
    axes.set_ylabel("clicks")


def _plot_blocks(axes: Axes, summary: Summary) -> None:
    blocks = summary["blocks"]
    rate_hz = summary["options"]["pulse_rate_hz"]
    numbers = [block["block_id"] for block in blocks]
    for name, label, colour, marker in (
        ("qber_key", "QBER, key basis", "#4c78a8", "o"),
        ("qber_test", "QBER, test basis", "#f58518", "s"),
    ):
        points = [(n, 100 * b[name]) for n, b in zip(numbers, blocks, strict=True) if b[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
    axes.set_ylim(0, 1.5 * axes.get_ylim()[1])  # room for the legends
    axes.set_xticks(numbers)
    axes.set_xlabel("block")
    axes.set_ylabel("QBER (%)")
    rates = [
        (b["key_length"]["length_bits"] if b["key_length"] and not b["failed_check"] else 0)
        * rate_hz
        / b["n_slots"]
        / 1e3
        for b in blocks
    ]
    right = axes.twinx()
    right.bar(numbers, rates, width=0.4, color="#54a24b", alpha=0.4, label="secret key rate")
    right.set_ylim(0, 1.5 * max([*rates, 1.0]))
    right.set_ylabel("secret key rate (kbit/s)")
    right.legend(loc="upper left")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right")


def _plot_bits(axes: Axes, summary: Summary) -> None:
    totals = summary["totals"]
    sifted = totals["sifted_key_bits"] + totals["sifted_test_bits"]
    removed = max(0, totals["sifted_key_bits"] - totals["leak_bits"] - totals["secret_bits"])
    if not totals["secret_bits"]:
        removed, leaked = totals["sifted_key_bits"], 0
    else:
        leaked = totals["leak_bits"]
    parts = [
        ("other basis", totals["detections"] - sifted, "#bab0ac"),
        ("test bits, announced", totals["sifted_test_bits"], "#f58518"),
        ("leaked in reconciliation", leaked, "#e45756"),
        ("removed by privacy amplification" if leaked else "dropped by a check", removed, "#b279a2"),
        ("authentication account", totals["authentication_bits"], "#eeca3b"),
        ("keys", totals["key_bits"], "#54a24b"),
    ]
    left = 0
    for name, bits, colour in parts:
        axes.barh(0, bits, left=left, color=colour, label=f"{name}: {bits:,}")
        left += bits
    axes.set_yticks([])
    axes.set_xlabel("bits")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize="small")

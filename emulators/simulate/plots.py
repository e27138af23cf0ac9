"""The plots that a physicist looks at first, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qkdhw.errors import ConfigurationError, EventError
from qkdhw_emulators.optics.closed_forms import measured_rate_hz
from qkdhw_emulators.optics.setup import PS_PER_S, OpticalSetup
from qkdhw_emulators.optics.simulation import LinkSimulation
from qkdhw_emulators.simulate.curves import delay_correlation, detector_correlation, interval_density, qber_over_time
from qkdhw_emulators.simulate.observation import INTERVAL_EDGES_PS, PHASE_BINS
from qkdhw_emulators.simulate.report import Report
from qkdhw_emulators.simulate.run import Observed, RunOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SWEEP_LOSSES_DB = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0)
SWEEP_EVENTS = 20_000
SWEEP_CELLS = 100
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#9d755d")


def check_plots() -> None:
    """Find out before any work whether plots can be drawn.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigurationError("plots need matplotlib", remedy='pip install "qkdhw[plot]"') from error


def write_plots(folder: Path, options: RunOptions, report: Report, observed: Observed) -> list[str]:
    """Draw all plots that the run has the numbers for.

    Args:
        folder: Where NAME.png and NAME.svg go.
        options: Of the run.
        report: Its report.
        observed: What it counted.

    Returns:
        The names of the plots.

    Raises:
        EventError: A file cannot be written.
    """
    setup = options.setup
    plots: dict[str, Callable[[Axes], None]] = {
        "counts": lambda axes: _counts(axes, report),
        "intervals": lambda axes: _intervals(axes, setup, observed),
        "saturation": lambda axes: _saturation(axes, options),
    }
    if observed.prepared is not None or observed.pairs is not None:
        plots["qber"] = lambda axes: _qber(axes, observed)
        plots["g2"] = lambda axes: _g2(axes, setup, observed)
    if observed.prepared is not None:
        plots["gate"] = lambda axes: _gate(axes, setup, observed)
    for name, plot in plots.items():
        _draw(folder / name, plot)
    return sorted(plots)


def _draw(path: Path, plot: Callable[[Axes], None]) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    with rc_context({"svg.hashsalt": "qkdhw"}):  # the same run draws the same bytes
        plot(figure.add_subplot())
        try:
            figure.savefig(path.with_suffix(".png"), dpi=120, metadata={"Software": None})
            figure.savefig(path.with_suffix(".svg"), metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        except OSError as error:
            raise EventError(f"cannot write the plot {path}: {error.strerror}", remedy="free some space") from error


def _counts(axes: Axes, report: Report) -> None:
    rows = report["detectors"]
    axes.bar(range(len(rows)), [row["rate_hz"] for row in rows], color=COLOURS[0], label="observed")
    expected = [(i, row["expected_rate_hz"]) for i, row in enumerate(rows) if row["expected_rate_hz"] is not None]
    if expected:
        axes.plot(*zip(*expected, strict=True), "_", color=COLOURS[3], markersize=30, label="expected, no attack")
        axes.legend()
    axes.set_xticks(range(len(rows)), [f"{row['end']} {row['input']}\n{row['meaning']}" for row in rows])
    axes.set_ylabel("clicks per second")
    axes.set_title("Counts of each detector")
    axes.set_ylim(bottom=0)
    if not any(row["rate_hz"] for row in rows):
        _note(axes, "no clicks: let it run longer")


def _intervals(axes: Axes, setup: OpticalSetup, observed: Observed) -> None:
    period_ps = 0 if setup.source.kind == "pair-cw" else setup.source.period_ps
    for d, histogram in enumerate(observed.bob.intervals):
        if histogram.any():
            centres_ps, per_ps = interval_density(INTERVAL_EDGES_PS, histogram, period_ps)
            axes.plot(centres_ps / 1e6, per_ps * 1e6, ".", color=COLOURS[d % 8], label=f"bob {d + 1}")
    _log_scales(axes, "no two clicks of a detector: let it run longer")
    for dead_time_ns in {d.dead_time_ns for d in setup.receiver.detectors if d.dead_time_ns}:
        axes.axvline(dead_time_ns / 1e3, color="#888", linestyle="--")
    axes.set_xlabel("time between two clicks of a detector (µs); dashed: dead time")
    axes.set_ylabel("intervals per µs")
    axes.set_title("Intervals")
    _legend(axes)


def _gate(axes: Axes, setup: OpticalSetup, observed: Observed) -> None:
    if observed.prepared is None:
        return
    edges_ps = (np.arange(PHASE_BINS + 1) / PHASE_BINS - 0.5) * setup.source.period_ps
    for d, histogram in enumerate(observed.prepared.phases):
        axes.stairs(histogram, edges_ps, color=COLOURS[d % 8], label=f"bob {d + 1}")
    gate = setup.receiver.gate
    for side in (-0.5, 0.5) if gate.width_ps else ():
        axes.axvline(gate.offset_ps + side * gate.width_ps, color="#888", linestyle="--")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time after the pulse's arrival (ps)" + ("; dashed: gate" if gate.width_ps else ""))
    axes.set_ylabel("clicks")
    axes.set_title("Clicks in the pulse period")
    _legend(axes)
    if not observed.prepared.phases.any():
        _note(axes, "no clicks of known time: let it run longer")


def _g2(axes: Axes, setup: OpticalSetup, observed: Observed) -> None:
    if observed.pairs is not None:
        pulsed = setup.source.kind != "pair-cw"
        half = observed.pairs.half_ps / (setup.source.period_ps if pulsed else 1e3)
        curve = delay_correlation(observed.pairs.delays.astype(np.float64), observed.pairs.level, half)
        axes.axhline(1.0, color="#888", linestyle="--")
        axes.set_xlabel("Bob's pulse less Alice's" if pulsed else "Bob's time less Alice's (ns)")
        axes.set_ylabel("g² between the ends")
        axes.set_title("Correlation of the ends")
    elif observed.prepared is not None:
        curve = detector_correlation(observed.prepared, observed.pulses)
        axes.axhline(1.0, color="#888", linestyle="--")
        axes.set_xlabel("distance (pulses)")
        axes.set_ylabel("g² between different detectors")
        axes.set_title("Correlation of the receiver's detectors")
    else:
        return
    axes.errorbar(curve.x, curve.y, curve.bars, fmt=".", elinewidth=0.8, color=COLOURS[0])
    axes.set_ylim(bottom=0)
    if not len(curve.x):
        _note(axes, "too few pairs of clicks: let it run longer")


def _qber(axes: Axes, observed: Observed) -> None:
    counted = observed.prepared or observed.pairs
    if counted is None:
        return
    weight = 2.0 if observed.prepared is not None else 1.0
    for first, basis in ((0, "key"), (2, "test")):
        curve = qber_over_time(counted.timeline, first, weight=weight, cell_s=observed.cell_s)
        if len(curve.x):
            bars = 100 * curve.bars
            axes.errorbar(curve.x, 100 * curve.y, bars, fmt=".", color=COLOURS[first // 2], label=f"{basis} basis")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, observed.duration_s)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("QBER (%)")
    axes.set_title("QBER over time")
    _legend(axes)
    if not axes.get_legend_handles_labels()[0]:
        _note(axes, "no sifted detections")


def _saturation(axes: Axes, options: RunOptions) -> None:
    """Run the receiver with more and less light, and draw what it counts against what could be detected."""
    points = np.array([_offered_and_counted(options, loss_db) for loss_db in SWEEP_LOSSES_DB])
    for d, detector in enumerate(options.setup.receiver.detectors):
        offered, counted = points[:, 0, d], points[:, 1, d]
        some = (offered > 0) & (counted > 0)
        if not some.any():
            continue
        axes.plot(offered[some], counted[some], "o", color=COLOURS[d % 8], label=f"bob {d + 1}")
        rate = np.geomspace(offered[offered > 0].min(), offered.max(), 100)
        law = [measured_rate_hz(r, detector.dead_time_ns * 1e-9, detector.dead_time_kind) for r in rate]
        axes.plot(rate, law, color=COLOURS[d % 8], linewidth=0.8)
    _log_scales(axes, "no clicks at any of the losses")
    axes.set_xlabel("detectable photons and dark counts per second; points: channel losses of 0 to 40 dB")
    axes.set_ylabel("clicks per second")
    axes.set_title("Saturation; lines: the dead time's law for light without pulses or gates")
    _legend(axes)


def _offered_and_counted(options: RunOptions, loss_db: float) -> tuple[Any, Any]:
    channel = options.setup.channel.model_copy(update={"length_km": 0.0, "connector_loss_db": loss_db})
    setup = options.setup.model_copy(update={"channel": channel})
    detectors = setup.receiver.detectors
    offered, counted = (np.zeros(len(detectors)) for _ in range(2))
    cells = 0
    with LinkSimulation(setup, seed=options.seed) as simulation:
        while counted.sum() < SWEEP_EVENTS and cells < SWEEP_CELLS:
            cell = simulation.next_cell()
            offered += np.bincount(cell.bob_light.detector, minlength=len(detectors))
            counted += np.bincount(cell.bob.channel, minlength=len(detectors))
            cells += 1
        seconds = cells * simulation.cell_ps / PS_PER_S
    gate, period_ps = setup.receiver.gate, setup.source.period_ps
    open_share = gate.width_ps / period_ps if gate.width_ps else 1.0
    return offered / seconds + [open_share * d.dark_count_rate_hz for d in detectors], counted / seconds


def _log_scales(axes: Axes, note: str) -> None:
    """Scale both axes by logarithms, or say in a note that there is nothing to show: that cannot be scaled."""
    if axes.lines:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        _note(axes, note)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, horizontalalignment="center")

"""What a run had against what the closed forms of its setup say: as one JSON object."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.attack import Attack
from qkdhw_emulators.optics.attacks import MONITORS
from qkdhw_emulators.optics.expected import (
    ExpectedCounts,
    arrival_sigma_ps,
    expected_counts,
    expected_gain_and_qber,
)
from qkdhw_emulators.optics.link_tables import build_tables
from qkdhw_emulators.optics.setup import BASES, PS_PER_S, OpticalSetup
from qkdhw_emulators.simulate.curves import wilson
from qkdhw_emulators.simulate.matching import PulseMatcher
from qkdhw_emulators.simulate.observation import EndCounts, PairCounts, PulseCounts
from qkdhw_emulators.simulate.pulsed_pump import expected_pulsed_singles, expected_pulses
from qkdhw_emulators.simulate.run import Observed, RunOptions
from qkdhw_emulators.simulate.steady_pump import expected_coincidences, expected_singles

Report = dict[str, Any]
PULSE_SIGMAS = 4  # between two photons of a pulse


def report_of(options: RunOptions, name: str, observed: Observed) -> Report:
    """Return all about a run as a JSON object; docs/how-to/simulate-a-link.md lists what is in it.

    "Expected" is the link of the setup without attacks: what attacks do shows as the difference.
    """
    setup = options.setup
    report: Report = {
        "link": name,
        "title": setup.title,
        "seed": options.seed,
        "duration_s": observed.duration_s,
        "cells": observed.cells,
        "cell_s": observed.cell_s,
        "ended_by": _ended_by(options, observed),
        "pulses": observed.pulses,
        "events": {"bob": int(observed.bob.clicks.sum())},
        "events_before_light": {"bob": observed.bob.before},
        "attacks": [_attack(attack, observed) for attack in options.schedule.attacks],
        "monitors": {
            what: {"normal": MONITORS[what].normal, "lowest": low, "highest": high}
            for what, (low, high) in observed.monitors.items()
        },
    }
    counts = None
    if observed.prepared is not None:
        counts = expected_counts(setup, observed.pulses, PulseMatcher(setup, setup.receiver).window_ps)
        report["bases"] = _bases(setup, observed.prepared, counts, observed.pulses)
    report["detectors"] = _detectors(setup, "bob", observed.bob, observed.duration_s, counts)
    if observed.alice is not None:
        report["events"]["alice"] = int(observed.alice.clicks.sum())
        report["events_before_light"]["alice"] = observed.alice.before
        report["detectors"] += _detectors(setup, "alice", observed.alice, observed.duration_s, None)
    if observed.pairs is not None:
        report["pairs"] = _coincidences(setup, observed.pairs, observed)
    found = _as_published(report)
    report["published"] = {
        what: {"published": value} | dict(zip(("observed", "error"), found.get(what, (None, None)), strict=True))
        for what, value in setup.published.items()
    }
    return report


def _ended_by(options: RunOptions, observed: Observed) -> str:
    if options.events is not None and observed.bob.clicks.sum() >= options.events:
        return "events"
    return "longest wait" if options.duration_s is None else "duration"


def _as_published(report: Report) -> dict[str, tuple[float | None, float | None]]:
    """Return what was observed and its standard error, by the names that papers' values have in presets."""
    rows = report.get("bases", [])
    found = {}
    for row in rows:
        found[f"gain_{row['basis']}_{row['intensity']}"] = _ratio(row["detections"], row["pulses"])
        found[f"qber_{row['basis']}_{row['intensity']}"] = _ratio(row["errors"], row["detections"])
    for basis in {row["basis"] for row in rows}:
        own = [row for row in rows if row["basis"] == basis]
        detections = sum(row["detections"] for row in own)
        duration_s = report["duration_s"]
        found[f"rate_{basis}_hz"] = detections / duration_s, math.sqrt(detections) / duration_s
        found[f"qber_{basis}"] = _ratio(sum(row["errors"] for row in own), detections)
    return found


def _ratio(some: float, of: float) -> tuple[float | None, float | None]:
    """Return a share and its standard error."""
    if not of:
        return None, None
    low, high = wilson(np.array(float(some)), np.array(float(of)))
    return some / of, float(high - low) / 2


def _attack(attack: Attack, observed: Observed) -> dict[str, Any]:
    """Return an attack's fields, and whether any cell began while it was on."""
    first = math.ceil(min(attack.from_s / observed.cell_s - 1e-9, observed.cells))
    began = first < observed.cells and attack.is_on(max(first * observed.cell_s, attack.from_s))
    return {"name": attack.name} | attack.model_dump() | {"began": began}


def _detectors(
    setup: OpticalSetup, end: str, found: EndCounts, duration_s: float, counts: ExpectedCounts | None
) -> list[dict[str, Any]]:
    receiver = setup.receiver if end == "bob" else setup.sender_receiver or setup.receiver
    expected: list[tuple[float, float]] = []
    unsure = [False] * len(receiver.detectors)
    if counts is not None:
        expected = [*zip(counts.detector_clicks / duration_s, counts.detector_fano, strict=True)]
        unsure = _may_click_twice(setup, counts, duration_s)
    elif setup.source.kind == "pair-cw" and receiver.basis_choice == "passive":
        expected = [(e.rate_hz, e.fano) for e in expected_singles(setup, receiver)]
    elif setup.source.kind == "pair-pulsed":
        expected = [(e.rate_hz, e.fano) for e in expected_pulsed_singles(setup, receiver) or ()]
    rows = []
    for d, (clicks, meaning) in enumerate(zip(found.clicks.tolist(), receiver.meaning, strict=True)):
        rate_hz, fano = map(float, expected[d]) if expected and not unsure[d] else (None, 0.0)
        mean = (rate_hz or 0.0) * duration_s
        rows.append(
            {
                "end": end,
                "input": d + 1,
                "meaning": meaning,
                "clicks": clicks,
                "rate_hz": clicks / duration_s,
                "expected_rate_hz": rate_hz,
                "z": _z(clicks, mean, mean * fano),
            }
        )
    return rows


def _may_click_twice(setup: OpticalSetup, counts: ExpectedCounts, duration_s: float) -> list[bool]:
    """Tell of which detectors the clicks are not known to a standard deviation.

    Their dead time ends within a pulse, so that some of its photons make clicks of their own, but not all do.
    """
    longest_ps = PULSE_SIGMAS * math.sqrt(2) * arrival_sigma_ps(setup)
    within = [0 < 1000 * d.dead_time_ns < longest_ps for d in setup.receiver.detectors]
    if not any(within):
        return within
    never_dead = tuple(d.model_copy(update={"dead_time_ns": 0.0}) for d in setup.receiver.detectors)
    receiver = setup.receiver.model_copy(update={"detectors": never_dead})
    pulses = duration_s * PS_PER_S / setup.source.period_ps
    every = expected_counts(setup.model_copy(update={"receiver": receiver}), pulses).detector_clicks
    more = every - counts.detector_clicks > np.sqrt(counts.detector_clicks)
    return [inside and bool(m) for inside, m in zip(within, more, strict=True)]


def _bases(setup: OpticalSetup, found: PulseCounts, counts: ExpectedCounts, pulses: int) -> list[dict[str, Any]]:
    """Return a row for each basis that the receiver measures and each intensity, both ends in the same basis."""
    expected = expected_gain_and_qber(setup, PulseMatcher(setup, setup.receiver).window_ps)
    chosen = _chosen(setup)
    mu: list[float | None] = [i.mean_photon_number for i in setup.source.intensities]
    mu = mu or [None]
    rows = []
    for b, k in np.ndindex(setup.source.bases, len(mu)):
        if not any(meaning.startswith((BASES[b], "any")) for meaning in setup.receiver.meaning):
            continue
        prepared = pulses * float(chosen[k, b])
        gain, qber = expected[f"gain_{BASES[b]}_{k}"], expected.get(f"qber_{BASES[b]}_{k}", 0.0)
        clicks = counts.clicks[k, b, :, b, :].sum()
        widening = float(counts.variance[k, b, :, b, :].sum() / clicks) if clicks else 1.0
        detections, errors = int(found.detections[k, b, b]), int(found.half_errors[k, b, b]) / 2
        rows.append(
            {
                "basis": BASES[b],
                "intensity": k,
                "mean_photon_number": mu[k],
                "pulses": round(prepared),
                "detections": detections,
                "gain": detections / prepared if prepared else None,
                "expected_gain": gain,
                "gain_z": _z(detections, gain * prepared, gain * prepared * widening),
                "errors": errors,
                "qber": errors / detections if detections else None,
                "expected_qber": qber,
                "qber_z": _z(errors, qber * detections, qber * (1 - qber) * detections),
            }
        )
    return rows


def _chosen(setup: OpticalSetup) -> NDArray[np.float64]:
    """Return how often an intensity and a basis are chosen and, if the receiver switches, measured too."""
    tables = build_tables(setup)
    intensity, sent, measured = (
        np.diff(steps.astype(np.float64), prepend=0) / steps[-1]
        for steps in (tables.intensity_thresholds, tables.basis_thresholds, tables.bob_thresholds)
    )
    in_same = measured if len(measured) > 1 else np.ones(len(sent))
    chosen: NDArray[np.float64] = intensity[:, None] * (sent * in_same[: len(sent)])
    return chosen


def _coincidences(setup: OpticalSetup, pairs: PairCounts, observed: Observed) -> dict[str, Any]:
    """Return coincidences, those in equal bases, and of chance from the flat part of the histogram of delays.

    With a pulsed pump they are pulses with clicks at both ends, and those of chance are not told apart.
    """
    steady = setup.source.kind == "pair-cw"
    n = len(pairs.delays)
    edge = pairs.delays[[*range(n // 4), *range(n - n // 4, n)]]
    by_chance = float(edge.mean()) * n / 20  # the window is 1/20 of the histogram
    total = round(pairs.coincidences.sum())
    report: dict[str, Any] = {
        "counted": "pairs of clicks" if steady else "pulses",
        "window_ps": pairs.window_ps if steady else _pulse_window_ps(setup),
        "coincidences": total,
        "rate_hz": total / observed.duration_s,
        "accidental": by_chance if steady else None,
        "bases": [],
    }
    for b, basis in enumerate(BASES):
        same = pairs.coincidences[b, :, b, :]
        sifted, errors = round(same.sum()), float(same[0, 1] + same[1, 0])
        if not sifted:
            continue
        expected = _expected_pairs(setup, b, observed)
        mean, qber = expected or (0.0, 0.0)
        report["bases"].append(
            {
                "basis": basis,
                "coincidences": sifted,
                "expected": mean if expected else None,
                "z": _z(sifted, mean, mean),
                "errors": round(errors) if steady else errors,
                "qber": errors / sifted,
                "expected_qber": qber if expected else None,
                "qber_z": _z(errors, qber * sifted, qber * (1 - qber) * sifted),
            }
        )
    return report


def _pulse_window_ps(setup: OpticalSetup) -> float:
    return PulseMatcher(setup, setup.receiver).window_ps or setup.source.period_ps


def _expected_pairs(setup: OpticalSetup, basis: int, observed: Observed) -> tuple[float, float] | None:
    """Return expected coincidences in a basis and their error rate, None where no closed form holds."""
    if setup.source.kind == "pair-cw":
        steady = expected_coincidences(setup, basis)
        return ((steady.true_hz + steady.accidental_hz) * observed.duration_s, steady.qber) if steady else None
    pulsed = expected_pulses(setup, basis)
    return (pulsed.gain * observed.pulses, pulsed.qber) if pulsed else None


def _z(found: float, mean: float, variance: float) -> float | None:
    """Return how many standard deviations apart, or None if nothing is expected to vary."""
    return (found - mean) / math.sqrt(variance) if variance > 0 else None

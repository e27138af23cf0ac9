"""What an emulated link's tagger wrote, counted, and how probable such counts are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdhw_emulators.optics.expected import ExpectedCounts, expected_counts
from qkdhw_emulators.optics.setup import BASES, OpticalSetup
from qkdhw_emulators.optics.simulation import LinkSimulation

LEAST_P = 1e-6
FEWEST = 20  # expected clicks of a cell that is judged
SETTLED_PULSES = 4096  # after these a detector has forgotten that the run began
BATCH, MOST_CELLS = 1 << 20, 2000

Clicks = tuple[NDArray[np.float64], NDArray[np.int64]]


def p_gauss(found: float, expected: float, variance: float) -> float:
    """Two-sided."""
    return math.erfc(abs(found - expected) / math.sqrt(2 * variance))


def p_chi_square(chi_square: float, n: int) -> float:
    """Of the sum of n squares; Wilson-Hilferty."""
    z = ((chi_square / n) ** (1 / 3) - (1 - 2 / (9 * n))) / math.sqrt(2 / (9 * n))
    return math.erfc(z / math.sqrt(2)) / 2


def p_kolmogorov(below: NDArray[np.float64]) -> float:
    """Of a sample whose distribution's values `below` are uniform if the distribution is the right one."""
    f, n = np.sort(below), len(below)
    d = max(float((np.arange(1, n + 1) / n - f).max()), float((f - np.arange(n) / n).max()))
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * d
    if x < 0.3:
        return 1.0
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101)))


def changed(setup: OpticalSetup, **parts: dict[str, object]) -> OpticalSetup:
    """Return a setup with other fields in some of its parts; `detectors` stands for each of the receiver's."""
    values = setup.model_dump()
    for detector in values["receiver"]["detectors"]:
        detector.update(parts.get("detectors", {}))
    for part, fields in parts.items():
        if part != "detectors":
            values[part].update(fields)
    return OpticalSetup.model_validate(values)


def batches(link: LinkSimulation) -> Iterator[tuple[Clicks, int]]:
    """Go through what Bob's tagger writes: times in ps and channels, and up to which time they are complete."""
    tick_ps = link.setup.tagger.tick_fs / 1000
    events, n = [], 0
    while True:
        events.append(link.next_cell().bob)
        n += len(events[-1].ticks)
        if n >= BATCH or len(events) >= MOST_CELLS:
            time_ps = (np.concatenate([e.ticks for e in events]) + 0.5) * tick_ps
            channel = np.concatenate([e.channel for e in events]).astype(np.int64)
            yield (time_ps, channel), int(events[-1].end_ticks * tick_ps)
            events, n = [], 0


@dataclass(frozen=True)
class Counted:
    """Clicks by the sender's intensity, basis and bit and the receiver's basis and bit, as `expected_counts`.

    Attributes:
        clicks: int64 (intensities, 3, 2, 3, 2), unsifted.
        doubles: int64 (intensities, 3, 2, 3), pulses with a click in both outcomes of a basis.
        n_pulses: Pulses that were counted.
    """

    clicks: NDArray[np.int64]
    doubles: NDArray[np.int64]
    n_pulses: int


def count(setup: OpticalSetup, n_events: float, *, seed: int, cell_pulses: int | None = None) -> Counted:
    """Run a link through detectors and tagger until it has so many events, and count them.

    Clicks belong to the pulse, or time bin, that they are next to; the receiver's clock agrees with the sender's.
    """
    setup = changed(setup, tagger={"clock_offset_s": 0.0})
    n_intensities = max(1, len(setup.source.intensities))
    clicks = np.zeros(n_intensities * 36, np.int64)
    doubles = np.zeros(n_intensities * 18, np.int64)
    n, last = 0, SETTLED_PULSES
    waiting = np.empty(0), np.empty(0, np.int64)
    with LinkSimulation(setup, seed=seed, cell_pulses=cell_pulses) as link:
        for new, end_ps in batches(link):
            n += len(new[1])
            time_ps, channel = (np.concatenate(pair) for pair in zip(waiting, new, strict=True))
            pulse, basis, bit = _outcome(setup, time_ps, channel)
            end = end_ps // setup.source.period_ps - 1
            waiting = time_ps[pulse >= end], channel[pulse >= end]
            here = (pulse >= last) & (pulse < end) & (bit >= 0)
            pulse, basis, bit, last = pulse[here], basis[here], bit[here], end
            if setup.receiver.basis_choice == "active":
                measured = link.measured_at(pulse).astype(np.int64)
                told = (basis < 0) | (basis == measured)
                pulse, basis, bit = pulse[told], measured[told], bit[told]
            cell = (link.prepared_at(pulse).astype(np.int64) * 3 + basis) * 2 + bit
            clicks += np.bincount(cell, minlength=len(clicks))
            by_pulse = np.sort((pulse << 8) + cell)
            both = (np.diff(by_pulse) == 1) & (by_pulse[:-1] % 2 == 0)
            doubles += np.bincount(by_pulse[:-1][both] % 256 // 2, minlength=len(doubles))
            if n >= n_events:
                break
    shape = (n_intensities, 3, 2, 3)
    return Counted(clicks.reshape(*shape, 2), doubles.reshape(shape), last - SETTLED_PULSES)


def together(parts: list[Counted]) -> Counted:
    """Put several runs of a link together."""
    return Counted(sum(p.clicks for p in parts), sum(p.doubles for p in parts), sum(p.n_pulses for p in parts))


def _outcome(setup: OpticalSetup, time_ps: NDArray[np.float64], channel: NDArray[np.int64]) -> tuple[NDArray, ...]:
    """Return pulse, basis (-1: what the switch says) and bit of clicks; bit -1 tells nothing."""
    meaning, period_ps = setup.receiver.meaning, setup.source.period_ps
    basis = np.array([next((b for b, name in enumerate(BASES) if m.startswith(name)), -1) for m in meaning])[channel]
    bit = np.array([int(m[-1]) if m[-1] in "01" else -1 for m in meaning])[channel]
    if setup.source.encoding != "time-bin":
        return np.floor(time_ps / period_ps + 0.5).astype(np.int64), basis, bit
    bin_ps = setup.receiver.bin_separation_ps
    if period_ps != 2 * bin_ps:
        raise ValueError("counting of time bins is for bins of half a period")
    slot = np.floor(time_ps / bin_ps + 0.5).astype(np.int64)
    late = slot % 2
    return slot // 2, basis, np.where(bit < 0, late, np.where(late, -1, bit))


def p_of_counts(counted: Counted, model: OpticalSetup) -> float:
    """Return how probable these counts, or worse ones, are in a link of this setup: chi-square of all cells.

    The clicks of a detector, of variance F times their mean, fall into cells one by one: their covariances are
    m_i (i = j) - (1 - F) m_i m_j / M, which is inverted exactly.
    """
    expected = expected_counts(model, counted.n_pulses)
    found = counted.clicks[:, : expected.clicks.shape[1], :, : expected.clicks.shape[3]]
    chi_square, n = 0.0, 0
    for detector, cells in enumerate(_cells_of_detectors(model, expected)):
        mean, off = expected.clicks[cells], found[cells] - expected.clicks[cells]
        c = (1 - expected.detector_fano[detector]) / expected.detector_clicks[detector]
        chi_square += float((off**2 / mean).sum() + off.sum() ** 2 * c / (1 - c * mean.sum()))
        n += len(mean)
    return p_chi_square(chi_square, n)


def _cells_of_detectors(model: OpticalSetup, expected: ExpectedCounts) -> Iterator[NDArray[np.bool_]]:
    """Say for each detector which cells have its clicks, and enough of them."""
    for m in model.receiver.meaning:
        own = np.zeros(expected.clicks.shape, bool)
        for b, y in np.ndindex(expected.clicks.shape[3:]):
            own[..., b, y] = m in {f"{BASES[b]}{y}", f"any{y}", BASES[b]}
        yield own & (expected.clicks >= FEWEST)

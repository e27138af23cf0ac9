"""Both sites of a pair source in one process: an error rate from two taggers' files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkdhw.bench.pipeline.clock_log import MAX_LOST_S, ClockChange
from qkdhw.bench.pipeline.clock_log import ignore as ignore_change
from qkdhw.bench.pipeline.pair_sifter import PairSifterPipeline
from qkdhw.bench.pipeline.pairs import ALIGN_S, PairAnnouncerPipeline, PairStatistics
from qkdhw.bench.pipeline.pieces import Source
from qkdhw.errors import PeerProtocolError
from qkdhw.events.pair_alignment import PairAlignment
from qkdhw.events.wiring import FOUR_DETECTORS, Wiring
from qkdhw.model import Basis
from qkdhw.postprocessing.pair_sifting import PairAnswer, SiftedPairs


@dataclass(frozen=True, slots=True)
class PairReport:
    """What both sites together know of a run: numbers, no bits.

    Attributes:
        kept: int64 (2,), sifted bits by basis.
        errors: int64 (2,), those of them that differ between the sites.
        accidentals: How many coincidences are expected to be accidental.
        accidentals_error: Standard error of that.
        alignment: The clock of the second site in terms of the first's, as it was found first.
        clock_changes: When it was lost and found again after that, the latest of them.
        announcer: The first site's statistics.
        sifter: The second's.
    """

    kept: NDArray[np.int64]
    errors: NDArray[np.int64]
    accidentals: float
    accidentals_error: float
    alignment: PairAlignment
    clock_changes: tuple[ClockChange, ...]
    announcer: PairStatistics
    sifter: PairStatistics

    def qber(self, basis: Basis = Basis.KEY) -> float:
        """Return the error rate of a basis; nan without bits."""
        return int(self.errors[basis]) / int(self.kept[basis]) if self.kept[basis] else float("nan")


def ignore(_announcer: SiftedPairs, _sifter: SiftedPairs) -> None:
    """Take both sites' bits and do nothing."""


def sift_pairs(
    announcer_events: Source,
    sifter_events: Source,
    *,
    window_ps: Fraction | int,
    announcer_wiring: Wiring = FOUR_DETECTORS,
    sifter_wiring: Wiring = FOUR_DETECTORS,
    unit_ticks: int = 1,
    align_s: Fraction | float = ALIGN_S,
    offset_s: Fraction | float = 0,
    max_offset_s: float = 0.1,
    max_ppm: float = 20.0,
    max_lost_s: float = MAX_LOST_S,
    on_clock: Callable[[ClockChange], None] = ignore_change,
    on_sifted: Callable[[SiftedPairs, SiftedPairs], None] = ignore,
    **options: Any,
) -> PairReport:
    """Sift the events of two sites that share photon pairs.

    Args:
        announcer_events: Event file, unit or blocks of the site that announces: the one with fewer detections.
        sifter_events: The same of the other site.
        window_ps: Full width of the coincidence window.
        announcer_wiring: Which input of the first is which detector.
        sifter_wiring: The same of the second.
        unit_ticks: Ticks in a unit of the announced times.
        align_s: How much of the first's beginning is searched for the clock: more than `max_offset_s` if that is large,
            and up to where the second has events.
        offset_s: About how much later the second site's clock reads.
        max_offset_s: How far from that the true difference may lie.
        max_ppm: Largest relative difference of the two clocks, parts per million.
        max_lost_s: End with an error when the clock was lost for so long a time of the stream.
        on_clock: Called when the clock is lost and when it is found again.
        on_sifted: Called with both sites' bits of each announcement; they are wiped afterwards.
        options: Further options of both pipelines.

    Raises:
        ClockAlignmentError: The two share no offset and rate that stand out, or lost them for too long.
        QkdhwError: Whatever else ends one of the sites.
    """
    kept, errors = np.zeros(len(Basis), np.int64), np.zeros(len(Basis), np.int64)
    with (
        PairAnnouncerPipeline(
            announcer_events, announcer_wiring, unit_ticks=unit_ticks, align_s=align_s, **options
        ) as announcer,
        PairSifterPipeline(
            sifter_events, sifter_wiring, window_ps=window_ps, offset_s=offset_s, max_offset_s=max_offset_s,
            max_ppm=max_ppm, max_lost_s=max_lost_s, on_clock=on_clock, **options,
        ) as sifter,
    ):  # fmt: skip

        def take(answers: list[PairAnswer]) -> None:
            for answer in answers:
                ours = announcer.sift(answer.reply)
                kept[:] += (ours.n_key, ours.n_test)
                errors[:] += _errors(ours, answer.sifted)
                on_sifted(ours, answer.sifted)
                ours.wipe()
                answer.sifted.wipe()

        alignment = sifter.align(announcer.first_times())
        for announcement in announcer:
            take(sifter.answer(announcement))
        take(sifter.finish())
        return PairReport(
            kept, errors, sifter.accidentals, sifter.accidentals_error, alignment, sifter.clock_changes,
            announcer.statistics, sifter.statistics,
        )  # fmt: skip


def _errors(ours: SiftedPairs, theirs: SiftedPairs) -> tuple[int, int]:
    if not np.array_equal(ours.kept, theirs.kept) or ours.n_key != theirs.n_key:
        raise PeerProtocolError("the sites kept different positions", remedy="check that both run the same version")
    key, test = ours.key_bits ^ theirs.key_bits, ours.test_bits ^ theirs.test_bits
    return int(np.unpackbits(key).sum()), int(np.unpackbits(test).sum())

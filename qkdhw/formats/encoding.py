"""What every writer does alike: refuse what its format cannot hold, and never round a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import EventFormatError
from qkdhw.model import DetectionBlock, EventKind

KEEP_ALL_REMEDY = "write HDF5 or Parquet, which hold every event"
DROP_GAPS_REMEDY = f"{KEEP_ALL_REMEDY}, or leave the gaps out and have them counted: drop_gaps=True (--drop-gaps)"
_GAPS = (EventKind.GAP_BEGIN, EventKind.GAP_END)


@dataclass(slots=True)
class LeftOut:
    """What a writer wrote and what it left out because the format has no place for it.

    Attributes:
        events: Events written.
        dummies: Dummy events left out; they say nothing but that the tagger's clock went on.
        gaps: Gaps whose marks were left out because that was asked for.
    """

    events: int = 0
    dummies: int = 0
    gaps: int = 0

    def keep(
        self, block: DetectionBlock, format_name: str, *, allowed: AbstractSet[EventKind], holds_missed: bool = False
    ) -> NDArray[np.bool_]:
        """Return which events to write, bool (n,), and count them.

        Args:
            block: Some events.
            format_name: Of the files, for the message.
            allowed: Kinds that the format has a place for.
            holds_missed: It has one for the number of missed events, too.

        Raises:
            EventFormatError: An event other than a dummy has a kind that is not allowed, or events were missed.
        """
        keep = np.isin(block.kind, [int(kind) for kind in allowed])
        dummy = ~keep & (block.kind == EventKind.DUMMY)
        other = np.flatnonzero(~keep & ~dummy)
        if len(other) or (block.missed and not holds_missed):
            kind = EventKind(int(block.kind[other[0]])) if len(other) else EventKind.MISSED
            raise EventFormatError(
                f"{format_name} have no place for {kind.name} events",
                remedy=DROP_GAPS_REMEDY if kind in _GAPS else KEEP_ALL_REMEDY,
            )
        self.events += int(keep.sum())
        self.dummies += int(dummy.sum())
        return keep


class GapDropper:
    """Takes the marks of gaps out of blocks.

    Attributes:
        gaps: How many gaps there were so far.
    """

    def __init__(self) -> None:
        self.gaps = 0
        self._in_gap = False

    def pass_on(self, blocks: Iterable[DetectionBlock]) -> Iterator[DetectionBlock]:
        """Yield the blocks without marks of gaps."""
        for block in blocks:
            is_mark = (block.kind == EventKind.GAP_BEGIN) | (block.kind == EventKind.GAP_END)
            yield self._without(block, is_mark) if is_mark.any() else block

    def _without(self, block: DetectionBlock, is_mark: NDArray[np.bool_]) -> DetectionBlock:
        begins = block.kind[is_mark] == EventKind.GAP_BEGIN
        # An end that no begin is before stands for a gap, too.
        self.gaps += int(begins.sum() + (~begins & ~np.concatenate(([self._in_gap], begins[:-1]))).sum())
        self._in_gap = bool(begins[-1])
        keep = ~is_mark
        return replace(
            block,
            time_ticks=block.time_ticks[keep],
            channel=block.channel[keep],
            kind=block.kind[keep],
            fine_ticks=None if block.fine_ticks is None else block.fine_ticks[keep],
        )


def refuse_fine_ticks(block: DetectionBlock, format_name: str) -> None:
    """Refuse start-stop (T3) events.

    Raises:
        EventFormatError: The block has fine ticks.
    """
    if block.fine_ticks is not None:
        raise EventFormatError(
            f"{format_name} have no place for the time since the last sync (T3)",
            remedy="write PTU, HDF5, Parquet or CSV",
        )


def rescaled_ticks(time_ticks: NDArray[np.int64], from_ps: Fraction, to_ps: Fraction) -> NDArray[np.int64]:
    """Return times in another tick, exactly.

    Raises:
        EventFormatError: A time is negative, is no whole number of the new ticks, or leaves int64.
    """
    if len(time_ticks) and int(time_ticks.min()) < 0:
        raise EventFormatError("a time is negative", remedy="shift the times first, or " + KEEP_ALL_REMEDY)
    ratio = from_ps / to_ps
    if ratio == 1:
        return time_ticks
    # A divisor beyond int64 leaves every time but 0 as it is: the largest one that fits finds the same remainders.
    quotient, rest = np.divmod(time_ticks, min(ratio.denominator, 2**63 - 1))
    if rest.any():
        raise EventFormatError(
            f"times in ticks of {float(from_ps):g} ps are no whole numbers of {float(to_ps):g} ps",
            remedy=KEEP_ALL_REMEDY,
        )
    if len(quotient) and int(quotient.max()) * ratio.numerator >= 2**63:
        raise EventFormatError("a time leaves 63 bits in the new tick", remedy=KEEP_ALL_REMEDY)
    scaled: NDArray[np.int64] = quotient * ratio.numerator
    return scaled

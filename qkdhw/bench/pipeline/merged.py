"""Several sources as one: taggers that share a clock, or one tagger whose channels have delays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from qkdhw.events.merging import MergeSource, StreamMerger
from qkdhw.model import DetectionBlock


@dataclass(frozen=True, slots=True)
class Merged:
    """A source made of others, as `EventPipeline` and the pair pipelines take it.

    Attributes:
        sources: Units, files or blocks.
        inputs: For each: its tick, what is added to its channels, and the delays of its channels.
        ordering_window_ps: How far an event may lie before the latest one of its stream.
        drop_late: Whether events beyond are dropped and counted; otherwise they raise.
    """

    sources: Sequence[Any]
    inputs: Sequence[MergeSource]
    ordering_window_ps: Fraction | int = 0
    drop_late: bool = False

    def blocks(self, readers: Sequence[Iterator[DetectionBlock]]) -> Iterator[tuple[DetectionBlock, int]]:
        """Merge what the readers of the sources give; yield blocks, and how many late events were dropped so far.

        Of all sources the one that is behind is read next.

        Raises:
            NonMonotonicTimeError: An event is late and late events are not dropped.
            EventError: A source has another tick than its input says.
        """
        merger = StreamMerger(self.inputs, ordering_window_ps=self.ordering_window_ps, drop_late=self.drop_late)
        reached_ps = dict.fromkeys(range(len(self.sources)), Fraction(-(1 << 62)))
        while reached_ps:
            behind = min(reached_ps, key=lambda index: reached_ps[index])
            block = next(readers[behind], None)
            if block is None:
                del reached_ps[behind]
                merged = merger.finish(behind)
            else:
                merged = merger.feed(behind, block)
                reached_ps[behind] = int(block.time_ticks[-1]) * block.tick_ps
            yield merged, sum(merger.statistics.n_late)

"""Whole blocks of slots out of pieces of time: nothing lost between blocks, nothing kept after, no endless wait."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from qkdhw.errors import EventError
from qkdhw.events.clock import SlotClock
from qkdhw.events.gating import Gate, GatedBlock
from qkdhw.events.wiring import FOUR_DETECTORS
from qkdhw.link.blocks import DetectionCollector
from qkdhw.model import DetectionBlock

PERIOD_TICKS = 100
TICK_PS = Fraction(125, 32)


class Pieces:
    """Stands where the reader stands: pieces are there at once."""

    def __init__(self, pieces: Iterable[DetectionBlock]) -> None:
        self._pieces = iter(pieces)

    def next_piece(self, *, timeout_s: float) -> DetectionBlock:
        return next(self._pieces)


class WatchedGate(Gate):
    """A gate that remembers what it gave out."""

    def feed(self, block: DetectionBlock) -> GatedBlock:
        gated = super().feed(block)
        self.given = [*getattr(self, "given", []), gated]
        return gated


def clicks(slots: list[int], channel: int = 1, off_ticks: int = 0) -> DetectionBlock:
    ticks = np.array(slots, np.int64) * PERIOD_TICKS + off_ticks
    return DetectionBlock(ticks, np.full(ticks.size, channel, np.uint8), np.zeros(ticks.size, np.uint8), TICK_PS)


def collector_of(
    pieces: Iterable[DetectionBlock], emitted: list[Mapping[str, Any]] | None = None
) -> tuple[DetectionCollector, WatchedGate]:
    clock = SlotClock.nominal(Fraction(PERIOD_TICKS))
    gate = WatchedGate(clock, FOUR_DETECTORS, 40 * TICK_PS, 0, TICK_PS, random_bytes=np.random.default_rng(1).bytes)
    emit = (lambda event: None) if emitted is None else emitted.append
    return DetectionCollector(Pieces(pieces), gate, emit), gate


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_blocks_hold_every_slot_once_however_the_stream_is_cut(size: int) -> None:
    slots = list(range(0, 3000, 3))
    pieces = [clicks(slots[i : i + size], channel=2) for i in range(0, len(slots), size)]
    collector, gate = collector_of(pieces)
    for first, n in ((10, 20), (30, 1), (31, 0), (31, 1000), (2000, 500)):
        slot, basis, bit = collector.take(first, n, timeout_s=5.0)
        assert slot.tolist() == [s for s in slots if first <= s < first + n]
        assert basis.tolist() == [0] * slot.size
        assert bit.tolist() == [1] * slot.size
    used = [gated.bit[gated.slot < 2500] for gated in gate.given]
    assert not any(bits.any() for bits in used if bits.size), "bits that were handed out stay in memory"


def test_a_stream_without_a_click_in_a_slot_is_not_waited_for_for_ever() -> None:
    unwired = (clicks(list(range(i, i + 9)), channel=9) for i in range(9, 10**9, 9))
    started = time.monotonic()
    collector, _ = collector_of(itertools.chain([clicks([0, 1, 2])], unwired))
    with pytest.raises(EventError, match="no click fell into a slot") as raised:
        collector.take(0, 1000, timeout_s=0.1)
    assert raised.value.remedy
    assert time.monotonic() - started < 2.0


def test_progress_is_told() -> None:
    def slow() -> Iterable[DetectionBlock]:
        for i in range(30):
            time.sleep(0.02)
            yield clicks([10 * i])

    emitted: list[Mapping[str, Any]] = []
    collector, _ = collector_of(slow(), emitted)
    collector.take(0, 250, timeout_s=5.0)
    assert emitted
    for event in emitted:
        assert event["event"] == "collecting"
        assert 0 <= event["done_slots"] <= event["total_slots"] == 250

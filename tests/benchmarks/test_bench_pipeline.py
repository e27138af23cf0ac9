"""The whole pipeline of a prepare-and-measure link, tags to sifted bits: rate per core, growth, and memory.

QKDHW_PIPELINE_EVENTS says up to how many events growth is measured (1e7 if not set; 1e9 takes about a minute):

    QKDHW_PIPELINE_EVENTS=1e9 pytest tests/benchmarks/test_bench_pipeline.py --benchmark-only -p no:randomly
"""

import os
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qkdhw.bench.pipeline import EventPipeline, PairAnnouncerPipeline, PairSifterPipeline, SenderPipeline
from qkdhw.events.clock import SlotClock
from qkdhw.events.wiring import FOUR_DETECTORS
from qkdhw.formats import write_events
from qkdhw.model import DetectionBlock, PreparationBlock

TILE = 1 << 18
PERIOD_TICKS, TICK_PS = 25, Fraction(40)
MOST = int(float(os.environ.get("QKDHW_PIPELINE_EVENTS", "1e7")))
LARGEST_EXTRA_MB = 100  # four pieces wait, four are read or written, of 10 to 20 bytes an event

pytestmark = pytest.mark.timeout(300 + MOST / 1e6)


class Tiles:
    """Events of a link of 1 GHz, and what was sent, repeated with the time going on; what making them takes is told."""

    def __init__(self, n_events):
        rng = np.random.default_rng(1)
        self.n_tiles = max(1, round(n_events / TILE))
        self.slot = np.cumsum(rng.integers(1, 40, TILE))
        self.n_slots = int(self.slot[-1]) + 20
        self.record = rng.integers(0, 12, self.n_slots, np.uint8)
        sent = self.record[self.slot]
        basis = np.where(rng.random(TILE) < 0.8, sent >> 1 & 1, rng.integers(0, 2, TILE)).astype(np.uint8)
        bit = (sent & 1) ^ (rng.random(TILE) < 0.03)
        self.ticks = self.slot * PERIOD_TICKS + 12 + rng.integers(-1, 2, TILE)
        self.channel = (1 + 2 * basis + bit).astype(np.uint8)
        self.kind = np.zeros(TILE, np.uint8)
        self.same = basis == (sent >> 1 & 1)
        self.is_key = self.same & (basis == 0)
        self.bit = bit
        self.making_s = 0.0

    def events(self):
        for tile in range(self.n_tiles):
            begun_s = time.thread_time()
            ticks = self.ticks + tile * self.n_slots * PERIOD_TICKS
            self.making_s += time.thread_time() - begun_s
            yield DetectionBlock(ticks, self.channel, self.kind, TICK_PS)

    def prepared(self):
        for tile in range(self.n_tiles):
            yield PreparationBlock(tile * self.n_slots, self.record)


def resident_mb():
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def run(tiles, source, on_sifted=lambda _: None):
    """Sift it all; return events, CPU seconds of the receiver's and of both sites, and the largest growth of memory."""
    clock = SlotClock.nominal(Fraction(PERIOD_TICKS), ref_ticks=12)
    sender_s, before_mb = 0.0, resident_mb()
    highest_mb = before_mb
    begun_s = time.process_time()
    with (
        SenderPipeline(tiles.prepared(), sync_pulses=0) as sender,
        EventPipeline(
            source, FOUR_DETECTORS, period_ps=PERIOD_TICKS * TICK_PS, window_ps=400, clock=clock,
        ) as receiver,
    ):  # fmt: skip
        for message in receiver:
            at_s = time.thread_time()
            reply, theirs = sender.answer(message)
            theirs.wipe()
            sender_s += time.thread_time() - at_s
            ours = receiver.sift(reply)
            on_sifted(ours)
            ours.wipe()
            highest_mb = max(highest_mb, resident_mb())
        statistics = receiver.statistics
    both_s = time.process_time() - begun_s - tiles.making_s
    assert sum(statistics.fates.values()) == statistics.n_events == tiles.n_tiles * TILE
    assert statistics.n_key == tiles.n_tiles * int(tiles.is_key.sum())
    assert statistics.n_key + statistics.n_test == tiles.n_tiles * int(tiles.same.sum())
    return statistics.n_events, both_s - sender_s, both_s, highest_mb - before_mb


def note(benchmark, n, receiver_s, both_s):
    benchmark.extra_info.update(
        million_events=round(n / 1e6, 1),
        receiver_mevents_per_s=round(n / receiver_s / 1e6, 1),
        both_sites_mevents_per_s=round(n / both_s / 1e6, 1),
    )


def test_bench_pipeline(benchmark):
    """Blocks in memory to sifted bits; the bits are those that were put in."""
    tiles = Tiles(16 * TILE)
    ones = []

    def look(sifted):
        ones.append(int(np.unpackbits(sifted.key_bits).sum()))

    run(tiles, tiles.events(), look)
    assert sum(ones) == tiles.n_tiles * int(tiles.bit[tiles.is_key].sum())
    best = (0, np.inf, np.inf, 0.0)
    for _ in range(3):
        tiles.making_s = 0.0
        best = min(best, run(tiles, tiles.events()), key=lambda found: found[1])
    benchmark.pedantic(run, (Tiles(TILE), Tiles(TILE).events()))
    note(benchmark, *best[:3])


def test_bench_pipeline_from_a_file(benchmark, tmp_path):
    """A PTU file, decoded too."""
    tiles = Tiles(16 * TILE)
    path = tmp_path / "events.ptu"
    write_events(path, tiles.events(), "ptu", tick_ps=TICK_PS)
    tiles.making_s = 0.0
    n, receiver_s, both_s, _ = benchmark.pedantic(run, (tiles, path))
    note(benchmark, n, receiver_s, both_s)


def pair_ends():
    """Events of two sites: 20 million pairs a second on ticks of 125 ps, of which each site sees three tenths."""
    rng = np.random.default_rng(2)
    n, span = 1 << 20, (1 << 20) * 400
    at, bit = np.sort(rng.integers(0, span, n)), rng.integers(0, 2, n)
    ends = []
    for _ in range(2):
        seen = rng.random(n) < 0.3
        ticks = at[seen] + rng.integers(-1, 2, int(seen.sum()))
        channel = (rng.integers(0, 2, n) * 2 + bit + 1)[seen].astype(np.uint8)
        order = np.argsort(ticks, kind="stable")
        ends.append((ticks[order], channel[order]))

    def blocks(end, n_tiles):
        ticks, channel = ends[end]
        kind = np.zeros(len(ticks), np.uint8)
        for tile in range(n_tiles):
            yield DetectionBlock(ticks + tile * span, channel, kind, Fraction(125))

    return blocks


def test_bench_pair_pipelines(benchmark):
    """Blocks of two sites in memory to sifted bits of both, after the search of the clock."""
    blocks, n_tiles = pair_ends(), max(80, MOST // 700_000)  # a second of work: memory is grown once

    def sift():
        with (
            PairAnnouncerPipeline(blocks(0, n_tiles), FOUR_DETECTORS, align_s=0.05) as announcer,
            PairSifterPipeline(blocks(1, n_tiles), FOUR_DETECTORS, window_ps=1000, max_offset_s=0.001) as sifter,
        ):
            sifter.align(announcer.first_times())
            begun_s = time.process_time()
            for message in announcer:
                for answer in sifter.answer(message):
                    announcer.sift(answer.reply)
            for answer in sifter.finish():
                announcer.sift(answer.reply)
            spent_s = time.process_time() - begun_s
            found = announcer.statistics, sifter.statistics
        for statistics in found:
            assert sum(statistics.fates.values()) == statistics.n_events
        assert found[0].n_key > 0.03 * found[0].n_events
        return sum(statistics.n_events for statistics in found), spent_s

    n, spent_s = benchmark.pedantic(sift)
    benchmark.extra_info.update(million_events=round(n / 1e6, 1), both_sites_mevents_per_s=round(n / spent_s / 1e6, 1))


def test_bench_pipeline_grows_linearly(benchmark):
    """From 1e5 events on in powers of ten; time for an event stays, memory too."""
    sizes = [n for n in (10**5, 10**6, 10**7, 10**8, 10**9) if n <= MOST]

    def all_sizes():
        rows = []
        for size in sizes:
            tiles = Tiles(size)
            n, receiver_s, both_s, grown_mb = run(tiles, tiles.events())
            rows.append((n, receiver_s, both_s, grown_mb))
        return rows

    rows = benchmark.pedantic(all_sizes)
    for n, receiver_s, _, grown_mb in rows:
        benchmark.extra_info[f"ns_an_event_of_{n:.0e}"] = round(receiver_s / n * 1e9, 1)
        benchmark.extra_info[f"grown_mb_of_{n:.0e}"] = round(grown_mb, 1)
    n, receiver_s, both_s, grown_mb = rows[-1]
    note(benchmark, n, receiver_s, both_s)
    assert grown_mb < LARGEST_EXTRA_MB
    assert receiver_s / n < 2 * min(r / m for m, r, *_ in rows[1:])

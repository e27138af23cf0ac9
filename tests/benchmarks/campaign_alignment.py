"""Long runs of the alignment of pairs, by hand: every number that is claimed for it, over as many seeds as claimed.

    python tests/benchmarks/campaign_alignment.py offsets        100 streams of 5e4 singles and 1e3 pairs a second
    python tests/benchmarks/campaign_alignment.py table          success against pairs, singles and clock error
    python tests/benchmarks/campaign_alignment.py chance         1,000 searches of one rate without correlations
    python tests/benchmarks/campaign_alignment.py chance-scan    1,000 alignments, 20 ppm scanned, without correlations
    python tests/benchmarks/campaign_alignment.py hour           an hour of drift, followed (two kinds)
    python tests/benchmarks/campaign_alignment.py steps          100 steps of 1 ms

`--runs` changes how many, `--first` where the seeds begin.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_pair_alignment import aligned_anywhere, blocks
from test_pair_tracking import errors_ns, feed, simulated_epochs, tracker_of

from pair_streams import TICK_PS, pair_streams
from qkdhw.errors import ClockAlignmentError
from qkdhw.events.alignment import sigma_of
from qkdhw.events.pair_alignment import align_pairs
from qkdhw.events.pair_correlation import PairClock, Window, find_pair_peak
from qkdhw.events.pair_tracking import EPOCH_S, TrackingState


def offsets(first, runs):
    """Offset anywhere in +-100 ms, rate anywhere in +-20 ppm, streams of two seconds."""
    right, worst, cpu_s, weakest = 0, 0.0, [], math.inf
    for seed in range(first, first + runs):
        begin = time.process_time()
        try:
            streams, found = aligned_anywhere(seed)
        except ClockAlignmentError as error:
            print(f"seed {seed}: {error}")
            continue
        cpu_s.append(time.process_time() - begin)
        bins = abs(streams.error_ticks(found.clock)) / float(found.resolution_ticks)
        right += bins <= 1 and found.resolution_ticks <= 8
        worst, weakest = max(worst, bins), min(weakest, found.search_significance)
    print(
        f"{right} of {runs} within one bin of 1 ns; worst {worst:.3f} bins, weakest search {weakest:.1f} sigma, ",
        end="",
    )
    print(f"CPU with the simulation {np.mean(cpu_s):.2f} s, at most {max(cpu_s):.2f} s")


def table(first, runs):
    """N = 2^20 bins of 256 ns, 0.5 s of both streams, one rate: how often the highest bin is the right one."""
    print("singles  pairs   clock  z by formula  z of the highest  within a bin at the beginning, in the middle")
    for singles, pairs, rate in (
        (5e4, 1000, 0), (5e4, 300, 0), (5e4, 200, 0), (5e4, 100, 0), (1e5, 1000, 0), (5e4, 1000, 1e-6), (5e4, 1000, 5e-6),
    ):  # fmt: skip
        right, heights = np.zeros(2, int), []
        for seed in range(first, first + runs):
            offset_s = np.random.default_rng([seed, 1]).uniform(-0.1, 0.1)
            streams = pair_streams(
                [seed, 2], singles=(singles,) * 2, pairs=pairs, span_s=0.5, offset_s=offset_s, rate=rate
            )
            window = Window(0, round(0.5e12 / float(TICK_PS)), 1, 1 << 30, 31, 1 << 20)  # 2^31 ticks are 268 ms
            peak = find_pair_peak(streams.a_ticks, streams.b_ticks, PairClock.nominal(TICK_PS, TICK_PS), window, 0.0)
            bins = [streams.error_ticks(peak.clock.rebased(t)) / 2048 for t in (0, window.middle_ticks)]
            right += [abs(math.remainder(each, 1 << 20)) <= 1 for each in bins]
            heights.append(peak.pairs / math.sqrt(peak.background))
        formula = f"{0.75 * pairs * math.sqrt((1 << 20) / singles**2):.1f}" if rate == 0 else "-"
        print(
            f"{singles:7.0f} {pairs:6d} {rate * 1e6:3.0f} ppm {formula:>13s} {np.mean(heights):17.1f}  {right} of {runs}"
        )


def chance(first, runs):
    """2^20 bins of 256 ns, 0.5 s, no pairs."""
    highest, false = 0.0, 0
    for seed in range(first, first + runs):
        streams = pair_streams([seed, 3], pairs=0, span_s=0.8)
        window = Window(1 << 30, 1 << 32, 1, 1 << 29, 33, 1 << 20)
        peak = find_pair_peak(streams.a_ticks, streams.b_ticks, PairClock.nominal(TICK_PS, TICK_PS), window, 0.0)
        sigma = sigma_of(peak.global_log_p)
        false, highest = false + (sigma >= 6), max(highest, sigma)
    print(f"{false} false locks in {runs} searches; the highest had {highest:.2f} sigma")


def chance_scan(first, runs, max_bins=1 << 18):
    """Whole alignments, +-20 ppm and +-100 ms, 2 s, no pairs."""
    false = 0
    for seed in range(first, first + runs):
        streams = pair_streams([seed, 4], pairs=0)
        try:
            found = align_pairs(*blocks(streams), max_bins=max_bins)
        except ClockAlignmentError:
            continue
        false += 1
        print(f"seed {seed}: {found}")
    print(f"{false} false locks in {runs} alignments")


def hour(first, runs):
    """A drift of 1e-9, of the offset (a constant rate) and of the rate (a second), for an hour of epochs."""
    epochs = math.ceil(3600 / EPOCH_S)
    for name, offset_of in (("constant", lambda t: 1e-3 + 1e-9 * t), ("a second", lambda t: 1e-3 + 0.5e-9 * t * t)):
        for seed in range(first, first + runs):
            tracker, begin = tracker_of(offset_s=1e-3), time.process_time()
            lost, worst, count = 0, 0.0, 0
            for streams in simulated_epochs(seed, epochs, offset_of):
                done = tracker.track(*streams)
                lost += sum(epoch.state is TrackingState.LOST or epoch.found_again for epoch in done)
                worst = max([worst, *map(abs, errors_ns(done, offset_of))])
                count += len(done)
            print(
                f"1e-9 {name}: {count} epochs ({count * EPOCH_S:.0f} s), {lost} lost, worst error {worst:.2f} ns, ",
                end="",
            )
            print(f"rate at the end {float(tracker.clock.rate - 1):.4e}, CPU {time.process_time() - begin:.0f} s")


def steps(first, runs):
    """A step of 1 ms at any moment of an epoch: after how many epochs the clock is right again."""
    epochs_needed = []
    for seed in range(first, first + runs):
        rng = np.random.default_rng([seed, 5])
        part, step_s = rng.random(), rng.choice([-1e-3, 1e-3])

        def offset_of(t, moment_s=(3 + part) * EPOCH_S, step_s=step_s):
            return np.where(t < moment_s, 0.0, step_s)

        done = feed(tracker_of(), simulated_epochs(seed, 10, offset_of))
        right = [abs(error) < 1 for error in errors_ns(done, offset_of)]
        # The epoch in which the step happens counts as the first.
        epochs_needed.append(next(k for k in range(len(right) + 1) if k == len(right) or all(right[3 + k :])))
    print(f"{runs} steps of 1 ms: right again in the nth epoch after that of the step: ", end="")
    print(dict(zip(*(each.tolist() for each in np.unique(epochs_needed, return_counts=True)), strict=True)))


CAMPAIGNS = {
    "offsets": (offsets, 100),
    "table": (table, 20),
    "chance": (chance, 1000),
    "chance-scan": (chance_scan, 1000),
    "hour": (hour, 1),
    "steps": (steps, 100),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    campaign, runs = CAMPAIGNS[options.campaign]
    campaign(options.first, options.runs or runs)

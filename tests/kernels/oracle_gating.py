"""Gating, written to be read (Python integers) and written to be fast (NumPy)."""

import numpy as np

NAMES = [
    *("photons", "unwired", "before_start", "outside_window", "dead_time", "slots", "merged"),
    *("double_key", "double_test", "cross_basis", "loss_marks", "click_0", "click_1", "click_2", "click_3"),
]


def locate(ticks, clock):
    """Slot and residual in 2^-32 ticks, exact."""
    ref_slot, ref_ticks, phase, period = clock
    half = period >> 1
    from_begin = (ticks << 32) - (ref_ticks << 32) - phase + half
    return ref_slot + from_begin // period, from_begin % period - half


def gate(events, wiring, clock, first_slot, half_width, dead_time, random, bins):
    """One outcome a slot: [(slot, basis, bit)], counts by name, histogram, and the number of random bytes used."""
    random = iter(random)
    used = 0
    counts = dict.fromkeys(NAMES, 0)
    histogram = [0] * bins
    slots = {}  # slot -> (live, detectors)
    previous = None
    for ticks, channel, kind in events:
        if kind in {2, 3, 4, 5}:
            counts["loss_marks"] += 1
            previous = ticks
        if kind != 0:
            continue
        counts["photons"] += 1
        detector = wiring[channel]
        if detector == 255:
            counts["unwired"] += 1
            continue
        slot, residual = locate(ticks, clock)
        rest = residual + (clock[3] >> 1)
        histogram[(rest * ((bins << 64) // clock[3])) >> 64] += 1
        if slot < first_slot:
            counts["before_start"] += 1
        elif abs(residual) > half_width:
            counts["outside_window"] += 1
        else:
            window_opens = (ticks << 32) - residual - half_width
            live = previous is None or window_opens - (previous << 32) >= dead_time
            slots.setdefault(slot, (live, []))[1].append(detector)
            counts[f"click_{detector}"] += 1
        previous = ticks
    out = []
    for slot, (live, clicks) in slots.items():
        if not live:
            counts["dead_time"] += len(clicks)
            continue
        counts["slots"] += 1
        counts["merged"] += len(clicks) - 1
        bases = {detector >> 1 for detector in clicks}
        byte = None
        if len(set(clicks)) > 1:
            outcome_is_drawn = len(bases) == 2 or len({d & 1 for d in clicks}) == 2
            assert outcome_is_drawn
            byte = next(random)
            used += 1
        basis = bases.pop() if len(bases) == 1 else byte & 1
        bits = {detector & 1 for detector in clicks if detector >> 1 == basis}
        counts["cross_basis"] += len({detector >> 1 for detector in clicks}) == 2
        counts["double_test" if basis else "double_key"] += len(bits) == 2
        bit = bits.pop() if len(bits) == 1 else byte >> 1 & 1
        out.append((slot, basis, bit))
    return out, counts, histogram, used


def gate_vectorised(time_ticks, channel, wiring, clock, half_width, dead_time, random, bins):
    """The same for photons only, ascending, within 2^31 ticks of the reference, first slot -inf."""
    ref_slot, ref_ticks, phase, period = clock
    half = period >> 1
    detector = wiring[channel]
    wired = detector != 255
    ticks, detector = time_ticks[wired], detector[wired]
    slot, rest = np.divmod(((ticks - ref_ticks) << 32) - phase + half, period)
    slot += ref_slot
    histogram = np.bincount(np.minimum((rest >> 20) * bins // (period >> 20), bins - 1), minlength=bins)
    residual = rest - half
    inside = np.flatnonzero(np.abs(residual) <= half_width)
    here = slot[inside]
    start = np.flatnonzero(np.concatenate(([True], here[1:] != here[:-1])))
    first = inside[start]
    gap = ticks[first] - ticks[np.maximum(first - 1, 0)]
    live = ((gap << 32) - residual[first] - half_width >= dead_time) | (first == 0)
    mask = np.bitwise_or.reduceat(np.uint8(1) << detector[inside], start)[live]
    key, test = (mask & 3) != 0, (mask & 12) != 0
    several = (mask & (mask - 1)) != 0
    byte = np.zeros(len(mask), np.uint8)
    byte[several] = random[: np.count_nonzero(several)]
    basis = np.where(key & test, byte & 1, test).astype(np.uint8)
    pair = mask >> (2 * basis) & 3
    bit = np.where(pair == 3, byte >> 1 & 1, pair >> 1).astype(np.uint8)
    return here[start][live], basis, bit, histogram

"""A time tagger in NumPy and exact fractions: ticks of clicks, one stream of all channels."""

from fractions import Fraction

import numpy as np


def ticks(time_ps, begin_tick, begin_ps, rate, skew_ps, tick_ps, edges=None):
    """Return the ticks of clicks, in doubles as they are said: the oracle of one cell."""
    beyond = (begin_ps + skew_ps) + np.asarray(time_ps, float) * rate
    position = beyond / tick_ps
    if edges is None:
        return begin_tick + np.floor(position).astype(np.int64)
    low = begin_tick % 256
    patterns, inside = np.divmod(position + low, 256)
    bins = np.searchsorted(edges, inside, side="right") - 1
    return begin_tick - low + patterns.astype(np.int64) * 256 + bins


def exact_tick(true_ps, offset_s, parts_of_cells, cell_ps, tick_fs):
    """Return the tick of a time in whole picoseconds, from the exact frequencies of all cells, in 1e-15ths."""
    cell, rest = divmod(true_ps, cell_ps)
    reading_ps = Fraction(offset_s) * 10**12
    reading_ps += Fraction(sum(parts_of_cells[:cell]) * cell_ps + parts_of_cells[cell] * rest, 10**15)
    return int(reading_ps * 1000 // tick_fs)


def merge(per_channel, end_tick):
    """Return what comes before the end as (tick, channel, cause, origin), and what waits, per channel."""
    out, wait = [], []
    for channel, clicks in enumerate(per_channel):
        in_order = sorted(clicks, key=lambda click: click[0])
        out += [(tick, channel, *rest) for tick, *rest in in_order if tick < end_tick]
        wait.append([click for click in in_order if click[0] >= end_tick])
    return sorted(out, key=lambda event: event[:2]), wait

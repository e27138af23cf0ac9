"""Non-paralysable dead time, exact and vectorised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def live_events(times_ps: NDArray[np.int64], dead_time_ps: int, last_ps: int) -> NDArray[np.intp]:
    """Say which events a detector with non-paralysable dead time registers.

    An event is registered if the last registered one is at least `dead_time_ps` back. One that comes that long
    after its predecessor is registered whatever happened before, so those start chains that are followed at the
    same time: a chain never jumps over the start of the next one.

    Args:
        times_ps: Arrival times in order, int64 (n,).
        dead_time_ps: Dead time, 0 or more.
        last_ps: Time of the last registered event before these.

    Returns:
        Indices of the registered events, in order.
    """
    first = int(np.searchsorted(times_ps, last_ps + dead_time_ps))
    times = times_ps[first:]
    n = times.shape[0]
    if n == 0 or dead_time_ps == 0:
        return np.arange(first, first + n)
    live = np.ones(n, dtype=np.bool_)
    live[1:] = np.diff(times) >= dead_time_ps
    is_start = np.append(live, True)
    # Only a start whose successor is not a start itself has more of its chain to find.
    chain = np.flatnonzero(live & ~is_start[1:])
    while chain.shape[0]:
        chain = np.searchsorted(times, times[chain] + dead_time_ps)
        chain = chain[~is_start[chain]]
        live[chain] = True
    return np.flatnonzero(live) + first

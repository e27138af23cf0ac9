"""Make the small event files of tests/vectors/events again: `python tests/vectors/event_vectors.py FOLDER`.

The events come from a fixed integer recurrence, so that no library's random numbers can change them.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

from qkdhw.formats import write_events
from qkdhw.model import DetectionBlock, EventKind

TDC2_TICK_PS = Fraction(125, 32)
SYNC_PERIOD_PS = Fraction("1.2512587663189168e-08") * 10**12


def noise(n, below, seed):
    """Numbers 0..below-1 from a linear congruential generator (Knuth, MMIX)."""
    numbers, state = [], seed
    for _ in range(n):
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        numbers.append((state >> 33) % below)
    return np.array(numbers, np.int64)


def block(time, channel, kind, tick_ps, fine=None):
    return DetectionBlock(
        time_ticks=np.array(time, np.int64),
        channel=np.array(channel, np.uint8),
        kind=np.array(kind, np.uint8),
        tick_ps=tick_ps,
        fine_ticks=None if fine is None else np.array(fine, np.uint16),
        fine_tick_ps=None if fine is None else Fraction(16),
    )


def t2_events():
    """Sync, four inputs and markers; one gap of 298 overflows and one event twice."""
    n = 500
    time = 850_000 + np.cumsum(noise(n, 3_000_000, 1))
    time[250:] += 298 * 2**25
    channel, kind = noise(n, 5, 2), np.zeros(n, np.int64)
    kind[::50], channel[::50] = EventKind.MARKER, 1 + noise(10, 15, 3)
    time[411], channel[411], kind[411] = time[410], channel[410], kind[410]
    return block(time, channel, kind, Fraction(1))


def t3_events():
    """Two inputs and markers; one gap of 2000 overflows, which takes two overflow records."""
    n = 500
    sync = np.cumsum(noise(n, 40, 4))
    sync[100:] += 2000 * 1024
    channel, kind, fine = 1 + noise(n, 2, 5), np.zeros(n, np.int64), noise(n, 782, 6)
    kind[::100] = EventKind.MARKER
    fine[1:][np.diff(sync) == 0] = 782  # within a sync the later event has the later time
    return block(sync, channel, kind, SYNC_PERIOD_PS, fine)


def photon_events():
    """Four inputs beyond 2^53 ps."""
    n = 300
    return block(342_342_429_999_871_629 + np.cumsum(noise(n, 2_000_000, 7)), 1 + noise(n, 4, 8), [0] * n, Fraction(1))


def tdc2_events(tick_ps, start):
    """Four inputs, patterns of two and three inputs, dummies, and one step back in time."""
    n = 300
    time, channel, kind = start + np.cumsum(1 + noise(n, 400, 9)), 1 + noise(n, 4, 10), np.zeros(n, np.int64)
    kind[::25], channel[::25] = EventKind.DUMMY, 0
    for first, channels in ((11, (1, 3)), (61, (2, 3, 4)), (112, (1, 4))):
        time[first : first + len(channels)] = time[first]
        channel[first : first + len(channels)] = channels
    time[210] = time[209] - 50
    return block(time, channel, kind, tick_ps)


def write_all(folder: Path) -> None:
    """Write every vector into a folder."""
    events = {
        "t2.ptu": t2_events(),
        "t3.ptu": t3_events(),
        "binary.qutag": photon_events(),
        **{f"tdc2.{mode}.ts": tdc2_events(TDC2_TICK_PS, 2**53 + 1) for mode in ("a0", "a0x", "a1", "a1x", "a2")},
        "every-kind.csv": tdc2_events(TDC2_TICK_PS, 2**53 + 1),
        "t3.csv": t3_events(),
    }
    for name, part in events.items():
        write_events(folder / name, [part], tick_ps=part.tick_ps, fine_tick_ps=part.fine_tick_ps)
    for mode in ("a0", "a1", "a1x", "a2"):
        part = tdc2_events(Fraction(125), 2**48 + 1)
        write_events(folder / f"old-card.{mode}.raw", [part], f"qcrypto49-{mode}", tick_ps=part.tick_ps)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))

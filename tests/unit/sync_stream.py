"""A small receiver for tests of alignment: clicks of known slots on a clock with offset, frequency error and drift."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qkdhw.model import DetectionBlock

TICK_PS = Fraction(2000)
TICK_S = 2e-9


@dataclass(frozen=True)
class Link:
    pulse_rate_hz: float = 20e6
    clicks_hz: float = 2e4
    dark_hz: float = 400.0
    jitter_s: float = 0.5e-9
    ppm: float = 0.0
    drift_per_s: float = 0.0
    offset_s: float = 0.0
    qber: float = 0.02

    @property
    def period_ticks(self):
        return Fraction(1 / TICK_S / self.pulse_rate_hz).limit_denominator(10**6)


def make_record(rng, n):
    return rng.integers(0, 12, n, dtype=np.uint8)


def make_stream(rng, link, record):
    """Block from the receiver's start, and each event's true slot (-1 for a dark count)."""
    seconds = len(record) / link.pulse_rate_hz
    slot = np.unique(rng.integers(0, len(record), rng.poisson(link.clicks_hz * seconds)))
    basis = rng.integers(0, 2, len(slot))
    right = record[slot] & 1 ^ (rng.random(len(slot)) < link.qber)
    bit = np.where(record[slot] >> 1 & 1 == basis, right, rng.integers(0, 2, len(slot)))
    begin_s = -max(link.offset_s, 0.0)
    n_dark = rng.poisson(link.dark_hz * (seconds - begin_s))
    true_s = np.concatenate(
        (
            slot / link.pulse_rate_hz + link.jitter_s * rng.standard_normal(len(slot)),
            rng.uniform(begin_s, seconds, n_dark),
        )
    )
    channel = np.concatenate((1 + 2 * basis + bit, rng.integers(1, 5, n_dark))).astype(np.uint8)
    # Seconds fit a double to a femtosecond here, which is far below the jitter.
    local_s = true_s * (1 + link.ppm * 1e-6) + link.drift_per_s * true_s**2 / 2 + link.offset_s
    ticks = np.floor(local_s / TICK_S).astype(np.int64)
    order = np.argsort(ticks, kind="stable")
    order = order[ticks[order] >= 0]
    truth = np.concatenate((slot, np.full(n_dark, -1)))[order]
    return as_block(ticks[order], channel[order]), truth


def as_block(ticks, channel):
    return DetectionBlock(ticks, channel, np.zeros(len(ticks), np.uint8), TICK_PS)


def piece(block, begin_s, end_s):
    lo, hi = np.searchsorted(block.time_ticks, [round(begin_s / TICK_S), round(end_s / TICK_S)])
    return as_block(block.time_ticks[lo:hi], block.channel[lo:hi])

"""Write words of 32 bits whose counter goes round often: dummies carry it over silences, as the taggers do it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import EventFormatError, NonMonotonicTimeError
from qkdhw.formats.atomic import write_whole_file
from qkdhw.formats.encoding import KEEP_ALL_REMEDY, LeftOut, refuse_fine_ticks, rescaled_ticks
from qkdhw.model import DetectionBlock, EventKind

MAX_DUMMIES = 1 << 22
DUMMY_BIT = 16
INPUTS = 4


@dataclass(frozen=True, slots=True)
class ShortWords:
    """How such words are made: the time above, then the dummy bit, then a bit for each of four inputs.

    Attributes:
        name: Of the files, for messages.
        tick_ps: Exact length of a tick in picoseconds.
        time_bits: Bits of the time, the most significant ones.
        silence_ticks: From one dummy to the next in a silence.
        back_ticks: Longest step back that a reader keeps as it is.
    """

    name: str
    tick_ps: Fraction
    time_bits: int
    silence_ticks: int
    back_ticks: int


def write_short_words(path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, words: ShortWords) -> LeftOut:
    """Write a file of such words, whole or not at all.

    Events that follow each other at the same time on rising inputs become one word, as the tagger itself does.
    Dummies are put into every silence, also into the one from 0 to the first event.

    Args:
        path: The new file.
        blocks: Photons on inputs 1 to 4 and dummies.
        tick_ps: Tick of the events; times must be whole ticks of the format.
        words: How to make the words.

    Raises:
        EventFormatError: An event that this format cannot hold exactly, or a silence of more than 2^22 dummies.
        NonMonotonicTimeError: A step back that a reader would take for a wrap, or over the beginning.
        EventError: The file cannot be written.
    """
    left_out = LeftOut()
    with write_whole_file(path) as file:
        time, low, last = np.empty(0, np.int64), np.empty(0, np.int64), 0
        for block in blocks:
            refuse_fine_ticks(block, words.name)
            keep = left_out.keep(block, words.name, allowed={EventKind.PHOTON, EventKind.DUMMY})
            new = rescaled_ticks(block.time_ticks[keep], tick_ps, words.tick_ps)
            if not len(new):
                continue
            new_time, new_low = _with_dummies(new, _low_bits(block, keep, words), last, left_out.events, words)
            last = int(new[-1])
            time, low = _merged(np.concatenate((time, new_time)), np.concatenate((low, new_low)))
            # The last word waits: the next block may begin with another input of the same pattern.
            file.write(_stored(time[:-1], low[:-1], words))
            time, low = time[-1:], low[-1:]
        file.write(_stored(time, low, words))
    return left_out


def _low_bits(block: DetectionBlock, keep: NDArray[np.bool_], words: ShortWords) -> NDArray[np.int64]:
    dummy, channel = block.kind[keep] == EventKind.DUMMY, block.channel[keep].astype(np.int64)
    if ((channel < 1) | (channel > INPUTS))[~dummy].any():
        raise EventFormatError(f"{words.name} hold inputs 1 to 4 only", remedy=KEEP_ALL_REMEDY)
    return np.where(dummy, DUMMY_BIT, (1 << channel) >> 1)


def _with_dummies(
    time: NDArray[np.int64], low: NDArray[np.int64], last: int, events: int, words: ShortWords
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return times and low bits of the words, dummies included."""
    step = np.diff(time, prepend=last)
    if int(step.min()) < -words.back_ticks:
        index = events - len(time) + int(np.argmin(step))
        raise NonMonotonicTimeError(
            f"event {index} goes back in time by more than {words.back_ticks} ticks",
            index=index,
            remedy="sort the events, or " + KEEP_ALL_REMEDY,
        )
    dummies = np.maximum(step - 1, 0) // words.silence_ticks
    if int(np.minimum(dummies, MAX_DUMMIES + 1).sum()) > MAX_DUMMIES:
        raise EventFormatError(
            f"{words.name} take more than {MAX_DUMMIES} dummies for a silence of {int(step.max())} ticks",
            remedy="shift the times so that they begin near 0, or " + KEEP_ALL_REMEDY,
        )
    event = np.repeat(np.arange(len(time)), dummies + 1)
    # Of the copies of an event the last is itself; those before it are dummies.
    number = np.arange(len(event)) - (np.cumsum(dummies + 1) - dummies - 1)[event] + 1
    is_dummy = number <= dummies[event]
    when = np.where(is_dummy, (time - step)[event] + number * words.silence_ticks, time[event])
    return when, np.where(is_dummy, DUMMY_BIT, low[event])


def _merged(time: NDArray[np.int64], low: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join neighbours of the same time whose inputs rise."""
    joins = np.zeros(len(time), bool)
    joins[1:] = (time[1:] == time[:-1]) & (low[1:] > low[:-1]) & (low[1:] < DUMMY_BIT)
    first = np.flatnonzero(~joins)
    return time[first], np.bitwise_or.reduceat(low, first)


def _stored(time: NDArray[np.int64], low: NDArray[np.int64], words: ShortWords) -> bytes:
    field = time & ((1 << words.time_bits) - 1)
    return (field << (32 - words.time_bits) | low).astype("<u4").tobytes()

"""Events of one or two files in time order, for whatever counts coincidences and delays."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from qkdhw.bench.pipeline.pieces import Pieces, joined
from qkdhw.errors import ConfigurationError, EventError, NonMonotonicTimeError
from qkdhw.events.merging import MergeSource, StreamMerger
from qkdhw.formats import EventFile
from qkdhw.model import DetectionBlock, EventKind

SECOND_FILE = 100  # channel 1 of the second file is 101
LAST_CHANNEL = 255
_LONGEST_S = 1e12
_LAST_TICKS = 1 << 62


class OrderedEvents:
    """Merges the events of files, corrects skews and mends small disorder; iterate once.

    Channel n of the second file becomes 100 + n. The files must be of one clock: their times are taken as they are.

    Args:
        files: One or two event files, not of start-stop (T3) measurements.
        ordering_window_ps: How far an event may lie before the latest one of its file.
        skew_ps: By channel, how much later its events are told; subtracted.
        follow: Passes on the blocks of a file, to show how far it is.
        common_of: Channels, as they are numbered here; events outside the time that the files of all of them cover are
            left out, so that their rates, and what is expected by chance, are those of one and the same time.

    Raises:
        ConfigurationError: A skew or a tick does not fit.
        EventError: While iterating: the first of two files has a channel of 100 or above, or time goes backwards, or
            the files of `common_of` have no time in common.
    """

    def __init__(
        self,
        files: Sequence[EventFile],
        *,
        ordering_window_ps: Fraction | int = 0,
        skew_ps: Mapping[int, Fraction] | None = None,
        follow: Callable[[EventFile], Iterator[DetectionBlock]] = EventFile.read_blocks,
        common_of: Sequence[int] = (),
    ) -> None:
        for file in files:
            if file.fine_tick_ps is not None:
                raise ConfigurationError(
                    f"{file.path} is a start-stop (T3) measurement, whose events have two times each",
                    remedy="Record in T2 mode; `qkdhw events histogram` draws the delays of a T3 file.",
                )
        skews: list[dict[int, Fraction]] = [{} for _ in files]
        for channel, skew in (skew_ps or {}).items():
            if channel > LAST_CHANNEL:
                raise ConfigurationError(f"there is no channel {channel}", remedy=f"Channels go up to {LAST_CHANNEL}.")
            number = int(len(files) > 1 and channel >= SECOND_FILE)
            skews[number][channel - SECOND_FILE * number] = skew
        sources = [MergeSource(file.tick_ps, SECOND_FILE * number, skews[number]) for number, file in enumerate(files)]
        try:
            self._merger = StreamMerger(sources, ordering_window_ps=ordering_window_ps)
        except ValueError as error:
            raise ConfigurationError(str(error), remedy="Give times that are whole numbers of ticks.") from error
        self._files, self._follow = files, follow
        # Of each channel whose time counts: its file, and how much earlier than its file says its events are told.
        numbers = [int(len(files) > 1 and channel >= SECOND_FILE) for channel in common_of]
        self._common = [
            (number, Fraction(skews[number].get(channel - SECOND_FILE * number, 0)))
            for number, channel in zip(numbers, common_of, strict=True)
        ]

    def _refuse_high_channels(self, block: DetectionBlock) -> None:
        """Refuse channels of the first file that would be taken for the second's."""
        photons = block.channel[block.kind == EventKind.PHOTON]
        if len(photons) and int(photons.max()) >= SECOND_FILE:
            raise EventError(
                f"{self._files[0].path} has channel {photons.max()}, which stands for one of the second file",
                remedy=f"Give first the file whose channels are below {SECOND_FILE}.",
            )

    @property
    def tick_ps(self) -> Fraction:
        """Exact tick of the merged events."""
        return self._merger.tick_ps

    def __iter__(self) -> Iterator[DetectionBlock]:
        """Yield the events; the file that is behind is read next."""
        blocks = [self._follow(file) for file in self._files]
        reached = [Fraction(-(1 << 62))] * len(blocks)
        begun: dict[int, Fraction] = {}
        ended: dict[int, Fraction] = {}
        running = set(range(len(blocks)))
        while running:
            number = min(running, key=lambda index: reached[index])
            block = next(blocks[number], None)
            if block is None:
                running.discard(number)
                if number in begun:
                    ended[number] = reached[number]
                # What is handed out from here on may lie behind the end of this file; nothing did before.
                yield self._in_common(self._merger.finish(number), begun, ended)
            elif len(block):
                if number == 0 and len(blocks) > 1:
                    self._refuse_high_channels(block)
                begun.setdefault(number, int(block.time_ticks.min()) * block.tick_ps)
                reached[number] = int(block.time_ticks.max()) * block.tick_ps
                yield self._in_common(self._merged(number, block), begun, ended)

    def _merged(self, number: int, block: DetectionBlock) -> DetectionBlock:
        try:
            return self._merger.feed(number, block)
        except NonMonotonicTimeError as error:
            said = f"{self._files[number].path}: {error}"
            raise NonMonotonicTimeError(said, index=error.index, remedy=error.remedy) from error

    def _in_common(
        self, block: DetectionBlock, begun: Mapping[int, Fraction], ended: Mapping[int, Fraction]
    ) -> DetectionBlock:
        """Leave out what lies before the latest beginning or behind the earliest end that counts."""
        if not self._common or len(block) == 0:
            return block
        low_ps = max((begun[number] - skew for number, skew in self._common if number in begun), default=Fraction(0))
        ends_ps = [ended[number] - skew for number, skew in self._common if number in ended]
        if ends_ps and min(ends_ps) < low_ps:
            raise EventError(
                f"{' and '.join(str(file.path) for file in self._files)} have no time in common",
                remedy="`qkdhw events info` says from when to when a file goes; `align` compares their clocks.",
            )
        low = math.ceil(low_ps / self.tick_ps)
        end = math.floor(min(ends_ps) / self.tick_ps) + 1 if ends_ps else _LAST_TICKS
        first, end = np.searchsorted(block.time_ticks, (low, end)).tolist()
        keep = slice(first, end)
        return replace(block, time_ticks=block.time_ticks[keep], channel=block.channel[keep], kind=block.kind[keep])


def first_events(file: EventFile, duration_s: float) -> DetectionBlock:
    """Read the events of a file's first seconds, by its own clock.

    Raises:
        ConfigurationError: The duration is no number of seconds.
        EventError: There are none, or they are of a start-stop (T3) measurement.
    """
    if not 0 < duration_s < _LONGEST_S:
        raise ConfigurationError(f"{duration_s} is no number of seconds to read", remedy="For example 4.")
    pieces = list(Pieces(file, duration_s=duration_s).read(threading.Event()))
    if not pieces:
        raise EventError(f"{file.path} has no events", remedy="`qkdhw events info` says what is in it.")
    return joined(pieces)

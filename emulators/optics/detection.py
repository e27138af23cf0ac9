"""Detectors and time tagger of one end: from the light of a cell to the ticks that a tagger writes.

Light and clicks are carried over the edges of cells: detectors go on to `EARLY_PS` before a cell's end, for the next
cell's light may come that much before its begin, and the tagger to a little before that, for jitter and skew may bring
clicks forward. What is given of a cell is thus complete up to `DetectedEvents.end_ticks`.

Where a clock steps back, or light comes over a shorter way, all that waits is given first and readings go on from the
lower value, as those of a tagger whose clock was reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ConfigurationError
from qkdhw_emulators._optics import detector, tagger
from qkdhw_emulators.optics.attack import LinkCondition
from qkdhw_emulators.optics.link_tables import SIDE_BINS_LOSS_DB
from qkdhw_emulators.optics.receiver_oscillator import Reading, ReceiverOscillator
from qkdhw_emulators.optics.setup import BASES, PS_PER_S, Detector, Gate, Receiver, Tagger

EARLY_PS = 10_000_000
SAFE_SIGMAS = 10
SAFE_TAILS = 40  # constants of an exponential
# A step back that is less than this puts the few clicks within it on one tick, and does not count as one.
LEAST_SET_BACK_PS = 1000.0
MOST_EARLY_NOISE = 20_000_000
PATTERN_BINS = 256
CLICKS_AT_A_TIME = 8192
EARLIEST_TICK = -(1 << 62)

# Streams of a purpose; those below are of the detectors, by index.
TAGGER_STREAM = 64
PATTERN_STREAM = 65
OSCILLATOR_STREAM = 66


_Doubles = NDArray[np.float64]
_Bytes = NDArray[np.uint8]
_Columns = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]


class Light(Protocol):
    """Light that reaches detectors in a cell."""

    @property
    def time_ps(self) -> NDArray[np.float64]:
        """Since the begin of the cell, rising."""

    @property
    def detector(self) -> NDArray[np.uint8]:
        """Which detector it reaches."""

    @property
    def bright(self) -> NDArray[np.uint8]:
        """1 for light that makes any detector click."""


@dataclass(frozen=True, slots=True)
class DetectedEvents:
    """What a tagger wrote.

    Attributes:
        ticks: int64 (n,), readings of its clock in ticks, from 0. They fall only where the clock is set back by 1 ns or
            more (or light comes that much earlier): between what was before that and what comes after it.
        channel: uint8 (n,), index of the detector.
        cause: uint8 (n,), truth: 0 photon, 1 dark count, 2 afterpulse, 3 background, 4 bright light.
        arrival: int64 (n,), truth: which light it was, counted over all cells; -1: none.
        end_ticks: All events before this tick are given, here or before; later ones come from it on. It falls as
            the ticks do.
    """

    ticks: NDArray[np.int64]
    channel: NDArray[np.uint8]
    cause: NDArray[np.uint8]
    arrival: NDArray[np.int64]
    end_ticks: int

    def part(self, which: NDArray[np.bool_]) -> DetectedEvents:
        """Return some of them."""
        return DetectedEvents(
            self.ticks[which], self.channel[which], self.cause[which], self.arrival[which], self.end_ticks
        )


class Detection:
    """Detectors and tagger of one end.

    Args:
        receiver: Its detectors, and the optics before them for background light.
        tagger_setup: Its time tagger and clock.
        period_ps: Time from pulse to pulse.
        cell_ps: Length of a cell; for gated detectors whole periods.
        seed: Seed of everything random.
        run: Number of the run.
        purpose: Number of this end's random streams.
        background_rate_hz: Stray photons per second at the receiver's input.

    Raises:
        ConfigurationError: A gate is longer than the period, a cell of gated detectors is not whole periods, or the
            clock's offset is so long that more than 2e7 noise counts come before the first pulse.
    """

    def __init__(
        self,
        receiver: Receiver,
        tagger_setup: Tagger,
        *,
        period_ps: int,
        cell_ps: int,
        seed: int,
        run: int,
        purpose: int,
        background_rate_hz: float,
    ) -> None:
        if receiver.gate.width_ps > period_ps:
            raise ConfigurationError(
                f"receiver.gate.width_ps: {receiver.gate.width_ps} is above the period, {period_ps}"
            )
        if receiver.gate.width_ps and cell_ps % period_ps:
            raise ConfigurationError(f"cell_ps: {cell_ps} is no multiple of the gates' period, {period_ps}")
        self._cell_ps, self._period_ps = cell_ps, period_ps
        self._streams = (seed, run, purpose)
        noise = noise_rates(receiver, background_rate_hz)
        self._chains = [
            build_chain(d, receiver.gate, period_ps, *noise[i], bit_generator=self._stream(i))
            for i, d in enumerate(receiver.detectors)
        ]
        skew_ps = [*tagger_setup.skew_ps, *[0.0] * len(self._chains)][: len(self._chains)]
        self._hold_ps = EARLY_PS + safe_jitter_ps(receiver, tagger_setup) + max(0.0, -min(skew_ps))
        self._tagger = tagger.Tagger(
            self._stream(TAGGER_STREAM),
            skew_ps,
            tick_ps=tagger_setup.tick_fs / 1000,
            noise_ps=tagger_setup.noise_ps,
            bin_edges=bin_edges(tagger_setup.non_linearity, self._stream(PATTERN_STREAM)),
        )
        self._oscillator = ReceiverOscillator(tagger_setup, cell_ps, self._stream(OSCILLATOR_STREAM))
        open_share = receiver.gate.width_ps / period_ps if receiver.gate.width_ps else 1.0
        early = sum(map(sum, noise)) * open_share * self._oscillator.offset_ps / PS_PER_S
        if early > MOST_EARLY_NOISE:
            raise ConfigurationError(
                f"tagger.clock_offset_s: about {early:.3g} noise counts before the first pulse, at most 2e7 are kept",
                remedy="Give a shorter offset, or less noise.",
            )
        self._was_latched = [False] * len(self._chains)
        self._arrivals = 0
        self._end_ticks = EARLIEST_TICK
        self._carried = _NOTHING
        self._clicks = (
            np.empty(CLICKS_AT_A_TIME),
            np.empty(CLICKS_AT_A_TIME, np.uint8),
            np.empty(CLICKS_AT_A_TIME, np.uint8),
            np.empty(CLICKS_AT_A_TIME, np.int64),
        )

    @property
    def latched(self) -> tuple[bool, ...]:
        """Which detectors have latched."""
        return tuple(chain.latched for chain in self._chains)

    def reset(self, index: int) -> None:
        """Take away the bias of a latched detector for a moment."""
        self._chains[index].latched = False

    def set_noise(self, receiver: Receiver, background_rate_hz: float) -> None:
        """Change dark counts and background from the next cell on.

        Args:
            receiver: As it is now; nothing but its dark counts and what background light meets is used.
            background_rate_hz: Stray photons per second at the receiver's input.
        """
        for chain, rates in zip(self._chains, noise_rates(receiver, background_rate_hz), strict=True):
            chain.set_noise(*rates)

    def register(self, cell_index: int, arrivals: Light, condition: LinkCondition) -> DetectedEvents:
        """Detect a cell's light, and what was carried into the cell; cells come in order.

        Args:
            cell_index: Number of the cell.
            arrivals: The light.
            condition: What attackers and faults do in this cell.

        Raises:
            ConfigurationError: Cells do not come in order, or light is for a detector that is not there.
        """
        self._obey(condition)
        clock = self._oscillator.advance(cell_index, condition)
        before: _Columns | None = None
        if cell_index == 0:
            self._wait_for_light(clock)
        elif self._oscillator.set_back_ps >= LEAST_SET_BACK_PS:
            before = self._merge(self._tagger.flush)
            self._end_ticks = EARLIEST_TICK
        horizon_ps = float(self._cell_ps - EARLY_PS)
        first, rest = self._in_order(arrivals)
        until_ps = min(horizon_ps, float(rest.time_ps[0])) if len(rest.time_ps) else horizon_ps
        left = self._detect(first, until_ps, clock).followed_by(self._detect(rest, horizon_ps, clock))
        self._carried = replace(left, time_ps=left.time_ps - self._cell_ps)
        self._rebase(self._cell_ps)
        self._end_ticks = max(self._end_ticks, self._tagger.tick_at(self._cell_ps - self._hold_ps, *clock))
        now = self._merge(partial(self._tagger.merge, self._end_ticks))
        if before is None:
            return DetectedEvents(*now, end_ticks=self._end_ticks)
        return DetectedEvents(
            ticks=np.concatenate((before[0], now[0])),
            channel=np.concatenate((before[1], now[1])),
            cause=np.concatenate((before[2], now[2])),
            arrival=np.concatenate((before[3], now[3])),
            end_ticks=self._end_ticks,
        )

    def _wait_for_light(self, clock: Reading) -> None:
        """Count noise from the tagger's start to the first cell."""
        left_ps = -(-self._oscillator.offset_ps // self._period_ps) * self._period_ps
        while left_ps:
            step_ps = min(left_ps, self._cell_ps)
            horizon_ps = float(step_ps if left_ps > step_ps else max(0, step_ps - EARLY_PS))
            self._detect(_NOTHING, horizon_ps, clock, before_ps=left_ps)
            self._rebase(step_ps)
            left_ps -= step_ps

    def _obey(self, condition: LinkCondition) -> None:
        """Turn what a condition says on; a detector that was made to latch stays so until it is reset."""
        for i, (chain, now) in enumerate(zip(self._chains, condition.detectors, strict=True)):
            chain.blinded, chain.dead = now.blinded, now.dead
            if now.latched and not self._was_latched[i]:
                chain.latched = True
            self._was_latched[i] = now.latched

    def _in_order(self, arrivals: Light) -> tuple[_Pending, _Pending]:
        """Return carried light in order with all new light that does not come after it, and the rest of the new."""
        new = _Pending(
            np.ascontiguousarray(arrivals.time_ps),
            np.ascontiguousarray(arrivals.detector),
            np.ascontiguousarray(arrivals.bright),
            first=self._arrivals,
        )
        self._arrivals += len(new.time_ps)
        among = 0
        if len(self._carried.time_ps):
            among = int(np.searchsorted(new.time_ps, self._carried.time_ps[-1], side="right"))
        return self._carried.followed_by(new.before(among)), new.after(among)

    def _detect(self, light: _Pending, horizon_ps: float, clock: Reading, before_ps: int = 0) -> _Pending:
        """Run the detectors to a horizon, register their clicks `before_ps` earlier, and return what light is left."""
        click_ps, channel, cause, origin = self._clicks
        n = CLICKS_AT_A_TIME
        while n == CLICKS_AT_A_TIME:
            try:
                used, n = detector.detect(self._chains, *light.columns, horizon_ps, *self._clicks)
            except ValueError as error:
                remedy = "Give light for detectors that are there."
                raise ConfigurationError(f"light: {error}", remedy=remedy) from error
            light = light.after(used)
            if before_ps:
                click_ps[:n] -= before_ps
            self._tagger.add(click_ps[:n], channel[:n], cause[:n], origin[:n], *clock)
        return light

    def _rebase(self, step_ps: int) -> None:
        for chain in self._chains:
            chain.rebase(step_ps)

    def _merge(self, give: Callable[..., int]) -> _Columns:
        """Take out what the tagger gives: ticks from its start at 0 on, channels, causes and origins."""
        waiting = self._tagger.waiting
        ticks, origin = np.empty(waiting, np.int64), np.empty(waiting, np.int64)
        channel, cause = np.empty(waiting, np.uint8), np.empty(waiting, np.uint8)
        n = give(ticks, channel, cause, origin)
        given = slice(int(np.searchsorted(ticks[:n], 0)) if n and ticks[0] < 0 else 0, n)
        return ticks[given], channel[given], cause[given], origin[given]

    def _stream(self, index: int) -> np.random.SFC64:
        seed, run, purpose = self._streams
        return np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(run, purpose, index)))


@dataclass(frozen=True, slots=True)
class _Pending:
    """Light in the order of time, with its numbers, which are counted from `first` on if they are not given."""

    time_ps: NDArray[np.float64]
    detector: NDArray[np.uint8]
    bright: NDArray[np.uint8]
    number: NDArray[np.int64] | None = None
    first: int = 0

    @property
    def columns(self) -> tuple[_Doubles, _Bytes, _Bytes, NDArray[np.int64] | None, int]:
        return self.time_ps, self.detector, self.bright, self.number, self.first

    @property
    def numbers(self) -> NDArray[np.int64]:
        if self.number is not None:
            return self.number
        return np.arange(self.first, self.first + len(self.time_ps))

    def before(self, n: int) -> _Pending:
        """Return the first n."""
        number = None if self.number is None else self.number[:n]
        return _Pending(self.time_ps[:n], self.detector[:n], self.bright[:n], number, self.first)

    def after(self, n: int) -> _Pending:
        """Return all but the first n."""
        number = None if self.number is None else self.number[n:]
        return _Pending(self.time_ps[n:], self.detector[n:], self.bright[n:], number, self.first + n)

    def followed_by(self, other: _Pending) -> _Pending:
        """Put light together that comes later, most of it."""
        if not len(self.time_ps):
            return other
        if not len(other.time_ps):
            return self
        time_ps = np.concatenate((self.time_ps, other.time_ps))
        detector = np.concatenate((self.detector, other.detector))
        bright = np.concatenate((self.bright, other.bright))
        number = np.concatenate((self.numbers, other.numbers))
        if self.time_ps[-1] > other.time_ps[0]:
            order = np.argsort(time_ps, kind="stable")
            time_ps, detector, bright, number = time_ps[order], detector[order], bright[order], number[order]
        return _Pending(time_ps, detector, bright, number)


_NOTHING = _Pending(np.empty(0), np.empty(0, np.uint8), np.empty(0, np.uint8))


def safe_jitter_ps(receiver: Receiver, tagger_setup: Tagger) -> float:
    """Return how far jitter and noise move a click either way, the exponential tail of jitter left aside."""
    return SAFE_SIGMAS * max(math.hypot(d.jitter_ps, tagger_setup.noise_ps) for d in receiver.detectors)


def latest_ps(receiver: Receiver, tagger_setup: Tagger) -> float:
    """Return how long after its light an event may be given, cells left aside."""
    skew_ps = (0.0, *tagger_setup.skew_ps)
    tail_ps = SAFE_TAILS * max(d.jitter_tail_ps for d in receiver.detectors)
    return 2 * (EARLY_PS + safe_jitter_ps(receiver, tagger_setup)) + max(skew_ps) - min(skew_ps) + tail_ps


def build_chain(
    d: Detector,
    gate: Gate,
    period_ps: int,
    dark_hz: float,
    background_hz: float,
    *,
    bit_generator: np.random.BitGenerator,
) -> detector.DetectorChain:
    """Build a detector; its gates are about the arrivals at itself, so its delay shifts them.

    Args:
        d: The detector.
        gate: Its gates.
        period_ps: Time from pulse to pulse.
        dark_hz: Dark counts per second.
        background_hz: Detectable background photons per second.
        bit_generator: Its own random stream.
    """
    law = d.afterpulse_power_law
    return detector.DetectorChain(
        bit_generator,
        dark_hz=dark_hz,
        background_hz=background_hz,
        dead_time_ps=d.dead_time_ns * 1e3,
        paralysable=d.dead_time_kind == "paralysable",
        recovery_ps=d.recovery_ns * 1e3,
        child_probability=[a.probability for a in d.afterpulses],
        child_tau_ps=[a.tau_ns * 1e3 for a in d.afterpulses],
        power_law=(law.probability, law.exponent, law.from_ns * 1e3, law.to_ns * 1e3) if law else (0, 1, 1, 1),
        jitter_ps=d.jitter_ps,
        tail_weight=d.jitter_tail_weight,
        tail_ps=d.jitter_tail_ps,
        latch_hz=d.latches_above_hz,
        period_ps=period_ps,
        gate_width_ps=gate.width_ps,
        gate_fwhm_ps=gate.profile_fwhm_ps,
        gate_centre_ps=gate.offset_ps + d.delay_ps,
    )


def noise_rates(receiver: Receiver, background_rate_hz: float) -> list[tuple[float, float]]:
    """Return dark counts and detectable background photons per second of each detector.

    Background light has no polarisation or phase: each basis gets its share of it, whether a switch or a splitter
    chooses, and both ports of a basis the same. A lone basis gets all. With time bins, a `test_loss_db` of 3 or more is
    that of the middle bin alone: the side bins bring as much light again, as in `link_tables.outlets`.

    Args:
        receiver: The receiver.
        background_rate_hz: Stray photons per second at its input.
    """
    meaning = receiver.meaning
    others = 2 if any(m.startswith("third") for m in meaning) else 1
    key_share = receiver.key_basis_probability if any(not m.startswith("key") for m in meaning) else 1.0
    has_side_bins = receiver.bin_separation_ps > 0 and receiver.test_loss_db >= SIDE_BINS_LOSS_DB
    arms = {}
    for basis in BASES:
        share = key_share if basis == "key" else (1 - key_share) / others * (1 + has_side_bins)
        loss_db = receiver.loss_db + (receiver.test_loss_db if basis != "key" else 0.0)
        arms[basis] = share * 10 ** (-loss_db / 10)
    rates = []
    for d, what in zip(receiver.detectors, meaning, strict=True):
        arm = arms["key"] + arms["test"] if what.startswith("any") else arms[what.rstrip("01")]  # type: ignore[index]
        port = (1.0 if what == "key" else 0.5) / meaning.count(what)
        rates.append((d.dark_count_rate_hz, background_rate_hz * arm * port * d.efficiency))
    return rates


def bin_edges(non_linearity: float, bit_generator: np.random.BitGenerator) -> NDArray[np.float64] | None:
    """Draw a tagger's pattern of 256 bin widths whose largest relative deviation is `non_linearity`.

    Args:
        non_linearity: 0 to 0.9; 0: all bins are alike.
        bit_generator: Where from.

    Returns:
        Edges in ticks, (257,), from 0 to 256; None: all alike.
    """
    if not non_linearity:
        return None
    deviation = np.random.Generator(bit_generator).uniform(-1, 1, PATTERN_BINS)
    deviation -= deviation.mean()
    widths = 1 + non_linearity * deviation / np.abs(deviation).max()
    edges = np.concatenate(([0.0], np.cumsum(widths)))
    edges[-1] = PATTERN_BINS
    return edges

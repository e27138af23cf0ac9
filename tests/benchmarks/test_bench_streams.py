"""Taggers end to end: from the emulated unit over a real transport to NumPy blocks; nothing is lost.

QKDHW_STREAM_SECONDS says how long, in seconds of the unit's stream at the rate that is asked for (2 if not set).
"""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from qkdhw import open_unit
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.cqt_fx2 import EmulatedCqtFx2
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1
from qkdhw_emulators.world import World

STREAM_S = float(os.environ.get("QKDHW_STREAM_SECONDS", "2"))
TDC1_HZ, FX2_HZ = 10e6, 2.2e6
WRAP = 1 << 27
LACKING = np.array([phase in {10, 15} for phase in range(16)], np.int64)  # phases that the card does not have
SERVER = """
import sys
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1
from qkdhw_emulators.world import World
world = World()
unit = EmulatedSFifteenTdc1(world)
world.set_condition("signal_rate_hz", float(sys.argv[2]))
with serve_unit(unit, world, transport=sys.argv[1]) as served:
    print(served.url, flush=True)
    sys.stdin.read()
"""

pytestmark = pytest.mark.timeout(60 + 10 * STREAM_S)


class Measured:
    """What a stream took from its first block on: events, seconds, seconds of CPU in the driver's thread."""

    def __init__(self, tagger, n_events, check):
        self.events = 0
        with tagger.stream() as stream:
            check(next(stream))
            begun_s, process_s, own_s = time.perf_counter(), time.process_time(), time.thread_time()
            for block in stream:
                check(block)
                self.events += len(block)
                if self.events >= n_events:
                    break
            self.wall_s = time.perf_counter() - begun_s
            self.driver_s = time.process_time() - process_s - (time.thread_time() - own_s)
        self.counts = stream.counts
        assert (self.counts.non_monotone, self.counts.overflows, self.counts.missed) == (0, 0, 0)

    def note(self, benchmark, rate_hz):
        stream_s = self.events / rate_hz
        benchmark.extra_info.update(
            stream_s=round(stream_s, 1),
            million_events_per_s=round(self.events / self.wall_s / 1e6, 1),
            driver_cores_at_rate=round(self.driver_s / stream_s, 3),
            stalls=self.counts.stalls,
        )
        assert self.driver_s < 0.5 * stream_s


class Checksum:
    """Sums of the times and channels of a TDC1's steady signal: what came, and what was sent."""

    def __init__(self, rate_hz):
        n = round(rate_hz * WRAP * 2e-9)
        self.ticks = np.arange(n) * WRAP // n
        self.events = self.times = self.channels = 0

    def add(self, block):
        self.events += len(block)
        self.times += int(block.time_ticks.sum())
        self.channels += int(block.channel.sum(dtype=np.int64))

    def sent(self):
        n = len(self.ticks)
        wraps, rest = divmod(self.events, n)
        times = wraps * int(self.ticks.sum()) + n * WRAP * (wraps * (wraps - 1) // 2)
        times += int(self.ticks[:rest].sum()) + rest * wraps * WRAP
        channels = np.arange(n) % 4 + 1
        return times, wraps * int(channels.sum()) + int(channels[:rest].sum())

    def verify(self):
        assert (self.times, self.channels) == self.sent()


def measure_tdc1(url, rate_hz):
    checksum = Checksum(rate_hz)
    with open_unit("sfifteen-tdc1", url) as tagger:
        measured = Measured(tagger, STREAM_S * rate_hz, checksum.add)
    checksum.verify()
    return measured


@pytest.mark.parametrize("on", ["pty", "tcp"])
def test_bench_stream_tdc1(benchmark, on):
    """10 million events/s; the emulator is another process."""
    command = [sys.executable, "-c", SERVER, on, str(TDC1_HZ)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        measured = benchmark.pedantic(measure_tdc1, (url, TDC1_HZ))
        server.stdin.close()
    measured.note(benchmark, TDC1_HZ)


def test_bench_stream_tdc1_in_process(benchmark):
    """50 million events/s; what the emulator takes counts as the driver's."""
    world = World()
    unit = EmulatedSFifteenTdc1(world)
    world.set_condition("signal_rate_hz", 5 * TDC1_HZ)
    with serve_unit(unit, world, transport="emu") as served:
        measured = benchmark.pedantic(measure_tdc1, (served.url, 5 * TDC1_HZ))
    measured.note(benchmark, 5 * TDC1_HZ)


@pytest.mark.parametrize(("on", "factor"), [("usb", 1), ("emu", 5)])
def test_bench_stream_fx2(benchmark, on, factor):
    """2.2 million events/s under stock pyusb; the emulated USB counts as the driver's, making the events does not."""
    world = World()
    unit = EmulatedCqtFx2(world)
    world.set_condition("signal_rate_hz", FX2_HZ)
    next_events, spent_s = unit.next_events, [0.0]

    def timed(n_events):
        begun_s = time.thread_time()
        data = next_events(n_events)
        spent_s[0] += time.thread_time() - begun_s
        return data

    unit.next_events = timed
    step = round(8e9 / FX2_HZ * 16)  # the emulator's pulses are a whole number of 1/16 tick apart
    seen = [0]

    def check(block):
        number = np.arange(seen[0] + 1, seen[0] + len(block) + 1)
        sent = number * step >> 4
        sent -= LACKING[sent & 15]
        assert (block.time_ticks == sent).all()
        assert (block.channel == (number & 3) + 1).all()
        seen[0] += len(block)

    def measure(url):
        with open_unit("cqt-fx2", url) as card:
            return Measured(card, STREAM_S * FX2_HZ * factor, check)

    with serve_unit(unit, world, transport=on) as served:
        measured = benchmark.pedantic(measure, (served.url,))
    measured.driver_s -= spent_s[0]
    measured.note(benchmark, FX2_HZ * factor)

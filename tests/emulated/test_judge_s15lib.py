"""The vendor's own library (S15lib) as a judge of the emulated TDC1, over a pseudo-terminal."""

import contextlib
import io
from contextlib import contextmanager

import numpy as np
import pytest
from S15lib.instruments import serial_connection
from S15lib.instruments import usb_counter_fpga as fpga

from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1
from qkdhw_emulators.world import World

RATE_HZ = 1e5
PATIENCE_S = 1.0  # the library waits 0.1 s for an answer, which a busy machine may not keep
STEP_NS = 2**28 / round(RATE_HZ * 2**28 * 1e-9)


@contextmanager
def counter(signal_rate_hz=RATE_HZ):
    """The vendor's object on our unit; it leaves its port open."""
    world = World(seed=3)
    unit = EmulatedSFifteenTdc1(world)
    world.set_condition("signal_rate_hz", signal_rate_hz)
    with serve_unit(unit, world) as served, contextlib.redirect_stdout(io.StringIO()):
        judge = fpga.TimestampTDC1(served.url.removeprefix("serial://"))
        judge._com.timeout = PATIENCE_S
        try:
            yield judge, world
        finally:
            judge._com.close()


def test_it_is_identified():
    with (
        serve_unit(EmulatedSFifteenTdc1(World(seed=3))) as served,
        serial_connection.SerialConnection(served.url.removeprefix("serial://")) as port,
    ):
        assert "TDC1" in port.get_identity()
        assert "TIMESTAMP" in port.get_help()


def test_settings():
    with counter() as (judge, world):
        for mode in ("singles", "pairs", "timestamp"):
            judge.mode = mode
            assert judge.mode == mode
        judge.level = "TTL"
        assert float(judge.level.split()[0]) > 0
        judge.threshold = -0.75
        assert float(judge.threshold.split()[0]) == -0.75
        judge.clock = "2"
        assert int(judge.clock) == 2
        assert int(judge.eclock) == 1
        world.set_condition("reference_clock_connected", 0)
        assert int(judge.eclock) == 0
        judge.int_time = 40
        assert judge.int_time == 40_000  # it sets seconds and reads milliseconds; 40000 comes as a positive number


def test_counts_and_pairs():
    with counter() as (judge, _):
        assert judge.get_counts(0.2) == (5000,) * 4
        counted = judge.get_counts_and_coincidences(0.2)
        assert counted[:4] == (5000,) * 4
        assert len(counted) == 8
        assert max(counted[4:]) < 10


def test_timestamps():
    with counter() as (judge, _):
        times_ns, patterns = judge.get_timestamps(0.4, legacy=False)
    assert len(times_ns) == pytest.approx(0.4 * RATE_HZ, abs=2)
    assert np.abs(times_ns - np.arange(len(times_ns)) * STEP_NS).max() <= 4
    assert set(patterns.tolist()) == {1, 2, 4, 8}


def test_timestamps_of_the_dark():
    """Dark counts and dummies, over several wraps of the time field."""
    with counter(signal_rate_hz=0.0) as (judge, _):
        times_ns, patterns = judge.get_timestamps(1.0, legacy=False)
    assert 200 < np.count_nonzero(patterns) < 700
    assert (np.diff(times_ns) >= 0).all()
    assert 0.9e9 < times_ns[-1] < 1.0e9

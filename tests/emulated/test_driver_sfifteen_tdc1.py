"""The TDC1's driver on its emulator: settings, counts, streams, every fault, over the kinds of line that it has."""

import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from qkdhw import interfaces
from qkdhw.drivers.sfifteen_tdc1 import SFifteenTdc1
from qkdhw.errors import (
    ConfigurationError,
    EventOverflowError,
    QkdhwError,
    TransportError,
    TransportTimeoutError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.transport import open_transport
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1
from qkdhw_emulators.world import VirtualClock, World

WRAP = 1 << 27
LINES = pytest.mark.parametrize("transport", ["pty", "tcp", "emu"])


@contextmanager
def opened(transport="emu", *, pace=None, rate_hz=0.0, timeout_s=1.0, faults=()):
    world = World(seed=3, clock=VirtualClock(pace=pace))
    unit = EmulatedSFifteenTdc1(world)
    world.set_condition("signal_rate_hz", rate_hz)
    with (
        serve_unit(unit, world, transport=transport, faults=faults) as served,
        SFifteenTdc1(open_transport(served.url), timeout_s=timeout_s) as tagger,
    ):
        yield served, tagger


def signal_ticks(rate_hz, n):
    per_wrap = round(rate_hz * WRAP * 2e-9)
    i = np.arange(n)
    return i // per_wrap * WRAP + i % per_wrap * WRAP // per_wrap


def test_it_fits_its_contracts():
    with opened() as (_, tagger):
        for name in tagger.capabilities:
            assert isinstance(tagger, getattr(interfaces, name))


@LINES
def test_settings_round_trip(transport):
    with opened(transport) as (_, tagger):
        got = tagger.configure({"threshold_v": -0.3012, "gate_time_ms": 40_000, "reference_clock": "external"})
        assert got == {"threshold_v": -0.3, "gate_time_ms": 40_000, "reference_clock": "external"}
        snapshot = tagger.snapshot()
        tagger.configure({"input_logic": "ttl", "gate_time_ms": 5})
        assert tagger.threshold_v == 1.4
        tagger.restore(snapshot)
        assert (tagger.threshold_v, tagger.gate_time_ms) == (-0.3, 40_000)


def test_what_is_out_of_range_sends_nothing():
    with opened() as (served, tagger):
        heard = []
        feed = served.line.feed
        served.line.feed = lambda data: (heard.append(data), feed(data))
        for wrong in ({"threshold_v": 3.31}, {"gate_time_ms": 0}, {"reference_clock": "caesium"}, {"gain": 1}):
            with pytest.raises(ConfigurationError):
                tagger.configure(wrong)
        assert heard == []


@LINES
def test_counts_and_pairs(transport):
    with opened(transport, rate_hz=4e6) as (_, tagger):
        tagger.gate_time_ms = 300
        assert tagger.read_counts() == (300_000,) * 4
        got = tagger.read_pair_counts()
        assert got.singles == (300_000,) * 4
        assert all(abs(n - 600) < 150 for n in got.pairs.values())


def test_counts_come_after_the_gate_in_real_time():
    with opened("pty", pace=1.0, rate_hz=4000.0) as (_, tagger):
        tagger.gate_time_ms = 200
        began_s = time.monotonic()
        assert tagger.read_counts() == (200,) * 4
        assert time.monotonic() - began_s >= 0.2


def test_reference_clock():
    with opened() as (served, tagger):
        assert tagger.read_clock_locked()
        tagger.reference_clock = "internal"
        assert not tagger.read_clock_locked()
        tagger.reference_clock = "external"
        served.faults.add(Fault.CLOCK_UNLOCK)
        assert not tagger.read_clock_locked()


@LINES
def test_a_stream_is_what_was_sent_and_the_unit_works_on_afterwards(transport):
    rate_hz, n = 1e6, 700_000  # two wraps of the time field
    with opened(transport, rate_hz=rate_hz) as (_, tagger):
        tagger.gate_time_ms = 77
        for _ in range(2):
            times, channels = [], []
            with tagger.stream(max_events=4096, buffer_events=40_960) as stream:
                for block in stream:
                    times.append(block.time_ticks.copy())
                    channels.append(block.channel.copy())
                    if sum(map(len, times)) >= n:
                        break
            np.testing.assert_array_equal(np.concatenate(times)[:n], signal_ticks(rate_hz, n))
            assert (np.concatenate(channels)[:1000] == np.arange(1000) % 4 + 1).all()
            assert stream.counts.photons >= n
            assert (stream.counts.non_monotone, stream.counts.dummies, stream.counts.overflows) == (0, 0, 0)
        assert tagger.gate_time_ms == 77
        assert tagger.read_status().state == "idle"


def test_blocks_and_the_tail_after_stop_are_one_stream():
    with opened("pty", rate_hz=1e6) as (_, tagger):
        tagger.start()
        times = [tagger.read_block(1000).time_ticks for _ in range(20)]
        tagger.stop()
        while len(block := tagger.read_block(5000, timeout_s=0.0)):
            times.append(block.time_ticks)
    times = np.concatenate(times)
    np.testing.assert_array_equal(times, signal_ticks(1e6, len(times)))


def events_of(tagger, n):
    with tagger.stream(max_events=512, buffer_events=5120) as stream:
        seen = 0
        for block in stream:
            seen += len(block)
            if seen >= n:
                return stream
    raise AssertionError("a stream does not end by itself")


def test_time_that_begins_below_its_wrap_and_steps_back_and_dummies_are_counted():
    with opened(faults=[Fault.COUNTER_WRAP, Fault.NON_MONOTONE]) as (served, tagger):
        counts = events_of(tagger, 2000).counts
        assert counts.non_monotone > 100
        assert counts.photons > 1900
        served.faults.clear()
        assert events_of(tagger, 2000).counts.non_monotone == 0
        served.faults.add(Fault.DUMMY_STORM)
        counts = events_of(tagger, 50_000).counts
        assert counts.dummies > 1000 * counts.photons


def test_an_overflow_ends_the_stream_with_an_error_and_the_next_start_clears_it():
    with opened(faults=[Fault.OVERFLOW]) as (served, tagger):
        tagger.threshold_v = -0.7
        with pytest.raises(EventOverflowError):
            events_of(tagger, 100)
        assert tagger.read_status().alarms == ("event_overflow",)
        served.faults.clear()
        assert events_of(tagger, 100).counts.overflows == 0
        assert tagger.read_status().alarms == ()
        assert tagger.threshold_v == -0.7


def test_a_full_buffer_gives_nothing_until_the_next_start():
    with opened() as (served, tagger):
        served.faults.add(Fault.FULL_BUFFER)
        tagger.start()
        assert len(tagger.read_block(100, timeout_s=1.5)) == 0  # it is asked, and is well
        with pytest.raises(EventOverflowError):
            tagger.stop()
        served.faults.clear()
        assert events_of(tagger, 100).counts.photons >= 99


def test_a_lost_reference_clock_is_told_at_the_end():
    with opened() as (served, tagger):
        with tagger.stream() as stream:
            next(stream)
            served.world.set_condition("reference_clock_connected", 0)
        assert stream.alarms == ("clock_unlocked",)
        served.world.set_condition("reference_clock_connected", 1)
        assert events_of(tagger, 10).alarms == ()


def test_a_lost_byte_ends_the_stream_with_an_error_and_it_can_be_started_again():
    with opened("pty", rate_hz=1e6, faults=[Fault.BYTE_SLIP]) as (served, tagger):
        with pytest.raises(WireFormatError, match="byte was lost"):
            events_of(tagger, 10**9)
        served.faults.clear()
        assert events_of(tagger, 1000).counts.photons >= 1000


@pytest.mark.parametrize("transport", ["pty", "tcp", "emu"])
def test_a_link_that_is_lost_in_a_stream_is_a_typed_error_and_it_can_be_started_again(transport):
    def lose():
        with tagger.stream() as stream:
            next(stream)
            served.faults.add(Fault.DISCONNECT, count=1)
            tagger._link.write(b"status?\r\n")  # whose answer breaks off: the line goes down
            for _ in stream:
                pass

    with opened(transport, rate_hz=1e5, timeout_s=2.0) as (served, tagger):
        tagger.threshold_v = -0.7
        with pytest.raises((TransportError, UnitError)):
            lose()
        assert events_of(tagger, 1000).counts.photons >= 1000
        assert tagger.threshold_v == -0.7


def lose_power(served, tagger):
    """Let the unit lose its power while the wire stays, and read what was on its way."""
    tagger.threshold_v = -0.7
    tagger.start()
    assert len(tagger.read_block(100)) > 0
    served.unit.power_cycle()
    for _ in range(200):
        if not len(tagger.read_block(1 << 16, timeout_s=0.1)):
            return
    raise AssertionError("the stream goes on")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("call", ["read_block", "stop"])
def test_a_unit_that_loses_its_power_in_a_stream_is_found_out_and_has_its_settings_again(call):
    with opened("pty", rate_hz=1e5) as (served, tagger):
        lose_power(served, tagger)
        with pytest.raises(UnitStateError, match="lost its power"):
            tagger.stop() if call == "stop" else tagger.read_block(1 << 16, timeout_s=5.0)
        assert tagger.threshold_v == -0.7
        assert events_of(tagger, 1000).counts.photons >= 1000


@pytest.mark.timeout(60)
def test_a_stream_whose_unit_loses_its_power_ends_with_an_error():
    def lose():
        with tagger.stream() as stream:
            next(stream)
            served.unit.power_cycle()
            for _ in range(10_000):
                next(stream)

    with opened("pty", rate_hz=1e5) as (served, tagger):
        tagger.threshold_v = -0.7
        with pytest.raises(UnitStateError, match="lost its power"):
            lose()
        assert events_of(tagger, 1000).counts.photons >= 1000
        assert served.unit._level_v == -0.7


@pytest.mark.timeout(60)
def test_a_unit_that_loses_its_power_for_good_in_a_stream_is_found_out():
    with opened("pty", rate_hz=1e5, timeout_s=0.5) as (served, tagger):
        lose_power(served, tagger)
        served.faults.add(Fault.SILENT)
        with pytest.raises(TransportTimeoutError, match="silent for 1 s"):
            tagger.read_block(1 << 16, timeout_s=5.0)
        with pytest.raises(TransportTimeoutError):
            tagger.start()
        served.faults.clear()
        assert tagger.threshold_v == -0.7


@pytest.mark.parametrize("fault", sorted(LINE_FAULTS))
def test_after_a_fault_of_the_line_an_answer_is_right_or_a_typed_error(fault):
    with opened("pty", timeout_s=0.5) as (served, tagger):
        tagger.configure({"threshold_v": -0.7, "gate_time_ms": 123})
        served.faults.add(fault, count=1)
        with suppress(TransportError, UnitError):
            assert tagger.gate_time_ms == 123
        assert tagger.threshold_v == -0.7
        assert tagger.gate_time_ms == 123
        assert tagger.identify().model == "TDC1"


@LINES
def test_a_late_answer_is_not_handed_to_the_next_query(transport):
    with opened(transport, timeout_s=0.4) as (served, tagger):
        tagger.configure({"threshold_v": -0.7, "gate_time_ms": 123})
        served.faults.add(Fault.LATE_REPLY, count=1, seconds=0.5)
        with pytest.raises(TransportTimeoutError):
            tagger.read_status()
        assert tagger.gate_time_ms == 123
        assert tagger.threshold_v == -0.7


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE])
def test_a_unit_that_became_another_or_fell_silent(fault):
    with opened(timeout_s=0.3) as (served, tagger):
        served.faults.add(fault)
        with suppress(QkdhwError):
            assert tagger.identify().firmware.endswith("svn-0")
            assert fault is Fault.WRONG_FIRMWARE
        served.faults.clear()
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            with suppress(QkdhwError):
                tagger.identify()
                break
        assert tagger.gate_time_ms == 1000


def test_a_value_that_is_stuck_is_found_out():
    with opened(timeout_s=0.3, faults=[]) as (served, tagger):
        served.faults.add(Fault.STUCK_VALUE)
        with pytest.raises(UnitError, match="after the unit was told"):
            tagger.threshold_v = 2.0
        served.faults.clear()
        tagger.threshold_v = 2.0
        assert tagger.threshold_v == 2.0


@pytest.mark.parametrize("last", ["input_logic", "threshold_v"])
def test_after_a_power_cycle_the_level_set_last_holds(last):
    settings = {"input_logic": "ttl", "threshold_v": -0.9}
    with opened("tcp") as (served, tagger):
        for name in (last, *(settings.keys() - {last}), last):
            tagger.configure({name: settings[name]})
        before = tagger.threshold_v
        served.faults.add(Fault.POWER_CYCLE, count=1)
        tagger.identify()
        assert tagger.threshold_v == before


def test_answers_of_a_burst_that_come_as_one_line_do_no_harm():
    with opened() as (served, tagger):
        served.world.set_condition("joined_answers", 1)
        tagger.gate_time_ms = 50
        assert len(tagger.read_counts()) == 4
        assert events_of(tagger, 100).counts.photons > 90


def test_eight_threads_get_their_own_answers_while_one_streams():
    wrong = []

    def ask(name, want):
        for _ in range(60):
            try:
                if (got := getattr(tagger, name)) != want:
                    wrong.append((name, got))
            except UnitStateError:  # the stream runs just now
                pass
            except QkdhwError as error:
                wrong.append((name, error))

    with opened("pty", rate_hz=1e6, timeout_s=5.0) as (_, tagger):
        tagger.configure({"threshold_v": -0.7, "gate_time_ms": 123, "reference_clock": "external"})
        truth = {name: getattr(tagger, name) for name in ("threshold_v", "gate_time_ms", "reference_clock")}
        threads = [threading.Thread(target=ask, args=list(truth.items())[i % 3]) for i in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            assert events_of(tagger, 1000).counts.non_monotone == 0
        for thread in threads:
            thread.join(30)
    assert not wrong

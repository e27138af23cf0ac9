"""The FX2 card's driver on its emulator: in the process and under stock pyusb."""

import struct
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from qkdhw import interfaces
from qkdhw.drivers.cqt_fx2 import PHASE_CODES, CqtFx2
from qkdhw.errors import (
    ConfigurationError,
    EventOverflowError,
    NotSupportedError,
    QkdhwError,
    TransportError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.model import EventKind
from qkdhw.transport import open_transport
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.cqt_fx2 import EmulatedCqtFx2
from qkdhw_emulators.world import World

LINKS = pytest.mark.parametrize("on", ["emu", "usb"])
PHASES = np.array(sorted(set(PHASE_CODES.values())))


@contextmanager
def opened(on="emu", *, rate_hz=1e5, timeout_s=1.0):
    world = World(seed=3)
    unit = EmulatedCqtFx2(world)
    world.set_condition("signal_rate_hz", rate_hz)
    with (
        serve_unit(unit, world, transport=on) as served,
        CqtFx2(open_transport(served.url), timeout_s=timeout_s) as card,
    ):
        yield served, card


def events_of(card, n):
    times, kinds = [], []
    with card.stream(max_events=512, buffer_events=5120) as stream:
        for block in stream:
            times.append(block.time_ticks.copy())
            kinds.append(block.kind.copy())
            if sum(map(len, times)) >= n:
                break
    return np.concatenate(times), np.concatenate(kinds), stream


@LINKS
def test_identity_and_contract(on):
    with opened(on) as (_, card):
        assert isinstance(card, interfaces.TimeTagger)
        info = card.identify()
    assert (info.vendor, info.firmware) == ("Centre for Quantum Technologies", "2.01")
    assert info.model == "Timestamp Card Rev 2 / 4k FIFO (3.3V)"


def test_the_commands_are_those_of_the_makers_reader():
    heard = bytearray()
    world = World(seed=3)
    unit = EmulatedCqtFx2(world)
    with serve_unit(unit, world, transport="emu") as served:
        feed = served.line.feed
        served.line.feed = lambda data: (heard.extend(data), feed(data))
        card = CqtFx2(open_transport(served.url))
        initial = bytes(heard[heard.index(b"\x02\x0f") :])
        heard.clear()
        card.start()
        start = bytes(heard)
        heard.clear()
        card.stop()
        stop = bytes(heard)
        card.close()
    dacs = b"".join(struct.pack("<BBH", 4, 2, word) for word in (10, 0x1000 | 3586, 0x2000 | 10, 0x3000 | 2000))
    assert initial == b"\x02\x0f\x02\x01\x02\x03\x02\x04" + dacs + b"\x03\x05\x01\x02\x09\x02\x07"
    assert start == b"\x02\x01\x02\x13\x02\x0b\x03\x0d\x0a\x02\x0e\x02\x08"
    assert stop == b"\x03\x10\x08\x02\x07\x02\x0c"


@LINKS
def test_settings_reach_the_card_and_are_not_told(on):
    with opened(on) as (served, card):
        card.configure({"threshold_dac": 3000, "reference_clock": "external", "calibration_pulses": True})
        assert served.unit.dac[:4] == [10, 3000, 10, 2000]
        assert (served.unit.internal_clock, served.unit.calibration_pulses) == (False, True)
        with pytest.raises(NotSupportedError):
            _ = card.threshold_dac
        for wrong in ({"threshold_dac": 4096}, {"skew_dac": -1}, {"reference_clock": "auto"}):
            with pytest.raises(ConfigurationError):
                card.configure(wrong)
        assert served.unit.dac[:4] == [10, 3000, 10, 2000]


@LINKS
def test_a_stream_is_what_was_sent_twice(on):
    with opened(on, rate_hz=1e6) as (_, card):
        for _ in range(2):
            times, kinds, stream = events_of(card, 50_000)
            want = 8000 * np.arange(1, len(times) + 1)
            assert np.isin(want - times, [0, 1]).all()  # the card lacks two phases
            assert not kinds.any()
            assert stream.counts.photons >= len(times)
            assert stream.alarms == ()
        assert card.read_status().state == "idle"


def test_blocks_and_the_tail_after_stop_are_one_stream():
    with opened("usb", rate_hz=1e6) as (_, card):
        card.start()
        with pytest.raises(UnitStateError):
            card.start()
        assert card.read_status().state == "running"
        times = [card.read_block(1000).time_ticks for _ in range(20)]
        card.stop()
        while len(block := card.read_block(5000, timeout_s=0.0)):
            times.append(block.time_ticks)
    times = np.concatenate(times)
    assert np.isin(8000 * np.arange(1, len(times) + 1) - times, [0, 1]).all()


@LINKS
def test_an_overflow_is_told_in_the_stream_and_at_the_end(on):
    seen = []

    def watch(card, served):
        deadline_s = time.monotonic() + 10
        with card.stream(max_events=512, buffer_events=1024) as stream:
            for block in stream:
                seen.extend(kind for kind in block.kind.tolist() if kind != EventKind.PHOTON)
                if EventKind.GAP_BEGIN not in seen:
                    served.faults.add(Fault.OVERFLOW)
                else:
                    served.faults.discard(Fault.OVERFLOW)
                if EventKind.GAP_END in seen or time.monotonic() > deadline_s:
                    return

    with opened(on) as (served, card):
        with pytest.raises(EventOverflowError):
            watch(card, served)
        assert seen[:2] == [EventKind.GAP_BEGIN, EventKind.GAP_END]
        assert card.read_status().alarms == ("event_overflow",)
        assert events_of(card, 100)[2].counts.overflows == 0
        assert card.read_status().alarms == ()


def test_a_full_buffer_gives_nothing_until_the_next_start():
    with opened() as (served, card):
        served.faults.add(Fault.FULL_BUFFER)
        card.start()
        assert not card.read_block(100, timeout_s=0.2).kind[1:].size
        with pytest.raises(EventOverflowError):
            card.stop()
        served.faults.clear()
        assert len(events_of(card, 100)[0]) >= 100


def test_times_over_the_wrap_and_steps_back():
    with opened(rate_hz=2e6) as (served, card):
        served.faults.add(Fault.COUNTER_WRAP)
        times, _, _ = events_of(card, 20_000)
        assert (np.diff(times) > 0).all()
        assert times[-1] > 1 << 49
        served.faults.clear()
        served.faults.add(Fault.NON_MONOTONE)
        assert events_of(card, 6400)[2].counts.non_monotone >= 90


@LINKS
def test_lost_bytes_end_the_stream_with_an_error_and_it_can_be_started_again(on):
    with opened(on, rate_hz=1e6) as (served, card):
        served.faults.add(Fault.BYTE_SLIP)
        with pytest.raises(WireFormatError, match="byte was lost"):
            events_of(card, 10**9)
        served.faults.clear()
        assert len(events_of(card, 1000)[0]) >= 1000


@LINKS
@pytest.mark.parametrize("fault", [Fault.DROP, Fault.DUPLICATE, Fault.TRUNCATE, Fault.LATE_REPLY, Fault.DISCONNECT])
def test_after_a_fault_of_the_line_the_state_is_right_or_a_typed_error(on, fault):
    with opened(on, timeout_s=0.3) as (served, card):
        card.threshold_dac = 3100
        served.faults.add(fault, count=1, seconds=0.4)
        with suppress(TransportError, UnitError):
            assert card.read_status().alarms == ()
        served.faults.discard(fault)
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            with suppress(TransportError, UnitError):
                assert len(events_of(card, 100)[0]) >= 100
                break
        assert card.read_status().state == "idle"
        assert served.unit.dac[1] == 3100


def test_of_two_threads_that_start_at_once_one_starts():
    def start():
        ready.wait()
        try:
            card.start()
            ends.append("started")
        except UnitStateError:
            ends.append("runs already")

    ends, ready = [], threading.Barrier(2)
    with opened() as (_, card):
        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(ends) == ["runs already", "started"]
        card.stop()


@LINKS
def test_after_a_power_cycle_in_a_stream_it_can_be_started_again_with_its_settings(on):
    def lose():
        with card.stream() as stream:
            next(stream)
            served.faults.add(Fault.POWER_CYCLE, count=1)
            card.read_status()
            for _ in stream:
                pass

    with opened(on) as (served, card):
        card.configure({"skew_dac": 2100, "reference_clock": "external"})
        with pytest.raises((TransportError, UnitError)):
            lose()
        assert len(events_of(card, 1000)[0]) >= 1000
        assert served.unit.dac[:4] == [10, 3586, 10, 2100]
        assert not served.unit.internal_clock


@LINKS
@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE])
def test_a_card_that_became_another_or_fell_silent(on, fault):
    with opened(on, timeout_s=0.3) as (served, card):
        usual = card.identify()
        served.faults.add(fault)
        with suppress(QkdhwError):
            assert card.identify() != usual
            assert fault is Fault.WRONG_FIRMWARE
        served.faults.clear()
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            with suppress(QkdhwError):
                assert card.identify() == usual
                break
        assert len(events_of(card, 100)[0]) >= 100


def test_another_instrument_at_the_address_is_named():
    unit = EmulatedCqtFx2(faults=[Fault.WRONG_IDENTITY])
    with (
        serve_unit(unit, transport="usb") as served,
        open_transport(served.url) as link,
        pytest.raises(UnitError, match="development board"),
    ):
        CqtFx2(link)

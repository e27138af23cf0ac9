"""The ID900's driver and emulator over real ZeroMQ sockets, and inside the process."""

import contextlib
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from qkdhw import interfaces, open_unit
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    EventOverflowError,
    NonMonotonicTimeError,
    TransportClosedError,
    TransportError,
    UnitError,
    UnitStateError,
)
from qkdhw.model import EventKind
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.idq_id900 import EmulatedIdqId900
from qkdhw_emulators.world import VirtualClock, World, serial_number

TIMEOUT_S = 0.5
GAP_PS = 400_000


@contextmanager
def bench(pace=None, on="zmq", **rates):
    world = World(seed=7, clock=VirtualClock(pace=pace))
    unit = EmulatedIdqId900(world)
    for name, rate_hz in rates.items():
        world.set_condition(name, rate_hz)
    with (
        serve_unit(unit, world, transport=on) as served,
        open_unit("idq-id900", served.url, timeout_s=TIMEOUT_S) as idq,
    ):
        yield idq, served


def read(unit, n_events, at_a_time=1 << 20, timeout_s=5.0):
    """Read at least so many events and return them joined."""
    blocks = []
    while sum(map(len, blocks)) < n_events:
        blocks.append(unit.read_block(at_a_time, timeout_s=timeout_s))
        assert 0 < len(blocks[-1]) <= at_a_time, "nothing came"
    return joined(blocks)


def joined(blocks):
    return tuple(np.concatenate([getattr(b, name) for b in blocks]) for name in ("time_ticks", "channel", "kind"))


def pulses(channel, rate_hz, until_ps, width_ps):
    """What the emulator's signal has at an input, but for the gaps."""
    every = round(1e12 / rate_hz)
    times = 1009 * channel + every * np.arange(until_ps // every + 1)
    return times[(times % (width_ps + GAP_PS) < width_ps) & (times < until_ps)]


def test_contracts():
    with bench() as (unit, _):
        assert isinstance(unit, interfaces.TimeTagger)
        assert isinstance(unit, interfaces.Counter)
        assert not isinstance(unit, interfaces.ClockReference)
        assert unit.identify().serial_number == serial_number(7)


def test_settings_come_back_as_the_unit_takes_them():
    with bench() as (unit, _):
        told = unit.configure({
            "threshold_v": {1: 1.0, 2: 0.5, 3: -0.333}, "edge": "FALLING", "coupling": {1: "AC"}, "delay_ps": {4: 10**12},
            "clock_source": "EXTERNAL", "resolution": "HIRES", "counter_gate_ms": 65535, "record_count": 0,
        })  # fmt: skip
        assert told["threshold_v"] == {1: 0.999424, 2: 0.499712, 3: -0.333792}
        assert unit.edge[4] == "FALLING"
        assert unit.bin_width_ps == 13
        assert unit.delay_ps[4] == 10**12
        assert unit.record_count == 0
        assert unit.restore(unit.snapshot())["threshold_v"] == dict(unit.threshold_v.items())


def test_a_refusal_is_typed_and_the_next_command_works():
    with bench() as (unit, served):
        served.faults.add(Fault.NAK, count=1)
        with pytest.raises(CommandRefusedError) as caught:
            unit.read_setting("edge", 1)
        assert caught.value.code == "SCPI_ERR_INVALID_CMD"
        assert unit.edge[1] == "RISING"


@pytest.mark.parametrize("on", ["zmq", "emu"])
def test_every_pulse_of_every_channel_comes_once_in_order_and_numbered(on):
    rates = {1: 10_000.0, 2: 33_333.0, 3: 71.0, 4: 0.0}
    width = 10**11
    with bench(on=on, **{f"rate_{c}_hz": rate for c, rate in rates.items()}) as (unit, _):
        unit.start(sub_acquisition_s=0.1)
        times, channel, kind = read(unit, 50_000, at_a_time=777)
        unit.stop()
        while len(block := unit.read_block(1 << 20)):
            times, channel, kind = joined([block, type(block)(times, channel, kind, block.tick_ps)][::-1])
    ends = times[kind == EventKind.GAP_BEGIN]
    np.testing.assert_array_equal(ends, np.arange(len(ends)) * (width + GAP_PS) + width)
    np.testing.assert_array_equal(times[kind == EventKind.GAP_END], (ends[:-1] + GAP_PS))
    assert (channel[kind != EventKind.PHOTON] == 0).all()
    assert (np.diff(times) >= 0).all()
    for number, rate_hz in rates.items():
        want = pulses(number, rate_hz, int(ends[-1]), width) if rate_hz else []
        np.testing.assert_array_equal(times[channel == number], want)


def test_channels_asked_for_and_channels_enabled():
    with bench() as (unit, _):
        unit.input_enabled = {1: False, 3: False}
        unit.start()
        assert set(read(unit, 1000)[1].tolist()) == {0, 2, 4}
        unit.stop()
        unit.start((3,))
        block = unit.read_block(1000, timeout_s=5.0)
        assert block.kind.tolist() == [EventKind.GAP_BEGIN]
        unit.stop()
        for wrong in ((), (0,), (5,), (1, 1)):
            with pytest.raises(ConfigurationError):
                unit.start(wrong)
        unit.input_enabled = False
        with pytest.raises(UnitStateError, match="no input"):
            unit.start()
        for options in ({"sub_acquisition_s": 0}, {"sub_acquisition_s": 1000}, {"reference_period_ps": -1}):
            with pytest.raises(ConfigurationError):
                unit.start((1,), **options)


def test_times_with_a_periodic_reference():
    with bench(rate_start_hz=1e6, rate_1_hz=1e4) as (unit, _):
        unit.start((1,), sub_acquisition_s=0.1, reference_period_ps=10**6)
        times, channel, _ = read(unit, 900)
        np.testing.assert_array_equal(times[channel == 1][:900], 1009 + 10**8 * np.arange(900))
        unit.stop()
        unit.start((1,), sub_acquisition_s=0.1)  # without it again
        times, channel, _ = read(unit, 900)
        np.testing.assert_array_equal(times[channel == 1][:900], 1009 + 10**8 * np.arange(900))
        unit.stop()


def test_in_real_time_events_come_as_their_sub_acquisition_ends_and_the_last_is_cut():
    with bench(pace=1.0) as (unit, _):
        unit.start(sub_acquisition_s=0.05)
        assert len(unit.read_block(10)) == 10
        assert unit.read_status().state == "running"
        time.sleep(0.12)
        unit.stop()
        assert unit.read_status().state == "idle"
        before = unit.read_status().counters["sub_acquisitions"]
        while len(unit.read_block(1 << 20, timeout_s=0.0)):
            pass
        assert unit.read_status().counters["sub_acquisitions"] > before
        assert unit.stream_alarms == ()
        unit.stop()


def test_stream_counts():
    with bench() as (unit, _):
        with unit.stream() as events:
            for block in events:
                if len(block) and events.counts.photons > 200_000:
                    break
        assert events.counts.non_monotone == 0
        assert events.counts.missed == events.counts.overflows == 0


def test_lost_timestamps_are_missed_events_an_alarm_and_an_error():
    with bench() as (unit, served):
        unit.start()
        served.faults.add(Fault.OVERFLOW)
        blocks = [unit.read_block(1 << 20, timeout_s=5.0) for _ in range(20)]
        assert sum(block.missed for block in blocks) > 0
        kinds = np.concatenate([block.kind for block in blocks])
        assert EventKind.MISSED in kinds
        assert "event_overflow" in unit.read_status().alarms
        with pytest.raises(EventOverflowError, match="error counters"):
            unit.stop()
        served.faults.clear()
        unit.start()
        assert unit.stream_alarms == ()
        unit.stop()


def test_what_the_service_dropped_is_told():
    with bench(pace=1.0, rate_1_hz=1e6) as (unit, served):
        unit.start((1,), sub_acquisition_s=0.001)
        stream = served.unit.further_ports["stream-1"][0]
        stream._errors.append("1 acquisitions dropped: the buffer is full")
        with pytest.raises(EventOverflowError, match="dropped"):
            unit.stop()
        assert "event_overflow" in unit.stream_alarms


def test_a_step_back_ends_the_stream_and_it_can_be_started_again():
    with bench() as (unit, served):
        served.faults.add(Fault.NON_MONOTONE)
        unit.start()
        with pytest.raises(NonMonotonicTimeError) as caught:
            unit.read_block(1000, timeout_s=5.0)
        assert caught.value.index == 2
        with pytest.raises(UnitStateError, match="earlier error"):
            unit.read_block(1000)
        served.faults.clear()
        unit.start()
        assert len(unit.read_block(1000, timeout_s=5.0)) == 1000
        unit.stop()


def test_a_service_that_does_not_answer_stop_is_reported_and_cleaned_up_later():
    with bench() as (unit, served):
        served.faults.add(Fault.STOP_UNANSWERED, count=1)
        unit.start((2,))
        unit.read_block(10, timeout_s=5.0)
        unit.stop()
        assert unit.stream_alarms == ("acquisition_left_open",)
        assert len(unit._service().acquisitions()) == 1
        unit.start((2,))
        assert unit.stream_alarms == ()
        assert len(unit.read_block(10, timeout_s=5.0)) == 10
        unit.stop()
        assert unit._service().acquisitions() == []


def test_a_channel_that_another_program_has_is_refused_and_the_rest_is_closed_again():
    with bench() as (unit, _):
        name = unit._service().start_stream("10.1.1.1", 3, 5003, with_index=False)
        with pytest.raises(CommandRefusedError, match="in use"):
            unit.start()
        assert unit._service().acquisitions() == [name]
        assert unit.read_status().state == "idle"
        unit._service().stop(name)
        unit.start()
        assert len(unit.read_block(10, timeout_s=5.0)) == 10
        unit.stop()


def test_a_unit_that_locked_up_is_noticed(monkeypatch):
    monkeypatch.setattr("qkdhw.drivers.idq_id900.STALL_S", 1.5)
    with bench(pace=1.0) as (unit, served):
        unit.start(sub_acquisition_s=0.02)
        unit.read_block(1 << 20)
        served.faults.add(Fault.FULL_BUFFER)
        with pytest.raises(UnitStateError, match="PLAYING"):
            read(unit, 1 << 40, timeout_s=3.0)


@pytest.mark.parametrize("fault", ["drop", "garble", "disconnect"])
def test_a_service_whose_answers_are_spoilt_gives_typed_errors_no_false_loss_and_recovers(fault):
    with bench() as (unit, served):
        line = served.line.further["data-link"][0]
        for _ in range(4):
            line.faults.parse(f"{fault}:rate=0.2")
            with contextlib.suppress(TransportError, UnitError):
                unit.start((1, 2))
                unit.stop()
        line.faults.clear()
        with contextlib.suppress(TransportError, UnitError):
            unit.stop()
        unit.start((1, 2))
        assert len(unit.read_block(10, timeout_s=5.0)) == 10
        unit.stop()
        assert unit._service().acquisitions() == []


def test_what_a_dead_program_left_open_is_closed():
    with bench() as (unit, _):
        link = unit._service()
        for channel in (1, 2, 3, 4):
            link.start_stream("127.0.0.1", channel, 5000 + channel, with_index=False)
        unit.start()
        assert len(unit.read_block(10, timeout_s=5.0)) == 10
        unit.stop()


def test_power_lost_under_a_stream_is_noticed():
    with bench(pace=1.0) as (unit, served):
        unit.configure({"threshold_v": {1: 1.0}})
        unit.start(sub_acquisition_s=0.02)
        unit.read_block(1 << 20)
        served.unit.power_cycle()
        with pytest.raises(UnitStateError, match="sent nothing"):
            read(unit, 1 << 40, timeout_s=3.0)
        unit.start(sub_acquisition_s=0.02)
        assert len(unit.read_block(1 << 20)) > 0
        unit.stop()


def test_a_link_that_drops_under_a_stream_does_not_touch_the_stream():
    with bench(pace=1.0) as (unit, served):
        unit.start(sub_acquisition_s=0.02)
        for fault in ("disconnect", "drop", "garble", "late-reply"):
            served.faults.parse(f"{fault}:count=1:seconds=0.6")
            unit.read_status()
            assert len(unit.read_block(1 << 20)) > 0
        unit.stop()


def test_a_record_cannot_be_disturbed_by_accident():
    with bench() as (unit, _):
        unit.start()
        for call in (unit.start, unit.play_record, unit.stop_record, unit.recalibrate, unit.clear_errors):
            with pytest.raises(UnitStateError):
                call()
        assert len(unit.read_block(100, timeout_s=5.0)) == 100
        unit.stop()
        unit.recalibrate()
        unit.clear_errors()
        unit.configure({"record_enabled": True, "record_count": 0})
        unit.play_record()
        assert unit.record_stage == "PLAYING"
        unit.stop_record()
        assert unit.record_stage == "IDLE"


@pytest.mark.parametrize(
    ("name", "value"),
    [("record_width_ps", 10**10), ("record_period_ps", 2 * 10**11), ("record_enabled", False), ("record_count", 3),
     ("record_trigger", "AUTO"), ("input_enabled", {1: False}), ("timestamp_source", {1: "TSCO6"}),
     ("timestamp_reference", {1: "STAR"}), ("start_enabled", False), ("clock_source", "EXTERNAL"),
     ("resolution", "HIRES")],
)  # fmt: skip
def test_what_a_running_stream_rests_on_cannot_be_set_and_nothing_is_sent(name, value):
    with bench() as (unit, _):
        unit.start((1, 2))
        before = unit.snapshot()
        with pytest.raises(UnitStateError):
            unit.configure({"threshold_v": {1: 1.0}, name: value})
        assert unit.snapshot() == before
        unit.configure({"threshold_v": {1: 1.0}})
        assert len(unit.read_block(100, timeout_s=5.0)) == 100
        unit.stop()
        unit.configure({name: value})


def test_a_closed_unit_hands_out_what_had_come_and_then_says_that_it_is_closed():
    with bench() as (unit, _):
        unit.start((1,), sub_acquisition_s=0.05)
        first = unit.read_block(100, timeout_s=5.0)
        unit.close()
        times, _, _ = joined([first, unit.read_block(1 << 20)])
        assert len(times) == 2501
        for _ in range(2):
            with pytest.raises(TransportClosedError, match="is closed"):
                [unit.read_block(1 << 20) for _ in range(10_000)]


def test_a_unit_that_never_streamed_says_that_it_is_closed():
    with bench() as (unit, _):
        assert len(unit.read_block(10, timeout_s=0.01)) == 0
        unit.close()
        with pytest.raises(TransportClosedError):
            unit.read_block(10)


def test_closing_without_the_unit_closes_the_streams_too():
    with bench() as (unit, served):
        unit.start((1,))
        (stream,) = unit._merged.streams.values()
        served.faults.add(Fault.SILENT)
        unit.close()
        with pytest.raises(TransportClosedError):
            stream.link.read_message(timeout_s=0.01)
        with pytest.raises(TransportClosedError, match="is closed"):
            [unit.read_block(1 << 20) for _ in range(10_000)]


def test_counts_and_histogram():
    with bench(pace=1.0, rate_1_hz=1e6, rate_2_hz=0) as (unit, _):
        unit.counter_gate_ms = 20
        counts = unit.read_counts()
        assert abs(counts[0] - 20_000) < 1000
        assert counts[1] == 0
        unit.counter_mode = {3: "ACCUM"}
        with pytest.raises(UnitStateError):
            unit.read_counts()
        unit.reset_counts()
        unit.configure({"histogram_stop": {1: "TSCO5"}, "histogram_bins": {1: 16}, "histogram_bin_width_ps": {1: 1000}})
        unit.clear_histogram(1)
        time.sleep(0.05)
        assert unit.read_histogram(1).shape == (16,)
        assert unit.read_histogram(1).sum() > 0
        with pytest.raises(ConfigurationError):
            unit.read_histogram(5)


def test_threads_get_their_own_answers():
    with bench() as (unit, _):
        unit.configure(
            {"delay_ps": {c: 1000 * c for c in (1, 2, 3, 4)}, "counter_gate_ms": {c: c for c in (1, 2, 3, 4)}}
        )
        wrong = []

        def hammer(number):
            channel = number % 4 + 1
            for _ in range(100):
                got = unit.delay_ps[channel], unit.counter_gate_ms[channel]
                if got != (1000 * channel, channel):
                    wrong.append((channel, got))

        threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []


def test_without_the_service_there_is_a_clear_error_and_settings_still_work():
    world = World(seed=7)
    unit = EmulatedIdqId900(world)
    with serve_unit(unit, world, transport="zmq") as served:
        nowhere = "zmq://127.0.0.1:1"
        with open_unit("idq-id900", served.url, timeout_s=TIMEOUT_S, data_link_url=nowhere) as idq:
            with pytest.raises(TransportError, match="DataLinkTarget") as caught:
                idq.start()
            assert "DataLinkTargetService" in caught.value.remedy
            assert idq.edge[1] == "RISING"
            assert idq.read_status().state == "idle"


def test_another_unit_at_the_same_address_is_refused():
    with bench() as (unit, served):
        served.faults.add(Fault.WRONG_IDENTITY)
        with pytest.raises(UnitError):
            unit.identify()
        served.faults.clear()
        assert unit.identify().model == "ID900"

"""The GRX/1 driver and emulator over TCP; the same photons as a TDC1 sees; a link from a bench file."""

import socket
import threading
from contextlib import ExitStack, contextmanager
from fractions import Fraction

import numpy as np
import pytest

from qkdhw import interfaces
from qkdhw.bench import open_bench
from qkdhw.drivers import open_unit
from qkdhw.drivers.generic_rx import GenericRx
from qkdhw.errors import (
    ConfigurationError,
    NonMonotonicTimeError,
    NotSupportedError,
    TransportClosedError,
    TransportError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.link.streams import DetectionReader, PreparationReader, join_blocks
from qkdhw.model import EventKind
from qkdhw.transport import open_transport
from qkdhw_emulators.bench import serve_bench
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.serve import serve_link, serve_unit
from qkdhw_emulators.units.generic_rx import EmulatedGenericRx
from qkdhw_emulators.world import World

BENCH = """
[units.tx]
name = "generic-tx"
url = "tcp://127.0.0.1:{tx}"
settings = {{ pulse_rate_hz = 20000000, mean_photon_number = [0.5, 0.1, 0.002] }}
[units.rx]
name = "generic-rx"
url = "tcp://127.0.0.1:{rx}"
settings = {{ threshold_v = {{ 1 = 0.25, 2 = 0.5 }}, gate_width_ns = 0 }}
"""


@contextmanager
def receiver(*, timeout_s=5.0, faults=(), running=False):
    world = World(seed=3)
    with (
        serve_unit(EmulatedGenericRx(world, faults=faults), world, transport="tcp") as served,
        GenericRx(open_transport(served.url), timeout_s=timeout_s) as unit,
    ):
        if running:
            unit.start()
        yield served, unit


def photons(unit, n, at_a_time=5000):
    """Read the first n photons: times in ps, channels."""
    times, channels = [], []
    while len(times) < n:
        block = unit.read_block(at_a_time, timeout_s=5.0)
        assert len(block)
        is_photon = block.kind == EventKind.PHOTON
        times += [int(t) * block.tick_ps for t in block.time_ticks[is_photon]]
        channels += block.channel[is_photon].tolist()
    return times[:n], channels[:n]


def test_contract_and_settings():
    with receiver() as (_, unit):
        assert isinstance(unit, interfaces.ReceiverUnit)
        assert isinstance(unit, interfaces.TimeTagger)
        got = unit.configure({"detector_efficiency": 0.123, "threshold_v": {2: 0.1}, "dead_time_ns": 48})
        assert got == {
            "detector_efficiency": dict.fromkeys((1, 2, 3, 4), 0.12), "threshold_v": {2: 0.099609375}, "dead_time_ns": 50.0,
        }  # fmt: skip
        assert unit.basis_choice == "passive"
        assert unit.detector_enabled[4] is True
        snapshot = unit.snapshot()
        unit.configure({"detector_efficiency": 0.9, "detector_enabled": {1: False}})
        unit.restore(snapshot)
        assert unit.snapshot() == snapshot


def test_states():
    with receiver() as (_, unit):
        unit.arm()
        assert unit.read_status().state == "armed"
        assert unit.read_status().monitors["detector_bias_v_1"] > 0
        with pytest.raises(UnitStateError):
            unit.configure({"dead_time_ns": 100})
        unit.start()
        with pytest.raises(UnitStateError):
            unit.start()
        assert len(unit.read_block(100)) > 0
        unit.stop()
        status = unit.read_status()
        assert (status.state, status.monitors["detector_bias_v_1"]) == ("idle", 0.0)
        left = sum(len(unit.read_block(1 << 20)) for _ in range(2))
        assert left == status.counters["events"] - 100
        unit.start()
        assert unit.read_status().counters["events"] == 0


def test_the_stream_starts_and_stops_the_unit():
    with receiver() as (_, unit):
        with unit.stream() as stream:
            seen = 0
            for block in stream:
                assert block.tick_ps == Fraction(1000, 3)
                seen += len(block)
                if seen > 500:
                    break
        assert unit.read_status().state == "idle"


def test_closing_stops_what_was_started():
    world = World(seed=3)
    with serve_unit(EmulatedGenericRx(world), world, transport="tcp") as served:
        with open_unit("generic-rx", served.url) as unit:
            unit.start()
        with open_unit("generic-rx", served.url) as unit:
            assert unit.read_status().state == "idle"


@pytest.mark.parametrize("fault", sorted(LINE_FAULTS - {Fault.POWER_CYCLE, Fault.LATE_REPLY, Fault.NAK}))
def test_no_event_is_lost_by_any_fault_of_the_line(fault):
    with receiver(running=True) as (_, unit):
        want, _ = photons(unit, 5000)
    with receiver(running=True) as (served, unit):
        unit._timeout_s = 0.3  # an answer that is lost is waited for in vain
        got = []
        for turn in range(100):
            if turn % 2 == 0:
                served.faults.add(fault, count=1, seconds=0.1)
            try:
                block = unit.read_block(400)
                got += [int(t) * block.tick_ps for t in block.time_ticks[block.kind == EventKind.PHOTON]]
            except (TransportError, WireFormatError):
                pass
            served.faults.discard(fault)
            if len(got) > 1000:
                break
        assert len(got) > 1000
        assert got == want[: len(got)]


def test_a_power_cycle_in_a_run_is_no_silence_and_settings_come_back():
    with receiver() as (served, unit):
        unit.configure({"detector_efficiency": {2: 0.25}})
        unit.start()
        unit.read_block(100)
        served.faults.add(Fault.POWER_CYCLE, count=1)
        with pytest.raises(TransportClosedError):
            unit.read_block(100)
        for _ in range(2):
            with pytest.raises(UnitStateError, match="restarted"):
                unit.read_block(100)
        assert unit.detector_efficiency[2] == 0.25
        assert unit.read_status().state == "idle"
        unit.start()
        assert len(unit.read_block(100)) > 0


def test_another_programs_run_is_not_taken_for_ours():
    with receiver(running=True) as (served, unit):
        unit.read_block(100)
        with GenericRx(open_transport(served.url)) as other:
            other.stop()
            other.start()
            other.read_block(100)
            other._engaged = False  # leave it running
        with pytest.raises(TransportClosedError):
            unit.read_block(100)
        with pytest.raises(UnitStateError, match="another"):
            unit.read_block(100)


def test_what_the_unit_lost_is_in_the_stream():
    with receiver(faults=[Fault.OVERFLOW], running=True) as (_, unit):
        blocks = [unit.read_block(1000) for _ in range(5)]
        kinds = np.concatenate([block.kind for block in blocks])
        assert {EventKind.GAP_BEGIN, EventKind.MISSED, EventKind.GAP_END} <= set(kinds)
        assert sum(block.missed for block in blocks) > 0
        assert "event_buffer_overrun" in unit.read_status().alarms


def test_a_lost_clock_a_full_buffer_and_a_storm():
    with receiver(running=True) as (served, unit):
        served.world.set_condition("reference_clock_locked", 0.0)
        kinds = [kind for _ in range(3) for kind in unit.read_block(1 << 20).kind]
        assert kinds.count(EventKind.CLOCK_ERROR) == 1
        status = unit.read_status()
        assert (status.monitors["clock_locked"], status.alarms) == (0.0, ("clock_unlocked",))
        served.faults.add(Fault.DUMMY_STORM)
        storm = unit.read_block(1 << 20)
        while EventKind.PHOTON not in storm.kind:
            storm = unit.read_block(1 << 20)
        assert (storm.kind == EventKind.DUMMY).sum() > 1000
        served.faults.discard(Fault.DUMMY_STORM)
        served.faults.add(Fault.FULL_BUFFER)
        while len(block := unit.read_block(1 << 20, timeout_s=0.1)):
            last = block
        assert last.kind[-1] == EventKind.GAP_BEGIN
        assert "event_buffer_overrun" in unit.read_status().alarms


def test_times_go_on_beyond_the_records_field():
    with receiver(faults=[Fault.COUNTER_WRAP], running=True) as (_, unit):
        times = np.concatenate([unit.read_block(500).time_ticks for _ in range(10)])
        assert times[0] < 1 << 44 < times[-1]
        assert (np.diff(times) >= 0).all()


def test_time_that_goes_back_is_an_error():
    with receiver(faults=[Fault.NON_MONOTONE], running=True) as (_, unit), pytest.raises(NonMonotonicTimeError):
        photons(unit, 5000)


def test_faults_of_the_unit():
    with receiver() as (served, unit):
        served.faults.add(Fault.STUCK_VALUE)
        with pytest.raises(UnitError, match="dead_time_ns"):
            unit.configure({"dead_time_ns": 10_000})
        served.faults.clear()
        served.faults.add(Fault.WRONG_IDENTITY)
        with pytest.raises(UnitError, match="TOASTER"):
            unit.identify()
        served.faults.clear()
        assert unit.identify().protocol == "GRX/1"
        with pytest.raises(ConfigurationError):
            unit.configure({"tick_ps": "1"})
        with pytest.raises(NotSupportedError):
            unit._write_value(GenericRx.basis_choice, None, "active")


def test_eight_threads_read_each_event_once():
    blocks, errors = [], []
    with receiver(running=True) as (_, unit):

        def read():
            try:
                blocks.extend(unit.read_block(50) for _ in range(20))
                assert unit.read_status().state == "running"
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not errors
    with receiver(running=True) as (_, unit):
        want = np.concatenate([unit.read_block(8000).time_ticks for _ in range(40)])
    got = np.concatenate([block.time_ticks for block in sorted(blocks, key=lambda block: int(block.time_ticks[0]))])
    assert got.tolist() == want[: len(got)].tolist()


def free_ports(n):
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [listener.getsockname()[1] for listener in listeners]


def test_the_same_photons_as_a_tdc1_sees_from_the_same_seed(tmp_path):
    tx_port, rx_port = free_ports(2)
    settings = {"pulse_rate_hz": 20_000_000, "mean_photon_number": (0.5, 0.1, 0.002)}
    n = 60_000
    with (
        serve_link(seed=5) as served,
        open_unit("generic-tx", served.transmitter_url) as tx,
        open_unit("sfifteen-tdc1", served.receiver_url) as rx,
    ):
        tx.configure(settings)
        rx.start()
        tx.arm()
        tx.start()
        want = photons(rx, n)
        want_record = tx.read_preparation(1_000_000).record
    path = tmp_path / "bench.toml"
    path.write_text(BENCH.format(tx=tx_port, rx=rx_port))
    with serve_bench(path, World(seed=5)), open_bench(path) as bench:
        tx, rx = bench.units["tx"], bench.units["rx"]
        assert bench.settings["rx"]["threshold_v"] == {1: 0.25, 2: 0.5}
        rx.start()
        tx.arm()
        tx.start()
        got = photons(rx, n)
        record = tx.read_preparation(1_000_000).record
    assert got == want
    assert np.array_equal(record, want_record)


def test_the_readers_of_a_link_take_the_units_of_a_bench_file(tmp_path):
    tx_port, rx_port = free_ports(2)
    path = tmp_path / "bench.toml"
    path.write_text(BENCH.format(tx=tx_port, rx=rx_port))
    with serve_bench(path, World(seed=5)), open_bench(path) as bench:
        tx, rx = bench.units["tx"], bench.units["rx"]
        rx.start()
        tx.arm()
        tx.start()
        with (
            PreparationReader(tx, 8_000_000) as preparation,
            DetectionReader(rx, 0.05, 2_000_000) as detection,
        ):
            records = preparation.take(0, 4_000_000, timeout_s=10.0)
            pieces = [detection.next_piece(timeout_s=10.0) for _ in range(4)]
        assert len(records) == 4_000_000
        events = join_blocks(pieces)
        assert (np.diff(events.time_ticks) >= 0).all()
        assert (events.time_ticks[-1] - events.time_ticks[0]) * events.tick_ps < 200_000_000_000
        assert len(events) > 10_000

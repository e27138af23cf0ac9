"""Drivers against emulators over real pseudo-terminals and TCP; they share no code but the documents."""

import os
import threading
import zlib
from collections import deque
from contextlib import contextmanager
from importlib.metadata import entry_points
from itertools import count

import numpy as np
import pytest

from qkdhw import open_unit
from qkdhw.drivers.generic_tx import GenericTx
from qkdhw.drivers.sfifteen_tdc1 import SFifteenTdc1
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    EventOverflowError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.interfaces import TimeTagger, TransmitterUnit
from qkdhw.transport import open_transport
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.parameters import LinkParameters
from qkdhw_emulators.serve import serve_link, serve_unit
from qkdhw_emulators.units.generic_tx import EmulatedGenericTx
from qkdhw_emulators.units.sfifteen_tdc1 import EmulatedSFifteenTdc1
from qkdhw_emulators.world import World

needs_installation = pytest.mark.skipif(
    not entry_points(group="qkdhw.drivers"), reason="the package is on the path but not installed"
)


def open_tx(url, timeout_s=2.0):
    return GenericTx(open_transport(url), timeout_s=timeout_s)


def open_rx(url, timeout_s=2.0):
    return SFifteenTdc1(open_transport(url), timeout_s=timeout_s)


@contextmanager
def running_link(parameters=None, **faults):
    """An emulated link whose two units are open and running."""
    with (
        serve_link(parameters, seed=1, **faults) as served,
        open_tx(served.transmitter_url) as tx,
        open_rx(served.receiver_url) as rx,
    ):
        restart(tx, rx)
        yield served, tx, rx


def restart(tx, rx):
    rx.start()
    tx.arm()
    tx.start()


@needs_installation
def test_open_unit_finds_both_drivers():
    with serve_link(seed=1) as served:
        with open_unit("generic-tx", served.transmitter_url) as tx:
            assert isinstance(tx, TransmitterUnit)
            assert tx.identify().protocol == "GTX/1"
        with open_unit("sfifteen-tdc1", served.receiver_url) as rx:
            assert isinstance(rx, TimeTagger)
            assert rx.identify().model == "TDC1"


@needs_installation
def test_open_unit_refuses_unknown_names_and_options():
    with pytest.raises(ConfigurationError, match="acme-rx9") as caught:
        open_unit("acme-rx9", "tcp://127.0.0.1:1")
    assert all(name in caught.value.remedy for name in ("generic-tx", "sfifteen-tdc1"))
    with pytest.raises(ConfigurationError, match="colour"):
        open_unit("generic-tx", "tcp://127.0.0.1:1", colour="red")


def test_a_link_streams_at_both_ends():
    with serve_link(LinkParameters(loss_db=3.0), seed=1) as served:
        with open_tx(served.transmitter_url) as tx, open_rx(served.receiver_url) as rx:
            got = tx.configure({"pulse_rate_hz": 30_000_000, "key_basis_probability": 0.9})
            assert 10_000_000_000 % got["pulse_rate_hz"] == 0
            assert got["key_basis_probability"] == round(0.9 * 65536) / 65536
            rx.start()
            tx.arm()
            tx.start()
            ticks, next_index = [], 0
            while next_index < 5_000_000:
                block = tx.read_preparation(1_000_001)
                assert block.first_pulse_index == next_index
                next_index += len(block)
                ticks.append(rx.read_block(100_000).time_ticks)
            tx.stop()
            rx.stop()
            ticks.append(rx.read_block(10_000_000).time_ticks)
            assert tx.read_status().counters["lost"] == 0
            assert rx.read_status().counters["photons"] > 10_000
        assert (np.diff(np.concatenate(ticks)) >= 0).all()


@pytest.mark.parametrize("transport", ["pty", "tcp"])
def test_events_are_those_that_the_emulator_sent(transport):
    direct = EmulatedSFifteenTdc1(World(seed=3))
    direct.receive(b"time 0;timestamp;counts?\r\n")
    raw = b""
    while len(raw) < 40_000:
        raw += direct.read_stream(65536)
    words = np.frombuffer(raw[:40_000], "<u4").astype(np.int64)
    times = words >> 5
    times += 2**27 * np.cumsum(np.concatenate([[0], np.diff(times) < 0]))
    with serve_unit(EmulatedSFifteenTdc1(World(seed=3)), transport=transport) as served, open_rx(served.url) as rx:
        rx.start()
        got = []
        while sum(map(len, got)) < 10_000:
            got.append(rx.read_block(4096).time_ticks)
    n = 5000
    assert np.unique(np.concatenate(got))[:n].tolist() == np.unique(times)[:n].tolist()


def test_records_are_those_that_the_emulator_sent():
    direct = EmulatedGenericTx(World(seed=3))
    direct.receive(b"ARM\nSTART\n")
    reply = direct.receive(b"REC? 0 1000\n")
    line, _, body = reply.partition(b"\n")
    assert line == b"OK 0 1000"
    assert zlib.crc32(body[:500]).to_bytes(4, "little") == body[500:]
    want = [nibble for byte in body[:500] for nibble in (byte & 15, byte >> 4)]
    with serve_unit(EmulatedGenericTx(World(seed=3)), transport="tcp") as served, open_tx(served.url) as tx:
        tx.arm()
        tx.start()
        got = np.concatenate([tx.read_preparation(n).record for n in (2, 500, 498)])
    assert got.tolist() == want


def test_a_tagger_is_taken_over_in_the_middle_of_a_stream():
    with serve_unit(EmulatedSFifteenTdc1(World(seed=3))) as served:
        with open_transport(served.url) as dead_program:
            dead_program.write(b"time 0;timestamp;counts?\r\nsta")
            dead_program.read_exactly(1001)
        with open_rx(served.url) as rx:
            assert rx.identify().model == "TDC1"
            assert len(rx.read_counts()) == 4


def test_states_are_kept():
    with serve_unit(EmulatedGenericTx(World(seed=1)), transport="tcp") as served, open_tx(served.url) as tx:
        with pytest.raises(UnitStateError):
            tx.start()
        tx.arm()
        with pytest.raises(UnitStateError):
            tx.configure({"pulse_rate_hz": 10_000_000})
        with pytest.raises(UnitStateError):
            tx.arm()
        assert tx.read_status().state == "armed"
        tx.stop()
        with pytest.raises(CommandRefusedError) as caught:
            tx.configure({"mean_photon_number": (0.1, 0.5, 0.0)})
        assert caught.value.code == "2"


def test_looking_at_a_running_transmitter_does_not_stop_it():
    with serve_unit(EmulatedGenericTx(World(seed=1)), transport="tcp") as served, open_tx(served.url) as tx:
        tx.arm()
        tx.start()
        first = tx.read_preparation(1000)
        with open_tx(served.url) as onlooker:  # replaces our connection
            assert onlooker.read_status().state == "running"
        with pytest.raises(TransportClosedError, match="gone"):
            tx.read_preparation(1000)
        second = tx.read_preparation(1000)
    assert second.first_pulse_index == len(first)


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.GARBAGE])
def test_units_that_do_not_answer_or_answer_garbage(fault):
    error = TransportTimeoutError if fault is Fault.SILENT else UnitError
    with serve_unit(EmulatedSFifteenTdc1(World(seed=1), faults=[fault])) as served, open_transport(served.url) as link:
        with pytest.raises(error) as caught:
            SFifteenTdc1(link, timeout_s=0.5)
        assert caught.value.remedy
    with serve_unit(EmulatedGenericTx(World(seed=1), faults=[fault]), transport="tcp") as served:
        with open_transport(served.url) as link, pytest.raises(error) as caught:
            GenericTx(link, timeout_s=0.5)
        assert caught.value.remedy


def test_the_wrong_unit_at_the_address():
    with (
        serve_unit(EmulatedSFifteenTdc1(World(seed=1)), transport="tcp") as served,
        open_transport(served.url) as link,
        pytest.raises((UnitError, TransportTimeoutError)),
    ):
        GenericTx(link, timeout_s=0.5)
    with (
        serve_unit(EmulatedGenericTx(World(seed=1)), transport="tcp") as served,
        open_transport(served.url) as link,
        pytest.raises(UnitError, match="ERR 1"),
    ):
        SFifteenTdc1(link, timeout_s=0.5)


def test_old_firmware():
    unit = EmulatedSFifteenTdc1(World(seed=1), faults=[Fault.NEGATIVE_TIME])
    with serve_unit(unit) as served, open_rx(served.url) as rx:
        assert rx.configure({"gate_time_ms": 65535})["gate_time_ms"] == 65535


def test_tagger_overflow():
    unit = EmulatedSFifteenTdc1(World(seed=1), faults=[Fault.OVERFLOW])
    with serve_unit(unit) as served, open_rx(served.url) as rx:
        rx.start()
        assert len(rx.read_block(1000))
        with pytest.raises(EventOverflowError):
            rx.stop()
        assert rx.read_status().alarms == ("event_overflow",)


def test_tagger_byte_slip():
    lossless = LinkParameters(loss_db=0.0)
    with running_link(lossless, receiver_faults=[Fault.BYTE_SLIP]) as (served, tx, rx):
        both = ((tx.read_preparation(1_000_000), rx.read_block(100_000)) for _ in count())
        with pytest.raises(WireFormatError, match="byte was lost"):
            deque(both, maxlen=0)
        tx.stop()
        served.receiver.faults.clear()
        restart(tx, rx)
        assert any(len(rx.read_block(100_000)) for _ in range(20))


def test_transmitter_overrun():
    with running_link(transmitter_faults=[Fault.RECORD_OVERRUN]) as (_, tx, rx):
        while tx.read_status().counters["lost"] == 0:
            rx.read_block(1_000_000, timeout_s=0.1)
        with pytest.raises(EventOverflowError) as caught:
            tx.read_preparation(1000)
        assert caught.value.lost > 0
        assert "record_buffer_overrun" in tx.read_status().alarms


def test_transmitter_hardware_fault():
    unit = EmulatedGenericTx(World(seed=1), faults=[Fault.LASER_TEMPERATURE])
    with serve_unit(unit, transport="tcp") as served, open_tx(served.url) as tx:
        tx.arm()
        with pytest.raises(CommandRefusedError) as caught:
            tx.start()
        assert caught.value.code == "6"
        assert "laser_temperature" in tx.read_status().alarms


def test_a_tagger_is_opened_by_one_program_only():
    in_use = pytest.raises(TransportError, match="another program has it open")
    with serve_unit(EmulatedSFifteenTdc1(World(seed=1))) as served, open_rx(served.url), in_use:
        open_transport(served.url)


def test_two_threads_on_one_unit_get_their_own_answers():
    failures = []

    def ask(call, want):
        try:
            failures.extend(got for got in (call() for _ in range(150)) if got != want)
        except Exception as error:
            failures.append(error)

    with serve_unit(EmulatedGenericTx(World(seed=1)), transport="tcp") as served, open_tx(served.url) as tx:
        calls = [tx.identify, lambda: tx.read_status().state, lambda: tx.configure({"key_basis_probability": 0.5})]
        threads = [threading.Thread(target=ask, args=(call, call())) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert not failures


def test_unplugging_a_tagger_is_noticed():
    master, slave = os.openpty()
    threading.Timer(0.2, os.close, [master]).start()
    with open_transport(f"serial://{os.ttyname(slave)}") as link:
        os.close(slave)
        with pytest.raises(TransportClosedError, match="is gone"):
            link.read_exactly(1, timeout_s=1.0)

"""The Quantis driver against the emulated unit, over stock pyusb and in the process."""

import threading
import traceback
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from qkdhw import open_unit
from qkdhw.errors import TransportError, TransportTimeoutError, UnitError, UnitStateError
from qkdhw.interfaces import RandomSource
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.serve import _process_bus, serve_unit
from qkdhw_emulators.units.idq_quantis import EmulatedIdqQuantis
from qkdhw_emulators.world import VirtualClock, World


@contextmanager
def quantis(transport="usb", *, seed=6, pace=None, faults=(), **options):
    world = World(seed=seed, clock=VirtualClock(pace=pace))
    with (
        serve_unit(EmulatedIdqQuantis(world), world, transport=transport, faults=faults) as served,
        open_unit("idq-quantis", served.url, timeout_s=0.3, **options) as unit,
    ):
        yield served, unit


def read(unit, size):
    with unit.read_random(size) as secret:
        return bytes(secret)


def read_until_failure(unit, size, times):
    for n in range(times):
        try:
            read(unit, size)
        except UnitStateError as error:
            return n * size, error
    return None, None


@pytest.mark.parametrize("transport", ["usb", "emu"])
def test_bytes_are_those_that_the_unit_made_but_for_the_start_up(transport):
    made = EmulatedIdqQuantis(World(seed=6, clock=VirtualClock(pace=None)))
    want = b""
    while len(want) < 40_000:
        made.world.clock.advance(made.wait_s())
        want += made.read_stream(512)
    with quantis(transport) as (served, unit):
        assert isinstance(unit, RandomSource)
        assert unit.identify().serial_number == "100003A410"
        assert served.unit.self_test_requested
        assert read(unit, 3000) == want[1024:4024]
        assert not served.unit.self_test_requested
        assert read(unit, 30_000) == want[4096:34_096]
        assert unit.read_status().counters == {"delivered_bytes": 33_000}


@pytest.mark.parametrize("transport", ["usb", "emu"])
@pytest.mark.parametrize(
    ("condition", "value", "alarm"),
    [
        ("bias", 0.72, "adaptive_proportion_test"),
        ("bias", 0.28, "adaptive_proportion_test"),
        ("bias", 1.0, "repetition_count_test"),
        ("stay", 0.95, "repetition_count_test"),
        ("repeat_bytes", 2048, "repeated_block_test"),
        ("repeat_bytes", 1, "repetition_count_test"),
        ("module_ok", 0, "module_failed"),
        ("powered", 0, "module_failed"),
    ],
)
def test_a_failure_latches_until_it_is_reset(transport, condition, value, alarm):
    with quantis(transport) as (served, unit):
        read(unit, 1000)
        usual = served.world.conditions[condition]
        served.world.set_condition(condition, value)
        if (condition, value) == ("repeat_bytes", 1):
            served.unit._loop = b"\0"  # else the byte that repeats is one of 256, and may be anything
        _, error = read_until_failure(unit, 8192, 10)
        assert alarm in str(error)
        served.world.set_condition(condition, usual)
        with pytest.raises(UnitStateError, match=alarm):
            read(unit, 1)
        assert unit.read_status().alarms == (alarm,)
        assert unit.read_status().state == "fault"
        unit.reset_health()
        assert len(read(unit, 1000)) == 1000
        assert unit.read_status().alarms == ()


def test_a_stuck_source_never_gets_through_its_start_up():
    with quantis(faults=[Fault.STUCK_VALUE]) as (_, unit):
        for _ in range(3):
            with pytest.raises(UnitStateError, match="repetition_count_test"):
                read(unit, 1)
        unit.reset_health()
        with pytest.raises(UnitStateError, match="repetition_count_test"):
            read(unit, 1)
        assert unit.read_status().counters == {"delivered_bytes": 0}


@pytest.mark.parametrize("seed", range(4))
def test_how_soon_a_bias_of_two_thirds_is_found_out(seed):
    """A claim of 1 bit: a window of 128 bytes fails with probability 0.66; 1e-13 get beyond 8 kilobytes."""
    with quantis("emu", seed=seed, min_entropy_bits=1.0) as (served, unit):
        read(unit, 1)
        served.world.set_condition("bias", 0.667)
        after, _ = read_until_failure(unit, 512, 16)
        assert after is not None


def test_a_good_source_raises_no_alarm():
    with quantis("emu", sample_bits=8, min_entropy_bits=7.0) as (_, unit):
        assert share_of_ones(b"".join(read(unit, 65_536) for _ in range(32))) == pytest.approx(0.5, abs=0.001)


def share_of_ones(data):
    return np.unpackbits(np.frombuffer(data, np.uint8)).mean()


def test_no_random_bytes_in_errors_or_their_traces():
    """The bytes that failed a test, and those read with them, are in no message and no note."""
    with quantis() as (served, unit):
        read(unit, 100)
        served.world.set_condition("repeat_bytes", 512)
        _, error = read_until_failure(unit, 2048, 4)
        told = "".join(traceback.format_exception(error))
        data = served.unit._loop
        assert data.hex()[:16] not in told
        assert repr(data[:6])[2:-1] not in told


def test_silence_ends_in_time_and_is_recovered_from():
    with quantis(pace=1.0) as (served, unit):
        read(unit, 100)
        served.faults.add(Fault.SILENT)
        with pytest.raises((TransportTimeoutError, TransportError)):
            unit.read_random(100, timeout_s=0.3)
        served.faults.clear()
        assert len(read(unit, 100)) == 100


def test_too_little_time_is_told():
    with quantis(pace=0.01) as (_, unit), pytest.raises(TransportTimeoutError, match="random bytes in time"):
        unit.read_random(60_000, timeout_s=0.1)


def test_unplugged_and_plugged_in_again_it_starts_up_again():
    with quantis() as (served, unit):
        read(unit, 100)
        bus = _process_bus()
        (device,) = bus.enumerate_devices()
        bus.unplug(device.unit)
        for _ in range(2):
            with pytest.raises(TransportError):
                unit.read_random(100)
        served.unit.power_cycle()
        bus.plug(device.unit, served.world)
        assert len(read(unit, 100)) == 100
        assert not served.unit.self_test_requested


def test_power_lost_unnoticed_is_seen_by_the_units_request_for_a_start_up():
    with quantis("emu") as (served, unit):
        read(unit, 100)
        served.unit.power_cycle()
        served.faults.add(Fault.STUCK_VALUE)
        with pytest.raises(UnitStateError):
            read(unit, 100)
        served.faults.clear()
        unit.reset_health()
        read(unit, 100)
        assert not served.unit.self_test_requested


def test_another_unit_at_the_same_address_is_noticed():
    with quantis() as (served, unit):
        read(unit, 100)
        served.faults.add(Fault.SILENT)
        with suppress(TransportError):
            unit.read_random(10, timeout_s=0.2)
        served.faults.clear()
        served.faults.add(Fault.WRONG_FIRMWARE)
        with pytest.raises(UnitError, match="now leads to"):
            unit.read_random(10)


def test_a_read_that_the_unit_is_closed_under_ends_with_a_typed_error():
    with quantis(pace=0.05) as (_, unit):
        threading.Timer(0.1, unit.close).start()
        with pytest.raises(TransportError):
            unit.read_random(1 << 20, timeout_s=5.0)
        unit.close()


def test_eight_threads_never_get_the_same_bytes():
    got, wrong = [], []

    def work(unit):
        try:
            got.extend(read(unit, 64) for _ in range(25))
        except (TransportError, UnitError) as error:
            wrong.append(error)

    with quantis() as (_, unit):
        threads = [threading.Thread(target=work, args=(unit,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not wrong
    assert len(set(got)) == 200

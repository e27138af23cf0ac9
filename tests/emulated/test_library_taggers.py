"""Drivers that call a vendor's library, against stand-ins for it with the calls of its documentation.

Nothing here shows that the vendors' libraries do what they document: that needs the units.
"""

import importlib
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qkdhw import interfaces, open_unit
from qkdhw.drivers import picoquant_harp
from qkdhw.drivers.picoquant_harp import PicoQuantHarp
from qkdhw.drivers.swabian_time_tagger import SwabianTimeTagger
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    NonMonotonicTimeError,
    NotSupportedError,
    TransportClosedError,
    TransportError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.model import EventKind
from qkdhw.transport import open_transport

FAKES = Path(__file__).parents[1] / "fakes"
NAMES = ("TimeTagger", "snAPI", "snAPI.Main", "Swabian", "Swabian.TimeTagger")
DRIVERS = {"swabian-time-tagger": SwabianTimeTagger, "picoquant-harp": PicoQuantHarp}


@pytest.fixture
def fakes(monkeypatch):
    """Put fresh stand-ins where the vendors' modules would be."""
    monkeypatch.syspath_prepend(str(FAKES))
    for name in NAMES:
        sys.modules.pop(name, None)
    yield {
        "swabian-time-tagger": importlib.import_module("TimeTagger"),
        "picoquant-harp": importlib.import_module("snAPI.Main"),
    }
    for name in NAMES:
        sys.modules.pop(name, None)


def tags(name, module, *events):
    """Hand events (time, channel) to a stand-in."""
    if name == "swabian-time-tagger":
        module.tags.extend((0, channel, time, 0) for time, channel in events)
    else:
        module.records.extend(events)


@pytest.fixture(params=DRIVERS)
def tagger(request, fakes):
    with open_unit(request.param, "library://") as unit:
        yield request.param, fakes[request.param], unit


def test_contract(tagger):
    name, _, unit = tagger
    assert isinstance(unit, interfaces.TimeTagger)
    assert type(unit) is DRIVERS[name]
    info = unit.identify()
    assert info.vendor
    assert info.serial_number in {"2138000XYZ", "1045483"}
    assert unit.read_status().state == "idle"
    described = type(unit).describe()
    assert described["schemes"] == ["library"]


def test_settings_round_trip(tagger):
    _, _, unit = tagger
    got = unit.configure({"threshold_v": {2: -0.123}, "dead_time_ps": {1: 20_001}, "input_delay_ps": {3: 27}})
    assert abs(got["threshold_v"][2] + 0.123) < 0.002
    assert got["dead_time_ps"][1] in {20_000, 20_001}
    assert got["input_delay_ps"][3] in {25, 27}
    unit.configure({"input_edge": {1: "falling"}, "input_enabled": {2: False}})
    assert unit.input_edge[1] == "falling"
    assert unit.input_enabled[2] is False
    snapshot = unit.snapshot()
    unit.configure({"threshold_v": 0.5, "input_enabled": True, "input_edge": "rising"})
    unit.restore(snapshot)
    assert unit.snapshot() == snapshot
    with pytest.raises(ConfigurationError):
        unit.configure({"threshold_v": {5: 0.1}})


def test_events_are_read_once_in_order_in_any_pieces(tagger):
    name, module, unit = tagger
    with pytest.raises(UnitStateError, match="not started"):
        unit.read_block(10)
    unit.start()
    with pytest.raises(UnitStateError, match="runs already"):
        unit.start()
    start = (1 << 53) + 1
    want = [(start + 10 * i, 1 + i % 4) for i in range(100)]
    tags(name, module, *want[:60])
    blocks = [unit.read_block(25) for _ in range(3)]
    tags(name, module, *want[60:])
    blocks += [unit.read_block(25) for _ in range(2)]
    assert [len(block) for block in blocks] == [25, 25, 10, 25, 15]
    got = [(int(t), int(c)) for block in blocks for t, c in zip(block.time_ticks, block.channel, strict=True)]
    assert got == want
    for block in blocks:
        assert block.tick_ps == Fraction(1)
        assert (block.time_ticks.dtype, block.channel.dtype, block.kind.dtype) == (np.int64, np.uint8, np.uint8)
    assert len(unit.read_block(10, timeout_s=0.05)) == 0
    tags(name, module, (start + 2000, 1))
    unit.stop()
    assert len(unit.read_block(10)) == 1
    assert len(unit.read_block(10)) == 0
    assert unit.read_status().counters["events"] == 101


def test_a_block_does_not_change_when_the_library_fills_its_memory_again(tagger):
    name, module, unit = tagger
    unit.start()
    tags(name, module, (5, 1), (6, 2))
    first = unit.read_block(10)
    tags(name, module, (7, 3), (8, 4))
    unit.read_block(10)
    assert first.time_ticks.tolist() == [5, 6]
    assert first.channel.tolist() == [1, 2]


def test_the_stream_starts_and_stops_the_unit(tagger):
    name, module, unit = tagger
    tags(name, module, (5, 1))
    with unit.stream() as stream:
        assert len(next(iter(stream))) == 1
        assert unit.read_status().state == "running"
    assert unit.read_status().state == "idle"


def test_time_that_goes_back(tagger):
    name, module, unit = tagger
    unit.start()
    tags(name, module, (5, 1))
    unit.read_block(10)
    tags(name, module, (6, 1), (4, 1))
    with pytest.raises(NonMonotonicTimeError) as caught:
        unit.read_block(10)
    assert caught.value.index == 1


def test_threads_read_each_event_once(tagger):
    name, module, unit = tagger
    unit.start()
    tags(name, module, *[(i, 1 + i % 4) for i in range(4000)])
    got, errors = [], []

    def read():
        try:
            got.extend(int(t) for _ in range(10) for t in unit.read_block(50, timeout_s=1.0).time_ticks)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert sorted(got) == list(range(4000))


@pytest.mark.parametrize("name", DRIVERS)
def test_which_unit_and_giving_it_back(name, fakes):
    serial = fakes[name].serials[0]
    with open_unit(name, f"library://{serial}") as unit:
        assert unit.identify().serial_number == serial
        with pytest.raises(TransportError, match="could be opened") as caught:
            open_unit(name, "library://")
        assert caught.value.remedy
        unit.start()
        unit.close()
        unit.close()
        for call in (unit.identify, unit.read_status, lambda: unit.read_block(1)):
            with pytest.raises(TransportClosedError):
                call()
    with open_unit(name, "library://"):
        pass
    with pytest.raises(TransportError, match="0815"):
        open_unit(name, "library://0815")


@pytest.mark.parametrize("name", DRIVERS)
def test_a_library_that_is_not_installed(name, monkeypatch):
    for module in NAMES:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match="not installed") as caught:
        open_unit(name, "library://")
    assert "pip install" in caught.value.remedy


@pytest.mark.parametrize("url", ["library://a/b", "library://host:5", "library://x?y=1", "library://u@x"])
def test_malformed_addresses(url):
    with pytest.raises(ConfigurationError) as caught:
        open_transport(url)
    assert caught.value.remedy


def test_no_bytes_cross_a_library_link():
    with open_transport("library://7") as link:
        for use in (lambda: link.write(b"x"), lambda: link.read_exactly(1), link.discard_input):
            with pytest.raises(NotSupportedError):
                use()
    with pytest.raises(TransportClosedError):
        link.write(b"x")


# --- Swabian ------------------------------------------------------------------------------------------------------
@pytest.fixture
def swabian(fakes):
    with open_unit("swabian-time-tagger", "library://") as unit:
        yield fakes["swabian-time-tagger"], unit


def test_every_type_of_tag(swabian):
    module, unit = swabian
    unit.start()
    module.tags.extend([(0, 3, 10, 0), (2, 0, 11, 0), (4, 1, 12, 500), (4, 3, 12, 65535), (3, 0, 13, 0), (1, 0, 14, 0)])
    block = unit.read_block(100)
    assert block.kind.tolist() == [
        EventKind.PHOTON, EventKind.GAP_BEGIN, EventKind.MISSED, EventKind.MISSED, EventKind.GAP_END, EventKind.CLOCK_ERROR,
    ]  # fmt: skip
    assert block.channel.tolist() == [3, 0, 0, 0, 0, 0]
    assert block.missed == 66035
    status = unit.read_status()
    assert (status.counters["missed"], status.counters["gaps"], status.alarms) == (66035, 1, ("event_overflow",))


def test_the_missed_are_told_with_the_events_that_say_so(swabian):
    module, unit = swabian
    unit.start()
    module.tags.extend([(0, 1, 1, 0), (4, 1, 2, 7), (0, 1, 3, 0), (4, 1, 4, 9)])
    assert [unit.read_block(2).missed for _ in range(2)] == [7, 9]


def test_edges_are_signs_of_channels_and_disabled_inputs_are_not_streamed(swabian):
    module, unit = swabian
    unit.configure({"input_edge": {2: "falling"}, "input_enabled": {3: False}, "threshold_v": {2: -0.3}})
    assert module.opened[0].level == dict.fromkeys((2, -2), pytest.approx(-0.3, abs=0.001))
    unit.start()
    with pytest.raises(UnitStateError, match="input_enabled"):
        unit.configure({"input_enabled": {3: True}})
    module.tags.extend([(0, channel, time, 0) for time, channel in enumerate((1, 2, -2, 3, 4))])
    assert unit.read_block(10).channel.tolist() == [1, 2, 4]
    unit.stop()
    unit.configure({"input_enabled": False})
    with pytest.raises(UnitStateError, match="no input"):
        unit.start()


def test_a_full_buffer_of_the_library_is_a_gap(swabian, monkeypatch):
    monkeypatch.setattr("qkdhw.drivers.swabian_time_tagger.BUFFER_EVENTS", 3)
    module, unit = swabian
    unit.start()
    module.tags.extend((0, 1, time, 0) for time in range(5))
    assert unit.read_block(100).time_ticks.tolist() == [0, 1, 2]
    module.tags.append((0, 1, 9, 0))
    block = unit.read_block(100)
    assert block.kind.tolist() == [EventKind.GAP_BEGIN, EventKind.GAP_END, EventKind.PHOTON]
    assert unit.read_status().alarms == ("event_overflow",)


def test_what_the_library_raises_is_a_unit_error(swabian):
    module, unit = swabian
    unit.configure({"threshold_v": {1: 0.25}})
    unit.start()
    module.fail = "USB transfer failed"
    for call in (lambda: unit.read_block(1), lambda: unit.configure({"threshold_v": {1: 0.1}})):
        with pytest.raises(UnitError, match="USB transfer failed") as caught:
            call()
        assert caught.value.remedy
    module.fail = ""
    assert unit.threshold_v[1] == pytest.approx(0.25, abs=0.001)
    module.tags.append((7, 1, 1, 0))
    with pytest.raises(WireFormatError, match="unknown type"):
        unit.read_block(1)


def test_the_name_that_the_packages_of_the_vendor_have(fakes, monkeypatch):
    package = type(sys)("Swabian")
    package.TimeTagger = fakes["swabian-time-tagger"]
    monkeypatch.setitem(sys.modules, "Swabian", package)
    monkeypatch.setitem(sys.modules, "Swabian.TimeTagger", package.TimeTagger)
    monkeypatch.setitem(sys.modules, "TimeTagger", None)
    with open_unit("swabian-time-tagger", "library://") as unit:
        assert unit.identify().model == "Time Tagger Ultra"


# --- PicoQuant ----------------------------------------------------------------------------------------------------
@pytest.fixture
def harp(fakes):
    with open_unit("picoquant-harp", "library://") as unit:
        yield fakes["picoquant-harp"], unit


def test_sync_and_markers(harp):
    module, unit = harp
    unit.start()
    module.records.extend([(1, 0), (2, 4), (3, 0x80 | 0b1001)])
    block = unit.read_block(10)
    assert block.channel.tolist() == [0, 4, 0b1001]
    assert block.kind.tolist() == [EventKind.PHOTON, EventKind.PHOTON, EventKind.MARKER]


def test_level_and_edge_do_not_overwrite_each_other(harp):
    module, unit = harp
    unit.configure({"threshold_v": {0: -0.2, 1: 0.1}, "input_edge": {0: "falling", 1: "falling"}})
    unit.configure({"threshold_v": {1: 0.15}})
    config = module.held[0].deviceConfig
    assert (config["SyncTrigLvl"], config["SyncTrigEdge"]) == (-200, 0)
    assert (config["ChansCfg"][0]["TrigLvl"], config["ChansCfg"][0]["TrigEdge"]) == (150, 0)
    assert config["ChansCfg"][1]["TrigLvl"] == -50


def test_units_with_other_inputs_refuse(harp):
    module, unit = harp
    module.cfd_inputs = True
    with pytest.raises(CommandRefusedError, match="threshold_v") as caught:
        unit.configure({"threshold_v": {1: 0.1}})
    assert caught.value.remedy


def test_a_reader_that_was_away_too_long_gets_a_gap(harp, monkeypatch):
    module, unit = harp
    now_s = [100.0]
    monkeypatch.setattr(picoquant_harp.time, "monotonic", lambda: now_s[0])
    unit.start()
    module.count_rates[1] = 1_000_000
    module.records.append((5, 1))
    now_s[0] += 1.0
    assert unit.read_block(10).kind.tolist() == [EventKind.PHOTON]
    module.records.append((6, 1))
    now_s[0] += 5.0
    assert unit.read_block(10).kind.tolist() == [EventKind.GAP_BEGIN, EventKind.GAP_END, EventKind.PHOTON]


def test_a_measurement_that_ends_by_itself(harp):
    module, unit = harp
    unit.start()
    module.records.append((5, 1))
    module.finished = True
    assert len(unit.read_block(10)) == 1
    with pytest.raises(UnitStateError, match="by itself"):
        unit.read_block(10)
    assert unit.read_status().state == "idle"


def test_times_that_cannot_be_true(harp):
    module, unit = harp
    unit.start()
    module.records.append(((1 << 64) - 1, 1))
    with pytest.raises(WireFormatError):
        unit.read_block(10)

"""Attenuator drivers against emulated attenuators, over what the real ones have."""

from __future__ import annotations

import json
import threading

import pytest

from qkdhw.drivers.agilent_attenuator import Agilent816x, Agilent8156A
from qkdhw.errors import CommandRefusedError, ConfigurationError, UnitError
from qkdhw.interfaces import Attenuator
from qkdhw.transport import open_transport
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Verdict, run_suite
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.agilent_attenuator import EmulatedAgilent816x, EmulatedAgilent8156A

KINDS = [("agilent-8156a", Agilent8156A, EmulatedAgilent8156A), ("agilent-816x", Agilent816x, EmulatedAgilent816x)]


@pytest.fixture
def single():
    with (
        serve_unit(EmulatedAgilent8156A(), transport="tcp") as served,
        Agilent8156A(open_transport(served.url), timeout_s=0.5) as unit,
    ):
        yield served, unit


@pytest.fixture
def mainframe():
    with (
        serve_unit(EmulatedAgilent816x(), transport="vxi11") as served,
        Agilent816x(open_transport(served.url), timeout_s=0.5) as unit,
    ):
        yield served, unit


@pytest.mark.parametrize(("name", "driver", "emulator"), KINDS)
def test_conformance(name, driver, emulator) -> None:
    with serve_unit(emulator(), transport="emu") as served:
        subject = Subject(name, served.url, driver, timeout_s=0.15, served=served, rounds=10)
        assert [o for o in run_suite(subject) if o.verdict is Verdict.FAILED] == []


def test_both_are_attenuators(single, mainframe) -> None:
    for served, unit in (single, mainframe):
        assert isinstance(unit, Attenuator)
        assert unit.set_attenuation_db(12.3456) == pytest.approx(12.346)
        assert unit.read_attenuation_db() == pytest.approx(12.346)
        assert served.unit.transmittance == 0.0  # the shutter is closed
        json.dumps(unit.describe())


def test_the_range_moves_with_the_offset(single) -> None:
    _, unit = single
    assert (unit.attenuation_min_db, unit.attenuation_max_db) == (0.0, 60.0)
    unit.offset_db = 10
    assert (unit.attenuation_min_db, unit.attenuation_max_db) == (10.0, 70.0)
    assert unit.set_attenuation_db(65) == 65.0
    with pytest.raises(CommandRefusedError) as caught:
        unit.set_attenuation_db(5)
    assert "10 to 70 dB" in caught.value.remedy
    assert unit.read_attenuation_db() == 65.0


def test_what_cannot_be_in_range_is_not_sent(single) -> None:
    served, unit = single
    sent = served.line.fed_bytes
    for wrong in ({"attenuation_db": 1000}, {"attenuation_db": "10"}, {"offset_db": -100}, {"attenuation_min_db": 3}):
        with pytest.raises(ConfigurationError):
            unit.configure(wrong)
    assert served.line.fed_bytes == sent


@pytest.mark.parametrize("fault", [Fault.DISCONNECT, Fault.POWER_CYCLE])
def test_after_a_reconnect_the_light_is_what_it_was_and_the_shutter_stays(single, fault) -> None:
    served, unit = single
    unit.configure({"attenuation_db": 10, "shutter_open": True, "offset_db": 5})
    filter_db = served.unit.filter.filter_db
    served.faults.add(fault, count=1)
    assert unit.attenuation_db == pytest.approx(15)
    assert served.unit.filter.filter_db == pytest.approx(filter_db) == 10
    assert unit.shutter_open is (fault is Fault.DISCONNECT)  # power came back: light does not by itself


def test_slots(mainframe) -> None:
    served, unit = mainframe
    assert unit.modules == {1: "81570A", 2: "81577A"}
    unit.attenuation_db = {1: 3, 2: 20}
    assert dict(unit.attenuation_db) == {1: 3.0, 2: 20.0}
    with Agilent816x(_again(served, unit), slot=2, timeout_s=0.5) as second:
        assert second.read_attenuation_db() == 20.0
        second.set_attenuation_db(30)
        assert [each.filter_db for each in served.unit.filters.values()] == [3.0, 30.0]


def test_a_slot_without_an_attenuator(mainframe) -> None:
    served, unit = mainframe
    link = _again(served, unit)
    with link, pytest.raises(ConfigurationError, match="slot 3"):
        Agilent816x(link, slot=3, timeout_s=0.5)


def test_the_other_model_is_refused() -> None:
    with (
        serve_unit(EmulatedAgilent816x(), transport="tcp") as served,
        open_transport(served.url) as link,
        pytest.raises(UnitError, match="Agilent 8156A"),
    ):
        Agilent8156A(link, timeout_s=0.5)


def test_eight_threads_get_their_own_answers(mainframe) -> None:
    _, unit = mainframe
    unit.configure({"offset_db": {1: 1, 2: 2}, "attenuation_db": {1: 11, 2: 22}, "wavelength_nm": {1: 1310, 2: 1550}})
    want = [("offset_db", 1, 1), ("offset_db", 2, 2), ("attenuation_db", 1, 11), ("attenuation_db", 2, 22)]
    want += [
        ("wavelength_nm", 1, 1310),
        ("wavelength_nm", 2, 1550),
        ("attenuation_min_db", 1, 1),
        ("attenuation_max_db", 2, 62),
    ]
    wrong = []

    def read(name, slot, value):
        wrong.extend(got for _ in range(20) if (got := unit.read_setting(name, slot)) != pytest.approx(value))

    threads = [threading.Thread(target=read, args=each) for each in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _again(served, unit):
    unit.close()  # VXI-11 of this mainframe has one link
    return open_transport(served.url)

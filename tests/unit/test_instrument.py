"""What every instrument's driver does: settings sent, set again after trouble, or left alone; on emulated units."""

import json
from contextlib import contextmanager
from typing import ClassVar

import pytest

from qkdhw.drivers import installed_drivers, load_driver
from qkdhw.drivers.setting import ChannelSetting, Reply, Setting, settings_of
from qkdhw.drivers.text_instrument import TextInstrument
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    NotSupportedError,
    TransportClosedError,
    TransportTimeoutError,
    UnitError,
    WireFormatError,
)
from qkdhw.model import UnitInfo
from qkdhw.transport import open_transport
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.table_unit import Entry, TableUnit
from qkdhw_emulators.world import VirtualClock, World

ON = pytest.mark.parametrize("on", ["emu", "pty", "tcp"])


class EmulatedAmplifier(TableUnit):
    """Amplifies up to its range, and keeps a list of what it hears."""

    table: ClassVar = {
        "RANGE": Entry(0, 40, 0.1, 10.0), "GAIN": Entry(0, 40, 0.1), "TILT": Entry(-10, 10, 0.1), "BIAS1": Entry(0, 5, 0.01),
        "BIAS2": Entry(0, 5, 0.01), "LIGHT": Entry(0, 1), "COUNTS": Entry(0, 99, 1.0, 42.0), "LABEL": Entry(0, 99),
    }  # fmt: skip
    identity = "ACME,BX1,17,1.0"

    def power_cycle(self):
        super().power_cycle()
        self.heard = []

    def carry_out(self, command, argument):
        """A gain above the range is refused, and so is a tilt above the gain; a smaller range lowers the gain."""
        self.heard.append(f"{command} {argument}".strip())
        limits = {"GAIN": "RANGE", "TILT": "GAIN"}
        if command in limits and float(argument) > self.values[limits[command]]:
            return self.nak()
        reply = super().carry_out(command, argument)
        self.values["GAIN"] = min(self.values["GAIN"], self.values["RANGE"])
        return reply

    @property
    def told(self):
        """What it was told to set."""
        return [line for line in self.heard if "?" not in line]


class Amplifier(TextInstrument):
    """Drives it."""

    vendor = "Acme"
    model = "BX1"
    done = "OK"
    refusal = "ERR"
    idn_pattern = r"^acme,bx"

    range_db = Setting(
        float, unit="dB", minimum=0, maximum=40, step=0.1, reply=Reply.ACK, query="RANGE?",
        command="RANGE {value:.1f}", affects=("gain_db",),
    )  # fmt: skip
    gain_db = Setting(
        float, unit="dB", minimum=0, maximum=40, step=0.1, reply=Reply.ACK, query="GAIN?", command="GAIN {value:.1f}"
    )
    tilt_db = Setting(
        float, unit="dB", minimum=-10, maximum=10, step=0.1, reply=Reply.ACK, query="TILT?", command="TILT {value:.1f}"
    )
    bias_v = ChannelSetting(
        float, unit="V", minimum=0, maximum=5, step=0.01, channels=(1, 2), reply=Reply.ACK, query="BIAS{channel}?",
        command="BIAS{channel} {value:.2f}",
    )  # fmt: skip
    label = Setting(int, minimum=0, maximum=99, access="w", reply=Reply.ACK, command="LABEL {value}")
    light_on = Setting(bool, reply=Reply.ACK, query="LIGHT?", command="LIGHT {value:d}", restore=False)
    counts = Setting(int, access="r", query="COUNTS?", retry=False)


@contextmanager
def opened(on="emu", *, timeout_s=0.3):
    world = World(seed=1)
    with (
        serve_unit(EmulatedAmplifier(world), world, transport=on) as served,
        Amplifier(open_transport(served.url), timeout_s=timeout_s) as box,
    ):
        served.unit.heard.clear()
        yield box, served


def lose_power(box, served):
    """Let the unit lose its power; the next reading finds that out and brings unit and driver back in step."""
    served.faults.add(Fault.POWER_CYCLE, count=1)
    assert box.tilt_db is not None
    assert not served.faults.strikes(Fault.POWER_CYCLE)


# --- setting -------------------------------------------------------------------------------------------------------
def test_a_wrong_second_setting_sends_nothing():
    with opened() as (box, served):
        for wrong in (
            {"gain_db": 5, "bias_v": {1: 1, 2: 5.1}},
            {"gain_db": 5, "volume": 1},
            {"gain_db": 5, "counts": 1},
        ):
            with pytest.raises(ConfigurationError):
                box.configure(wrong)
        assert served.unit.heard == []


def test_a_refused_second_setting_leaves_the_first_and_says_which():
    with opened() as (box, served):
        with pytest.raises(CommandRefusedError, match=r"GAIN 30\.0") as refused:
            box.configure({"range_db": 20, "gain_db": 30, "tilt_db": -1})
        assert refused.value.command == "GAIN 30.0"
        assert served.unit.told == ["RANGE 20.0", "GAIN 30.0"]
        lose_power(box, served)
        assert served.unit.told == ["RANGE 20.0"]
        assert (box.range_db, box.gain_db) == (20.0, 0.0)


def test_a_value_that_the_unit_did_not_take_is_an_error_and_is_not_set_again():
    with opened() as (box, served):
        served.faults.add(Fault.STUCK_VALUE)
        with pytest.raises(UnitError, match=r"bias_v of channel 2 is 0\.0 after the unit was told 1\.5"):
            box.bias_v[2] = 1.5
        served.faults.clear()
        lose_power(box, served)
        assert served.unit.told == []


def test_what_is_set_comes_back_as_quantised_and_what_cannot_be_read_as_sent():
    with opened() as (box, _):
        got = box.configure({"gain_db": 3.14159, "bias_v": {2: 1.234}, "label": 7})
        assert got == {"gain_db": 3.1, "bias_v": {2: 1.23}, "label": 7}
        with pytest.raises(NotSupportedError, match="label"):
            box.label  # noqa: B018


@pytest.mark.parametrize("place", [("bias_v", None), ("bias_v", 3), ("gain_db", 1), ("volume", None)])
def test_a_place_that_is_none_is_not_asked_for(place):
    with opened() as (box, served):
        with pytest.raises(ConfigurationError):
            box.read_setting(*place)
        assert served.unit.heard == []


# --- lost answers --------------------------------------------------------------------------------------------------
@ON
@pytest.mark.parametrize(("setting", "question", "times"), [("counts", "COUNTS?", 1), ("tilt_db", "TILT?", 2)])
def test_what_may_not_be_asked_twice_is_asked_once(on, setting, question, times):
    with opened(on) as (box, served):
        served.faults.add(Fault.DROP, count=1)
        if times == 1:
            with pytest.raises(TransportTimeoutError):
                box.read_setting(setting)
        else:
            assert box.read_setting(setting) == 0.0
        assert served.unit.heard.count(question) == times
        assert box.counts == 42


def test_a_refusal_is_no_reason_to_ask_again():
    with opened() as (box, served):
        served.faults.add(Fault.NAK, count=1)
        with pytest.raises(CommandRefusedError):
            box.tilt_db  # noqa: B018
        assert served.unit.heard == ["TILT?"]


# --- after trouble -------------------------------------------------------------------------------------------------
@ON
def test_settings_that_still_hold_are_not_set_again_but_those_that_cannot_be_read_are(on):
    with opened(on) as (box, served):
        box.configure({"range_db": 30, "gain_db": 25.04, "bias_v": {2: 1.5}, "label": 7, "light_on": True})
        served.unit.heard.clear()
        served.faults.add(Fault.DISCONNECT, count=1)
        assert box.tilt_db == 0.0
        assert served.unit.told == ["LABEL 7"]
        assert box.light_on


@ON
def test_after_a_power_cycle_what_others_depend_on_is_set_first(on):
    with opened(on) as (box, served):
        box.configure({"gain_db": 5, "tilt_db": 4})
        box.configure({"bias_v": {2: 1.5, 1: 0.5}, "range_db": 30})
        box.configure({"tilt_db": 5, "gain_db": 25})
        box.tilt_db = 9
        lose_power(box, served)
        assert served.unit.told == ["RANGE 30.0", "GAIN 25.0", "TILT 9.0", "BIAS2 1.50", "BIAS1 0.50"]
        assert (box.range_db, box.gain_db, box.tilt_db, dict(box.bias_v)) == (30.0, 25.0, 9.0, {1: 0.5, 2: 1.5})


def test_what_a_setting_changed_beside_itself_is_restored_as_it_was_then():
    with opened() as (box, served):
        box.configure({"range_db": 30, "gain_db": 25})
        box.range_db = 8  # lowers the gain
        lose_power(box, served)
        assert served.unit.told == ["RANGE 8.0", "GAIN 8.0"]


def test_what_a_setting_might_have_changed_is_left_alone_if_it_was_never_set():
    with opened() as (box, served):
        box.range_db = 8
        lose_power(box, served)
        assert served.unit.told == ["RANGE 8.0"]


@ON
@pytest.mark.parametrize("identity", ["ACME,BX1,18,1.0", "ACME,BX1,17,1.1", "ACME,BX2,17,1.0"])
def test_another_unit_in_its_place_is_refused_and_nothing_is_set_on_it(on, identity, monkeypatch):
    with opened(on) as (box, served):
        box.configure({"range_db": 30, "label": 7, "light_on": True})
        usual = box.identify()
        monkeypatch.setattr(EmulatedAmplifier, "identity", identity)
        served.faults.add(Fault.POWER_CYCLE, count=1)
        for attempt in (lambda: box.tilt_db, box.identify, lambda: setattr(box, "tilt_db", 1.0), box.snapshot):
            with pytest.raises(UnitError, match=r"not to BX1 17 1\.0") as raised:
                attempt()
            assert identity.split(",")[2] in str(raised.value)
            assert raised.value.remedy == "open the unit again"
        assert set(served.unit.heard) == {"*IDN?"}
        monkeypatch.undo()
        assert box.identify() == usual == UnitInfo("ACME", "BX1", "17", "1.0")
        assert served.unit.told == ["RANGE 30.0", "LABEL 7"]


@ON
def test_something_else_in_its_place_is_refused(on):
    with opened(on) as (box, served):
        box.configure({"range_db": 30, "label": 7})
        served.faults.add(Fault.WRONG_IDENTITY)
        served.faults.add(Fault.POWER_CYCLE, count=1)
        for _ in range(2):
            with pytest.raises((UnitError, TransportTimeoutError)):
                box.tilt_db  # noqa: B018
        assert served.unit.told == []


def test_a_closed_unit_says_so():
    with opened() as (box, served):
        box.close()
        for call in (lambda: box.tilt_db, box.identify, box.read_status, lambda: box.configure({"gain_db": 1})):
            with pytest.raises(TransportClosedError):
                call()
        assert served.unit.heard == []


# --- snapshots -----------------------------------------------------------------------------------------------------
def test_a_snapshot_sets_what_it_holds_but_for_readings_and_light():
    with opened() as (box, served):
        box.configure({"range_db": 30, "gain_db": 25, "tilt_db": 9, "bias_v": {1: 0.5, 2: 1.5}, "light_on": True})
        snapshot = json.loads(json.dumps(box.snapshot()))
        assert snapshot["identity"] == {"vendor": "ACME", "model": "BX1", "serial_number": "17", "firmware": "1.0"}
        assert snapshot["settings"]["bias_v"] == {"1": 0.5, "2": 1.5}
        assert "label" not in snapshot["settings"]
    with opened() as (box, served):
        shuffled = dict(sorted(snapshot["settings"].items(), reverse=True))
        restored = box.restore({"settings": shuffled})
        assert list(restored) == ["range_db", "gain_db", "tilt_db", "bias_v"]
        assert served.unit.told == ["RANGE 30.0", "GAIN 25.0", "TILT 9.0", "BIAS1 0.50", "BIAS2 1.50"]
        assert not box.light_on


@pytest.mark.parametrize(
    "snapshot",
    [
        {},
        {"settings": None},
        {"settings": [1]},
        {"settings": {"gain_db": 5, "volume": 3}},
        {"settings": {"gain_db": "5"}},
    ],
)
def test_what_is_no_snapshot_of_such_a_unit_sends_nothing(snapshot):
    with opened() as (box, served):
        with pytest.raises(ConfigurationError):
            box.restore(snapshot)
        assert served.unit.heard == []


def test_status_is_every_number_that_can_only_be_read():
    with opened() as (box, served):
        assert box.read_status().monitors == {"counts": 42.0}
        served.faults.add(Fault.GARBAGE)
        with pytest.raises((WireFormatError, TransportTimeoutError)):
            box.read_status()


# --- what must not come back by itself, of every installed driver -------------------------------------------------------
LIGHT_AND_THE_LIKE = {
    "agilent-8156a": ("shutter_open", True, "wavelength_nm", b":OUTP:STAT "),
    "agilent-816x": ("shutter_open", True, "wavelength_nm", b":OUTP1:CHAN1:STAT "),
    "sfifteen-ekpqc-receiver": ("polarization", 3, "sensor_threshold", b"SETPOL"),
    "sfifteen-ekpqc-sender": ("polarization", 3, "h_offset_deg", b"SETPOL"),
    "single-quantum-websq": ("detectors_enabled", True, "measurement_period_ms", b'"command": "DetectorEnable"'),
    "thorlabs-itc4000": ("laser_on", True, "laser_current_limit_a", b"OUTP "),
}
IS_ON = {
    "agilent-8156a": lambda unit: unit.filter.shutter_open,
    "agilent-816x": lambda unit: any(each.shutter_open for each in unit.filters.values()),
    "single-quantum-websq": lambda unit: unit.enabled,
    "thorlabs-itc4000": lambda unit: unit.laser_on,
}


@contextmanager
def opened_by_name(name):
    """An open unit of an installed driver, what serves it, and all bytes that it is sent."""
    world = World(seed=1, clock=VirtualClock(pace=None))
    sent = bytearray()
    with serve_unit(make_unit(name, world), world, transport="emu") as served:
        feed = served.line.feed
        served.line.feed = lambda data: (sent.extend(data), feed(data))
        with load_driver(name)(open_transport(served.url), timeout_s=0.5) as unit:
            yield unit, served, sent


def test_the_list_is_whole():
    found = {
        (name, setting.name)
        for name in installed_drivers()
        for setting in settings_of(load_driver(name)).values()
        if setting.writable and not setting.restore
    }
    ours = {(name, setting) for name, setting in found if installed_drivers()[name].value.startswith("qkdhw.")}
    assert ours == {(name, setting) for name, (setting, *_) in LIGHT_AND_THE_LIKE.items()}


@pytest.mark.parametrize("name", LIGHT_AND_THE_LIKE)
def test_it_is_not_set_again_after_a_power_cycle_nor_by_a_snapshot(name):
    setting, on, other, command = LIGHT_AND_THE_LIKE[name]
    with opened_by_name(name) as (unit, served, sent):
        channel = unit.channels_of(other)[0] if unit.channels_of(other) else None
        declared = settings_of(type(unit))[other]
        now = unit.read_setting(other, channel)
        another = type(now)(now + 1 if declared.kind is int else now * 0.99)
        unit.configure({other: another, setting: on})
        snapshot = unit.snapshot()
        assert command in sent
        if name in IS_ON:
            assert IS_ON[name](served.unit)
        kept = unit.read_setting(other, channel)
        sent.clear()
        served.faults.add(Fault.POWER_CYCLE, count=1)
        unit.identify()
        assert not served.faults.strikes(Fault.POWER_CYCLE)
        assert unit.read_setting(other, channel) == kept != now
        unit.restore(snapshot)
        assert command not in sent
        if name in IS_ON:
            assert not IS_ON[name](served.unit)


@pytest.mark.parametrize(
    ("name", "begin", "state", "off"),
    [
        (
            "sfifteen-ekpqc-sender",
            "enable_output",
            lambda unit: bool(unit.beam.at(unit.world.now_s(), intercepted=False)),
            False,
        ),
        ("generic-tx", "arm start", lambda unit: unit.receive(b"STAT?\n").split()[1], b"state=idle"),
        ("generic-rx", "arm start", lambda unit: unit.receive(b"STAT?\n").split()[1], b"state=idle"),
    ],
)
def test_what_was_started_is_not_started_again_after_a_power_cycle(name, begin, state, off):
    with opened_by_name(name) as (unit, served, _):
        assert state(served.unit) == off
        for call in begin.split():
            getattr(unit, call)()
        assert state(served.unit) != off
        served.faults.add(Fault.POWER_CYCLE, count=1)
        unit.identify()
        assert state(served.unit) == off
        assert unit.read_status().state == "idle"

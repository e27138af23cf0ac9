"""What `qkdhw devices new` copies: drivers that conform as they are, and do what their kind is for."""

from contextlib import contextmanager

import numpy as np
import pytest

from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    TransportTimeoutError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.interfaces import Attenuator, PhotonSource, PositionerStage, TimeTagger, Unit
from qkdhw.model import DetectionBlock
from qkdhw.transport import open_transport
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Verdict, run_suite
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.templates.attenuator import AcmeVa2, EmulatedAcmeVa2
from qkdhw_emulators.templates.other import AcmeSw4, EmulatedAcmeSw4
from qkdhw_emulators.templates.source import AcmeLs4, EmulatedAcmeLs4
from qkdhw_emulators.templates.stage import AcmeMs1, EmulatedAcmeMs1
from qkdhw_emulators.templates.time_tagger import AcmeRx9, EmulatedAcmeRx9
from qkdhw_emulators.world import VirtualClock, World

NO_EVENTS = {"stream", "event times", "stream context", "wrong state", "overflow", "faults in a stream"}
NOT_APPLICABLE = {
    AcmeRx9: set(),
    AcmeVa2: NO_EVENTS,
    AcmeLs4: NO_EVENTS | {"late replies"},  # it has one setting to read
    AcmeMs1: NO_EVENTS | {"late replies"},
    AcmeSw4: NO_EVENTS | {"late replies"},
}
EMULATED = {
    AcmeRx9: EmulatedAcmeRx9,
    AcmeVa2: EmulatedAcmeVa2,
    AcmeLs4: EmulatedAcmeLs4,
    AcmeMs1: EmulatedAcmeMs1,
    AcmeSw4: EmulatedAcmeSw4,
}


@contextmanager
def opened(driver, *, on="emu", timeout_s=0.5, pace=None):
    """An open unit and what serves it."""
    world = World(seed=1, clock=VirtualClock(pace=pace))
    with serve_unit(EMULATED[driver](world), world, transport=on) as served:
        link = open_transport(served.url, timeout_s=timeout_s)
        with driver(link, timeout_s=timeout_s) as unit:
            yield unit, served


@pytest.mark.parametrize("driver", EMULATED)
def test_it_conforms_as_it_is(driver):
    world = World(seed=1)
    with serve_unit(EMULATED[driver](world), world, transport="emu") as served:
        outcomes = list(run_suite(Subject("template", served.url, driver, timeout_s=0.2, served=served, rounds=20)))
    assert {outcome.check: outcome.detail for outcome in outcomes if outcome.verdict is Verdict.FAILED} == {}
    skipped = {outcome.check for outcome in outcomes if outcome.verdict is Verdict.NOT_APPLICABLE}
    assert skipped - NOT_APPLICABLE[driver] <= {
        "transmitter states",
        "outputs stay off",
        "another unit",
        "lost settings",
    }


# --- time tagger ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("on", ["emu", "pty", "tcp"])
def test_every_event_of_the_tagger_comes_once_and_in_order(on):
    direct = EmulatedAcmeRx9(World(seed=1))
    direct.receive(b"RUN 1\n")
    header, _, words = direct.receive(b"EVT? 1000\n").partition(b"\n")
    assert header == b"1000 0"
    words = np.frombuffer(words, "<u8")
    with opened(AcmeRx9, on=on) as (unit, _):
        assert isinstance(unit, TimeTagger)
        unit.start()
        block = unit.read_block(5000)
        unit.stop()
    assert block.time_ticks.tolist() == (words >> 2).tolist()
    assert block.channel.tolist() == ((words & 3) + 1).tolist()
    assert set(block.channel.tolist()) == {1, 2, 3, 4}
    assert len(block) / (int(block.time_ticks[-1]) * 81e-12) == pytest.approx(1e5, rel=0.2)


def test_the_tagger_tells_what_was_lost():
    with opened(AcmeRx9) as (unit, served):
        with unit.stream(max_events=1000, buffer_events=100_000) as events:
            assert next(events).missed == 0
            served.faults.add(Fault.OVERFLOW)
            while events.counts.missed == 0:
                next(events)
        assert events.counts.missed >= 500
        assert unit.read_status().state == "idle"


def test_a_dark_tagger_sends_nothing_until_the_deadline():
    with opened(AcmeRx9) as (unit, served):
        served.world.set_condition("light_rate_hz", 0.0)
        unit.start()
        assert len(unit.read_block(1000, timeout_s=0.05)) == 0


def test_a_tagger_that_does_not_run_refuses_and_is_usable_afterwards():
    with opened(AcmeRx9) as (unit, _):
        with pytest.raises(CommandRefusedError, match=r"EVT\?") as caught:
            unit.read_block(1000)
        assert caught.value.command == "EVT? 1000"
        assert caught.value.code == ""
        unit.start()
        with pytest.raises(UnitStateError, match="runs already"):
            unit.start()
        assert len(unit.read_block(1000)) == 1000


def test_leaving_stops_what_was_started_here_and_nothing_else():
    with opened(AcmeRx9) as (unit, served):
        served.unit.receive(b"RUN 1\n")
        unit.close()
        assert served.unit.values["RUN"] == 1
        with AcmeRx9(open_transport(served.url)) as again:
            again.configure({"running": True})
        assert served.unit.values["RUN"] == 0


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"many\n", WireFormatError),
        (b"12345 0\n", WireFormatError),
        (b"-1 0\n", WireFormatError),
        (b"2\n", WireFormatError),
        (b"2 0\n" + bytes(15), TransportTimeoutError),
        (b"11 0\n" + bytes(88), WireFormatError),
    ],
)
def test_a_tagger_may_lie(answer, error):
    """Eleven events where ten were asked for, half an event, counts that are none."""
    with opened(AcmeRx9, timeout_s=0.2) as (unit, served):
        unit.start()
        honest = served.unit.carry_out
        served.unit.carry_out = lambda command, rest: answer if command == "EVT?" else honest(command, rest)
        with pytest.raises(error):
            unit.read_block(10, timeout_s=0.05)
        served.unit.carry_out = honest
        assert isinstance(unit.read_block(10), DetectionBlock)


def test_an_answer_that_is_neither_yes_nor_no():
    with opened(AcmeRx9) as (unit, served):
        honest = served.unit.carry_out
        served.unit.carry_out = lambda command, rest: b"FINE\n" if command == "RUN" else honest(command, rest)
        with pytest.raises(WireFormatError, match="FINE"):
            unit.configure({"running": True})


# --- attenuator, source, stage, other ----------------------------------------------------------------------------------
def test_the_attenuator_says_what_it_then_has():
    with opened(AcmeVa2) as (unit, _):
        assert isinstance(unit, Attenuator)
        assert unit.set_attenuation_db(3.02) == pytest.approx(3.0)
        assert unit.read_attenuation_db() == pytest.approx(3.0)
        with pytest.raises(ConfigurationError):
            unit.set_attenuation_db(61.0)


def test_the_source_is_dark_while_its_interlock_is_open():
    with opened(AcmeLs4) as (unit, served):
        assert isinstance(unit, PhotonSource)
        unit.enable_output()
        assert unit.read_output_enabled()
        served.world.set_condition("interlock_closed", 0.0)
        assert not unit.read_output_enabled()
        with pytest.raises(UnitStateError, match="keeps its light off"):
            unit.enable_output()
        served.world.set_condition("interlock_closed", 1.0)
        assert not unit.read_output_enabled()
        unit.enable_output()
        unit.disable_output()
        assert not unit.read_output_enabled()
        assert unit.read_status().monitors["temperature_c"] == 25.0


def test_light_goes_off_with_who_switched_it_on_and_not_with_who_looked():
    with opened(AcmeLs4) as (unit, served):
        unit.enable_output()
        with AcmeLs4(open_transport(served.url)) as visitor:
            assert visitor.read_output_enabled()
        assert served.unit.values["OUT"] == 1
        unit.close()
        assert served.unit.values["OUT"] == 0


def test_light_does_not_come_back_by_itself_after_a_power_cut():
    with opened(AcmeLs4, on="tcp") as (unit, served):
        unit.power_mw = 5.0
        unit.enable_output()
        served.faults.add(Fault.POWER_CYCLE, count=1)
        assert unit.power_mw == 5.0
        assert not unit.read_output_enabled()


@pytest.mark.parametrize("pace", [None, 100.0])
def test_the_stage_moves_when_it_knows_where_it_is(pace):
    with opened(AcmeMs1, pace=pace) as (unit, served):
        assert isinstance(unit, PositionerStage)
        assert unit.read_position() == 1.5
        with pytest.raises(UnitStateError, match="where it is"):
            unit.move_to(10.0)
        unit.home()
        assert unit.read_position() == 0.0
        before_s = served.world.now_s()
        assert unit.move_to(20.0004) == 20.0
        assert served.world.now_s() - before_s >= 2.0  # 20 mm at 10 mm/s
        unit.speed_percent = 50
        before_s = served.world.now_s()
        assert unit.move_to(15.0) == 15.0
        assert served.world.now_s() - before_s >= 1.0
        with pytest.raises(ConfigurationError):
            unit.move_to(50.1)


def test_the_stage_is_on_its_way_at_the_deadline():
    with opened(AcmeMs1, pace=0.01) as (unit, served):
        with pytest.raises(UnitStateError, match="still moves"):
            unit.home(timeout_s=0.05)
        served.world.clock.advance(0.05)
        assert 0.5 < unit.read_position() < 1.5
        assert unit.moving


def test_a_unit_of_a_kind_of_its_own_has_its_own_methods():
    with opened(AcmeSw4) as (unit, _):
        assert isinstance(unit, Unit)
        assert unit.connect(3) == 3
        assert unit.route == 3
        with pytest.raises(ConfigurationError):
            unit.connect(5)

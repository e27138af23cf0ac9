"""Drivers of the templates' units, each with a mistake that their authors could make: the suite finds it and names it."""

import re
from contextlib import suppress
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest

from qkdhw.drivers.agilent_attenuator import Agilent8156A
from qkdhw.drivers.setting import Reply, Setting
from qkdhw.drivers.text_instrument import TextInstrument
from qkdhw.drivers.thorlabs_itc4000 import ThorlabsItc4000
from qkdhw.errors import TransportTimeoutError, UnitError
from qkdhw.transport import open_transport
from qkdhw_emulators.conformance.report import html_report
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Verdict, report_of, run_suite
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.templates.time_tagger import AcmeRx9, EmulatedAcmeRx9
from qkdhw_emulators.units.agilent_attenuator import EmulatedAgilent8156A
from qkdhw_emulators.units.table_unit import Entry, TableUnit
from qkdhw_emulators.units.thorlabs_itc4000 import EmulatedThorlabsItc4000
from qkdhw_emulators.world import World

TIMEOUT_S = 0.2


def said_of(driver, emulator, *checks):
    """Verdict and detail of each check."""
    world = World(seed=1)
    with serve_unit(emulator(world), world, transport="emu") as served:
        subject = Subject("broken", served.url, driver, timeout_s=TIMEOUT_S, served=served, rounds=5)
        return {outcome.check: (outcome.verdict, outcome.detail) for outcome in run_suite(subject, only=checks)}


class Halved(AcmeRx9):
    """Takes one bit of the channel for time."""

    def _fetch_events(self, max_events):
        block = super()._fetch_events(max_events)
        block.time_ticks[:] = block.time_ticks >> 1
        return block


class OffByOne(AcmeRx9):
    """Counts inputs from 0."""

    def _fetch_events(self, max_events):
        block = super()._fetch_events(max_events)
        block.channel[:] -= np.uint8(1)
        return block


class WrongTick(AcmeRx9):
    tick_ps = Fraction(82)


class InexactTick(AcmeRx9):
    tick_ps = 81.0


class Swallows(AcmeRx9):
    """Loses an event in a hundred without a word."""

    def _fetch_events(self, max_events):
        block = super()._fetch_events(max_events)
        kept = np.arange(len(block)) % 100 != 50
        return type(block)(block.time_ticks[kept], block.channel[kept], block.kind[kept], self.tick_ps)


@pytest.mark.parametrize(
    ("driver", "check", "said"),
    [
        (Halved, "event times", "event 0 is at"),
        (OffByOne, "event times", "of input"),
        (WrongTick, "event times", "event 0 is at"),
        (InexactTick, "stream", "tick_ps is a Fraction, not 81.0"),
        (Swallows, "event times", "event 50 is at"),
    ],
)
def test_a_tagger_with_wrong_events_is_found_out(driver, check, said):
    assert said_of(AcmeRx9, EmulatedAcmeRx9, check)[check] == (Verdict.PASSED, "")
    verdict, detail = said_of(driver, EmulatedAcmeRx9, check)[check]
    assert verdict is Verdict.FAILED
    assert said in detail


class Patient(AcmeRx9):
    """Makes up events in place of those whose answer was cut short."""

    def _fetch_events(self, max_events):
        try:
            return super()._fetch_events(max_events)
        except TransportTimeoutError:
            self._link.discard_input()
            whole = super()._fetch_events(max_events)
            whole.time_ticks[0] -= 1
            return whole


def test_events_made_up_after_a_fault_are_found_out():
    checks = ("faults in a stream",)
    assert said_of(AcmeRx9, EmulatedAcmeRx9, *checks)[checks[0]][0] is Verdict.PASSED
    verdict, detail = said_of(Patient, EmulatedAcmeRx9, *checks)[checks[0]]
    assert (verdict, "with truncate" in detail) == (Verdict.FAILED, True)


class EmulatedOven(TableUnit):
    """Takes 0 to 80."""

    identity = "Acme,OV1,0042,1.0"
    table: ClassVar[dict[str, Entry]] = {"TEM": Entry(0, 80, at_power_up=25), "FAN": Entry(0, 9000, at_power_up=1200)}


class Oven(TextInstrument):
    """An oven without a mistake."""

    vendor, model, unit_kind = "Acme", "OV1", "oven"
    capabilities = frozenset({"Unit"})
    idn_pattern = "^Acme,OV1,"
    done, refusal = "OK", "ERR"
    heater_c = Setting(
        float, unit="°C", minimum=0, maximum=80, step=1, query="TEM?", command="TEM {value}", reply=Reply.ACK,
        doc="Temperature.",
    )  # fmt: skip


def heater(**changed):
    """The oven's setting with something else in it."""
    given = {
        "unit": "°C", "minimum": 0, "maximum": 80, "step": 1, "query": "TEM?", "command": "TEM {value}",
        "reply": Reply.ACK, "doc": "Temperature.",
    }  # fmt: skip
    return Setting(float, **(given | changed))


class TooWide(Oven):
    heater_c = heater(maximum=100)


class TooLow(Oven):
    heater_c = heater(minimum=-10)


class Admitted(Oven):
    heater_c = heater(maximum=100, range_depends=True)


class AllRefused(Oven):
    heater_c = heater(minimum=100, maximum=120, range_depends=True)
    fan_percent = Setting(
        float, unit="%", minimum=0, maximum=9000, step=1, query="FAN?", command="FAN {value}", doc="Fan."
    )


class NoMaximum(Oven):
    heater_c = heater(maximum=None)


class Unnamed(Oven):
    heater_c = None
    heater = heater()


class WrongQuery(Oven):
    heater_c = heater(query="FAN?")


class Invented(Oven):
    capabilities = frozenset({"OpticalSwitch"})


class Boastful(Oven):
    capabilities = frozenset({"Attenuator"})


@pytest.mark.parametrize(
    ("driver", "check", "said"),
    [
        (TooWide, "settings round trip", "heater_c: 100.0 is allowed by the driver and refused by the unit: lower max"),
        (TooLow, "settings round trip", "heater_c: -10.0 is allowed by the driver and refused by the unit: raise min"),
        (AllRefused, "settings round trip", "heater_c was read by 'TEM?' as 25.0, not as a number from 100 to 120 °C"),
        (NoMaximum, "description", "heater_c is a number that can be set: declare its maximum"),
        (Unnamed, "description", "rename 'heater' to 'heater_c'"),
        (WrongQuery, "settings round trip", "heater_c was read by 'FAN?' as 1200.0, not as a number from 0 to 80 °C"),
        (Invented, "capabilities", "'OpticalSwitch' is no capability; there are Attenuator, ClockReference, Counter"),
        (Invented, "capabilities", "for a unit of another kind write {'Unit'}"),
        (Boastful, "capabilities", "the driver lacks something that Attenuator asks for"),
    ],
)
def test_what_is_wrong_is_said(driver, check, said):
    assert said_of(Oven, EmulatedOven, check)[check] == (Verdict.PASSED, "")
    verdict, detail = said_of(driver, EmulatedOven, check)[check]
    assert verdict is Verdict.FAILED
    assert said in detail


def test_a_range_that_depends_on_the_unit_is_declared():
    check = "settings round trip"
    assert said_of(Admitted, EmulatedOven, check)[check] == (Verdict.PASSED, "")


class Misnamed(Oven):
    idn_pattern = "^Acme,OVEN,"


class OtherLineEnd(Oven):
    reply_end = b"\r"


def test_who_answers_instead_is_said():
    world = World(seed=1)
    with serve_unit(EmulatedOven(world), world, transport="emu") as served:
        with pytest.raises(
            UnitError, match=r"answered \*IDN\? by 'Acme,OV1,0042,1.0', which is not the Acme OV1"
        ) as got:
            Misnamed(open_transport(served.url), timeout_s=0.1)
        assert "idn_pattern" in got.value.remedy
        with pytest.raises(TransportTimeoutError, match=r"sent 18 bytes and no end of line within 0\.1 s"):
            OtherLineEnd(open_transport(served.url), timeout_s=0.1)
        served.faults.add(Fault.SILENT)
        with pytest.raises(TransportTimeoutError, match=r"within 0\.1 s"):
            Misnamed(open_transport(served.url), timeout_s=0.1)


def test_an_old_answer_after_a_fault_is_not_taken_for_another_unit():
    world = World(seed=1)
    with (
        serve_unit(EmulatedOven(world), world, transport="pty") as served,
        Oven(open_transport(served.url), timeout_s=0.2) as oven,
    ):
        served.faults.add(Fault.LATE_REPLY, count=1, seconds=0.3)
        with pytest.raises(TransportTimeoutError):
            oven.configure({"heater_c": 26.0})
        served.faults.add(Fault.SILENT)
        with pytest.raises(TransportTimeoutError):
            oven.identify()
        served.faults.clear()
        assert oven.heater_c == 26.0


class Crashing(Oven):
    def read_status(self):
        raise KeyError("status")


class EmulatedCrashing(EmulatedOven):
    def carry_out(self, command, argument):
        return super().carry_out(command, argument) if command != "TEM?" else {}["TEM?"]


def test_an_error_of_no_known_type_is_placed():
    _, detail = said_of(Crashing, EmulatedOven, "status")["status"]
    assert "an error of no known type, KeyError: 'status', " in detail
    assert re.search(r"test_broken_drivers\.py:[0-9]+, in the driver$", detail)
    _, detail = said_of(Oven, EmulatedCrashing, "settings round trip")["settings round trip"]
    assert re.search(r"test_broken_drivers\.py:[0-9]+, in the emulator$", detail)


def test_one_cause_is_reported_once():
    outcomes = said_of(Misnamed, EmulatedOven)
    failed = {check: detail for check, (verdict, detail) in outcomes.items() if verdict is Verdict.FAILED}
    assert list(failed) == ["identity"]
    assert "not the Acme OV1" in failed["identity"]
    assert outcomes["description"] == (Verdict.PASSED, "")
    others = set(outcomes) - {"identity", "description"}
    assert {outcomes[each] for each in others} == {(Verdict.NOT_TRIED, "the unit cannot be opened, see identity")}


def test_what_depends_on_settings_is_not_tried_when_they_do_not_work():
    outcomes = said_of(WrongQuery, EmulatedOven)
    assert [check for check, (verdict, _) in outcomes.items() if verdict is Verdict.FAILED] == ["settings round trip"]
    assert outcomes["reconnect"] == (Verdict.NOT_TRIED, "settings do not work, see settings round trip")
    assert outcomes["threads"] == (Verdict.PASSED, "")


def test_the_report_says_which_unit_it_was_and_failures_first():
    world = World(seed=7)
    with serve_unit(EmulatedOven(world), world, transport="tcp") as served:
        subject = Subject("acme-ov1", served.url, Crashing, timeout_s=TIMEOUT_S, served=served, rounds=5)
        report = report_of(subject, list(run_suite(subject)))
        real = Subject("acme-ov1", served.url, Oven, timeout_s=TIMEOUT_S, rounds=5)
        of_a_real_one = {outcome.check: outcome.verdict for outcome in run_suite(real)}
    assert report["unit"] == {"vendor": "Acme", "model": "OV1", "serial_number": "0042", "firmware": "1.0"}
    assert (report["transport"], report["rounds"], report["seed"]) == ("tcp", 5, 7)
    page = html_report(report)
    assert page.index("<dd>0042</dd>") < page.index("<table>")
    assert page.index('<td class="failed">failed') < page.index('<td class="passed">passed')
    faults = ("line faults", "faults while setting", "unit faults", "stuck value", "late replies", "reconnect")
    assert {of_a_real_one[each] for each in faults} == {Verdict.NOT_TRIED}
    assert of_a_real_one["settings round trip"] is Verdict.PASSED


class LightComesBack(ThorlabsItc4000):
    """Sets the light again as any other setting."""

    laser_on = Setting(bool, query="OUTP?", command="OUTP {value:d}", restore=True, doc="Whether there is light.")


class TakesAnyUnit(Agilent8156A):
    """Does not mind another unit after a reconnect."""

    def _recover(self):
        self._info = None
        super()._recover()


class Trusting(Agilent8156A):
    """Sets again what was lost, and never looks what came of it."""

    def _recover(self):
        applied, self._applied = self._applied, {}
        super()._recover()
        self._applied = applied
        for (name, channel), value in applied.items():
            self._write_value(self._setting(name), channel, value)


class Stubborn(Agilent8156A):
    """Asks a silent unit again and again, whatever it was told about time."""

    def _retried(self, exchange, *, retry=True):
        for _ in range(250):
            with suppress(TransportTimeoutError):
                return super()._retried(exchange, retry=False)
        return super()._retried(exchange, retry=retry)


@pytest.mark.parametrize(
    ("right", "broken", "emulator", "check", "said"),
    [
        (
            ThorlabsItc4000,
            LightComesBack,
            EmulatedThorlabsItc4000,
            "outputs stay off",
            "the light is off after a power cut",
        ),
        (Agilent8156A, TakesAnyUnit, EmulatedAgilent8156A, "another unit", "another firmware"),
        (Agilent8156A, Trusting, EmulatedAgilent8156A, "lost settings", "could not be set again"),
        (Agilent8156A, Stubborn, EmulatedAgilent8156A, "waits end", "of a silent unit ends"),
    ],
)
def test_what_must_never_happen_by_itself_is_found_out(right, broken, emulator, check, said):
    assert said_of(right, emulator, check)[check] == (Verdict.PASSED, "")
    verdict, detail = said_of(broken, emulator, check)[check]
    assert verdict is Verdict.FAILED
    assert said in detail

"""Every driver conforms on its emulator, on every transport that it supports; and the suite finds broken drivers."""

from importlib.metadata import entry_points

import pytest

from qkdhw.drivers import load_driver
from qkdhw.drivers.agilent_attenuator import Agilent8156A
from qkdhw.drivers.instrument import Instrument
from qkdhw.drivers.text_instrument import TextInstrument
from qkdhw.errors import ConfigurationError
from qkdhw_emulators.conformance.carriers import carriers, emulated_names, quick_world
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Verdict, report_of, run_suite
from qkdhw_emulators.in_process import emulator_class, make_unit
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.world import World

TIMEOUT_S = 0.3
CASES = [(name, on) for name in emulated_names() for on in carriers(name)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("name", "on"), CASES)
def test_conforms(name, on):
    world = quick_world(name)
    with serve_unit(make_unit(name, world), world, transport=on) as served:
        subject = Subject(name, served.url, load_driver(name), timeout_s=TIMEOUT_S, served=served, rounds=20)
        outcomes = list(run_suite(subject))
    failed = {outcome.check: outcome.detail for outcome in outcomes if outcome.verdict is Verdict.FAILED}
    assert failed == {}
    assert report_of(subject, outcomes)["conforms"]


def verdicts_of(driver, *checks):
    """What the suite says of a driver of the attenuator, by check."""
    world = World(seed=1)
    with serve_unit(make_unit("agilent-8156a", world), world, transport="tcp") as served:
        subject = Subject("broken", served.url, driver, timeout_s=TIMEOUT_S, served=served, rounds=20)
        return {outcome.check: outcome.verdict for outcome in run_suite(subject, only=checks)}


class Forgetful(Agilent8156A):
    """Does not read back."""

    def _apply(self, setting, channel, value):
        self._write_value(setting, channel, value)
        return value


class Unchecked(Agilent8156A):
    """Sends whatever it is told."""

    def _plan(self, settings):
        return [(self._setting(name), None, value) for name, value in settings.items() if name != "no_such_setting"]


class Unlocked(Agilent8156A):
    """Holds no lock around question and answer."""

    def _retried(self, exchange, *, retry=True):
        return exchange()


class Stale(Agilent8156A):
    """Takes what comes for the answer, also after a time-out."""

    def _recover(self):
        pass

    def _ask(self, command, *, timeout_s=None):
        self._write_line(command)
        return self._read_line(self._timeout_s)

    def _retried(self, exchange, *, retry=True):
        with self._link.exchange(self._recover):
            return exchange()


class Amnesiac(Agilent8156A):
    """Does not set again what the unit forgot."""

    def _recover(self):
        self._applied.clear()
        super()._recover()


class Boastful(Agilent8156A):
    """Says that it can do what it cannot."""

    capabilities = frozenset({"Attenuator", "TimeTagger"})


class Leaky(Agilent8156A):
    """Lets errors of no known type out."""

    def read_status(self):
        raise KeyError("status")


@pytest.mark.parametrize(
    ("driver", "check"),
    [
        (Forgetful, "stuck value"),
        (Unchecked, "range errors"),
        (Unlocked, "threads"),
        (Stale, "late replies"),
        (Amnesiac, "reconnect"),
        (Boastful, "capabilities"),
        (Leaky, "status"),
    ],
)
def test_a_broken_driver_is_found_out(driver, check):
    assert verdicts_of(Agilent8156A, check) == {check: Verdict.PASSED}
    assert verdicts_of(driver, check) == {check: Verdict.FAILED}


def test_every_shipped_driver_has_an_emulator_or_a_vendors_library():
    without = {point.name for point in entry_points(group="qkdhw.drivers")} - set(emulated_names())
    assert without == {"swabian-time-tagger", "picoquant-harp"}


def test_an_emulator_that_is_not_there():
    with pytest.raises(ConfigurationError, match="acme-none"):
        emulator_class("acme-none")


def test_bases_are_no_drivers():
    assert not Instrument.capabilities
    assert not TextInstrument.capabilities

"""Drivers of the templates' units, each with a mistake that their authors could make: the suite finds it and names it."""

from fractions import Fraction

import numpy as np
import pytest

from qkdhw.errors import TransportTimeoutError
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Verdict, run_suite
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.templates.time_tagger import AcmeRx9, EmulatedAcmeRx9
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

"""The Acme RX9: its driver against its emulator."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from acme_rx9 import EmulatedAcmeRx9

from qkdhw import open_unit
from qkdhw.drivers import load_driver
from qkdhw_emulators.conformance.subject import Subject
from qkdhw_emulators.conformance.suite import Verdict, run_suite
from qkdhw_emulators.serve import ServedUnit
from qkdhw_emulators.world import World

NAME = "acme-rx9"
DIALOGUE = b"*IDN?\nTHR1 0.5\nTHR1?\nRUN 1\nEVT? 9\nRUN 0\nWHAT?\n"


@pytest.mark.parametrize("on", ["emu", "pty", "tcp"])
def test_it_conforms(emulated_unit: Callable[..., ServedUnit], on: str) -> None:
    served = emulated_unit(NAME, on=on)
    subject = Subject(NAME, served.url, load_driver(NAME), timeout_s=0.3, served=served, rounds=20)
    assert [outcome for outcome in run_suite(subject) if outcome.verdict is Verdict.FAILED] == []


def test_a_lost_answer_is_asked_for_again(
    emulated_unit: Callable[..., ServedUnit], faulty: Callable[..., AbstractContextManager[None]]
) -> None:
    served = emulated_unit(NAME)
    with open_unit(NAME, served.url, timeout_s=0.5) as unit, faulty(served, "drop:count=1"):
        assert unit.identify().model == "RX9"


def test_the_emulator_answers_the_same_to_bytes_one_by_one() -> None:
    whole, pieces = EmulatedAcmeRx9(World(seed=1)), EmulatedAcmeRx9(World(seed=1))
    assert whole.receive(DIALOGUE) == b"".join(pieces.receive(bytes([byte])) for byte in DIALOGUE)

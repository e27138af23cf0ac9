"""Faults over all units, transports and states: right data or a typed error, then all is well again; 2,000 here.

The long run by hand:  QKDHW_FAULTS=100000 QKDHW_LATE_REPLIES=1200 pytest tests/faults/test_fault_campaign.py -s
"""

import os
import threading
from collections import Counter
from contextlib import suppress
from functools import partial

import pytest

from qkdhw import open_unit
from qkdhw.drivers.agilent_attenuator import Agilent8156A
from qkdhw.errors import TransportError, UnitError
from qkdhw.transport import open_transport
from qkdhw_emulators.conformance.campaign import run_campaign
from qkdhw_emulators.conformance.carriers import carriers, emulated_names
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.world import World

N_FAULTS = int(os.environ.get("QKDHW_FAULTS", "2000"))
N_HAMMER = int(os.environ.get("QKDHW_EXCHANGES", "10000"))
N_LATE = int(os.environ.get("QKDHW_LATE_REPLIES", "60"))
LIMITS_S = (0, 0) if "QKDHW_FAULTS" in os.environ or "QKDHW_LATE_REPLIES" in os.environ else (300, 600)
N_SHARES = 4
N_THREADS = 8
# One unit for each kind of transport; all of them are asked for settings whose values differ.
CARRIERS = [
    ("agilent-8156a", "emu"), ("agilent-8156a", "tcp"), ("agilent-8156a", "pty"), ("agilent-8156a", "hislip"),
    ("agilent-8156a", "vxi11"), ("oz-epc400", "rfc2217"), ("thorlabs-itc4000", "usbtmc"), ("idq-id900", "zmq"),
    ("cqt-fx2", "usb"),
]  # fmt: skip


def places():
    return [(name, on) for name in emulated_names() for on in carriers(name)]


@pytest.mark.slow
@pytest.mark.timeout(LIMITS_S[1])
@pytest.mark.parametrize("share", range(N_SHARES))
def test_faults_give_right_data_or_typed_errors(share):
    mine = places()[share::N_SHARES]
    tally = run_campaign(mine, n_faults=N_FAULTS // N_SHARES, seed=share, timeout_s=0.1)
    print(
        f"\n{tally.faults} faults: {tally.right} right, {tally.typed} typed errors, {len(tally.wrong)} wrong; slowest "
        f"recovery {tally.slowest_recovery_s:.3f} s, slowest call {tally.slowest_call_s:.3f} s; {dict(tally.by_fault)}"
    )
    assert tally.wrong == []
    assert tally.faults == N_FAULTS // N_SHARES
    assert set(tally.by_fault) >= LINE_FAULTS
    assert tally.right > 0
    assert tally.typed > 0


def questions(unit):
    """What can be asked and the answer, which stays the same: settings; of a unit that tells none, who and how it is."""
    asks = []
    for name, value in unit.snapshot()["settings"].items():
        setting = getattr(type(unit), name)
        if setting.access == "rw":
            channels = [int(channel) for channel in value] if setting.channels else [None]
            asks += [partial(unit.read_setting, name, channel) for channel in channels]
    return [(ask, ask()) for ask in asks or [unit.identify, unit.read_status]]


# pyvisa-py leaves a socket to the garbage collector when a call of its times out.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(LIMITS_S[0])
@pytest.mark.parametrize(("name", "on"), CARRIERS)
def test_threads_each_get_their_own_answers(name, on):
    world = World(seed=1)
    wrong, answers = [], Counter()
    with serve_unit(make_unit(name, world), world, transport=on) as served, open_unit(name, served.url) as unit:
        truth = questions(unit)
        assert len({repr(value) for _, value in truth}) > 1

        def hammer(number):
            for turn in range(N_HAMMER // N_THREADS):
                ask, value = truth[(number + turn) % len(truth)]
                if ask() != value:
                    wrong.append(value)
                answers[number] += 1

        threads = [threading.Thread(target=hammer, args=(number,), daemon=True) for number in range(N_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert sum(answers.values()) == N_HAMMER // N_THREADS * N_THREADS


@pytest.mark.timeout(LIMITS_S[0])
@pytest.mark.parametrize(("name", "on"), CARRIERS)
def test_a_late_answer_is_never_taken_for_another(name, on):
    world = World(seed=1)
    timeout_s = 0.05
    late = stale = 0
    with (
        serve_unit(make_unit(name, world), world, transport=on) as served,
        open_unit(name, served.url, timeout_s=timeout_s) as unit,
    ):
        truth = questions(unit)
        for turn in range(N_LATE):
            for (ask, value), struck in ((truth[turn % len(truth)], True), (truth[(turn + 1) % len(truth)], False)):
                if struck:
                    served.faults.add(Fault.LATE_REPLY, count=2, seconds=1.4 * timeout_s)
                try:
                    stale += ask() != value
                except (TransportError, UnitError):
                    late += 1
                served.faults.discard(Fault.LATE_REPLY)
    print(f"\n{name} on {on}: {N_LATE} late answers, {late} calls gave up, {stale} answers were stale")
    assert stale == 0
    assert late > 0


class TakesWhatComes(Agilent8156A):
    """Reads the next line, whatever it answers: what these tests must find out."""

    def _recover(self):
        pass

    def _ask(self, command, *, timeout_s=None):
        self._write_line(command)
        return self._read_line(self._timeout_s)


def test_the_campaign_finds_stale_answers():
    world = World(seed=1)
    with serve_unit(make_unit("agilent-8156a", world), world, transport="tcp") as served:
        stale = 0
        with TakesWhatComes(open_transport(served.url), timeout_s=0.05) as unit:
            for _ in range(5):
                served.faults.add(Fault.LATE_REPLY, count=2, seconds=0.07)
                for setting, value in (("wavelength_nm", 1310.0), ("offset_db", 0.0)):
                    with suppress(TransportError, UnitError):
                        stale += unit.read_setting(setting) != value
        assert stale > 0

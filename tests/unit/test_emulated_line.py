"""The line to an emulated unit: order, faults of the wire, waits, back-pressure; no I/O."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.errors import ConfigurationError
from qkdhw_emulators.faults import LINE_FAULTS, Fault, FaultSwitches
from qkdhw_emulators.line import BACKLOG_BYTES, Line
from qkdhw_emulators.world import VirtualClock, World


class Echo:
    """Answers each line with itself, and says "done" three bench seconds after WAIT."""

    def __init__(self, world):
        self._world, self._inbox, self._due_s = world, b"", None
        self.faults = FaultSwitches(rng=world.rng("faults"))
        self.powered = 0

    def receive(self, data):
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        if b"WAIT" in lines:
            self._due_s = self._world.now_s() + 3
        return b"".join(line + b"\n" for line in lines if line != b"WAIT")

    def reset_input(self):
        self._inbox = b""

    def power_cycle(self):
        self.powered += 1

    def nak(self):
        return b"?\n"

    def poll(self):
        if self._due_s is None or self._world.now_s() < self._due_s:
            return b""
        self._due_s = None
        return b"done\n"

    def wait_s(self):
        return None if self._due_s is None else max(0.0, self._due_s - self._world.now_s())


class Now:
    """Real time that a test moves."""

    s = 0.0

    def __call__(self):
        return self.s


def line_of(*faults, pace=None, seed=1):
    world, now = World(seed=seed, clock=VirtualClock(pace=pace)), Now()
    unit = Echo(world)
    return Line(unit, world, faults=faults, monotonic_s=now), unit, now


def said(line):
    return b"".join(delivery.data for delivery in line.take())


@given(st.lists(st.binary(max_size=9), max_size=5), st.data())
def test_any_split_of_the_input_gives_the_same_answers(words, data):
    text = b"".join(word.replace(b"\n", b"") + b"\n" for word in words)
    whole, _, _ = line_of()
    whole.feed(text)
    pieces, _, _ = line_of()
    out = b""
    while text:
        n = data.draw(st.integers(1, len(text)))
        pieces.feed(text[:n])
        out += said(pieces)
        text = text[n:]
    assert out == said(whole)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("drop", b""), ("duplicate", b"hello\nhello\n"), ("nak", b"?\n"), ("split", b"hello\n"), ("power-cycle", b"")],
)
def test_faults_strike_as_often_as_they_should(fault, expected):
    line, unit, _ = line_of(f"{fault}:count=1")
    line.feed(b"hello\n")
    assert said(line) == expected
    line.feed(b"again\n")
    assert said(line) == b"again\n"
    assert unit.powered == (fault == "power-cycle")


def test_split_truncate_garble_and_disconnect():
    line, _, _ = line_of("split:count=1")
    line.feed(b"ab\n")
    assert [(d.data, d.end) for d in line.take()] == [(b"a", False), (b"b", False), (b"\n", True)]
    line.faults.parse("truncate:count=1")
    line.feed(b"hello\n")
    assert b"hello\n".startswith(cut := said(line))
    assert len(cut) < 6
    line.faults.parse("garble:count=1")
    line.feed(b"hello\n")
    spoilt = said(line)
    assert len(spoilt) == 6
    assert spoilt.count(b"\xff") == 1
    line.faults.parse("garble:count=1")
    line.feed(b"h\xe9llo\n")
    assert said(line) == b"h\xe9llo\n"  # binary without a check sum is spared
    line.faults.clear()
    line.faults.parse("disconnect:count=1")
    line.feed(b"hello\n")
    (last,) = line.take()
    assert last.hang_up
    assert b"hello\n".startswith(last.data)


def test_a_late_answer_holds_back_those_behind_it_and_is_late_in_real_time():
    line, _, now = line_of("late-reply:count=1:seconds=2")
    line.feed(b"first\n")
    line.feed(b"second\n")
    assert said(line) == b""
    assert line.wait_s() == 2.0
    now.s = 1.9
    assert said(line) == b""
    now.s = 2.0
    assert said(line) == b"first\nsecond\n"
    assert line.wait_s() is None


def test_a_client_that_goes_takes_what_was_on_its_way_with_it():
    line, _, now = line_of("late-reply:seconds=1")
    line.feed(b"old\nhalf")
    line.disconnected()
    now.s = 5
    line.faults.clear()
    line.feed(b"new\n")
    assert said(line) == b"new\n"


def test_a_clock_that_jumps_takes_no_time_over_a_units_wait():
    line, _, _ = line_of()
    line.feed(b"WAIT\n")
    assert said(line) == b""
    assert line.wait_s() == 0.0
    assert line.world.now_s() == 3.0
    assert said(line) == b"done\n"


def test_a_client_that_asks_and_never_reads_is_not_served_for_ever():
    line, _, _ = line_of()
    for _ in range(BACKLOG_BYTES // 1000 + 10):
        line.feed(b"x" * 999 + b"\n")
    assert line.busy
    assert len(said(line)) >= BACKLOG_BYTES
    while line.busy:
        assert said(line)


def test_the_same_seed_strikes_alike():
    def run(seed):
        line, _, _ = line_of("drop:rate=0.5", "garble:rate=0.5", seed=seed)
        for n in range(50):
            line.feed(b"%d\n" % n)
        return said(line)

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("text", ["no-such", "drop:rate=2", "drop:rate=x", "drop:often=1", "drop:count=0", ""])
def test_a_fault_that_is_not_understood(text):
    with pytest.raises(ConfigurationError):
        FaultSwitches([text])


def test_line_faults_are_those_that_every_unit_can_have():
    assert Fault.DISCONNECT in LINE_FAULTS
    assert Fault.POWER_CYCLE in LINE_FAULTS
    assert Fault.SILENT not in LINE_FAULTS


def test_world_clock_and_conditions():
    now = Now()
    world = World(seed=3, clock=VirtualClock(pace=10, monotonic_s=now))
    now.s = 2
    assert world.now_s() == 20
    world.clock.advance(5)
    assert world.part("a").now_s() == 25
    world.part("a").declare({"fibre_connected": 1.0})
    world.part("a").set_condition("fibre_connected", 0)
    assert world.part("a").conditions == {"fibre_connected": 0.0}
    with pytest.raises(ConfigurationError, match="fibre_connected"):
        world.part("a").set_condition("fiber", 0)
    assert world.part("a").rng("x").random() == World(seed=3).part("a").rng("x").random()
    assert world.part("a").rng("x").random() != world.part("b").rng("x").random()
    with pytest.raises(ValueError, match="-1 s"):
        world.clock.advance(-1)
    with pytest.raises(ConfigurationError):
        VirtualClock(pace=0)
    with pytest.raises(ConfigurationError):
        World(seed=-1)

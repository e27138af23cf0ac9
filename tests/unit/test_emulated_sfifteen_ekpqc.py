"""The emulated EKPQC boxes: the firmware's quirks, the motor, the beam between them, an eavesdropper, faults."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.ekpqc_beam import EkpqcBeam, Pulse, passed
from qkdhw_emulators.units.sfifteen_ekpqc import EmulatedEkpqcReceiver, EmulatedEkpqcSender
from qkdhw_emulators.world import VirtualClock, World

COMMANDS = b"*IDN? SETHOF -12 HOF? POLSEQ 0123012301230123SEQ? SETPOL 9 POL?  TH? ABCDEFGHIJKLMNOPQ RNDSEQ SEQ? "


def booted(emulator, world=None, **options):
    unit = emulator(world or World(clock=VirtualClock(pace=None)), **options)
    unit.world.clock.advance(2.0)
    return unit


@pytest.fixture
def boxes():
    world = World(seed=4, clock=VirtualClock(pace=None))
    sender, receiver = EmulatedEkpqcSender(world.part("alice")), EmulatedEkpqcReceiver(world.part("bob"))
    world.clock.advance(2.0)
    return sender, receiver


def said(unit, data=b""):
    out = unit.receive(data)
    while (wait_s := unit.wait_s()) is not None and wait_s != math.inf:
        unit.world.clock.advance(wait_s)
        out += unit.poll()
    return out


@given(cuts=st.lists(st.integers(0, len(COMMANDS)), max_size=6))
def test_answers_the_same_in_any_pieces(cuts):
    edges = [0, *sorted(cuts), len(COMMANDS)]
    unit = booted(EmulatedEkpqcSender)
    got = b"".join(unit.receive(COMMANDS[a:b]) for a, b in itertools.pairwise(edges)) + said(unit)
    assert got == said(booted(EmulatedEkpqcSender), COMMANDS)


def test_it_is_deaf_while_it_starts_and_opening_starts_it():
    unit = EmulatedEkpqcSender(World(clock=VirtualClock(pace=None)))
    assert unit.receive(b"*IDN? ") == b""
    assert unit.wait_s() == pytest.approx(2.0)
    unit.world.clock.advance(2.0)
    assert unit.poll() == b""
    assert unit.receive(b"*IDN? SETTH 300 SETHOF 5 ") == b"Quantum\r\nOK\r\nOK\r\n"
    unit.opened()
    assert unit.receive(b"*IDN? ") == b""
    unit.world.clock.advance(2.0)
    assert unit.receive(b"TH? HOF? ") == b"200\r\n5\r\n"


def test_a_token_ends_after_a_tenth_of_a_second_of_silence():
    unit = booted(EmulatedEkpqcSender)
    assert unit.receive(b"*IDN?") == b""
    unit.world.clock.advance(0.09)
    assert unit.poll() == b""
    unit.world.clock.advance(0.011)
    assert unit.poll() == b"Quantum\r\n"
    assert unit.receive(b"SETTH ") == b""
    unit.world.clock.advance(100.0)  # a value is waited for without end
    assert unit.poll() == b""
    assert unit.wait_s() is None
    assert unit.receive(b"5 ") == b"OK\r\n"


def test_while_it_works_64_bytes_wait_and_the_rest_is_lost():
    unit = booted(EmulatedEkpqcSender)
    assert unit.receive(b"TXSEQ ") == b""
    assert unit.receive(b"TH? " * 20) == b""
    assert said(unit) == b"OK\r\n" + b"200\r\n" * 16


def test_the_motor_takes_time_and_is_within_five_degrees():
    unit = booted(EmulatedEkpqcSender)
    assert unit.receive(b"SETANG 180 ") == b""
    assert 0.1 < unit.wait_s() < 1.0
    assert said(unit) == b"OK\r\n"
    angles = []
    for target in (0, 45, 90, 135, 300):
        said(unit, f"SETANG {target} ".encode())
        angles.append((unit.angle_deg - target, float(said(unit, b"ANG? ")) - unit.angle_deg % 360))
    assert max(abs(off) for off, _ in angles) <= 5.0
    assert len({off for off, _ in angles}) == 5


def test_a_sequence_takes_as_long_as_the_firmware_s_loops():
    unit = booted(EmulatedEkpqcSender)
    unit.receive(b"TXSEQ ")
    assert unit.wait_s() == pytest.approx(0.6 + 0.6 + 16 * 0.9 + 0.6)


def test_a_receiver_reads_the_sender_s_polarisations(boxes):
    sender, receiver = boxes
    said(sender, b"POLSEQ 0011223301230123")
    said(receiver, b"POLSEQ 0101010101010101")
    assert receiver.receive(b"RXSEQ ") == b""
    assert receiver.wait_s() == math.inf  # no light is on its way
    sender.receive(b"TXSEQ ")
    readings = [int(field) for field in said(receiver).split()]
    for slot, (sent, basis) in enumerate(zip("0011223301230123", "01" * 8, strict=True)):
        angle = (int(sent) - int(basis)) * 45
        assert abs(readings[slot] - 4 - 400 * passed(angle)) < (40 if angle % 90 == 0 else 80)
    assert said(sender) == b"OK\r\n"


def test_a_receiver_that_is_late_takes_a_symbol_for_the_sync_pulse(boxes):
    sender, receiver = boxes
    said(sender, b"POLSEQ 1212121212121212")
    said(receiver, b"POLSEQ 1010101010101010")
    sender.receive(b"TXSEQ ")
    sender.world.clock.advance(3.0)
    receiver.receive(b"RXSEQ ")
    early = [int(field) for field in said(receiver).split()]
    assert early[-1] < 50  # the sender had finished


def test_no_sync_pulse_through_a_lossy_channel(boxes):
    sender, receiver = boxes
    receiver.world.set_condition("beam_transmission", 0.4)
    receiver.receive(b"RXSEQ ")
    sender.receive(b"TXSEQ ")
    assert receiver.wait_s() == math.inf
    said(sender)
    assert receiver.poll() == b""
    said(sender, b"SETPOL 1 LASON ")
    receiver.world.set_condition("beam_transmission", 1.0)
    assert len(said(receiver).split()) == 16


def test_the_laser_is_seen_until_it_is_switched_off_or_the_power_is(boxes):
    sender, receiver = boxes
    said(sender, b"SETPOL 0 LASON ")
    said(receiver, b"SETPOL 0 ")
    assert int(said(receiver, b"VOLT? ")) > 350
    said(receiver, b"SETPOL 2 ")
    assert int(said(receiver, b"VOLT? ")) < 50
    said(receiver, b"SETPOL 0 ")
    sender.power_cycle()
    assert int(said(receiver, b"VOLT? ")) < 50


def test_two_benches_share_no_light():
    sender, receiver = booted(EmulatedEkpqcSender), booted(EmulatedEkpqcReceiver)
    said(sender, b"SETPOL 0 LASON ")
    said(receiver, b"SETPOL 0 ")
    assert int(said(receiver, b"VOLT? ")) < 50


def test_power_lost_in_a_sequence_stops_the_light(boxes):
    sender, receiver = boxes
    receiver.receive(b"RXSEQ ")
    sender.receive(b"TXSEQ ")
    sender.world.clock.advance(5.0)
    sender.power_cycle()
    readings = [int(field) for field in said(receiver).split()]
    assert max(readings[5:]) < 50


def test_early_firmware_says_more():
    world = World(clock=VirtualClock(pace=None))
    receiver = booted(EmulatedEkpqcReceiver, world, talkative=True)
    world.set_condition("ambient_level", 300.0)
    answer = said(receiver, b"RXSEQ ")
    assert answer.startswith(b"Listen for sync pulse.\r\nsensorVal: 300\r\ncatchTh: 200\r\n")


def test_an_eavesdropper_finds_the_right_basis_half_the_time():
    beam = EkpqcBeam(np.random.default_rng(7))
    kept = turned = 0
    for n in range(2000):
        pulse = Pulse(float(n), n + 0.5, 45.0 * (n % 4), carries_symbol=True)
        beam.shine(pulse)
        seen = beam.at(n + 0.2, intercepted=True)
        assert beam.at(n + 0.4, intercepted=True) == seen  # she measures a pulse once
        off = (seen.angle_deg - pulse.angle_deg) % 180
        kept += off == 0
        turned += off in {45, 135}
        assert off != 90  # never the other bit of the right basis
    assert kept + turned == 2000
    assert abs(kept - 1000) < 5 * np.sqrt(500)
    assert beam.at(2000.0, intercepted=True) is None


def test_an_eavesdropper_lets_the_sync_pulse_pass():
    beam = EkpqcBeam(np.random.default_rng(7))
    pulse = Pulse(0.0, 1.0, 30.0)
    beam.shine(pulse)
    assert beam.at(0.5, intercepted=True) == pulse


def test_faults_of_the_unit():
    assert said(booted(EmulatedEkpqcSender, faults=[Fault.SILENT]), b"*IDN? ") == b""
    garbage = said(booted(EmulatedEkpqcSender, faults=[Fault.GARBAGE]), b"*IDN? ")
    assert garbage.endswith(b"\n")
    assert b"Quantum" not in garbage
    assert said(booted(EmulatedEkpqcSender, faults=[Fault.WRONG_IDENTITY]), b"*IDN? ") == b"Classical\r\n"
    assert said(booted(EmulatedEkpqcSender, faults=[Fault.WRONG_FIRMWARE]), b"*IDN? ") == b"Quantum2\r\n"
    stuck = booted(EmulatedEkpqcReceiver, faults=[Fault.STUCK_VALUE])
    assert said(stuck, b"SETTH 1 TH? SETHOF 1 HOF? SETPOL 3 POL? ") == b"OK\r\n200\r\nOK\r\n0\r\nOK\r\n1.00\r\n"
    assert said(stuck, b"POLSEQ 1111111111111111SEQ? ") == b"OK\r\n0000000000000000\n"

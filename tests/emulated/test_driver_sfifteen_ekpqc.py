"""The EKPQC drivers against the emulated boxes: contracts, faults, and BB84 from real commands with and without Eve."""

import contextlib
import threading
import time

import pytest

from qkdhw import interfaces
from qkdhw.drivers import open_unit
from qkdhw.drivers.sfifteen_ekpqc import decide_bits
from qkdhw.errors import ConfigurationError, TransportError, TransportTimeoutError, UnitError, UnitStateError
from qkdhw_emulators.faults import LINE_FAULTS, Fault
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.sfifteen_ekpqc import EmulatedEkpqcReceiver, EmulatedEkpqcSender
from qkdhw_emulators.world import VirtualClock, World

PATIENT_S, HASTY_S = 5.0, 0.25  # hasty where answers are lost: such a test goes on until it works
hasty = pytest.mark.parametrize("boxes", [HASTY_S], indirect=True)


@contextlib.contextmanager
def two_boxes(transport, *, seed=1, timeout_s=PATIENT_S, **conditions):
    """The kit on a table: both boxes on one clock that jumps, opened."""
    world = World(seed=seed, clock=VirtualClock(pace=None))
    alice, bob = world.part("alice"), world.part("bob")
    receiver = EmulatedEkpqcReceiver(bob)
    for name, value in conditions.items():
        bob.set_condition(name, value)
    with (
        serve_unit(EmulatedEkpqcSender(alice), alice, transport=transport) as sending,
        serve_unit(receiver, bob, transport=transport) as receiving,
        open_unit("sfifteen-ekpqc-sender", sending.url, timeout_s=timeout_s) as sender,
        open_unit("sfifteen-ekpqc-receiver", receiving.url, timeout_s=timeout_s) as receiver,
    ):
        yield sending, receiving, sender, receiver


@pytest.fixture
def boxes(request):
    with two_boxes("pty", timeout_s=getattr(request, "param", PATIENT_S)) as found:
        yield found


def until_it_works(call):
    deadline_s = time.monotonic() + 8.0
    while True:
        try:
            return call()
        except (TransportError, UnitError):
            if time.monotonic() > deadline_s:
                raise


def sifted(sender, receiver, threshold):
    """One round of BB84: what both have where their bases agree."""
    symbols, bases = sender.randomise_pattern(), receiver.randomise_bases()
    receiver.arm()
    sender.run_pattern()
    bits = decide_bits(receiver.read_measurement(), threshold)
    return [(s // 2, bit) for s, basis, bit in zip(symbols, bases, bits, strict=True) if s % 2 == basis]


def calibrated(sender, receiver):
    """Half way between parallel and crossed polarisers."""
    sender.configure({"polarization": 0})
    sender.enable_output()
    levels = []
    for symbol in (0, 2):
        receiver.configure({"polarization": symbol})
        levels.append(receiver.sensor_level)
    sender.disable_output()
    return sum(levels) / 2


def test_contracts(boxes):
    _, _, sender, receiver = boxes
    assert isinstance(sender, interfaces.PatternGenerator)
    assert isinstance(sender, interfaces.PhotonSource)
    assert isinstance(receiver, interfaces.Unit)
    assert not isinstance(receiver, interfaces.ReceiverUnit)
    assert (sender.identify().model, receiver.identify().model) == ("EKPQC sender", "EKPQC receiver")


@pytest.mark.parametrize("transport", ["pty", "tcp", "emu"])
def test_a_known_pattern_arrives(transport):
    symbols, bases = (0, 1, 2, 3) * 4, (0, 1) * 8
    with two_boxes(transport) as (_, receiving, sender, receiver):
        threshold = calibrated(sender, receiver)
        assert 180 < threshold < 230
        sender.load_pattern(symbols)
        receiver.load_bases(bases)
        heard_bytes = receiving.line.fed_bytes
        receiver.arm()
        while receiving.line.fed_bytes < heard_bytes + len("SEQ? RXSEQ "):
            time.sleep(0.001)  # the clock jumps: the sender would be done before the receiver's server has read this
        sender.run_pattern()
        assert decide_bits(receiver.read_measurement(), threshold) == (0, 0, 1, 1) * 4


def rounds_of_bb84(n_rounds, **conditions):
    with two_boxes("emu", seed=11, **conditions) as (_, _, sender, receiver):
        threshold = calibrated(sender, receiver)
        return [pair for _ in range(n_rounds) for pair in sifted(sender, receiver, threshold)]


def test_bb84_without_an_eavesdropper_has_no_errors():
    pairs = rounds_of_bb84(40)
    n = 40 * 16
    assert abs(len(pairs) - n / 2) < 5 * (n / 4) ** 0.5
    ones = sum(a for a, _ in pairs)
    assert abs(ones - len(pairs) / 2) < 5 * (len(pairs) / 4) ** 0.5
    assert sum(a != b for a, b in pairs) == 0


def test_bb84_with_an_eavesdropper_has_a_quarter_of_errors():
    pairs = rounds_of_bb84(80, eve_intercepts=1.0)
    errors = sum(a != b for a, b in pairs)
    n = len(pairs)
    assert abs(errors - 0.25 * n) < 4 * (n * 0.25 * 0.75) ** 0.5
    assert errors > 0.15 * n


def test_settings_and_motor(boxes):
    sending, _, sender, receiver = boxes
    assert sender.configure({"h_offset_deg": -12}) == {"h_offset_deg": -12}
    assert receiver.configure({"sensor_threshold": 321, "polarization": 3})["polarization"] == 3
    assert abs(sender.move_to(200) - 200) < 6
    before = receiver.snapshot()
    receiver.configure({"sensor_threshold": 5})
    receiver.restore(before)
    assert receiver.sensor_threshold == 321
    assert sending.unit.angle_deg == pytest.approx(200, abs=5)


@hasty
def test_light_is_off_after_trouble(boxes):
    sending, _, sender, _ = boxes
    until_it_works(sender.enable_output)
    assert sending.unit.beam.at(sending.world.now_s(), intercepted=False)
    sending.faults.add(Fault.DROP, count=1)
    until_it_works(lambda: sender.h_offset_deg)
    assert not sender.read_output_enabled()
    assert not sending.unit.beam.at(sending.world.now_s(), intercepted=False)


def test_a_board_that_restarted_is_not_run():
    with two_boxes("emu") as (sending, receiving, sender, receiver):
        sender.load_pattern((1,) * 16)
        receiver.load_bases((1,) * 16)
        for served, call in ((sending, sender.run_pattern), (receiving, receiver.arm)):
            served.faults.add(Fault.POWER_CYCLE, count=1)
            with pytest.raises((UnitStateError, TransportError)):
                call()
            with pytest.raises(UnitStateError):
                until_typed(call)


def until_typed(call):
    try:
        call()
    except TransportError:
        call()


def test_a_receiver_that_sees_no_light_is_restarted():
    with two_boxes("emu") as (_, receiving, _, receiver):
        receiver.configure({"sensor_threshold": 250})
        receiver.load_bases((0,) * 16)
        receiver.arm()
        with pytest.raises(UnitStateError):
            receiver.identify()
        with pytest.raises(TransportTimeoutError):
            receiver.read_measurement(timeout_s=0.2)
        assert receiver.sensor_threshold == 250
        assert receiving.unit.sequence == [0] * 16
        receiver.load_bases((1,) * 16)
        receiver.arm()
        receiver.disarm()
        assert receiver.sensor_level < 50
        receiving.world.set_condition("ambient_level", 400.0)
        assert receiver.wait_for_light() > 0


def test_range_errors_send_nothing(boxes):
    sending, receiving, sender, receiver = boxes
    sent = sending.line.fed_bytes, receiving.line.fed_bytes
    for unit, settings in (
        (sender, {"h_offset_deg": 181}),
        (sender, {"polarization": 4}),
        (sender, {"sensor_threshold": 3}),
        (receiver, {"sensor_threshold": 1024}),
        (receiver, {"sensor_level": 3}),
    ):
        with pytest.raises(ConfigurationError):
            unit.configure(settings)
    assert (sending.line.fed_bytes, receiving.line.fed_bytes) == sent


@hasty
@pytest.mark.parametrize("fault", sorted(LINE_FAULTS))
def test_line_faults_give_right_data_or_typed_errors(boxes, fault):
    _, served, _, unit = boxes
    right = until_it_works(lambda: unit.configure({"sensor_threshold": 333}))["sensor_threshold"]
    served.faults.add(fault, count=1, seconds=1.5 * HASTY_S if fault is Fault.LATE_REPLY else 0.05)
    with contextlib.suppress(TransportError, UnitError):
        assert unit.sensor_threshold == right
    served.faults.discard(fault)
    assert until_it_works(lambda: unit.sensor_threshold) == right


@pytest.mark.parametrize("fault", [Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE])
def test_another_board_is_found_out(boxes, fault):
    served, _, unit, _ = boxes
    served.faults.add(fault)
    with pytest.raises(UnitError, match="not a box"):
        unit.identify()
    served.faults.clear()
    until_it_works(unit.identify)


def test_a_stuck_value_is_found_out(boxes):
    sending, receiving, sender, receiver = boxes
    for served in (sending, receiving):
        served.faults.add(Fault.STUCK_VALUE)
    with pytest.raises(UnitError, match="after the unit was told"):
        receiver.configure({"sensor_threshold": 7})
    with pytest.raises(UnitError, match="another pattern"):
        sender.load_pattern((3,) * 16)


@hasty
def test_a_late_answer_is_never_taken_for_another(boxes):
    _, served, _, unit = boxes
    until_it_works(lambda: unit.configure({"sensor_threshold": 111, "h_offset_deg": 22}))
    for _ in range(2):
        served.faults.add(Fault.LATE_REPLY, count=1, seconds=1.3 * HASTY_S)
        assert until_it_works(lambda: unit.sensor_threshold) == 111
        assert until_it_works(lambda: unit.h_offset_deg) == 22


def test_eight_threads_get_their_own_answers(boxes):
    _, _, _, unit = boxes
    unit.configure({"sensor_threshold": 111, "h_offset_deg": 22})
    truth = {"sensor_threshold": 111, "h_offset_deg": 22, "polarization": 1}
    wrong = []

    def hammer(number):
        for turn in range(15):
            name = list(truth)[(number + turn) % 3]
            if unit.read_setting(name) != truth[name]:
                wrong.append(name)

    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_each_round_hands_out_its_own_measurement():
    with two_boxes("emu", seed=2) as (_, _, sender, receiver):
        seen = set()
        for _ in range(5):
            receiver.randomise_bases()
            sender.randomise_pattern()
            receiver.arm()
            sender.run_pattern()
            seen.add(receiver.read_measurement())
    assert len(seen) == 5


@pytest.mark.parametrize("name", ["sfifteen-ekpqc-sender", "sfifteen-ekpqc-receiver"])
def test_inside_the_process(name):
    with open_unit(name, f"emu://{name}?pace=none", timeout_s=PATIENT_S) as unit:
        before = unit.snapshot()
        unit.restore(before)
        assert unit.read_status().state == "idle"

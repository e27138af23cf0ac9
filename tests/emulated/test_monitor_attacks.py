"""Attacks and faults of the emulated link trip the monitors that the page of attacks names; honest light trips none."""

from fractions import Fraction

import numpy as np
import pytest

from attack_signatures import DEAD_PS, PERIOD_PS, WINDOW_PS, reference_link
from qkdhw.events.clock import SlotClock
from qkdhw.events.gating import Gate
from qkdhw.events.monitors import Calibration, MonitorBank, Observation, calibrate
from qkdhw.events.wiring import Wiring
from qkdhw.model import Basis, DetectionBlock
from qkdhw_emulators.optics.attacks.blinding import BlindingCw
from qkdhw_emulators.optics.attacks.channel_faults import BackgroundLight, FibreCut
from qkdhw_emulators.optics.attacks.detector_faults import DetectorDying, DetectorLatched
from qkdhw_emulators.optics.attacks.intercept import BeamSplitterWavelength, InterceptResend
from qkdhw_emulators.optics.attacks.photon_number import PhotonNumberSplitting
from qkdhw_emulators.optics.attacks.timing import DeadTime, TimeShift
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.simulation import LinkSimulation

BLOCK_PULSES = 30_000_000
FALSE_ALARMS = 1e-9
WIRING = Wiring({0: (Basis.KEY, 0), 1: (Basis.KEY, 1), 2: (Basis.TEST, 0), 3: (Basis.TEST, 1)})


def observe(n_blocks, attacks=(), seed=1, block_pulses=BLOCK_PULSES):
    """Blocks of a link as a receiver's gate and the sifting of both sites count them."""
    clock = SlotClock.nominal(Fraction(PERIOD_PS))
    random = np.random.default_rng(seed)
    gate = Gate(clock, WIRING, int(2 * WINDOW_PS), int(DEAD_PS), Fraction(1), random_bytes=random.bytes)
    blocks, ticks, channels, end = [], [], [], 0
    with LinkSimulation(reference_link(), seed=seed, schedule=Schedule(attacks)) as link:
        while len(blocks) < n_blocks:
            cell = link.next_cell()
            ticks.append(cell.bob.ticks)
            channels.append(cell.bob.channel)
            if cell.bob.end_ticks < end + block_pulses * PERIOD_PS:
                continue
            before, n_slots = gate.residual_histogram, (cell.bob.end_ticks - end) // PERIOD_PS
            end = cell.bob.end_ticks
            time_ticks, channel = np.concatenate(ticks), np.concatenate(channels)
            gated = gate.feed(DetectionBlock(time_ticks, channel, np.zeros(len(channel), np.uint8), Fraction(1)))
            prepared = link.prepared_at(gated.slot).astype(np.int64)
            same = prepared // 2 % 3 == gated.basis
            test = same & (gated.basis == Basis.TEST)
            wrong = gated.bit[test] != prepared[test] % 2
            blocks.append(
                Observation(
                    n_slots, gated.statistics, gate.residual_histogram - before,
                    tuple(np.bincount(prepared[same] // 6, minlength=3).tolist()), (int(wrong.sum()), len(wrong)),
                )
            )  # fmt: skip
            ticks, channels = [], []
    return blocks


@pytest.fixture(scope="module")
def calibration():
    return calibrate(observe(12), false_alarm_rate=FALSE_ALARMS, note="the emulated link, without attacks")


def test_honest_light_raises_no_alarm_over_many_blocks(calibration):
    bank = MonitorBank(calibration)
    for block in observe(40, seed=2):
        readings = bank.judge(block)
        assert bank.alarms == {}
        assert {r.name for r in readings.values() if r.state == "unmonitored"} <= {"gain_2"}
    assert {r.name for r in readings.values() if r.state == "fine"} >= {"balance_key", "doubles_across", "profile"}


@pytest.mark.parametrize(
    ("attack", "shown_by"),
    [
        (BlindingCw(), {"doubles", "doubles_across"}),
        (BeamSplitterWavelength(control=0.99), {"doubles_across"}),
        (InterceptResend(fraction=0.4), {"errors"}),
        (TimeShift(), {"profile"}),
        (TimeShift(early=1.0, shift_ps=0, efficiency_ratio=0.5), {"balance_key", "balance_test"}),
        (PhotonNumberSplitting(), {"gain_1"}),
        (DeadTime(fraction=2e-5), {"outside_window"}),
        (BackgroundLight(), {"outside_window"}),
        (DetectorDying(efficiency_factor=0.7), {"balance_key"}),
        (DetectorLatched(detector=3), {"balance_test"}),
        (FibreCut(), {"count_rate"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_attack_trips_its_monitor_in_its_first_block(calibration, attack, shown_by):
    bank = MonitorBank(calibration)
    # each pulse of this attack is a step of work: a tenth of a block shows it
    block_pulses = BLOCK_PULSES // 10 if isinstance(attack, DeadTime) else BLOCK_PULSES
    bank.judge(observe(1, (attack,), seed=3, block_pulses=block_pulses)[0])
    assert shown_by <= set(bank.alarms)


def test_intercept_resend_shows_in_no_count_but_the_errors(calibration):
    bank = MonitorBank(calibration)
    for block in observe(4, (InterceptResend(fraction=0.4),), seed=4):
        bank.judge(block)
    assert set(bank.alarms) == {"errors"}


def test_the_record_judges_the_same_when_it_was_written_and_read(calibration):
    again = Calibration.from_json(calibration.to_json())
    assert again == calibration
    block = observe(1, (BlindingCw(),), seed=5)[0]
    assert MonitorBank(again).judge(block) == MonitorBank(calibration).judge(block)

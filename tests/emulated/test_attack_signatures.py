"""Each attack shows in the statistic, direction and size that is published of it; without it the statistic is clean."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from attack_signatures import (
    DARK_HZ,
    ERROR,
    MU,
    OFTEN,
    PERIOD_PS,
    SIGNATURES,
    cross_basis_doubles,
    decoys,
    doubles,
    errors,
    field_table,
    in_pulses,
    late,
    observe,
    outside,
    qber,
    reference_link,
    resent,
    table,
)
from binomial_law import binomial_p_value, events_needed, told_apart, upper_tail
from qkdhw.model import DecoyCounts
from qkdhw.protocols.lim2014 import key_length
from qkdhw.quantities import binary_entropy
from qkdhw_emulators.optics.attacks import ATTACKS, MONITORS
from qkdhw_emulators.optics.attacks.blinding import BlindingCw
from qkdhw_emulators.optics.attacks.channel_faults import FibreCut, FibreSplice
from qkdhw_emulators.optics.attacks.detector_faults import DetectorDying
from qkdhw_emulators.optics.attacks.hidden import detection_probability
from qkdhw_emulators.optics.attacks.intercept import InterceptResend
from qkdhw_emulators.optics.attacks.photon_number import PhotonNumberSplitting
from qkdhw_emulators.optics.attacks.sender_light import CowZeroError, PhaseNotRandomised, TrojanHorse
from qkdhw_emulators.optics.attacks.timing import CalibrationForgery, ClockSteering, DeadTime, TimeShift
from qkdhw_emulators.optics.link_tables import build_tables
from qkdhw_emulators.optics.schedule import Schedule
from qkdhw_emulators.optics.setup import Detector, OpticalSetup, Receiver, Source, Tagger
from qkdhw_emulators.optics.simulation import LinkSimulation

P_LIMIT = 1e-6
DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "attacks.md"
SEEN_IN_COUNTS = [s for s in SIGNATURES if s.count is not None]


def name_of(signature):
    return signature.attack.name


# --- every attack -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("signature", SEEN_IN_COUNTS, ids=name_of)
def test_the_statistic_is_as_published_with_the_attack_and_without(signature):
    attacked = observe(signature.setup, (signature.attack,), signature.pulses, seed=11)
    clean = observe(signature.setup, (), signature.pulses, seed=12)
    assert signature.count(attacked)[1] > 1000
    assert binomial_p_value(*signature.count(attacked), signature.attacked) > P_LIMIT
    assert binomial_p_value(*signature.count(clean), signature.clean) > P_LIMIT
    assert binomial_p_value(*signature.count(attacked), signature.clean) < P_LIMIT
    assert binomial_p_value(*signature.count(clean), signature.attacked) < P_LIMIT
    assert clean.monitors == {name: monitor.normal for name, monitor in MONITORS.items()}


@pytest.mark.parametrize("signature", [s for s in SIGNATURES if s.monitor], ids=name_of)
def test_the_monitor_reads_what_it_should(signature):
    seen = observe(signature.setup, (signature.attack,), signature.pulses)
    assert seen.monitors == pytest.approx(signature.readings, rel=0.05)
    assert seen.monitors[signature.monitor] != MONITORS[signature.monitor].normal


@pytest.mark.parametrize("attack", [TrojanHorse(), CowZeroError(), PhaseNotRandomised()], ids=lambda a: a.name)
def test_counts_show_nothing_of_some_attacks(attack):
    link = reference_link()
    if attack.name == "cow-zero-error":
        link = link.model_copy(update={"source": link.source.model_copy(update={"encoding": "time-bin"})})
    clean, attacked = (observe(link, on, 2e6) for on in ((), (attack,)))
    assert len(clean.pulse) > 1000
    for name in ("channel", "pulse", "late_ps", "intensity", "basis", "bit"):
        assert np.array_equal(getattr(clean, name), getattr(attacked, name))
    assert next(s for s in SIGNATURES if s.attack.name == attack.name).count is None


def test_every_attack_has_a_signature():
    assert [name_of(s) for s in SIGNATURES] == list(ATTACKS)


# --- more of some -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("choice", ["active", "passive"])
@pytest.mark.parametrize(("fraction", "bases"), [(1.0, 2), (1.0, 3), (0.4, 3)])
def test_intercept_resend_of_other_fractions_and_bases(fraction, bases, choice):
    seen = observe(reference_link(choice), (InterceptResend(fraction=fraction, bases=bases),), 1e7)
    expected = qber(resent(ERROR, fraction, bases), light_factor=2 if choice == "active" else 1)
    assert binomial_p_value(*errors(seen), expected) > P_LIMIT
    assert binomial_p_value(*errors(seen), expected - 0.05) < P_LIMIT


def test_intercept_resend_in_a_six_state_link_brings_a_third():
    link = reference_link("active")
    source = link.source.model_copy(update={"states": 6})
    detectors = link.receiver.detectors[:1] * 6
    receiver = Receiver(basis_choice="active", misalignment=(ERROR,) * 3, detectors=detectors)
    seen = observe(link.model_copy(update={"source": source, "receiver": receiver}), (InterceptResend(bases=3),), 2e7)
    for basis in range(3):
        k = (seen.channel % 2 != seen.bit) & seen.matched & (seen.basis == basis)
        n = seen.matched & (seen.basis == basis)
        assert binomial_p_value(int(k.sum()), int(n.sum()), qber(resent(ERROR, 1.0, 3), light_factor=2)) > P_LIMIT


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_intercept_resend_of_pairs(fraction):
    receiver = Receiver(misalignment=(ERROR, ERROR, 0.0), detectors=(Detector(),) * 4)
    link = OpticalSetup(
        source=Source(kind="pair-pulsed", pulse_rate_hz=100_000_000, mean_pairs=1e-4),
        receiver=receiver,
        sender_receiver=receiver.model_copy(update={"misalignment": (0.0, 0.0, 0.0)}),
        tagger=Tagger(clock_offset_s=0.0),
        sender_tagger=Tagger(clock_offset_s=0.0),
    )
    pulses = [{}, {}]
    with LinkSimulation(link, seed=5, schedule=Schedule((InterceptResend(fraction=fraction),))) as run:
        for _ in range(100):
            cell = run.next_cell()
            for seen, end in zip(pulses, (cell.alice, cell.bob), strict=True):
                seen.update(
                    zip((end.ticks / PERIOD_PS).round().astype(int).tolist(), end.channel.tolist(), strict=True)
                )
    pairs = [(pulses[0][p], pulses[1][p]) for p in pulses[0].keys() & pulses[1].keys()]
    matched = [(a, b) for a, b in pairs if a // 2 == b // 2]
    wrong = sum(a != b for a, b in matched)
    several = 3e-4  # of the pulses with a pair; half of those err in half of the cases
    assert binomial_p_value(wrong, len(matched), resent(ERROR, fraction, 2) + several / 4) > P_LIMIT


@pytest.mark.parametrize(("choice", "share"), [("active", 0.5), ("passive", 1.0)])
def test_blinding_halves_the_rate_of_a_switch_and_leaves_no_darks(choice, share):
    seen = observe(reference_link(choice), (BlindingCw(),), 2e7)
    gains = OFTEN * -np.expm1(-MU * 0.01) * share
    assert binomial_p_value(*in_pulses(seen), float(gains.sum())) > P_LIMIT
    assert binomial_p_value(*errors(seen), ERROR) > P_LIMIT
    assert doubles(seen)[0] == 0
    assert outside(seen)[0] == 0
    dark_hours = observe(reference_link(choice), (BlindingCw(eve_gain=0.0),), 2e7)
    assert len(dark_hours.pulse) == 0


def test_time_shift_leaves_the_error_rate_and_biases_bits_if_early_and_late_are_uneven():
    seen = observe(reference_link(), (TimeShift(early=1.0, shift_ps=0, efficiency_ratio=0.2),), 2e7)
    zeros = int((seen.channel % 2 == 0).sum())
    assert zeros / len(seen.channel) == pytest.approx(1 / 1.2, abs=0.01)
    even = observe(reference_link(), (TimeShift(),), 2e7)
    assert binomial_p_value(*errors(even), qber(ERROR, light_factor=0.75)) > P_LIMIT
    assert binomial_p_value(int((even.channel % 2 == 0).sum()), len(even.channel), 0.5) > P_LIMIT


def test_a_forged_calibration_and_a_time_shift_bias_bits_through_the_profile_of_the_gate():
    """Early light of bit 0 lies 150 ps before the gate's centre, that of bit 1 50 ps; the profile does the rest."""
    link = reference_link(gated=True, jitter_ps=0.0)
    gate = link.receiver.gate.model_copy(update={"profile_fwhm_ps": 150.0})
    link = link.model_copy(update={"receiver": link.receiver.model_copy(update={"gate": gate})})
    seen = observe(link, (CalibrationForgery(apart_ps=100), TimeShift(shift_ps=100, efficiency_ratio=1.0)), 2e7)
    ratio = np.exp(-4 * np.log(2) * (150**2 - 50**2) / 150**2)
    zeros = seen.channel[seen.late_ps < 0] % 2 == 0
    assert binomial_p_value(int(zeros.sum()), len(zeros), ratio / (1 + ratio)) > P_LIMIT
    assert binomial_p_value(int(zeros.sum()), len(zeros), 0.5) < P_LIMIT


def test_dead_time_clicks_come_while_the_other_detectors_are_dead():
    seen = observe(reference_link(), (DeadTime(fraction=1e-3, lead_ps=3000),), 2e6)
    before = np.flatnonzero(np.abs(seen.late_ps) > 500)
    pulse, channel = seen.pulse[before], seen.channel[before]
    pre, count = np.unique(pulse, return_counts=True)
    triples = pre[count == 3]
    assert len(triples) == pytest.approx(2000, abs=250)
    lit = ~np.isin(np.arange(len(seen.pulse)), before) & np.isin(seen.pulse, triples)
    spared = {p: 6 - int(channel[pulse == p].sum()) for p in seen.pulse[lit]}
    assert lit.sum() >= 1
    assert all(spared[p] == c for p, c in zip(seen.pulse[lit], seen.channel[lit], strict=True))


def test_a_clock_ramp_is_followed_in_the_arrival_times():
    """0.05 ppm and 0.5 ppm/s over 50 ms: 2.5 ns and 0.6 ns; the frequency stays for a cell of 5 ms."""
    steered = observe(reference_link(), (ClockSteering(ppm=0.05, ppm_per_s=0.5),), 5e6)
    t_s = steered.pulse * PERIOD_PS * 1e-12
    off_ps = steered.late_ps - (0.05 + 0.25 * t_s) * t_s * 1e6
    in_pulse = np.abs(off_ps) < 500
    assert in_pulse.mean() > 0.99
    assert np.abs(off_ps[in_pulse & (t_s > 0.04)]).mean() < 100
    assert steered.late_ps[t_s > 0.045].mean() > 2500


def test_a_cut_fibre_is_silent_until_it_is_spliced():
    cut, splice = FibreCut(from_s=0.05, until_s=0.1), FibreSplice(added_km=0.0, loss_db=3.0, from_s=0.1)
    seen = observe(reference_link(), (cut, splice), 1.5e7)
    rate = np.histogram(seen.pulse, bins=[0, 4e6, 6e6, 9e6, 11e6, 14e6])[0][::2] / np.array([4e6, 3e6, 3e6])
    assert rate == pytest.approx([0.0033, 4 * DARK_HZ * PERIOD_PS * 1e-12, 0.0033 / 2], rel=0.05, abs=2e-6)


def test_a_dead_detector_is_silent_and_comes_back():
    seen = observe(reference_link(), (DetectorDying(detector=2, from_s=0.05, until_s=0.1),), 1.5e7)
    in_time = [seen.channel[(seen.pulse >= a) & (seen.pulse < b)] for a, b in ((0, 4e6), (6e6, 9e6), (11e6, 14e6))]
    silent = [bool((channel != 2).all()) for channel in in_time]
    assert silent == [False, True, False]


def test_attacks_work_together():
    """Blinding takes over from intercept-resend what that has sent on: errors stay, doubles go."""
    seen = observe(reference_link(), (InterceptResend(), BlindingCw()), 2e7)
    assert binomial_p_value(*errors(seen), resent(ERROR, 1.0, 2)) > P_LIMIT
    assert doubles(seen)[0] == 0


def test_an_attack_is_the_same_for_any_number_of_threads():
    schedule = Schedule((InterceptResend(fraction=0.5), BlindingCw(from_s=0.05, until_s=0.1)))
    clicks = []
    for threads in (1, 2):
        with LinkSimulation(reference_link(), seed=3, threads=threads, schedule=schedule) as run:
            cells = [run.next_cell().bob for _ in range(30)]
        clicks.append(np.concatenate([c.ticks for c in cells]))
    assert np.array_equal(*clicks)


# --- photon-number splitting against a proof --------------------------------------------------------------------
HONEST, SPLIT = (4.9885e-3, 1.0005e-3, 3.0e-6), (4.9885e-3, 2.5970e-4, 1.0011e-6)
PNS_CASES = pytest.mark.parametrize(
    ("attacks", "gains"), [((), HONEST), ((PhotonNumberSplitting(),), SPLIT)], ids=["clean", "splitting"]
)


def pns_link(key_basis_probability):
    link = reference_link("active")
    detectors = (Detector(dark_count_rate_hz=DARK_HZ),) * 2
    receiver = {"detectors": detectors, "key_basis_probability": key_basis_probability}
    source = {"key_basis_probability": key_basis_probability}
    return link.model_copy(
        update={"source": link.source.model_copy(update=source), "receiver": link.receiver.model_copy(update=receiver)}
    )


@PNS_CASES
def test_photon_number_splitting_gains_and_key_length(attacks, gains):
    """Gains of PNS-1 within statistics; a proof gives a key without the attack and none with it, at the same QBER."""
    seen = observe(pns_link(0.7), attacks, 1e9)
    _, first = np.unique(seen.pulse, return_index=True)
    wrong = (seen.channel != seen.bit)[first]  # two detectors for both bases: the bit is the channel
    intensity, basis, measured = seen.intensity[first], seen.basis[first], seen.measured[first]
    for k, (gain, other) in enumerate(zip(gains, SPLIT if gains is HONEST else HONEST, strict=True)):
        clicks = int((intensity == k).sum())
        assert binomial_p_value(clicks, seen.n_pulses, gain * OFTEN[k]) > P_LIMIT
        assert gain == other or binomial_p_value(clicks, seen.n_pulses, other * OFTEN[k]) < P_LIMIT
    kept = basis == measured
    noise = 2 * DARK_HZ * PERIOD_PS * 1e-12 / float(OFTEN @ gains)
    right = ERROR + (0.5 - ERROR) * noise
    assert binomial_p_value(int(wrong[kept].sum()), int(kept.sum()), right) > P_LIMIT
    assert binomial_p_value(int(wrong[kept].sum()), int(kept.sum()), 1.05 * right) < P_LIMIT

    def counts(basis_index, which):
        chosen = kept & (basis == basis_index) & which
        return tuple(int((chosen & (intensity == k)).sum()) for k in range(3))

    n_key = counts(0, kept)
    leak_bits = 1.16 * sum(n_key) * binary_entropy(sum(counts(0, wrong)) / sum(n_key))
    found = DecoyCounts(tuple(MU), tuple(OFTEN), n_key, counts(1, kept), counts(1, wrong), None, leak_bits)
    assert (key_length(found, eps_sec=1e-9, eps_cor=1e-15).length_bits > 0) == (not attacks)


@PNS_CASES
def test_tables_have_the_gains_of_pns_1(attacks, gains):
    setup = pns_link(0.9)
    tables = build_tables(setup)
    for attack in attacks:
        tables = attack.change_tables(tables, setup)
    light = detection_probability(tables).reshape(3, -1).mean(axis=1)
    assert 1 - (1 - light) * (1 - 5e-7) ** 2 == pytest.approx(gains, rel=1e-4)


def test_photon_number_splitting_leaves_no_doubles_but_darks():
    seen = observe(reference_link(), (PhotonNumberSplitting(),), 2e7)
    assert doubles(seen)[0] <= 2
    assert cross_basis_doubles(seen)[0] <= 2
    assert binomial_p_value(*errors(seen), qber(ERROR)) > P_LIMIT
    assert decoys(seen)[0] > 1000


# --- the tests themselves, and the page -------------------------------------------------------------------------
def test_the_laws_are_right():
    assert upper_tail(3, 4, 0.5) == pytest.approx(5 / 16)
    assert upper_tail(0, 4, 0.5) == 1.0
    assert upper_tail(1, 10, 0.1) == pytest.approx(1 - 0.9**10)
    assert binomial_p_value(5, 10, 0.5) == 1.0
    assert binomial_p_value(0, 10, 0.5) == pytest.approx(2 / 1024)
    # published: 0.500 to 0.505, 0.500 to 0.510, QBER 2 % to 3 %; none seen of 20.7 + ln 2 for two sides
    assert events_needed(0.5, 0.505) == pytest.approx(846_306, rel=1e-3)
    assert events_needed(0.5, 0.51) == pytest.approx(211_556, rel=1e-3)
    assert events_needed(0.02, 0.03) == pytest.approx(19_113, rel=1e-3)
    assert events_needed(1e-3, 0.0) == pytest.approx(1e3 * (20.72 + np.log(2)), rel=1e-2)
    for p0, p1 in ((0.02, 0.11), (5e-4, 0.9)):
        n = events_needed(p0, p1)
        assert told_apart(n, p0, p1)
        assert not told_apart(n - 1, p0, p1)


def test_the_page_has_the_tables_as_computed():
    text = DOCS.read_text()
    assert "\n".join(table()) in text
    fields = field_table()
    assert "\n".join(fields) in text
    assert [row for row in fields if row.endswith("|  |") and "| none |" not in row] == []
    assert "python tests/attack_signatures.py" in text
    for monitor in MONITORS:
        assert f"`{monitor}`" in text


def test_a_signature_that_is_wrong_is_found():
    """The canary of the canaries: an expectation that is off by a fifth does not pass."""
    for signature in SEEN_IN_COUNTS[:4]:
        seen = observe(signature.setup, (signature.attack,), signature.pulses, seed=11)
        wrong = dataclasses.replace(signature, attacked=signature.attacked * 1.2 if signature.attacked > 1e-3 else 1e-3)
        assert binomial_p_value(*signature.count(seen), wrong.attacked) < P_LIMIT


def test_late_is_even_without_an_attack():
    assert binomial_p_value(*late(observe(reference_link(), (), 2e7)), 0.5) > P_LIMIT

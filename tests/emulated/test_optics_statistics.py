"""The optical link against closed forms of click probabilities.

Mean photon numbers in the two outputs of an analyser are independent Poisson numbers with means m(1-e) and m e.
"""

import math

import numpy as np
import pytest

from qkdhw_emulators.optics.link_model import CHUNK_PULSES, LinkModel
from qkdhw_emulators.optics.parameters import LinkParameters

Z_LIMIT = 4.75  # two-sided p about 2e-6, one-sided 1e-6

STILL = {
    "receiver_clock_offset_s": 0.0,
    "receiver_clock_ppm": 0.0,
    "receiver_clock_drift_ppm_per_s": 0.0,
    "receiver_clock_walk_ppm": 0.0,
}


def chi_square_z(observed, expected, variance):
    """Wilson-Hilferty: chi-square as a standard normal number."""
    big = expected >= 20
    n = int(big.sum())
    chi2 = float((((observed - expected) ** 2) / variance)[big].sum())
    return ((chi2 / n) ** (1 / 3) - (1 - 2 / (9 * n))) / math.sqrt(2 / (9 * n)), n


def click_probabilities(mean, d, e):
    """Only the right detector, only the wrong one, both."""
    r = 1 - (1 - d) * math.exp(-mean * (1 - e))
    w = 1 - (1 - d) * math.exp(-mean * e)
    return r * (1 - w), w * (1 - r), r * w


def run(parameters, *, chunks, seed=11):
    """Records and 4-bit click patterns of every pulse, from the outputs alone."""
    model = LinkModel(parameters, seed=seed)
    pulses = chunks * CHUNK_PULSES
    clicks = np.zeros(pulses, np.uint8)
    records = []
    for _ in range(chunks):
        chunk = model.next_chunk()
        records.append(np.stack((chunk.records & 15, chunk.records >> 4), axis=1).ravel())
        pulse = np.rint((chunk.ticks * 2000 + 1000) / parameters.pulse_period_ps).astype(np.int64)
        inside = pulse < pulses
        np.bitwise_or.at(clicks, pulse[inside], chunk.pattern[inside])
    # The last clicks of the last chunk wait for the next one.
    return np.concatenate(records)[:-8], clicks[:-8], model


def test_closed_form_gives_the_published_numbers():
    right, wrong, both = click_probabilities(0.5 * 0.1, 1e-5, 0.01)
    assert right == pytest.approx(0.04827972997, abs=5e-12)
    assert wrong == pytest.approx(0.00048524108, abs=5e-12)
    assert both == pytest.approx(2.4628945e-5, abs=5e-13)
    gain = right + wrong + both
    assert gain == pytest.approx(0.04878959999, abs=5e-12)
    assert (wrong + both / 2) / gain == pytest.approx(0.01019798379, abs=5e-12)


def test_what_is_prepared_follows_the_quantised_probabilities():
    p = LinkParameters(intensity_probability=(0.6, 0.3, 0.1), key_basis_probability=0.8)
    records, _, _ = run(p, chunks=2)
    weights = np.array([39322, 19661, 6553]) / 65536  # 0.6, 0.3, 0.1
    basis = np.array([52429, 13107]) / 65536
    expected = records.shape[0] * np.einsum("i,b,v->ibv", weights, basis, [0.5, 0.5]).ravel()
    cell = (records >> 2) * 4 + ((records >> 1) & 1) * 2 + (records & 1)
    z, n = chi_square_z(np.bincount(cell, minlength=12), expected, expected)
    assert n == 12
    assert abs(z) < Z_LIMIT


@pytest.mark.parametrize("e", [0.02, 0.3])
def test_click_counts_per_intensity_basis_bit_and_detector(e):
    p = LinkParameters(
        mean_photon_number=(0.8, 0.3, 0.05),
        intensity_probability=(0.5, 0.3, 0.2),
        key_basis_probability=0.6,
        receiver_key_basis_probability=0.7,
        loss_db=3.0,
        detector_efficiency=0.6,
        dark_count_rate_hz=0.0,
        dead_time_ns=10.0,  # longer than the jitter, shorter than a period: one click a pulse and detector
        jitter_ps=200.0,
        misalignment=e,
        **STILL,
    )
    records, clicks, _ = run(p, chunks=4)
    reach = p.transmittance * p.detector_efficiency
    observed, expected, variance = [], [], []
    for record in range(12):
        intensity, basis, bit = record >> 2, (record >> 1) & 1, record & 1
        mine = clicks[records == record]
        mean = p.mean_photon_number[intensity] * reach
        for arm in (0, 1):
            arm_mean = mean * (0.7, 0.3)[arm]
            probabilities = click_probabilities(arm_mean, 0.0, e if arm == basis else 0.5)
            right = (mine >> (2 * arm + bit)) & 1
            wrong = (mine >> (2 * arm + 1 - bit)) & 1
            counts = (right & ~wrong & 1, wrong & ~right & 1, right & wrong)
            for count, probability in zip(counts, probabilities, strict=True):
                observed.append(int(count.sum()))
                expected.append(mine.shape[0] * probability)
                variance.append(mine.shape[0] * probability * (1 - probability))
    z, n = chi_square_z(np.array(observed), np.array(expected), np.array(variance))
    assert n > 55
    assert abs(z) < Z_LIMIT


def test_truth_is_what_comes_out_when_nothing_is_lost():
    p = LinkParameters(dark_count_rate_hz=0.0, dead_time_ns=0.0, jitter_ps=0.0, loss_db=20.0, **STILL)
    records, clicks, model = run(p, chunks=1)
    seen = np.zeros((3, 2, 2, 4), np.int64)
    for detector in range(4):
        clicked = records[(clicks >> detector) & 1 == 1]
        np.add.at(seen, (clicked >> 2, (clicked >> 1) & 1, clicked & 1, detector), 1)
    # Two photons of a pulse in one detector are one click.
    assert 0 <= model.truth.sum() - seen.sum() < 60
    assert (model.truth >= seen).all()


@pytest.mark.parametrize(("fraction", "qber"), [(0.0, 0.0), (0.4, 0.1), (1.0, 0.25)])
def test_intercept_resend_makes_a_quarter_of_the_attacked_bits_wrong(fraction, qber):
    p = LinkParameters(
        misalignment=0.0,
        dark_count_rate_hz=0.0,
        dead_time_ns=10.0,
        jitter_ps=200.0,
        eavesdropper="intercept-resend",
        eavesdropper_fraction=fraction,
        key_basis_probability=0.5,
        receiver_key_basis_probability=0.5,
        **STILL,
    )
    records, clicks, _ = run(p, chunks=4)
    for basis in (0, 1):
        prepared = ((records >> 1) & 1) == basis
        bit, mine = records[prepared] & 1, (clicks[prepared] >> (2 * basis)) & 3
        clicked = mine > 0
        wrong = np.where(mine == 3, 0.5, mine == (2 - bit))[clicked]
        n = int(clicked.sum())
        assert n > 10_000
        sigma = math.sqrt(qber * (1 - qber) / n)
        assert abs(float(wrong.mean()) - qber) <= Z_LIMIT * sigma


def test_intercept_resend_leaves_the_rate_as_it_was():
    quiet = LinkParameters(dead_time_ns=0.0, **STILL)
    tapped = LinkParameters(dead_time_ns=0.0, eavesdropper="intercept-resend", **STILL)
    a = sum(int((run(quiet, chunks=2)[1] >> d & 1).sum()) for d in range(4))
    b = sum(int((run(tapped, chunks=2)[1] >> d & 1).sum()) for d in range(4))
    assert abs(a - b) / math.sqrt(a + b) < Z_LIMIT


def dark_times(p, *, chunks):
    model = LinkModel(p, seed=3)
    parts = [model.next_chunk(light=False) for _ in range(chunks)]
    ticks = np.concatenate([c.ticks for c in parts])
    pattern = np.concatenate([c.pattern for c in parts])
    return [ticks[(pattern >> d) & 1 == 1] for d in range(4)], parts[-1].horizon_ticks


def test_dark_counts_are_poissonian_and_begin_with_the_receiver():
    p = LinkParameters(dark_count_rate_hz=20_000.0, dead_time_ns=0.0, **(STILL | {"receiver_clock_offset_s": 0.3}))
    channels, horizon_ticks = dark_times(p, chunks=20)
    behind_s = 0.3 + 20 * CHUNK_PULSES / 20e6 - horizon_ticks * 2e-9
    assert 0 <= behind_s < 2e-5
    for ticks in channels:
        expected = 20_000 * horizon_ticks * 2e-9
        assert abs(ticks.shape[0] - expected) < Z_LIMIT * math.sqrt(expected)
        begun = int((ticks < 150_000_000).sum())
        assert abs(begun - 6000) < Z_LIMIT * math.sqrt(6000)


@pytest.mark.parametrize("load", [0.1, 1.0, 5.0])
def test_dead_time_is_enforced_across_chunks_and_gives_the_saturated_rate(load):
    rate_hz = 400_000.0
    dead_s = load / rate_hz
    p = LinkParameters(dark_count_rate_hz=rate_hz, dead_time_ns=dead_s * 1e9, jitter_ps=0.0, **STILL)
    channels, horizon_ticks = dark_times(p, chunks=10)
    duration_s = horizon_ticks * 2e-9
    expected = duration_s * rate_hz / (1 + load)
    sigma = math.sqrt(expected) / (1 + load)
    for ticks in channels:
        assert int(np.diff(ticks).min()) >= math.floor(dead_s / 2e-9)
        assert abs(ticks.shape[0] - expected) < Z_LIMIT * sigma + 1
        # Intervals are the dead time and an exponential time: their mean and spread.
        wait_s = np.diff(ticks) * 2e-9 - dead_s
        assert abs(wait_s.mean() * rate_hz - 1) < Z_LIMIT / math.sqrt(wait_s.shape[0])
        assert wait_s.std() * rate_hz == pytest.approx(1, abs=0.05)


def test_receiver_clock_runs_off_as_it_should():
    p = LinkParameters(
        dark_count_rate_hz=0.0,
        jitter_ps=0.0,
        dead_time_ns=0.0,
        receiver_clock_offset_s=0.001,
        receiver_clock_ppm=20.0,
        receiver_clock_drift_ppm_per_s=0.5,
        receiver_clock_walk_ppm=0.0,
    )
    model = LinkModel(p, seed=5)
    for chunk in range(20):
        got = model.next_chunk()
        since_s = got.ticks * 2e-9 - 0.001
        sent_s = since_s / (1 + 20e-6 + 0.5e-6 * since_s / 2)
        phase = np.abs(sent_s * 20e6 - np.rint(sent_s * 20e6)) * 50
        assert np.median(phase) < 4, chunk  # ns; half a period is 25
    assert model.end_s == pytest.approx(20 * CHUNK_PULSES / 20e6)


def test_jitter_has_the_standard_deviation_asked_for():
    p = LinkParameters(dark_count_rate_hz=0.0, dead_time_ns=0.0, jitter_ps=3000.0, **STILL)
    chunk = LinkModel(p, seed=9).next_chunk()
    late_ps = (chunk.ticks * 2000 + 1000 + 25_000) % 50_000 - 25_000
    expected_ps = math.sqrt(3000**2 + 2000**2 / 12)
    assert late_ps.std() == pytest.approx(expected_ps, rel=5 / math.sqrt(2 * late_ps.shape[0]))
    assert abs(late_ps.mean()) < Z_LIMIT * expected_ps / math.sqrt(late_ps.shape[0]) + 20

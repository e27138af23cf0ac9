"""Published links through light, detectors and tagger against closed forms, at ten million events each.

Each check is made again with a model that is wrong by a few percent, which the same events must refuse. Detectors on
their own through the engine: test_detector_validation.py; attacks: test_attack_signatures.py; pairs with fine ticks and
pulsed pairs: test_pair_statistics.py; kernels: tests/kernels; closed forms themselves: tests/unit/test_expected_counts.py.
"""

import dataclasses
import math

import numpy as np
import pytest
from optics_judges import LEAST_P, changed, count, p_gauss, p_of_counts, together

from qkdhw_emulators.optics.closed_forms import steady_pairs
from qkdhw_emulators.optics.expected import expected_counts, expected_gain_and_qber
from qkdhw_emulators.optics.presets import load_setup, preset_names
from qkdhw_emulators.optics.simulation import LinkSimulation

EVENTS = 1e7
# At 18 events a second ten million are a week of the link, in which a double does not hold picoseconds: a day at a time.
RUNS = {"geneva-2018-404km": 40}
# Links of few events a pulse: longer cells are less work for the same light.
CELL_PULSES = {
    "geneva-2018": 1 << 28,
    "geneva-2018-404km": (1 << 31) - 1,
    "idq-clavis": 1 << 20,
    "idq-cow-2015": 1 << 22,
}

# Factors on what a preset has. All: efficiency by 1.03; where it shows: the others.
CANARIES = {
    "geneva-2018": {"decoy": 1.03, "misalignment": 1.05},
    "geneva-2018-404km": {"decoy": 1.06},
    "idq-clavis": {"dead_time": 1.05, "misalignment": 1.05, "afterpulses": 1.1},
    "idq-cow-2015": {"dead_time": 1.05, "misalignment": 1.05, "afterpulses": 1.05},
    "lim-2014": {"decoy": 1.03, "misalignment": 1.1, "afterpulses": 1.05},
    "rusca-2018": {"decoy": 1.03, "dead_time": 1.05, "misalignment": 1.05},
    # 0.2: afterpulses in what is open of a period, in place of all of them in gates
    "toshiba-t12-2013": {"decoy": 1.2, "misalignment": 1.1, "afterpulses": 1.05, "gated_afterpulses": 0.2},
}


def wrong(setup, what, factor):
    """Return the setup with one of its values multiplied."""
    detector = setup.receiver.detectors[0]
    if what == "efficiency":
        return changed(setup, detectors={"efficiency": detector.efficiency * factor})
    if what == "dead_time":
        return changed(setup, detectors={"dead_time_ns": detector.dead_time_ns * factor})
    if what == "misalignment":
        return changed(setup, receiver={"misalignment": tuple(e * factor for e in setup.receiver.misalignment)})
    if what == "decoy":
        intensities = [i.model_dump() for i in setup.source.intensities]
        intensities[1]["mean_photon_number"] *= factor
        return changed(setup, source={"intensities": tuple(intensities)})
    children = tuple({**a.model_dump(), "probability": a.probability * factor} for a in detector.afterpulses)
    return changed(setup, detectors={"afterpulses": children})


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CANARIES)
def test_counts_of_a_preset_are_as_expected_in_every_cell(name):
    setup = load_setup(name)
    runs = RUNS.get(name, 1)
    counted = together(
        [count(setup, EVENTS / runs, seed=1 + k, cell_pulses=CELL_PULSES.get(name)) for k in range(runs)]
    )
    assert counted.clicks.sum() > 0.95 * EVENTS
    assert p_of_counts(counted, setup) > LEAST_P
    for what, factor in {"efficiency": 1.03, **CANARIES[name]}.items():
        assert p_of_counts(counted, wrong(setup, what, factor)) < LEAST_P, what


def test_every_preset_is_validated():
    assert preset_names() == tuple(sorted([*CANARIES, "sfifteen-bbm92"]))


# --- what was published of T12 ------------------------------------------------------------------------------------
def t12_with_more_decoys():
    """The link of 2013 with a third of its pulses in the two decoys, and as much light as it had.

    Decoys are one pulse in 85 there: too few to judge in a few seconds. A brighter fourth setting keeps the mean photon
    number, and with it the afterpulses, which make most of the gain of the weakest. Gains are per choice, so how often
    a choice is made is no matter.
    """
    setup = load_setup("toshiba-t12-2013")
    mean = sum(i.mean_photon_number * i.probability for i in setup.source.intensities)
    signal, decoy, vacuum = (i.mean_photon_number for i in setup.source.intensities)
    bright = (mean - 0.15 * decoy - 0.2 * vacuum - 0.65 * signal) / signal
    settings = ((2 * signal, bright), (signal, 0.65 - bright), (decoy, 0.15), (vacuum, 0.2))
    intensities = tuple({"mean_photon_number": mu, "probability": p} for mu, p in settings)
    return changed(
        setup,
        source={"intensities": intensities, "key_basis_probability": 0.75},
        receiver={"key_basis_probability": 0.75},
    )


def gains_and_error_rates(setup, counted):
    """Return (gain, detections) by intensity and basis, and (error rate, errors) likewise; a random bit for two clicks."""
    chosen = np.array([i.probability for i in setup.source.intensities])[:, None] * counted.n_pulses
    chosen = chosen * np.array([setup.source.key_basis_probability, 1 - setup.source.key_basis_probability]) ** 2
    found, doubles = (np.moveaxis(a.diagonal(0, 1, 3), -1, 1) for a in (counted.clicks, counted.doubles))
    both = doubles.sum(axis=2)[:, :2]
    detections = found.sum(axis=(2, 3))[:, :2] - both
    errors = (found[..., 0, 1] + found[..., 1, 0])[:, :2] - both / 2
    return detections / chosen, detections, errors / detections


def test_t12_has_its_published_gains_and_error_rates():
    setup = t12_with_more_decoys()
    published = load_setup("toshiba-t12-2013").published
    model = expected_gain_and_qber(load_setup("toshiba-t12-2013"))
    judged = {"gain_key_0": (1, 0), "gain_key_1": (2, 0), "gain_key_2": (3, 0), "gain_test_0": (1, 1)}
    off = {name: abs(model[name] / published[name] - 1) for name in judged}
    assert max(off.values()) < 0.01  # of the closed form, without statistics; weak gains in the test basis are off

    def fits(counted, most_error):
        gain, detections, qber = gains_and_error_rates(setup, counted)
        error = {name: 1 / math.sqrt(detections[cell]) for name, cell in judged.items()}
        assert max(error.values()) < most_error
        near = [abs(gain[cell] / published[name] - 1) < 0.01 + 3 * error[name] for name, cell in judged.items()]
        near += [abs(qber[1, b] - published[f"qber_{basis}_0"]) < 0.001 for b, basis in enumerate(("key", "test"))]
        return all(near)

    assert fits(count(setup, 2e7, seed=2), 0.003)
    for what, factor in {"efficiency": 1.03, "misalignment": 1.15, "afterpulses": 0.8}.items():
        assert not fits(count(wrong(setup, what, factor), 2e6, seed=3), 0.01), what


# --- pairs --------------------------------------------------------------------------------------------------------
WINDOW_PS, FAR_PS, AWAY_PS = 1500.0, 2_000_000.0, 100_000.0


@dataclasses.dataclass(frozen=True)
class Kit:
    """What the sources of pairs are expected to give: eta and dark counts of each side, error of a pair."""

    eta: tuple[float, float] = (0.12, 0.04)
    dark_hz: tuple[float, float] = (2000.0, 8000.0)
    e_pol: float = 0.015 + 0.01546 - 2 * 0.015 * 0.01546
    sigma_ps: float = math.hypot(357, 125 / math.sqrt(12)) * math.sqrt(2)
    dead_s: float = 50e-9

    def p_values(self, seen):
        """Return p of singles, coincidences, accidentals and error rate."""
        near, far = (
            steady_pairs(4e5, self.eta, self.dark_hz, w * 1e-12, self.sigma_ps * 2.354820045e-12, self.e_pol)
            for w in (WINDOW_PS, FAR_PS)
        )
        seconds, coincident = seen["seconds"], near.true_hz + near.accidental_hz
        rates = near.singles_a_hz, near.singles_b_hz
        live = [1 / (1 + rate / 4 * self.dead_s) for rate in rates]
        singles = [seconds * rate * on for rate, on in zip(rates, live, strict=True)]
        both = live[0] * live[1] * seconds
        # events near to each other share pairs of events: more than Poissonian
        shared = 1 + (sum(rates)) * FAR_PS * 1e-12
        n = seen["sifted"]
        return {
            "singles at alice": p_gauss(seen["singles"][0], singles[0], singles[0] * live[0] ** 2),
            "singles at bob": p_gauss(seen["singles"][1], singles[1], singles[1] * live[1] ** 2),
            "coincidences": p_gauss(seen["near"], coincident * both, coincident * both),
            "accidentals": p_gauss(seen["far"], far.accidental_hz * both, far.accidental_hz * both * shared),
            "error rate": p_gauss(seen["wrong"], n * near.qber, n * near.qber * (1 - near.qber)),
        }


def seen_of_pairs(n_events):
    """Count with ticks of 125 ps and a clock of Bob's that is 3 ppm fast, which is taken out; its offset is none."""
    setup = changed(load_setup("sfifteen-bbm92"), tagger={"clock_offset_s": 0.0}, sender_tagger={"clock_offset_s": 0.0})
    cells = []
    with LinkSimulation(setup, seed=1) as link:
        while len(cells) < n_events / 74_000 / link.cell_s:
            cell = link.next_cell()
            cells.append([(e.ticks, e.channel, e.end_ticks) for e in (cell.alice, cell.bob)])
    ends = []
    for which, rate in enumerate((1.0, 1 + 3e-6)):
        ticks, channel = (np.concatenate([c[which][k] for c in cells]) for k in (0, 1))
        ends.append(((ticks + 0.5) * 125 / rate, channel, cells[-1][which][2] * 125 / rate))
    end_ps = min(end for _, _, end in ends)
    (alice, a, _), (bob, b, _) = ends
    a, alice, b, bob = a[alice < end_ps], alice[alice < end_ps], b[bob < end_ps], bob[bob < end_ps]
    begin, last = (np.searchsorted(bob, alice + side * WINDOW_PS / 2) for side in (-1, 1))
    n = last - begin
    first = np.repeat(np.arange(len(n)), n)
    second = begin[first] + np.arange(len(first)) - np.repeat(np.cumsum(n) - n, n)
    same = a[first] // 2 == b[second] // 2
    return {
        "seconds": end_ps * 1e-12,
        "singles": (len(alice), len(bob)),
        "near": len(first),
        "far": int((np.searchsorted(bob, alice + AWAY_PS + FAR_PS) - np.searchsorted(bob, alice + AWAY_PS)).sum()),
        "sifted": int(same.sum()),
        "wrong": int((a[first] != b[second])[same].sum()),
    }


def test_counts_of_the_pairs_preset_are_as_expected():
    seen = seen_of_pairs(EVENTS)
    assert sum(seen["singles"]) > 0.99 * EVENTS
    assert min(Kit().p_values(seen).values()) > LEAST_P
    canaries = {
        "singles at alice": Kit(eta=(0.1205, 0.04)),
        "singles at bob": Kit(dead_s=1e-6),
        "coincidences": Kit(sigma_ps=1.05 * Kit().sigma_ps),
        "accidentals": Kit(dark_hz=(2500.0, 8240.0)),
        "error rate": Kit(e_pol=1.1 * Kit().e_pol),
    }
    for what, model in canaries.items():
        assert model.p_values(seen)[what] < LEAST_P, what


def test_expected_counts_of_more_decoys_are_those_of_the_link():
    """The decoys' gains of `t12_with_more_decoys` are those of the published link to 0.1 %."""
    few, more = expected_gain_and_qber(load_setup("toshiba-t12-2013")), expected_gain_and_qber(t12_with_more_decoys())
    for k in range(3):
        assert more[f"gain_key_{k + 1}"] == pytest.approx(few[f"gain_key_{k}"], rel=1e-3)
    assert expected_counts(t12_with_more_decoys(), 1).clicks.shape[0] == 4

"""What both sites' pipelines should find on an emulated link, in closed form, and how probable what they found is."""

from fractions import Fraction

import numpy as np
from optics_judges import p_chi_square

from qkdhw.model import PreparationBlock
from qkdhw_emulators.optics.expected import _Link, expected_counts
from qkdhw_emulators.optics.simulation import LinkSimulation
from qkdhw_emulators.simulate.writers import events_block

FEWEST = 20  # expected bits of a cell that is judged
RECORD_PULSES = 1 << 20


class SimulatedEnds:
    """A link simulated while it is being read: events of the receiver, record of the sender, bases of a switch."""

    def __init__(self, setup, n_pulses, seed, threads=1):
        self.setup, self.n_pulses, self.seed, self.threads = setup, n_pulses, seed, threads

    def events(self):
        with LinkSimulation(self.setup, seed=self.seed, threads=self.threads) as link:
            tick_ps = Fraction(link.setup.tagger.tick_fs, 1000)
            for _ in range(-(-self.n_pulses // link.cell_pulses)):
                bob = link.next_cell().bob
                yield events_block(bob.ticks, bob.channel, tick_ps)

    def record(self):
        for first, choices in self._choices("prepared"):
            record = choices % 2 | choices // 2 % 3 << 1 | choices // 6 << 2
            yield PreparationBlock(first, record.astype(np.uint8))

    def bases(self):
        for first, choices in self._choices("measured"):
            yield PreparationBlock(first, (choices << 1).astype(np.uint8))

    def _choices(self, what):
        """Choices depend on the seed alone: another simulation, which makes no light, has the same."""
        with LinkSimulation(self.setup, seed=self.seed) as link:
            for first in range(0, self.n_pulses, RECORD_PULSES):
                n = min(RECORD_PULSES, self.n_pulses - first)
                if what == "prepared":
                    yield first, link.prepared(first, n)
                else:
                    yield first, link.measured_at(np.arange(first, first + n))


def expected_sifted(setup, n_pulses, window_ps):
    """Return (mean of kept bits and of errors (2, K) each, Fano factors and clicks (detectors,)).

    Two clicks of a basis are one outcome with a bit drawn; clicks in both bases are one outcome with a basis drawn.
    """
    expected = expected_counts(setup, n_pulses, window_ps)
    alone = expected_counts(setup, 1, window_ps).clicks
    chosen = np.broadcast_to(_Link(setup, None).choice_probability(), alone.shape)
    chance = alone / chosen  # of a click, given the choices
    passive = setup.receiver.basis_choice == "passive"
    n_intensities = alone.shape[0]
    kept, errors = np.zeros((2, 3)), np.zeros((2, 3))
    for k, b, x in np.ndindex(n_intensities, 2, 2):
        right, wrong = chance[k, b, x, b, x], chance[k, b, x, b, 1 - x]
        other = 0.0
        if passive:
            p, q = chance[k, b, x, 1 - b]
            other = p + q - p * q
        weight = n_pulses * chosen[k, b, x, b, 0] * (1 - other / 2)
        kept[b, k] += weight * (right + wrong - right * wrong)
        errors[b, k] += weight * (wrong - right * wrong / 2)
    return kept, errors, expected.detector_fano, expected.detector_clicks


def p_of_report(report, setup, n_pulses, window_ps):
    """Return how probable these bits and errors, or worse ones, are on a link of this setup: chi-square of all cells."""
    kept, errors, fano, clicks = expected_sifted(setup, n_pulses, window_ps)
    mean = np.stack((kept - errors, errors))
    off = np.stack((report.kept - report.errors, report.errors)) - mean
    shared = setup.receiver.meaning[0].startswith("any")
    groups = [(slice(None), slice(None))] if shared else [(slice(0, 2), 0), (slice(2, 4), 1)]
    chi_square, n = 0.0, 0
    for detectors, basis in groups:
        m, d = mean[:, basis].ravel(), off[:, basis].ravel()
        judged = m >= FEWEST
        m, d = m[judged], d[judged]
        c = (1 - float(fano[detectors].mean())) / float(clicks[detectors].sum())
        chi_square += float((d**2 / m).sum() + d.sum() ** 2 * c / (1 - c * m.sum()))
        n += len(m)
    return p_chi_square(chi_square, n)

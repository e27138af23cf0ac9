"""Light by pulse: choices one pulse at a time from a Philox told in plain Python, and what clicks from closed forms."""

import math

import numpy as np

POISSON = 255


def philox(counter, key):
    """Return the four words of a block of Philox4x32-10, of four and two words of 32 bits."""
    a, b, c, d = counter
    for r in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        k0, k1 = (key[0] + r * 0x9E3779B9) % 2**32, (key[1] + r * 0xBB67AE85) % 2**32
        a, b, c, d = right >> 32 ^ b ^ k0, right % 2**32, left >> 32 ^ d ^ k1, left % 2**32
    return a, b, c, d


def halves(word):
    return word % 2**32, word >> 32


def word(key, pulse):
    low, high, *_ = philox((*halves(int(pulse)), *halves(int(key[1]))), halves(int(key[0])))
    return low | high << 32


def draw(sixteen_bits, thresholds):
    return next(k for k, threshold in enumerate(thresholds) if sixteen_bits < threshold)


def prepare(tables, key, pulse):
    bits = word(key, pulse)
    intensity = draw(bits & 0xFFFF, tables.intensity_thresholds)
    basis = draw(bits >> 16 & 0xFFFF, tables.basis_thresholds)
    bit = 0 if tables.three_state and basis == 1 else bits >> 32 & 1
    return (intensity * 3 + basis) * 2 + bit


def measure(tables, key, pulse):
    return draw(word(key, pulse) & 0xFFFF, tables.bob_thresholds)


def state(tables, keys, pulse):
    choice, bob = prepare(tables, keys[0], pulse), measure(tables, keys[1], pulse)
    eve = (word(keys[2], pulse) >> 32) / 2**32
    hidden = next(k for k, limit in enumerate(tables.hidden_cumulative[choice, bob]) if eve < limit)
    return (choice * tables.n_bob + bob) * tables.n_hidden + hidden


def state_probabilities(tables):
    """Return how often each state comes, (n_states,)."""
    intensity, basis, bob = (
        np.diff(t, prepend=0) / 65536
        for t in (
            tables.intensity_thresholds.astype(int),
            tables.basis_thresholds.astype(int),
            tables.bob_thresholds.astype(int),
        )
    )
    out = np.zeros((len(intensity), 3, 2, len(bob), tables.n_hidden))
    hidden = np.diff(tables.hidden_cumulative, prepend=0, axis=2).reshape(out.shape)
    for i, b, x, r in np.ndindex(len(intensity), len(basis), 2, len(bob)):
        bit = (1.0 - x) if tables.three_state and b == 1 else 0.5
        out[i, b, x, r] = intensity[i] * basis[b] * bit * bob[r] * hidden[i, b, x, r]
    return out.ravel()


def outcome_probabilities(tables, factor=1.0):
    """Return the probability that exactly a set of modes has a photon, for each state, (n_states, 2^n_modes).

    Inclusion and exclusion: no photon outside a set is e^-mean for Poissonian light, (1 - share)^k for k photons.
    """
    n_states, n_modes = tables.shares.shape
    masks = range(2**n_modes)
    within = np.zeros((n_states, 2**n_modes))
    for s, mask in np.ndindex(within.shape):
        outside = sum(tables.shares[s, m] for m in range(n_modes) if not mask >> m & 1)
        k = int(tables.photons[s])
        within[s, mask] = math.exp(-outside * factor) if k == POISSON else max(0.0, 1 - outside) ** k
    out = np.zeros_like(within)
    for mask in masks:
        for subset in masks:
            if subset & mask == subset:
                out[:, mask] += (-1) ** (mask ^ subset).bit_count() * within[:, subset]
    return out


def noisy_outcome_probabilities(tables):
    """Return the same with the source's noise, common to all photons of a pulse (Gauss-Hermite)."""
    x, weight = np.polynomial.hermite_e.hermegauss(40)
    weight /= weight.sum()
    return sum(
        w * outcome_probabilities(tables, 1 + tables.intensity_noise * d) for d, w in zip(x, weight, strict=True)
    )


def chi_square_p(observed, expected):
    """Return how likely counts so far from the expected are; cells that expect less than 20 are merged into one."""
    observed, expected = np.ravel(observed).astype(float), np.ravel(expected)
    small = expected < 20
    observed = np.append(observed[~small], observed[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    if expected[-1] < 20:
        observed, expected = observed[:-1], expected[:-1]
    return upper_tail(float(((observed - expected) ** 2 / expected).sum()), len(expected))


def upper_tail(chi_square, freedom):
    """Return the chi-square distribution's upper tail, in closed form."""
    y = chi_square / 2
    if y > 700:
        return 0.0
    odd = freedom % 2
    total = math.erfc(math.sqrt(y)) if odd else 0.0
    for i in range((freedom - odd) // 2):
        total += math.exp(-y + (i + odd / 2) * math.log(max(y, 1e-300)) - math.lgamma(i + 1 + odd / 2))
    return total

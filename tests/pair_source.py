"""Detections of an entangled source at two sites, for tests: pairs with jitter and errors among uncorrelated singles."""

import numpy as np


def entangled_source(
    *, seed=1, duration_s=0.1, singles=(1e6, 3e5), pairs=1e5, jitter_ps=300.0, qber=0.02, offset=1_234_567, rate=1.0
):
    """((ticks, detectors) of either site, pairs), ticks of 125 ps; the first site's clock reads offset + rate * the second's."""
    rng = np.random.default_rng(seed)
    n = rng.poisson(pairs * duration_s)
    time = rng.random(n) * duration_s * 8e9
    bases, bit = rng.integers(0, 2, (2, n)), rng.integers(0, 2, n)
    wrong = np.where(bases[0] == bases[1], rng.random(n) < qber, rng.integers(0, 2, n))

    def site(single_rate, basis, bit):
        m = rng.poisson((single_rate - pairs) * duration_s)
        times = np.concatenate((time + rng.normal(0, jitter_ps / 125, n), rng.random(m) * duration_s * 8e9))
        detectors = np.concatenate((2 * basis + bit, rng.integers(0, 4, m))).astype(np.uint8)
        order = np.argsort(times)
        return times[order] + 1e6, detectors[order]

    first, second = site(singles[0], bases[0], bit), site(singles[1], bases[1], bit ^ wrong)
    ticks = np.floor(first[0] * rate + offset).astype(np.int64), np.floor(second[0]).astype(np.int64)
    return (ticks[0], first[1]), (ticks[1], second[1])


def error_rate(ours, theirs):
    """Share of bits in which the sifted pairs of two sites differ."""
    wrong = total = 0
    for one, other in zip(ours, theirs, strict=True):
        for a, b in ((one.key_bits, other.key_bits), (one.test_bits, other.test_bits)):
            wrong += int(np.bitwise_count(a ^ b).sum())
        total += one.n_key + one.n_test
    return wrong / total

"""Health tests of a noise source: its samples are only used while all of them pass.

Two tests and their cutoffs are those of NIST SP 800-90B. A third is this package's own: no block of output comes twice,
so a source that plays the same bytes again and again, each of them random, is found out too.

Source:
    NIST SP 800-90B (January 2018): 4.3 requirements, 4.4.1 repetition count test, 4.4.2 adaptive proportion test,
    4.5 developer-defined alternatives.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque

from qkdhw._core import health
from qkdhw.errors import ConfigurationError
from qkdhw.secret import SecretBuffer

WINDOWS = {1: 1024, 8: 512}  # samples of a window of the adaptive proportion test, by bits of a sample
BLOCK_BYTES = 512
BLOCKS_REMEMBERED = 4096
STATE_WORDS = 5
FAILURES = ("", "repetition_count_test", "adaptive_proportion_test", "repeated_block_test")


def repetition_cutoff(min_entropy_bits: float, false_alarm_exponent: int) -> int:
    """Return how many equal samples in a row fail the repetition count test.

    Args:
        min_entropy_bits: Min-entropy that the source is claimed to have, bits a sample.
        false_alarm_exponent: A source that has just so much fails with probability 2^-this, for each sample.

    Source:
        NIST SP 800-90B, 4.4.1: C = 1 + ceil(-log2(alpha) / H).
    """
    return 1 + math.ceil(false_alarm_exponent / min_entropy_bits)


def proportion_cutoff(window: int, min_entropy_bits: float, false_alarm_exponent: int) -> int:
    """Return how many samples of a window, equal to its first, fail the adaptive proportion test.

    Args:
        window: Samples of a window.
        min_entropy_bits: Min-entropy that the source is claimed to have, bits a sample.
        false_alarm_exponent: A source that has just so much fails with probability 2^-this, for each window.

    Source:
        NIST SP 800-90B, 4.4.2: C = 1 + critbinom(W, 2^-H, 1 - alpha).
    """
    log_hit, log_miss = -min_entropy_bits * math.log(2), math.log1p(-(2.0**-min_entropy_bits))
    above, count = 0.0, window
    while True:
        log_ways = math.lgamma(window + 1) - math.lgamma(count + 1) - math.lgamma(window - count + 1)
        above += math.exp(log_ways + count * log_hit + (window - count) * log_miss)
        if above > 2.0**-false_alarm_exponent:
            return count + 1
        count -= 1


class HealthTests:
    """Continuous tests of one noise source. A failure latches until `restart`.

    Args:
        min_entropy_bits: Min-entropy that the source is claimed to have, bits a sample: 0.1 to `sample_bits`.
        sample_bits: Bits of a sample, 1 or 8.
        false_alarm_exponent: 20 to 40: probability 2^-this of failing a source that has just that min-entropy, for each
            sample (repetition count) or window (adaptive proportion).

    Attributes:
        failure: Name of the test that failed, or "".

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(self, *, min_entropy_bits: float = 0.8, sample_bits: int = 1, false_alarm_exponent: int = 40) -> None:
        if sample_bits not in WINDOWS:
            raise ConfigurationError(f"sample_bits is {sample_bits!r}", remedy="use 1 or 8")
        if not 0.1 <= min_entropy_bits <= sample_bits:
            raise ConfigurationError(
                f"min_entropy_bits is {min_entropy_bits!r}", remedy=f"use bits a sample, 0.1 to {sample_bits}"
            )
        if false_alarm_exponent not in range(20, 41):
            raise ConfigurationError(f"false_alarm_exponent is {false_alarm_exponent!r}", remedy="use 20 to 40")
        self._sample_bits = sample_bits
        self._window = WINDOWS[sample_bits]
        self.repetition_cutoff = repetition_cutoff(min_entropy_bits, false_alarm_exponent)
        self.proportion_cutoff = proportion_cutoff(self._window, min_entropy_bits, false_alarm_exponent)
        self._state = SecretBuffer(8 * STATE_WORDS)  # the last sample is part of a key; wiped with this object
        self.restart()

    def restart(self) -> None:
        """Forget everything, failures too: as when the source was switched on."""
        self.failure = ""
        with memoryview(self._state).cast("q") as words:
            words[:] = memoryview(b"\xff" * 8 + bytes(8 * STATE_WORDS - 8)).cast("q")
        self._digests: deque[bytes] = deque(maxlen=BLOCKS_REMEMBERED)
        self._known: set[bytes] = set()

    def passes(self, data: memoryview) -> bool:
        """Take the next samples and say whether all tests pass, and have passed since the start.

        Args:
            data: uint8 (n,), the samples as they come; n is a multiple of 512, or the rest is not looked at by the
                repeated-block test.
        """
        if not self.failure:
            with memoryview(self._state).cast("q") as words:
                _, failed = health.check_samples(
                    data, words, self._sample_bits, self.repetition_cutoff, self.proportion_cutoff, self._window
                )
            self.failure = FAILURES[failed] or ("" if self._all_new(data) else FAILURES[3])
        return not self.failure

    def _all_new(self, data: memoryview) -> bool:
        """Remember each block's digest, and say whether it came for the first time."""
        for at in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
            digest = hashlib.blake2b(data[at : at + BLOCK_BYTES], digest_size=16).digest()
            if digest in self._known:
                return False
            if len(self._digests) == BLOCKS_REMEMBERED:
                self._known.discard(self._digests[0])
            self._digests.append(digest)
            self._known.add(digest)
        return True

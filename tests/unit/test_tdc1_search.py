"""Where a TDC1's words may begin in damaged bytes, found at once for all places, is where the kernel reads them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qkdhw._core.tdc1 import decode_tdc1
from qkdhw.formats.tdc1 import CERTAIN_WORDS, RUN_BYTES, WORD_BYTES, _beginnings

STEPS = st.sampled_from([0, 1, 40_000_000, 100_000_000, 100_000_001, (1 << 27) - 5001, (1 << 27) - 5000, (1 << 27) - 1])
WORDS = st.lists(st.tuples(STEPS, st.sampled_from([0, 1, 15, 16, 31])), max_size=40)


def octets_of(words):
    time = np.cumsum([step for step, _ in words], dtype=np.int64) % (1 << 27)
    return (time << 5 | np.array([names for _, names in words], np.int64)).astype("<u4").tobytes()


def kernel_reads(data):
    n = 4 * CERTAIN_WORDS
    outputs = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
    return len(data) >= WORD_BYTES and decode_tdc1(data, np.array([0, -1]), *outputs)[2] < 0


@given(WORDS, st.binary(max_size=5))
def test_words_may_begin_where_the_kernel_reads_them(words, before):
    data = before + octets_of(words)
    expected = [at for at in range(len(data)) if kernel_reads(data[at : at + RUN_BYTES])]
    assert _beginnings(data).tolist() == expected


def test_each_of_the_words_counts():
    good = octets_of([(1000, 1)] * CERTAIN_WORDS)
    assert 0 in _beginnings(good)
    for word in range(CERTAIN_WORDS):
        bad = bytearray(good)
        bad[WORD_BYTES * word] = 0
        assert 0 not in _beginnings(bytes(bad))

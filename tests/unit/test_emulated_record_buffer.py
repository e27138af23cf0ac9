import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qkdhw_emulators.optics.record_buffer import RecordBuffer


@given(
    st.lists(st.integers(1, 9), max_size=8), st.integers(0, 40), st.integers(0, 60), st.integers(0, 60), st.booleans()
)
def test_same_as_one_long_byte_string(sizes, forget, first, n_pulses, odd):
    buffer, whole = RecordBuffer(1000), b""
    for size in sizes:
        part = (np.arange(size) + len(whole)).astype(np.uint8)
        buffer.append(part)
        whole += part.tobytes()
    buffer.forget(2 * forget)
    assert (buffer.first, buffer.end) == (min(2 * forget, 2 * len(whole)), 2 * len(whole))
    begin = max(first, buffer.first // 2)
    n_pulses = max(0, min(2 * n_pulses - odd, buffer.end - 2 * begin))
    assert buffer.read(2 * begin, n_pulses) == whole[begin : begin + (n_pulses + 1) // 2]


def test_overrun_drops_the_oldest():
    buffer = RecordBuffer(20)
    for value in range(6):
        buffer.append(np.full(2, value, np.uint8))
    assert (buffer.first, buffer.end, buffer.lost, buffer.overrun) == (4, 24, 4, True)
    assert buffer.read(4, 4) == b"\x01\x01"
    buffer.clear()
    assert (buffer.first, buffer.end, buffer.lost) == (0, 0, 0)

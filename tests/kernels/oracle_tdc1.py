"""The TDC1 word decoder in NumPy, written to be read."""

import numpy as np

WRAP = 1 << 27
LONGEST_STEP = 100_000_000
LONGEST_BACK = 5000


def decode_tdc1(data: bytes, rollovers: int, last: int):
    """Return time, channel, kind, new state, words consumed and the index of an impossible word or -1."""
    words = np.frombuffer(data[: len(data) // 4 * 4], "<u4").astype(np.int64)
    raw, dummy, pattern = words >> 5, (words >> 4) & 1, words & 15
    before = np.concatenate([[last], raw[:-1]]) if len(raw) else raw
    bad = (pattern == 0) & (dummy == 0)
    step = (raw - before) % WRAP
    far, back = (before >= 0) & (step > LONGEST_STEP), step >= WRAP - LONGEST_BACK
    bad |= far & ~back
    first_bad = int(np.argmax(bad)) if bad.any() else -1
    n = first_bad if first_bad >= 0 else len(raw)
    raw, dummy, pattern, before, far = raw[:n], dummy[:n], pattern[:n], before[:n], far[:n]
    turns = np.where(far, -(raw > before).astype(int), raw < before)
    ticks = (rollovers + np.cumsum(turns)) * WRAP + raw
    # One column an input, and column 0 for the dummy.
    hit = np.stack([dummy, *[(1 - dummy) * ((pattern >> c) & 1) for c in range(4)]], axis=1).astype(bool)
    word_index, channel = np.nonzero(hit)
    kind = np.where(channel == 0, 6, 0).astype(np.uint8)
    state = (rollovers + int(turns.sum()), int(raw[-1])) if n else (rollovers, last)
    return ticks[word_index], channel.astype(np.uint8), kind, state, n, first_bad

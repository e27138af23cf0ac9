"""The GRX/1 record decoder in NumPy, written to be read."""

import numpy as np


def decode_grx(data: bytes, base: int, last: int):
    """Return time, channel, kind of the records before the first wrong one, missed, bad, back."""
    words = np.frombuffer(data, "<u8")
    ticks = (words & np.uint64((1 << 44) - 1)).astype(np.int64) + base
    value = (words >> np.uint64(44) & np.uint64(0xFFFF)).astype(np.int64)
    kind = (words >> np.uint64(60)).astype(np.int64)
    photon = (kind == 0) & (value >= 1) & (value <= 4)
    marker = (kind == 1) & (value >= 1) & (value <= 255)
    missed = (kind == 4) & (value >= 1)
    plain = np.isin(kind, (2, 3, 5, 6)) & (value == 0)
    wrong = ~(photon | marker | missed | plain)
    backwards = ticks < np.concatenate(([last], ticks[:-1]))
    n = len(words)
    bad = int(np.argmax(wrong)) if wrong.any() else n
    back = int(np.argmax(backwards)) if backwards.any() else n
    good = min(bad, back)
    channel = np.where(kind == 4, 0, value)[:good]
    return (
        ticks[:good],
        channel,
        kind[:good],
        int(value[: min(bad, back + 1)][missed[: min(bad, back + 1)]].sum()),
        bad if bad <= back and bad < n else -1,
        back if back < bad else -1,
    )

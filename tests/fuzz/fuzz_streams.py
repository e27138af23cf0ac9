"""Fuzz targets of the kernels that decode what units send while they run.

The first octet of the input says how the stream is cut; whole and in pieces the events must be the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from fuzz_target import Target, pieces_of

from qkdhw._core import fx2, grx, idq, tdc1

_PHASES = np.where(np.arange(512) % 5 == 0, -1, np.arange(512) % 16).astype(np.int16)


def outputs(n: int) -> tuple[Any, ...]:
    """Make arrays for n events."""
    return np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)


def stepwise(decode: Callable[..., tuple[int, int, int]], word_bytes: int, pieces: list[bytes], room: int) -> Any:
    """Decode a stream in steps; return its events and the word at which it was refused, or None."""
    waiting, events, words = b"", b"", 0
    time_ticks, channel, kind = outputs(room)
    for piece in pieces:
        waiting += piece
        while True:
            n, used, bad = decode(waiting, time_ticks, channel, kind)
            assert 0 <= n <= room
            assert 0 <= used <= len(waiting) // word_bytes
            assert bad in {-1, used}
            events += np.stack([time_ticks[:n], channel[:n], kind[:n]], axis=1).tobytes()
            waiting, words = waiting[word_bytes * used :], words + used
            if bad >= 0:
                return events, words
            if not used:
                break
    return events, words, None


def check_tdc1(data: bytes) -> None:
    """Decode the stream of a TDC1 whole and in pieces, with much and with little room for the events."""
    if data:
        whole = stepwise(partial(_tdc1, np.array([0, -1])), 4, [data[1:]], 4 * len(data))
        assert whole == stepwise(partial(_tdc1, np.array([0, -1])), 4, pieces_of(data[0], data[1:]), 4 + data[0] % 9)


def _tdc1(state: Any, data: bytes, *events: Any) -> tuple[int, int, int]:
    return tdc1.decode_tdc1(data, state, *events)


def check_fx2(data: bytes) -> None:
    """Decode the stream of an FX2 card whole and in pieces, with much and with little room for the events."""
    if data:
        counts = np.zeros((2, 3), np.int64)
        whole = stepwise(partial(_fx2, np.array([0, -1]), counts[0]), 8, [data[1:]], 4 * len(data))
        pieces = pieces_of(data[0], data[1:])
        assert whole == stepwise(partial(_fx2, np.array([0, -1]), counts[1]), 8, pieces, 4 + data[0] % 9)
        assert (counts[0] == counts[1]).all()


def _fx2(state: Any, counts: Any, data: bytes, *events: Any) -> tuple[int, int, int]:
    return fx2.decode_fx2(data, _PHASES, state, counts, *events)


def check_grx(data: bytes) -> None:
    """Decode a frame of GRX/1: what comes before a bad record is a frame too."""
    n = (len(data) - 8) // 8
    if n < 0:
        return
    base, records = int.from_bytes(data[:7], "little"), data[8 : 8 + 8 * n]
    time_ticks, channel, kind = outputs(n)
    missed, bad, back = grx.decode_grx(records, base, -1, time_ticks, channel, kind)
    end = n if bad == back == -1 else max(bad, back)
    assert min(bad, back) == -1
    assert 0 <= end <= n
    assert (np.diff(time_ticks[:end]) >= 0).all()
    assert missed >= 0
    again = outputs(end)
    assert grx.decode_grx(records[: 8 * end], base, -1, *again)[1:] == (-1, -1)
    assert all((a == b[:end]).all() for a, b in zip(again, (time_ticks, channel, kind), strict=True))


def check_id900(data: bytes) -> None:
    """Decode and merge sub-acquisitions of two channels: times are inside them and rise."""
    if len(data) < 9:
        return
    width, period = int.from_bytes(data[:7], "little"), (0, 1, 1000, 2**40)[data[7] % 4]
    begin, event_bytes, half = data[7] << 40, 16 if period else 8, 8 + data[8] % len(data)
    times = []
    for message in (data[9:half], data[max(half, 9) :]):
        n = len(message) // event_bytes
        time_ticks = np.empty(n, np.int64)
        bad = idq.decode_id900(message[: n * event_bytes], begin, width, period, time_ticks)
        assert -1 <= bad < n or bad == -1
        good = time_ticks if bad < 0 else time_ticks[:bad]
        assert ((good >= begin) & (good <= begin + width)).all()
        assert (np.diff(good) >= 0).all()
        times.append(good.copy())
    nothing, n = np.empty(0, np.int64), len(times[0]) + len(times[1])
    merged, channel, _ = outputs(n)
    assert idq.merge_id900(*times, nothing, nothing, np.arange(1, 5, dtype=np.uint8), merged, channel) == n
    assert (merged == np.sort(np.concatenate(times))).all()
    assert (merged[channel == 2] == times[1]).all()


def _seeds(head: bytes, words: list[bytes]) -> list[bytes]:
    return [head + b"".join(words[: len(words) // part]) for part in (1, 2, 6)]


_TDC1 = [
    struct.pack("<I", (i * 40_000_000) << 5 & 0xFFFFFFE0 | (16 if i % 7 == 6 else 1 + i * 5 % 15)) for i in range(24)
]
_FX2 = [
    struct.pack("<II", (i * 77 & 0xFF) << 24 | (1 + i % 15) << 14 | (i * 3 % 32) << 9 | i * 19 % 512, i * 5)
    for i in range(18)
]
_GRX = [struct.pack("<Q", i % 2 << 60 | (1 + i % 4) << 44 | i * 1000) for i in range(18)]
_ID900 = [struct.pack("<Q", i * 1000) for i in range(18)]

TARGETS = {
    "decode_tdc1": Target(check_tdc1, partial(_seeds, b"\x05", _TDC1)),
    "decode_fx2": Target(check_fx2, partial(_seeds, b"\x05", _FX2)),
    "decode_grx": Target(check_grx, partial(_seeds, bytes(8), _GRX)),
    "decode_id900": Target(check_id900, partial(_seeds, struct.pack("<Q", 10**6) + b"\x20", _ID900)),
}

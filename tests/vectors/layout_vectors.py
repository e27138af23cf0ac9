"""Make the files of tests/vectors/layouts again: `python tests/vectors/layout_vectors.py FOLDER`.

Each is put together field by field from the published layout of its format, with nothing but `struct`, and has the
events that it must give beside it, written down by hand. Nothing of qkdhw is used here.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

PHOTON, GAP_BEGIN, GAP_END, MISSED, CLOCK_ERROR, DUMMY = (
    "photon",
    "gap_begin",
    "gap_end",
    "missed",
    "clock_error",
    "dummy",
)


def fields(*pairs):
    """Join (value, bits) from the most significant down to one number."""
    number = 0
    for value, bits in pairs:
        assert 0 <= value < 1 << bits
        number = number << bits | value
    return number


def words(*bits):
    """Cut a string of bits into 32-bit words, first bit on top, the last word filled with zeros; little-endian."""
    text = "".join(bits).replace(" ", "")
    return b"".join(struct.pack("<I", int(text[i : i + 32].ljust(32, "0"), 2)) for i in range(0, len(text), 32))


def tdc1():
    """Time 27 bits in 2 ns, dummy bit, inputs 4 to 1. Round the counter twice; a step back over its end."""
    round_ = 1 << 27
    rows = [
        (5, 0, 0b0001),
        (6, 0, 0b1010),  # inputs 2 and 4 at once
        (6, 0, 0b0001),  # and input 1, as a word of its own
        (65_000_000, 1, 0b0000),
        (round_ - 2, 0, 0b1000),
        (1, 0, 0b0100),
        (round_ - 1, 0, 0b0010),  # two ticks back
        (0, 0, 0b1111),
        (70_000_000, 1, 0b0000),
        (5_782_272, 1, 0b0000),  # 140,000,000: 2^27 = 134,217,728 less
        (5_782_273, 0, 0b0001),
    ]
    data = b"".join(struct.pack("<I", fields((time, 27), (dummy, 1), (inputs, 4))) for time, dummy, inputs in rows)
    events = [
        (5, 1, PHOTON), (6, 2, PHOTON), (6, 4, PHOTON), (6, 1, PHOTON), (65_000_000, 0, DUMMY),
        (134_217_726, 4, PHOTON), (134_217_729, 3, PHOTON), (134_217_727, 2, PHOTON),
        (134_217_728, 1, PHOTON), (134_217_728, 2, PHOTON), (134_217_728, 3, PHOTON), (134_217_728, 4, PHOTON),
        (204_217_728, 0, DUMMY), (274_217_728, 0, DUMMY), (274_217_729, 1, PHOTON),
    ]  # fmt: skip
    return data, "2000", events


def fast_rows(*rows):
    return b"".join(struct.pack("<I", fields((t, 26), (0, 1), (dummy, 1), (inputs, 4))) for t, dummy, inputs in rows)


FAST_EVENTS = [
    (7, 2, PHOTON), (20_000_000, 0, DUMMY), (33_554_431, 1, PHOTON), (33_554_431, 3, PHOTON), (67_108_862, 0, DUMMY),
    (67_108_864, 4, PHOTON), (67_108_863, 1, PHOTON), (100_663_295, 0, DUMMY), (117_440_511, 2, PHOTON),
]  # fmt: skip


def fast():
    """Time 26 bits in 1/256 ns, one bit of unknown meaning, dummy bit, inputs. Once round, one tick back over it."""
    return (
        fast_rows(
            (7, 0, 0b0010), (20_000_000, 1, 0), (33_554_431, 0, 0b0101), (67_108_862, 1, 0), (0, 0, 0b1000),
            (67_108_863, 0, 0b0001), (33_554_431, 1, 0), (50_331_647, 0, 0b0010),
        ),
        "125/32",
        FAST_EVENTS,
    )  # fmt: skip


def fast_void():
    """The same with empty transfers (words 0), one word without an input, and the unknown bit set in the last word."""
    void = struct.pack("<I", 0)
    data = fast()[0]
    last = struct.unpack("<I", data[-4:])[0] | 1 << 5
    no_input = fast_rows((21_000_000, 0, 0))
    return void + data[:8] + no_input + void + void + data[8:-4] + struct.pack("<I", last), "125/32", FAST_EVENTS


def packet(tag, epoch, *rest):
    return struct.pack(f"<{2 + len(rest)}I", tag, epoch, *rest)


def raw_event(epoch, time, inputs):
    """Return 64 bits, upper half first: epoch 17, time in it 37 in 1/256 ns, 6 clear, inputs 4."""
    number = fields((epoch & 0x1FFFF, 17), (time, 37), (0, 6), (inputs, 4))
    return struct.pack("<II", number >> 32, number & 0xFFFFFFFF)


def t1():
    """Three packets over the end of the epoch's 17 bits, the second of a silence."""
    data = (
        packet(1, 0x1FFFF, 2, 49, 4)
        + raw_event(0x1FFFF, 0, 0b0001)
        + raw_event(0x1FFFF, (1 << 37) - 1, 0b0110)
        + struct.pack("<II", 0, 0)
        + packet(1, 0, 0, 49, 4)
        + struct.pack("<II", 0, 0)
        + packet(1, 1, 3, 49, 4)
        + raw_event(1, 5, 0b1000)
        + raw_event(1, 3, 0b0100)  # raw events may step back
        + raw_event(1, 3, 0b0010)
        + struct.pack("<II", 0, 0)
    )
    last, third = 0x1FFFF << 37, 0x20001 << 37
    events = [
        (last, 1, PHOTON), (last + (1 << 37) - 1, 2, PHOTON), (last + (1 << 37) - 1, 3, PHOTON),
        (third + 5, 4, PHOTON), (third + 3, 3, PHOTON), (third + 3, 2, PHOTON),
    ]  # fmt: skip
    return data, "125/32", events


def t1_gap():
    """Extended epochs; two of them are not there. Length 0: not counted."""
    first = 0x6542_0005
    data = (
        packet(0x101, first, 1, 49, 4) + raw_event(first, 9, 0b0001) + struct.pack("<II", 0, 0)
        + packet(0x101, first + 3, 0, 49, 4) + raw_event(first + 3, 1, 0b0010) + struct.pack("<II", 0, 0)
    )  # fmt: skip
    events = [(5 << 37 | 9, 1, PHOTON), (6 << 37, 0, GAP_BEGIN), (8 << 37, 0, GAP_END), (8 << 37 | 1, 2, PHOTON)]
    return data, "125/32", events


def bits(value, width):
    return f"{value:0{width}b}"


def t2():
    """BB84, short differences of 8 bits. An extended epoch of five entries, then one of none, then one of one."""
    data = packet(0x102, 0x6542_0005, 5, 8, 1, 1) + words(
        "01100100 0",  # 100
        "00000010 1",  # 102: 2, the shortest that has a short form
        "11111111 1",  # 357: 255, the longest
        "00000000", bits(256, 32), "0",  # 613
        "00000000", bits(1, 32), "1",  # 614
        "00000001 0",  # end
    )  # fmt: skip
    data += packet(0x102, 0x6542_0006, 0, 8, 1, 1) + words("00000001 0")
    data += packet(0x102, 0x6542_0007, 1, 8, 1, 1) + words("00000000", bits(2**32 - 1, 32), "1", "00000001 0")
    begin = 5 << 32
    events = [
        (begin + 100, 1, PHOTON), (begin + 102, 2, PHOTON), (begin + 357, 2, PHOTON), (begin + 613, 1, PHOTON),
        (begin + 614, 2, PHOTON), ((8 << 32) - 1, 2, PHOTON),
    ]  # fmt: skip
    return data, "125", events


def t2_service():
    """Service protocol: four base bits are the pattern of inputs; epoch of 17 bits, differences of 17 bits."""
    data = packet(2, 0x1A2B3, 3, 17, 4, 0) + words(
        bits(0, 17), bits(0, 32), "0001",  # at the epoch's begin
        bits(131_071, 17), "1010",
        bits(0, 17), bits(131_072, 32), "1111",
        bits(1, 17), "0000",
    )  # fmt: skip
    begin = 0x1A2B3 << 32
    times = [(0, 1), (131_071, 2), (131_071, 4), *((262_143, channel) for channel in (1, 2, 3, 4))]
    return data, "125", [(begin + time, channel, PHOTON) for time, channel in times]


CHOPPED = [(100, 1), (101, 2), (101, 3), (200, 4)]


def t2_chopper():
    """What the chopper program makes of CHOPPED: 101 is sent as 100 + 3, the second event at 101 is dropped, and 200 is
    99 after 101, so it reads 2 late."""
    data = packet(2, 0, 3, 8, 1, 1) + words("01100100 0", "00000011 1", bits(99, 8), "1", "00000001 0")
    return data, "125", [(100, 1, PHOTON), (103, 2, PHOTON), (202, 2, PHOTON)]


T3_VALUES = {1: [1, 0, 1, 1, 0, 0, 1] * 5, 4: [1, 2, 4, 8, 15, 0, 3, 12, 5]}


def t3(entry_bits):
    values = T3_VALUES[entry_bits]
    return packet(3, 0x1A2B3, len(values), entry_bits) + words(*(bits(v, entry_bits) for v in values))


T4_ENTRIES = [(0, 1), (3, 0), (4, 1), (257, 1), (511, 0)]


def t4():
    """Indices of the peer's events, differences + 2 in 8 bits: 2, 5, 3, 255 and, in full, 256."""
    return packet(4, 0x1A2B3, 5, 8, 1) + words(
        "00000010 1", "00000101 0", "00000011 1", "11111111 1", "00000000", bits(256, 32), "0", "00000001 0"
    )


def compressed():
    """40 bytes of header, then 5 bytes: channel 3 bits, time 37 bits. Twice round; a step back over the end."""
    half, round_ = 1 << 36, 1 << 37
    rows = [
        (0, 0),
        (half - 1, 1),
        (round_ - 2, 7),
        (3, 2),
        (round_ - 1, 3),
        (0, 4),
        (half - 1, 5),
        (half + 5, 6),
        (1, 0),
    ]
    data = bytes(40) + b"".join(fields((channel, 3), (time, 37)).to_bytes(5, "little") for time, channel in rows)
    rounds = (0, 0, 0, 1, 0, 1, 1, 1, 2)
    events = [(time + round_ * n, channel, PHOTON) for (time, channel), n in zip(rows, rounds, strict=True)]
    return data, "1", events


IDQ_TIMES = [0, 1, 1, 999, 1_000_000, 2**53 + 1, 2**61]


def idq():
    return struct.pack(f"<{len(IDQ_TIMES)}Q", *IDQ_TIMES), "1", [(time, 1, PHOTON) for time in IDQ_TIMES]


def idq_reference():
    """Time since the reference event and its number, of a reference every 12,500 ps; channel 3."""
    rows = [(0, 0), (12_499, 0), (0, 1), (7, 4), (7, 4), (12_000, 80_000_000_000)]
    data = b"".join(struct.pack("<QQ", since, index) for since, index in rows)
    times = [0, 12_499, 12_500, 50_007, 50_007, 1_000_000_000_012_000]
    return data, "1", [(time, 3, PHOTON) for time in times]


def idq_records():
    """Two sub-acquisitions, 2 ms from one to the next; channel 1."""
    data = struct.pack("<5Q", 5, 1_000_000_000, 1_000_000_000, 4, 900)
    return data, "1", [(t, 1, PHOTON) for t in (5, 1_000_000_000, 1_000_000_000, 2_000_000_004, 2_000_000_900)]


def dump():
    """Type, reserved, missed events, channel, time: every type; falling edges are negative."""
    rows = [
        (0, 0, 1, 1000), (0, 0, -1, 1500), (0, 0, 127, 1500), (0, 0, -127, 1400), (1, 0, 0, 1600), (2, 0, 0, 2000),
        (4, 65535, 1, 2100), (4, 3, -2, 2200), (3, 0, 0, 3000), (0, 0, 18, 2**53 + 1),
    ]  # fmt: skip
    data = b"".join(struct.pack("<BBHiq", kind, 0, missed, channel, time) for kind, missed, channel, time in rows)
    events = [
        (1000, 1, PHOTON), (1500, 129, PHOTON), (1500, 127, PHOTON), (1400, 255, PHOTON), (1600, 0, CLOCK_ERROR),
        (2000, 0, GAP_BEGIN), (2100, 1, MISSED), (2200, 130, MISSED), (3000, 0, GAP_END), (2**53 + 1, 18, PHOTON),
    ]  # fmt: skip
    return data, "1", events


EVENT_FILES = {
    "tdc1.bin": tdc1,
    "qcrypto-fast.bin": fast,
    "qcrypto-fast-void.bin": fast_void,
    "qcrypto-t1.bin": t1,
    "qcrypto-t1-gap.bin": t1_gap,
    "qcrypto-t2.bin": t2,
    "qcrypto-t2-service.bin": t2_service,
    "qcrypto-t2-chopper.bin": t2_chopper,
    "qutag-compressed.bin": compressed,
    "idq.bin": idq,
    "idq-reference.bin": idq_reference,
    "idq-records.bin": idq_records,
    "swabian-dump.bin": dump,
}


def write_all(folder: Path) -> None:
    """Write every vector and what it must give into a folder."""
    for name, make in EVENT_FILES.items():
        data, tick_ps, events = make()
        (folder / name).write_bytes(data)
        lines = [f"tick_ps {tick_ps}", *(f"{time} {channel} {kind}" for time, channel, kind in events)]
        (folder / name).with_suffix(".events").write_text("\n".join(lines) + "\n")
    for entry_bits in T3_VALUES:
        (folder / f"qcrypto-t3-{entry_bits}bit.bin").write_bytes(t3(entry_bits))
    (folder / "qcrypto-t4.bin").write_bytes(t4())


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))

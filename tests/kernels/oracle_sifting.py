"""Sifting and slot coding, written to be read."""

import numpy as np


def sift_transmitter(slot, rx_basis, record, first_slot):
    """Reply, (key bits, test bits, key intensity, test intensity), vectorised."""
    index = slot - first_slot
    inside = (index >= 0) & (index < len(record))
    prepared = np.zeros(len(slot), np.uint8)
    prepared[inside] = record[index[inside]]
    basis, intensity = prepared >> 1 & 1, prepared >> 2
    same = inside & (basis == rx_basis)
    reply = np.where(same, 1 + intensity + 4 * basis, 0).astype(np.uint8)
    key, test = same & (basis == 0), same & (basis == 1)
    bit = prepared & 1
    return reply, (bit[key], bit[test], intensity[key], intensity[test])


def sift_receiver(rx_bit, reply):
    """(key bits, test bits, key intensity, test intensity) for a valid reply, vectorised."""
    key, test = (reply > 0) & (reply < 5), reply >= 5
    intensity = (reply - 1) & 3
    return rx_bit[key], rx_bit[test], intensity[key], intensity[test]


def encode_slots(slots, base):
    """Variable-length gaps, low seven bits first."""
    out, least = bytearray(), base
    for slot in slots:
        gap = slot - least
        while gap > 127:
            out.append(gap & 127 | 128)
            gap >>= 7
        out.append(gap)
        least = slot + 1
    return bytes(out)


def encode_slots_vectorised(slot, base):
    """The same with arrays."""
    gap = np.diff(slot, prepend=base - 1) - 1
    places = np.arange(9)
    septets = gap[:, None] >> 7 * places[: max(1, -(-int(gap.max()).bit_length() // 7))]
    more = septets[:, 1:] > 0
    data = (septets & 127).astype(np.uint8)
    data[:, :-1] |= more.astype(np.uint8) << 7
    kept = np.concatenate((np.ones((len(slot), 1), bool), more), axis=1)
    return data[kept]


def decode_slots_vectorised(data, base):
    """Slots of valid data, with arrays."""
    last = data < 128
    start = np.concatenate(([0], np.flatnonzero(last)[:-1] + 1))
    place = np.arange(len(data)) - np.repeat(start, np.diff(np.append(start, len(data))))
    gap = np.add.reduceat((data & 127).astype(np.int64) << 7 * place, start)
    return np.cumsum(gap + 1) + base - 1

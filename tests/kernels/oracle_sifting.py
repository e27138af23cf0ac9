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

"""Bodies of qcrypto epoch files as strings of bits."""

from __future__ import annotations


def bits_of(value, width):
    return f"{value:0{width}b}" if width else ""


def words_of(bits):
    """Cut a string of bits into 32-bit words, the last filled with zeros."""
    return [int(bits[i : i + 32].ljust(32, "0"), 2) for i in range(0, len(bits), 32)]


def encode(entries, time_order, base_bits, offset, *, as_chopper=False):
    """Return words and which of the entries (value, base) are in them."""
    bits, last, written = "", 0, []
    for value, base in entries:
        written.append(not (as_chopper and value <= last))
        if not written[-1]:
            continue
        difference = value - last + offset
        last = value
        if as_chopper and difference == 1:
            difference = 3
        if 2 <= difference < 2**time_order:
            bits += bits_of(difference, time_order)
        else:
            bits += bits_of(0, time_order) + bits_of(difference, 32)
        bits += bits_of(base, base_bits)
    return words_of(bits + bits_of(1, time_order) + bits_of(0, base_bits)), written


def decode(words, time_order, base_bits, offset):
    """Return entries and whether the end entry is there."""
    bits = "".join(bits_of(word, 32) for word in words)
    at, last, entries = 0, 0, []
    while True:
        code = bits[at : at + time_order]
        if len(code) == time_order and int(code, 2) == 1:
            return entries, int(bits[at + time_order : at + time_order + base_bits] or "0", 2) == 0
        at += time_order
        if len(code) == time_order and int(code, 2) == 0:
            code = bits[at : at + 32]
            at += 32
        base = bits[at : at + base_bits]
        at += base_bits
        if at > len(bits):
            return entries, False
        last += int(code, 2) - offset
        entries.append((last, int(base or "0", 2)))

"""Seeded bugs, one for each judge: built by `make sanitize` and `make bounds` alone, never shipped."""

from libc.stdint cimport int64_t, uint8_t


def read_at(const uint8_t[::1] data not None, Py_ssize_t i):
    """Return octet i, also when there is none: what the address sanitizer and the bounds-checked build must see."""
    return data[i]


def next_after(int64_t number):
    """Return number + 1, also for the largest one: what the undefined-behaviour sanitizer must see."""
    return number + 1


def decode(const uint8_t[::1] data not None):
    """Fail for version 7 of a file that begins with QKD: what the fuzzer must find."""
    if data.shape[0] < 4 or data[0] != c"Q" or data[1] != c"K" or data[2] != c"D":
        return
    if data[3] == 7:
        raise ZeroDivisionError("the seeded bug")

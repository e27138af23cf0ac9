"""Decoders with seeded bugs, for the fuzzer to find: one compiled, one in Python. Four right octets lead to each."""

from __future__ import annotations

import canary
from fuzz_target import Target


def check_python(data: bytes) -> None:
    """Fail for one version of a file of some sort."""
    wanted = b"BUG?"
    for i, octet in enumerate(wanted):
        if i >= len(data) or data[i] != octet:
            return
    raise ZeroDivisionError("the seeded bug")


TARGETS = {
    "canary_kernel": Target(canary.decode, lambda: [b"none"], 64),
    "canary_python": Target(check_python, lambda: [b"none"], 64),
}

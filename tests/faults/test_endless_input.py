"""Units that never stop sending: whatever waits for silence ends at its deadline with an error that says so."""

import os

import pytest

from qkdhw.errors import WireFormatError
from qkdhw.transport.byte_link import ByteLink


class EndlessWire:
    """A wire from a device file that always has more."""

    keeps_messages = False
    fresh_when_reopened = True

    def __init__(self, timeout_s):
        self._file = os.open("/dev/zero", os.O_RDONLY)

    def receive(self, limit, *, timeout_s):
        return os.read(self._file, limit)

    def send(self, data, *, timeout_s):
        return len(data)

    def close(self):
        os.close(self._file)


def test_input_that_does_not_end_is_thrown_away_until_the_deadline_only():
    with ByteLink("file:///dev/zero", EndlessWire) as link:
        with pytest.raises(WireFormatError, match="keeps sending"):
            link.discard_input()
        with pytest.raises(WireFormatError, match=r"within 0\.1 s"):
            link.read_until_quiet(0.01, timeout_s=0.1)

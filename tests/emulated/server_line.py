"""A small instrument for the tests of the servers: a line with a few commands and every kind of reply."""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from dataclasses import dataclass

IDENTITY = b"QKDHW,LINE,1,0"


@dataclass(frozen=True, slots=True)
class Delivery:
    data: bytes
    end: bool = True
    hang_up: bool = False


def block(size: int) -> bytes:
    """A definite-length block of all byte values, line feeds among them, and the line feed that ends the reply."""
    data = bytes(i * 7 % 256 for i in range(256)) * (size // 256 + 1)
    return b"#6%06d" % size + data[:size] + b"\n"


def read_exactly(client: socket.socket, size: int) -> bytes:
    """Read so many bytes, or fewer if the connection ends before."""
    data = bytearray()
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return bytes(data)


class SmallLine:
    """Answers `*IDN?`, `BLOCK? n`, `LOAD #6...`, `SIZE?`, `SPLIT?`, `LATE?`, `CUT?` and `COUNTS?`.

    The reply to `LATE?` comes when the test lets it go.

    Args:
        messages: Each `feed` is one whole message, with or without a line feed at its end.
    """

    def __init__(self, *, messages: bool) -> None:
        self.messages = messages
        self.loaded = b""
        self.clients = self.clears = self.triggers = 0
        self.inbox = b""
        self.status = 0x04
        self._due: deque[tuple[float, Delivery]] = deque()

    def feed(self, data: bytes) -> None:
        self.inbox += data
        if self.messages and not self.inbox.endswith(b"\n"):
            self.inbox += b"\n"
        while self.inbox:
            if self.inbox.startswith(b"LOAD #6"):
                size = 13 + int(self.inbox[7:13] or 0) if len(self.inbox) >= 13 else 13
                if len(self.inbox) <= size:
                    return
                self.loaded, self.inbox = self.inbox[13:size], self.inbox[size + 1 :]
                continue
            command, newline, rest = self.inbox.partition(b"\n")
            if not newline:
                return
            self.inbox = rest
            self._answer(command.strip())

    def _answer(self, command: bytes) -> None:
        now_s = time.monotonic()
        if command == b"*IDN?":
            self._due.append((now_s, Delivery(IDENTITY + b"\n")))
        elif command.startswith(b"BLOCK? "):
            self._due.append((now_s, Delivery(block(int(command[7:])))))
        elif command == b"SIZE?":
            self._due.append((now_s, Delivery(b"%d\n" % len(self.loaded))))
        elif command == b"COUNTS?":
            self._due.append((now_s, Delivery(b"%d,%d,%d\n" % (self.clients, self.clears, self.triggers))))
        elif command == b"SPLIT?":
            pieces = [b"A", b"BC", b"", b"DEF", b"\n"]
            self._due += [(now_s + i / 100, Delivery(p, end=p == b"\n")) for i, p in enumerate(pieces)]
        elif command == b"LATE?":
            self._due.append((math.inf, Delivery(b"late\n")))
        elif command == b"CUT?":
            self._due.append((now_s, Delivery(b"half of a rep", end=False, hang_up=True)))

    def let_go(self) -> None:
        """Make the late reply due."""
        self._due = deque((0.0, delivery) for _, delivery in self._due)

    def take(self) -> list[Delivery]:
        taken = []
        while self._due and self._due[0][0] <= time.monotonic():
            taken.append(self._due.popleft()[1])
        return taken

    def wait_s(self) -> float | None:
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def connected(self) -> None:
        self.clients += 1

    def disconnected(self) -> None:
        self.inbox = b""
        self._due.clear()

    def clear(self) -> None:
        self.clears += 1
        self.disconnected()

    def status_byte(self) -> int:
        return self.status

    def trigger(self) -> None:
        self.triggers += 1

"""A serial port of a terminal server (RFC 2217) as the wire under a byte link.

Source:
    RFC 854 (Telnet), RFC 856 (binary transmission), RFC 858 (suppress go ahead), RFC 2217 (Com Port Control Option).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from qkdhw.errors import TransportClosedError, TransportError, TransportTimeoutError
from qkdhw.transport.tcp_link import TcpWire

NEGOTIATION_S = 2.0  # a terminal server may be slow to set its port
RELEASE_S = 0.3  # who opens the port again before the server has noticed is turned away
CHUNK_BYTES = 65536
COMMAND_BYTES = 256

SE, SB, WILL, WONT, DO, DONT, IAC = 240, 250, 251, 252, 253, 254, 255
BINARY, ECHO, SUPPRESS_GO_AHEAD, COM_PORT = 0, 1, 3, 44
WE_DO, THEY_DO = {BINARY, SUPPRESS_GO_AHEAD, COM_PORT}, {BINARY, ECHO, SUPPRESS_GO_AHEAD, COM_PORT}

# Commands of the option; the server answers with the number plus 100.
BAUDRATE, DATASIZE, PARITY, STOPSIZE, CONTROL, PURGE = 1, 2, 3, 4, 5, 12
ANSWER = 100
NO_PARITY, ONE_STOP_BIT, NO_FLOW_CONTROL, DTR_ON, RTS_ON, BOTH_BUFFERS = 1, 1, 1, 8, 11, 3

_IAC = bytes([IAC])
_COMMAND = re.compile(
    rb"\xff(?:(?P<verb>[\xfb-\xfe])(?P<option>.)|\xfa(?P<told>(?:[^\xff]|\xff\xff)*)\xff[^\xff]|[^\xfa-\xfe])",
    re.DOTALL,
)


class Rfc2217Wire:
    """A serial port behind a terminal server: 8 data bits, no parity, 1 stop bit, no flow control.

    Args:
        host: Name or address of the terminal server.
        port: TCP port of the serial port.
        baud: Symbol rate in bits per second.
        timeout_s: Longest wait for the connection; the negotiation that follows may take 2 s more.
    """

    keeps_messages = False
    fresh_when_reopened = False

    def __init__(self, host: str, port: int, *, baud: int, timeout_s: float) -> None:
        self._peer = f"{host}:{port}"
        self._came = bytearray()  # from the first Telnet command that is not whole yet
        self._unsent = bytearray()
        self._said: dict[tuple[bool, int], int] = {}  # our last word on an option of ours (True) or theirs
        self._agreed = False
        self._answers: dict[int, bytes] = {}
        self._tcp = TcpWire(host, port, timeout_s=timeout_s)
        try:
            self._negotiate(baud, time.monotonic() + max(timeout_s, NEGOTIATION_S))
        except TransportError as error:
            self._tcp.close()
            raise type(error)(
                f"{self._peer} cannot be reached by RFC 2217: {error}",
                remedy="check the address, that the terminal server is on, and that nobody else has the port",
            ) from error

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes as soon as there are any, b"" at the deadline; TransportClosedError at the end."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._flush(0.0)
            left_s = max(0.0, deadline_s - time.monotonic())
            data = self._tcp.receive(limit, timeout_s=left_s)
            if (plain := self._plain(data)) or left_s == 0.0:  # Telnet commands alone do not keep it waiting
                return plain

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Send everything, or nothing if what was sent before is still on its way at the deadline."""
        deadline_s = time.monotonic() + timeout_s
        if not self._flush(timeout_s):
            return 0
        self._unsent += bytes(data).replace(_IAC, _IAC + _IAC)
        self._flush(max(0.0, deadline_s - time.monotonic()))
        return len(data)

    def close(self) -> None:
        """Close it and wait until the server has let go of the port; a thread that waits on it is woken."""
        self._tcp.finish(timeout_s=RELEASE_S)
        self._tcp.close()

    def _negotiate(self, baud: int, deadline_s: float) -> None:
        """Agree on Telnet options, set the port and drop what came before that."""
        for verb, options in ((WILL, WE_DO), (DO, THEY_DO - {ECHO})):
            for option in sorted(options):
                self._say(verb, option)
        self._until(lambda: self._agreed, deadline_s, "it agrees to nothing")
        self._tell(PURGE, bytes([BOTH_BUFFERS]))
        for control in (NO_FLOW_CONTROL, DTR_ON, RTS_ON):
            self._tell(CONTROL, bytes([control]))
        wanted = {
            BAUDRATE: baud.to_bytes(4, "big"), DATASIZE: b"\x08",
            PARITY: bytes([NO_PARITY]), STOPSIZE: bytes([ONE_STOP_BIT]),
        }  # fmt: skip
        for command, value in wanted.items():
            self._tell(command, value)
        self._until(lambda: wanted.keys() <= self._answers.keys(), deadline_s, "it does not set its port")
        if any(self._answers[command] != value for command, value in wanted.items()):
            raise TransportError(f"its port does not take {baud} baud, 8 data bits, no parity and 1 stop bit")

    def _until(self, done: Callable[[], bool], deadline_s: float, lack: str) -> None:
        while not done():
            left_s = deadline_s - time.monotonic()
            self._flush(max(0.0, left_s))
            self._plain(self._tcp.receive(CHUNK_BYTES, timeout_s=max(0.0, left_s)))
            if left_s <= 0 and not done():
                raise TransportTimeoutError(f"{lack} in time")

    def _flush(self, timeout_s: float) -> bool:
        """Send what waits to be sent; False if some of it still waits at the deadline."""
        deadline_s = time.monotonic() + timeout_s
        while self._unsent:
            with memoryview(self._unsent) as unsent:
                size = self._tcp.send(unsent, timeout_s=max(0.0, deadline_s - time.monotonic()))
            if size == 0:
                return False
            del self._unsent[:size]
        return True

    def _plain(self, data: bytes) -> bytes:
        """Take the Telnet commands out of what came, do them, and return the rest."""
        if not self._came and _IAC not in data:
            return data
        self._came += data
        plain, at = bytearray(), 0
        while (begin := self._came.find(_IAC, at)) >= 0:
            plain += self._came[at:begin]
            at = begin
            match = _COMMAND.match(self._came, begin)
            if match is None:
                break
            at = match.end()
            if match["verb"] is not None:
                self._agree(match["verb"][0], match["option"][0])
            elif match["told"] is not None:
                self._heard(match["told"].replace(_IAC + _IAC, _IAC))
            elif match[0] == _IAC + _IAC:
                plain += _IAC
        else:
            plain += self._came[at:]
            at = len(self._came)
        del self._came[:at]
        if len(self._came) > COMMAND_BYTES:
            raise TransportClosedError(f"{self._peer} sent a Telnet command without an end", remedy="open it again")
        return bytes(plain)

    def _agree(self, verb: int, option: int) -> None:
        """Answer an offer or a request of the server's, unless it is the answer to ours."""
        ours = verb in {DO, DONT}
        yes, no = (WILL, WONT) if ours else (DO, DONT)
        if verb in {DO, WILL}:
            self._say(yes if option in (WE_DO if ours else THEY_DO) else no, option)
        elif (ours, option) in self._said:
            self._say(no, option)
        if ours and option == COM_PORT:
            self._agreed = verb == DO
            if not self._agreed:
                raise TransportClosedError(f"{self._peer} does not let its port be set", remedy="check its settings")

    def _say(self, verb: int, option: int) -> None:
        key = verb in {WILL, WONT}, option
        if self._said.get(key) != verb:
            self._said[key] = verb
            self._unsent += bytes([IAC, verb, option])

    def _tell(self, command: int, value: bytes) -> None:
        body = bytes([COM_PORT, command]) + value
        self._unsent += bytes([IAC, SB]) + body.replace(_IAC, _IAC + _IAC) + bytes([IAC, SE])

    def _heard(self, told: bytes) -> None:
        if len(told) >= 2 and told[0] == COM_PORT and told[1] >= ANSWER:
            self._answers[told[1] - ANSWER] = told[2:]

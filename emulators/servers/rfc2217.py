"""RFC 2217 server: an emulated unit on the serial port of a terminal server (`rfc2217://host:port`).

One client has the port; a second connection is closed at once, as by a terminal server whose port is in use. Whatever
settings the client asks for are accepted and kept for the unit to look at.

Source: RFC 854 (Telnet), RFC 856 (binary transmission), RFC 2217 (Telnet Com Port Control Option).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from qkdhw_emulators.servers.tcp_conversations import Connection, TcpServer

if TYPE_CHECKING:
    from qkdhw_emulators.line import Line

SE, SB, WILL, WONT, DO, DONT, IAC = 240, 250, 251, 252, 253, 254, 255
BINARY, ECHO, SUPPRESS_GO_AHEAD, COM_PORT = 0, 1, 3, 44
OFFERED = {BINARY, ECHO, SUPPRESS_GO_AHEAD, COM_PORT}
SUBNEGOTIATION_BYTES = 64

# Commands of the client; the server answers with the number plus 100.
BAUDRATE, DATASIZE, PARITY, STOPSIZE, CONTROL, LINE_STATE, MODEM_STATE = range(1, 8)
LINE_STATE_MASK, MODEM_STATE_MASK, PURGE = 10, 11, 12
ANSWER = 100
SETTINGS = {BAUDRATE: (4, "baud_rate"), DATASIZE: (1, "data_bits"), PARITY: (1, "parity"), STOPSIZE: (1, "stop_bits")}
# Values of CONTROL: the questions, and the switches that are set by the values after them.
CONTROLS = {0: ("flow_control", (1, 2, 3)), 4: ("sends_break", (5, 6)), 7: ("dtr", (8, 9)), 10: ("rts", (11, 12))}
RECEIVE_BUFFER, BOTH_BUFFERS = 1, 3
STATES = {LINE_STATE: 0, MODEM_STATE: 0x10 | 0x20 | 0x80}  # clear to send, data set ready, carrier detect


@dataclass(slots=True)
class PortSettings:
    """What the client made of the serial port, in the values of RFC 2217.

    Attributes:
        baud_rate: Bits per second.
        data_bits: 5 to 8.
        parity: 1 none, 2 odd, 3 even, 4 mark, 5 space.
        stop_bits: 1 one, 2 two, 3 one and a half.
        flow_control: 1 none, 2 XON/XOFF, 3 hardware.
        sends_break: 5 on, 6 off.
        dtr: 8 on, 9 off.
        rts: 11 on, 12 off.
    """

    baud_rate: int = 9600
    data_bits: int = 8
    parity: int = 1
    stop_bits: int = 1
    flow_control: int = 1
    sends_break: int = 6
    dtr: int = 9
    rts: int = 12


class Rfc2217Server(TcpServer):
    """Serves a line over RFC 2217; arguments as of `TcpServer`."""

    def __init__(
        self, line: Line, lock: AbstractContextManager[object], *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        super().__init__(line, lock, lambda connection: _Telnet(self, connection), host=host, port=port)
        self.line = line
        self.settings = PortSettings()
        self.client: _Telnet | None = None

    @property
    def url(self) -> str:
        """Address of the port for pyserial."""
        return f"rfc2217://{self.host}:{self.port}"


class _Mode(Enum):
    DATA = auto()
    COMMAND = auto()  # IAC has come
    OPTION = auto()  # IAC and WILL, WONT, DO or DONT have come
    SUBNEGOTIATION = auto()
    SUBNEGOTIATION_COMMAND = auto()  # IAC has come in a subnegotiation


class _Telnet:
    """One connection: takes Telnet commands out of what comes, hands on the rest."""

    def __init__(self, server: Rfc2217Server, connection: Connection) -> None:
        self.connection = connection
        self._server = server
        self._mode = _Mode.DATA
        self._verb = 0
        self._subnegotiation = bytearray()
        self._ours = {BINARY, SUPPRESS_GO_AHEAD}
        self._theirs = {BINARY}
        if server.client is not None:
            connection.hang_up()
            return
        server.client = self
        server.line.connected()
        for option in sorted(self._ours):
            connection.send(bytes([IAC, WILL, option]))
        for option in sorted(self._theirs):
            connection.send(bytes([IAC, DO, option]))

    def receive(self, data: bytes) -> None:
        text = bytearray()
        at = 0
        while at < len(data):
            if self._mode is _Mode.DATA:
                command = data.find(b"\xff", at)
                text += data[at:] if command < 0 else data[at:command]
                at = len(data) if command < 0 else command + 1
                self._mode = _Mode.DATA if command < 0 else _Mode.COMMAND
            else:
                self._take(data[at], text)
                at += 1
        if text:
            self._server.line.feed(bytes(text))

    def work(self) -> None:
        for delivery in self._server.line.take():
            self.connection.send(delivery.data.replace(b"\xff", b"\xff\xff"))
            if delivery.hang_up:
                self.connection.hang_up()
                break

    def closed(self) -> None:
        if self._server.client is self:
            self._server.client = None
            self._server.line.disconnected()

    def _take(self, byte: int, text: bytearray) -> None:
        """Take one byte of a Telnet command."""
        match self._mode, byte:
            case _Mode.COMMAND, 255:
                text.append(byte)
                self._mode = _Mode.DATA
            case _Mode.COMMAND, 251 | 252 | 253 | 254:
                self._verb, self._mode = byte, _Mode.OPTION
            case _Mode.COMMAND, 250:
                self._subnegotiation.clear()
                self._mode = _Mode.SUBNEGOTIATION
            case _Mode.OPTION, _:
                self._negotiate(self._verb, byte)
                self._mode = _Mode.DATA
            case _Mode.SUBNEGOTIATION, 255:
                self._mode = _Mode.SUBNEGOTIATION_COMMAND
            case (_Mode.SUBNEGOTIATION, _) | (_Mode.SUBNEGOTIATION_COMMAND, 255):
                if len(self._subnegotiation) < SUBNEGOTIATION_BYTES:
                    self._subnegotiation.append(byte)
                self._mode = _Mode.SUBNEGOTIATION
            case _Mode.SUBNEGOTIATION_COMMAND, 240:
                self._mode = _Mode.DATA
                if len(self._subnegotiation) >= 2 and self._subnegotiation[0] == COM_PORT:
                    self._control_port(self._subnegotiation[1], bytes(self._subnegotiation[2:]))
            case _:
                self._mode = _Mode.DATA  # a command without meaning for a serial port

    def _negotiate(self, verb: int, option: int) -> None:
        """Answer what changes anything: an answer to an answer would never end."""
        asks_us = verb in {DO, DONT}
        active = self._ours if asks_us else self._theirs
        yes, no = (WILL, WONT) if asks_us else (DO, DONT)
        if verb in {DO, WILL}:
            if option not in OFFERED:
                self.connection.send(bytes([IAC, no, option]))
            elif option not in active:
                active.add(option)
                self.connection.send(bytes([IAC, yes, option]))
                if option == COM_PORT:
                    self._answer(MODEM_STATE, bytes([STATES[MODEM_STATE]]))
        elif option in active:
            active.discard(option)
            self.connection.send(bytes([IAC, no, option]))

    def _control_port(self, command: int, value: bytes) -> None:
        """Do what a subnegotiation of the client asks, and answer it."""
        if command in SETTINGS:
            size, name = SETTINGS[command]
            if len(value) == size and any(value):
                setattr(self._server.settings, name, int.from_bytes(value, "big"))
            self._answer(command, getattr(self._server.settings, name).to_bytes(size, "big"))
        elif command == CONTROL and len(value) == 1:
            self._switch(value[0])
        elif command == PURGE and len(value) == 1:
            if value[0] in {RECEIVE_BUFFER, BOTH_BUFFERS}:
                self._server.line.take()
            self._answer(PURGE, value)
        elif command in STATES:
            self._answer(command, bytes([STATES[command]]))
        elif command in {LINE_STATE_MASK, MODEM_STATE_MASK}:
            self._answer(command, value)

    def _switch(self, value: int) -> None:
        """Set or tell the flow control, the break or a modem line."""
        for question, (name, states) in CONTROLS.items():
            if value in states:
                setattr(self._server.settings, name, value)
            if value in {question, *states}:
                self._answer(CONTROL, bytes([getattr(self._server.settings, name)]))

    def _answer(self, command: int, value: bytes) -> None:
        value = value.replace(b"\xff", b"\xff\xff")
        self.connection.send(bytes([IAC, SB, COM_PORT, command + ANSWER]) + value + bytes([IAC, SE]))

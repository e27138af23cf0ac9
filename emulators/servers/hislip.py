"""HiSLIP server: an emulated unit as a LAN instrument of today (`TCPIP::host::hislip0,port::INSTR`).

HiSLIP 1.0 in synchronised mode. One client has the unit; a second one is refused, as by an instrument with one session.
Interrupted messages are not sent: message numbers alone tell a client that an answer is not to its last question.

Source: IVI-6.1, IVI High-Speed LAN Instrument Protocol (HiSLIP), version 1.0 of the protocol.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from qkdhw_emulators.servers.hislip_messages import (
    ANY_MESSAGE_ID,
    HEADER,
    LOCK_ERROR,
    LOCK_SUCCESS,
    PROLOGUE,
    PROTOCOL_VERSION,
    RMT_DELIVERED,
    Fatal,
    Kind,
    Mistake,
)
from qkdhw_emulators.servers.tcp_conversations import Connection, TcpServer

if TYPE_CHECKING:
    from qkdhw_emulators.line import Line

VENDOR_ID = int.from_bytes(b"QK", "big")
PAYLOAD_BYTES = 1 << 20  # largest payload of one message that is taken
MESSAGE_BYTES = 16 << 20  # largest command over several messages
MESSAGE_AVAILABLE = 0x10


class HislipServer(TcpServer):
    """Serves a line over HiSLIP; arguments as of `TcpServer`. Any sub-address leads to the unit."""

    def __init__(
        self, line: Line, lock: AbstractContextManager[object], *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        super().__init__(line, lock, lambda connection: _Channel(self, connection), host=host, port=port)
        self.line = line
        self.session: Session | None = None
        self._session_id = 0

    @property
    def resource(self) -> str:
        """VISA resource name of the unit."""
        return f"TCPIP::{self.host}::hislip0,{self.port}::INSTR"

    def open_session(self, channel: _Channel) -> Session:
        """Begin the session of a client that has the synchronous channel."""
        self._session_id = self._session_id % 0xFFFF + 1
        self.session = Session(self.line, self._session_id, channel)
        self.line.connected()
        return self.session

    def close_session(self) -> None:
        """End the session: one of its channels has gone."""
        if self.session is not None:
            session, self.session = self.session, None
            for channel in (session.synchronous, session.asynchronous):
                if channel is not None:
                    channel.connection.hang_up()
            self.line.disconnected()


class _Channel:
    """One connection: cuts the bytes into messages and hands them to the session."""

    def __init__(self, server: HislipServer, connection: Connection) -> None:
        self.connection = connection
        self._server = server
        self._session: Session | None = None
        self._inbox = bytearray()
        self._skip_bytes = 0

    def receive(self, data: bytes) -> None:
        self._inbox += data
        while not self.connection.hanging_up:
            skipped = min(self._skip_bytes, len(self._inbox))
            self._skip_bytes -= skipped
            del self._inbox[:skipped]
            if len(self._inbox) < HEADER.size:
                return
            prologue, kind, control, parameter, length = HEADER.unpack_from(self._inbox)
            if prologue != PROLOGUE:
                self.fail(Fatal.BAD_HEADER, "the header does not begin with HS")
            elif length > PAYLOAD_BYTES:
                del self._inbox[: HEADER.size]
                self._skip_bytes = length
                self.complain(Mistake.TOO_LARGE, f"payload of {length} bytes, {PAYLOAD_BYTES} are taken")
            elif len(self._inbox) < HEADER.size + length:
                return
            else:
                payload = bytes(self._inbox[HEADER.size : HEADER.size + length])
                del self._inbox[: HEADER.size + length]
                self._handle(kind, control, parameter, payload)

    def work(self) -> None:
        if self._session is not None and self._session.synchronous is self:
            self._session.send_due()

    def closed(self) -> None:
        if self._session is not None and self._session is self._server.session:
            self._server.close_session()

    def send(self, kind: Kind, control: int = 0, parameter: int = 0, payload: bytes = b"") -> None:
        """Send one message."""
        self.connection.send(HEADER.pack(PROLOGUE, kind, control, parameter, len(payload)) + payload)

    def complain(self, mistake: Mistake, text: str) -> None:
        """Report an error after which the session goes on."""
        self.send(Kind.ERROR, mistake, payload=text.encode())

    def fail(self, fatal: Fatal, text: str) -> None:
        """Report an error that ends the session."""
        self.send(Kind.FATAL_ERROR, fatal, payload=text.encode())
        self.connection.hang_up()
        self.closed()

    def _handle(self, kind: int, control: int, parameter: int, payload: bytes) -> None:
        if self._session is None:
            self._initialize(kind, parameter)
        elif kind in {Kind.INITIALIZE, Kind.ASYNC_INITIALIZE}:
            self.fail(Fatal.BAD_INITIALIZATION, "this channel is initialised")
        elif self._session.asynchronous is None:
            self.fail(Fatal.CHANNEL_MISSING, "the asynchronous channel is missing")
        elif kind == Kind.FATAL_ERROR:
            self.connection.hang_up()
            self.closed()
        elif kind != Kind.ERROR:
            handle = self._session.handle if self is self._session.synchronous else self._session.handle_async
            if not handle(kind, control, parameter, payload):
                self.complain(Mistake.UNKNOWN_MESSAGE, f"message type {kind} is not known on this channel")

    def _initialize(self, kind: int, parameter: int) -> None:
        """Take the first message of a connection."""
        session = self._server.session
        if kind == Kind.INITIALIZE and session is not None:
            self.fail(Fatal.TOO_MANY_CLIENTS, "another client has the unit")
        elif kind == Kind.INITIALIZE:
            self._session = self._server.open_session(self)
            version = min(PROTOCOL_VERSION, parameter >> 16)
            self.send(Kind.INITIALIZE_RESPONSE, parameter=version << 16 | self._session.session_id)
        elif kind == Kind.ASYNC_INITIALIZE and session is not None and session.admits(parameter):
            self._session, session.asynchronous = session, self
            self.send(Kind.ASYNC_INITIALIZE_RESPONSE, parameter=VENDOR_ID)
        else:
            self.fail(Fatal.BAD_INITIALIZATION, "a connection begins with Initialize, or AsyncInitialize of a session")


class Session:
    """A client's two channels, and how far its messages are.

    Args:
        line: The line to the unit.
        session_id: Number by which the asynchronous channel finds its session.
        synchronous: The channel that began it.
    """

    def __init__(self, line: Line, session_id: int, synchronous: _Channel) -> None:
        self.session_id = session_id
        self.synchronous = synchronous
        self.asynchronous: _Channel | None = None
        self._line = line
        self._message = bytearray()
        self._too_large = False
        self._message_id = ANY_MESSAGE_ID
        self._payload_bytes = PAYLOAD_BYTES
        self._answer_waits = False
        self._clearing = False
        self._locked = False

    def admits(self, session_id: int) -> bool:
        """Whether an asynchronous channel with this number belongs here."""
        return session_id == self.session_id and self.asynchronous is None

    def send_due(self) -> None:
        """Send the answers that are due, under the number of the last message."""
        if self._clearing or self.asynchronous is None:
            return
        for delivery in self._line.take():
            pieces = range(0, max(len(delivery.data), 1), self._payload_bytes)
            for start in pieces:
                last = delivery.end and start == pieces[-1]
                payload = delivery.data[start : start + self._payload_bytes]
                self.synchronous.send(Kind.DATA_END if last else Kind.DATA, 0, self._message_id, payload)
            self._answer_waits = True
            if delivery.hang_up:
                self.synchronous.connection.hang_up()
                break

    def handle(self, kind: int, control: int, parameter: int, payload: bytes) -> bool:
        """Take a message of the synchronous channel; False if its type is unknown there."""
        if kind == Kind.DEVICE_CLEAR_COMPLETE:
            self._clearing = False
            self.synchronous.send(Kind.DEVICE_CLEAR_ACKNOWLEDGE)
            return True
        if kind not in {Kind.DATA, Kind.DATA_END, Kind.TRIGGER}:
            return False
        if self._clearing:
            return True
        if not self._message:
            self._interrupt()
        self._message_id = parameter
        if kind == Kind.TRIGGER:
            self._line.trigger()
            return True
        self._too_large = self._too_large or len(self._message) + len(payload) > MESSAGE_BYTES
        self._message += b"" if self._too_large else payload
        if kind == Kind.DATA_END:
            self._end_message()
        return True

    def handle_async(self, kind: int, control: int, parameter: int, payload: bytes) -> bool:
        """Take a message of the asynchronous channel; False if its type is unknown there."""
        if self.asynchronous is None:
            return False
        send = self.asynchronous.send
        match kind:
            case Kind.ASYNC_MAX_MESSAGE_SIZE if len(payload) == 8:
                self._payload_bytes = min(max(int.from_bytes(payload, "big"), 1), PAYLOAD_BYTES)
                send(Kind.ASYNC_MAX_MESSAGE_SIZE_RESPONSE, payload=PAYLOAD_BYTES.to_bytes(8, "big"))
            case Kind.ASYNC_DEVICE_CLEAR:
                self._clearing, self._answer_waits = True, False
                self._message.clear()
                self._line.clear()
                send(Kind.ASYNC_DEVICE_CLEAR_ACKNOWLEDGE)
            case Kind.ASYNC_STATUS_QUERY:
                self.send_due()
                if control & RMT_DELIVERED:
                    self._answer_waits = False
                available = MESSAGE_AVAILABLE if self._answer_waits else 0
                send(Kind.ASYNC_STATUS_RESPONSE, self._line.status_byte() & ~MESSAGE_AVAILABLE | available)
            case Kind.ASYNC_LOCK:
                # Nobody else is here to wait for: only asking for what is held, or releasing what is not, is an error.
                wanted = bool(control & 1)
                send(Kind.ASYNC_LOCK_RESPONSE, LOCK_SUCCESS if wanted != self._locked else LOCK_ERROR)
                self._locked = wanted
            case Kind.ASYNC_LOCK_INFO:
                send(Kind.ASYNC_LOCK_INFO_RESPONSE, int(self._locked), int(self._locked))
            case Kind.ASYNC_REMOTE_LOCAL_CONTROL:
                send(Kind.ASYNC_REMOTE_LOCAL_RESPONSE)
            case _:
                return False
        return True

    def _interrupt(self) -> None:
        """A new message makes an instrument forget the answers that it has not sent (IEEE 488.2, 6.3.2.3)."""
        self._answer_waits = False
        if self._line.wait_s() is not None:
            self._line.disconnected()
            self._line.connected()

    def _end_message(self) -> None:
        message = bytes(self._message)
        self._message.clear()
        if self._too_large:
            self._too_large = False
            self.synchronous.complain(Mistake.TOO_LARGE, f"message above {MESSAGE_BYTES} bytes")
        else:
            self._line.feed(message)

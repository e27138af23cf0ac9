"""VXI-11 server: an emulated unit as a LAN instrument of old (`TCPIP::host,port::inst0::INSTR`).

Core and abort channel on one port, without a port mapper: clients are told the port. One link has the unit; a second is
refused with "out of resources". An answer that nobody fetched stays, also when the next command comes: a client that
timed out has to clear the device.

Source: VXI-11, TCP/IP Instrument Protocol, revision 1.0.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from qkdhw.errors import WireFormatError
from qkdhw_emulators.servers.onc_rpc import (
    RPC_VERSION,
    Accepted,
    Arguments,
    Call,
    CallReader,
    encode_denial,
    encode_reply,
)
from qkdhw_emulators.servers.tcp_conversations import Connection, TcpServer
from qkdhw_emulators.servers.vxi11_link import PROCEDURES, RECEIVE_BYTES, Link, Outcome, Read, Results

if TYPE_CHECKING:
    from qkdhw_emulators.line import Line

CORE_PROGRAM = 0x0607AF
ABORT_PROGRAM = 0x0607B0
PROGRAM_VERSION = 1
RECORD_BYTES = RECEIVE_BYTES + 1024
NAME_BYTES = 256


class Vxi11Server(TcpServer):
    """Serves a line over VXI-11; arguments as of `TcpServer`. Any device name leads to the unit."""

    def __init__(
        self, line: Line, lock: AbstractContextManager[object], *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        super().__init__(line, lock, lambda connection: _Caller(self, connection), host=host, port=port)
        self.line = line
        self.link: Link | None = None
        self._caller: _Caller | None = None
        self._link_id = 0

    @property
    def resource(self) -> str:
        """VISA resource name of the unit."""
        return f"TCPIP::{self.host},{self.port}::inst0::INSTR"

    def open_link(self, caller: _Caller, *, locked: bool) -> Link:
        """Begin a link."""
        self._link_id += 1
        self._caller, self.link = caller, Link(self.line, self._link_id, locked=locked, destroy=self.close_link)
        self.line.connected()
        return self.link

    def close_link(self) -> None:
        """End the link."""
        self._caller = self.link = None
        self.line.disconnected()

    def link_of(self, caller: _Caller, link_id: int) -> Link | None:
        """Return the link if this connection made it."""
        return self.link if self.link and self._caller is caller and self.link.link_id == link_id else None

    def abort(self, link_id: int) -> bool:
        """Let the read that waits on this link end; False if there is no such link."""
        if self._caller is None or self.link_of(self._caller, link_id) is None:
            return False
        self._caller.abort_read()
        return True


class _Caller:
    """One connection: takes calls one after the other."""

    def __init__(self, server: Vxi11Server, connection: Connection) -> None:
        self.connection = connection
        self._server = server
        self._reader = CallReader(RECORD_BYTES)
        self._read: Read | None = None
        self._read_xid = 0
        self._core_procedures = {0: _nothing, 10: self._create_link, 25: _refuse, 26: _refuse}
        self._abort_procedures = {0: _nothing, 1: self._abort}

    def receive(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except WireFormatError:
            self.connection.hang_up()

    def work(self) -> None:
        self._answer_read()
        try:
            while self._read is None and (call := self._reader.next_call()) is not None:
                self._answer(call)
                self._answer_read()
        except WireFormatError:
            self.connection.hang_up()

    def closed(self) -> None:
        if self._server.link is not None and self._server.link_of(self, self._server.link.link_id):
            self._server.close_link()

    def abort_read(self) -> None:
        """Let the device_read that waits end."""
        if self._read is not None:
            self.connection.send(encode_reply(self._read_xid, Accepted.SUCCESS, Outcome.ABORTED, 0, b""))
            self._read = None

    def _answer_read(self) -> None:
        if self._read is None:
            return
        results, hang_up = self._read.results()
        if results is not None:
            self.connection.send(encode_reply(self._read_xid, Accepted.SUCCESS, *results))
            self._read = None
        if hang_up:
            self.connection.hang_up()

    def _answer(self, call: Call) -> None:
        if call.rpc_version != RPC_VERSION:
            self.connection.send(encode_denial(call.xid))
        elif call.program not in {CORE_PROGRAM, ABORT_PROGRAM}:
            self.connection.send(encode_reply(call.xid, Accepted.PROGRAM_UNAVAILABLE))
        elif call.version != PROGRAM_VERSION:
            versions = PROGRAM_VERSION, PROGRAM_VERSION
            self.connection.send(encode_reply(call.xid, Accepted.PROGRAM_MISMATCH, *versions))
        else:
            try:
                results = self._results(call)
            except WireFormatError:
                results = Accepted.GARBAGE_ARGUMENTS
            if isinstance(results, Accepted):
                self.connection.send(encode_reply(call.xid, results))
            elif isinstance(results, Read):
                self._read, self._read_xid = results, call.xid
            else:
                self.connection.send(encode_reply(call.xid, Accepted.SUCCESS, *results))

    def _results(self, call: Call) -> Results | Accepted | Read:
        """Do what a call asks; return its results, what is wrong with it, or the read that it begins."""
        own = self._abort_procedures if call.program == ABORT_PROGRAM else self._core_procedures
        if call.procedure in own:
            return own[call.procedure](call.arguments)
        if call.program == ABORT_PROGRAM or call.procedure not in PROCEDURES:
            return Accepted.PROCEDURE_UNAVAILABLE
        procedure, no_results = PROCEDURES[call.procedure]
        link = self._server.link_of(self, call.arguments.uint())
        return (Outcome.INVALID_LINK, *no_results) if link is None else procedure(link, call.arguments)

    def _create_link(self, arguments: Arguments) -> Results:
        _client_id, lock_device, _lock_timeout_ms = (arguments.uint() for _ in range(3))
        arguments.opaque(NAME_BYTES)
        if self._server.link is not None:
            return Outcome.OUT_OF_RESOURCES, 0, 0, 0
        link = self._server.open_link(self, locked=bool(lock_device))
        return Outcome.NO_ERROR, link.link_id, self._server.port, RECEIVE_BYTES

    def _abort(self, arguments: Arguments) -> Results:
        return (Outcome.NO_ERROR if self._server.abort(arguments.uint()) else Outcome.INVALID_LINK,)


def _nothing(_arguments: Arguments) -> Results:
    """Answer the call with which clients look whether anybody is there."""
    return ()


def _refuse(_arguments: Arguments) -> Results:
    """create_intr_chan, destroy_intr_chan: there are no service requests."""
    return (Outcome.NOT_SUPPORTED,)

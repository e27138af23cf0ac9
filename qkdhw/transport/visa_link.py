"""A VISA resource (pyvisa) as the wire under a byte link: HiSLIP, VXI-11, USBTMC, GPIB instruments.

What pyvisa-py 0.8 does not do is done here: every call is bounded, also when the peer dies; a reply is fetched only
after something was written, since asking an instrument for a reply that it does not owe is an error to it; and a new
session begins with a device clear, USBTMC's too, so that no earlier answer is left; a VXI-11 session whose peer hangs
up ends at once.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from qkdhw.errors import ConfigurationError, TransportClosedError, TransportError, TransportTimeoutError
from qkdhw.transport.bounded import bounded
from qkdhw.transport.byte_link import Wire
from qkdhw.transport.serial_link import SerialWire
from qkdhw.transport.tcp_link import TcpWire
from qkdhw.transport.usb_link import UDEV_REMEDY

FORMS = (
    "use TCPIP::host::hislip0::INSTR, TCPIP::host::inst0::INSTR, TCPIP::host::port::SOCKET, "
    "USB0::0x1313::0x804A::serial::INSTR or ASRL/dev/ttyUSB0::INSTR"
)
CHUNK_BYTES = 65536
ASRL_BAUD = 9600  # as VISA has it
GRACE_S = 1.5  # VXI-11 in pyvisa-py waits for the unit's own time-out message for a second more
CLOSE_S = 1.0
HISLIP_PORT, PORTMAPPER_PORT = 4880, 111
USBTMC_REQUEST, INITIATE_CLEAR, CHECK_CLEAR_STATUS, PENDING = 0xA1, 5, 6, 2
CLEAR_CHECKS = 100

T = TypeVar("T")


def load_pyvisa(backend: str) -> Any:
    """Return the module pyvisa once it is known to have this back end, such as "@py".

    Raises:
        ConfigurationError: It is not installed, or has no such back end.
    """
    try:
        import pyvisa
    except ImportError as error:
        raise ConfigurationError(
            "VISA addresses need the package pyvisa", remedy="pip install 'qkdhw[visa]'"
        ) from error
    try:
        pyvisa.ResourceManager(backend)
    except (ValueError, OSError, pyvisa.Error) as error:
        raise ConfigurationError(
            f"there is no VISA {backend!r}: {error}", remedy="leave ?backend= out, or install that VISA library"
        ) from error
    return pyvisa


def visa_dialler(resource: str, backend: str = "@py") -> Callable[[float], Wire]:
    """Return what opens a VISA resource; SOCKET and serial ones are plain streams to which VISA adds nothing.

    Args:
        resource: VISA resource name.
        backend: Which VISA: "@py" for pyvisa-py, "@ivi" for the system's.

    Raises:
        ConfigurationError: pyvisa is not installed, has no such back end, or this is no resource name.
    """
    pyvisa = load_pyvisa(backend)
    try:
        name: Any = pyvisa.rname.parse_resource_name(resource)
        kind = name.interface_type, name.resource_class
        if kind == ("TCPIP", "SOCKET"):
            port = int(name.port)
            return lambda timeout_s: TcpWire(name.host_address, port, timeout_s=timeout_s)
        reach = _reach(name) if kind == ("TCPIP", "INSTR") and backend == "@py" else None
    except (pyvisa.rname.InvalidResourceName, ValueError) as error:
        raise ConfigurationError(f"{resource!r} is no VISA resource: {_words(error)}", remedy=FORMS) from error
    if kind[0] == "ASRL":
        if not name.board.startswith("/"):
            raise ConfigurationError(f"{resource!r} names no device file", remedy=FORMS)
        return lambda _timeout_s: SerialWire(name.board, baud=ASRL_BAUD)
    return lambda timeout_s: VisaWire(resource, backend=backend, reach=reach, timeout_s=timeout_s)


def _reach(name: Any) -> tuple[str, int]:
    """Return host and TCP port of a TCPIP instrument; pyvisa-py takes a port after a comma."""
    if name.lan_device_name.lower().startswith("hislip"):
        return name.host_address, int(name.lan_device_name.partition(",")[2] or HISLIP_PORT)
    host, _, port = name.host_address.partition(",")
    return host, int(port or PORTMAPPER_PORT)


class VisaWire:
    """A session with a message-based VISA resource; one write is one message.

    Args:
        resource: VISA resource name of class INSTR.
        backend: Which VISA: "@py" for pyvisa-py, "@ivi" for the system's.
        reach: Host and TCP port to look at first, since pyvisa-py does not bound its connecting; None if it has none.
        timeout_s: Longest wait for the session.
    """

    keeps_messages = False
    fresh_when_reopened = True

    def __init__(self, resource: str, *, backend: str, reach: tuple[str, int] | None, timeout_s: float) -> None:
        self._name = resource
        self._pyvisa = load_pyvisa(backend)
        self._backend = backend
        self._fetched = bytearray()
        self._reply_due = False
        deadline_s = time.monotonic() + timeout_s
        if reach is not None:
            TcpWire(*reach, timeout_s=timeout_s).close()
        left_s = max(deadline_s - time.monotonic(), 0.0)
        self._visa: Any = bounded(lambda: self._open(left_s), left_s, what=f"opening {resource}", late=_close)

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes as soon as there are any, b"" if none are owed or at the deadline."""
        if not self._fetched and self._reply_due and timeout_s > 0:
            self._fetch(timeout_s)
        data = bytes(self._fetched[:limit])
        del self._fetched[:limit]
        return data

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Send one message."""
        message = bytes(data)
        try:
            self._bounded(lambda visa: visa.visalib.write(visa.session, message), timeout_s)
        except TransportTimeoutError:
            return 0
        self._reply_due = True
        return len(message)

    def close(self) -> None:
        """Close it; a session that hangs is left behind."""
        visa, self._visa = self._visa, None
        if visa is not None:
            with contextlib.suppress(TransportError):
                bounded(lambda: _close(visa), CLOSE_S, what=f"closing {self._name}")

    def _fetch(self, timeout_s: float) -> None:
        """Read the next piece of the reply."""

        def read(visa: Any) -> tuple[bytes, bool]:
            codes = self._pyvisa.constants.StatusCode
            with visa.ignore_warning(codes.success_max_count_read, codes.success_device_not_present):
                data, status = visa.visalib.read(visa.session, CHUNK_BYTES)
            return bytes(data), status == codes.success_max_count_read or len(data) >= CHUNK_BYTES

        with contextlib.suppress(TransportTimeoutError):
            data, self._reply_due = self._bounded(read, timeout_s)
            self._fetched += data

    def _bounded(self, call: Callable[[Any], T], timeout_s: float) -> T:
        """Make one call of pyvisa within the time-out; after one that hangs the session is of no use any more."""
        visa = self._visa
        if visa is None:
            raise TransportClosedError(f"{self._name} is closed", remedy="open it again")
        timeout_ms = max(1, math.ceil(timeout_s * 1000))

        def run() -> T | None:
            try:
                if visa.timeout != timeout_ms:
                    visa.timeout = timeout_ms
                return call(visa)
            except Exception as error:  # pyvisa-py lets everything through, also plain Exception
                if self._is_timeout(error):
                    return None
                raise TransportClosedError(
                    f"the session with {self._name} is gone: {_words(error)}",
                    remedy="check that the unit is on, then open it again",
                ) from error

        try:
            result = bounded(run, timeout_s + GRACE_S, what=f"a call to {self._name}")
        except TransportTimeoutError:
            self.close()
            raise
        if result is None:
            raise TransportTimeoutError(f"{self._name} did not answer within {timeout_s:.3g} s")
        return result

    def _open(self, timeout_s: float) -> Any:
        """Open the session and clear the device: nothing that it was asked before can be answered after."""
        timeout_ms = max(1, math.ceil(timeout_s * 1000))
        visa = None
        try:
            manager = self._pyvisa.ResourceManager(self._backend)
            visa = manager.open_resource(self._name, open_timeout=timeout_ms)
            visa.timeout = timeout_ms
            _notice_hanging_up(visa)
            if "::hislip" not in self._name.lower():  # a HiSLIP session begins clear
                self._clear(visa)
        except Exception as error:  # as above
            if visa is not None:
                _close(visa)
            kind = TransportTimeoutError if self._is_timeout(error) else TransportError
            denied = getattr(error, "errno", None) == errno.EACCES or "langid" in str(error)
            remedy = UDEV_REMEDY if denied else "check the address, that the unit is on, and that nobody else has it"
            raise kind(f"{self._name} cannot be opened: {_words(error)}", remedy=remedy) from error
        return visa

    def _clear(self, visa: Any) -> None:
        try:
            visa.clear()
        except self._pyvisa.VisaIOError as error:
            if error.error_code != self._pyvisa.constants.StatusCode.error_nonsupported_operation:
                raise
            interface = _interface(visa)
            if hasattr(interface, "usb_dev"):
                _clear_usbtmc(interface)

    def _is_timeout(self, error: Exception) -> bool:
        """Say whether an error is a time-out; USBTMC in pyvisa-py wraps the one of a write in a ValueError."""
        codes = self._pyvisa.constants.StatusCode
        cause = error.__context__ if isinstance(error, ValueError) else error
        late = isinstance(cause, TimeoutError) or getattr(cause, "errno", None) == errno.ETIMEDOUT
        return late or getattr(error, "error_code", None) == codes.error_timeout


class _EndingSocket(socket.socket):
    """A socket that raises at the end of what the peer sends."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = super().recv(bufsize, flags)
        if not data and bufsize:
            raise ConnectionResetError(errno.ECONNRESET, "the other end hung up")
        return data


def _interface(visa: Any) -> Any:
    """Return what pyvisa-py has below a session; None of another VISA."""
    return getattr(getattr(visa.visalib, "sessions", {}).get(visa.session), "interface", None)


def _notice_hanging_up(visa: Any) -> None:
    """Let the VXI-11 client of pyvisa-py see a hang-up, which it reads again and again until its time-out."""
    interface = _interface(visa)
    if hasattr(interface, "create_link"):
        old, wait_s = interface.sock, interface.sock.gettimeout()
        interface.sock = _EndingSocket(old.family, old.type, old.proto, old.detach())
        interface.sock.settimeout(wait_s)


def _clear_usbtmc(interface: Any) -> None:
    """Clear a USBTMC device (USBTMC 1.0, 4.2.1.6 and 4.2.1.7), which pyvisa-py 0.8 does not."""
    device, number = interface.usb_dev, interface.usb_intf.index
    device.ctrl_transfer(USBTMC_REQUEST, INITIATE_CLEAR, 0, number, 1)
    for _ in range(CLEAR_CHECKS):
        status, has_data = device.ctrl_transfer(USBTMC_REQUEST, CHECK_CLEAR_STATUS, 0, number, 2)
        if status != PENDING:
            break
        if has_data & 1:
            interface.usb_recv_ep.read(CHUNK_BYTES)
    device.clear_halt(interface.usb_send_ep.bEndpointAddress)


def _close(visa: Any) -> None:
    try:
        visa.close()
    except Exception as error:  # as above
        raise TransportClosedError(f"closing failed: {_words(error)}") from error


def _words(error: Exception) -> str:
    """Say in one line what a library says in several."""
    return " ".join(str(error).split())[:200] or type(error).__name__

"""A serial port (pyserial) as the wire under a byte link; POSIX."""

from __future__ import annotations

import errno
import os
import select
from typing import Any

from qkdhw.errors import ConfigurationError, TransportClosedError, TransportError

_WHY_NOT = {
    errno.ENOENT: ("there is no such port", "`qkdhw devices list` shows the ports that there are"),
    errno.ENXIO: ("no unit is behind this port", "plug the unit in again"),
    errno.EACCES: ("you may not open it", "join the group that owns the port: sudo adduser $USER dialout"),
    errno.EBUSY: ("another program has it open", "close the other program"),
    errno.EAGAIN: ("another program has it open", "close the other program"),
    errno.ENOTTY: ("this is not a serial port", "`qkdhw devices list` shows the ports that there are"),
    errno.EINVAL: ("it does not take these settings", "check the baud rate"),
}


class SerialWire:
    """A serial port, opened for this process alone: 8 data bits, no parity, 1 stop bit, no flow control.

    Args:
        path: Device file.
        baud: Symbol rate in bits per second; immaterial for USB-CDC units.
    """

    keeps_messages = False
    fresh_when_reopened = False

    def __init__(self, path: str, *, baud: int) -> None:
        try:
            import serial
        except ImportError as error:
            raise ConfigurationError(
                "serial ports need the package pyserial", remedy="pip install 'qkdhw[serial]'"
            ) from error
        self._path = path
        # pyserial reports a unit that went away as SerialException (an OSError) and a port closed under a waiting
        # thread as TypeError (it hands None to the system call).
        self._gone: tuple[type[Exception], ...] = (OSError, ValueError, TypeError)
        try:
            self._port: Any = serial.Serial(path, baudrate=baud, timeout=0, write_timeout=0, exclusive=True)
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None) or getattr(error.__context__, "errno", None) or 0
            why, remedy = _WHY_NOT.get(number, (str(error), "check the port and its settings"))
            raise TransportError(f"serial port {path} cannot be opened: {why}", remedy=remedy) from error

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes as soon as there are any, b"" at the deadline; TransportClosedError at the end."""
        try:
            return bytes(self._port.read(limit)) if self._wait(select.POLLIN, timeout_s) else b""
        except self._gone as error:
            raise self._closed() from error

    def receive_into(self, buffer: memoryview, *, timeout_s: float) -> int:
        """Fill the buffer from its front as soon as there is anything; 0 at the deadline."""
        try:
            size = os.readv(self._port.fileno(), [buffer])
            if size == 0 and self._wait(select.POLLIN, timeout_s):
                size = os.readv(self._port.fileno(), [buffer])
                if size == 0:  # ready to read, and nothing comes: it was unplugged
                    raise self._closed()
        except BlockingIOError:
            return 0
        except self._gone as error:
            raise self._closed() from error
        return size

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Send what fits before the deadline and return how many bytes that was."""
        try:
            return int(self._port.write(data) or 0) if self._wait(select.POLLOUT, timeout_s) else 0
        except self._gone as error:
            raise self._closed() from error

    def close(self) -> None:
        """Close it."""
        self._port.close()

    def _wait(self, events: int, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._port.fileno(), events)
        return bool(poll.poll(timeout_s * 1000.0))

    def _closed(self) -> TransportClosedError:
        return TransportClosedError(
            f"serial port {self._path} is gone", remedy="check the cable and the unit's power, then open it again"
        )

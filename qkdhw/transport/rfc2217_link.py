"""A serial port of a terminal server (RFC 2217, by pyserial) as the wire under a byte link."""

from __future__ import annotations

import time
from typing import Any

from qkdhw.errors import ConfigurationError, TransportClosedError, TransportError
from qkdhw.transport.bounded import bounded

SLICE_S = 0.05  # pyserial negotiates all settings anew when its time-out is changed, so this one stays

NEGOTIATION_S = 2.0  # pyserial takes 0.4 s at best, and 0.3 s more after each close


class Rfc2217Wire:
    """A serial port behind a terminal server: 8 data bits, no parity, 1 stop bit, no flow control.

    Args:
        host: Name or address of the terminal server.
        port: TCP port of the serial port.
        baud: Symbol rate in bits per second.
        timeout_s: Longest wait for the connection; less than 2 s counts as that.
    """

    keeps_messages = False
    fresh_when_reopened = False

    def __init__(self, host: str, port: int, *, baud: int, timeout_s: float) -> None:
        try:
            import serial
        except ImportError as error:
            raise ConfigurationError(
                "rfc2217:// addresses need the package pyserial", remedy="pip install 'qkdhw[serial]'"
            ) from error
        self._peer = f"{host}:{port}"
        url = f"rfc2217://{self._peer}"
        # a port closed under a waiting thread is a TypeError or AttributeError: pyserial has no socket any more
        self._gone: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, AttributeError)

        def dial() -> Any:
            try:
                return serial.serial_for_url(url, baudrate=baud, timeout=SLICE_S)
            except self._gone as error:
                raise TransportError(
                    f"{self._peer} cannot be reached by RFC 2217: {error}",
                    remedy="check the address, that the terminal server is on, and that nobody else has the port",
                ) from error

        wait_s = max(timeout_s, NEGOTIATION_S)
        self._port: Any = bounded(dial, wait_s, what=f"opening {url}", late=lambda port: port.close())

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes as soon as there are any, b"" at the deadline; TransportClosedError at the end."""
        deadline_s = time.monotonic() + timeout_s
        try:
            while True:
                waiting = self._port.in_waiting
                if not waiting and time.monotonic() >= deadline_s:
                    return b""
                if data := self._port.read(min(limit, waiting or 1)):
                    return bytes(data)
        except self._gone as error:
            raise self._closed(error) from error

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Send everything; pyserial itself gives up after 5 s."""
        try:
            return int(self._port.write(bytes(data)))
        except self._gone as error:
            raise self._closed(error) from error

    def close(self) -> None:
        """Close it."""
        self._port.close()

    def _closed(self, error: Exception) -> TransportClosedError:
        return TransportClosedError(
            f"the serial port at {self._peer} is gone: {error}",
            remedy="check that the terminal server and the unit are on, then open it again",
        )

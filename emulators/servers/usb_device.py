"""One emulated device on the USB: how its unit's answers look to the host, errors and time-outs included.

Source: Universal Serial Bus Specification, revision 2.0, chapters 5 and 9; usb.backend.libusb1 of pyusb 1.3 (errors).
"""

from __future__ import annotations

import array
import errno
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from usb.core import USBError, USBTimeoutError

from qkdhw_emulators.servers.usb_descriptors import standard_reply
from qkdhw_emulators.servers.usb_unit import (
    Endpoint,
    ResettableUnit,
    UsbGoneError,
    UsbNotReadyError,
    UsbStallError,
    UsbUnit,
)

POLL_S = 0.0005
CONFIGURATION = 1
CLEAR_HALT = (0x02, 1, 0)  # CLEAR_FEATURE to a data pipe

Result = TypeVar("Result")


def usb_error(code: int, number: int, text: str) -> USBError:
    """Return the error that libusb would raise."""
    return USBError(text, code, number)


def gone_error() -> USBError:
    """Return the error for a device that has been unplugged."""
    return usb_error(-4, errno.ENODEV, "No such device (it may have been disconnected)")


@dataclass(eq=False)
class Device:
    """A unit at an address of the bus; when it is unplugged this is over for good.

    Attributes:
        unit: The unit.
        lock: Held during every call to the unit.
        address: Address on the bus.
        plugged: Whether it is still there.
        configuration: The configuration that the host has set, 0 or 1.
        alternate: The alternate setting of its interface.
        holder: The handle that has claimed the interface.
        halted: Addresses of data pipes that have stalled.
        replug: Takes it off the bus, and puts its unit back as a new device.
    """

    unit: UsbUnit
    lock: AbstractContextManager[object]
    address: int
    replug: Callable[[Device], None]
    plugged: bool = True
    configuration: int = CONFIGURATION
    alternate: int = 0
    holder: object = None
    halted: set[int] = field(default_factory=set)

    def check(self) -> None:
        """Raise USBError if it has been unplugged."""
        if not self.plugged:
            raise gone_error()

    def reset(self) -> None:
        """Go back to the state after plugging in."""
        self.configuration, self.alternate = CONFIGURATION, 0
        self.halted.clear()
        if isinstance(self.unit, ResettableUnit):
            self.unit.bus_reset()

    def endpoint(self, address: int) -> Endpoint:
        """Return a data pipe of the setting that is on."""
        for endpoint in self.unit.descriptor.settings[self.alternate]:
            if endpoint[0] == address:
                return Endpoint(*endpoint)
        raise usb_error(-5, errno.ENOENT, f"Entity not found: endpoint {address:#04x}")

    def control(
        self, request_type: int, request: int, value: int, index: int, data: array.array[int], timeout_ms: int
    ) -> int:
        """Do a control transfer; return how many bytes went or came."""
        unit, standard = self.unit, request_type & 0x60 == 0

        def read() -> bytes:
            if standard:
                return standard_reply(unit.descriptor, request, value, self.configuration, self.alternate)
            return unit.control_in(request_type, request, value, index, len(data))

        def write() -> int:
            if (request_type, request, value) == CLEAR_HALT:
                self.halted.discard(index)
            elif standard:
                raise UsbStallError
            else:
                unit.control_out(request_type, request, value, index, data.tobytes())
            return len(data)

        if request_type & 0x80:
            return _fill(data, self._wait(read, timeout_ms))
        return self._wait(write, timeout_ms)

    def write(self, endpoint: int, data: array.array[int], timeout_ms: int) -> int:
        """Write to a data pipe; return how many bytes went."""
        self.endpoint(endpoint)
        sent = data.tobytes()

        def write() -> int:
            self.unit.bulk_out(endpoint, sent)
            return len(sent)

        return self._wait(write, timeout_ms, endpoint)

    def read(self, endpoint: int, buffer: array.array[int], timeout_ms: int) -> int:
        """Read from a data pipe up to a short packet; after the time-out what has come by then."""
        packet = self.endpoint(endpoint).max_packet
        got = bytearray()

        def read() -> bytes | None:
            piece = self.unit.bulk_in(endpoint, len(buffer) - len(got))
            if piece is None:
                return bytes(got)
            got.extend(piece)
            if len(got) > len(buffer):
                raise usb_error(-8, errno.EOVERFLOW, "Overflow: the device sent more than the host asked for")
            return bytes(got) if len(piece) % packet or len(got) == len(buffer) else None

        try:
            return _fill(buffer, self._wait(read, timeout_ms, endpoint))
        except USBTimeoutError:
            if got:
                return _fill(buffer, bytes(got))
            raise

    def _wait(self, attempt: Callable[[], Result | None], timeout_ms: int, endpoint: int = 0) -> Result:
        """Try a transfer until it succeeds; a time-out of 0 is none, as in libusb."""
        deadline_s = time.monotonic() + timeout_ms / 1000
        while True:
            with self.lock:
                result = self._attempt(attempt, endpoint)
            if result is not None:
                return result
            if timeout_ms and time.monotonic() >= deadline_s:
                raise USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT)
            time.sleep(POLL_S)

    def _attempt(self, attempt: Callable[[], Result | None], endpoint: int) -> Result | None:
        self.check()
        if endpoint in self.halted:
            raise usb_error(-9, errno.EPIPE, "Pipe error")
        try:
            return attempt()
        except UsbNotReadyError:
            return None
        except UsbStallError as stall:
            if endpoint:
                self.halted.add(endpoint)
            raise usb_error(-9, errno.EPIPE, "Pipe error") from stall
        except UsbGoneError as gone:
            self.replug(self)
            raise gone_error() from gone


def _fill(buffer: array.array[int], data: bytes) -> int:
    """Copy what a device sent to the host's buffer of bytes; return how much fitted."""
    data = data[: len(buffer)]
    buffer[: len(data)] = array.array("B", data)
    return len(data)

"""A USB device (pyusb) as the wire under a byte link: one bulk pipe each way, and control transfers."""

from __future__ import annotations

import contextlib
import errno
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qkdhw.errors import (
    ConfigurationError,
    NotSupportedError,
    TransportClosedError,
    TransportError,
    TransportTimeoutError,
)

TRANSFER_BYTES = 65536
SLICE_S = 0.05  # a stream of full packets is handed on this often, and a reader notices that it was closed
BULK, TO_HOST = 0x02, 0x80
UDEV_REMEDY = (
    'allow it: a file /etc/udev/rules.d/60-qkdhw.rules with SUBSYSTEM=="usb", ATTR{idVendor}=="....", MODE="0660", '
    'TAG+="uaccess"; then plug the unit in again'
)
_GONE = "check the cable and the unit's power, then open it again"


@dataclass(frozen=True, slots=True)
class UsbAddress:
    """Where a USB unit is.

    Attributes:
        vendor: Vendor ID.
        product: Product ID.
        serial_number: Which of several, or "" for the only one.
        interface: Number of its interface.
        bulk_in: Address of the pipe that is read, or None for the first one.
        bulk_out: Address of the pipe that is written, or None for the first one.
    """

    vendor: int
    product: int
    serial_number: str = ""
    interface: int = 0
    bulk_in: int | None = None
    bulk_out: int | None = None

    def __str__(self) -> str:
        serial_number = f" {self.serial_number}" if self.serial_number else ""
        return f"USB unit {self.vendor:04x}:{self.product:04x}{serial_number}"


class UsbWire:
    """A USB device whose interface is claimed for this process; with the alternate setting that has bulk pipes.

    Args:
        address: Which device, and which pipes of it.
    """

    keeps_messages = False
    fresh_when_reopened = False  # what the unit has in its buffer stays there

    def __init__(self, address: UsbAddress) -> None:
        self._address = address
        self._lock = threading.Lock()  # a transfer under way must end before the device is closed
        self._surplus: dict[int, bytearray] = {}  # what packets were longer than asked for, by pipe
        self._device: Any = None
        try:
            import usb.core
            import usb.util
        except ImportError as error:
            raise ConfigurationError("USB units need the package pyusb", remedy="pip install 'qkdhw[usb]'") from error
        self._usb: Any = usb
        with self._opening():
            self._device = self._find()
            self._claim()

    def receive(self, limit: int, *, timeout_s: float) -> bytes:
        """Return 1..limit bytes as soon as there are any, b"" at the deadline; TransportClosedError at the end."""
        if self._in is None:
            raise NotSupportedError(f"{self._address} has no bulk pipe to read from")
        return self._receive_from(self._in, limit, timeout_s)

    def read_pipe(self, pipe: int, limit: int, timeout_s: float) -> bytes:
        """Read at most `limit` bytes from the bulk pipe with this address, b"" at the deadline."""
        return self._receive_from(self._pipe(self._pipes, pipe, TO_HOST), limit, timeout_s)

    def send(self, data: memoryview, *, timeout_s: float) -> int:
        """Send what fits before the deadline and return how many bytes that was."""
        if self._out is None:
            raise NotSupportedError(f"{self._address} has no bulk pipe to write to")
        with self._transfer(), contextlib.suppress(self._usb.core.USBTimeoutError):
            return int(self._device.write(self._out.bEndpointAddress, bytes(data[:TRANSFER_BYTES]), _ms(timeout_s)))
        return 0

    def control_in(self, request_type: int, request: int, value: int, index: int, size: int, timeout_s: float) -> bytes:
        """Read at most `size` bytes by a control transfer."""
        with self._transfer():
            return bytes(self._device.ctrl_transfer(request_type, request, value, index, size, _ms(timeout_s)))

    def control_out(
        self, request_type: int, request: int, value: int, index: int, data: bytes, timeout_s: float
    ) -> None:
        """Write by a control transfer."""
        with self._transfer():
            self._device.ctrl_transfer(request_type, request, value, index, data, _ms(timeout_s))

    def close(self) -> None:
        """Close it."""
        with self._lock:
            device, self._device = self._device, None
            if device is not None:
                with contextlib.suppress(self._usb.core.USBError):  # it is gone
                    self._usb.util.dispose_resources(device)

    def _find(self) -> Any:
        address = self._address
        found = list(self._usb.core.find(find_all=True, idVendor=address.vendor, idProduct=address.product))
        if address.serial_number:
            found = [each for each in found if each.serial_number == address.serial_number]
        if not found:
            raise TransportError(f"there is no {address}", remedy="check the cable and the unit's power")
        if len(found) > 1:
            raise TransportError(f"there are {len(found)} of {address}", remedy="add /SERIAL to the address")
        return found[0]

    def _claim(self) -> None:
        device, address = self._device, self._address
        with contextlib.suppress(NotImplementedError):
            if device.is_kernel_driver_active(address.interface):
                device.detach_kernel_driver(address.interface)
        try:
            configuration = device.get_active_configuration()
        except self._usb.core.USBError:
            device.set_configuration()
            configuration = device.get_active_configuration()
        settings = [each for each in configuration if each.bInterfaceNumber == address.interface]
        if not settings:
            raise TransportError(f"{address} has no interface {address.interface}", remedy="check ?interface=")
        chosen = next((each for each in settings if _bulk_pipes(each)), settings[0])
        self._usb.util.claim_interface(device, address.interface)
        if len(settings) > 1:
            device.set_interface_altsetting(address.interface, chosen.bAlternateSetting)
        self._pipes = _bulk_pipes(chosen)
        self._in = self._pipe(self._pipes, address.bulk_in, TO_HOST)
        self._out = self._pipe(self._pipes, address.bulk_out, 0)

    def _pipe(self, pipes: list[Any], wanted: int | None, direction: int) -> Any:
        """Return the pipe with this address, or the first one in this direction; None if there is none."""
        candidates = [each for each in pipes if each.bEndpointAddress & TO_HOST == direction]
        if wanted is None:
            return candidates[0] if candidates else None
        for each in candidates:
            if each.bEndpointAddress == wanted:
                return each
        there_are = ", ".join(hex(each.bEndpointAddress) for each in candidates) or "none"
        raise TransportError(f"{self._address} has no bulk pipe {wanted:#x}", remedy=f"that way it has: {there_are}")

    def _receive_from(self, pipe: Any, limit: int, timeout_s: float) -> bytes:
        deadline_s = time.monotonic() + timeout_s
        surplus = self._surplus.setdefault(pipe.bEndpointAddress, bytearray())
        while not surplus:
            left_s = max(0.0, deadline_s - time.monotonic())
            surplus += self._read(pipe, limit, min(left_s, SLICE_S))
            if not surplus and time.monotonic() >= deadline_s:
                break
        data = bytes(surplus[:limit])
        del surplus[:limit]
        return data

    def _read(self, pipe: Any, limit: int, timeout_s: float) -> bytes:
        packet = pipe.wMaxPacketSize
        size = -(-min(limit, TRANSFER_BYTES) // packet) * packet  # whole packets: a longer one would be an overflow
        with self._transfer(), contextlib.suppress(self._usb.core.USBTimeoutError):
            return bytes(self._device.read(pipe.bEndpointAddress, size, _ms(timeout_s)))
        return b""

    @contextlib.contextmanager
    def _transfer(self) -> Iterator[None]:
        """Hold the device for one transfer and turn pyusb's errors into ours, but for a time-out of a bulk pipe."""
        with self._lock:
            if self._device is None:
                raise TransportClosedError(f"{self._address} is closed", remedy="open it again")
            try:
                yield
            except self._usb.core.USBTimeoutError as error:
                raise TransportTimeoutError(f"{self._address} took no transfer in time", remedy=_GONE) from error
            except self._usb.core.USBError as error:
                if error.errno == errno.EPIPE:
                    raise TransportError(
                        f"{self._address} refused a transfer", remedy="check that it is the right unit"
                    ) from error
                raise TransportClosedError(f"{self._address} is gone: {error.strerror}", remedy=_GONE) from error

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """Turn pyusb's errors into ours, and leave nothing open."""
        try:
            yield
        except self._usb.core.NoBackendError as error:
            raise ConfigurationError(
                "USB units need the library libusb", remedy="apt-get install libusb-1.0-0"
            ) from error
        except (self._usb.core.USBError, ValueError) as error:
            self.close()
            number = getattr(error, "errno", None)
            if number == errno.EACCES or isinstance(error, ValueError):  # texts cannot be read without permission
                why, remedy = "you may not open it", UDEV_REMEDY
            elif number == errno.EBUSY:
                why, remedy = "another program has it open", "close the other program"
            else:
                why, remedy = str(error), _GONE
            raise TransportError(f"{self._address} cannot be opened: {why}", remedy=remedy) from error
        except TransportError:
            self.close()
            raise


def _bulk_pipes(setting: Any) -> list[Any]:
    return [endpoint for endpoint in setting if endpoint.bmAttributes & 0x03 == BULK]


def _ms(timeout_s: float) -> int:
    """Return a time-out as libusb takes it, where 0 would be none at all."""
    return max(1, math.ceil(timeout_s * 1000))

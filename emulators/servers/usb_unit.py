"""What an emulated USB device is: its descriptors, and what it does with transfers. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

BULK, INTERRUPT = 2, 3


class UsbStallError(Exception):
    """The unit refuses a transfer: its end of the pipe stalls, and a data pipe stays halted until it is cleared."""


class UsbNotReadyError(Exception):
    """The unit cannot take a transfer yet: the host tries again until its time-out ends."""


class UsbGoneError(Exception):
    """The unit drops off the bus, and comes back as a new device."""


class Endpoint(NamedTuple):
    """A data pipe.

    Attributes:
        address: Number, with bit 7 set for a pipe to the host.
        attributes: 2 for bulk, 3 for interrupt.
        max_packet: Bytes of a full packet; a shorter one ends a transfer.
    """

    address: int
    attributes: int = BULK
    max_packet: int = 512


@dataclass(frozen=True, slots=True)
class UsbDescriptor:
    """Who a unit says it is. It has one configuration, number 1, with one interface, number 0.

    Attributes:
        vid: Vendor, 0 to 0xFFFF.
        pid: Product, 0 to 0xFFFF.
        manufacturer: Text.
        product: Text.
        serial_number: Text.
        endpoints: Data pipes of alternate setting 0.
        alternate_settings: Data pipes of the alternate settings 1 and on.
        interface_class: Class of the interface, 0xFF for one of the vendor's own.
        interface_subclass: Its subclass.
        interface_protocol: Its protocol.
        device_class: Class, subclass and protocol of the device; zeros if only the interface has them.
        bcd_device: Release of the device, 0x0123 for 1.23.
    """

    vid: int
    pid: int
    manufacturer: str
    product: str
    serial_number: str
    endpoints: tuple[Endpoint, ...] = ()
    alternate_settings: tuple[tuple[Endpoint, ...], ...] = ()
    interface_class: int = 0xFF
    interface_subclass: int = 0xFF
    interface_protocol: int = 0xFF
    device_class: tuple[int, int, int] = (0, 0, 0)
    bcd_device: int = 0x0100

    @property
    def settings(self) -> tuple[tuple[Endpoint, ...], ...]:
        """Data pipes of all alternate settings."""
        return (self.endpoints, *self.alternate_settings)


class UsbUnit(Protocol):
    """An emulated USB device. Every method may raise the errors above."""

    @property
    def descriptor(self) -> UsbDescriptor:
        """Who the unit says it is."""
        ...

    def control_in(self, request_type: int, request: int, value: int, index: int, length: int) -> bytes:
        """Answer a class or vendor request with at most `length` bytes."""
        ...

    def control_out(self, request_type: int, request: int, value: int, index: int, data: bytes) -> None:
        """Do a class or vendor request."""
        ...

    def bulk_in(self, endpoint: int, size: int) -> bytes | None:
        """Return at most `size` bytes, b"" if there is nothing yet, None for a packet of no bytes.

        A length that is not a multiple of the full packet ends the host's transfer, and so does a packet of no bytes.
        """
        ...

    def bulk_out(self, endpoint: int, data: bytes) -> None:
        """Take the bytes of one transfer."""
        ...


@runtime_checkable
class ResettableUnit(UsbUnit, Protocol):
    """A unit with something to forget when the bus is reset."""

    def bus_reset(self) -> None:
        """The unit was plugged in, unplugged or reset."""
        ...

"""An emulated unit as a USB device of its vendor's own kind: one bulk pipe each way, and control transfers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qkdhw_emulators.servers.usb_unit import UsbDescriptor, UsbGoneError, UsbNotReadyError, UsbStallError

if TYPE_CHECKING:
    from qkdhw_emulators.line import Line


class UsbBulk:
    """Serves a line as a USB device; a `UsbUnit` for `UsbBus.plug`.

    Args:
        line: The line to the unit. Control transfers go to the unit's own `control_in` and `control_out`. A further
            port whose name is the address of a pipe, such as "0x82", is behind that pipe.
        descriptor: Who the unit says it is.
    """

    def __init__(self, line: Line, descriptor: UsbDescriptor) -> None:
        self._descriptor = descriptor
        self._line = line
        self._unit: Any = line.unit
        self._further = {int(name, 16): (further, bytearray()) for name, (further, _) in line.further.items()}
        self._waiting = bytearray()
        self._gone = False

    @property
    def descriptor(self) -> UsbDescriptor:
        """Who the unit says it is, now: a fault may make another one of it."""
        now: UsbDescriptor = getattr(self._unit, "usb_descriptor", self._descriptor)
        return now

    def bus_reset(self) -> None:
        """The unit was plugged in, unplugged or reset."""
        self._waiting.clear()
        self._gone = False
        self._line.disconnected()
        self._line.connected()
        for further, waiting in self._further.values():
            waiting.clear()
            further.disconnected()
            further.connected()

    def bulk_in(self, endpoint: int, size: int) -> bytes | None:
        """Return what the unit has for the host."""
        line, waiting = self._further.get(endpoint, (self._line, self._waiting))
        if not waiting and not self._gone:
            for delivery in line.take(size):
                waiting += delivery.data
                self._gone = self._gone or delivery.hang_up
        if not waiting:
            if self._gone:
                raise UsbGoneError
            line.wait_s()  # moves a clock on that jumps over waits
        data = bytes(waiting[:size])
        del waiting[:size]
        return data

    def bulk_out(self, endpoint: int, data: bytes) -> None:
        """Hand on the bytes of one transfer, once those before it are dealt with."""
        if self._line.busy:
            raise UsbNotReadyError
        self._line.feed(data)

    def control_in(self, request_type: int, request: int, value: int, index: int, length: int) -> bytes:
        """Ask the unit; one without control transfers stalls."""
        if not hasattr(self._unit, "control_in"):
            raise UsbStallError
        return bytes(self._unit.control_in(request_type, request, value, index, length))

    def control_out(self, request_type: int, request: int, value: int, index: int, data: bytes) -> None:
        """Tell the unit; one without control transfers stalls."""
        if not hasattr(self._unit, "control_out"):
            raise UsbStallError
        self._unit.control_out(request_type, request, value, index, data)

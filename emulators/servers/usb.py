"""A USB without a kernel: emulated devices where stock pyusb, and what is built on it, finds them.

Source: usb.backend.IBackend of pyusb 1.3 (what a back end is asked).
"""

from __future__ import annotations

import array
import errno
import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import usb.backend.libusb1

from qkdhw_emulators.servers.usb_descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from qkdhw_emulators.servers.usb_device import CONFIGURATION, Device, usb_error
from qkdhw_emulators.servers.usb_unit import UsbUnit


@dataclass(eq=False)
class Handle:
    """A device that a program has opened."""

    device: Device


class UsbBus:
    """A bus with emulated devices; a back end of pyusb, so its methods are those of `usb.backend.IBackend`."""

    def __init__(self) -> None:
        self._devices: list[Device] = []
        self._last_address = 0

    def plug(self, unit: UsbUnit, lock: AbstractContextManager[object]) -> None:
        """Plug a unit in; it gets a new address.

        Args:
            unit: The unit.
            lock: Held during every call to the unit.
        """
        self._last_address = self._last_address % 127 + 1
        device = Device(unit, lock, self._last_address, self._replug)
        with lock:
            device.reset()
        self._devices.append(device)

    def unplug(self, unit: UsbUnit) -> None:
        """Pull a unit out; what goes on with it fails."""
        for device in [each for each in self._devices if each.unit is unit]:
            self._unplug(device)

    @contextmanager
    def install(self) -> Iterator[UsbBus]:
        """Put this bus in place of libusb while the body runs, for the whole process.

        It does not matter whether pyvisa-py was imported before: without libusb it then knows no USB, so that part of
        it is imported again.
        """
        original = usb.backend.libusb1.get_backend
        usb.backend.libusb1.get_backend = lambda find_library=None: self
        try:
            if "pyvisa_py" in sys.modules and "pyvisa_py.usb" not in sys.modules:
                importlib.import_module("pyvisa_py.usb")
            yield self
        finally:
            usb.backend.libusb1.get_backend = original

    # --- descriptors ------------------------------------------------------------------------------------------------
    def enumerate_devices(self) -> Iterator[Device]:
        """Return what is plugged in."""
        return iter(list(self._devices))

    def get_parent(self, dev: Device) -> None:
        """Return None: there are no hubs."""
        return

    def get_device_descriptor(self, dev: Device) -> SimpleNamespace:
        """Return who a device says it is."""
        return device_descriptor(dev.unit.descriptor, dev.address)

    def get_configuration_descriptor(self, dev: Device, config: int) -> SimpleNamespace:
        """Return its configuration by index."""
        return configuration_descriptor(dev.unit.descriptor, config)

    def get_interface_descriptor(self, dev: Device, intf: int, alt: int, config: int) -> SimpleNamespace:
        """Return its interface in one setting; IndexError after the last one."""
        return interface_descriptor(dev.unit.descriptor, intf, alt)

    def get_endpoint_descriptor(self, dev: Device, ep: int, intf: int, alt: int, config: int) -> SimpleNamespace:
        """Return a data pipe by index."""
        return endpoint_descriptor(dev.unit.descriptor.settings[alt][ep])

    # --- state ------------------------------------------------------------------------------------------------------
    def open_device(self, dev: Device) -> Handle:
        """Open a device."""
        dev.check()
        return Handle(dev)

    def close_device(self, dev_handle: Handle) -> None:
        """Close it; what it had claimed is free."""
        if dev_handle.device.holder is dev_handle:
            dev_handle.device.holder = None

    def set_configuration(self, dev_handle: Handle, config_value: int) -> None:
        """Choose the configuration, 0 for none."""
        device = _device(dev_handle)
        if config_value not in {0, CONFIGURATION}:
            raise usb_error(-5, errno.ENOENT, f"Entity not found: configuration {config_value}")
        device.configuration, device.alternate = config_value, 0
        device.halted.clear()

    def get_configuration(self, dev_handle: Handle) -> int:
        """Return the configuration that is on."""
        return _device(dev_handle).configuration

    def set_interface_altsetting(self, dev_handle: Handle, intf: int, altsetting: int) -> None:
        """Choose the alternate setting."""
        device = _device(dev_handle)
        if intf != 0 or altsetting >= len(device.unit.descriptor.settings):
            raise usb_error(-5, errno.ENOENT, f"Entity not found: interface {intf}, setting {altsetting}")
        device.alternate = altsetting
        device.halted.clear()

    def claim_interface(self, dev_handle: Handle, intf: int) -> None:
        """Take the interface for this handle alone."""
        device = _device(dev_handle)
        if device.holder not in {None, dev_handle}:
            raise usb_error(-6, errno.EBUSY, "Resource busy: another program has claimed the interface")
        device.holder = dev_handle

    def release_interface(self, dev_handle: Handle, intf: int) -> None:
        """Give the interface back."""
        if _device(dev_handle).holder is dev_handle:
            dev_handle.device.holder = None

    def clear_halt(self, dev_handle: Handle, ep: int) -> None:
        """Let a data pipe run again that has stalled."""
        _device(dev_handle).halted.discard(ep)

    def reset_device(self, dev_handle: Handle) -> None:
        """Reset the device; it keeps its address."""
        device = _device(dev_handle)
        with device.lock:
            device.reset()

    def is_kernel_driver_active(self, dev_handle: Handle, intf: int) -> bool:
        """Return False: there is no kernel."""
        return False

    def detach_kernel_driver(self, dev_handle: Handle, intf: int) -> None:
        """Refuse: there is no kernel."""
        raise usb_error(-5, errno.ENOENT, "Entity not found: no kernel driver is attached")

    attach_kernel_driver = detach_kernel_driver

    # --- transfers --------------------------------------------------------------------------------------------------
    def ctrl_transfer(
        self,
        dev_handle: Handle,
        request_type: int,
        request: int,
        value: int,
        index: int,
        data: array.array[int],
        timeout_ms: int,
    ) -> int:
        """Do a control transfer; return how many bytes went or came."""
        return dev_handle.device.control(request_type, request, value, index, data, timeout_ms)

    def bulk_write(self, dev_handle: Handle, ep: int, intf: int, data: array.array[int], timeout_ms: int) -> int:
        """Write to a data pipe; return how many bytes went."""
        return dev_handle.device.write(ep, data, timeout_ms)

    def bulk_read(self, dev_handle: Handle, ep: int, intf: int, buff: array.array[int], timeout_ms: int) -> int:
        """Read from a data pipe; return how many bytes came."""
        return dev_handle.device.read(ep, buff, timeout_ms)

    intr_read = bulk_read
    intr_write = bulk_write

    def iso_read(self, *_: object) -> int:
        """Refuse: no emulated unit has such a pipe."""
        raise usb_error(-12, errno.ENOSYS, "Operation not supported: isochronous transfer")

    iso_write = iso_read

    def _unplug(self, device: Device) -> None:
        self._devices.remove(device)
        with device.lock:
            device.plugged = False
            device.reset()

    def _replug(self, device: Device) -> None:
        self._unplug(device)
        self.plug(device.unit, device.lock)


def _device(handle: Handle) -> Device:
    handle.device.check()
    return handle.device

"""USB descriptors in the form in which pyusb reads them.

Source: Universal Serial Bus Specification, revision 2.0, 9.4 (requests) and 9.6 (descriptors).
"""

from __future__ import annotations

import struct
from types import SimpleNamespace

from qkdhw_emulators.servers.usb_unit import Endpoint, UsbDescriptor, UsbStallError

ENGLISH = 0x0409
MANUFACTURER, PRODUCT, SERIAL_NUMBER = 1, 2, 3
DEVICE, CONFIGURATION, STRING, INTERFACE, ENDPOINT = 1, 2, 3, 4, 5
GET_STATUS, GET_DESCRIPTOR, GET_CONFIGURATION, GET_INTERFACE = 0, 6, 8, 10
HIGH_SPEED = 3


def device_descriptor(unit: UsbDescriptor, address: int) -> SimpleNamespace:
    """Return the device descriptor, with its place on the bus."""
    return SimpleNamespace(
        bLength=18,
        bDescriptorType=DEVICE,
        bcdUSB=0x0200,
        bDeviceClass=unit.device_class[0],
        bDeviceSubClass=unit.device_class[1],
        bDeviceProtocol=unit.device_class[2],
        bMaxPacketSize0=64,
        idVendor=unit.vid,
        idProduct=unit.pid,
        bcdDevice=unit.bcd_device,
        iManufacturer=MANUFACTURER,
        iProduct=PRODUCT,
        iSerialNumber=SERIAL_NUMBER,
        bNumConfigurations=1,
        bus=1,
        address=address,
        port_number=address,
        port_numbers=(address,),
        speed=HIGH_SPEED,
    )


def configuration_descriptor(unit: UsbDescriptor, index: int) -> SimpleNamespace:
    """Return the descriptor of the only configuration."""
    if index != 0:
        raise IndexError(f"no configuration {index}")
    return SimpleNamespace(
        bLength=9,
        bDescriptorType=CONFIGURATION,
        wTotalLength=9 + sum(9 + 7 * len(endpoints) for endpoints in unit.settings),
        bNumInterfaces=1,
        bConfigurationValue=1,
        iConfiguration=0,
        bmAttributes=0xC0,
        bMaxPower=0,
        extra_descriptors=[],
    )


def interface_descriptor(unit: UsbDescriptor, index: int, alternate: int) -> SimpleNamespace:
    """Return the descriptor of the only interface in one of its settings; IndexError if there is none."""
    if index != 0:
        raise IndexError(f"no interface {index}")
    return SimpleNamespace(
        bLength=9,
        bDescriptorType=INTERFACE,
        bInterfaceNumber=0,
        bAlternateSetting=alternate,
        bNumEndpoints=len(unit.settings[alternate]),
        bInterfaceClass=unit.interface_class,
        bInterfaceSubClass=unit.interface_subclass,
        bInterfaceProtocol=unit.interface_protocol,
        iInterface=0,
        extra_descriptors=[],
    )


def endpoint_descriptor(endpoint: Endpoint) -> SimpleNamespace:
    """Return the descriptor of a data pipe."""
    address, attributes, max_packet = endpoint
    return SimpleNamespace(
        bLength=7,
        bDescriptorType=ENDPOINT,
        bEndpointAddress=address,
        bmAttributes=attributes,
        wMaxPacketSize=max_packet,
        bInterval=1,
        bRefresh=0,
        bSynchAddress=0,
        extra_descriptors=[],
    )


def standard_reply(unit: UsbDescriptor, request: int, value: int, configuration: int, alternate: int) -> bytes:
    """Return what a device answers to a standard request.

    Raises:
        UsbStallError: It does not know the request or has no such descriptor.
    """
    if request == GET_STATUS:
        return b"\1\0"
    if request == GET_CONFIGURATION:
        return bytes([configuration])
    if request == GET_INTERFACE:
        return bytes([alternate])
    if request != GET_DESCRIPTOR:
        raise UsbStallError
    kind, index = value >> 8, value & 0xFF
    if kind == DEVICE and index == 0:
        return _pack("<BBHBBBBHHHBBBB", device_descriptor(unit, 0))
    if kind == CONFIGURATION and index == 0:
        return _configuration(unit)
    texts = {MANUFACTURER: unit.manufacturer, PRODUCT: unit.product, SERIAL_NUMBER: unit.serial_number}
    if kind != STRING or (index and index not in texts):
        raise UsbStallError
    text = texts[index].encode("utf-16-le") if index else struct.pack("<H", ENGLISH)
    return bytes([len(text) + 2, STRING]) + text


def _configuration(unit: UsbDescriptor) -> bytes:
    """Return the configuration with everything below it, as it goes over the wire."""
    packed = _pack("<BBHBBBBB", configuration_descriptor(unit, 0))
    for alternate, endpoints in enumerate(unit.settings):
        packed += _pack("<BBBBBBBBB", interface_descriptor(unit, 0, alternate))
        packed += b"".join(_pack("<BBBBHB", endpoint_descriptor(each)) for each in endpoints)
    return packed


def _pack(form: str, descriptor: SimpleNamespace) -> bytes:
    """Pack the fields of a descriptor in their order, as many as the form has."""
    return struct.pack(form, *list(vars(descriptor).values())[: len(form) - 1])

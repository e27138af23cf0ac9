"""Find instruments: serial ports, USB devices and VISA resources by their IDs, services on the local network.

Nothing is opened and nothing is sent to a port: an unknown instrument might take a question for a command. The network
is asked only on demand, as that sends multicasts and VXI-11 broadcasts to everybody on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qkdhw.drivers import installed_drivers, load_driver
from qkdhw.errors import ConfigurationError

KINDS = ("hislip", "vxi-11", "scpi-raw", "lxi", "qkdhw")
USBTMC = (0xFE, 0x03)  # interface class and subclass


@dataclass(frozen=True, slots=True)
class Found:
    """Something that may be an instrument.

    Attributes:
        url: Address to open it by.
        way: How it was found: "serial", "usb", "visa" or "network".
        usb_id: USB vendor:product ID, or "".
        serial_number: As the bus tells it, or "".
        description: As the bus tells it, or "".
        drivers: Names of drivers that know this USB ID.
    """

    url: str
    way: str
    usb_id: str = ""
    serial_number: str = ""
    description: str = ""
    drivers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found.

    Attributes:
        found: In the order of the ways.
        not_looked: Ways that could not be tried, and the remedy.
    """

    found: tuple[Found, ...]
    not_looked: dict[str, str]


def discover(*, network_s: float = 0.0, interfaces: Sequence[str] = ()) -> Discovery:
    """Look for instruments.

    Args:
        network_s: How long to ask the local network; 0 not to.
        interfaces: Addresses of the network interfaces to ask by mDNS alone; all, and VISA's ways too, if left out.
    """
    ways: dict[str, tuple[str, Callable[[], list[Found]]]] = {"serial": ("serial", _serial), "usb": ("usb", _usb)}
    if network_s > 0:
        ways["network"] = ("discovery", lambda: _network(network_s, interfaces))
        if not interfaces:
            ways["visa"] = ("visa", _visa)
    found: list[Found] = []
    not_looked: dict[str, str] = {}
    for way, (extra, look) in ways.items():
        try:
            found += look()
        except ImportError:
            not_looked[way] = f"pip install 'qkdhw[{extra}]'"
        except ConfigurationError as error:
            not_looked[way] = str(error)
    return Discovery(tuple(found), not_looked)


def _known_usb_ids(scheme: str) -> dict[str, list[str]]:
    """Return the names of drivers by USB ID, of those whose units have addresses of this kind."""
    known: dict[str, list[str]] = {}
    for name in installed_drivers():
        try:
            driver = load_driver(name)
        except ConfigurationError:
            continue
        for usb_id in getattr(driver, "usb_ids", ()) if scheme in getattr(driver, "schemes", ()) else ():
            known.setdefault(usb_id.lower(), []).append(name)
    return known


def _serial() -> list[Found]:
    from serial.tools import list_ports

    known = _known_usb_ids("serial")
    found = []
    for port in sorted(list_ports.comports()):
        usb_id = f"{port.vid:04x}:{port.pid:04x}" if port.vid is not None else ""
        description = port.description if port.description != "n/a" else ""
        drivers = tuple(known.get(usb_id, ()))
        found.append(Found(f"serial://{port.device}", "serial", usb_id, port.serial_number or "", description, drivers))
    return found


def _usb() -> list[Found]:
    import usb.core
    import usb.util

    try:
        devices = list(usb.core.find(find_all=True))
    except usb.core.NoBackendError as error:
        raise ConfigurationError("libusb is not installed: apt-get install libusb-1.0-0") from error
    known_by_scheme = {scheme: _known_usb_ids(scheme) for scheme in ("visa", "usb")}
    found = []
    for device in devices:
        usb_id = f"{device.idVendor:04x}:{device.idProduct:04x}"
        is_visa = any((i.bInterfaceClass, i.bInterfaceSubClass) == USBTMC for c in device for i in c)
        known = known_by_scheme["visa" if is_visa else "usb"]
        if not is_visa and usb_id not in known:  # keyboards and disks, and serial adapters, which are ports
            continue
        serial_number = _usb_text(device, device.iSerialNumber)
        if is_visa:
            url = f"visa://USB0::0x{usb_id[:4]}::0x{usb_id[5:]}::{serial_number}::0::INSTR"
        else:
            url = f"usb://{usb_id}" + (f"/{serial_number}" if serial_number else "")
        drivers = tuple(known.get(usb_id, ()))
        found.append(Found(url, "usb", usb_id, serial_number, _usb_text(device, device.iProduct), drivers))
    return found


def _usb_text(device: Any, index: int) -> str:
    import usb.core
    import usb.util

    try:
        return str(usb.util.get_string(device, index) or "") if index else ""
    except (usb.core.USBError, ValueError):  # not allowed to ask
        return ""


def _visa() -> list[Found]:
    import pyvisa

    manager = pyvisa.ResourceManager("@py")
    try:
        names = [name for name in manager.list_resources("?*::INSTR") if not name.startswith(("ASRL", "USB"))]
    finally:
        manager.close()
    return [Found(f"visa://{name}", "visa") for name in sorted(names)]


def _network(listen_s: float, interfaces: Sequence[str]) -> list[Found]:
    from zeroconf import InterfaceChoice, ServiceBrowser, ServiceListener, Zeroconf

    class Listener(ServiceListener):
        def __init__(self) -> None:
            self.found: list[Found] = []

        def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            info = zc.get_service_info(type_, name, timeout=1000)
            if info is None or not info.parsed_addresses():
                return
            host, label = info.parsed_addresses()[0], name.removesuffix("." + type_)
            self.found.append(Found(_service_url(type_, host, info.port or 0), "network", description=label))

        def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            pass

        def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            pass

    listener = Listener()
    try:
        zeroconf = Zeroconf(interfaces=list(interfaces) or InterfaceChoice.All)
    except OSError as error:
        raise ConfigurationError(f"no network to listen on: {error.strerror}") from error
    try:
        browser = ServiceBrowser(zeroconf, [f"_{kind}._tcp.local." for kind in KINDS], listener)
        time.sleep(listen_s)
        browser.cancel()
    finally:
        zeroconf.close()
    return sorted(listener.found, key=lambda each: each.url)


def _service_url(service: str, host: str, port: int) -> str:
    if service.startswith("_hislip"):
        return f"visa://TCPIP::{host}::hislip0,{port}::INSTR"
    if service.startswith(("_vxi-11", "_lxi")):
        return f"visa://TCPIP::{host}::inst0::INSTR"
    return f"tcp://{host}:{port}"

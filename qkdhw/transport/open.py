"""From a URL to an open byte link."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from qkdhw.errors import ConfigurationError
from qkdhw.transport.byte_link import ByteLink, Wire
from qkdhw.transport.classical import is_host
from qkdhw.transport.recording import Playback, recording_dialler, recording_nonce
from qkdhw.transport.session_file import SessionWriter

_FORMS = (
    "use tcp://host:port, serial:///dev/ttyACM0?baud=115200, rfc2217://host:port?baud=9600, "
    "visa://TCPIP::host::hislip0::INSTR, usb://1313:804a/SERIAL, zmq://host:port or library://SERIAL"
)


def open_transport(url: str, *, timeout_s: float = 5.0, recorder: SessionWriter | None = None) -> ByteLink:
    """Open a byte link to a unit.

    Args:
        url: tcp://host:port; serial:///dev/NAME or rfc2217://host:port with an optional ?baud=N (default 115200, 8 data
            bits, no parity); visa://RESOURCE with an optional ?backend=NAME (default py);
            usb://VID:PID[/SERIAL][?in=0x86&out=0x02&interface=0]; zmq://host:port for questions and answers (REQ) or
            zmq+pair://host:port for a stream (PAIR), with an optional ?heartbeat=off for peers that know none;
            library://SERIAL or library:// (the first found) for units that only a vendor's library reaches.
        timeout_s: Longest wait for the connection.
        recorder: Writes down what crosses the link.

    Returns:
        The open link, a context manager.

    Raises:
        ConfigurationError: The URL is malformed or its scheme unknown, or what it needs is not installed.
        TransportError: There is no such host or port, or it refused.
    """
    parts = _split(url)
    if parts.scheme == "replay":
        playback = _playback(url, parts)
        return ByteLink(url, playback.dial, timeout_s=timeout_s, draw_nonce=playback.draw_nonce)
    dial = _dial_of(url, parts)
    if recorder is None:
        return ByteLink(url, dial, timeout_s=timeout_s)
    nonce = recording_nonce(lambda: secrets.randbelow(1 << 31), recorder)
    return ByteLink(url, recording_dialler(dial, recorder), timeout_s=timeout_s, draw_nonce=nonce)


def check_address(url: str) -> None:
    """Check an address as `open_transport` does; nothing is opened.

    Raises:
        ConfigurationError: As there.
    """
    parts = _split(url)
    if parts.scheme == "replay":
        _playback(url, parts)
    else:
        _dial_of(url, parts)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"address {url!r} is not a URL: {error}", remedy=_FORMS) from error


def _dial_of(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    if dialler := _DIALLERS.get(parts.scheme):
        return dialler(url, parts)
    contributed = {point.name: point for point in entry_points(group="qkdhw.transports")}
    if parts.scheme not in contributed:
        there_are = ", ".join((*_DIALLERS, "replay", *sorted(contributed)))
        raise ConfigurationError(f"address {url!r} begins with no known scheme; there are {there_are}", remedy=_FORMS)
    dial: Callable[[float], Wire] = contributed[parts.scheme].load()(url)
    return dial


def _playback(url: str, parts: SplitResult) -> Playback:
    query = parse_qs(parts.query)
    try:
        pace = float(query.pop("pace")[0]) if "pace" in query else None
    except ValueError as error:
        raise ConfigurationError(f"address {url!r}: pace is no number", remedy="replay:///FILE?pace=1") from error
    if query or not parts.path or parts.netloc or (pace is not None and not pace > 0):
        raise ConfigurationError(f"address {url!r} is not replay:///FILE?pace=1", remedy="name a session file")
    return Playback(Path(parts.path), pace=pace)


def _tcp_dialler(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    host, port = _host_and_port(url, parts)
    _options(url, parts)
    from qkdhw.transport.tcp_link import TcpWire

    return lambda timeout_s: TcpWire(host, port, timeout_s=timeout_s)


def _rfc2217_dialler(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    host, port = _host_and_port(url, parts)
    baud = _baud(url, _options(url, parts, baud="115200")["baud"])
    from qkdhw.transport.rfc2217_link import Rfc2217Wire

    return lambda timeout_s: Rfc2217Wire(host, port, baud=baud, timeout_s=timeout_s)


def _serial_dialler(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    if parts.netloc or len(parts.path) < 2:
        raise ConfigurationError(f"address {url!r} is not serial:///dev/NAME?baud=N", remedy=_FORMS)
    baud = _baud(url, _options(url, parts, baud="115200")["baud"])
    from qkdhw.transport.serial_link import SerialWire

    return lambda _timeout_s: SerialWire(parts.path, baud=baud)


def _visa_dialler(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    backend = _options(url, parts, backend="py")["backend"]
    resource = parts.netloc + parts.path
    host = resource.partition("::")[2].partition("::")[0].partition(",")[0]
    if resource.upper().startswith("TCPIP") and not is_host(host):
        raise ConfigurationError(f"address {url!r}: {host!r} cannot be a host name", remedy=_FORMS)
    from qkdhw.transport.visa_link import visa_dialler

    return visa_dialler(resource, "@" + backend.removeprefix("@"))


def _usb_dialler(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    form = f"address {url!r} is not usb://VID:PID[/SERIAL][?in=0x86&out=0x02&interface=0]"
    options = _options(url, parts, **{"in": "", "out": "", "interface": "0"})
    from qkdhw.transport.usb_link import UsbAddress, UsbWire

    try:
        vendor, product = (int(part, 16) for part in parts.netloc.split(":"))
        pipes = [int(options[way], 0) if options[way] else None for way in ("in", "out")]
        interface = int(options["interface"])
    except ValueError as error:
        raise ConfigurationError(form, remedy=_FORMS) from error
    address = UsbAddress(vendor, product, unquote(parts.path.strip("/")), interface, *pipes)
    return lambda _timeout_s: UsbWire(address)


def _zmq_dialler(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    host, port = _host_and_port(url, parts)
    heartbeat = _options(url, parts, heartbeat="on")["heartbeat"]
    if heartbeat not in {"on", "off"}:
        raise ConfigurationError(f"address {url!r}: heartbeat is neither on nor off", remedy=_FORMS)
    from qkdhw.transport.zmq_link import ZmqWire

    kind: Literal["req", "pair"] = "req" if parts.scheme == "zmq" else "pair"
    return lambda timeout_s: ZmqWire(host, port, kind=kind, heartbeat=heartbeat == "on", timeout_s=timeout_s)


def _library_dialler(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    _options(url, parts)
    if parts.path not in {"", "/"} or ":" in parts.netloc or "@" in parts.netloc:
        raise ConfigurationError(f"address {url!r} is not library://SERIAL", remedy=_FORMS)
    from qkdhw.transport.library_link import LibraryWire

    return lambda _timeout_s: LibraryWire()


def _host_and_port(url: str, parts: SplitResult) -> tuple[str, int]:
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"address {url!r}: {error}", remedy=_FORMS) from error
    if not host or not port or parts.path not in {"", "/"} or "@" in parts.netloc:
        raise ConfigurationError(f"address {url!r} is not {parts.scheme}://host:port", remedy=_FORMS)
    if not is_host(host):
        raise ConfigurationError(f"address {url!r}: {host!r} cannot be a host name", remedy=_FORMS)
    return host, port


def _options(url: str, parts: SplitResult, **defaults: str) -> dict[str, str]:
    """Return what stands after the question mark, each at most once."""
    query = parse_qs(parts.query, keep_blank_values=True)
    if parts.fragment or not query.keys() <= defaults.keys() or any(len(values) > 1 for values in query.values()):
        allowed = ", ".join(defaults) or "none"
        raise ConfigurationError(f"address {url!r} has an unknown option", remedy=f"{_FORMS}; options: {allowed}")
    return defaults | {name: values[0] for name, values in query.items()}


def _baud(url: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) == 0:
        raise ConfigurationError(f"address {url!r}: baud is not a number from 1 to 999999999", remedy=_FORMS)
    return int(text)


_DIALLERS = {
    "tcp": _tcp_dialler,
    "serial": _serial_dialler,
    "visa": _visa_dialler,
    "usb": _usb_dialler,
    "rfc2217": _rfc2217_dialler,
    "zmq": _zmq_dialler,
    "zmq+pair": _zmq_dialler,
    "library": _library_dialler,
}

"""From a URL to an open byte link."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from urllib.parse import SplitResult, parse_qs, urlsplit

from qkdhw.errors import ConfigurationError
from qkdhw.transport.byte_link import ByteLink, Wire

_FORMS = "use tcp://host:port or serial:///dev/ttyACM0?baud=115200"


def open_transport(url: str, *, timeout_s: float = 5.0) -> ByteLink:
    """Open a byte link to a unit.

    Args:
        url: tcp://host:port, or serial:///dev/NAME with an optional ?baud=N (default 115200, 8 data bits, no parity).
        timeout_s: Longest wait for the connection.

    Returns:
        The open link, a context manager.

    Raises:
        ConfigurationError: The URL is malformed or its scheme unknown, or pyserial is not installed.
        TransportError: There is no such host or port, or it refused.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"address {url!r} is not a URL: {error}", remedy=_FORMS) from error
    dialler = _DIALLERS.get(parts.scheme)
    if dialler is not None:
        return ByteLink(url, dialler(url, parts), timeout_s=timeout_s)
    contributed = {point.name: point for point in entry_points(group="qkdhw.transports")}
    if parts.scheme not in contributed:
        there_are = ", ".join((*_DIALLERS, *sorted(contributed)))
        raise ConfigurationError(f"address {url!r} begins with no known scheme; there are {there_are}", remedy=_FORMS)
    return ByteLink(url, contributed[parts.scheme].load()(url), timeout_s=timeout_s)


def _tcp_dialler(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"address {url!r}: {error}", remedy=_FORMS) from error
    host = parts.hostname
    if not host or not port or parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigurationError(f"address {url!r} is not tcp://host:port", remedy=_FORMS)
    from qkdhw.transport.tcp_link import TcpWire

    return lambda timeout_s: TcpWire(host, port, timeout_s=timeout_s)


def _serial_dialler(url: str, parts: SplitResult) -> Callable[[float], Wire]:
    query = parse_qs(parts.query, keep_blank_values=True)
    baud = query.pop("baud", ["115200"])
    if parts.netloc or len(parts.path) < 2 or parts.fragment or query:
        raise ConfigurationError(f"address {url!r} is not serial:///dev/NAME?baud=N", remedy=_FORMS)
    if len(baud) != 1 or not baud[0].isascii() or not baud[0].isdigit() or int(baud[0]) == 0:
        raise ConfigurationError(f"address {url!r}: baud is not a positive number", remedy=_FORMS)
    from qkdhw.transport.serial_link import SerialWire

    return lambda _timeout_s: SerialWire(parts.path, baud=int(baud[0]))


_DIALLERS = {"tcp": _tcp_dialler, "serial": _serial_dialler}

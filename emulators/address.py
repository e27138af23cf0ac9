"""What an address of a bench file asks for: which kind of server, which port, which path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum, unique
from pathlib import Path
from urllib.parse import urlsplit

from qkdhw.errors import ConfigurationError

LOCAL = {"", "127.0.0.1", "localhost"}
_VISA = (
    (re.compile(r"TCPIP\d*::(?P<host>[^:,]+)::hislip\d*(?:,(?P<port>\d+))?(?:::INSTR)?"), "hislip"),
    (re.compile(r"TCPIP\d*::(?P<host>[^:,]+)(?:,(?P<port>\d+))?::inst\d+(?:::INSTR)?"), "vxi11"),
    (re.compile(r"TCPIP\d*::(?P<host>[^:,]+)::(?P<port>\d+)::SOCKET"), "tcp"),
    (re.compile(r"USB\d*(?P<host>)(?P<port>)::.*"), "usbtmc"),
    (re.compile(r"ASRL(?P<path>/.+)::INSTR"), "pty"),
)


@unique
class ServedOn(StrEnum):
    """What an emulated unit can be put on."""

    EMU = "emu"
    PTY = "pty"
    TCP = "tcp"
    HISLIP = "hislip"
    VXI11 = "vxi11"
    RFC2217 = "rfc2217"
    USB = "usb"
    USBTMC = "usbtmc"
    ZMQ = "zmq"


def served_on(name: str) -> ServedOn:
    """Return what a unit is to be put on.

    Raises:
        ConfigurationError: Nothing is called so.
    """
    if name not in list(ServedOn):
        raise ConfigurationError(f"a unit cannot be put on {name!r}", remedy=f"Use one of: {', '.join(ServedOn)}.")
    return ServedOn(name)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an emulated unit is to be.

    Attributes:
        on: What to put it on.
        port: TCP port, 0 for a free one.
        path: Path of a terminal's symbolic link, or None.
    """

    on: ServedOn
    port: int = 0
    path: Path | None = None


def place_of(url: str) -> Place:
    """Say what an address asks for.

    Raises:
        ConfigurationError: It is not of this machine, or no emulator can be there.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 0 if parts.scheme in {"tcp", "zmq", "rfc2217"} else 0
    except ValueError as error:
        raise ConfigurationError(f"{url} cannot be served: {error}", remedy="Use a port from 0 to 65535.") from error
    if parts.scheme == "visa":
        return _visa_place(url)
    if parts.scheme == "serial":
        return Place(ServedOn.PTY, path=Path(parts.path))
    if parts.scheme in {"emu", "usb"}:
        return Place(ServedOn(parts.scheme))
    if parts.scheme not in {"tcp", "zmq", "rfc2217"}:
        raise ConfigurationError(
            f"{url} cannot be emulated", remedy="Use a tcp, serial, zmq, rfc2217, visa, usb or emu address."
        )
    _check_local(url, parts.hostname or "")
    return Place(ServedOn(parts.scheme), port=port)


def _visa_place(url: str) -> Place:
    resource = url.removeprefix("visa://").partition("?")[0]
    for pattern, on in _VISA:
        if match := pattern.fullmatch(resource):
            found = match.groupdict()
            _check_local(url, found.get("host") or "")
            path = Path(found["path"]) if found.get("path") else None
            port = found.get("port") or "0"
            if len(port) > 5 or int(port) > 65535:
                raise ConfigurationError(
                    f"{url} cannot be served: no port {port}", remedy="Use a port from 0 to 65535."
                )
            return Place(ServedOn(on), port=int(port), path=path)
    raise ConfigurationError(f"{url} cannot be emulated", remedy="Use a TCPIP, USB or ASRL resource.")


def _check_local(url: str, host: str) -> None:
    if host not in LOCAL:
        raise ConfigurationError(f"{url} is not on this machine", remedy="Write 127.0.0.1 to have the unit emulated.")

"""Which PKCS#11 modules are installed, which tokens they show, and where SoftHSM keeps its objects.

python-pkcs11 initialises a module for one thread (C_Initialize with NULL), so every call of this package into any
module is made under MODULE_LOCK.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkdhw.errors import ConfigurationError, HsmError
from qkdhw.export.return_codes import hsm_error

MODULE_LOCK = threading.RLock()

_MODULE_CONFIGS = ("/usr/share/p11-kit/modules", "/etc/pkcs11/modules")
_MODULE_DIRS = ("/usr/lib/x86_64-linux-gnu/pkcs11", "/usr/lib/aarch64-linux-gnu/pkcs11", "/usr/lib64/pkcs11")
_KNOWN_MODULES = (
    ("SoftHSM", "/usr/lib/softhsm/libsofthsm2.so"),
    ("SoftHSM", "/usr/lib/*/softhsm/libsofthsm2.so"),
    ("SoftHSM", "/usr/lib64/softhsm/libsofthsm2.so"),
    ("SoftHSM", "/usr/local/lib/softhsm/libsofthsm2.so"),
    ("SoftHSM", "/opt/homebrew/lib/softhsm/libsofthsm2.so"),
    ("openCryptoki", "/usr/lib/*/opencryptoki/libopencryptoki.so"),
    ("openCryptoki", "/usr/lib64/opencryptoki/libopencryptoki.so"),
    ("OpenSC", "/usr/lib/*/opensc-pkcs11.so"),
    ("TPM 2.0", "/usr/lib/*/libtpm2_pkcs11.so.1"),
    ("YubiHSM", "/usr/lib/*/pkcs11/yubihsm_pkcs11.so"),
    ("Entrust nShield", "/opt/nfast/toolkits/pkcs11/libcknfast.so"),
    ("Thales Luna", "/usr/safenet/lunaclient/lib/libCryptoki2_64.so"),
    ("AWS CloudHSM", "/opt/cloudhsm/lib/libcloudhsm_pkcs11.so"),
    ("Utimaco", "/usr/lib/libcs_pkcs11_R3.so"),
)
_open_counts: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A PKCS#11 module file.

    Attributes:
        path: Where it is; links are resolved.
        name: What it belongs to.
    """

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as its module describes it.

    Attributes:
        label: Token label.
        serial: Token serial number.
        manufacturer: Who made it.
        model: Model name.
        initialised: Whether it has been initialised.
        pin_locked: Whether the user PIN is locked.
        mechanisms: How many mechanisms it lists.
    """

    label: str
    serial: str
    manufacturer: str
    model: str
    initialised: bool
    pin_locked: bool
    mechanisms: int


def find_modules() -> list[ModuleInfo]:
    """Return the PKCS#11 modules that p11-kit knows or that lie where vendors put them; nothing is loaded."""
    found: dict[str, str] = {}
    for name, pattern in _KNOWN_MODULES:
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            found.setdefault(str(path.resolve()), name)
    for folder in _MODULE_CONFIGS:
        for config in sorted(Path(folder).glob("*.module")):
            match = re.search(r"^\s*module\s*:\s*(\S+)", config.read_text(errors="replace"), re.MULTILINE)
            for base in _MODULE_DIRS if match else ():
                path = Path(base, match[1]) if match else Path()
                if path.is_file() and "p11-kit" not in path.name:
                    found.setdefault(str(path.resolve()), config.stem)
    return [ModuleInfo(path, name) for path, name in found.items()]


@contextmanager
def loaded_module(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Load and initialise a module; the last user in this process finalises it.

    Finalising makes the next user see tokens that were added or moved meanwhile.

    Yields:
        The python-pkcs11 library object.

    Raises:
        ConfigurationError: python-pkcs11 is not installed.
        HsmError: The file is not there or is no PKCS#11 module.
    """
    try:
        import pkcs11
    except ImportError as error:
        message = "python-pkcs11 is not installed"
        raise ConfigurationError(message, remedy="pip install 'qkdhw[pkcs11]'") from error
    name = str(Path(path).resolve())
    if not Path(name).is_file():
        remedy = "`qkdhw hsm modules` lists the installed ones; on Debian `apt-get install softhsm2` brings SoftHSM."
        raise HsmError(f"PKCS#11 module {path} does not exist", remedy=remedy)
    with MODULE_LOCK:
        try:
            library = pkcs11.lib(name)
        except (pkcs11.PKCS11Error, OSError) as error:
            raise hsm_error(error, what=f"load PKCS#11 module {path}") from error
        _open_counts[name] = _open_counts.get(name, 0) + 1
    try:
        yield library
    finally:
        with MODULE_LOCK:
            _open_counts[name] -= 1
            if not _open_counts[name]:
                library.finalize()


def list_tokens(path: str | os.PathLike[str]) -> list[TokenInfo]:
    """Return every token that a module shows, initialised or not.

    Raises:
        HsmError: The module is missing or does not answer.
    """
    with loaded_module(path) as library, MODULE_LOCK:
        import pkcs11

        try:
            return [_describe(token, pkcs11.TokenFlag) for token in library.get_tokens()]
        except pkcs11.PKCS11Error as error:
            raise hsm_error(error, what=f"list the tokens of {path}") from error


def _describe(token: Any, flag: Any) -> TokenInfo:
    return TokenInfo(
        label=token.label,
        serial=token.serial.decode("ascii", "replace"),
        manufacturer=token.manufacturer_id,
        model=token.model,
        initialised=bool(token.flags & flag.TOKEN_INITIALIZED),
        pin_locked=bool(token.flags & flag.USER_PIN_LOCKED),
        mechanisms=len(token.slot.get_mechanisms()),
    )


def softhsm_free_bytes() -> int | None:
    """Return the free bytes where SoftHSM keeps its objects, or None if its configuration is not found.

    SoftHSM's file store answers CKR_OK on a full disk, so the disk has to be looked at from outside.

    Source: softhsm2.conf(5): SOFTHSM2_CONF, ~/.config/softhsm2/softhsm2.conf, then the system's file.
    """
    candidates = [Path.home() / ".config/softhsm2/softhsm2.conf", Path("/etc/softhsm/softhsm2.conf")]
    if os.environ.get("SOFTHSM2_CONF"):
        candidates = [Path(os.environ["SOFTHSM2_CONF"])]
    for config in candidates:
        if config.is_file():
            match = re.search(r"^\s*directories\.tokendir\s*=\s*(.+?)\s*$", config.read_text(), re.MULTILINE)
            if match and Path(match[1]).is_dir():
                return shutil.disk_usage(match[1]).free
    return None

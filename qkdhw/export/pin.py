"""The user PIN of a token, from a file that only its owner may read; never from a command line."""

from __future__ import annotations

import stat
from pathlib import Path

from qkdhw.errors import ConfigurationError


def read_pin_file(path: Path) -> str:
    """Read a PIN: one line, mode 0600.

    Raises:
        ConfigurationError: The file cannot be read, or others may read it too.
    """
    try:
        others_may_read = path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        pin = path.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "write the token's user PIN into it, as UTF-8, mode 0600"
        raise ConfigurationError(f"cannot read PIN file {path}: {error}", remedy=remedy) from None
    if others_may_read:
        raise ConfigurationError(f"others may read PIN file {path}", remedy=f"chmod 600 {path}")
    return pin

"""A PIN file is for its owner alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkdhw.errors import ConfigurationError
from qkdhw.export.pin import read_pin_file


def pin_file(folder: Path, content: bytes, mode: int) -> Path:
    path = folder / "pin"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_pin_is_read_without_its_line_end(tmp_path: Path) -> None:
    assert read_pin_file(pin_file(tmp_path, b" 12 34\r\n", 0o600)) == " 12 34"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="others may read") as raised:
        read_pin_file(pin_file(tmp_path, b"1234\n", mode))
    assert "chmod 600" in raised.value.remedy


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read PIN file"):
        read_pin_file(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="cannot read PIN file"):
        read_pin_file(pin_file(tmp_path, b"\xff\xfe", 0o600))

"""Files that appear whole or not at all: what others left, or have there, is neither in the way nor harmed."""

import os
import stat

import pytest

from qkdhw.errors import EventError
from qkdhw.formats.atomic import temporary_beside, write_whole_file


def test_two_processes_of_one_number_can_write_one_file(tmp_path):
    # Workers in containers, and on machines that share a folder, have equal process numbers.
    target = tmp_path / "bits"
    with temporary_beside(target) as killed, write_whole_file(target) as file:
        file.write(b"whole")
        assert killed.exists()
    with write_whole_file(target) as file:
        file.write(b"again")
    assert target.read_bytes() == b"again"
    assert os.listdir(tmp_path) == ["bits"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(EventError, match="no regular file"), write_whole_file(pipe) as file:
        file.write(b"events")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_files_are_for_their_owner_only_unless_they_are_made_for_others(tmp_path):
    before = os.umask(0o022)
    try:
        for name, private in (("bits", True), ("plot", False), ("bits", True)):
            with write_whole_file(tmp_path / name, private=private) as file:
                file.write(b"whole")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("bits", "plot")]
    assert modes == [0o600, 0o644]

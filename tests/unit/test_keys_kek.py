"""KEK files: made once, for the owner's eyes only."""

import os
import stat

import pytest

from qkdhw.errors import KeyStoreError
from qkdhw.keys.kek import create_kek_file, read_kek_file


def test_round_trip(tmp_path):
    path = tmp_path / "kek"
    create_kek_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with read_kek_file(path) as kek, read_kek_file(path) as again:
        assert len(kek) == 32
        assert kek == again
        assert kek == path.read_bytes()


def test_never_overwritten(tmp_path):
    path = tmp_path / "kek"
    create_kek_file(path)
    before = path.read_bytes()
    with pytest.raises(KeyStoreError, match="exists already"):
        create_kek_file(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o666])
def test_refused_if_others_can_get_at_it(tmp_path, mode):
    path = tmp_path / "kek"
    create_kek_file(path)
    path.chmod(mode)
    with pytest.raises(KeyStoreError, match=f"mode {mode:04o}"):
        read_kek_file(path)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_wrong_size_is_refused(tmp_path, size):
    path = tmp_path / "kek"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(KeyStoreError, match=f"{size} bytes, not 32"):
        read_kek_file(path)


def test_link_pipe_and_nothing_are_refused(tmp_path):
    create_kek_file(tmp_path / "kek")
    (tmp_path / "link").symlink_to(tmp_path / "kek")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe", "missing"):
        with pytest.raises(KeyStoreError) as caught:
            read_kek_file(tmp_path / name)
        assert caught.value.remedy


def test_no_directory(tmp_path):
    with pytest.raises(KeyStoreError, match="cannot create"):
        create_kek_file(tmp_path / "none" / "kek")

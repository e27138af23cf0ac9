"""A site file is checked field by field, and a mistake is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qkdhw.errors import ConfigurationError
from qkdhw.link import load_site

ROOT = Path(__file__).resolve().parents[2]


def documented() -> str:
    text = (ROOT / "docs" / "reference" / "site-file.md").read_text()
    found = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found.group(1)


def write(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text)
    return path


def test_the_documented_file_is_valid_and_paths_start_at_its_folder(tmp_path: Path) -> None:
    config = load_site(
        write(tmp_path, documented().replace("keys_per_block_to_token = 0", "keys_per_block_to_token = 2"))
    )
    assert config.role == "receiver"
    assert config.keys.store == tmp_path / "keys.sqlite"
    assert config.receiver is not None
    assert config.receiver.monitors is not None
    assert config.receiver.monitors.calibration == tmp_path / "monitors.json"
    assert config.receiver.monitors.alarms == tmp_path / "monitor-alarms.json"
    assert config.token is not None
    assert config.token.module == Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('role = "receiver"', 'role = "eve"', "role"),
        ("qber_limit = 0.11", "qber_limit = 0.7", "protocol.qber_limit"),
        ("block_pulses = 40000000", "block_pulses = 40000001", "protocol.block_pulses"),
        ("blocks = 0", "blocks = 0\nbloks = 1", "protocol.bloks"),
        ('connect = "198', 'listen = "127.0.0.1:0"\nconnect = "198', "channel"),
        ('link = "north"', 'link = "no rth"', "protocol.link"),
        ("{channel = 1,", "{channel = 0,", "receiver.wiring.0.channel"),
        ("{channel = 1,", "{channel = 2,", "one channel for each basis and bit value"),
        ("bit = 0},", "bit = 1},", "one channel for each basis and bit value"),
        (', {channel = 2, basis = "key", bit = 1}', "", "receiver.wiring"),
        ("window_ps = 10000 ", "window_ps = 49500 ", "receiver.window_ps"),
        ('kek_file = "kek"', "", "keys.kek_file"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = documented()
    assert old in text
    with pytest.raises(ConfigurationError, match=re.escape(named)) as raised:
        load_site(write(tmp_path, text.replace(old, new, 1)))
    assert raised.value.remedy


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_site(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="not TOML"):
        load_site(write(tmp_path, "role ="))
    for text in ("a = " + 100_000 * "[", "a = " + 5000 * "9", 'a = "\\uD800"'):
        with pytest.raises(ConfigurationError, match="not TOML"):
            load_site(write(tmp_path, text))
    with pytest.raises(ConfigurationError, match="larger than"):
        load_site(Path("/dev/zero"))


def test_both_sites_must_mean_the_same(tmp_path: Path) -> None:
    text = documented().replace("keys_per_block_to_token = 0", "keys_per_block_to_token = 2")
    one = load_site(write(tmp_path, text)).protocol
    two = load_site(write(tmp_path, text.replace("eps_sec = 1e-9", "eps_sec = 1e-8"))).protocol
    assert one.digest() != two.digest()

"""`qkdhw devices` against emulated units."""

import json
from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner

from qkdhw.cli.devices import app
from qkdhw.errors import ConfigurationError, TransportError, WireFormatError
from qkdhw_emulators.serve import serve_link

pytestmark = pytest.mark.skipif(
    not entry_points(group="qkdhw.drivers"), reason="the package is on the path but not installed"
)


def run(*arguments):
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_list_names_drivers_with_vendor_and_kind():
    found = json.loads(run("list", "--json").stdout)
    assert {"name": "sfifteen-tdc1", "vendor": "S-Fifteen Instruments", "kind": "time tagger"} in found["drivers"]
    assert "generic-tx" in {driver["name"] for driver in found["drivers"]}
    assert isinstance(found["found"], list)
    assert not any(driver["kind"].startswith("broken") for driver in found["drivers"])
    assert run("list").exit_code == 0


def test_info_and_status():
    with serve_link(seed=1) as served:
        info = json.loads(run("info", "generic-tx", served.transmitter_url, "--json").stdout)
        assert info["identity"]["protocol"] == "GTX/1"
        assert "TransmitterUnit" in info["capabilities"]
        status = json.loads(run("status", "sfifteen-tdc1", served.receiver_url, "--json").stdout)
        assert (status["state"], status["alarms"]) == ("idle", [])
        assert run("info", "sfifteen-tdc1", served.receiver_url).exit_code == 0
        assert run("status", "generic-tx", served.transmitter_url).exit_code == 0


def test_typed_errors():
    with pytest.raises(ConfigurationError):
        run("info", "acme-rx9", "tcp://127.0.0.1:1")
    with pytest.raises(TransportError):
        run("status", "sfifteen-tdc1", "serial:///dev/none")


ATTENUATOR = ("agilent-8156a", "emu://agilent-8156a")


def test_set_reads_back_what_the_unit_has_and_json_is_a_snapshot(tmp_path):
    values = json.loads(run("set", *ATTENUATOR, "attenuation_db=3.1416", "shutter_open=on", "--json").stdout)
    assert values == {"attenuation_db": 3.142, "shutter_open": True}
    snapshot = json.loads(run("get", *ATTENUATOR, "--json").stdout)
    assert snapshot["settings"]["attenuation_db"] == 0.0
    snapshot["settings"]["attenuation_db"] = 7.5
    file = tmp_path / "snapshot.json"
    file.write_text(json.dumps(snapshot))
    restored = json.loads(run("set", *ATTENUATOR, "--from", str(file), "--json").stdout)
    assert restored["attenuation_db"] == 7.5
    assert "shutter_open" not in restored  # light does not come back by itself


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("attenuation_db=161", "not allowed"),
        ("attenuation_db=much", "wrong form"),
        ("attenuation=3", "no setting"),
        ("attenuation_db", "no change"),
        ("attenuation_db.2=3", "wrong form"),
    ],
)
def test_a_wrong_change_names_its_field(change, text):
    with pytest.raises(ConfigurationError, match=text) as raised:
        run("set", *ATTENUATOR, change)
    assert raised.value.remedy


def test_get_one_setting_and_watch_lines_of_json():
    assert json.loads(run("get", *ATTENUATOR, "wavelength_nm", "--json").stdout) == {"wavelength_nm": 1310.0}
    lines = run("watch", *ATTENUATOR, "offset_db", "--count", "3", "--interval", "0.05", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"offset_db": 0.0}] * 3


def test_info_of_a_driver_alone_tells_its_settings():
    described = json.loads(run("info", "agilent-8156a", "--json").stdout)
    assert "identity" not in described
    (attenuation,) = [each for each in described["settings"] if each["name"] == "attenuation_db"]
    assert (attenuation["unit"], attenuation["maximum"], attenuation["step"]) == ("dB", 159.999, 0.001)


def test_a_recorded_session_becomes_a_test_that_notices_other_bytes(tmp_path):
    file, test = tmp_path / "attenuator.session", tmp_path / "test_attenuator.py"
    run("record", *ATTENUATOR, str(file), "attenuation_db=4.5")
    assert file.stat().st_mode & 0o077 == 0
    assert run("replay", str(file), "--to-test", str(test)).exit_code == 0
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", str(test)]) == 0
    file.write_text(file.read_text().replace(":INP:ATT 4.500", ":INP:ATT 4.600"))
    with pytest.raises(WireFormatError, match=r"4\.500.*4\.600"):
        run("replay", str(file))
    with pytest.raises(ConfigurationError, match="there already"):
        run("replay", str(file), "--to-test", str(test))


def test_a_snapshot_is_restored_in_the_order_of_dependence_whatever_its_own(tmp_path):
    snapshot = {"settings": {"attenuation_db": 70.0, "offset_db": 12.0}}  # 70 dB are shown only with the offset
    file = tmp_path / "snapshot.json"
    file.write_text(json.dumps(snapshot))
    restored = json.loads(run("set", *ATTENUATOR, "--from", str(file), "--json").stdout)
    assert restored == {"offset_db": 12.0, "attenuation_db": 70.0}

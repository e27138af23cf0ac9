"""`qkdhw devices` against emulated units."""

import json
from fractions import Fraction
from importlib.metadata import entry_points

import numpy as np
import pytest
from typer.testing import CliRunner

from qkdhw import open_unit
from qkdhw.cli import console
from qkdhw.cli.devices import app
from qkdhw.errors import ConfigurationError, NotSupportedError, TransportError, UnitError, WireFormatError
from qkdhw.model import DetectionBlock
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
        (f"attenuation_db.{'9' * 5000}=3", "no channel number"),
    ],
)
def test_a_wrong_change_names_its_field(change, text):
    with pytest.raises(ConfigurationError, match=text) as raised:
        run("set", *ATTENUATOR, change)
    assert raised.value.remedy


@pytest.mark.parametrize(
    "changes", [("delay_s=0", "delay_s.2=1"), ("delay_s.2=1", "delay_s=2"), ("delay_s.2=1", "delay_s.2=2")]
)
def test_a_setting_is_not_changed_twice_in_one_command(changes):
    with pytest.raises(ConfigurationError, match="changed already"):
        run("set", "srs-dg645", "emu://srs-dg645", *changes)


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, '{"settings": [1]}'])
def test_what_is_no_snapshot_is_refused(tmp_path, text):
    (tmp_path / "no.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"no snapshot|is not JSON"):
        run("set", *ATTENUATOR, "--from", str(tmp_path / "no.json"))


@pytest.mark.parametrize(
    ("unit", "options", "error"),
    [
        (("srs-dg645", "emu://srs-dg645"), ("--events", "10"), ConfigurationError),
        (("srs-dg645", "tcp://127.0.0.1:1"), (), TransportError),
        (("srs-dg645", "emu://srs-dg645?fault=wrong-identity"), (), UnitError),
    ],
)
def test_a_recording_that_never_began_leaves_no_file(tmp_path, unit, options, error):
    with pytest.raises(error):
        run("record", *unit, str(tmp_path / "s"), *options)
    assert not (tmp_path / "s").exists()


def test_a_deeply_nested_bench_file_is_refused(tmp_path):
    (tmp_path / "deep.toml").write_text("a=" + "[" * 50_000)
    with pytest.raises(ConfigurationError, match=r"deep\.toml is not TOML"):
        run("list", "--bench", str(tmp_path / "deep.toml"))


@pytest.mark.parametrize("option", ["--timeout", "--interval"])
@pytest.mark.parametrize("seconds", ["inf", "1e300", "nan"])
def test_a_wait_that_no_clock_can_take_is_refused(option, seconds):
    done = run("watch", *ATTENUATOR, "--count", "1", option, seconds)
    assert done.exit_code == 2
    assert option in done.output


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


def text_of(*arguments, columns=80):
    before, console.out._width = console.out._width, columns  # whatever terminal the whole run began in
    try:
        return CliRunner().invoke(app, arguments, catch_exceptions=False)
    finally:
        console.out._width = before


def one_unit(tmp_path, name, url, more=""):
    file = tmp_path / "bench.toml"
    file.write_text(f'[units.it]\nname = "{name}"\nurl = "{url}"\n{more}')
    return str(file)


def test_counts_of_a_counter_a_detector_and_a_tagger():
    counted = json.loads(run("counts", "sfifteen-tdc1", "emu://sfifteen-tdc1?pace=none", "--json").stdout)
    assert list(counted["counts"]) == ["1", "2", "3", "4"]
    assert all(value > 0 for value in counted["counts"].values())  # dark counts
    detector = json.loads(run("counts", "single-quantum-websq", "emu://single-quantum-websq", "--json").stdout)
    assert list(detector["rates_hz"]) == ["1", "2", "3", "4"]
    arguments = ("generic-rx", "emu://generic-rx", "--watch", "--count", "2", "--interval", "0.2", "--json")
    for line in run("counts", *arguments).stdout.splitlines():
        tagger = json.loads(line)
        assert tagger["span_s"] > 0
        assert all(10 < rate_hz < 1000 for rate_hz in tagger["rates_hz"].values())  # 100 dark counts a second each
    assert "input" in text_of("counts", "sfifteen-tdc1", "emu://sfifteen-tdc1?pace=none").stdout
    with pytest.raises(NotSupportedError, match="counts nothing"):
        run("counts", *ATTENUATOR)


def test_commands_take_a_unit_of_a_bench_by_its_name(tmp_path):
    bench = ("--bench", one_unit(tmp_path, *ATTENUATOR))
    assert json.loads(run("get", *bench, "it", "offset_db", "--json").stdout) == {"offset_db": 0.0}
    assert json.loads(run("get", *bench, "it", "--json").stdout)["settings"]["offset_db"] == 0.0
    assert json.loads(run("set", *bench, "it", "attenuation_db=3", "--json").stdout) == {"attenuation_db": 3.0}
    assert json.loads(run("status", *bench, "it", "--json").stdout)["state"] == "idle"
    assert json.loads(run("info", *bench, "it", "--json").stdout)["identity"]["model"] == "HP8156A"
    assert json.loads(run("watch", *bench, "it", "offset_db", "--count", "1", "--json").stdout) == {"offset_db": 0.0}
    session = tmp_path / "it.session"
    assert json.loads(run("record", *bench, "it", str(session), "offset_db=1", "--json").stdout)["url"] == ATTENUATOR[1]
    assert json.loads(run("replay", str(session), "--json").stdout)["calls"] > 2
    with pytest.raises(ConfigurationError, match="no unit 'that'") as raised:
        run("status", *bench, "that")
    assert raised.value.remedy == "units: it"
    missing = run("status", "agilent-8156a")
    assert (missing.exit_code, "URL" in missing.output) == (2, True)


def test_a_unit_of_a_bench_must_be_the_one_that_the_file_names(tmp_path):
    bench = one_unit(tmp_path, *ATTENUATOR, 'firmware = "0.1"')
    with pytest.raises(UnitError, match=r"units\.it\.firmware"):
        run("status", "--bench", bench, "it")


def test_a_bench_file_is_checked_without_its_units(tmp_path):
    good = run("check", one_unit(tmp_path, "sfifteen-tdc1", "serial:///dev/none"), "--json")
    assert (good.exit_code, json.loads(good.stdout)) == (0, {"ok": True, "mistakes": []})
    file = one_unit(tmp_path, "sfifteen-tdc1", "serial:///dev/none", "settings = { threshold_v = 90, gain = 2 }")
    bad = run("check", file, "--json")
    assert bad.exit_code == 1
    assert [m["error"].partition(":")[0] for m in json.loads(bad.stdout)["mistakes"]] == [
        "units.it.settings.threshold_v", "units.it.settings.gain",
    ]  # fmt: skip
    assert run("check", file).exit_code == 1


@pytest.mark.parametrize("name", ["agilent-8156a", "idq-id900", "single-quantum-websq", "thorlabs-itc4000"])
def test_the_settings_of_a_driver_are_told_whole_in_80_columns(name):
    shown = text_of("info", name).stdout
    described = json.loads(run("info", name, "--json").stdout)["settings"]
    for setting in described:
        assert f" {setting['name']} " in shown
    wide = text_of("info", name, columns=400).stdout
    assert wide.count("Not restored.") == sum(not each["restore"] and each["access"] != "r" for each in described)
    assert wide.count(", step ") == sum(bool(each["step"]) and each["access"] != "r" for each in described)
    assert ("channels" in shown) == any(s["channels"] for s in described)


def test_sentences_are_not_broken_in_a_pipe(tmp_path):
    file = tmp_path / f"{'long' * 20}.session"
    assert f"`qkdhw devices replay {file}`" in text_of("record", *ATTENUATOR, str(file)).stdout


def test_what_a_person_sees_of_values_and_events():
    block = DetectionBlock(
        np.array([7, 99_999]), np.array([1, 2], np.uint8), np.zeros(2, np.uint8), Fraction(125, 32), missed=1000
    )
    assert repr(block) == "<DetectionBlock of 2 events, 1,000 missed, tick 125/32 ps>"  # raw key: no event
    with open_unit("single-quantum-websq", "emu://single-quantum-websq") as unit:
        assert repr(unit.bias_current_ua) == "<bias_current_ua of channels 1, 2, 3, 4; dict(...) reads them>"

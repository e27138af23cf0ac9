"""`qkdhw hsm` and `qkdhw doctor` on a private SoftHSM."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from qkdhw.cli import doctor, hsm
from qkdhw.errors import ConfigurationError, HsmError
from qkdhw.secret import SecretBuffer

KEY_ID = "bc490419-7d60-487f-adc1-4ddcc177c139"
PIN = "1234-test"


def run(app, *arguments, **environment):
    result = CliRunner().invoke(app, arguments, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def token(softhsm):
    softhsm.make_token("site-a")
    with softhsm.open("site-a") as opened:
        opened.import_key(KEY_ID, "lab", SecretBuffer.random(32))
    return softhsm


def test_modules(softhsm):
    assert softhsm.module in [m["path"] for m in json.loads(run(hsm.app, "modules", "--json").stdout)]
    assert "SoftHSM" in run(hsm.app, "modules").stdout


def test_tokens(token):
    answer = json.loads(run(hsm.app, "tokens", "--json", "--module", token.module).stdout)
    assert [t["label"] for t in answer if t["initialised"]] == ["site-a"]
    assert "site-a" in run(hsm.app, "tokens", "--module", token.module).stdout


def test_keys_with_pin_from_environment_or_file(token, tmp_path):
    pin_file = tmp_path / "pin"
    pin_file.write_text(PIN + "\n")
    pin_file.chmod(0o600)
    base = ("keys", "--module", token.module, "--token", "site-a")
    for options in (("--pin-env", "QKDHW_TEST_PIN"), ("--pin-file", str(pin_file))):
        (key,) = json.loads(run(hsm.app, *base, *options, "--json", QKDHW_TEST_PIN=PIN).stdout)
        assert key["key_id"] == KEY_ID
    pin_file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="others may read") as caught:
        run(hsm.app, *base, "--pin-file", str(pin_file))
    assert "chmod 600" in caught.value.remedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no PIN"),
        (("--pin-env", "QKDHW_NO_SUCH"), "not set"),
        (("--pin-file", "/nowhere/pin"), "cannot read PIN file"),
        (("--pin-env", "A", "--pin-file", "b"), "both"),
    ],
)
def test_missing_pin(token, options, message):
    with pytest.raises(ConfigurationError, match=message):
        run(hsm.app, "keys", "--module", token.module, "--token", "site-a", *options)


def test_wrong_pin_and_missing_module(token):
    with pytest.raises(HsmError, match="CKR_PIN_INCORRECT"):
        run(hsm.app, "keys", "--module", token.module, "--token", "site-a", "--pin-env", "P", P="wrong")
    with pytest.raises(HsmError, match="does not exist"):
        run(hsm.app, "tokens", "--module", "/nowhere/libx.so")


def test_doctor(token):
    result = run(doctor.app, "--json")
    answer = json.loads(result.stdout)
    bad = [check for check in answer["checks"] if check["needed"] and not check["ok"]]
    assert answer["main_job_can_run"] == (not bad) == (result.exit_code == 0)
    by_name = {check["name"]: check for check in answer["checks"]}
    assert "site-a" in by_name[token.module]["found"]
    assert by_name["TLS 1.3 with a PSK"]["ok"]
    assert "driver sfifteen-tdc1" in by_name
    assert all(check["ok"] or check["remedy"] for check in answer["checks"])
    assert "compiled kernels" in run(doctor.app).stdout


def test_doctor_says_what_is_missing(softhsm, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    result = run(doctor.app, "--json")
    assert result.exit_code == 1
    (check,) = [c for c in json.loads(result.stdout)["checks"] if c["name"].startswith("softhsm2-util")]
    assert not check["ok"]
    assert "apt-get install softhsm2" in check["remedy"]
    assert "cannot run" in run(doctor.app).stdout

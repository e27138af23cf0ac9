"""`qkdhw devices` against emulated units."""

import json
from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner

from qkdhw.cli.devices import app
from qkdhw.errors import ConfigurationError, TransportError
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
    assert isinstance(found["serial_ports"], list)
    assert run("list").exit_code == 0


def test_info_and_status():
    with serve_link(seed=1) as served:
        info = json.loads(run("info", "generic-tx", served.transmitter_url, "--json").stdout)
        assert info["protocol"] == "GTX/1"
        status = json.loads(run("status", "sfifteen-tdc1", served.receiver_url, "--json").stdout)
        assert (status["state"], status["alarms"]) == ("idle", [])
        assert run("info", "sfifteen-tdc1", served.receiver_url).exit_code == 0
        assert run("status", "generic-tx", served.transmitter_url).exit_code == 0


def test_typed_errors():
    with pytest.raises(ConfigurationError):
        run("info", "acme-rx9", "tcp://127.0.0.1:1")
    with pytest.raises(TransportError):
        run("status", "sfifteen-tdc1", "serial:///dev/none")

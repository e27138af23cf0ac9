"""The fixtures for other people's tests, and a project of somebody else that uses them."""

import os
import shutil
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from qkdhw import open_unit
from qkdhw.bench import open_bench
from qkdhw.errors import ConfigurationError, TransportError
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.optics.parameters import LinkParameters

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

pytestmark = pytest.mark.skipif(
    not entry_points(group="pytest11", name="qkdhw"), reason="the package is on the path but not installed"
)


@pytest.mark.parametrize("on", ["emu", "pty", "tcp"])
def test_units_are_served_by_name(emulated_unit, on):
    first, second = emulated_unit("sfifteen-tdc1", on=on, seed=7), emulated_unit("agilent-8156a", on=on)
    with open_unit("sfifteen-tdc1", first.url) as tagger, open_unit("agilent-8156a", second.url) as attenuator:
        assert tagger.identify().model == "TDC1"
        assert attenuator.set_attenuation_db(3.0) == 3.0
    assert first.world.seed == 7
    assert first.world.clock.pace is None


def test_a_unit_begins_with_faults_and_pace(emulated_unit):
    served = emulated_unit("sfifteen-tdc1", on="tcp", faults=["silent"], pace=2.0)
    assert served.world.clock.pace == 2.0
    with pytest.raises(TransportError):
        open_unit("sfifteen-tdc1", served.url, timeout_s=0.3)
    served.faults.clear()
    open_unit("sfifteen-tdc1", served.url, timeout_s=2.0).close()


def test_faults_strike_inside_the_body_only(emulated_unit, faulty):
    served = emulated_unit("agilent-8156a", on="tcp")
    with open_unit("agilent-8156a", served.url, timeout_s=0.3) as unit:
        with faulty(served, "drop:count=2", "delay"):
            assert set(served.faults) == {Fault.DROP, Fault.DELAY}
            with pytest.raises(TransportError):
                unit.read_attenuation_db()
        assert not served.faults
        assert unit.read_attenuation_db() == 0.0


def test_what_struck_is_switched_off_also_after_an_error(emulated_unit, faulty):
    served = emulated_unit("agilent-8156a", on="emu")
    with pytest.raises(ConfigurationError, match="no fault"), faulty(served, "silent", "no-such-fault"):
        pass
    assert not served.faults


def test_it_is_said_how_often_a_fault_struck(emulated_unit, faulty):
    served = emulated_unit("agilent-8156a", on="tcp")
    with open_unit("agilent-8156a", served.url, timeout_s=0.3) as unit:
        with faulty(served, "drop:count=1") as struck:
            assert (struck["drop"], dict(struck)) == (0, {})
            assert unit.read_attenuation_db() == 0.0
            assert (struck["drop"], dict(struck)) == (1, {"drop": 1})
        with faulty(served, "delay", "drop:count=3", used_up=False) as struck:
            assert struck["drop"] == 0
            with pytest.raises(KeyError):
                struck["dorp"]


def test_a_fault_that_did_not_strike_as_often_as_it_should_fails_the_test(emulated_unit, faulty):
    served = emulated_unit("agilent-8156a", on="emu")
    said = "drop:count=3:rate=1 struck 0 times"
    with pytest.raises(pytest.fail.Exception, match=said), faulty(served, "drop:count=3:rate=1"):
        pass
    assert not served.faults
    with pytest.raises(KeyError), faulty(served, "drop:count=3"):
        raise KeyError


@pytest.mark.parametrize("fault", ["overflow", "laser-temperature:count=1"])
def test_a_fault_that_the_unit_cannot_have_is_refused(emulated_unit, faulty, fault):
    served = emulated_unit("agilent-8156a", on="emu")
    with pytest.raises(ConfigurationError, match="cannot have") as caught, faulty(served, fault):
        pass
    assert all(name in caught.value.remedy for name in ("drop", "power-cycle", "stuck-value"))
    assert "overflow" not in caught.value.remedy
    with pytest.raises(ConfigurationError, match="cannot have"):
        emulated_unit("agilent-8156a", on="emu", faults=[fault])


def test_a_condition_that_the_unit_does_not_sense_is_refused(emulated_unit):
    served = emulated_unit("single-quantum-websq", on="emu")
    served.world.conditions["temperature_k"] = 12
    assert served.world.conditions["temperature_k"] == 12.0
    for change in (
        lambda: served.world.conditions.__setitem__("temprature_k", 12),
        lambda: served.world.conditions.update(temprature_k=12),
        lambda: served.world.conditions.setdefault("temprature_k", 12),
    ):
        with pytest.raises(ConfigurationError, match="does not sense 'temprature_k'") as caught:
            change()
        assert "temperature_k" in caught.value.remedy
    assert "temprature_k" not in served.world.conditions


def test_what_a_unit_cannot_be_put_on_is_refused(emulated_unit):
    with pytest.raises(ConfigurationError, match="cannot be put on 'pipe'") as caught:
        emulated_unit("agilent-8156a", on="pipe")
    assert "pty, tcp" in caught.value.remedy


@pytest.mark.parametrize("parameters", [None, LinkParameters(pulse_rate_hz=10_000_000)])
def test_a_link_is_served(emulated_link, faulty, parameters):
    link = emulated_link(parameters, seed=3)
    with open_unit("generic-tx", link.transmitter_url) as tx, open_unit("sfifteen-tdc1", link.receiver_url) as rx:
        assert tx.read_setting("pulse_rate_hz") == (parameters or LinkParameters()).pulse_rate_hz
        rx.start()
        tx.arm()
        tx.start()
        assert len(rx.read_block(1000)) > 0
    with faulty(link.receiver, "silent"), pytest.raises(TransportError):
        open_unit("sfifteen-tdc1", link.receiver_url, timeout_s=0.3)


def test_a_bench_is_served(emulated_bench, tmp_path):
    file = tmp_path / "bench.toml"
    file.write_text(f'[units.tagger]\nname = "sfifteen-tdc1"\nurl = "serial://{tmp_path}/tagger"\n')
    served = emulated_bench(file, seed=5)
    assert served.world.seed == 5
    with open_bench(file) as bench:
        assert bench.identities["tagger"].model == "TDC1"


@pytest.fixture
def terminals():
    """Paths that are gone when the fixtures asked for after this one are torn down, as are their threads."""
    before = set(threading.enumerate())
    paths = []
    yield paths
    assert paths
    assert not any(path.exists() for path in paths)
    assert set(threading.enumerate()) <= before


def test_all_is_torn_down(terminals, emulated_unit, emulated_link):
    unit, link = emulated_unit("sfifteen-tdc1"), emulated_link()
    terminals += [Path(url.removeprefix("serial://")) for url in (unit.url, link.receiver_url)]
    assert all(path.exists() for path in terminals)


def test_nothing_heavy_is_imported_before_a_fixture_is_used(tmp_path):
    (tmp_path / "test_light.py").write_text(
        "import sys\n"
        "def test_light(request):\n"
        "    assert request.config.pluginmanager.has_plugin('qkdhw')\n"
        "    heavy = ('numpy', 'qkdhw', 'pydantic', 'typer', 'qkdhw_emulators.serve')\n"
        "    assert [name for name in heavy if name in sys.modules] == []\n"
    )
    assert "1 passed" in run_pytest(tmp_path, "-p", "qkdhw", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


def test_the_key_managers_tests_pass(tmp_path):
    shutil.copytree(EXAMPLES / "key-manager-ci", tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    assert "5 passed" in run_pytest(tmp_path / "project")


def run_pytest(folder: Path, *options: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options],
        cwd=folder, capture_output=True, text=True, timeout=100, check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

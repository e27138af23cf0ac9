"""A bench file opens emulated units, checks who they are, applies settings; every wrong field is named."""

from importlib.metadata import entry_points

import pytest

from qkdhw.bench import open_bench, read_bench_file
from qkdhw.bench.check import mistakes_in
from qkdhw.errors import ConfigurationError, TransportError, UnitError
from qkdhw.model import Basis
from qkdhw_emulators.in_process import make_unit
from qkdhw_emulators.serve import serve_link, serve_unit
from qkdhw_emulators.world import World, serial_number

pytestmark = pytest.mark.skipif(
    not entry_points(group="qkdhw.drivers"), reason="the package is on the path but not installed"
)

WIRING = """
[[wiring]]
unit = "rx"
channel = 1
detector = "D0"
basis = "key"
bit = 0
[[wiring]]
unit = "rx"
channel = 4
detector = "D-"
basis = "test"
bit = 1
"""


def written(tmp_path, text):
    path = tmp_path / "bench.toml"
    path.write_text(text)
    return path


def two_units(served, *, tx="", rx=""):
    return f"""
[units.tx]
name = "generic-tx"
url = "{served.transmitter_url}"
{tx}
[units.rx]
name = "sfifteen-tdc1"
url = "{served.receiver_url}"
{rx}
{WIRING}
"""


def test_a_bench_opens_checks_and_configures(tmp_path):
    with serve_link(seed=1) as served:
        text = two_units(
            served,
            tx=f'serial_number = "{serial_number(1)}"\nsettings = {{ pulse_rate_hz = 30_000_000 }}',
            rx='model = "TDC1"\nsettings = { threshold_v = 1.0 }',
        )
        with open_bench(written(tmp_path, text)) as bench:
            assert set(bench.units) == {"tx", "rx"}
            assert bench.identities["tx"].protocol == "GTX/1"
            assert 10_000_000_000 % bench.settings["tx"]["pulse_rate_hz"] == 0
            assert bench.settings["rx"]["threshold_v"] == pytest.approx(1.0, abs=0.01)
            assert bench.detectors("rx") == {1: (Basis.KEY, 0), 4: (Basis.TEST, 1)}
            assert bench.units["tx"].read_status().state == "idle"
        bench.close()
        with open_bench(written(tmp_path, text)):  # the ports were given back
            pass


@pytest.mark.parametrize(
    ("more", "error", "field"),
    [
        ({"tx": 'serial_number = "EMU9"'}, UnitError, "units.tx.serial_number"),
        ({"rx": 'model = "TDC2"'}, UnitError, "units.rx.model"),
        ({"rx": "settings = { gain = 2 }"}, ConfigurationError, "units.rx.settings"),
        ({"rx": "colour = 2"}, ConfigurationError, "units.rx.colour: there is no such field; fields: name, url, model"),
        ({"rx": "settings = 2"}, ConfigurationError, "units.rx.settings"),
        ({"rx": "settings = {"}, ConfigurationError, "not TOML"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_stays_open(tmp_path, more, error, field):
    with serve_link(seed=1) as served:
        with pytest.raises(error, match=field) as caught:
            open_bench(written(tmp_path, two_units(served, **more)))
        assert caught.value.remedy
        with open_bench(written(tmp_path, two_units(served))):
            pass


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "units"),
        ("[units]", "units"),
        ('[units.rx]\nname = "sfifteen-tdc1"', "units.rx.url: this field is missing"),
        ('[units.rx]\nname = 3\nurl = "y"', "units.rx.name: this must be a text in quotes"),
        ('[units.rx]\nname = "x"\nurl = "y"' + WIRING.replace('"rx"', '"ry"'), "wiring.0.unit"),
        ('[units.rx]\nname = "x"\nurl = "y"' + WIRING.replace("= 4", "= 1"), "wiring.1.channel"),
        ('[units.rx]\nname = "x"\nurl = "y"' + WIRING.replace("= 4", "= 0"), "wiring.1.channel"),
        ('[units.rx]\nname = "x"\nurl = "y"', "no driver is called 'x'"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_opened(tmp_path, text, field):
    with pytest.raises(ConfigurationError, match=field):
        open_bench(written(tmp_path, text))


def test_no_file_and_no_unit(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        open_bench(tmp_path / "none.toml")
    with pytest.raises(TransportError):
        open_bench(written(tmp_path, '[units.rx]\nname = "sfifteen-tdc1"\nurl = "serial:///dev/none"'))


@pytest.mark.parametrize(
    ("more", "field", "remedy"),
    [
        ({"rx": "settings = { treshold_v = 1.0 }"}, "units.rx.settings.treshold_v", "threshold_v"),
        ({"rx": "settings = { threshold_v = 90.0 }"}, "units.rx.settings.threshold_v", "3.3"),
        ({"rx": "options = { colour = 2 }"}, "units.rx.options", "options: none"),
        ({"wiring": WIRING.replace("= 4", "= 7")}, "wiring.1.channel: units.rx has no input 7", "1, 2, 3, 4"),
        ({"rx_name": "sfifteen-tdc2"}, "units.rx.name", "did you mean sfifteen-tdc1"),
        ({"rx_url": "tcp://127.0.0.1"}, "units.rx.url", "tcp://host:port"),
    ],
)
def test_a_mistake_is_found_before_any_unit_is_touched(tmp_path, more, field, remedy):
    with serve_unit(make_unit("agilent-8156a", World()), transport="tcp") as served:
        text = f"""
[units.attenuator]
name = "agilent-8156a"
url = "{served.url}"
settings = {{ attenuation_db = 7.5 }}
[units.rx]
name = "{more.get("rx_name", "sfifteen-tdc1")}"
url = "{more.get("rx_url", "serial:///dev/none")}"
{more.get("rx", "")}
{more.get("wiring", WIRING)}
"""
        with pytest.raises(ConfigurationError, match=field) as raised:
            open_bench(written(tmp_path, text))
        assert remedy in raised.value.remedy
        assert served.line.fed_bytes == 0
        (mistake,) = mistakes_in(read_bench_file(tmp_path / "bench.toml"))
        assert str(mistake) == str(raised.value)


def test_nothing_is_set_before_all_units_are_there(tmp_path):
    with serve_unit(make_unit("agilent-8156a", World()), transport="tcp") as served:
        text = f"""
[units.attenuator]
name = "agilent-8156a"
url = "{served.url}"
settings = {{ attenuation_db = 7.5 }}
[units.rx]
name = "sfifteen-tdc1"
url = "serial:///dev/none"
"""
        with pytest.raises(TransportError):
            open_bench(written(tmp_path, text))
        assert served.line.fed_bytes > 0
        assert served.unit.receive(b":INP:ATT?\n") == b"0.000\n"


def test_channels_of_a_unit_that_may_have_more_are_left_to_the_unit(tmp_path):
    text = """
[units.detectors]
name = "single-quantum-websq"
url = "tcp://127.0.0.1:12000"
settings = { bias_current_ua = { 7 = 900.0 } }
"""
    (mistake,) = mistakes_in(read_bench_file(written(tmp_path, text)))
    assert "900" in str(mistake)  # and not that there is no channel 7


def test_the_repr_of_a_bench_names_its_units(tmp_path):
    text = '[units.attenuator]\nname = "agilent-8156a"\nurl = "emu://agilent-8156a"'
    with open_bench(written(tmp_path, text)) as bench:
        assert repr(bench) == "<Bench of attenuator: Agilent8156A>"

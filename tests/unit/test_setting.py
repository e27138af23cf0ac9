"""Settings: what is allowed, what is refused, what a read-back may differ by."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw import open_unit
from qkdhw.drivers.setting import ChannelSetting, Setting, settings_of
from qkdhw.errors import ConfigurationError
from qkdhw.quantities import number_in


class Tuner:
    """Keeps values, as a driver would."""

    gain_db = Setting(float, unit="dB", minimum=-10.0, maximum=20.0, step=0.5, doc="Gain.")
    count = Setting(int, minimum=1, maximum=9, doc="Count.")
    mode = Setting(str, choices=("slow", "fast"), doc="Mode.")
    light_on = Setting(bool, restore=False, doc="Light.")
    current_a = Setting(float, unit="A", access="r", doc="A reading.")
    bias_v = ChannelSetting(float, unit="V", minimum=0.0, maximum=5.0, channels=(1, 2, 4), doc="Bias.")

    def __init__(self):
        self.values = {}

    def read_setting(self, name, channel=None):
        return self.values[name, channel]

    def channels_of(self, name):
        return settings_of(type(self))[name].channels

    def configure(self, settings):
        for name, value in settings.items():
            setting = settings_of(type(self))[name]
            if setting.channels:
                self.values |= {(name, c): v for c, v in setting.checked_channels(value).items()}
            else:
                self.values[name, None] = setting.checked(value)
        return settings


def test_a_setting_is_read_and_written_like_an_attribute():
    tuner = Tuner()
    tuner.gain_db = 3
    tuner.bias_v = 1.5
    tuner.bias_v[4] = 2.5
    assert tuner.gain_db == 3.0
    assert type(tuner.gain_db) is float
    assert dict(tuner.bias_v) == {1: 1.5, 2: 1.5, 4: 2.5}
    assert Tuner.gain_db.name == "gain_db"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gain_db", 20.1), ("gain_db", -10.1), ("gain_db", float("nan")), ("gain_db", float("inf")), ("gain_db", "3"),
        ("gain_db", None), ("gain_db", True), ("count", 1.0), ("count", 0), ("count", 10), ("count", True),
        ("mode", "Slow"), ("mode", ""), ("light_on", 1), ("light_on", "on"), ("current_a", 1.0),
    ],
)  # fmt: skip
def test_what_is_not_allowed_names_the_setting_and_a_remedy(name, value):
    with pytest.raises(ConfigurationError, match=name) as raised:
        settings_of(Tuner)[name].checked(value)
    assert raised.value.remedy


@pytest.mark.parametrize("value", [{3: 1.0}, {"x": 1.0}, {True: 1.0}, {1: 6.0}, {1: "high"}])
def test_channels_that_are_not_there(value):
    with pytest.raises(ConfigurationError, match="bias_v"):
        Tuner.bias_v.checked_channels(value)


def test_channels_come_as_json_has_them():
    assert Tuner.bias_v.checked_channels({"1": 1.0, 2: 2}) == {1: 1.0, 2: 2.0}
    with pytest.raises(KeyError):
        Tuner().bias_v[3]
    with pytest.raises(TypeError):
        del Tuner().bias_v[1]


def test_numpy_scalars_are_numbers():
    assert Tuner.gain_db.checked(np.float64(2.5)) == 2.5
    assert Tuner.count.checked(np.int64(3)) == 3


@given(st.floats(-10, 20), st.floats(0, 0.5))
def test_a_read_back_within_one_step_agrees_and_beyond_does_not(told, off):
    assert Tuner.gain_db.agrees(told, told + off)
    assert not Tuner.gain_db.agrees(told, told + 0.6)


def test_words_and_switches_agree_only_when_equal():
    assert Tuner.mode.agrees("slow", "slow")
    assert not Tuner.mode.agrees("slow", "fast")
    assert not Tuner.light_on.agrees(True, False)
    assert not Tuner.count.agrees(3, 4)


def test_description_is_json_and_says_everything():
    described = [setting.describe() for setting in settings_of(Tuner).values()]
    assert json.loads(json.dumps(described)) == described
    assert [each["name"] for each in described] == ["gain_db", "count", "mode", "light_on", "current_a", "bias_v"]
    assert described[0]["step"] == 0.5
    assert described[5]["channels"] == [1, 2, 4]
    assert settings_of(Tuner)["mode"].allowed() == 'one of "slow", "fast"'


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [
        ("500 mV", "V", 0.5), ("0.5V", "mV", 500), ("-3.3 V", "V", -3.3), ("1.55 um", "nm", 1550), ("1.55 µm", "nm", 1550),
        ("2e-3 A", "mA", 2), ("5 GHz", "Hz", 5_000_000_000), ("100 ps", "ns", 0.1), ("4 Mbit/s", "kbit/s", 4000),
        ("3.25 dB", "dB", 3.25), ("90 deg", "°", 90), ("25 degC", "°C", 25), ("50 percent", "%", 50), ("4 K", "mK", 4000),
        ("1 ms", "s", 0.001),
    ],
)  # fmt: skip
def test_a_number_may_say_its_unit(text, unit, number):
    assert float(number_in(text, unit)) == number


@pytest.mark.parametrize(
    "text", ["", "5", "V", "5 A", "5 xV", "5 mmV", "5 V V", "five V", "1e9999 V", "0x5 V", "5 dBm", "nan V", "5 v"]
)
def test_what_is_no_voltage(text):
    with pytest.raises(ValueError, match="it is not"):
        number_in(text, "V")


def test_settings_take_texts_with_units_and_refuse_others():
    assert Tuner.gain_db.checked("3.5 dB") == 3.5
    assert Tuner.bias_v.checked_channels({1: "250 mV"}) == {1: 0.25}
    for wrong in ("3.5 V", "3.5", "20.1 dB"):
        with pytest.raises(ConfigurationError, match="gain_db") as raised:
            Tuner.gain_db.checked(wrong)
        assert raised.value.remedy
    with pytest.raises(ConfigurationError, match="count"):
        Tuner.count.checked("3 V")  # it has no unit


def test_a_misspelt_setting_of_an_open_unit_is_an_error_and_says_what_was_meant():
    with open_unit("agilent-8156a", "emu://agilent-8156a") as unit:
        with pytest.raises(ConfigurationError, match="did you mean 'attenuation_db'"):
            unit.atenuation_db = 20
        with pytest.raises(ConfigurationError, match="did you mean 'attenuation_db'"):
            unit.configure({"atenuation_db": 20})
        unit.attenuation_db = 20
        assert unit.attenuation_db == 20

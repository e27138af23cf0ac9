"""Settings of several values at once, and steps that grow with the value."""

import json

import numpy as np
import pytest

from qkdhw.drivers.setting import Setting, TupleSetting
from qkdhw.errors import ConfigurationError


class Box:
    levels = TupleSetting(float, unit="", minimum=0.0, maximum=2.0, length=3, step=0.01, doc="Three levels.")
    rate_hz = Setting(int, unit="Hz", relative_step=0.25)

    def __init__(self):
        self.values = {"levels": (0.5, 0.25, 0.0), "rate_hz": 7}

    def read_setting(self, name, channel=None):
        return self.values[name]

    def configure(self, settings):
        self.values |= {name: getattr(Box, name).checked(value) for name, value in settings.items()}
        return settings


@pytest.mark.parametrize("value", [(1, 0.5, 0.25), [1.0, 0.5, 0.25], np.array([1.0, 0.5, 0.25])])
def test_any_sequence_is_set_and_read_as_a_tuple(value):
    box = Box()
    box.levels = value
    assert box.levels == (1.0, 0.5, 0.25)
    assert all(type(level) is float for level in box.levels)


@pytest.mark.parametrize(
    "value",
    [0.5, "0.5,0.2,0.1", (0.5, 0.2), (0.5, 0.2, 0.1, 0.0), (0.5, 0.2, 3.0), (0.5, 0.2, float("nan")), [[1]], None],
)
def test_what_is_no_such_sequence_is_refused(value):
    with pytest.raises(ConfigurationError, match="levels") as caught:
        Box.levels.checked(value)
    assert caught.value.remedy


def test_a_read_back_is_compared_value_by_value():
    assert Box.levels.agrees((0.5, 0.2, 0.1), (0.509, 0.2, 0.1))
    assert not Box.levels.agrees((0.5, 0.2, 0.1), (0.5, 0.2, 0.12))
    assert not Box.levels.agrees((0.5, 0.2, 0.1), (0.5, 0.2))


def test_steps_that_grow_with_the_value():
    assert Box.rate_hz.agrees(100, 80)
    assert not Box.rate_hz.agrees(100, 60)
    assert not Setting(int).agrees(100, 99)


def test_it_is_described():
    described = json.loads(json.dumps(Box.levels.describe()))
    assert (described["name"], described["length"], described["maximum"]) == ("levels", 3, 2.0)

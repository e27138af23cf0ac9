"""What recovery sets again is read back: a setting is never silently another one after a reconnect."""

import os
from importlib.metadata import entry_points

import pytest

from qkdhw import open_unit
from qkdhw.drivers import load_driver
from qkdhw.errors import TransportClosedError, UnitError
from qkdhw_emulators.faults import Fault
from qkdhw_emulators.in_process import emulator_class, make_unit
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.world import VirtualClock, World

NAMES = ["agilent-8156a", "agilent-816x", "generic-tx", "oz-epc400", "thorlabs-itc4000", "srs-dg645"]
SET = {
    "agilent-8156a": {"attenuation_db": 33.0},
    "agilent-816x": {"attenuation_db": 33.0},
    "generic-tx": {"mean_photon_number": (0.3, 0.1, 0.001)},
    "oz-epc400": {"voltage_mv": {1: 1234}},
    "thorlabs-itc4000": {"laser_current_a": 0.01},
    "srs-dg645": {"trigger_rate_hz": 1234.0},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_that_does_not_take_its_settings_back_is_found_out(name):
    assert Fault.STUCK_VALUE in emulator_class(name).unit_faults
    assert name in {point.name for point in entry_points(group="qkdhw.drivers")}
    world = World(clock=VirtualClock(pace=None))
    (setting,) = SET[name]
    assert getattr(load_driver(name), setting).restore
    with (
        serve_unit(make_unit(name, world), world, transport="emu") as served,
        open_unit(name, served.url, timeout_s=0.5) as unit,
    ):
        unit.configure(SET[name])
        served.faults.add(Fault.POWER_CYCLE, count=1)
        served.faults.add(Fault.STUCK_VALUE)
        for _ in range(2):  # not only once: it stays so until the unit has it again
            with pytest.raises(UnitError, match=setting):
                unit.identify()
        served.faults.clear()
        unit.identify()
        assert unit.configure(SET[name])


def test_a_forked_process_does_not_share_a_link():
    with open_unit("agilent-8156a", "emu://agilent-8156a") as unit:
        child = os.fork()
        if child == 0:
            try:
                unit.identify()
            except TransportClosedError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert unit.identify().model

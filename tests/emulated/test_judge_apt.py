"""Another author's codec (thorlabs-apt-protocol) reads every frame that the emulated units send, and commands them."""

import pytest
import thorlabs_apt_protocol as apt

from qkdhw_emulators.units.thorlabs_apt import EmulatedThorlabsK10Cr1, EmulatedThorlabsMpc320
from qkdhw_emulators.world import VirtualClock, World

TO = {"dest": 0x50, "source": 0x01}
MOUNT_PER_DEG = 409_600 / 3


class Judge:
    """Sends what the other codec encodes; whatever comes back must be understood by it, to the last byte."""

    def __init__(self, unit_class):
        self.world = World(seed=2, clock=VirtualClock(pace=None))
        self.unit = unit_class(self.world)
        self.unpacker = apt.Unpacker(on_error="raise")
        self.heard = []

    def read(self, data):
        self.unpacker.feed(data)
        new = list(self.unpacker)
        assert self.unpacker.buf == b""
        self.heard += [message.msg for message in new]
        return new

    def ask(self, command):
        (answer,) = self.read(self.unit.receive(command))
        return answer

    def tell(self, command):
        assert self.unit.receive(command) == b""

    def arrive(self):
        told = []
        while (wait_s := self.unit.wait_s()) is not None:
            self.world.clock.advance(wait_s)
            told += self.read(self.unit.poll())
        return told


@pytest.mark.parametrize(
    ("unit_class", "model", "channels"),
    [(EmulatedThorlabsMpc320, b"MPC320", 3), (EmulatedThorlabsK10Cr1, b"K10CR1", 1)],
)
def test_identity(unit_class, model, channels):
    judge = Judge(unit_class)
    info = judge.ask(apt.hw_req_info(**TO))
    assert info.model_number.rstrip(b"\0") == model
    assert info.serial_number == judge.unit.serial_number
    assert info.firmware_version == list(judge.unit.firmware)
    assert info.nchs == channels


def test_mount():
    judge = Judge(EmulatedThorlabsK10Cr1)
    assert judge.ask(apt.mod_req_chanenablestate(**TO, chan_ident=1)).enabled
    judge.tell(apt.mod_set_chanenablestate(**TO, chan_ident=1, enable_state=2))
    assert not judge.ask(apt.mod_req_chanenablestate(**TO, chan_ident=1)).enabled
    judge.tell(apt.mod_set_chanenablestate(**TO, chan_ident=1, enable_state=1))
    judge.tell(apt.mot_move_home(**TO, chan_ident=1))
    assert judge.ask(apt.mot_req_statusupdate(**TO, chan_ident=1)).homing
    assert [message.msg for message in judge.arrive()] == ["mot_move_homed"]
    assert judge.ask(apt.mot_req_statusupdate(**TO, chan_ident=1)).homed
    velocity = {"min_velocity": 0, "acceleration": 15_020, "max_velocity": 36_645_545}
    judge.tell(apt.mot_set_velparams(**TO, chan_ident=1, **velocity))
    told = judge.ask(apt.mot_req_velparams(**TO, chan_ident=1))
    assert {name: getattr(told, name) for name in velocity} == velocity
    target = round(90 * MOUNT_PER_DEG)
    begun_s = judge.world.now_s()
    judge.tell(apt.mot_move_absolute(**TO, chan_ident=1, position=target))
    (end,) = judge.arrive()
    assert (end.msg, end.position) == ("mot_move_completed", target)
    assert judge.world.now_s() - begun_s == pytest.approx(90 / 5 + 5 / 10, rel=1e-3)
    assert judge.ask(apt.mot_req_poscounter(**TO, chan_ident=1)).position == target
    judge.tell(apt.mot_move_relative(**TO, chan_ident=1, distance=-1000))
    judge.arrive()
    assert judge.ask(apt.mot_req_dcstatusupdate(**TO, chan_ident=1)).position == target - 1000
    judge.tell(apt.mot_set_poscounter(**TO, chan_ident=1, position=5))
    assert judge.ask(apt.mot_req_poscounter(**TO, chan_ident=1)).position == 5


def test_mount_jogs_and_stops():
    judge = Judge(EmulatedThorlabsK10Cr1)
    jog = {
        "jog_mode": 2,
        "step_size": 5000,
        "min_velocity": 0,
        "acceleration": 15_020,
        "max_velocity": 7_329_109,
        "stop_mode": 2,
    }
    judge.tell(apt.mot_set_jogparams(**TO, chan_ident=1, **jog))
    assert judge.ask(apt.mot_req_jogparams(**TO, chan_ident=1)).step_size == 5000
    judge.tell(apt.mot_move_jog(**TO, chan_ident=1, direction=2))
    assert judge.ask(apt.mot_req_statusupdate(**TO, chan_ident=1)).jogging_reverse
    judge.arrive()
    assert judge.ask(apt.mot_req_poscounter(**TO, chan_ident=1)).position == -5000
    home = {"home_dir": 1, "limit_switch": 4, "home_velocity": 7_329_109, "offset_distance": 100}
    judge.tell(apt.mot_set_homeparams(**TO, chan_ident=1, **home))
    told = judge.ask(apt.mot_req_homeparams(**TO, chan_ident=1))
    assert {name: getattr(told, name) for name in home} == home
    judge.tell(apt.mot_set_genmoveparams(**TO, chan_ident=1, backlash_distance=77))
    assert judge.ask(apt.mot_req_genmoveparams(**TO, chan_ident=1)).backlash_distance == 77
    judge.tell(apt.mot_move_absolute(**TO, chan_ident=1, position=50_000_000))
    judge.world.clock.advance(1.0)
    assert judge.ask(apt.mot_req_statusupdate(**TO, chan_ident=1)).moving_forward
    judge.tell(apt.mot_move_stop(**TO, chan_ident=1, stop_mode=1))
    assert [message.msg for message in judge.arrive()] == ["mot_move_stopped"]


def test_paddles():
    judge = Judge(EmulatedThorlabsMpc320)
    judge.tell(apt.mod_set_chanenablestate(**TO, chan_ident=5, enable_state=1))
    assert [judge.ask(apt.mod_req_chanenablestate(**TO, chan_ident=c)).enabled for c in (1, 2, 4)] == [
        True,
        False,
        True,
    ]
    parameters = {"velocity": 50, "home_position": 100, "jog_step1": 25, "jog_step2": 26, "jog_step3": 27}
    judge.tell(apt.pol_set_params(**TO, **parameters))
    told = judge.ask(apt.pol_req_params(**TO))
    assert {name: getattr(told, name) for name in parameters} == parameters
    judge.tell(apt.mot_move_absolute(**TO, chan_ident=4, position=700))
    judge.world.clock.advance(0.1)
    status = judge.ask(apt.mot_req_dcstatusupdate(**TO, chan_ident=4))
    assert status.moving_forward
    assert status.velocity > 0
    (end,) = judge.arrive()
    assert (end.msg, end.chan_ident) == ("mot_move_completed", 4)
    judge.tell(apt.mot_move_home(**TO, chan_ident=4))
    judge.arrive()
    status = judge.ask(apt.mot_req_dcstatusupdate(**TO, chan_ident=4))
    assert (status.position, status.homed, status.settled, status.channel_enabled) == (100, True, False, True)
    judge.tell(apt.mot_move_jog(**TO, chan_ident=4, direction=1))
    judge.arrive()
    assert judge.ask(apt.mot_req_poscounter(**TO, chan_ident=4)).position == 127


def test_errors_updates_and_the_keep_alive():
    judge = Judge(EmulatedThorlabsMpc320)
    report = judge.ask(apt.mot_move_absolute(**TO, chan_ident=1, position=1371))
    assert (report.msg, report.msg_ident) == ("hw_richresponse", 0x0453)
    assert report.notes.rstrip(b"\0") == b"position out of range"
    judge.tell(apt.hw_start_updatemsgs(**TO))
    assert [message.msg for message in judge.arrive()] == ["mot_get_dcstatusupdate"] * 50
    assert judge.unit.receive(apt.hw_req_info(**TO)) == b""
    judge.tell(apt.mot_ack_dcstatusupdate(**TO))
    judge.tell(apt.hw_stop_updatemsgs(**TO))
    judge.ask(apt.hw_req_info(**TO))
    judge.tell(apt.mod_identify(**TO, chan_ident=1))
    assert judge.unit.flashes == 1

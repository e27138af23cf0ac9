"""The key manager against emulated units: no optics, no rack, on every push. The fixtures come with qkdhw."""

import pytest
from key_manager import admit

from qkdhw import open_unit
from qkdhw_emulators.optics.parameters import LinkParameters

SHORT = LinkParameters(loss_db=3.0)


def test_a_good_link_is_admitted(emulated_link):
    link = emulated_link(SHORT)
    verdict = admit(link.transmitter_url, link.receiver_url)
    assert verdict.refused is None
    assert 0.0 < verdict.qber < 0.03


def test_an_eavesdropper_is_noticed(emulated_link):
    link = emulated_link(LinkParameters(loss_db=3.0, eavesdropper="intercept-resend"))
    verdict = admit(link.transmitter_url, link.receiver_url)
    assert verdict.refused.startswith("QBER 2")
    assert verdict.qber == pytest.approx(0.25, abs=0.05)


def test_a_receiver_that_does_not_answer_is_refused_until_it_does(emulated_link, faulty):
    link = emulated_link(SHORT)
    with faulty(link.receiver, "silent"):
        assert "TransportTimeoutError" in admit(link.transmitter_url, link.receiver_url, timeout_s=0.3).refused
    assert admit(link.transmitter_url, link.receiver_url).refused is None


def test_a_broken_laser_is_refused(emulated_link):
    link = emulated_link(SHORT, transmitter_faults=["laser-temperature"])
    assert admit(link.transmitter_url, link.receiver_url).refused == "alarm: laser_temperature"


def test_an_attenuator_has_its_value_back_after_a_power_cut(emulated_unit, faulty):
    served = emulated_unit("agilent-8156a", on="tcp")
    with open_unit("agilent-8156a", served.url, timeout_s=1.0) as attenuator:
        attenuator.set_attenuation_db(12.5)
        with faulty(served, "power-cycle:count=1"):
            assert attenuator.identify().serial_number
        assert attenuator.read_attenuation_db() == 12.5

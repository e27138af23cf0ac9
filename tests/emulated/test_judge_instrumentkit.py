"""InstrumentKit's own drivers, unchanged, on emulated instruments."""

from __future__ import annotations

import warnings

import pytest

from qkdhw.drivers.srs_dg645 import SrsDg645
from qkdhw.transport import open_transport
from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.srs_dg645 import EmulatedSrsDg645

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is of 2019 and speaks of Python 2
    import quantities as pq
    from instruments.srs import SRSDG645


@pytest.fixture
def served():
    with serve_unit(EmulatedSrsDg645(), transport="tcp") as served:
        yield served


@pytest.fixture
def judge(served):
    host, port = served.url.removeprefix("tcp://").split(":")
    judge = SRSDG645.open_tcpip(host, int(port))
    judge._file.timeout = 5
    yield judge
    judge._file.close()


def test_delays(judge, served) -> None:
    channels = SRSDG645.Channels
    judge.channel[channels.A].delay = (judge.channel[channels.T0], pq.Quantity(10, "us"))
    judge.channel[channels.B].delay = (judge.channel[channels.A], pq.Quantity(250, "ns"))
    reference, delay = judge.channel[channels.B].delay
    assert reference == channels.A
    assert float(delay.rescale("ns")) == pytest.approx(250)
    assert served.unit.delay_after_t0_s(3) == pytest.approx(10.25e-6)


def test_outputs(judge) -> None:
    output = judge.output[SRSDG645.Outputs.AB]
    output.level_amplitude = pq.Quantity(4.0, "V")
    output.level_offset = pq.Quantity(-0.5, "V")
    output.polarity = SRSDG645.LevelPolarity.negative
    assert float(output.level_amplitude) == pytest.approx(4.0)
    assert float(output.level_offset) == pytest.approx(-0.5)
    assert output.polarity == SRSDG645.LevelPolarity.negative


def test_triggering_and_display(judge) -> None:
    judge.trigger_source = SRSDG645.TriggerSource.external_rising
    judge.trigger_rate = pq.Quantity(2, "kHz")
    judge.holdoff = pq.Quantity(3, "us")
    judge.enable_adv_triggering = True
    judge.display = (SRSDG645.DisplayMode.trigger_rate, SRSDG645.Channels.B)
    assert judge.trigger_source == SRSDG645.TriggerSource.external_rising
    assert float(judge.trigger_rate.rescale("Hz")) == pytest.approx(2000)
    assert float(judge.holdoff.rescale("us")) == pytest.approx(3)
    assert judge.enable_adv_triggering
    assert judge.display == (SRSDG645.DisplayMode.trigger_rate, SRSDG645.Channels.B)


def test_identity_and_what_our_driver_then_sees(judge, served) -> None:
    assert judge.name == "Stanford Research Systems,DG645,s/n001776,ver1.14.10E\r"
    judge.channel[SRSDG645.Channels.C].delay = (judge.channel[SRSDG645.Channels.T0], pq.Quantity(7, "us"))
    assert judge.query("LERR?").strip() == "0"
    with SrsDg645(open_transport(served.url)) as ours:
        assert ours.read_delay_s("C") == ("T0", pytest.approx(7e-6))

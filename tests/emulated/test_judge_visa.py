"""Stock pyvisa-py, PyMeasure and python-usbtmc on emulated instruments: they know nothing of this project."""

from __future__ import annotations

import pytest
import pyvisa
from pyvisa.constants import StatusCode

from qkdhw_emulators.serve import serve_unit
from qkdhw_emulators.units.agilent_attenuator import EmulatedAgilent816x
from qkdhw_emulators.units.scpi_unit import Handler
from qkdhw_emulators.units.thorlabs_itc4000 import EmulatedThorlabsItc4000

BLOCK = bytes(i * 7 % 256 for i in range(100_000))  # line feeds among them
IDENTITY = "THORLABS,ITC4001,M00123456,1.4.0/2.0.3/1.6.0"


class WithBlock(EmulatedThorlabsItc4000):
    """The laser controller, with a long answer besides."""

    def command_table(self) -> dict[str, Handler]:
        return super().command_table() | {"BLOCk?": lambda: b"#6%06d" % len(BLOCK) + BLOCK}


@pytest.fixture
def manager():
    manager = pyvisa.ResourceManager("@py")
    yield manager
    manager.close()


@pytest.fixture
def served(request):
    with serve_unit(WithBlock(), transport=request.param) as served:
        yield served


@pytest.fixture
def instrument(served, manager):
    resource = served.url.removeprefix("visa://")
    if resource.startswith("tcp://"):
        resource = "TCPIP::{}::{}::SOCKET".format(*resource.removeprefix("tcp://").split(":"))
    with manager.open_resource(resource, timeout=5000, read_termination="\n", write_termination="\n") as instrument:
        yield instrument


everywhere = pytest.mark.parametrize("served", ["hislip", "vxi11", "usbtmc", "tcp"], indirect=True)


@everywhere
def test_queries_and_numbers(instrument) -> None:
    assert instrument.query("*IDN?") == IDENTITY
    instrument.write("SOUR:CURR 0.065")
    assert instrument.query_ascii_values("SOUR:CURR?") == [0.065]
    assert [instrument.query(f"SOUR:CURR {i}E-3;CURR?") for i in range(1, 30)] == [
        f"{i / 1000:.9E}" for i in range(1, 30)
    ]


@everywhere
def test_a_block_of_100_kb(instrument) -> None:
    got = instrument.query_binary_values("BLOC?", datatype="B", container=bytes, expect_termination=True)
    assert got == BLOCK
    assert instrument.query("*IDN?") == IDENTITY


@pytest.mark.parametrize("served", ["hislip", "vxi11"], indirect=True)
def test_status_byte(instrument) -> None:
    assert instrument.read_stb() == 0
    instrument.write("BOGUS")
    assert instrument.query("*IDN?") == IDENTITY
    assert instrument.read_stb() == 0x04
    instrument.write("*IDN?")
    assert instrument.read_stb() & 0x10
    instrument.read()
    assert instrument.query("SYST:ERR?") == '-113,"Undefined header"'
    assert instrument.read_stb() == 0


@pytest.mark.parametrize(("served", "lost"), [("hislip", 2), ("vxi11", 1)], indirect=["served"])
def test_clear_after_a_timeout(served, instrument, lost) -> None:
    """Over HiSLIP the second answer is lost too: pyvisa-py 0.8 takes one on its way for the acknowledgement."""
    served.faults.parse(f"drop:count={lost}")
    instrument.timeout = 100
    with pytest.raises(pyvisa.VisaIOError) as caught:
        instrument.query("*IDN?")
    assert caught.value.error_code == StatusCode.error_timeout
    instrument.timeout = 5000
    instrument.write("SOUR:CURR?")
    instrument.clear()
    assert instrument.query("*IDN?") == IDENTITY


@pytest.mark.parametrize("served", ["usbtmc"], indirect=True)
def test_python_usbtmc(served) -> None:
    from usbtmc import Instrument

    instrument = Instrument(0x1313, 0x804A, "M00123456")
    assert instrument.ask("*IDN?") == IDENTITY
    assert instrument.read_stb() == 0
    instrument.write("BOGUS")
    assert instrument.read_stb() == 0x04
    instrument.write("SOUR:CURR?")
    instrument.clear()
    assert instrument.ask("*IDN?") == IDENTITY
    instrument.write("BLOC?")
    assert instrument.read_raw() == b"#6100000" + BLOCK + b"\n"
    instrument.close()


@pytest.mark.parametrize("served", ["usbtmc"], indirect=True)
def test_pyvisa_lists_the_usb_instrument(served) -> None:
    from pyvisa_py.usb import USBInstrSession  # the manager's list_resources looks through the network as well

    assert USBInstrSession.list_resources() == ["USB0::4883::32842::M00123456::0::INSTR"]


@pytest.mark.parametrize("transport", ["hislip", "vxi11"])
def test_pymeasure(transport) -> None:
    from pymeasure.instruments import Instrument, SCPIMixin

    class Attenuator(SCPIMixin, Instrument):
        attenuation = Instrument.control(":INP1:CHAN1:ATT?", ":INP1:CHAN1:ATT %g", "dB", check_set_errors=True)

    with serve_unit(EmulatedAgilent816x(), transport=transport) as served:
        unit = Attenuator(served.url.removeprefix("visa://"), "816x", visa_library="@py", timeout=5000)
        assert unit.id.startswith("Agilent Technologies,8163B,")
        unit.attenuation = 12.5
        assert unit.attenuation == 12.5
        assert unit.complete == "1"
        unit.write(":INP1:CHAN1:ATT 99")
        assert unit.next_error == [-222, '"Data out of range"']
        assert unit.check_errors() == []
        unit.adapter.close()
